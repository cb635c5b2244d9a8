"""Requests of applications find the pipeline that serves them, with the application's values."""

from pathlib import Path

import PIL.Image
import pytest
import torch

import ltx2_diffusers
from ltx2_diffusers import LTX2InContextPipeline, LTX2TwoStagePipeline
from ltx2_diffusers.application.chunks import Chunk, plan_chunks
from ltx2_diffusers.application.director import PromptDirector
from ltx2_diffusers.application.generate import generate
from ltx2_diffusers.application.selection import ApplicationDefaults, GenerationRequest, TimelineItem, select_pipeline
from ltx2_diffusers.media.writing import write_video
from tests.pipelines.tiny import PROMPT, load

FIRST, LAST = TimelineItem("image", "first.png", 0, 0.9), TimelineItem("image", "last.png", 120, 0.8)
END, MIDDLE = TimelineItem("image", "last.png", -1, 0.8), TimelineItem("image", "middle.png", 60)
CLIP, LATE_CLIP = TimelineItem("video", "clip.mp4", 0, 0.7), TimelineItem("video", "late.mp4", 48)


def request(*timeline: TimelineItem, **changes) -> GenerationRequest:
    return GenerationRequest(PROMPT, timeline=timeline, **changes)


# --- rules ---


@pytest.mark.parametrize(
    ("timeline", "num_frames", "rule", "pipeline"),
    [
        ((), 121, "two_stage", "LTX2TwoStagePipeline"),
        ((FIRST,), 121, "two_stage", "LTX2TwoStagePipeline"),
        ((MIDDLE,), 121, "two_stage", "LTX2TwoStagePipeline"),
        ((LAST,), 121, "two_stage", "LTX2TwoStagePipeline"),
        ((FIRST, MIDDLE), 121, "two_stage", "LTX2TwoStagePipeline"),
        ((FIRST, FIRST), 121, "two_stage", "LTX2TwoStagePipeline"),
        ((FIRST, LAST), 121, "keyframes", "LTX2KeyframeInterpolationPipeline"),
        ((END, MIDDLE, FIRST), 121, "keyframes", "LTX2KeyframeInterpolationPipeline"),
        ((FIRST, END), 241, "keyframes", "LTX2KeyframeInterpolationPipeline"),
        ((FIRST, LAST), 129, "chained", "LTX2ExtendPipeline"),
        ((), 129, "chained", "LTX2ExtendPipeline"),
        ((CLIP,), 121, "in_context", "LTX2InContextPipeline"),
        ((CLIP, FIRST, LAST), 121, "in_context", "LTX2InContextPipeline"),
        ((FIRST, LATE_CLIP), 241, "in_context", "LTX2InContextPipeline"),
        ((), 1, "image", "LTX2TwoStagePipeline"),
        ((FIRST,), 1, "image", "LTX2TwoStagePipeline"),
        ((CLIP,), 1, "image", "LTX2TwoStagePipeline"),
    ],
)
def test_the_first_rule_that_fits_decides(timeline, num_frames, rule, pipeline):
    selection = select_pipeline(request(*timeline, num_frames=num_frames))
    assert (selection.rule, selection.pipeline_name) == (rule, pipeline)
    assert bool(selection.chunks) == (rule == "chained")


def test_the_pipeline_class_is_found_by_its_public_name():
    assert select_pipeline(request()).pipeline_class is LTX2TwoStagePipeline
    assert select_pipeline(request(CLIP)).pipeline_class is LTX2InContextPipeline
    for timeline in ((), (CLIP,), (FIRST, LAST)):
        assert select_pipeline(request(*timeline)).pipeline_name in ltx2_diffusers.__all__


def test_applications_values_stand_in_for_what_is_not_said():
    arguments = select_pipeline(request()).arguments
    assert arguments == {
        "prompt": PROMPT,
        "negative_prompt": None,
        "height": 512,
        "width": 768,
        "num_frames": 121,
        "frame_rate": 25.0,
        "num_inference_steps": 40,
        "guidance_scale": 2.0,
        "enable_prompt_enhancement": True,
        "conditions": [],
    }
    assert select_pipeline(request(num_frames=241)).arguments["guidance_scale"] == 3.0
    given = {"num_inference_steps": 7, "guidance_scale": 4.0, "frame_rate": 24.0, "negative_prompt": "blur"}
    for kind in ("dev", "distilled"):
        assert given.items() <= select_pipeline(request(**given), kind).arguments.items()
    assert not select_pipeline(request(enhance_prompt=False)).arguments["enable_prompt_enhancement"]


def test_a_distilled_checkpoint_keeps_its_own_steps_and_guidance():
    arguments = select_pipeline(request(), "distilled").arguments
    assert arguments["num_inference_steps"] is arguments["guidance_scale"] is None


def test_other_defaults_may_be_given():
    defaults = ApplicationDefaults(width=512, chunk_frames=49, overlap_frames=9)
    selection = select_pipeline(request(num_frames=57), defaults=defaults)
    assert selection.arguments["width"] == 512
    assert [chunk.num_frames for chunk in selection.chunks] == [33, 33]


# --- arguments ---


def test_all_clips_are_references_and_all_pictures_conditions():
    selection = select_pipeline(request(FIRST, CLIP, LATE_CLIP, END))
    references, conditions = (selection.arguments[name] for name in ("reference_conditions", "conditions"))
    assert [(c.frames, c.strength) for c in references] == [("clip.mp4", 0.7), ("late.mp4", 1.0)]
    assert [(c.frames, c.frame, c.strength) for c in conditions] == [("first.png", 0, 0.9), ("last.png", 120, 0.8)]
    assert [note for note in selection.notes if "late.mp4" in note and "48" in note]
    assert not any("clip.mp4" in note for note in selection.notes)


def test_keyframes_are_handed_over_in_order():
    arguments = select_pipeline(request(END, MIDDLE, FIRST)).arguments
    assert arguments["images"] == ["first.png", "middle.png", "last.png"]
    assert arguments["frame_indices"] == [0, 60, 120]
    assert arguments["strengths"] == [0.9, 1.0, 0.8]


def test_pictures_become_conditions_of_the_two_stages():
    (condition,) = select_pipeline(request(TimelineItem("image", Path("a.png"), 8, 0.5))).arguments["conditions"]
    assert (condition.frames, condition.frame, condition.strength) == ("a.png", 8, 0.5)


@pytest.mark.parametrize(
    ("size", "device", "expected"),
    [
        ((768, 512), "cuda", (768, 512)),
        ((700, 500), "cuda", (704, 512)),
        ((1, 31), "cuda", (64, 64)),
        ((96, 95), "cuda", (128, 64)),
        ((1920, 1088), "cuda", (1920, 1088)),
        ((1920, 1088), "mps", (1280, 704)),
        ((1280, 768), "mps", (1280, 768)),
        ((1088, 1920), "mps", (704, 1280)),
    ],
)
def test_sizes_are_rounded_and_bounded_by_the_device(size, device, expected):
    selection = select_pipeline(request(width=size[0], height=size[1], device_type=device))
    actual = selection.arguments["width"], selection.arguments["height"]
    assert actual == (selection.request.width, selection.request.height)
    assert actual == expected
    assert bool(selection.notes) == (size != expected)
    assert selection.tile_video == (device == "mps")


# --- long videos ---


@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [
        (9, [Chunk(0, 0, 9, 0)]),
        (121, [Chunk(0, 0, 121, 0)]),
        (129, [Chunk(0, 0, 81, 0), Chunk(1, 56, 81, 25)]),
        (217, [Chunk(0, 0, 121, 0), Chunk(1, 96, 121, 25)]),
        (225, [Chunk(0, 0, 97, 0), Chunk(1, 72, 97, 25), Chunk(2, 144, 97, 25)]),
    ],
)
def test_long_videos_are_cut_into_parts(num_frames, expected):
    assert list(plan_chunks(num_frames)) == expected


@pytest.mark.parametrize("num_frames", range(9, 1000, 56))
@pytest.mark.parametrize(("length", "overlap"), [(121, 25), (49, 1), (17, 9)])
def test_parts_make_every_frame_once_and_few_too_many(num_frames, length, overlap):
    chunks = plan_chunks(num_frames, length, overlap)
    made = [chunk.start + i for chunk in chunks for i in range(chunk.carried, chunk.num_frames)]
    assert made == list(range(len(made))) and num_frames <= len(made) < num_frames + 8 * len(chunks)
    assert sum(chunk.num_frames - chunk.carried for chunk in chunks) == len(made)
    (shared,) = {chunk.num_frames for chunk in chunks}
    assert (shared - 1) % 8 == 0 and shared <= length
    # The count that the document gives.
    assert len(chunks) == 1 + max(0, -(-(num_frames - length) // (length - overlap)))


def test_a_long_video_is_one_call_of_the_extending_pipeline():
    selection = select_pipeline(request(num_frames=225))
    expected = {"num_frames": 97, "num_segments": 3, "overlap_frames": 25, "two_stage": True, "guidance_scale": 3.0}
    assert expected.items() <= selection.arguments.items() and selection.opening is None
    assert selection.request.num_frames == 225


def test_pictures_of_a_long_video_are_shown_in_its_first_part():
    items = [TimelineItem("image", f"{frame}.png", frame) for frame in (0, 96, 97, 200)]
    selection = select_pipeline(request(*items, num_frames=225))
    assert [(c.frames, c.frame) for c in selection.opening["conditions"]] == [("0.png", 0), ("96.png", 96)]
    assert selection.opening["num_frames"] == 97 and "num_segments" not in selection.opening
    assert selection.arguments["num_segments"] == 2 and "conditions" not in selection.arguments
    assert [note.split("'")[1] for note in selection.notes] == ["97.png", "200.png"]


# --- wrong requests ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 120}, r"`num_frames` .* 120; use 113 or 121"),
        ({"num_frames": 25, "auto_length": True}, "`auto_length` is True, but `num_frames` is 25"),
        ({"width": 0}, r"`width` .* 0"),
        ({"frame_rate": 0}, r"`frame_rate` .* 0"),
        ({"num_inference_steps": 0}, r"`num_inference_steps` .* 0"),
        ({"timeline": (TimelineItem("sound", "a.wav"),)}, r"`type` .*'image', 'video' but is 'sound'"),
        ({"timeline": (TimelineItem("image", "a.png", 121),)}, r"`frame_index` 121 of 'a.png' .* use -121 to 120"),
        ({"timeline": (TimelineItem("image", "a.png", 0, 1.5),)}, r"`strength` .* 1\.5"),
    ],
)
def test_wrong_requests_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        select_pipeline(GenerationRequest(PROMPT, **changes))


def test_wrong_plans_and_kinds_are_refused():
    with pytest.raises(ValueError, match=r"`overlap_frames` .* use 41 or less"):
        plan_chunks(121, 49, 49)
    with pytest.raises(ValueError, match=r"`chunk_frames` .* 50"):
        plan_chunks(121, 50)
    with pytest.raises(ValueError, match="`kind`"):
        select_pipeline(request(), "turbo")
    with pytest.raises(ValueError, match="`prompt`"):
        select_pipeline(GenerationRequest(None))


# --- from the request to the clip ---

SMALL = {"width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 2, "enhance_prompt": False, "seed": 1}
OVERRIDES = {"max_sequence_length": 64, "output_type": "uint8", "guidance_scale": 1.0}
STAGES = {"stage_2_adapters": {}, "stage_2_sigmas": [0.9]}


@pytest.fixture(scope="module")
def pipeline() -> LTX2TwoStagePipeline:
    return load(pipeline_class=LTX2TwoStagePipeline)


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("media")
    PIL.Image.effect_noise((64, 64), 60).convert("RGB").save(folder / "picture.png")
    write_video(folder / "clip.mp4", torch.randint(0, 255, (9, 64, 64, 3), dtype=torch.uint8), frame_rate=25.0)
    return {"image": folder / "picture.png", "video": folder / "clip.mp4"}


@pytest.mark.parametrize(
    ("places", "rule"),
    [
        ([], "two_stage"),
        ([("image", 0)], "two_stage"),
        ([("image", 0), ("image", -1)], "keyframes"),
        ([("video", 0), ("image", 0)], "in_context"),
    ],
)
def test_requests_become_clips(places, rule, pipeline, media):
    timeline = [TimelineItem(kind, media[kind], frame) for kind, frame in places]
    steps = []
    overrides = OVERRIDES if rule == "in_context" else {**OVERRIDES, **STAGES}
    output = generate(request(*timeline, **SMALL), pipeline, on_progress=lambda *at: steps.append(at), **overrides)
    assert output.frames.shape == (1, 9, 64, 64, 3) and output.audio is not None
    assert output.info["rule"] == rule and output.info["notes"] == []
    assert steps[:2] == [(1, 2), (2, 2)]


def test_a_clip_as_long_as_its_text(media):
    ends = [TimelineItem("image", media["image"], place) for place in (0, -1)]
    selection = select_pipeline(request(*ends, auto_length=True, frame_rate=30.0))
    assert selection.rule == "keyframes" and selection.arguments["frame_indices"] == [-1, 0]
    assert (selection.arguments["num_frames"], selection.arguments["max_seconds"]) == (None, 121 / 30)
    newest = load("2.5", LTX2TwoStagePipeline)
    small = {name: value for name, value in SMALL.items() if name != "num_frames"} | {"auto_length": True}
    output = generate(request(*ends[:1], **small), newest, **OVERRIDES, min_seconds=0.3, max_seconds=0.6)
    assert output.info["rule"] == "two_stage" and output.info["num_frames"] == output.frames.shape[1] < 25


def test_one_frame_is_a_picture_of_ours_or_of_another_model(pipeline, media):
    asked = request(TimelineItem("image", media["image"]), **SMALL | {"num_frames": 1, "width": 128})
    output = generate(asked, pipeline, **OVERRIDES, **STAGES)
    assert output.frames.shape == (1, 1, 64, 128, 3) and output.audio is None
    given = []
    assert generate(asked, pipeline, image_generator=lambda wish: given.append(wish) or "picture") == "picture"
    assert (given[0].width, given[0].num_frames, given[0].prompt, len(given[0].timeline)) == (128, 1, PROMPT, 1)


SHORT_PARTS = ApplicationDefaults(chunk_frames=25, overlap_frames=9)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("with_picture", [False, True])
@pytest.mark.parametrize("enhance", [False, True])
def test_long_requests_are_made_in_parts(with_picture, enhance, pipeline, media):
    timeline = [TimelineItem("image", media["image"])] if with_picture else []
    asked = request(*timeline, **SMALL | {"num_frames": 57, "enhance_prompt": enhance})
    tokens = {"prompt_max_new_tokens": 4} if enhance else {}
    output = generate(asked, pipeline, defaults=SHORT_PARTS, **tokens, **OVERRIDES, **STAGES)
    assert output.info["rule"] == "chained" and output.info["num_frames"] == 57
    assert output.frames.shape == (1, 57, 64, 64, 3)
    assert output.audio.shape[-1] == round(57 / 25 * output.sampling_rate)
    assert output.info["segments"] == 3 - with_picture
    assert ("enhanced_prompt" in output.info) == enhance
    if enhance:
        prompts = output.info["enhanced_prompt"]
        director = PromptDirector(pipeline, PROMPT, 3, seed=1, max_new_tokens=4)
        picture = PIL.Image.open(media["image"]) if with_picture else None
        assert prompts[:1] == pipeline.enhance_prompt(PROMPT, seed=1, max_new_tokens=4, image=picture)
        assert prompts[1:] == [director(index, prompts[index - 1]) for index in (1, 2)]


def test_a_tuple_cannot_carry_the_selection(pipeline):
    with pytest.raises(ValueError, match="`return_dict`"):
        generate(request(**SMALL), pipeline, return_dict=False)


def test_an_exception_in_the_progress_function_ends_the_call(pipeline):
    def cancel(step: int, total: int) -> None:
        raise InterruptedError(f"{step} of {total}")

    with pytest.raises(InterruptedError, match="1 of 2"):
        generate(request(**SMALL), pipeline, on_progress=cancel, **OVERRIDES, **STAGES)


def test_pipelines_built_on_another_keep_data_types_and_prompt_cache(tmp_path):
    base = load(pipeline_class=LTX2TwoStagePipeline)
    base.transformer.bfloat16()
    base.enable_prompt_cache(tmp_path)
    other = LTX2InContextPipeline.from_pipe(base)
    assert other.transformer is base.transformer and other.transformer.dtype == torch.bfloat16
    assert other.vae.dtype == torch.float32 and other.prompt_cache is base.prompt_cache
    assert LTX2InContextPipeline.from_pipe(base, dtype=torch.bfloat16).vae.dtype == torch.bfloat16
