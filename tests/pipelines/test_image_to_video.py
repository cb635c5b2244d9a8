"""`LTX2ImageToVideoPipeline` computes what diffusers' pipeline of that name computes, and begins with its picture."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import LTX2ImageToVideoPipeline as DiffusersPipeline

from ltx2_diffusers.media.preprocess import h264_round_trip
from ltx2_diffusers.pipelines.recipes.image_to_video import LTX2ImageToVideoPipeline
from tests.golden_data import EQUAL_MODELS, EQUAL_PIPELINES
from tests.pipelines.recipes import encoded
from tests.pipelines.tiny import ALL_GUIDANCE, CFG, EXPLICIT, NO_GUIDANCE, PROMPT, max_difference, seeded, sibling

UNRESCALED = {"guidance_rescale": 0.0, "audio_guidance_rescale": 0.0}
# In the size of the video, so that cropping (ours) and stretching (diffusers) agree.
PICTURE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
OTHER = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8))
BASE = {**EXPLICIT, "prompt": PROMPT}


def ours(name: str = "2.0") -> LTX2ImageToVideoPipeline:
    return sibling(name, LTX2ImageToVideoPipeline)


def generate(**kwargs):
    return ours()(**BASE | NO_GUIDANCE | kwargs, generator=seeded(0))


def compare(name: str = "2.0", **kwargs) -> float:
    kwargs = {**BASE, **NO_GUIDANCE, **kwargs}
    return max_difference(
        ours(name)(**kwargs, generator=seeded(1)), sibling(name, DiffusersPipeline)(**kwargs, generator=seeded(1))
    )


def encoded_picture(pipe: LTX2ImageToVideoPipeline) -> torch.Tensor:
    """Latents of the picture, compressed as the checkpoint asks, as `latents=` takes them."""
    pixels = h264_round_trip(torch.from_numpy(np.array(PICTURE)), 33)
    return pipe.vae.denormalize_latents(encoded(pipe, pixels, 64, 96))


# --- parity with diffusers ---


@pytest.mark.parametrize("name", ["2.0", "2.3"])
@pytest.mark.parametrize("guidance", [NO_GUIDANCE, CFG], ids=["unguided", "cfg"])
def test_same_latents_as_diffusers(name, guidance):
    assert compare(name, image=PICTURE, **guidance) <= EQUAL_PIPELINES


def test_all_guidance_terms():
    assert compare("2.3", image=PICTURE, **ALL_GUIDANCE | UNRESCALED) <= EQUAL_PIPELINES


@pytest.mark.parametrize(
    "arguments",
    [
        {"image_crf": 0},
        {"image_crf": 18},
        {"use_cross_timestep": True},
        {"frame_rate": 30.0, "num_frames": 17},
        {"motion_speed": 0.5},
        {"output_type": "np"},
        {"num_videos_per_prompt": 2},
        {"sigmas": [0.9, 0.5]},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_arguments_mean_what_they_mean_in_diffusers(arguments):
    assert compare(image=PICTURE, **arguments) <= EQUAL_PIPELINES


def test_one_picture_per_prompt():
    assert compare(image=[PICTURE, OTHER], prompt=[PROMPT, "Waves."], image_crf=0) <= EQUAL_PIPELINES


def test_floats_between_0_and_1():
    floats = torch.from_numpy(np.array(PICTURE)).permute(2, 0, 1)[None] / 255
    assert compare(image=floats, image_crf=0) <= EQUAL_PIPELINES
    assert max_difference(generate(image=floats, image_crf=0), generate(image=PICTURE, image_crf=0)) <= EQUAL_MODELS


@pytest.mark.parametrize("noise_scale", [0.0, 0.4])
def test_given_latents_keep_their_first_frame_without_a_picture(noise_scale):
    video = torch.randn(1, ours().transformer.config.in_channels, 2, 2, 3, generator=seeded(8))
    audio = generate(image=PICTURE).audio
    given = {"image": None, "latents": video, "audio_latents": audio, "noise_scale": noise_scale}
    assert compare(**given) <= EQUAL_PIPELINES
    torch.testing.assert_close(generate(**given).frames[:, :, 0], video[:, :, 0])


def test_packed_latents_mean_their_normalised_twin():
    video = torch.randn(1, ours().transformer.config.in_channels, 2, 2, 3, generator=seeded(8))
    packed = ours().vae.normalize_latents(video).flatten(2).transpose(1, 2)
    assert max_difference(generate(latents=packed), generate(latents=video)) <= EQUAL_MODELS


# --- behaviour ---


def test_the_first_frame_is_bit_equal_to_the_encoded_picture():
    pipe = ours()
    expected = encoded_picture(pipe)
    for guidance in (NO_GUIDANCE, CFG):
        frames = pipe(**BASE | guidance, image=PICTURE, generator=seeded(2)).frames
        assert torch.equal(frames[:, :, :1], expected)


def test_the_picture_is_encoded_again_for_given_latents():
    pipe = ours()
    video = torch.randn(1, pipe.transformer.config.in_channels, 2, 2, 3, generator=seeded(8))
    expected = encoded_picture(pipe)
    frames = generate(image=PICTURE, latents=video, noise_scale=0.5).frames
    assert torch.equal(frames[:, :, :1], expected)


def test_a_picture_of_another_shape_is_cropped_to_its_centre():
    wide = PIL.Image.new("RGB", (192, 64), "red")
    wide.paste(PICTURE, (48, 0))
    assert torch.equal(
        generate(image=wide, image_crf=0).frames[:, :, 0], generate(image=PICTURE, image_crf=0).frames[:, :, 0]
    )


def test_a_file_is_read_as_the_picture_it_holds(tmp_path):
    PICTURE.save(tmp_path / "picture.png")
    from_file = generate(image=tmp_path / "picture.png")
    assert torch.equal(from_file.frames, generate(image=PICTURE).frames)


def test_a_row_of_a_batch_equals_its_own_call():
    call = {**BASE, **NO_GUIDANCE}
    both = ours()(**call | {"prompt": [PROMPT, "Waves."]}, image=[PICTURE, OTHER], generator=seeded(3, 4))
    alone = ours()(**call | {"prompt": "Waves."}, image=OTHER, generator=seeded(4))
    torch.testing.assert_close(both.frames[1:], alone.frames, atol=EQUAL_MODELS, rtol=0)


def test_one_picture_serves_all_prompts():
    output = generate(image=PICTURE, prompt=[PROMPT, "Waves."])
    assert torch.equal(output.frames[0, :, 0], output.frames[1, :, 0])


# --- wrong input ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`image` is None"),
        ({"image": [PICTURE] * 3}, "3 pictures; this call needs 1"),
        ({"image": 7}, "has to be an image"),
        ({"image": PICTURE, "image_crf": 52}, "between 0 .* and 51 but is 52"),
        ({"image": torch.zeros(3, 64, 96)}, "needs bytes but got floats"),
        ({"image": torch.zeros(3, 64, 96) - 1, "image_crf": 0}, "between 0 and 1"),
        ({"image": np.zeros((64, 96), np.uint8)}, "RGB frames"),
        ({"image": PICTURE, "height": 65}, "`height` has to be divisible by 32"),
    ],
)
def test_wrong_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(**arguments)


def test_a_damaged_picture_is_named(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.png"):
        generate(image=tmp_path / "empty.png")


@pytest.mark.parametrize("one_level", [{"num_inference_steps": 1}, {"sigmas": [1.0]}], ids=str)
def test_one_step_is_refused_where_the_scheduler_would_divide_by_zero(one_level):
    with pytest.raises(ValueError, match="use `num_inference_steps=2` or more"):
        generate(image=PICTURE, **one_level)


def test_one_step_runs_with_an_explicit_timestep():
    assert generate(image=PICTURE, timesteps=[1000.0]).frames.isfinite().all()


def test_the_first_frame_of_a_clip_is_taken_with_a_warning(tmp_path):
    PICTURE.save(tmp_path / "moving.png", save_all=True, append_images=[OTHER], duration=40)
    with pytest.warns(UserWarning, match=r"moving\.png' is a clip where a picture is wanted"):
        moving = generate(image=tmp_path / "moving.png")
    assert max_difference(moving, generate(image=PICTURE)) == 0


def test_a_picture_too_wide_for_h264_is_scaled_down():
    assert generate(image=PIL.Image.new("RGB", (16500, 64), (200, 30, 90))).frames.isfinite().all()
