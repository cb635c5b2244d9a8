"""The video VAE reproduces the reference's vectors: encode, decode, both tilings."""

import copy
from pathlib import Path

import pytest
import torch

from ltx2_diffusers.models.video_vae_tiling_config import SpatialTilingConfig, TemporalTilingConfig, TilingConfig
from tests.golden_data import GOLDEN_DIR, assert_within, golden_cases
from tests.models.video_vae_tools import golden_vae, load_case, max_difference


def _normalized_mode(vae, distribution) -> torch.Tensor:
    return vae.normalize_latents(distribution.mode())


def _assert_video(video: torch.Tensor, case: dict[str, torch.Tensor]) -> None:
    """Large videos are kept at every second pixel."""
    every, key = (1, "video") if "video" in case else (2, "video_every_2nd_pixel")
    assert_within(video[..., ::every, ::every], case[key], "video VAE")


def _check_encode(vae, case, _params):
    distribution = vae.encode(case["video"]).latent_dist
    assert_within(_normalized_mode(vae, distribution), case["latent_normalized"], "video VAE")
    if "moments" in case:
        assert_within(distribution.parameters, case["moments"], "video VAE")


def _check_decode(vae, case, _params):
    assert_within(vae.denormalize_latents(case["latent_normalized"]), case["latent"], "video VAE")
    video = vae.decode(case["latent"]).sample
    _assert_video(video, case)
    if "frames_uint8" in case:
        frames = (((video[0] + 1) / 2).clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 3, 0)
        # A value on the edge of two integers may fall to either side.
        assert max_difference(frames.int(), case["frames_uint8"].int()) <= 1


def _check_causal_decode(vae, case, _params):
    assert_within(vae.decode(case["latent"], causal=True).sample, case["video"], "video VAE")


def _tiling_config(params: dict) -> TilingConfig:
    """2.0 cases name spatial and temporal tiles, newest ones tiles per axis with 0 for an axis left whole."""
    if "spatial" in params:
        spatial, temporal = params["spatial"], params["temporal"]
    else:
        spatial = tuple(zip(params["height"], params["width"]))
        temporal = params["frames"] if params["frames"][0] else None
    return TilingConfig(
        SpatialTilingConfig(*spatial) if spatial else None, TemporalTilingConfig(*temporal) if temporal else None
    )


def _check_tiled_decode(vae, case, params):
    chunks = list(vae.decode_in_tiles(case["latent"], _tiling_config(params)))
    # `chunk_frames` holds the reference's number of chunks, of which we leave out empty ones.
    assert len(chunks) <= case["chunk_frames"].numel()
    frames = [frames for frames in case["chunk_frames"].tolist() if frames]
    assert [chunk.shape[2] for chunk in chunks] == frames
    _assert_video(torch.cat(chunks, dim=2), case)


def _check_tiled_encode(vae, case, params):
    output = vae.encode_in_tiles(case["video"], _tiling_config(params), discard_seams="spatial" in params)
    assert_within(_normalized_mode(vae, output.latent_dist), case["latent_normalized"], "video VAE")


def _check_blended(vae, case, params):
    vae = copy.deepcopy(vae)
    for name, value in params.items():
        setattr(vae, name, value)
    if "latent" in case:
        assert_within(vae.decode(case["latent"]).sample, case["video"], "video VAE")
    else:
        assert_within(vae.encode(case["video"]).latent_dist.parameters, case["moments"], "video VAE")


# The first matching prefix decides.
CHECKS = {
    "encode_": _check_encode,
    "decode_causal": _check_causal_decode,
    "decode_": _check_decode,
    "tiled_decode_": _check_tiled_decode,
    "tiled_encode_": _check_tiled_encode,
    "diffusers_tiled_": _check_blended,
}


def _cases() -> list[Path]:
    paths = [path for folder in ("video_vae", "video_vae/ltx23") for path in golden_cases(f"{folder}/cases")]
    return [path for path in paths if path.stem != "masks_1d"]


@pytest.mark.parametrize("path", _cases(), ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
@torch.no_grad()
def test_case(path):
    check = next(check for prefix, check in CHECKS.items() if path.stem.startswith(prefix))
    folder = path.parent.parent.relative_to(GOLDEN_DIR)
    check(golden_vae(str(folder)), *load_case(path))
