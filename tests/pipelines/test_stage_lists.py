"""Free lists of stages: three of them, a lower frame rate, and where conditions go there."""

import numpy as np
import pytest
import torch

from ltx2_diffusers import LTX2DFREpilogueTile, MultiModalGuiderParams, epilogue_tiles
from ltx2_diffusers.models.latent_upsampler import LTX2LatentUpsamplerModel
from ltx2_diffusers.pipelines.arguments import Stage
from ltx2_diffusers.pipelines.conditions.pictures import LTX2ReferenceCondition, LTX2VideoCondition
from ltx2_diffusers.pipelines.recipes.audio_to_video import LTX2AudioToVideoPipeline
from ltx2_diffusers.pipelines.recipes.retake import LTX2RetakePipeline
from ltx2_diffusers.pipelines.recipes.two_stage import LTX2TwoStagePipeline
from tests.media.clips import tone
from tests.pipelines.recipes import (
    CALL,
    CLIP,
    PICTURE,
    RATE,
    TWO_STAGES,
    assert_tokens,
    encoded,
    no_computation,
    packed,
    recipe,
    staged,
    watched,
)
from tests.pipelines.tiny import NO_GUIDANCE, seeded

QUICK = {**CALL, **TWO_STAGES, **NO_GUIDANCE}
REFERENCE = LTX2ReferenceCondition(torch.from_numpy(CLIP[:9]).movedim(-1, 1))


def levels(*values: float) -> dict:
    return {"sigmas": values}


HALF_RATE = [Stage(temporal_scale=0.5, **levels(1.0)), Stage(upsampler="temporal_upsampler", **levels(0.6))]
LONG = {**CALL, "num_frames": 33, "stages": HALF_RATE}
LONG_CLIP = np.random.default_rng(2).integers(0, 256, (33, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pipe() -> LTX2TwoStagePipeline:
    return staged()


def generate(pipe, **kwargs):
    return pipe(**{**QUICK, "generator": seeded(1), **kwargs})


# --- lists of stages ---


def test_three_stages_are_a_list(pipe):
    stages = [
        Stage(spatial_scale=0.25, **levels(1.0, 0.5)),
        Stage(spatial_scale=0.5, upsampler="latent_upsampler", **levels(0.8), references=False),
        Stage(upsampler="latent_upsampler", **levels(0.6, 0.3), references=False),
    ]
    seen = watched(
        pipe, **CALL | {"height": 128, "width": 128}, stages=stages, image=PICTURE, reference_conditions=REFERENCE
    )
    assert seen.output.info["forwards_per_step"] == [1, 1, 1]
    assert seen.video_tokens == [2 + 2] * 2 + [2 * 4] + [2 * 16] * 2
    assert seen.output.frames.shape == (1, 128, 2, 4, 4)


@pytest.mark.parametrize("order", ["time first", "space first", "both in turn"])
def test_a_temporal_stage_is_a_list(pipe, order):
    stages = {
        "time first": [
            Stage(spatial_scale=0.5, temporal_scale=0.5, **levels(1.0)),
            Stage(spatial_scale=0.5, upsampler="temporal_upsampler", **levels(0.8)),
            Stage(upsampler="latent_upsampler", **levels(0.6)),
        ],
        "space first": [
            Stage(spatial_scale=0.5, temporal_scale=0.5, **levels(1.0)),
            Stage(temporal_scale=0.5, upsampler="latent_upsampler", **levels(0.8)),
            Stage(upsampler="temporal_upsampler", **levels(0.6)),
        ],
        "both in turn": [
            Stage(temporal_scale=0.5, **levels(1.0)),
            Stage(upsampler="temporal_upsampler", **levels(0.6)),
        ],
    }[order]
    seen = watched(pipe, **CALL | {"num_frames": 33}, stages=stages)
    tokens = {"time first": [3, 5, 20], "space first": [3, 12, 20], "both in turn": [12, 20]}[order]
    assert seen.video_tokens == tokens
    assert seen.output.frames.shape == (1, 128, 5, 2, 2)
    # The sound lasts as long as the finished clip in every stage.
    assert {step["audio_latents"].shape[1] for step in seen.steps} == {round(33 / 24 * 25)}


def test_a_rational_upsampler_fits_stages_of_its_scale(pipe):
    config = {**pipe.latent_upsampler.config, "rational_spatial_scale": 1.5}
    upsampler = LTX2LatentUpsamplerModel.from_config(config).eval()
    other = LTX2TwoStagePipeline.from_pipe(pipe, latent_upsampler=upsampler)
    other.set_progress_bar_config(disable=True)
    stages = [Stage(spatial_scale=2 / 3, **levels(1.0)), Stage(upsampler="latent_upsampler", **levels(0.6))]
    seen = watched(other, **CALL | {"height": 96, "width": 192}, stages=stages)
    assert seen.video_tokens == [2 * 2 * 4, 2 * 3 * 6]
    with (
        no_computation(other),
        pytest.raises(ValueError, match="`height` has to be divisible by 96 but is 64; use 96"),
    ):
        other(**CALL, stages=stages)
    with no_computation(other), pytest.raises(ValueError, match=r"enlarges \(space, time\) by \(1.5, 1.0\)"):
        generate(other)


def test_a_stage_goes_on_with_the_noise_of_the_one_before(pipe):
    parts = [Stage(**levels(1.0, 0.8), end_sigma=0.5), Stage(**levels(0.5, 0.2), goes_on=True)]
    whole = [Stage(**levels(1.0, 0.8, 0.5, 0.2))]
    seams, one = (pipe(**CALL, stages=stages, generator=seeded(1)) for stages in (parts, whole))
    assert seams.info["sigmas"][0][-1] == 0.5
    torch.testing.assert_close(seams.frames, one.frames, rtol=0, atol=1e-5)
    torch.testing.assert_close(seams.audio, one.audio, rtol=0, atol=1e-5)


def test_enlarged_latents_take_the_statistics_of_those_before(pipe):
    def made(factor):
        second = Stage(upsampler="latent_upsampler", adain_factor=factor, **levels(0.3))
        return pipe(**CALL, stages=[Stage(spatial_scale=0.5, **levels(1.0)), second], generator=seeded(1)).frames

    assert not torch.allclose(made(0.0), made(1.0), atol=1e-3)


@pytest.mark.parametrize(
    ("stages", "wish", "message"),
    [
        ([Stage(**levels(1.0), end_sigma=0.5)], {}, "no stage goes on with it"),
        ([Stage(**levels(1.0), end_sigma=0.5), Stage(**levels(0.5))], {}, "no stage goes on with it"),
        ([Stage(**levels(1.0)), Stage(**levels(0.5), goes_on=True)], {}, "none is left to it"),
        ([Stage(**levels(1.0), goes_on=True)], {}, "none is left to it"),
        (
            [Stage(**levels(0.5), end_sigma=0.5), Stage(**levels(0.5), goes_on=True)],
            {},
            "`end_sigma` of a stage is 0.5",
        ),
        ([Stage(**levels(1.0), adain_factor=2.0)], {}, "`adain_factor`"),
        ([Stage(**levels(1.0), end_sigma=0.5), Stage(**levels(0.5), goes_on=True)], {"image": PICTURE}, "conditions"),
        ([Stage(**levels(1.0), end_sigma=0.5), Stage(**levels(0.5), goes_on=True)], {"audio_stage": 0}, "still noisy"),
    ],
)
def test_seams_between_stages_that_do_not_fit_are_refused(pipe, stages, wish, message):
    with no_computation(pipe), pytest.raises(ValueError, match=message):
        pipe(**CALL, stages=stages, **wish)


# --- conditions in stages at a lower frame rate ---


def shown_at(seen, stage: int, latent_frames: int) -> list[float]:
    """Seconds at which the tokens appended in a stage begin; a latent frame has 4 tokens."""
    return [round(t, 4) for t in seen[stage][0, 0, latent_frames * 4 :: 4, 0].tolist()]


def positions_of(pipe, **arguments) -> list[torch.Tensor]:
    """Positions of the video tokens at the first forward of each stage."""
    found = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _module, _args, inputs: found.append(inputs["video_coords"]), with_kwargs=True
    )
    try:
        pipe(**arguments)
    finally:
        hook.remove()
    return found


@pytest.mark.parametrize(
    ("frame", "first_stage", "second_stage"),
    [
        (-1, 32, 32),
        (32, 32, 32),
        (16, 16, 16),
        (2, 2, 2),
        # Between two frames of the first stage: the later one.
        (5, 6, 5),
        (31, 32, 31),
    ],
)
def test_a_picture_comes_at_its_time_in_every_stage(pipe, frame, first_stage, second_stage):
    seen = positions_of(pipe, **LONG, conditions=LTX2VideoCondition(PICTURE, frame=frame, mode="append"))
    assert shown_at(seen, 0, 3) == [round(first_stage / 24, 4)]
    assert shown_at(seen, 1, 5) == [round(second_stage / 24, 4)]


def test_an_index_counts_latent_frames_of_the_finished_clip(pipe):
    # Latent frame 4 begins at frame 25 of 33, which the first stage shows as frame 26.
    for index in (4, -1):
        seen = positions_of(pipe, **LONG, conditions=LTX2VideoCondition(PICTURE, index))
        assert (shown_at(seen, 0, 3), shown_at(seen, 1, 5)) == ([round(26 / 24, 4)], [round(25 / 24, 4)])
    with no_computation(pipe), pytest.raises(ValueError, match="`index` 5 lies outside the clip; use -5 to 4"):
        pipe(**LONG, conditions=LTX2VideoCondition(PICTURE, 5))
    with no_computation(pipe), pytest.raises(ValueError, match="`frame` 33 lies outside the clip; use -33 to 32"):
        pipe(**LONG, conditions=LTX2VideoCondition(PICTURE, frame=33))


def test_a_clip_shows_the_frames_that_a_stage_has(pipe):
    seen = watched(pipe, **LONG, conditions=LTX2VideoCondition(LONG_CLIP[:17], crf=0))
    for stage, frames in zip(seen.stages(), (LONG_CLIP[:17:2], LONG_CLIP[:17])):
        assert_tokens(stage[-1]["latents"], 0, [encoded(pipe, frames, 64, 64)])
    # Frames 9 to 25: of them the first stage shows 10 to 24, cut to one frame, at a place where no latent frame begins.
    seen = watched(pipe, **LONG, conditions=LTX2VideoCondition(LONG_CLIP[:17], frame=9, crf=0, mode="replace"))
    first, second = (stage[-1]["latents"] for stage in seen.stages())
    assert_tokens(first, 3 * 4, [encoded(pipe, LONG_CLIP[1:2], 64, 64)])
    assert first.shape[1] == 4 * 4
    assert_tokens(second, 2 * 4, [encoded(pipe, LONG_CLIP[:17], 64, 64)[:, :, :3]])
    assert second.shape[1] == 5 * 4


def test_a_replacement_stays_one_where_a_latent_frame_begins(pipe):
    # Frame 18 of the clip is frame 9 of the first stage; frame 17 goes there too and begins a latent frame of the second.
    seen = watched(pipe, **LONG, conditions=LTX2VideoCondition(PICTURE, frame=17, crf=0, mode="replace"))
    first, second = (stage[-1]["latents"] for stage in seen.stages())
    assert_tokens(first, 2 * 4, [encoded(pipe, PICTURE, 64, 64)])
    assert_tokens(second, 3 * 4, [encoded(pipe, PICTURE, 64, 64)])
    assert (first.shape[1], second.shape[1]) == (3 * 4, 5 * 4)


def test_a_reference_shows_the_frames_that_a_stage_has(pipe):
    reference = LTX2ReferenceCondition(torch.from_numpy(LONG_CLIP).movedim(-1, 1))
    seen = watched(pipe, **LONG, reference_conditions=reference)
    first, second = (stage[-1]["latents"] for stage in seen.stages())
    assert_tokens(first, 3 * 4, [encoded(pipe, LONG_CLIP[::2], 64, 64)])
    assert_tokens(second, 5 * 4, [encoded(pipe, LONG_CLIP, 64, 64)])


def test_sound_is_as_long_as_the_finished_clip_in_every_stage():
    pipe = recipe(LTX2AudioToVideoPipeline)
    exact = tone(33 / 24, RATE)
    seen = watched(pipe, **LONG, audio=exact, sampling_rate=RATE)
    held = pipe.encode_audio(exact[None], RATE)[:, :, : round(33 / 24 * 25)]
    for step in seen.steps:
        assert_tokens(step["audio_latents"], 0, [held])


def test_a_retake_keeps_and_remakes_the_same_places_in_every_stage():
    pipe = recipe(LTX2RetakePipeline)
    region = torch.zeros(33, 64, 64)
    # Only a frame that the first stage leaves out is marked, in one corner; it lies in the first stage's latent frame 1.
    region[7, :32, :32] = 1
    seen = watched(pipe, **LONG, video=LONG_CLIP, start_s=0.0, end_s=33 / 24, region=region)
    for stage, frames, remade in zip(seen.stages(), (LONG_CLIP[::2], LONG_CLIP), (4, 4)):
        source = packed(encoded(pipe, frames, 64, 64))
        changed = (stage[-1]["latents"] != source).any(-1)[0].nonzero().flatten().tolist()
        assert changed == [remade]


def test_a_stage_in_tiles_makes_all_passes_of_its_guidance(pipe):
    """One window over everything is the stage as it would be; several see less of each other."""
    scales = (MultiModalGuiderParams(cfg_scale=3.0, stg_scale=1.0, modality_scale=2.0), MultiModalGuiderParams(2.0))
    grid = (2, 4, 4)
    whole = [LTX2DFREpilogueTile(*(slice(0, size) for size in grid), torch.ones(grid))]
    call = {**CALL, "height": 128, "width": 128, "image": PICTURE}
    outputs = [
        pipe(**call, generator=seeded(1), stages=[Stage(**levels(1.0, 0.5), scales=scales, tiles=tiles)])
        for tiles in (None, whole, epilogue_tiles(grid, 1, []))
    ]
    plain, one, four = (output.frames for output in outputs)
    assert outputs[1].info["passes"] == outputs[0].info["passes"] and len(outputs[0].info["passes"]) == 4
    assert (one - plain).abs().max() < 1e-5
    assert (four - plain).abs().max() > 1e-4 and four.isfinite().all()
