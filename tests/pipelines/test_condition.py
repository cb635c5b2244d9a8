"""`LTX2ConditionPipeline` computes what diffusers' pipeline of that name computes, and shows what it is given."""

import inspect
import warnings

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import LTX2ConditionPipeline as DiffusersOriginal
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition as DiffusersCondition
from diffusers.schedulers import FlowMatchEulerDiscreteScheduler

from ltx2_diffusers.media.preprocess import fit_cover, h264_round_trip, normalize_pixels
from ltx2_diffusers.media.reading import read_video
from ltx2_diffusers.media.writing import write_video
from ltx2_diffusers.pipelines.conditions.pictures import LTX2VideoCondition
from ltx2_diffusers.pipelines.recipes.condition import LTX2ConditionPipeline
from ltx2_diffusers.schedulers.scheduling_ltx2 import LTX2Scheduler
from tests.golden_data import EQUAL_PIPELINES
from tests.media.clips import write_timed
from tests.pipelines.recipes import encoded
from tests.pipelines.tiny import (
    ALL_GUIDANCE,
    CFG,
    EXPLICIT,
    NO_GUIDANCE,
    PROMPT,
    load,
    max_difference,
    seeded,
    sibling,
    with_token_sigmas,
)

# The one known difference: diffusers takes the whole stream's noise level for tokens that are partly held.
DiffusersPipeline = with_token_sigmas(DiffusersOriginal)
CLIP = np.random.default_rng(0).integers(0, 256, (17, 48, 80, 3), dtype=np.uint8)
PICTURE = PIL.Image.fromarray(CLIP[0])
OTHER = PIL.Image.fromarray(CLIP[5])
BASE = {**EXPLICIT, **NO_GUIDANCE, "num_frames": 17, "prompt": PROMPT}
IMAGES = [PIL.Image.fromarray(frame) for frame in CLIP]

# What diffusers' conditions are made of: (frames, index, strength).
FIRST = (PICTURE, 0, 1.0)
LAST = (OTHER, -1, 1.0)
PLACES = {
    "first": [FIRST],
    "first and last": [FIRST, LAST],
    "weak last": [(OTHER, 2, 0.6)],
    "weak first": [(PICTURE, 0, 0.4)],
    "nothing": [],
    "clip at the start": [(IMAGES[:9], 0, 1.0)],
    "clip in the middle": [(IMAGES[:12], 1, 0.8)],
    "clip cut at the end": [(CLIP, 2, 1.0)],
    "tensor": [(torch.from_numpy(CLIP).movedim(-1, 1).float(), 1, 1.0)],
    "keyframes out of order": [(OTHER, 2, 1.0), (PICTURE, 1, 0.5), (IMAGES[:9], 0, 0.9)],
}


def ours(name: str = "2.0") -> LTX2ConditionPipeline:
    return sibling(name, LTX2ConditionPipeline)


def generate(*conditions, **kwargs):
    return ours()(list(conditions), **BASE | kwargs, generator=seeded(0))


def compare(places, name: str = "2.0", **kwargs) -> float:
    outputs = [
        sibling(name, pipeline)([condition(*place) for place in places], **BASE | kwargs, generator=seeded(1))
        for pipeline, condition in (
            (LTX2ConditionPipeline, LTX2VideoCondition),
            (DiffusersPipeline, DiffusersCondition),
        )
    ]
    return max_difference(*outputs)


def encoded_picture(picture=PICTURE, crf=33):
    pipe = ours()
    return pipe.vae.denormalize_latents(
        encoded(pipe, h264_round_trip(torch.from_numpy(np.array(picture)), crf), 64, 96)
    )


# --- parity with diffusers ---


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES.keys())
def test_same_latents_as_diffusers(places):
    assert compare(places) <= EQUAL_PIPELINES


@pytest.mark.parametrize("name", ["2.0", "2.3"])
@pytest.mark.parametrize("guidance", [CFG, ALL_GUIDANCE], ids=["cfg", "all guidance"])
def test_same_guided_latents_as_diffusers(name, guidance):
    if name == "2.0":
        guidance = {**guidance, "stg_scale": 0.0, "audio_stg_scale": 0.0}
    assert compare([FIRST, LAST], name, **guidance) <= EQUAL_PIPELINES


@pytest.mark.parametrize(
    "arguments",
    [
        {"sigmas": [0.9, 0.5]},
        {"noise_scale": 0.7},
        {"use_cross_timestep": True},
        {"frame_rate": 30.0, "motion_speed": 0.5},
        {"output_type": "np"},
        {"prompt": [PROMPT, "Waves."], "num_videos_per_prompt": 1},
        {"num_videos_per_prompt": 2},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_arguments_mean_what_they_mean_in_diffusers(arguments):
    assert compare([FIRST, (OTHER, 1, 0.7)], **arguments) <= EQUAL_PIPELINES


@pytest.mark.parametrize("noise", [{"noise_scale": 0.4}, {"sigmas": [0.8, 0.4]}, {}], ids=str)
def test_given_latents(noise):
    video = torch.randn(1, ours().transformer.config.in_channels, 3, 2, 3, generator=seeded(8))
    audio = generate().audio
    assert compare([(PICTURE, 0, 0.6), LAST], latents=video, audio_latents=audio, **noise) <= EQUAL_PIPELINES


def test_same_arguments_in_the_same_order():
    def names(pipeline):
        return list(inspect.signature(pipeline.__call__).parameters)

    assert names(LTX2ConditionPipeline)[: len(names(DiffusersOriginal))] == names(DiffusersOriginal)


@pytest.mark.parametrize("guidance", [NO_GUIDANCE, CFG], ids=["unguided", "cfg"])
def test_unchanged_diffusers_agrees_where_conditions_hold_fully(guidance):
    held = [LTX2VideoCondition(PICTURE), LTX2VideoCondition(OTHER, -1)]
    actual = generate(*held, **guidance)
    their_conditions = [DiffusersCondition(PICTURE), DiffusersCondition(OTHER, -1)]
    theirs = sibling("2.0", DiffusersOriginal)
    expected = theirs(their_conditions, **BASE | guidance, generator=seeded(0))
    assert max_difference(actual, expected) <= EQUAL_PIPELINES


# --- behaviour ---


def test_the_first_frame_is_bit_equal_to_the_encoded_picture():
    frames = generate(LTX2VideoCondition(PICTURE)).frames
    assert torch.equal(frames[:, :, :1], encoded_picture())


def test_a_clip_at_the_start_is_bit_equal_to_its_encoding():
    pipe = ours()
    pixels = normalize_pixels(fit_cover(torch.from_numpy(CLIP[:9]), 64, 96))
    expected = pipe.vae.denormalize_latents(pipe.encode_video(pixels))
    assert torch.equal(generate(LTX2VideoCondition(CLIP[:9])).frames[:, :, :2], expected)


def test_a_picture_can_replace_a_later_latent_frame():
    frames = generate(LTX2VideoCondition(PICTURE, frame=9, mode="replace")).frames
    assert torch.equal(frames[:, :, 2:], encoded_picture())


def test_appended_tokens_are_never_decoded():
    output = generate(LTX2VideoCondition(PICTURE, mode="append"), LTX2VideoCondition(OTHER, -1), output_type="np")
    assert output.frames.shape == (1, 17, 64, 96, 3)
    latents = generate(LTX2VideoCondition(PICTURE, mode="append")).frames
    assert latents.shape[2] == 3
    assert not torch.equal(latents[:, :, :1], encoded_picture())


def test_strength_0_changes_nothing_but_the_noise_and_1_everything():
    free = generate().frames
    torch.testing.assert_close(generate(LTX2VideoCondition(PICTURE, strength=0.0)).frames, free)
    distances = [
        (generate(LTX2VideoCondition(PICTURE, strength=s)).frames[:, :, :1] - encoded_picture()).abs().mean().item()
        for s in (0.0, 0.5, 1.0)
    ]
    assert distances[0] > distances[1] > distances[2] == 0.0


def test_negative_places_count_from_the_end():
    last = generate(LTX2VideoCondition(PICTURE, index=2)).frames
    assert torch.equal(generate(LTX2VideoCondition(PICTURE, index=-1)).frames, last)
    by_frame = generate(LTX2VideoCondition(PICTURE, frame=-8)).frames
    assert torch.equal(by_frame, last)


@pytest.mark.parametrize("frame", [4, 16])
def test_any_pixel_frame_can_be_shown(frame):
    assert not torch.equal(generate(LTX2VideoCondition(PICTURE, frame=frame)).frames, generate().frames)


def test_files_hold_what_their_pixels_hold(tmp_path):
    PICTURE.save(tmp_path / "picture.png")
    from_file = generate(LTX2VideoCondition(tmp_path / "picture.png"))
    assert torch.equal(from_file.frames, generate(LTX2VideoCondition(PICTURE)).frames)
    write_video(tmp_path / "clip.mp4", [IMAGES[0]] * 12, frame_rate=24)
    frames = generate(LTX2VideoCondition(tmp_path / "clip.mp4")).frames
    flat = generate(LTX2VideoCondition([IMAGES[0]] * 9)).frames
    assert frames.shape == flat.shape
    assert not torch.equal(frames, generate().frames)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("rate", [12, 24, 48, 60])
def test_a_clip_from_a_file_keeps_its_speed(tmp_path, rate):
    times = [i / rate for i in range(rate)]
    path = write_timed(tmp_path / "clip.mp4", times)
    shown = read_video(path, 17, frame_rate=24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_time = generate(LTX2VideoCondition(path)).frames
    assert torch.equal(by_time, generate(LTX2VideoCondition(shown.movedim(-1, 1))).frames)
    one_by_one = generate(LTX2VideoCondition(read_video(path, 17).movedim(-1, 1))).frames
    assert torch.equal(by_time, one_by_one) == (rate == 24)
    assert torch.equal(generate(LTX2VideoCondition(path, frame_rate=float(rate))).frames, one_by_one)


def test_the_frames_of_a_file_one_by_one_are_warned_of_where_their_speed_changes(tmp_path):
    path = write_timed(tmp_path / "clip.mp4", [i / 60 for i in range(20)])
    with pytest.warns(
        UserWarning, match=r"clip\.mp4' has 60 frames per second and the clip 24.* at 0\.4 times its speed"
    ):
        frames = generate(LTX2VideoCondition(path, frame_rate="source")).frames
    assert torch.equal(frames, generate(LTX2VideoCondition(read_video(path, 17).movedim(-1, 1))).frames)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(LTX2VideoCondition(path, frame_rate="source"), frame_rate=60.0)
        generate(LTX2VideoCondition(IMAGES, frame_rate="source"))


def test_one_condition_needs_no_list():
    single = ours()(LTX2VideoCondition(PICTURE), **BASE, generator=seeded(0)).frames
    assert torch.equal(single, generate(LTX2VideoCondition(PICTURE)).frames)


def test_the_schedule_counts_appended_tokens_as_diffusers_does():
    # With fewer steps than three, all levels are fixed points of the schedule.
    plain = generate(num_inference_steps=3).info["sigmas"]
    assert generate(LTX2VideoCondition(PICTURE), num_inference_steps=3).info["sigmas"] == plain
    other = generate(LTX2VideoCondition(PICTURE, -1), num_inference_steps=3).info["sigmas"]
    assert abs(other[1] - plain[1]) > 1e-4


# --- loading ---


def test_an_audio_scheduler_is_loaded_and_may_repeat_the_scheduler(tmp_path):
    pipe = load("2.0", LTX2ConditionPipeline, scheduler=LTX2Scheduler())
    pipe.register_modules(audio_scheduler=LTX2Scheduler())
    pipe.save_pretrained(tmp_path)
    pipe = load(tmp_path, LTX2ConditionPipeline)
    assert isinstance(pipe.audio_scheduler, LTX2Scheduler)
    call = {**BASE, "num_inference_steps": 2}
    with_both = pipe(**call, generator=seeded(0)).frames
    pipe.audio_scheduler = None
    assert torch.equal(pipe(**call, generator=seeded(0)).frames, with_both)


def test_an_audio_scheduler_with_other_noise_levels_is_refused():
    pipe = load("2.0", LTX2ConditionPipeline)
    pipe.audio_scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, max_shift=3.0)
    with pytest.raises(ValueError, match=r"`audio_scheduler` differs from `scheduler` in \['max_shift'\]"):
        pipe(**BASE)


# --- wrong input ---


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ([LTX2VideoCondition(PICTURE), LTX2VideoCondition(OTHER)], "two conditions claim video frame 0"),
        ([LTX2VideoCondition(PICTURE, 2), LTX2VideoCondition(OTHER, -1)], "two conditions claim video frame 9"),
        (
            [LTX2VideoCondition(CLIP), LTX2VideoCondition(OTHER, frame=9, mode="replace")],
            "two conditions claim latent frame 2",
        ),
        ([LTX2VideoCondition(PICTURE, 3)], "`index` 3 lies outside the clip; use -3 to 2"),
        ([LTX2VideoCondition(PICTURE, -4)], "`index` -4 lies outside"),
        ([LTX2VideoCondition(PICTURE, frame=17)], "`frame` 17 lies outside the clip; use -17 to 16"),
        ([LTX2VideoCondition(PICTURE, 1, frame=4)], "either `index` .* or `frame`"),
        ([LTX2VideoCondition(PICTURE, 0.5)], "`index` has to be a whole number"),
        ([LTX2VideoCondition(PICTURE, frame=3, mode="replace")], "use frame 1 or 9"),
        ([LTX2VideoCondition(PICTURE, strength=1.5)], "`strength` has to be between 0 and 1 but is 1.5"),
        ([LTX2VideoCondition(PICTURE, mode="blend")], "`mode` has to be one of"),
        ([LTX2VideoCondition(PICTURE, crf=60)], "`crf` .* is 60"),
        (
            [LTX2VideoCondition("clip.mp4", frame_rate="file")],
            "`frame_rate` has to be a number .* is 'file'; use \"source\"",
        ),
        ([LTX2VideoCondition("clip.mp4", frame_rate=-1)], "`frame_rate` has to be greater than 0 but is -1"),
        ([LTX2VideoCondition(IMAGES, frame_rate=12)], "`frame_rate` is 12.0, but only video files have a rate"),
        ([LTX2VideoCondition(CLIP[:1].astype(np.float32))], "needs bytes but got floats"),
        ([LTX2VideoCondition(CLIP.astype(np.int64))], "bytes or floats"),
        ([LTX2VideoCondition(7)], "has to be an image"),
        ([LTX2VideoCondition([])], "has to be an image"),
        ([LTX2VideoCondition([PICTURE, PICTURE.resize((32, 32))])], "frames of one size"),
        ([PICTURE], "use LTX2VideoCondition"),
        ([DiffusersCondition(PICTURE)], "conditions of this package"),
    ],
)
def test_wrong_conditions_are_named_before_any_computation(conditions, message):
    with pytest.raises(ValueError, match=message):
        generate(*conditions, prompt=PROMPT)


@pytest.mark.parametrize("sigmas", [[1.5], [1.2, 0.5], [0.0], [], [-0.5, 0.1]])
def test_a_wrong_first_noise_level_is_no_matter_of_the_noise_scale(sigmas):
    with pytest.raises(ValueError, match=r"^sigmas must"):
        generate(LTX2VideoCondition(PICTURE), sigmas=sigmas)


@pytest.mark.parametrize("name", ["empty.png", "empty.mp4"])
def test_damaged_files_are_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=name):
        generate(LTX2VideoCondition(tmp_path / name))
