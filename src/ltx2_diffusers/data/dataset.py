"""What training reads: the samples of a folder of precomputed files, batches of them, and samples of random values.

Shapes: B samples, C channels, F', H', W' latent frames, rows and columns, L audio latent steps, M mel bins, n tokens of a
caption, T the most of them in a batch, W widths of the text features.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checks import check_at_least_one, check_num_frames, check_positive, check_size
from ..conditioning.shapes import AudioLatentShape, VideoLatentShape, VideoPixelShape
from .samples import AUDIO_TEXT, LEGACY_SUFFIX, SUFFIX, TEXT_MASK, VIDEO_TEXT, Sample, padded_rows, read_sample

PRECOMPUTED = ".precomputed"
"""Folder beside the metadata file that holds what was computed."""
EMPTY_PROMPT = f"empty_prompt{SUFFIX}"
"""The empty caption beside the folders of samples, for caption dropout."""
LATENTS, CONDITIONS, AUDIO_LATENTS = "latents", "conditions", "audio_latents"
REFERENCE_LATENTS, REFERENCE_AUDIO_LATENTS = "reference_latents", "reference_audio_latents"
VIDEO_MASKS, AUDIO_MASKS = "video_masks", "audio_masks"
# Folders that `ltx2 data process` makes of a column of the dataset.
_COLUMNS = {
    REFERENCE_LATENTS: "reference_video",
    REFERENCE_AUDIO_LATENTS: "reference_audio",
    VIDEO_MASKS: "video_mask",
    AUDIO_MASKS: "audio_mask",
}
PRESENT = "present"
"""In a batch, which samples have what others lack, `[B]`."""
_DEFAULT_SOURCES = {LATENTS: "latent_conditions", CONDITIONS: "text_conditions"}
# The first trainer numbered files: `latents/latent_7.pt` belongs to `conditions/condition_7.pt`.
_NUMBERED = ("latent_", "condition_")

Item = dict[str, Any]
"""A sample: what each source holds of it, and `idx`."""


def precomputed_folder(data_root: str | Path) -> Path:
    """The folder that holds the folders of samples: `.precomputed` in the given one, or that itself."""
    root = Path(data_root).expanduser()
    inner = root / PRECOMPUTED
    return inner if inner.is_dir() else root


class PrecomputedDataset(torch.utils.data.Dataset[Item]):
    """The samples that all sources have, in the order of their names.

    Args:
        data_root: A folder with `.precomputed`, or that itself.
        data_sources: Folders of samples and the keys of an item under which they are given; a list for keys that are
            the folders' names; `None` for `latents` as `latent_conditions` and `conditions` as `text_conditions`.
        optional: Folders of which a sample may lack its file; its item then lacks the key. Default none.

    Attributes:
        names: Sub-paths of the samples, without ending.
        dropped: Sub-paths that were left out because a source lacks them.

    Raises:
        TypeError: If `data_sources` is of another type.
        FileNotFoundError: If a folder is missing.
        ValueError: If there are no samples, or none that all sources have.
    """

    def __init__(
        self,
        data_root: str | Path,
        data_sources: Mapping[str, str] | Sequence[str] | None = None,
        optional: Collection[str] = (),
    ) -> None:
        self.root = precomputed_folder(data_root)
        self.sources = _sources(data_sources)
        if unknown := [folder for folder in optional if folder not in self.sources]:
            raise ValueError(f"optional names {unknown[0]!r}, which is none of the sources {', '.join(self.sources)}")
        files = {folder: sample_files(self.root, folder, folder in optional) for folder in self.sources}
        first = LATENTS if LATENTS in files else next(iter(files))
        if not files[first]:
            raise ValueError(
                f"{str(self.root / first)!r} holds no {SUFFIX} or {LEGACY_SUFFIX} files; run `ltx2 data process` first"
            )
        self._files: dict[str, dict[str, Path]] = {}
        self.dropped: list[str] = []
        lacking: dict[str, int] = {}
        for name in sorted(files[first]):
            found = {folder: matching_file(files[folder], folder, name) for folder in self.sources}
            missing = [folder for folder, file in found.items() if file is None and folder not in optional]
            if missing:
                self.dropped.append(name)
                lacking[missing[0]] = lacking.get(missing[0], 0) + 1
            else:
                self._files[name] = {folder: file for folder, file in found.items() if file is not None}
        self.names = list(self._files)
        self._tell_dropped(lacking, first)

    def _tell_dropped(self, lacking: Mapping[str, int], first: str) -> None:
        reasons = ", ".join(f"{count} in {folder!r}" for folder, count in lacking.items())
        total = len(self.names) + len(self.dropped)
        if not self.names:
            raise ValueError(
                f"none of the {total} samples in {str(self.root / first)!r} is complete: files are missing for {reasons}"
            )
        if self.dropped:
            warnings.warn(
                f"{len(self.dropped)} of {total} samples in {str(self.root)!r} are left out, such as "
                f"{self.dropped[0]!r}: files are missing for {reasons}",
                stacklevel=3,
            )

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.names)

    def __getitem__(self, index: int) -> Item:
        """Read one sample.

        Returns:
            `{key: {name: tensor or number}, ..., "idx": index}`.

        Raises:
            IndexError: If there is no such sample.
            RuntimeError: If a file cannot be read; the message names it.
        """
        item: Item = {}
        for key, path in self.files(index).items():
            try:
                item[key] = read_sample(path)
            except (ValueError, OSError) as error:
                raise RuntimeError(f"sample {self.names[index]!r} cannot be loaded: {error}") from error
        return {**item, "idx": index % len(self)}

    def files(self, index: int) -> dict[str, Path]:
        """The files of a sample, by the key under which an item gives what they hold."""
        return {self.sources[folder]: path for folder, path in self._files[self.names[index]].items()}

    def empty_prompt(self) -> Sample:
        """The features of the empty caption, as a sample of `conditions` holds them.

        Raises:
            FileNotFoundError: If they were not stored.
        """
        path = self.root / EMPTY_PROMPT
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no {str(path)!r}, which caption dropout needs; run `ltx2 data process` on the captions again"
            )
        return read_sample(path)


def check_not_smaller(dataset: Any, batch_size: int) -> None:
    """Raise `ValueError` if a dataset has fewer samples than one batch of a process."""
    if len(dataset) < batch_size:
        raise ValueError(
            f"the dataset has {len(dataset)} samples, fewer than batch_size {batch_size}; use batch_size {len(dataset)} or "
            "process more clips"
        )


def collate(items: Sequence[Item]) -> dict[str, Any]:
    """Join samples to a batch.

    Captions of several lengths are padded with zeros behind, and `prompt_attention_mask` `[B, T]` tells their tokens. What
    some samples lack is zero for them, and `present` `[B]` tells which have it; it is not there where all have it. Numbers
    become tensors `[B]`, int64 or float64.

    Args:
        items: Samples of a dataset.

    Returns:
        `{key: {name: [B, ...]}, ..., "idx": [B]}`.

    Raises:
        ValueError: If tensors of two samples have different shapes; the message names both.
    """
    keys = dict.fromkeys(key for item in items for key in item if key != "idx")
    indices = [item["idx"] for item in items]
    batch: dict[str, Any] = {key: _joined(key, [item.get(key) for item in items], indices) for key in keys}
    return {**batch, "idx": torch.tensor(indices)}


def _joined(key: str, parts: Sequence[dict[str, Any] | None], indices: Sequence[int]) -> dict[str, torch.Tensor]:
    """One source of several samples."""
    present = [part for part in parts if part is not None]
    shared = set.intersection(*(set(part) for part in present))
    if odd := [(name, at) for at, part in zip(indices, parts) for name in part or () if name not in shared]:
        raise ValueError(f"{key}: sample {odd[0][1]} has {odd[0][0]!r}, others of its batch do not; process all anew")
    joined: dict[str, torch.Tensor] = {}
    for name in present[0]:
        if name in (VIDEO_TEXT, AUDIO_TEXT):
            rows = [present[0][name][:0] if part is None else part[name] for part in parts]
            joined[name], joined[TEXT_MASK] = padded_rows(rows)
        else:
            values = [_filler(present[0][name]) if part is None else part[name] for part in parts]
            joined[name] = _stacked(f"{key}.{name}", values, indices)
    if len(present) < len(parts):
        joined[PRESENT] = torch.tensor([part is not None for part in parts])
    return joined


def _filler(value: torch.Tensor | int | float) -> torch.Tensor | int | float:
    """What stands for a value that a sample lacks."""
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else type(value)(0)


def _stacked(name: str, values: Sequence[Any], indices: Sequence[int]) -> torch.Tensor:
    if not isinstance(values[0], torch.Tensor):
        whole = all(isinstance(value, int) for value in values)
        return torch.tensor(values, dtype=torch.int64 if whole else torch.float64)
    for value, index in zip(values, indices):
        if value.shape != values[0].shape:
            raise ValueError(
                f"{name} of sample {indices[0]} has shape {list(values[0].shape)} but of sample {index} {list(value.shape)}; "
                "a batch holds samples of one size"
            )
    return torch.stack(list(values))


def _sources(given: Mapping[str, str] | Sequence[str] | None) -> dict[str, str]:
    """Folders and keys."""
    if given is None:
        return dict(_DEFAULT_SOURCES)
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, (list, tuple)):
        return {folder: folder for folder in given}
    raise TypeError(f"data_sources must be a dict, a list or None, got {type(given).__name__}")


def sample_files(root: Path, folder: str, optional: bool) -> dict[str, Path]:
    """Files of a folder by sub-path without ending; of two that differ in their ending, ours."""
    place = root / folder
    if not place.is_dir():
        if optional:
            return {}
        of = f" on a dataset with a column {_COLUMNS[folder]!r}" if folder in _COLUMNS else ""
        raise FileNotFoundError(
            f"there is no folder {str(place)!r}; run `ltx2 data process`{of} so that it makes {folder!r}, or name another root"
        )
    found = {}
    for suffix in (LEGACY_SUFFIX, SUFFIX):
        for path in place.rglob(f"*{suffix}"):
            # Hidden files are being written.
            if not path.name.startswith(".") and path.is_file():
                found[path.relative_to(place).with_suffix("").as_posix()] = path
    return found


def matching_file(files: Mapping[str, Path], folder: str, name: str) -> Path | None:
    """The file of a sample in a folder."""
    if name in files:
        return files[name]
    latent, condition = _NUMBERED
    stem = name.rpartition("/")[2]
    if folder == CONDITIONS and stem.startswith(latent):
        return files.get(condition + stem.removeprefix(latent))
    return None


@dataclass(frozen=True)
class SampleWidths:
    """Widths of what the networks of a checkpoint give.

    Args:
        channels: Channels of video latents, default 128.
        audio_channels: Channels of audio latents, default 8.
        mel_bins: Mel bins of audio latents, default 16.
        video_text: Width of the video connector's input, default 3840, that of 2.0.
        audio_text: Width of the audio connector's input; `None` (default) where it is the video's.
    """

    channels: int = 128
    audio_channels: int = 8
    mel_bins: int = 16
    video_text: int = 3840
    audio_text: int | None = None


WIDTHS = {"2.0": SampleWidths(), "2.3": SampleWidths(video_text=4096, audio_text=2048)}
"""Of the published generations."""


class DummyDataset(torch.utils.data.Dataset[Item]):
    """Samples of random values with real keys and widths, to measure training without data.

    A sample depends on its index alone.

    Args:
        data_sources: As of [`PrecomputedDataset`]; a folder's name says what it holds.
        width, height: Size in pixels, multiples of 32, default 1024.
        num_frames: Frames, a multiple of 8 plus 1, default 25.
        frame_rate: Frames per second, default 24.0.
        length: Number of samples, default 200.
        prompt_tokens: Tokens of every caption, default 256.
        widths: What the networks give, default those of 2.0; see `WIDTHS`.
    """

    def __init__(
        self,
        data_sources: Mapping[str, str] | Sequence[str] | None = None,
        width: int = 1024,
        height: int = 1024,
        num_frames: int = 25,
        frame_rate: float = 24.0,
        length: int = 200,
        prompt_tokens: int = 256,
        widths: SampleWidths = WIDTHS["2.0"],
    ) -> None:
        check_size(height, width, 32)
        check_num_frames(num_frames, 8)
        check_positive(frame_rate=frame_rate)
        check_at_least_one(length=length, prompt_tokens=prompt_tokens)
        self.sources = _sources(data_sources)
        self.frame_rate, self.length, self.prompt_tokens, self.widths = frame_rate, length, prompt_tokens, widths
        pixels = VideoPixelShape(1, num_frames, height, width, frame_rate)
        self.duration_s = pixels.duration_s
        self.video = VideoLatentShape.from_pixel_shape(pixels, widths.channels)
        self.audio = AudioLatentShape.from_video_pixel_shape(pixels, widths.audio_channels, widths.mel_bins)

    def __len__(self) -> int:
        """Number of samples."""
        return self.length

    def __getitem__(self, index: int) -> Item:
        """One sample, in the form of [`PrecomputedDataset`]."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        noise = torch.Generator().manual_seed(index)
        return {**{key: self._sample(folder, noise) for folder, key in self.sources.items()}, "idx": index}

    def _sample(self, folder: str, noise: torch.Generator) -> Sample:
        _, _, frames, height, width = self.video
        if "mask" in folder:
            shape = (self.audio.frames,) if "audio" in folder else (frames, height, width)
            return {"mask": (torch.rand(shape, generator=noise) > 0.5).float()}
        if "audio" in folder:
            latents = torch.randn(self.audio[1:], generator=noise)
            steps, bins = self.audio[2:]
            return {"latents": latents, "num_time_steps": steps, "frequency_bins": bins, "duration": self.duration_s}
        if "latents" in folder:
            latents = torch.randn(self.video[1:], generator=noise).to(torch.bfloat16)
            grid = {"num_frames": frames, "height": height, "width": width}
            return {"latents": latents, **grid, "fps": float(self.frame_rate)}
        widths = {VIDEO_TEXT: self.widths.video_text, AUDIO_TEXT: self.widths.audio_text}
        return {
            name: torch.randn(self.prompt_tokens, size, generator=noise).to(torch.bfloat16)
            for name, size in widths.items()
            if size is not None
        }

    def empty_prompt(self) -> Sample:
        """Random features of one token, in the place of those of the empty caption."""
        noise = torch.Generator().manual_seed(self.length)
        return {name: rows[:1] for name, rows in self._sample(CONDITIONS, noise).items()}  # type: ignore[index]
