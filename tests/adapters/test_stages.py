"""Adapters of stages: those that mean nothing are refused by name before anything is computed."""

import pytest
import torch

from ltx2_diffusers import LTX2TwoStagePipeline, Stage
from ltx2_diffusers.adapters.active import added_adapters
from tests.adapters.tiny import build, lora
from tests.pipelines.tiny import load, seeded

QUICK = {"prompt": "a", "height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 1, "output_type": "latent"}
ONE, NAN = {"two_stage": False}, float("nan")


@pytest.fixture(scope="module")
def pipe() -> LTX2TwoStagePipeline:
    pipe = load("2.0", LTX2TwoStagePipeline)
    pipe.load_lora_weights(lora(), adapter_name="style")
    pipe.set_adapters([])
    return pipe


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (ONE | {"stage_1_adapters": {"nope": 1.0}}, "no LoRA adapter 'nope' is loaded"),
        (ONE | {"stage_2_adapters": {"style": 1.0}}, "`stage_2_adapters` is given .* but this call has one stage"),
        (ONE | {"stage_1_adapters": {"style": NAN}}, "`stage_1_adapters` .* finite numbers but is {'style': nan}"),
        ({"stage_1_adapters": {"style": True}}, "`stage_1_adapters` .* finite numbers but is {'style': True}"),
        ({"stage_2_adapters": {"style": "1"}}, "`stage_2_adapters` .* finite numbers but is {'style': '1'}"),
        ({"stage_2_adapters": {"style": float("inf")}}, "`stage_2_adapters` .* finite numbers but is {'style': inf}"),
        ({"stage_1_adapters": ["style"]}, r"`stage_1_adapters` has to be a mapping .* but is \['style'\]"),
        ({"stage_1_adapters": "style"}, "`stage_1_adapters` has to be a mapping .* but is 'style'"),
        ({"stages": [Stage(adapters={"nope": 1.0})]}, "no LoRA adapter 'nope' is loaded"),
        (
            {"stages": [Stage()], "stage_1_adapters": {"style": 1.0}},
            "`stage_1_adapters` is given .* but `stages` are given",
        ),
        ({"stages": [Stage()], "stage_2_adapters": {"style": 1.0}}, "but `stages` are given"),
    ],
)
def test_meaningless_adapters_are_refused(pipe, monkeypatch, arguments, message):
    def computed(*_args, **_kwargs):
        raise AssertionError("a network ran")

    for model in (pipe.text_encoder, pipe.transformer):
        monkeypatch.setattr(model, "forward", computed)
    with pytest.raises(ValueError, match=message):
        pipe(**QUICK | {"height": 128, "width": 128} | arguments)


@pytest.mark.parametrize("adapters", [{"style": NAN}, "style"], ids=str)
def test_a_stage_takes_strengths_by_name(adapters):
    with pytest.raises(
        ValueError, match=r"`adapters` has to be a mapping of `str` to finite numbers or mappings .* but is"
    ):
        Stage(adapters=adapters)


def test_the_only_stage_is_the_first(pipe):
    bare, with_style = (
        pipe(**QUICK | ONE, stage_1_adapters=adapters, generator=seeded(1)).frames
        for adapters in (None, {"style": 1.0})
    )
    assert not torch.equal(bare, with_style)
    assert pipe.get_active_adapters() == []
    pipe.set_adapters("style")
    assert torch.equal(pipe(**QUICK | ONE, generator=seeded(1)).frames, with_style)
    pipe.set_adapters([])


def test_adapters_do_not_go_to_another_transformer(pipe):
    staged = LTX2TwoStagePipeline(**{**pipe.components, "stage_2_transformer": pipe.transformer})
    stages = [Stage(), Stage(transformer="stage_2_transformer", adapters={"style": 1.0})]
    with pytest.raises(ValueError, match="of a stage belong to `transformer`, but it runs `stage_2_transformer`"):
        staged(**QUICK, stages=stages)


@pytest.mark.parametrize(
    "strength", [{}, {"video": 0.0}, {"transformer": {"transformer_blocks.0": 0.0}}, 1.0], ids=str
)
@pytest.mark.quick_cases(2)
def test_adapters_that_fused_ones_would_swallow_are_refused(strength):
    pipe = build(torch.float32)
    for name in ("fused", "style"):
        factors = lora() | lora("transformer_blocks.1.audio_ff.net.2", 0, (16, 64))
        pipe.load_lora_weights(factors, adapter_name=name)
    pipe.fuse_lora(adapter_names=["fused"])
    with pytest.raises(ValueError, match="'style' has no effect while"), added_adapters(pipe, {"style": strength}):
        pass
    with added_adapters(pipe, {"style": dict.fromkeys(("video", "audio"), 0.0)}):
        pass
