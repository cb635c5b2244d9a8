"""Tiny video VAEs that the tests share: from golden weights, and beside diffusers' class with equal weights."""

import json
from functools import lru_cache
from pathlib import Path

import diffusers
import torch

from ltx2_diffusers.models.video_vae import AutoencoderKLLTX2Video
from tests.golden_data import GOLDEN_DIR, load_json, load_metadata, load_tensors

TINY = {
    "latent_channels": 4,
    "block_out_channels": (8, 16, 32, 32),
    "layers_per_block": (1, 1, 1, 1, 1),
    "decoder_block_out_channels": (8, 16, 32),
    "decoder_layers_per_block": (1, 1, 1, 1),
    "decoder_causal": False,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
# One block and one scale.
SMALLEST = {
    "latent_channels": 4,
    "block_out_channels": (8,),
    "decoder_block_out_channels": (8,),
    "layers_per_block": (1,),
    "decoder_layers_per_block": (1, 1),
    "spatio_temporal_scaling": (True,),
    "decoder_spatio_temporal_scaling": (True,),
    "decoder_inject_noise": (False, False),
    "downsample_type": ("spatial",),
    "upsample_residual": (False,),
    "upsample_factor": (1,),
    "patch_size": 1,
}
TINY_23 = TINY | {
    "decoder_block_out_channels": (8, 16, 16, 32),
    "decoder_layers_per_block": (1, 2, 1, 1, 1),
    "decoder_spatio_temporal_scaling": (True,) * 4,
    "decoder_inject_noise": (False,) * 5,
    "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
    "upsample_residual": (False,) * 4,
    "upsample_factor": (2, 2, 1, 2),
    "decoder_spatial_padding_mode": "zeros",
}
TINY_CONDITIONED = TINY | {"timestep_conditioning": True, "decoder_inject_noise": (True, False, True, False)}


def published_23() -> dict:
    """The config of LTX-2.3 as far as it differs from the defaults."""
    return TINY_23 | {
        "latent_channels": 128,
        "block_out_channels": (256, 512, 1024, 1024),
        "layers_per_block": (4, 6, 4, 2, 2),
        "decoder_block_out_channels": (256, 512, 512, 1024),
        "decoder_layers_per_block": (4, 6, 4, 2, 2),
    }


def pair(config: dict, seed: int = 0) -> tuple[AutoencoderKLLTX2Video, diffusers.AutoencoderKLLTX2Video]:
    """Our model and diffusers' with the same random weights, those initialised to zero included."""
    torch.manual_seed(seed)
    theirs = diffusers.AutoencoderKLLTX2Video(**config).eval()
    for name, parameter in theirs.named_parameters():
        if "per_channel_scale" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    ours = AutoencoderKLLTX2Video(**config).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def _diffusers_key(key: str) -> str | None:
    """The state-dict key of an original one; None for statistics that nothing uses."""
    parts = key.removeprefix("vae.").split(".")
    if parts[0] == "per_channel_statistics":
        return {"mean-of-means": "latents_mean", "std-of-means": "latents_std"}.get(parts[1])
    if parts[1] in ("last_time_embedder", "last_scale_shift_table"):
        parts[1] = parts[1].removeprefix("last_")
    if parts[1] in ("down_blocks", "up_blocks"):
        parts[1:3] = _block(parts[0], parts[1], int(parts[2]), is_resampler=parts[3] == "conv")
    return ".".join("resnets" if part == "res_blocks" else part for part in parts)


def _block(half: str, group: str, index: int, is_resampler: bool) -> list[str]:
    # The encoder alternates residual blocks and downsamplers and ends with the mid block, the decoder begins with it.
    if half == "encoder":
        if index == 8:
            return ["mid_block"]
        return [group, str(index // 2)] + (["downsamplers", "0"] if is_resampler else [])
    if index == 0:
        return ["mid_block"]
    return [group, str((index - 1) // 2)] + (["upsamplers", "0"] if is_resampler else [])


@lru_cache
def golden_vae(folder: str) -> AutoencoderKLLTX2Video:
    """The tiny model of a golden folder, with the reference's weights."""
    config = {key: value for key, value in load_json(f"{folder}/config.json").items() if not key.startswith("_")}
    vae = AutoencoderKLLTX2Video(**config).eval()
    tensors = load_tensors(f"{folder}/original.safetensors")
    renamed = {_diffusers_key(key): value for key, value in tensors.items()}
    renamed.pop(None)
    vae.load_state_dict(renamed)
    return vae


def load_case(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and parameters of a golden case."""
    name = path.relative_to(GOLDEN_DIR)
    return load_tensors(name), json.loads(load_metadata(name)["params"])


def max_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference of two tensors of the same shape."""
    assert a.shape == b.shape
    return (a - b).abs().max().item()
