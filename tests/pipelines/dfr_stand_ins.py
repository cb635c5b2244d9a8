"""What the golden DFR vectors were made with beside the transformer: simple functions in place of autoencoders and text.

Their rules stand in the README of the vectors: the autoencoder takes means over cells, the connectors cut the states in two.
"""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXEulerAncestralRFScheduler

from ltx2_diffusers import LTX2AVTransformer3DModel, LTX2DFRPipeline, LTX2DFRTemporalRefinePipeline
from tests.golden_data import load_json, load_metadata, load_tensors

SETUP = load_tensors("dfr_hdr/setup.safetensors")


def picture(height: int, width: int, shift: int) -> PIL.Image.Image:
    """The picture of the vectors' README."""
    rows, columns, colours = np.ogrid[:height, :width, :3]
    return PIL.Image.fromarray(((3 * rows + 5 * columns + 40 * colours + shift) % 256).astype(np.uint8))


class StandIn(torch.nn.Module):
    """A network on the CPU."""

    dtype, device = torch.float32, torch.device("cpu")


class Normalised(StandIn):
    """Latents and their statistics, which lie along the axis of channels or along the last of packed ones."""

    def __init__(self, name: str, **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.mean, self.std = (SETUP[f"{name}.latents_{part}"] for part in ("mean", "std"))

    def moved(self, latents: torch.Tensor, move: Any) -> torch.Tensor:
        if latents.ndim == 4:  # [B, C, L, M], whose statistics are those of packed latents
            packed = move(latents.transpose(1, 2).flatten(2), self.mean, self.std)
            return packed.unflatten(2, latents.shape[1::2]).transpose(1, 2)
        return move(latents, *(part.view(1, -1, 1, 1, 1) for part in (self.mean, self.std)))

    def normalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        return self.moved(latents, lambda x, mean, std: (x - mean) / std)

    def denormalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        return self.moved(latents, lambda x, mean, std: x * std + mean)


class MeanVAE(Normalised):
    """Means over 32 x 32 pixels and over the frames 0, 1 to 8, 9 to 16 and so on."""

    spatial_compression_ratio, temporal_compression_ratio = 32, 8

    def __init__(self) -> None:
        super().__init__("vae", timestep_conditioning=False)

    def encode(self, pixels: torch.Tensor) -> Any:
        cells = torch.nn.functional.avg_pool3d(pixels, (1, 32, 32))
        frames = torch.cat([cells[:, :, :1], cells[:, :, 1:].unflatten(2, (-1, 8)).mean(3)], dim=2)
        channels = [frames[:, c % 3] * (1 + 0.1 * c) + 0.05 * c for c in range(12)]
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: torch.stack(channels, dim=1)))


class Connectors(StandIn):
    """The first 64 values of a state for the video, the rest for the audio."""

    config = SimpleNamespace(caption_channels=96, text_proj_in_factor=1, connector_rope_base_seq_len=4096)

    def fitting_length(self, length: int) -> int:
        return length

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor, **_: Any) -> tuple[torch.Tensor, ...]:
        hidden = hidden.flatten(2)
        return hidden[..., :64], hidden[..., 64:], mask


class TwiceTheFrames(StandIn):
    """Every frame twice without the first one, times 1.1."""

    config = {"temporal_upsample": True, "spatial_upsample": False}  # noqa: RUF012

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.repeat_interleave(2, dim=2)[:, :, 1:] * 1.1


def components() -> dict[str, Any]:
    transformer = LTX2AVTransformer3DModel.from_config(load_json("transformer/ltx25/config.json")).eval()
    transformer.load_state_dict(load_tensors("transformer/ltx25/diffusers.safetensors"))
    audio = {"sample_rate": 16000, "mel_hop_length": 160, "mel_bins": 20, "latent_channels": 2}
    return {
        "vae": MeanVAE(),
        "audio_vae": Normalised("audio_vae", **audio),
        "connectors": Connectors(),
        "transformer": transformer,
        **dict.fromkeys(("text_encoder", "tokenizer", "vocoder")),
    }


def pipelines() -> tuple[LTX2DFRPipeline, LTX2DFRTemporalRefinePipeline]:
    """Both pipelines on the same stand-ins."""
    shared = components()
    first = LTX2DFRPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), **shared)
    ancestral = LTXEulerAncestralRFScheduler(eta=0.5)
    second = LTX2DFRTemporalRefinePipeline(scheduler=ancestral, temporal_latent_upsampler=TwiceTheFrames(), **shared)
    for pipeline in (first, second):
        pipeline.set_progress_bar_config(disable=True)
    return first, second


def recorded(name: str, **changes: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor], list[int]]:
    """Arguments of a recorded call, its tensors, and the positions of its keyframes."""
    tensors, metadata = (load(f"dfr_hdr/{name}.safetensors") for load in (load_tensors, load_metadata))
    given = {key.removeprefix("in."): value for key, value in tensors.items() if key.startswith("in.")}
    embeds = SETUP["prompt_embeds"]
    call = {
        **json.loads(metadata["call"]),
        **given,
        "prompt_embeds": embeds,
        "prompt_attention_mask": torch.ones(embeds.shape[:2]),
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(int(metadata["seed"])),
    }
    return call | changes, tensors, json.loads(metadata["keyframe_positions"])
