"""Strengths by part: the streams, what leads from one to the other, the connectors; for good and per stage."""

import re

import pytest
import torch

from ltx2_diffusers import LTX2Pipeline, LTX2TwoStagePipeline, Stage
from ltx2_diffusers.adapters.active import adapter_layers, added_adapters, named_adapter_layers
from ltx2_diffusers.adapters.modules import PARTS, known_modules, part_of
from ltx2_diffusers.adapters.strengths import strength_at
from tests.adapters.tiny import assert_equal, build, lora, outputs, settings
from tests.golden_loras import WIDE
from tests.pipelines.tiny import load, seeded

VIDEO = "transformer_blocks.0.attn1.to_q"
AUDIO = "transformer_blocks.0.audio_attn1.to_q"
SIZES = {AUDIO: (16, 16)}
WIDE_PARTS = {"video": 0.3, "audio": -0.5, "cross_modal": 0.7, "connectors": 0.2}


@pytest.fixture(scope="module")
def pipe() -> LTX2Pipeline:
    pipe = build()
    pipe.load_lora_weights(WIDE, adapter_name="wide")
    pipe.load_lora_weights(lora(VIDEO) | lora("text_proj_in", 0, (8, 24), "connectors."), adapter_name="style")
    return pipe


@pytest.mark.parametrize(
    "path, part",
    {
        "transformer_blocks.0.attn1.to_q": "video",
        "transformer_blocks.10.attn2.to_out.0": "video",
        "transformer_blocks.1.ff.net.0.proj": "video",
        "transformer_blocks.1.audio_attn2.to_gate_logits": "audio",
        "transformer_blocks.1.audio_ff.net.2": "audio",
        "transformer_blocks.1.audio_to_video_attn.to_q": "cross_modal",
        "transformer_blocks.1.video_to_audio_attn.to_v": "cross_modal",
        "av_cross_attn_video_scale_shift.linear": "cross_modal",
        "av_cross_attn_audio_v2a_gate.emb.timestep_embedder.linear_1": "cross_modal",
        "proj_in": "video",
        "time_embed.linear": "video",
        "prompt_adaln.linear": "video",
        "caption_projection.linear_1": "video",
        "audio_proj_out": "audio",
        "audio_time_embed.emb.timestep_embedder.linear_2": "audio",
        "audio_prompt_adaln.linear": "audio",
        "audio_caption_projection.linear_2": "audio",
    }.items(),
)
def test_every_module_is_in_one_part(path, part):
    assert part_of("transformer", path) == part
    assert path in known_modules(11, 1)["transformer"]


def test_all_modules_of_connectors_are_one_part():
    assert {part_of("connectors", path) for path in known_modules(1, 2)["connectors"]} == {"connectors"}


def test_each_module_has_the_strength_of_its_part(pipe):
    pipe.set_adapters("wide", WIDE_PARTS)
    found = {(part_of(c, path), layer.scaling["wide"]) for c, path, layer in named_adapter_layers(pipe)}
    assert found == set(WIDE_PARTS.items())


def test_parts_act_on_their_own(pipe):
    """What a part leaves out is what a LoRA without these modules does."""
    pipe.set_adapters("wide", {"video": 1.0, "audio": 0.0, "cross_modal": 0, "connectors": 0.0})
    alone = outputs(pipe)
    other = build()
    tensors = LTX2Pipeline.lora_state_dict(WIDE)
    video = {k: t for k, t in tensors.items() if k.startswith("transformer.") and part_of(*k.split(".", 1)) == "video"}
    assert 0 < len(video) < len(tensors)
    other.load_lora_weights(video)
    assert_equal(outputs(other), alone)


def test_what_is_not_named_has_strength_1():
    assert [strength_at({"audio": 0.0}, "transformer", path) for path in (AUDIO, VIDEO)] == [0.0, 1.0]
    assert strength_at({"audio": 0.0}, "connectors", "text_proj_in") == 1.0
    assert strength_at({"video": None}, "transformer", VIDEO) == 1.0
    # Both a component and a part.
    for weight in ({"connectors": 0.3}, {"connectors": 0.3, "audio": 0.0}, {"connectors": {"text": 0.3}}):
        assert strength_at(weight, "connectors", "text_proj_in") == 0.3


@pytest.mark.parametrize(
    "weight, message",
    [
        ({"vidoe": 0.5}, "'vidoe' is none; use 'video'"),
        ({"crossmodal": 0.5}, "'crossmodal' is none; use 'cross_modal'"),
        ({"audio": 0.5}, r"'style' name 'audio', but it changes only \['video', 'connectors'\]"),
        ({"video": float("nan")}, "has to be a finite number but is nan"),
        ({"video": {"attn1": 0.5}}, "has to be a finite number but is {'attn1': 0.5}"),
        ({"transformer": 0.5, "video": 1.0}, "name 'transformer' and 'video', a part of it; leave one of them out"),
    ],
)
def test_strengths_without_a_meaning_are_refused(pipe, weight, message):
    pipe.set_adapters("style", 0.4)
    before = settings(pipe)
    with pytest.raises(ValueError, match=message):
        pipe.set_adapters("style", weight)
    assert settings(pipe) == before
    with pytest.raises(ValueError, match=message), added_adapters(pipe, {"style": weight}):
        pass
    assert settings(pipe) == before


def test_fused_weights_have_the_strengths_of_parts(pipe):
    pipe.set_adapters("wide", WIDE_PARTS)
    expected = outputs(pipe)
    pipe.fuse_lora(adapter_names=["wide"])
    now = outputs(pipe)
    pipe.unfuse_lora()
    assert max((now[key] - expected[key]).abs().max() for key in now) < 2e-5


def test_a_stage_adds_parts_and_takes_them_out(pipe):
    pipe.set_adapters("style", 0.4)
    before = settings(pipe)
    with added_adapters(pipe, {"wide": {"video": 0.5, "audio": 0.0}, "style": 0}):
        inside = {
            (part_of(component, path), name, layer.scaling[name])
            for component, path, layer in named_adapter_layers(pipe)
            for name in layer.active_adapters
        }
    assert inside == {("video", "wide", 0.5), ("cross_modal", "wide", 1.0), ("connectors", "wide", 1.0)}
    assert settings(pipe) == before


@pytest.fixture(scope="module")
def staged() -> LTX2TwoStagePipeline:
    staged = load("2.0", LTX2TwoStagePipeline)
    staged.load_lora_weights(lora(VIDEO) | lora(AUDIO, 1, SIZES[AUDIO]), adapter_name="style")
    staged.set_adapters([])
    return staged


QUICK = {"prompt": "a", "height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 1, "output_type": "latent"}


def test_calls_take_strengths_by_part(staged):
    def made(**how) -> torch.Tensor:
        output = staged(**QUICK, two_stage=False, generator=seeded(1), **how)
        return torch.cat([output.frames.flatten(), output.audio.flatten()])

    by_part = made(stage_1_adapters={"style": {"video": 0.5, "audio": 0.0}})
    assert staged.get_active_adapters() == []
    staged.set_adapters("style", {"video": 0.5, "audio": 0.0})
    assert torch.equal(made(), by_part)
    staged.set_adapters([])
    assert not torch.equal(made(), by_part)
    assert not torch.equal(made(stage_1_adapters={"style": 0.5}), by_part)
    staged_call = made(stages=[Stage(adapters={"style": {"video": 0.5, "audio": 0}}, num_inference_steps=1)])
    staged.set_adapters("style", {"video": 0.5, "audio": 0.0})
    assert torch.equal(made(stages=[Stage(num_inference_steps=1)]), staged_call)
    staged.set_adapters([])


@pytest.mark.parametrize(
    "strength, message",
    [
        ({"vidoe": 0.5}, "'vidoe' is none; use 'video'"),
        ({"cross_modal": 0.5}, r"name 'cross_modal', but it changes only \['video', 'audio'\]"),
        (
            {"video": "1"},
            "`stage_1_adapters` has to be a mapping of `str` to finite numbers or mappings of `str` to finite numbers",
        ),
    ],
)
def test_calls_refuse_parts_without_a_meaning(staged, monkeypatch, strength, message):
    def computed(*_args, **_kwargs):
        raise AssertionError("a network ran")

    for model in (staged.text_encoder, staged.transformer):
        monkeypatch.setattr(model, "forward", computed)
    with pytest.raises(ValueError, match=message):
        staged(**QUICK, two_stage=False, stage_1_adapters={"style": strength})


def test_numpy_numbers_are_strengths(staged):
    import numpy as np

    stage = Stage(adapters={"style": {"video": np.float32(0.5)}})
    assert stage.adapters == {"style": {"video": 0.5}}
    with added_adapters(staged, stage.adapters):
        assert {layer.scaling["style"] for layer in adapter_layers(staged)} == {0.5, 1.0}


def test_the_parts_are_those_that_are_documented():
    documented = re.sub(r"\s+", " ", LTX2Pipeline.set_adapters.__doc__)
    assert all(f'"{part}"' in documented for part in PARTS)
