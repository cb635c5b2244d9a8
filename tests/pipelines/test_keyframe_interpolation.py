"""Keyframe interpolation: where pictures come, and that they guide without pinning."""

import numpy as np
import pytest
import torch

from ltx2_diffusers.pipelines.conditions.pictures import LTX2VideoCondition
from ltx2_diffusers.pipelines.recipes.keyframe_interpolation import LTX2KeyframeInterpolationPipeline
from ltx2_diffusers.pipelines.recipes.two_stage import LTX2TwoStagePipeline
from tests.pipelines.recipes import (
    CALL,
    CLIP,
    OTHER,
    PICTURE,
    TWO_STAGES,
    assert_tokens,
    encoded,
    no_computation,
    recipe,
    watched,
)
from tests.pipelines.tiny import NO_GUIDANCE, max_difference, seeded

LONG = {**CALL, **TWO_STAGES, **NO_GUIDANCE, "num_frames": 17, "image_crf": 0}
PICTURES = [PICTURE, OTHER, CLIP[9]]


@pytest.fixture(scope="module")
def pipe() -> LTX2KeyframeInterpolationPipeline:
    return recipe(LTX2KeyframeInterpolationPipeline)


def generate(pipe, images=PICTURES, **kwargs):
    return pipe(images, **{**LONG, "generator": seeded(1), **kwargs})


def times(pipe, images, **kwargs) -> list[list[float]]:
    """Seconds at which the tokens beside the video begin and end, in the first stage, whose latent frames are one token."""
    found = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _module, _args, inputs: found.append(inputs["video_coords"][0, 0, 3:]), with_kwargs=True
    )
    try:
        generate(pipe, images, **kwargs)
    finally:
        hook.remove()
    return found[0].tolist()


def frames(*numbers: int) -> list[list[float]]:
    return [[pytest.approx(i / 24), pytest.approx((i + 1) / 24)] for i in numbers]


def test_every_picture_stands_beside_the_video_at_each_stages_size(pipe):
    seen = watched(pipe, **LONG, images=PICTURES)
    for side, stage in zip((32, 64), seen.stages()):
        tokens = (side // 32) ** 2
        for step in stage:
            assert_tokens(step["latents"], 3 * tokens, [encoded(pipe, picture, side, side) for picture in PICTURES])
            assert step["latents"].shape[1] == 6 * tokens
    assert seen.output.frames.shape == (1, 128, 3, 2, 2)


def test_pictures_guide_without_pinning(pipe):
    """The first frame is made, not copied."""
    first = generate(pipe).frames[:, :, 0]
    assert not torch.equal(first, pipe.vae.denormalize_latents(encoded(pipe, PICTURE, 64, 64))[:, :, 0])


@pytest.mark.parametrize(
    ("images", "arguments", "expected"),
    [
        (PICTURES, {}, (0, 8, 16)),
        (PICTURES[:2], {}, (0, 16)),
        (PICTURES[:1], {}, (0,)),
        ([PICTURE] * 4, {}, (0, 5, 11, 16)),
        (PICTURES, {"frame_indices": [0, 3, -1]}, (0, 3, 16)),
        (PICTURES[:2], {"frame_indices": np.array([2, -2])}, (2, 15)),
        (torch.from_numpy(CLIP[:2]).movedim(-1, 1), {}, (0, 16)),
        (CLIP[:2], {}, (0, 16)),
    ],
)
def test_where_pictures_come(pipe, images, arguments, expected):
    assert times(pipe, images, **arguments) == frames(*expected)


def test_one_strength_or_one_each(pipe):
    one, each = generate(pipe, strengths=0.5), generate(pipe, strengths=[0.5, 0.5, 0.5])
    assert max_difference(one, each) == 0
    assert max_difference(one, generate(pipe, strengths=[0.5, 0.5, 1.0])) > 0


def test_the_compression_of_pictures_can_be_chosen(pipe):
    assert max_difference(generate(pipe), generate(pipe, image_crf=33)) > 0
    assert max_difference(generate(pipe, image_crf=None), generate(pipe, image_crf=33)) == 0


def test_it_is_the_two_stage_recipe_with_appended_pictures(pipe):
    arguments = {name: value for name, value in LONG.items() if name != "image_crf"}
    conditions = [
        LTX2VideoCondition(picture, frame=frame, mode="append", crf=0) for picture, frame in zip(PICTURES, (0, 8, 16))
    ]
    expected = recipe(LTX2TwoStagePipeline)(**arguments, conditions=conditions, generator=seeded(1))
    assert max_difference(generate(pipe), expected) == 0


@pytest.mark.parametrize(
    ("images", "arguments", "message"),
    [
        ([], {}, "at least one picture"),
        (PICTURE, {}, r"`images` has to be a list, .*put it into a list"),
        ("first.png", {}, r"`images` has to be a list, .*put it into a list"),
        (PICTURES, {"frame_indices": [0, 16]}, "`frame_indices` has 2 entries for 3 `images`"),
        (PICTURES, {"strengths": [1.0]}, "`strengths` has 1 entries for 3 `images`"),
        (PICTURES, {"strengths": 1.5}, "`strengths` has to be between 0 and 1 but is 1.5"),
        (PICTURES, {"frame_indices": [0, 8, 17]}, "`frame_indices` 17 lies outside the clip; use -17 to 16"),
        (PICTURES, {"frame_indices": [0, 8, -17]}, "two conditions claim video frame 0"),
        (
            PICTURES,
            {"frame_indices": [0, 8.5, 16]},
            r"`frame_indices` has to be a list of whole numbers but is \[0, 8\.5, 16\]",
        ),
        (PICTURES, {"num_frames": 1}, "two conditions claim video frame 0"),
        (PICTURES, {"num_frames": 18}, "`num_frames` has to be 8"),
        (["nowhere.png"], {}, r"nowhere\.png"),
    ],
)
def test_wrong_calls_are_named_before_any_computation(pipe, images, arguments, message):
    with no_computation(pipe), pytest.raises((ValueError, FileNotFoundError), match=message):
        generate(pipe, images, **arguments)
