"""Transformer and connectors from nothing: what a fresh network says, what is learned, and whom gradients reach."""

from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma3ForConditionalGeneration

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.conditioning import Streams
from ltx2_diffusers.models.connectors import LTX2TextConnectors
from ltx2_diffusers.models.transformer import LTX2AVTransformer3DModel
from ltx2_diffusers.pipelines.plan import ModelSizes
from ltx2_diffusers.training.components import (
    ConnectorsStep,
    TransformerStep,
    initialise_transformer,
    save_networks,
    text_to_video_and_audio,
)
from ltx2_diffusers.training.objective.noise_levels import UniformLevels
from tests.tiny_checkpoints.configs import component_configs
from tests.tiny_checkpoints.text_model import build_text_encoder, build_tokenizer
from tests.training.components.made import ratio, without_gradient

SIZES = ModelSizes(32, 8, 128, 1, False, 2, 16, 16000, 160, 4)
VERSIONS = ("2.0", "2.3")
PROMPTS = ["A red square moves to the right.", ""]


def transformer(version: str, initialised: bool = True) -> LTX2AVTransformer3DModel:
    torch.manual_seed(0)
    model = LTX2AVTransformer3DModel(**component_configs(version)["transformer"])
    if initialised:
        initialise_transformer(model)
    return model


def connectors(version: str) -> LTX2TextConnectors:
    torch.manual_seed(1)
    return LTX2TextConnectors(**component_configs(version)["connectors"])


def latents(count: int = 2) -> dict[str, Any]:
    """Latents of few kinds, so that a small network can learn them."""
    torch.manual_seed(2)
    video = torch.randn(count, 128, 1, 1, 1).expand(-1, -1, 2, 2, 2)
    audio = torch.randn(count, 2, 1, 16).expand(-1, -1, 9, -1)
    rate = torch.full((count,), 24.0)
    return {"latents": {"latents": video, "fps": rate}, "audio_latents": {"latents": audio}}


def with_contexts(version: str) -> dict[str, Any]:
    with torch.no_grad():
        states = torch.randn(2, 16, 32, 3)
        video, audio, _ = connectors(version)(states, torch.ones(2, 16))
    return {**latents(), "video_context": video, "audio_context": audio}


def test_sizes_are_those_of_the_miniature():
    parts = dict.fromkeys(("scheduler", "text_encoder", "tokenizer", "connectors", "vocoder"))
    vae, audio_vae = (
        kind(**component_configs("2.0")[name])
        for kind, name in ((_class("AutoencoderKLLTX2Video"), "vae"), (_class("AutoencoderKLLTX2Audio"), "audio_vae"))
    )
    pipeline = LTX2Pipeline(**parts, vae=vae, audio_vae=audio_vae, transformer=transformer("2.0"))
    assert pipeline.sizes == SIZES


def _class(name: str) -> type:
    import ltx2_diffusers

    return getattr(ltx2_diffusers, name)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_fresh_transformer_says_nothing_and_hands_its_tokens_through(version):
    model, seen = transformer(version), []
    block = model.transformer_blocks[-1]
    block.register_forward_hook(lambda *call: seen.append((call[1][:2], call[2])))
    step = TransformerStep(model, SIZES)
    losses = step(with_contexts(version))
    (before, after) = seen[0]
    assert_close(after[0], before[0])
    assert_close(after[1], before[1])
    # The velocity is noise minus latents, both of variance 1, and nothing is said of it.
    assert losses["video"].item() == pytest.approx(2.0, abs=0.3)
    assert losses["audio"].item() == pytest.approx(2.0, abs=0.5)
    assert_close(losses["loss"], losses["video"] + losses["audio"])


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("version", VERSIONS)
def test_transformers_learn_and_every_branch_opens(version):
    step, batch = TransformerStep(transformer(version), SIZES), with_contexts(version)
    assert ratio(step, batch, 60, 5e-3) < 0.75
    assert without_gradient(step, batch) == set()


def test_the_text_decides_once_it_is_learned():
    step, batch = TransformerStep(transformer("2.0"), SIZES), with_contexts("2.0")
    ratio(step, batch, 60, 5e-3)
    swapped = {**batch, "video_context": batch["video_context"].flip(0)}
    losses = []
    for each in (batch, swapped):
        torch.manual_seed(3)
        losses.append(sum(step(each)["video"].item() for _ in range(4)))
    assert losses[0] < losses[1]


@pytest.mark.parametrize("isolated", [True, False])
@torch.no_grad()
def test_isolated_streams_do_not_know_of_each_other(isolated):
    step, batch = TransformerStep(transformer("2.0", initialised=False), SIZES), with_contexts("2.0")
    other = {"latents": {**batch["latents"], "latents": batch["latents"]["latents"].flip(0)}}
    losses = []
    for each in (batch, {**batch, **other}):
        torch.manual_seed(3)
        losses.append(step({**each, "isolated": isolated})["audio"].item())
    assert (losses[0] == pytest.approx(losses[1], abs=1e-6)) == isolated


def test_streams_have_noise_levels_and_weights_of_their_own():
    step = TransformerStep(transformer("2.0"), SIZES, levels=UniformLevels(), weights=Streams(1.0, 0.25))
    seen = []
    step.model.register_forward_pre_hook(lambda *call: seen.append([stream.sigma for stream in call[1]]))
    losses = step(with_contexts("2.0"))
    assert not torch.equal(*seen[0])
    assert_close(losses["loss"], losses["video"] + 0.25 * losses["audio"])


def test_the_first_frame_may_be_given():
    step = TransformerStep(transformer("2.0"), SIZES, text_to_video_and_audio(first_frame_probability=1.0))
    seen = []
    step.model.register_forward_pre_hook(lambda *call: seen.append(call[1]))
    batch = with_contexts("2.0")
    step(batch)
    video, audio = seen[0]
    # Of two frames of four latents each the first is without noise.
    assert not video.timesteps[:, :4].any()
    assert video.timesteps[:, 4:].all()
    assert audio.timesteps.all()
    assert torch.equal(video.latent[:, :4], batch["latents"]["latents"][:, :, :1].flatten(2).transpose(1, 2))


def test_noise_follows_from_the_global_seed():
    step, batch = TransformerStep(transformer("2.0", initialised=False), SIZES), with_contexts("2.0")
    losses = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        losses.append(step(batch)["loss"].item())
    assert losses[0] == losses[1] != losses[2]


def test_clips_without_sound_train_the_video_alone():
    batch = with_contexts("2.0")
    del batch["audio_latents"]
    losses = TransformerStep(transformer("2.0", initialised=False), SIZES)(batch)
    assert list(losses) == ["loss", "video"]


@pytest.mark.parametrize("version", VERSIONS)
def test_connectors_learn_through_a_frozen_transformer(version):
    model, reader = transformer(version, initialised=False), connectors(version)
    step = ConnectorsStep(reader, TransformerStep(model.requires_grad_(False), SIZES), 32)
    assert list(step.networks) == ["connectors"]
    batch = {**latents(), "prompt_states": torch.randn(2, 7, 32, 3), "prompt_mask": torch.ones(2, 7)}
    frozen = {f"flow.model.transformer.{name}" for name, _ in model.named_parameters()}
    assert without_gradient(step, batch) == frozen
    weights = [parameter.clone() for parameter in model.parameters()]
    ratio(step, batch, 2)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters()))


def flow_with_texts(version: str) -> ConnectorsStep:
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    text_encoder = build_text_encoder(len(tokenizer))
    flow = TransformerStep(transformer(version, initialised=False), SIZES)
    return ConnectorsStep(connectors(version), flow, 32, text_encoder, tokenizer)


def test_a_language_model_learns_with_connectors_and_transformer():
    step = flow_with_texts("2.0")
    assert list(step.networks) == ["transformer", "connectors", "text_encoder"]
    batch = {**latents(), "prompts": PROMPTS}
    named = without_gradient(step, batch)
    unseen = ("text_encoder.model.vision_tower.", "text_encoder.model.multi_modal_projector.")
    assert {name for name in named if not name.startswith(unseen)} == set()
    assert ratio(step, batch, 40, 5e-3) < 0.85


class FromTheCpu(TorchDispatchMode):
    """Notes what is copied from the CPU to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            devices = [tensor.device.type for tensor in (*args, made) if isinstance(tensor, torch.Tensor)]
            if len(set(devices)) > 1:
                self.copies.append(" to ".join(devices))
        return made


def test_a_step_on_another_device_looks_at_no_value_and_copies_none(monkeypatch):
    """As a CUDA graph demands; tensors on `meta` have no values to look at."""
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda *_: True)
    step = flow_with_texts("2.0")
    batch = latents() | step.tokens(PROMPTS, 20)
    batch["latents"].pop("fps")
    step, batch = step.to("meta"), send_to_device(batch, "meta")
    step(batch)  # what is kept from the first step on
    with FromTheCpu() as seen:
        step(batch)["loss"].backward()
    assert seen.copies == []


def test_texts_are_read_as_in_generation():
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    text_encoder, reader = build_text_encoder(len(tokenizer)).eval(), connectors("2.0")
    parts = dict.fromkeys(("scheduler", "vae", "audio_vae", "vocoder", "transformer"))
    pipeline = LTX2Pipeline(**parts, text_encoder=text_encoder, tokenizer=tokenizer, connectors=reader)
    embeds, mask, _, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False, max_sequence_length=32)
    step = ConnectorsStep(
        reader, TransformerStep(transformer("2.0", initialised=False), SIZES), 32, text_encoder, tokenizer
    )
    losses = []
    states = embeds.unflatten(2, (32, 3))
    tokens = step.tokens(PROMPTS, shortest=20)
    assert all(part.shape == (len(PROMPTS), 20) for part in tokens.values())
    for text in ({"prompts": PROMPTS}, {"prompt_states": states, "prompt_mask": mask}, tokens):
        torch.manual_seed(0)
        losses.append(step({**latents(), **text})["loss"])
    for loss in losses[1:]:
        assert_close(loss, losses[0])


def test_trained_networks_load_as_a_pipeline_loads_them(tmp_path):
    tokenizer = build_tokenizer()
    flow = TransformerStep(transformer("2.3", initialised=False), SIZES)
    step = ConnectorsStep(connectors("2.3"), flow, 32, build_text_encoder(len(tokenizer)), tokenizer)
    save_networks(step, tmp_path)
    for name, kind in (
        ("transformer", LTX2AVTransformer3DModel),
        ("connectors", LTX2TextConnectors),
        ("text_encoder", Gemma3ForConditionalGeneration),
    ):
        loaded, trained = kind.from_pretrained(tmp_path / name).state_dict(), step.networks[name].state_dict()
        assert loaded.keys() == trained.keys()
        assert all(torch.equal(value, trained[key]) for key, value in loaded.items())


def test_a_language_model_needs_its_tokenizer():
    flow = TransformerStep(transformer("2.0"), SIZES)
    with pytest.raises(ValueError, match="`text_encoder` and `tokenizer` belong together"):
        ConnectorsStep(connectors("2.0"), flow, 32, build_text_encoder(768))
    with pytest.raises(ValueError, match="text_encoder"):
        ConnectorsStep(connectors("2.0"), flow, 32)({**latents(), "prompts": PROMPTS})
