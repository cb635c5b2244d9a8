"""Samples as files, and on the pages of trackers.

Shapes: F frames, H and W rows and columns of pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.nn import functional

from ...atomic import complete_file
from ...media.frames import read_frames
from ...media.reading import probe, read_audio, read_video
from ...pipelines.output import LTX2PipelineOutput

KEY = "validation_samples"
"""Under which trackers show samples."""
_SHEET_FRAMES, _SHEET_COLUMNS, _SHEET_WIDTH = 8, 4, 320


@dataclass(frozen=True)
class ValidationSample:
    """A sample that was made.

    Args:
        path: Its file: `.mp4`, `.png` for a single frame, or `.wav` for sound alone.
        prompt: What it was made from.
        seed: With which seed.
    """

    path: Path
    prompt: str
    seed: int


def write_sample(output: LTX2PipelineOutput, stem: Path, reference: Path | None, num_frames: int) -> Path:
    """Write a sample, whole or not at all, and return its file.

    Args:
        output: What a pipeline made, of one item, its frames as bytes `[1, F, H, W, 3]`.
        stem: Name of the file without its suffix.
        reference: Clip to show left of it.
        num_frames: Most frames of that to show.
    """
    if output.frames is None:
        return Path(output.save(stem.with_suffix(".wav"))[0])
    frames = torch.as_tensor(output.frames)
    if reference is not None:
        shown = read_frames(reference, num_frames, frame_rate=output.frame_rate)
        frames = side_by_side(shown, frames[0])[None]
        output = replace(output, frames=frames, video_source=None)
    if len(frames[0]) > 1:
        return Path(output.save(stem.with_suffix(".mp4"))[0])
    with complete_file(stem.with_suffix(".png")) as partial:
        PIL.Image.fromarray(frames[0, 0].cpu().numpy()).save(partial)
    return stem.with_suffix(".png")


def side_by_side(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Two clips of bytes `[F, H, W, 3]` beside each other; the left one gets the height of the right one.

    The shorter one waits on its last frame.
    """
    right = right.cpu()
    height = right.shape[1]
    width = max(2, round(left.shape[2] * height / left.shape[1] / 2) * 2)
    pixels = left.movedim(-1, 1).float()
    scaled = functional.interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)
    left = scaled.round().clamp(0, 255).to(torch.uint8).movedim(1, -1)
    longest = max(len(left), len(right))
    padded = [torch.cat([clip, clip[-1:].expand(longest - len(clip), -1, -1, -1)]) for clip in (left, right)]
    return torch.cat(padded, dim=2)


def log_samples(trackers: Sequence[Any], samples: Sequence[ValidationSample], step: int, with_wandb: bool) -> None:
    """Show samples in the trackers of a run.

    TensorBoard shows a sheet of frames, and the sound; W&B plays the files.

    Args:
        trackers: Trackers of Accelerate.
        samples: The samples.
        step: Training step.
        with_wandb: Whether W&B gets them (`wandb.log_validation_videos`).
    """
    for tracker in trackers:
        if tracker.name == "tensorboard":
            for number, sample in enumerate(samples, start=1):
                _log_to_tensorboard(tracker.tracker, f"{KEY}/{number}", sample, step)
        elif tracker.name == "wandb" and with_wandb and samples:
            tracker.tracker.log({KEY: [_for_wandb(sample) for sample in samples]}, step=step)


def _log_to_tensorboard(writer: Any, tag: str, sample: ValidationSample, step: int) -> None:
    writer.add_text(f"{tag}/prompt", sample.prompt, step)
    suffix = sample.path.suffix
    if suffix != ".wav":
        writer.add_image(tag, contact_sheet(sample.path), step, dataformats="HWC")
    if suffix != ".png" and (sound := read_audio(sample.path)) is not None:
        samples, rate = sound
        writer.add_audio(f"{tag}/sound", samples[0].mean(0, keepdim=True).clamp(-1, 1), step, sample_rate=rate)


def contact_sheet(path: Path) -> np.ndarray:
    """Up to eight frames of a file, evenly over its time, in rows of four: bytes `[H, W, 3]`."""
    if path.suffix == ".png":
        frames = read_frames(path)
    else:
        info = probe(path)
        frames = read_video(path)
        count = min(_SHEET_FRAMES, info.num_frames)
        frames = frames[torch.linspace(0, len(frames) - 1, count).round().long()]
    images = [PIL.Image.fromarray(frame.numpy()) for frame in frames]
    for image in images:
        image.thumbnail((_SHEET_WIDTH, _SHEET_WIDTH))
    columns = min(_SHEET_COLUMNS, len(images))
    width, height = images[0].size
    sheet = PIL.Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height))
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    return np.asarray(sheet)


def _for_wandb(sample: ValidationSample) -> Any:
    import wandb

    kind = {".mp4": wandb.Video, ".png": wandb.Image, ".wav": wandb.Audio}[sample.path.suffix]
    return kind(str(sample.path), caption=sample.prompt)
