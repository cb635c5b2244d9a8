"""Small input files, made once for all tests of the command line."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.media.writing import write_audio, write_video
from tests.pipelines.tiny import ours

RATE = 24000


@pytest.fixture(autouse=True, scope="module")
def quick(tiny_is_packaged_throughout):
    """What a command makes of the packaged checkpoint does not depend on its weights."""


@pytest.fixture(scope="session")
def media(tmp_path_factory) -> Path:
    """A folder with pictures, sounds, clips, a mask and LoRAs."""
    folder = tmp_path_factory.mktemp("media")
    for name, color in (("red.png", (220, 40, 30)), ("blue.png", (20, 60, 200))):
        PIL.Image.new("RGB", (96, 64), color).save(folder / name)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    PIL.Image.fromarray(mask).save(folder / "mask.png")
    seconds = np.arange(RATE) / RATE
    sound = np.stack([np.sin(440 * 2 * np.pi * seconds)] * 2).astype(np.float32) * 0.3
    write_audio(folder / "tone.wav", sound, RATE)
    frames = np.zeros((17, 64, 64, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[:, 2 * index : 2 * index + 16] = (250, 140, 20)
    write_video(folder / "clip.mp4", frames, 24.0, sound[:, : RATE * 17 // 24], RATE)
    write_video(folder / "silent.mp4", frames, 24.0)
    save_loras(folder)
    return folder


def save_loras(folder: Path) -> None:
    """`strong.safetensors`, which changes what is made visibly, and `reference.safetensors` for half-sized clips."""
    name = "transformer_blocks.0.attn1.to_q"
    layer = ours().transformer.get_submodule(name)
    noise = torch.Generator().manual_seed(0)
    factors = {
        f"{name}.lora_A.weight": torch.randn(2, layer.in_features, generator=noise),
        f"{name}.lora_B.weight": torch.randn(layer.out_features, 2, generator=noise),
    }
    for file, metadata in (("strong", {}), ("reference", {"reference_downscale_factor": "2"})):
        LTX2Pipeline.save_lora_weights(
            folder, transformer_lora_layers=factors, weight_name=f"{file}.safetensors", metadata=metadata
        )
