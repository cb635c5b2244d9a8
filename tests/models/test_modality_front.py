"""The LTX-Core way to call the transformer."""

from dataclasses import replace

import pytest
import torch

from ltx2_diffusers.conditioning.state import Modality
from ltx2_diffusers.guidance.perturbations import (
    BatchedPerturbationConfig,
    Perturbation,
    PerturbationConfig,
    PerturbationType,
)
from ltx2_diffusers.models.modality_front import LTX2ModalityModel
from tests.golden_data import EQUAL_MODELS
from tests.models.transformer_tools import VIDEO_TOKENS, max_difference, per_token, tiny_inputs, tiny_transformer


def modalities(inputs: dict) -> dict[str, Modality]:
    return {
        name: Modality(
            enabled=True,
            latent=inputs[f"{prefix}hidden_states"],
            timesteps=inputs[f"{prefix}timestep"].reshape(inputs["hidden_states"].shape[0], -1) / 1000,
            positions=inputs[f"{name}_coords"],
            context=inputs[f"{prefix}encoder_hidden_states"],
            sigma=inputs[f"{prefix}sigma"] / 1000,
        )
        for name, prefix in (("video", ""), ("audio", "audio_"))
    }


@pytest.mark.parametrize("layout, mode", [("2.0", "own"), ("2.3", "gate")])
@torch.no_grad()
def test_equals_the_transformer_in_the_mode_of_its_generation(layout, mode):
    transformer = tiny_transformer(layout)
    inputs = tiny_inputs(transformer, 2)
    inputs["timestep"] = per_token(inputs["timestep"], VIDEO_TOKENS, (0, 1, 1))
    streams = modalities(inputs)
    streams["video"] = replace(streams["video"], timesteps=streams["video"].timesteps[..., None])
    outputs = LTX2ModalityModel(transformer)(**streams, perturbations=None)
    assert max_difference(outputs, transformer(**inputs, cross_timestep_mode=mode)) <= EQUAL_MODELS


@torch.no_grad()
def test_perturbations_of_the_user_guide():
    transformer = tiny_transformer("2.0")
    inputs = tiny_inputs(transformer, 2)
    stg = PerturbationConfig([Perturbation(PerturbationType.SKIP_VIDEO_SELF_ATTN, blocks=[1])])
    outputs = LTX2ModalityModel(transformer)(
        **modalities(inputs), perturbations=BatchedPerturbationConfig([stg, PerturbationConfig()])
    )
    keep = torch.ones(4, 3, 2)
    keep[0, 1, 0] = 0
    assert max_difference(outputs, transformer(**inputs, perturbation_keep_masks=keep)) <= EQUAL_MODELS


@torch.no_grad()
def test_streams_left_out_and_switched_off():
    transformer = tiny_transformer("2.3")
    inputs = tiny_inputs(transformer)
    model, streams = LTX2ModalityModel(transformer), modalities(inputs)
    alone = model(video=streams["video"], audio=None)
    assert alone[1] is None
    assert max_difference(alone[:1], transformer(**inputs, isolate_modalities=True)[:1]) <= EQUAL_MODELS
    off = model(video=streams["video"], audio=replace(streams["audio"], enabled=False))
    expected = transformer(**inputs, audio_enabled=False, cross_timestep_mode="gate")
    assert max_difference(off[:1], expected[:1]) <= EQUAL_MODELS


@torch.no_grad()
def test_masks_reach_the_video_and_are_refused_for_audio():
    transformer = tiny_transformer("2.0")
    inputs = tiny_inputs(transformer)
    model, streams = LTX2ModalityModel(transformer), modalities(inputs)
    strengths, words = torch.rand(1, VIDEO_TOKENS, VIDEO_TOKENS), torch.tensor([[1, 1, 1, 0, 0, 0]])
    masked = replace(streams["video"], attention_mask=strengths, context_mask=words)
    outputs = model(video=masked, audio=streams["audio"])
    expected = transformer(**inputs, video_self_attention_mask=strengths, encoder_attention_mask=words)
    assert max_difference(outputs, expected) <= EQUAL_MODELS
    with pytest.raises(ValueError, match="attention_mask exists for video only"):
        model(video=streams["video"], audio=replace(streams["audio"], attention_mask=torch.ones(1, 5, 5)))
