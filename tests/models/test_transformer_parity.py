"""The transformer against diffusers' class on random configurations and inputs."""

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel

from ltx2_diffusers.models.transformer import LTX2AVTransformer3DModel
from tests.golden_data import EQUAL_MODELS
from tests.models.transformer_tools import (
    AUDIO_TOKENS,
    LAYOUTS,
    TEXT_TOKENS,
    VIDEO_TOKENS,
    max_difference,
    per_token,
    tiny_inputs,
    tiny_transformer,
)


def pair(layout: str, **overrides):
    ours = tiny_transformer(layout, **overrides)
    theirs = LTX2VideoTransformer3DModel(**{**LAYOUTS[layout], **overrides}).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def text_mask(batch_size: int) -> torch.Tensor:
    mask = torch.ones(batch_size, TEXT_TOKENS)
    mask[0, TEXT_TOKENS // 2 :] = 0
    return mask


ARGUMENTS = {
    "plain": lambda _: {},
    "all-ones masks": lambda batch: {
        "encoder_attention_mask": torch.ones(batch, TEXT_TOKENS, dtype=torch.long),
        "audio_encoder_attention_mask": torch.ones(batch, TEXT_TOKENS, dtype=torch.bool),
    },
    "text masks": lambda batch: {
        "encoder_attention_mask": text_mask(batch),
        "audio_encoder_attention_mask": text_mask(batch).flip(1),
    },
    "additive text mask": lambda batch: {"encoder_attention_mask": torch.randn(batch, 1, TEXT_TOKENS)},
    "additive text mask per query": lambda batch: {
        "encoder_attention_mask": torch.randn(batch, VIDEO_TOKENS, TEXT_TOKENS)
    },
    "self-attention mask": lambda batch: {
        "video_self_attention_mask": (torch.rand(batch, VIDEO_TOKENS, VIDEO_TOKENS) > 0.3).float()
    },
    "image to video": lambda batch: {"timestep": per_token(torch.full((batch,), 700.0), VIDEO_TOKENS, (0, 1, 1))},
    "image to video, cross timestep": lambda batch: {
        "timestep": per_token(torch.full((batch,), 700.0), VIDEO_TOKENS, (0, 1, 1)),
        "use_cross_timestep": True,
    },
    "random strengths": lambda batch: {
        "timestep": torch.rand(batch, VIDEO_TOKENS) * 1000,
        "audio_timestep": torch.rand(batch, AUDIO_TOKENS, 1) * 1000,
    },
    "isolated": lambda _: {"isolate_modalities": True},
    "sigma of the video for both": lambda _: {"audio_timestep": None, "audio_sigma": None},
}


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch_size", [1, 2])
@torch.no_grad()
def test_equals_diffusers(layout, batch_size):
    ours, theirs = pair(layout)
    inputs = tiny_inputs(ours, batch_size)
    differences = {}
    for name, arguments in ARGUMENTS.items():
        changed = {**inputs, **arguments(batch_size)}
        differences[name] = max_difference(ours(**changed), theirs(**changed))
    assert max(differences.values()) <= EQUAL_MODELS, differences


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_stg_equals_diffusers_where_values_pass_through(layout):
    ours, theirs = pair(layout, perturbed_attn=True)
    inputs = tiny_inputs(ours, 2)
    plain = ours(**inputs)
    for mask in (None, torch.tensor([0.0, 1.0]), torch.tensor([0.25, 0.0])[:, None, None]):
        arguments = {"spatio_temporal_guidance_blocks": [0, 2], "perturbation_mask": mask}
        outputs = ours(**inputs, **arguments)
        assert max_difference(outputs, theirs(**inputs, **arguments)) <= EQUAL_MODELS
        assert max_difference(outputs, plain) > 1e-2


@torch.no_grad()
def test_stg_on_2_0_weights_is_a_perturbation_here_and_none_in_diffusers():
    ours, theirs = pair("2.0")
    inputs, stg = tiny_inputs(ours), {"spatio_temporal_guidance_blocks": [1]}
    perturbed, plain = ours(**inputs, **stg), ours(**inputs)
    assert max_difference(theirs(**inputs, **stg), theirs(**inputs)) == 0
    assert max_difference(perturbed, plain) > 1e-2
    # The reference drops the branch: the same as a self-attention whose output layer is all zeros.
    for name in ("attn1", "audio_attn1"):
        for parameter in getattr(ours.transformer_blocks[1], name).to_out.parameters():
            parameter.zero_()
    assert max_difference(ours(**inputs), perturbed) <= EQUAL_MODELS


@pytest.mark.parametrize("prompt_modulation", [True, False])
@torch.no_grad()
def test_keyframes_of_2_5_equal_diffusers(prompt_modulation):
    ours, theirs = pair("2.5", use_prompt_adaln_single=prompt_modulation)
    inputs = tiny_inputs(ours)
    plain = ours(**inputs)
    inputs["video_keyframes_mask"] = (torch.arange(VIDEO_TOKENS) < 4).float()[None, :, None]
    marked = ours(**inputs)
    assert max_difference(marked, theirs(**inputs)) <= EQUAL_MODELS
    assert max_difference(marked, plain) > 1e-2


@pytest.mark.parametrize("layout", ["2.0", "2.0 interleaved"])
@torch.no_grad()
def test_uncommon_settings_equal_diffusers(layout):
    settings = {
        "norm_elementwise_affine": True,
        "attention_bias": False,
        "attention_out_bias": False,
        "cross_attn_timestep_scale_multiplier": 1,
        "audio_pos_embed_max_pos": 30,
        "rope_theta": 500.0,
        "patch_size": 2,
        "out_channels": None,
        "norm_eps": 1e-2,
        "audio_cross_attn_mod": True,
    }
    ours, theirs = pair(layout, **settings)
    inputs = tiny_inputs(ours)
    inputs["video_coords"] = ours.rope.prepare_video_coords(1, 3, 4, 4, "cpu")
    assert torch.equal(inputs["video_coords"], theirs.rope.prepare_video_coords(1, 3, 4, 4, "cpu"))
    assert max_difference(ours(**inputs), theirs(**inputs)) <= EQUAL_MODELS


@torch.no_grad()
def test_half_precision_stays_as_close_to_float32_as_diffusers():
    ours, theirs = pair("2.3")
    inputs = tiny_inputs(ours)
    exact = ours(**inputs)
    half = {name: value.bfloat16() if name.endswith("hidden_states") else value for name, value in inputs.items()}
    errors = [max_difference(model.to(torch.bfloat16)(**half), exact) for model in (ours, theirs)]
    assert errors[0] <= 1.5 * errors[1]


@torch.no_grad()
def test_folders_are_exchanged_with_diffusers(tmp_path):
    ours, theirs = pair("2.3")
    inputs = tiny_inputs(ours)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = LTX2AVTransformer3DModel.from_pretrained(tmp_path / "theirs")
    assert max_difference(loaded(**inputs), ours(**inputs)) <= EQUAL_MODELS
    ours.save_pretrained(tmp_path / "ours")
    loaded = LTX2VideoTransformer3DModel.from_pretrained(tmp_path / "ours")
    assert max_difference(loaded(**inputs), theirs(**inputs)) <= EQUAL_MODELS


@pytest.mark.parametrize("layout", ["2.0", "2.3"])
def test_configuration_is_that_of_diffusers(layout):
    ours, theirs = pair(layout)
    public = {key: value for key, value in theirs.config.items() if not key.startswith("_")}
    assert public == {key: value for key, value in ours.config.items() if not key.startswith("_")}
