"""Clips as long as the duration head says: parity with diffusers, what decides, errors before any computation."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import LTX2Pipeline as DiffusersPipeline
from diffusers.pipelines.ltx2 import LTX2DurationHead as DiffusersHead

from ltx2_diffusers import (
    LTX2AudioReferenceCondition,
    LTX2ConditionPipeline,
    LTX2DistilledPipeline,
    LTX2DurationHead,
    LTX2ImageToVideoPipeline,
    LTX2InContextPipeline,
    LTX2KeyframeInterpolationPipeline,
    LTX2Pipeline,
    LTX2TwoStagePipeline,
    LTX2VideoCondition,
)
from ltx2_diffusers.media import frames
from ltx2_diffusers.pipelines.arguments import Stage
from tests.golden_data import EQUAL_PIPELINES
from tests.pipelines.recipes import CLIP, PICTURE, RATE, TWO_STAGES, recipe, watched
from tests.pipelines.tiny import CFG, EXPLICIT, NO_GUIDANCE, PROMPT, max_difference, ours, seeded, sibling
from tests.pipelines.watching import calls_of, no_forward
from tests.ranks import lines_of_ranks

SIZES = {"pooler_hidden_dim": 16, "num_queries": 2, "num_pooler_heads": 2, "mlp_hidden_dim": 8}
WIDTHS = {"video_cross_attention_dim": 32, "audio_cross_attention_dim": 32}
ONE_STAGE = {name: value for name, value in EXPLICIT.items() if name != "num_frames"} | {"prompt": PROMPT}
ONE_STAGE |= NO_GUIDANCE | {"min_seconds": 0.3, "max_seconds": 1.5}
# What recipes in stages do not take.
STAGED = {name: value for name, value in ONE_STAGE.items() if name not in ("noise_scale",)} | {
    "height": 64,
    "width": 64,
}
# 0.75 s at 24 per second are 18 frames, 17 on the grid.
SECONDS, FRAMES = 0.75, 17


@cache
def head(library: type = LTX2DurationHead, seconds: float = SECONDS) -> Any:
    """A head that predicts about so many seconds; the text decides the rest."""
    torch.manual_seed(0)
    source = DiffusersHead(**WIDTHS, **SIZES)
    torch.nn.init.constant_(source.mlp_out.bias, math.log(seconds))
    model = library(**WIDTHS, **SIZES).eval()
    model.load_state_dict(source.state_dict())
    return model


def with_head(pipeline_class: type, **components: Any) -> Any:
    """A pipeline on the tiny checkpoint, with the head."""
    return recipe(pipeline_class, duration_head=head(), **components)


def latent_frames(output: Any) -> int:
    return output.frames.shape[2]


def frames_of(output: Any) -> int:
    return (latent_frames(output) - 1) * 8 + 1


def test_as_diffusers():
    pipe = with_head(LTX2Pipeline)
    theirs = DiffusersPipeline(**sibling("2.0", DiffusersPipeline).components | {"duration_head": head(DiffusersHead)})
    theirs.set_progress_bar_config(disable=True)
    call = ONE_STAGE | {"num_videos_per_prompt": 2, "guidance_scale": 3.0, "audio_guidance_scale": 7.0}
    output, expected = (one(**call, generator=seeded(0)) for one in (pipe, theirs))
    assert max_difference(output, expected) <= EQUAL_PIPELINES
    assert output.info["num_frames"] == frames_of(output) == FRAMES
    assert output.audio.shape[2] == pipe.sizes.audio_shape(1, FRAMES / 24).frames


@pytest.mark.parametrize("rate", [12.0, 24.0, 60.0])
def test_the_frame_rate_counts_and_the_speed_of_motion_does_not(rate):
    call = ONE_STAGE | {"frame_rate": rate, "motion_speed": 0.5, "num_inference_steps": 1}
    output = with_head(LTX2Pipeline)(**call, generator=seeded(0))
    assert output.info["num_frames"] == (round(SECONDS * rate) - 1) // 8 * 8 + 1


def test_a_given_number_does_not_run_the_head():
    pipe = with_head(LTX2Pipeline)
    call = {name: value for name, value in ONE_STAGE.items() if "seconds" not in name} | {"num_frames": 9}
    with calls_of(pipe.duration_head) as calls:
        output = pipe(**call, generator=seeded(0))
    assert frames_of(output) == 9 and calls == [] and "num_frames" not in output.info


class Seen(Exception):
    """Latents of the first step."""


def first_step(pipe: Any, **call: Any) -> torch.Tensor:
    """The packed latents of the first step of a call, which ends there."""

    def stop(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        raise Seen(tensors["latents"])

    with pytest.raises(Seen) as seen:
        pipe(**call, callback_on_step_end=stop)
    return seen.value.args[0]


@pytest.mark.parametrize(
    ("pipeline_class", "is_predicted"),
    [(LTX2Pipeline, False), (LTX2InContextPipeline, True)],
    ids=lambda value: str(value),
)
def test_121_frames_where_nothing_is_predicted(pipeline_class, is_predicted):
    """In-context generation has 121 as its default, so that only `None` asks for a prediction."""
    pipe = with_head(pipeline_class) if is_predicted else ours()
    call = {name: value for name, value in ONE_STAGE.items() if "seconds" not in name} | {"height": 32, "width": 32}
    assert first_step(pipe, **call).shape[1] == 16


def test_in_context_asks_by_none():
    output = with_head(LTX2InContextPipeline)(**ONE_STAGE, num_frames=None, generator=seeded(0))
    assert frames_of(output) == output.info["num_frames"] == FRAMES


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "packed"])
@pytest.mark.parametrize("pipeline_class", [LTX2Pipeline, LTX2InContextPipeline])
def test_latents_decide_the_length_of_both_streams(pipeline_class, packed):
    pipe = with_head(pipeline_class)
    latents = torch.randn(1, 128, 2, 2, 3, generator=seeded(1))
    latents = latents.flatten(2).transpose(1, 2) if packed else latents
    call = {name: value for name, value in ONE_STAGE.items() if "seconds" not in name}
    with calls_of(pipe.duration_head) as calls:
        output = pipe(**call, latents=latents, sigmas=[0.5], generator=seeded(0))
    assert frames_of(output) == 9 and calls == []
    assert output.audio.shape[2] == pipe.sizes.audio_shape(1, 9 / 24).frames


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ["a", "b"]}, "cannot be predicted for 2 prompts at once"),
        ({"min_seconds": 2.0}, r"`min_seconds` has to be less than `max_seconds` 1\.5 but is 2; use 1\.0 and 20\.0"),
        ({"min_seconds": -1.0}, "`min_seconds` has to be at least 0"),
        ({"max_seconds": 700.0}, r"last 699.* s, more than the 600 s of sound"),
        ({"frame_rate": 0.0}, "`frame_rate` has to be greater than 0"),
        (
            {"audio_latents": torch.zeros(1, 2, 9, 16)},
            "`audio_latents` are given, which have a length; give `num_frames`",
        ),
        ({"height": 33}, "`height` has to be divisible by 32"),
    ],
)
def test_errors_come_before_any_computation(change, message):
    pipe = with_head(LTX2Pipeline)
    with no_forward(pipe), pytest.raises(ValueError, match=message):
        pipe(**ONE_STAGE | change)


@pytest.mark.parametrize("pipe", [with_head, recipe])
def test_bounds_that_nothing_reads_are_refused(pipe):
    with pytest.raises(ValueError, match=r"`max_seconds` is given \(1\.5\), but (this pipeline has|the length of)"):
        given = {"num_frames": 9} if pipe is with_head else {}
        pipe(LTX2Pipeline)(**ONE_STAGE | {"min_seconds": 1.0} | given)


def test_bounds_have_to_rise_also_beside_a_given_number():
    with pytest.raises(ValueError, match="`min_seconds` has to be less than"):
        ours()(**ONE_STAGE | {"num_frames": 9, "min_seconds": 1.0, "max_seconds": 1.0})


def test_pictures_keep_their_place_and_files_are_read_once(tmp_path, monkeypatch):
    PICTURE.save(tmp_path / "last.png")
    read, opened = [], frames.still_picture
    monkeypatch.setattr(frames, "still_picture", lambda path: read.append(path) or opened(path))
    conditions = [LTX2VideoCondition(tmp_path / "last.png", index=-1), LTX2VideoCondition(CLIP, frame=0)]
    pipe, call = with_head(LTX2ConditionPipeline), ONE_STAGE | {"noise_scale": 1.0}
    output = pipe(**call, conditions=conditions, generator=seeded(0))
    assert len(read) == 1
    del call["min_seconds"], call["max_seconds"]
    expected = pipe(**call, num_frames=FRAMES, conditions=conditions, generator=seeded(0))
    assert max_difference(output, expected) == 0


def test_a_picture_has_to_fit_the_shortest_clip():
    pipe = with_head(LTX2ConditionPipeline)
    message = r"`frame` 20 lies outside the clip; use -9 to 8; the predicted length may be as short as 9 frames"
    with no_forward(pipe), pytest.raises(ValueError, match=message):
        pipe(**ONE_STAGE, conditions=[LTX2VideoCondition(PICTURE, frame=20)])


def test_image_to_video():
    output = with_head(LTX2ImageToVideoPipeline)(**ONE_STAGE, image=PICTURE, generator=seeded(0))
    assert frames_of(output) == output.info["num_frames"] == FRAMES


def staged_call(pipeline_class: type, **changes: Any) -> dict[str, Any]:
    names = pipeline_class.__call__.__signature__.parameters
    return {name: value for name, value in (STAGED | TWO_STAGES | changes).items() if name in names}


@pytest.mark.parametrize("pipeline_class", [LTX2TwoStagePipeline, LTX2DistilledPipeline])
def test_two_stages(pipeline_class):
    sound = torch.rand(2, RATE, generator=seeded(2)) - 0.5
    references = [LTX2AudioReferenceCondition(sound, RATE)]
    call = staged_call(pipeline_class, sigmas=[1.0, 0.5], reference_conditions=references)
    pipe = with_head(pipeline_class)
    output = pipe(**call, generator=seeded(0))
    assert frames_of(output) == output.info["num_frames"] == FRAMES
    del call["min_seconds"], call["max_seconds"]
    assert max_difference(output, pipe(**call, num_frames=FRAMES, generator=seeded(0))) == 0


def test_a_given_sound_leaves_121_frames():
    call = {"prompt": PROMPT, "height": 64, "width": 64, "audio": torch.zeros(2, RATE), "sampling_rate": RATE}
    pipe = with_head(LTX2TwoStagePipeline)
    with pytest.raises(ValueError, match=r"the audio lasts 1\.00 s and the video 5\.04 s"):
        pipe(**call, two_stage=False)
    with pytest.raises(ValueError, match=r"`max_seconds` is given .* the length of this call is given"):
        pipe(**call, two_stage=False, max_seconds=2.0)


def test_frames_of_a_stage_at_half_the_rate():
    """The number of frames suits it, 16 k + 1."""
    half = [Stage(temporal_scale=0.5, sigmas=[1.0]), Stage(sigmas=[0.5], upsampler="temporal_upsampler")]
    call = {name: STAGED[name] for name in ("prompt", "height", "width", "max_sequence_length", "output_type")}
    call |= {"stages": half, "min_seconds": 0.3, "max_seconds": 1.5}
    output = recipe(LTX2TwoStagePipeline, duration_head=head(seconds=1.3))(**call, generator=seeded(0))
    assert output.info["num_frames"] == frames_of(output) == 17


def test_keyframes_reach_the_predicted_last_frame():
    pipe = with_head(LTX2KeyframeInterpolationPipeline)
    call = staged_call(LTX2KeyframeInterpolationPipeline, images=[PICTURE, PICTURE], two_stage=False)
    seen = watched(
        pipe, **{k: v for k, v in call.items() if k not in TWO_STAGES} | {"two_stage": False}, generator=seeded(0)
    )
    assert seen.output.info["num_frames"] == FRAMES
    call = {name: value for name, value in call.items() if "seconds" not in name and name not in TWO_STAGES}
    expected = pipe(
        **call | {"two_stage": False}, num_frames=FRAMES, frame_indices=[0, FRAMES - 1], generator=seeded(0)
    )
    assert max_difference(seen.output, expected) == 0


def test_saved_loaded_and_offloaded(tmp_path):
    pipe = with_head(LTX2Pipeline)
    pipe.save_pretrained(tmp_path)
    for library, name in ((LTX2Pipeline, LTX2DurationHead), (DiffusersPipeline, DiffusersHead)):
        again = library.from_pretrained(tmp_path, dtype=torch.float32)
        assert type(again.duration_head) is name
        assert all(torch.equal(a, b) for a, b in zip(again.duration_head.parameters(), head().parameters()))
    order = pipe.model_cpu_offload_seq.split("->")
    assert order[order.index("connectors") + 1] == "duration_head"


def test_cached_prompts_need_no_encoder(tmp_path):
    pipe = with_head(LTX2Pipeline)
    pipe.enable_prompt_cache(tmp_path)
    first = pipe(**ONE_STAGE, generator=seeded(0))
    bare = LTX2Pipeline.from_pipe(pipe, text_encoder=None, tokenizer=None, connectors=None)
    bare.set_progress_bar_config(disable=True)
    again = bare(**ONE_STAGE, generator=seeded(0))
    assert again.info["num_frames"] == FRAMES and max_difference(first, again) == 0


def agreement() -> list[str]:
    from torch import distributed

    from ltx2_diffusers.sampling.ranks import agreed

    return [str(agreed(9 + 8 * distributed.get_rank(), torch.device("cpu")))]


def test_ranks_agree_on_a_length(tmp_path):
    assert lines_of_ranks(agreement, 2, tmp_path) == [["9"], ["9"]]


@pytest.mark.gpu
def test_on_a_gpu_with_offloading():
    pipe = LTX2Pipeline(**ours().components | {"duration_head": head()})
    pipe.enable_model_cpu_offload()
    output = pipe(**ONE_STAGE, **CFG, generator=seeded(0))
    assert output.info["num_frames"] == frames_of(output)
