"""One file of a precomputed sample: what training reads of a clip, its sound, its caption or a mask.

Files are safetensors, written whole; the pickled files of the Lightricks trainer are read, too.

Shapes: C channels, F', H', W' latent frames, rows and columns, S = F' H' W' video tokens, L audio latent steps, n tokens
of a caption, T the most of them in a batch, W widths of the text features.
"""

import json
import pickle
import struct
from collections.abc import Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..checkpoints.safetensors_io import Entry, SafetensorsFile, write_file
from ..checks import check_finite

Sample = dict[str, torch.Tensor | int | float]
"""Tensors and numbers by name."""

SUFFIX = ".safetensors"
"""Ending of the files that are written."""
LEGACY_SUFFIX = ".pt"
"""Ending of the Lightricks trainer's files."""
VIDEO_TEXT, AUDIO_TEXT, TEXT_MASK = "video_prompt_embeds", "audio_prompt_embeds", "prompt_attention_mask"
# Where the numbers of a sample stand among the metadata of its file, as a JSON object.
_NUMBERS = "numbers"
# The 2.0 trainer's name for text features, which serve both streams.
_LEGACY_TEXT = "prompt_embeds"
_GRID = ("num_frames", "height", "width")
# What unpickling raises on damaged and on foreign files.
_DAMAGED = (
    *(OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError, MemoryError),
    *(pickle.UnpicklingError, struct.error),
)


class TextFeatures(NamedTuple):
    """Inputs of the connectors: `video` `[B, T, W]`, `audio` `[B, T, W]` and their `mask` `[B, T]`, True for tokens."""

    video: torch.Tensor
    audio: torch.Tensor
    mask: torch.Tensor


def write_sample(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    numbers: Mapping[str, int | float],
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write one sample; the file appears only when it is complete.

    Args:
        path: File ending in `.safetensors`. Missing folders are created.
        tensors: Tensors by name.
        numbers: Sizes, rates and durations by name; they stand in the file's metadata.
        notes: Further metadata that training does not read, default none; see `read_notes`.

    Raises:
        ValueError: If a tensor holds values that are not finite.
    """
    if path.suffix != SUFFIX:
        raise ValueError(f"a sample is written as {SUFFIX}, got {str(path)!r}; use {path.with_suffix(SUFFIX).name!r}")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            check_finite(f"{name!r} of {path.stem!r}", tensor, "encode it in float32")
    entries = {name: Entry.of(tensor.detach().cpu().contiguous()) for name, tensor in tensors.items()}
    write_file(path, entries, {"format": "pt", _NUMBERS: json.dumps(dict(numbers)), **(notes or {})})


def read_notes(path: Path) -> dict[str, str]:
    """The metadata of a whole sample file; empty if there is no such file or it is damaged."""
    try:
        return SafetensorsFile(path).metadata
    except (ValueError, OSError):
        return {}


def read_sample(path: Path) -> Sample:
    """Read one sample in the present layout, whatever layout its file has.

    Args:
        path: A `.safetensors` file, or a `.pt` file of the Lightricks trainer. Of the latter, video latents that are
            stored as tokens `[S, C]` become `[C, F', H', W']`, and of padded text features `[1024, W]` the rows of
            tokens remain; the one kind that 2.0 stores becomes `video_prompt_embeds`.

    Returns:
        Tensors and numbers by name. Captions have `video_prompt_embeds` `[n, W]` and, unless both streams share one
        projection, `audio_prompt_embeds` `[n, W]`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or holds no sample.
    """
    sample = _read_pickled_sample(path) if path.suffix == LEGACY_SUFFIX else _read_safetensors(path)
    return _with_grid(_with_valid_rows(sample, path), path)


def read_outline(path: Path) -> Sample:
    """What `read_sample` returns, with tensors on the meta device: of a safetensors file only the header is read."""
    if path.suffix == LEGACY_SUFFIX:
        return read_sample(path)
    file, numbers = _opened(path)
    return {
        **{name: torch.empty(e.shape, dtype=e.dtype, device="meta") for name, e in file.entries.items()},
        **numbers,
    }


def valid_rows(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The rows `[n, W]` of features `[T, W]` that stand for tokens, 1 in the mask `[T]`."""
    return features[mask.bool()].contiguous()


def padded_rows(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions `[n, W]` of several lengths as one tensor `[B, T, W]`, zeros behind, and the mask `[B, T]` of tokens."""
    counts = torch.tensor([len(part) for part in rows])
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return padded, torch.arange(padded.shape[1]) < counts[:, None]


def text_features(conditions: Mapping[str, Any]) -> TextFeatures:
    """Inputs of both connectors from the captions of a batch.

    Args:
        conditions: What `collate` makes of captions.
    """
    video = conditions[VIDEO_TEXT]
    return TextFeatures(video, conditions.get(AUDIO_TEXT, video), conditions[TEXT_MASK])


def _read_safetensors(path: Path) -> Sample:
    file, numbers = _opened(path)
    return {**{name: entry.load() for name, entry in file.entries.items()}, **numbers}


def _opened(path: Path) -> tuple[SafetensorsFile, dict[str, int | float]]:
    """A file of a sample, of which the header is read, and its numbers."""
    file = SafetensorsFile(path)
    try:
        numbers = json.loads(file.metadata.get(_NUMBERS, "{}"))
        if not isinstance(numbers, dict) or not all(map(_is_number, numbers.values())):
            raise ValueError("they are no object of numbers")
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged: its numbers cannot be read ({error}); process it anew") from None
    return file, numbers


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote into a file, of which nothing but tensors and plain values is taken.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or holds something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except _DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{str(path)!r} cannot be read ({reason}); make it anew") from None


def _read_pickled_sample(path: Path) -> Sample:
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} holds a {type(content).__name__} and no sample; process it anew")
    # A number may be stored as a tensor without axes. Notes in words and empty entries are nothing that training reads.
    plain = {k: v.item() if isinstance(v, torch.Tensor) and v.ndim == 0 else v for k, v in content.items()}
    return {name: value for name, value in plain.items() if isinstance(value, torch.Tensor) or _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, Number) and not isinstance(value, (bool, complex))


def _with_valid_rows(sample: Sample, path: Path) -> Sample:
    """Text features without padding, under the names in force."""
    if _LEGACY_TEXT in sample:
        sample = {**sample, VIDEO_TEXT: sample[_LEGACY_TEXT]}
        del sample[_LEGACY_TEXT]
    mask = sample.pop(TEXT_MASK, None)
    for name in (VIDEO_TEXT, AUDIO_TEXT):
        features = sample.get(name)
        if features is None:
            continue
        if not isinstance(features, torch.Tensor) or features.ndim != 2:
            raise ValueError(f"{str(path)!r}: {name!r} has to have shape [tokens, width]; process it anew")
        if isinstance(mask, torch.Tensor):
            if len(mask) != len(features):
                raise ValueError(
                    f"{str(path)!r}: {TEXT_MASK!r} has {len(mask)} positions, {name!r} has {len(features)}; process it anew"
                )
            sample[name] = valid_rows(features, mask)
    return sample


def _with_grid(sample: Sample, path: Path) -> Sample:
    """Video latents as a grid, also those that are stored as tokens, frame by frame and row by row."""
    latents = sample.get("latents")
    if not isinstance(latents, torch.Tensor) or latents.ndim != 2:
        return sample
    grid = [int(sample.get(name, 0)) for name in _GRID]
    if len(latents) != grid[0] * grid[1] * grid[2]:
        raise ValueError(
            f"{str(path)!r} stores {len(latents)} tokens, but {', '.join(_GRID)} are {grid}; process it anew"
        )
    return {**sample, "latents": latents.unflatten(0, grid).movedim(-1, 0).contiguous()}
