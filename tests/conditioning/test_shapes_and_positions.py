"""Sizes, packing and positions: the reference's numbers, hand-computed ones, and what wrong sizes are told."""

import re

import pytest
import torch

from ltx2_diffusers.conditioning import (
    AudioLatentShape,
    AudioLatentTools,
    AudioPatchifier,
    VideoLatentPatchifier,
    VideoLatentShape,
    VideoPixelShape,
    carried_pixel_frames,
    resize_latent,
    snap_frames,
    stretch_audio_latent,
)
from ltx2_diffusers.conditioning.shapes import SpatioTemporalScaleFactors

from ..golden_data import assert_within, load_json, load_tensors
from .tiny import randn, video_tools

PATCHIFY = load_tensors("sampling/patchify.safetensors")
POSITIONS = load_tensors("sampling/positions.safetensors")
UNIT = SpatioTemporalScaleFactors(1, 1, 1)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_video_packing(patch_size: int):
    patchifier = VideoLatentPatchifier(patch_size)
    latent = PATCHIFY["video/latent"]
    shape = VideoLatentShape.from_torch_shape(latent.shape)
    tokens = patchifier.patchify(latent)
    assert torch.equal(tokens, PATCHIFY[f"video/tokens_p{patch_size}"])
    assert tokens.shape[1] == patchifier.get_token_count(shape)
    assert torch.equal(patchifier.unpatchify(tokens, shape), PATCHIFY[f"video/unpatchified_p{patch_size}"])


def test_audio_packing():
    latent = PATCHIFY["audio/latent"]
    shape = AudioLatentShape.from_torch_shape(latent.shape)
    tokens = AudioPatchifier().patchify(latent)
    assert torch.equal(tokens, PATCHIFY["audio/tokens"])
    assert torch.equal(AudioPatchifier().unpatchify(tokens, shape), PATCHIFY["audio/unpatchified"])


@pytest.mark.parametrize("key", sorted(key for key in POSITIONS if key.startswith("video/")))
def test_video_positions(key: str):
    frames, height, width = (int(number) for number in re.findall(r"_?[fhw](\d+)", key)[:3])
    fps = float(re.search(r"fps([\d.]+)", key)[1])
    changes = {
        "bounds_latent": {"scale_factors": UNIT, "fps": 1.0},
        "pixel_causal": {"fps": 1.0},
        "pixel_noncausal": {"fps": 1.0, "causal_fix": False},
        "positions_f32": {"fps": fps},
        "positions_bf16_rounded": {"fps": fps, "position_rounding": torch.bfloat16},
    }[key.split("/")[-1]]
    tools = video_tools(target_shape=VideoLatentShape(2, 4, frames, height, width), **changes)
    positions = tools.positions()
    assert positions.dtype == torch.float32
    assert_within(positions, POSITIONS[key].expand(2, -1, -1, -1), "sampling")


@pytest.mark.parametrize("key", sorted(key for key in POSITIONS if key.startswith("audio/")))
def test_audio_positions(key: str):
    frames = int(re.search(r"frames(\d+)", key)[1])
    shift = int(key.split("shift")[1]) if "shift" in key else 0
    shape = AudioLatentShape(1, 8, frames, 16)
    tools = AudioLatentTools(AudioPatchifier(), shape, shift, causal_fix="noncausal" not in key)
    assert_within(tools.positions(), POSITIONS[key], "sampling")


def test_positions_by_hand():
    seconds = video_tools(fps=8.0).positions()[0, 0, ::6]
    assert seconds.tolist() == [[0.0, 0.125], [0.125, 1.125], [1.125, 2.125]]
    tools = AudioLatentTools(AudioPatchifier(), AudioLatentShape(1, 8, 3, 16))
    expected = torch.tensor([[0.0, 0.01], [0.01, 0.05], [0.05, 0.09]])
    torch.testing.assert_close(tools.positions()[0, 0], expected)


def test_latent_sizes():
    scalars = load_json("sampling/scalars.json")
    for frames, fps, expected in scalars["audio_latent_frames__[num_frames,fps,frames]"]:
        pixels = VideoPixelShape(1, frames, 32, 32, fps)
        assert AudioLatentShape.from_video_pixel_shape(pixels).frames == expected
    for frames, height, width, *expected in scalars["video_latent_shape__[frames,height,width,F,H,W]"]:
        shape = VideoLatentShape.from_pixel_shape(VideoPixelShape(1, frames, height, width, 24.0))
        assert [*shape[2:]] == expected


def test_frame_counts():
    scalars = load_json("sampling/scalars_newest.json")
    for frames, expected in scalars["snap_frames_to_grid"]:
        assert snap_frames(frames) == expected


def test_guide_sizes():
    pixels = VideoPixelShape(batch=1, frames=49, height=512, width=768, fps=25.0)
    pixels.check(spatial_multiple=64)
    assert VideoLatentShape.from_pixel_shape(pixels) == (1, 128, 7, 16, 24)
    assert AudioLatentShape.from_duration(batch=1, duration=2.0, channels=8, mel_bins=16) == (1, 8, 50, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 48}, "num_frames must be a multiple of 8 plus 1, got 48; use 41 or 49"),
        ({"frames": 0}, "got 0; use 1"),
        ({"height": 500}, "height must be a multiple of 32, got 500; use 480 or 512"),
        ({"width": 16}, "width must be a multiple of 32, got 16; use 32"),
        ({"fps": 0.0}, "fps must be positive, got 0.0"),
    ],
)
def test_wrong_sizes_are_refused(changes: dict, message: str):
    shape = VideoPixelShape(batch=1, frames=49, height=512, width=768, fps=24.0)._replace(**changes)
    with pytest.raises(ValueError, match=message):
        shape.check()


def test_wrong_tensors_are_refused():
    tools = video_tools()
    with pytest.raises(ValueError, match=r"initial_latent must have shape \[1, 4, 3, 2, 3\], got \[1, 4, 3, 2, 2\]"):
        tools.create_initial_state(initial_latent=torch.zeros(1, 4, 3, 2, 2))
    with pytest.raises(ValueError, match="5 axes"):
        tools.patchifier.patchify(torch.zeros(1, 4, 3, 2))
    with pytest.raises(ValueError, match=r"\[B, 18, 4\], got \[1, 19, 4\]; remove appended tokens"):
        tools.patchifier.unpatchify(torch.zeros(1, 19, 4), tools.target_shape)
    with pytest.raises(ValueError, match="2x3 cannot be cut into patches of edge 2"):
        VideoLatentPatchifier(2).patchify(torch.zeros(1, 4, 3, 2, 3))
    with pytest.raises(ValueError, match="patch_size of audio must be 1, got 2"):
        AudioPatchifier(2)


def test_state_round_trip():
    for tools in (video_tools(), AudioLatentTools(AudioPatchifier(), AudioLatentShape(1, 2, 5, 4))):
        latent = randn(tools.target_shape.to_torch_shape())
        state = tools.create_initial_state(initial_latent=latent)
        spatial = tools.unpatchify(state)
        assert torch.equal(spatial.latent, latent)
        assert spatial.denoise_mask.shape == tools.target_shape.mask_shape()
        again = tools.patchify(spatial)
        assert torch.equal(again.latent, state.latent)
        assert torch.equal(again.denoise_mask, state.denoise_mask)


def test_carried_sizes():
    assert [carried_pixel_frames(count) for count in (1, 2, 4)] == [1, 9, 25]


def test_halved_latent_is_the_mean_of_its_cells():
    latent = randn(1, 2, 3, 4, 6)
    halved = resize_latent(latent, 2, 3)
    torch.testing.assert_close(halved, torch.nn.functional.avg_pool3d(latent, (1, 2, 2)))


def test_audio_is_stretched_to_the_clip():
    audio = torch.arange(8.0).view(1, 2, 4, 1)
    assert stretch_audio_latent(audio, 2).tolist() == [[[[0.5], [2.5]], [[4.5], [6.5]]]]
