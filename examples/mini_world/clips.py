"""Scenes as the transformer sees them: latents of pictures and sound, computed once and kept."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ltx2_diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2Vocoder
from ltx2_diffusers.atomic import complete_file
from ltx2_diffusers.models.audio_vae import conform_latent_length
from ltx2_diffusers.pipelines.plan import ModelSizes

from .drawing import FRAME_RATE, draw
from .scenes import Scene, caption, random_scene
from .sounding import sound


class Size(NamedTuple):
    """Frames, height and width of clips in pixels."""

    num_frames: int
    height: int
    width: int

    @property
    def aspect(self) -> float:
        """Width by height."""
        return self.width / self.height


@dataclass
class Parts:
    """The networks that latents are made and shown with."""

    vae: AutoencoderKLLTX2Video
    audio_vae: AutoencoderKLLTX2Audio
    vocoder: LTX2Vocoder

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> "Parts":
        """Read those that were trained, from folders of their names."""
        classes = (AutoencoderKLLTX2Video, AutoencoderKLLTX2Audio, LTX2Vocoder)
        names = ("vae", "audio_vae", "vocoder")
        return cls(*(kind.from_pretrained(folder / name).eval().to(device) for kind, name in zip(classes, names)))

    @property
    def sizes(self) -> ModelSizes:
        """What they make of pixels, frames and seconds."""
        video, audio = self.vae.config, self.audio_vae.config
        return ModelSizes(
            video.spatial_compression_ratio,
            video.temporal_compression_ratio,
            video.latent_channels,
            patch_size=1,
            marks_keyframes=False,
            audio_channels=audio.latent_channels,
            audio_mel_bins=audio.mel_bins // 4,
            sample_rate=audio.sample_rate,
            hop_length=audio.mel_hop_length,
            audio_ratio=4,
        )


@dataclass
class Pool:
    """Clips of one size as normalised latents on the CPU, with the scenes that they show.

    Args:
        size: Of the clips.
        scenes: N of them.
        video: Latents `[N, 128, F', h, w]`.
        audio: Latents `[N, C, L, M]`.
    """

    size: Size
    scenes: list[Scene]
    video: Tensor
    audio: Tensor

    def batch(self, rows: Sequence[int], draw_from: random.Random, without_text: float = 0.1) -> dict[str, Any]:
        """Rows as a batch of [`ConnectorsStep`], a share of them with an empty caption."""
        texts = [caption(self.scenes[row], draw_from) for row in rows]
        return {
            "prompts": ["" if draw_from.random() < without_text else text for text in texts],
            # Without a rate of their own clips have 24 frames per second, those of the world.
            "latents": {"latents": self.video[rows].float()},
            "audio_latents": {"latents": self.audio[rows].float()},
        }


def drawn(scenes: Sequence[Scene], size: Size, device: torch.device) -> Tensor:
    """Videos `[B, 3, F, H, W]` of scenes, drawn where they are wanted."""
    with device:
        return draw(scenes, *size)


@torch.no_grad()
def encoded(parts: Parts, scenes: Sequence[Scene], size: Size) -> tuple[Tensor, Tensor]:
    """Normalised latents of scenes, `[B, 128, F', h, w]` and `[B, C, L, M]`."""
    vae, audio_vae, pixels = parts.vae, parts.audio_vae, drawn(scenes, size, parts.vae.device)
    rate = audio_vae.config.sample_rate
    heard = sound(scenes, size.num_frames, rate, size.aspect).to(audio_vae.device)
    video = vae.normalize_latents(vae.encode(pixels).latent_dist.mode())
    audio = audio_vae.normalize_latents(audio_vae.encode_waveform(heard, rate))
    wanted = parts.sizes.audio_shape(len(scenes), size.num_frames / FRAME_RATE)
    return video, conform_latent_length(audio, wanted.frames)


def random_scenes(size: Size, count: int, split: str = "train") -> list[Scene]:
    """Scenes of a split that follow from the size of their clips."""
    draw_from = random.Random(f"{split} {size}")
    return [random_scene(draw_from, split, size.aspect) for _ in range(count)]


def kept_pool(file: Path, parts: Parts, size: Size, count: int, group: int = 24) -> Pool:
    """Clips of random scenes of the training split, whose latents are made unless the file holds them."""
    scenes = random_scenes(size, count)
    if not file.exists():
        made = [encoded(parts, scenes[start : start + group], size) for start in range(0, count, group)]
        with complete_file(file) as temporary:
            torch.save([torch.cat(latents).half().cpu() for latents in zip(*made)], temporary)
    return Pool(size, scenes, *torch.load(file, weights_only=True))
