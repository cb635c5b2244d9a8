"""Every mode, in one stage and in two, with sound and without.

What is given is kept bit for bit at every step, what is shown beside the video is never decoded, both streams last
equally long, and the transformer runs as often as the output says.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.conditioning.carry import resize_latent
from ltx2_diffusers.pipelines.conditions.pictures import LTX2ReferenceCondition, LTX2VideoCondition
from ltx2_diffusers.pipelines.recipes.audio_to_video import LTX2AudioToVideoPipeline
from ltx2_diffusers.pipelines.recipes.condition import LTX2ConditionPipeline
from ltx2_diffusers.pipelines.recipes.distilled import LTX2DistilledPipeline
from ltx2_diffusers.pipelines.recipes.extension.pipeline import LTX2ExtendPipeline
from ltx2_diffusers.pipelines.recipes.image_to_video import LTX2ImageToVideoPipeline
from ltx2_diffusers.pipelines.recipes.in_context import LTX2InContextPipeline
from ltx2_diffusers.pipelines.recipes.keyframe_interpolation import LTX2KeyframeInterpolationPipeline
from ltx2_diffusers.pipelines.recipes.retake import LTX2RetakePipeline
from ltx2_diffusers.pipelines.recipes.text_to_audio import LTX2TextToAudioPipeline
from ltx2_diffusers.pipelines.recipes.two_stage import LTX2TwoStagePipeline
from ltx2_diffusers.pipelines.recipes.video_to_audio import LTX2VideoToAudioPipeline
from tests.pipelines.recipes import (
    CALL,
    CLIP,
    OTHER,
    PICTURE,
    RATE,
    SOUND,
    TWO_STAGES,
    assert_tokens,
    encoded,
    encoded_sound,
    no_computation,
    packed,
    per_stage,
    recipe,
    watched,
)
from tests.pipelines.tiny import seeded

FRAMES = 9
SIDE = 64
FIRST = LTX2VideoCondition(PICTURE, crf=0)
LAST = LTX2VideoCondition(OTHER, frame=-1, crf=0)
REFERENCE = LTX2ReferenceCondition(torch.from_numpy(CLIP[:FRAMES]).movedim(-1, 1))
CARRIED = torch.randn(1, 128, 3, 2, 2, generator=seeded(5))
CARRIED_SOUND = torch.randn(1, 2, 18, 16, generator=seeded(6))


class Kept(NamedTuple):
    """What a stage has to keep: latents at the start of the video, beside it, and at the start of the sound."""

    video: torch.Tensor | None = None
    appended: tuple[torch.Tensor, ...] = ()
    audio: torch.Tensor | None = None


@dataclass(frozen=True)
class Mode:
    """A row of the table.

    Args:
        pipeline: The recipe.
        arguments: Its own arguments, for a call with or without sound.
        kept: What a stage keeps, from the pipeline, the side in pixels, the index of the stage and whether there is sound.
        passes: Predictions per step of the first stage, with and without sound.
        steps: Steps of the first and the second stage.
        num_frames: Frames of a run; 0 without video.
        refused: Error of a call without sound.
    """

    pipeline: type
    arguments: Callable[[bool], dict[str, Any]]
    kept: Callable[..., Kept] = lambda *_: Kept()
    passes: tuple[int, int] = (4, 3)
    steps: tuple[int, int] = (2, 2)
    num_frames: int = FRAMES
    refused: tuple[type, str] | None = None


def first_frame(pipe, side, *_):
    return Kept(encoded(pipe, PICTURE, side, side))


def first_and_last(pipe, side, *_):
    return Kept(encoded(pipe, PICTURE, side, side), (encoded(pipe, OTHER, side, side),))


def keyframes(pipe, side, *_):
    return Kept(None, (encoded(pipe, PICTURE, side, side), encoded(pipe, OTHER, side, side)))


def reference(pipe, side, stage, _sound):
    return Kept(None, (encoded(pipe, CLIP[:FRAMES], side, side),) if stage == 0 else ())


def sound_alone(pipe, *_):
    return Kept(audio=encoded_sound(pipe))


def whole_video(pipe, side, *_):
    return Kept(encoded(pipe, CLIP[:FRAMES], side, side))


def before_the_stretch(pipe, side, _stage, sound):
    source = encoded(pipe, CLIP[:FRAMES], side, side)
    # Latent frame 1 lasts from 1/24 s to the end; audio latent i ends at (4 i + 1) / 100 s.
    return Kept(source[:, :, :1], audio=encoded_sound(pipe)[:, :, :5] if sound else None)


def carried(pipe, side, _stage, sound):
    video = resize_latent(pipe.vae.normalize_latents(CARRIED)[:, :, -2:], side // 32, side // 32)
    # 25 frames last 26 audio latents and 17 last 18: 8 new ones of 18.
    audio = pipe.audio_vae.normalize_latents(CARRIED_SOUND)[:, :, -10:]
    return Kept(video, audio=audio if sound else None)


def given(**arguments: Any) -> Callable[[bool], dict[str, Any]]:
    """Arguments of a recipe that leaves out the sound by `generate_audio`."""
    return lambda sound: {**arguments, "generate_audio": sound}


def only_refused(**arguments: Any) -> Callable[[bool], dict[str, Any]]:
    """Arguments of a recipe that is about sound and knows no call without it."""
    return lambda sound: arguments if sound else {**arguments, "generate_audio": False}


def with_sound(**arguments: Any) -> Callable[[bool], dict[str, Any]]:
    """Arguments of a recipe that takes the sound of a clip."""
    return lambda sound: {**arguments, **({"audio": SOUND, "sampling_rate": RATE} if sound else {})}


NO_SUCH_ARGUMENT = (TypeError, "generate_audio")
MODES = {
    "text": Mode(LTX2TwoStagePipeline, given()),
    "image": Mode(LTX2TwoStagePipeline, given(conditions=FIRST), first_frame),
    "condition": Mode(LTX2TwoStagePipeline, given(conditions=[FIRST, LAST]), first_and_last),
    "in-context": Mode(LTX2TwoStagePipeline, given(reference_conditions=REFERENCE), reference),
    "two-stage, all at once": Mode(
        LTX2TwoStagePipeline,
        lambda sound: {
            "conditions": FIRST,
            "reference_conditions": REFERENCE,
            **({"audio": SOUND, "sampling_rate": RATE} if sound else {"generate_audio": False}),
        },
        lambda pipe, side, stage, sound: Kept(
            *first_frame(pipe, side)[:1],
            reference(pipe, side, stage, sound).appended,
            encoded_sound(pipe) if sound else None,
        ),
    ),
    "distilled": Mode(LTX2DistilledPipeline, given(conditions=FIRST), first_frame, passes=(1, 1), steps=(8, 3)),
    "keyframe interpolation": Mode(
        LTX2KeyframeInterpolationPipeline, given(images=[PICTURE, OTHER], image_crf=0), keyframes
    ),
    "audio to video": Mode(
        LTX2AudioToVideoPipeline,
        lambda sound: {"audio": SOUND if sound else None, "sampling_rate": RATE},
        sound_alone,
        refused=(ValueError, "`audio` is None"),
    ),
    "video to audio": Mode(
        LTX2VideoToAudioPipeline, only_refused(video=CLIP[:FRAMES]), whole_video, refused=NO_SUCH_ARGUMENT
    ),
    "text to audio": Mode(
        LTX2TextToAudioPipeline,
        only_refused(duration_s=FRAMES / 24),
        passes=(3, 3),
        num_frames=0,
        refused=NO_SUCH_ARGUMENT,
    ),
    "retake": Mode(
        LTX2RetakePipeline, with_sound(video=CLIP[:FRAMES], start_s=0.2, end_s=FRAMES / 24), before_the_stretch
    ),
    "extend": Mode(
        LTX2ExtendPipeline,
        lambda sound: {
            "latents": CARRIED,
            "audio_latents": CARRIED_SOUND if sound else None,
            "num_frames": 17,
            "overlap_frames": 9,
        },
        carried,
        num_frames=17,
    ),
}


def known(pipeline: type, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the common arguments that a recipe takes."""
    taken = inspect.signature(pipeline.__call__).parameters
    return {name: value for name, value in arguments.items() if name in taken}


def assert_kept(tokens: dict[str, torch.Tensor | None], kept: Kept, num_frames: int, side: int) -> None:
    """The tokens of a step hold what is given, and nothing else stands beside the video."""
    if num_frames:
        count = ((num_frames - 1) // 8 + 1) * (side // 32) ** 2
        if kept.video is not None:
            assert_tokens(tokens["latents"], 0, [kept.video])
        if kept.appended:
            assert_tokens(tokens["latents"], count, kept.appended)
        assert tokens["latents"].shape[1] == count + sum(packed(latent).shape[1] for latent in kept.appended)
    else:
        assert tokens["latents"] is None
    if kept.audio is not None:
        assert_tokens(tokens["audio_latents"], 0, [kept.audio])


def assert_equally_long(output: Any, has_video: bool, has_sound: bool) -> None:
    """Both streams last equally long, to one audio latent."""
    assert (output.frames is not None, output.audio is not None) == (has_video, has_sound)
    video_s = ((output.frames.shape[2] - 1) * 8 + 1) / 24 if has_video else FRAMES / 24
    if has_sound:
        assert abs(output.audio.shape[2] / 25 - video_s) <= 0.04


@pytest.mark.parametrize("sound", [True, False], ids=["with sound", "without sound"])
@pytest.mark.parametrize("stages", [1, 2], ids=["one stage", "two stages"])
@pytest.mark.parametrize("name", MODES)
@pytest.mark.quick_cases(16)
def test_mode(name, stages, sound):
    mode = MODES[name]
    pipe = recipe(mode.pipeline)
    staging = TWO_STAGES if stages == 2 else {"two_stage": False}
    if name == "distilled":
        staging = {"two_stage": stages == 2}  # the preset's noise levels
    arguments = {**known(mode.pipeline, CALL), **staging, **mode.arguments(sound), "generator": seeded(0)}
    if not sound and mode.refused:
        error, message = mode.refused
        with no_computation(pipe), pytest.raises(error, match=message):
            pipe(**arguments)
        return

    seen = watched(pipe, **arguments)

    passes = [mode.passes[not sound], 1][:stages]
    assert per_stage(seen.output.info["forwards_per_step"]) == passes
    assert [len(steps) for steps in seen.stages()] == list(mode.steps[:stages])
    assert sum(seen.predictions) == sum(count * steps for count, steps in zip(passes, mode.steps))
    for stage, steps in enumerate(seen.stages()):
        side = SIDE if stage == stages - 1 else SIDE // 2
        kept = mode.kept(pipe, side, stage, sound)
        for tokens in steps:
            assert_kept(tokens, kept, mode.num_frames, side)
    assert_equally_long(seen.output, mode.num_frames > 0, sound)
    if name != "extend" and kept.video is not None:
        shown = pipe.vae.denormalize_latents(kept.video)
        assert torch.equal(seen.output.frames[:, :, : shown.shape[2]], shown)
    if name != "extend" and kept.audio is not None:
        heard = pipe.audio_vae.denormalize_latents(kept.audio)
        assert torch.equal(seen.output.audio[:, :, : heard.shape[2]], heard)


ONE_STAGE = {
    "text": (LTX2Pipeline, {}),
    "image": (LTX2ImageToVideoPipeline, {"image": PICTURE, "image_crf": 0}),
    "condition": (LTX2ConditionPipeline, {"conditions": [FIRST, LAST]}),
    "in-context": (LTX2InContextPipeline, {"reference_conditions": REFERENCE}),
}


@pytest.mark.parametrize("name", ONE_STAGE)
def test_pipelines_of_diffusers_run_one_stage_with_sound(name):
    pipeline, arguments = ONE_STAGE[name]
    pipe = recipe(pipeline)
    seen = watched(pipe, **CALL, **arguments, generator=seeded(0))
    assert seen.output.info["forwards_per_step"] == 4
    assert sum(seen.predictions) == 4 * len(seen.steps) == 8
    for tokens in seen.steps:
        assert_kept(tokens, MODES[name].kept(pipe, SIDE, 0, True), FRAMES, SIDE)
    assert_equally_long(seen.output, True, True)


@pytest.mark.parametrize("name", ONE_STAGE)
@pytest.mark.parametrize("argument", ["two_stage", "generate_audio"])
def test_pipelines_of_diffusers_know_no_other_form(name, argument):
    pipeline, arguments = ONE_STAGE[name]
    with pytest.raises(TypeError, match=argument):
        recipe(pipeline)(**CALL, **arguments, **{argument: True})
