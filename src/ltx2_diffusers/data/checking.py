"""Looking at what was computed: numbers of a dataset, its latents decoded back, and a contact sheet.

Shapes: C channels, F', h, w latent frames, rows and columns, L audio latents, M their mel bins, f and H, W frames, rows and
columns of pixels, N samples.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import PIL.Image
import torch

from ..atomic import complete_file
from ..checks import check_at_least_one, check_finite
from ..media.pixels import decoded_frames
from ..media.waveforms import fit_audio, write_audio
from ..media.writing import write_video
from ..models.video_vae_tiling_config import SpatialTilingConfig, TemporalTilingConfig, TilingConfig
from ..pipelines.arguments import Delivery
from ..pipelines.engine import decode_audio, with_decoder_noise
from ..pipelines.generation import LTX2GenerationPipeline
from .dataset import (
    AUDIO_LATENTS,
    AUDIO_MASKS,
    CONDITIONS,
    LATENTS,
    REFERENCE_AUDIO_LATENTS,
    REFERENCE_LATENTS,
    VIDEO_MASKS,
    matching_file,
    precomputed_folder,
    sample_files,
)
from .metadata import read_clips
from .samples import VIDEO_TEXT, Sample, read_sample
from .sheet import MAX_CARDS, Card, draw_sheet, fitted

DECODED = {LATENTS: "decoded_videos", REFERENCE_LATENTS: "decoded_reference_videos", AUDIO_LATENTS: "decoded_audio"}
"""Folders of samples, and those that hold them decoded."""
SHEET = "contact_sheet.png"
# The tensor that a sample of a folder holds, and its axes; a mask has those of what it masks.
_CONTENTS: Mapping[str, tuple[str, int | None]] = {
    **dict.fromkeys((LATENTS, REFERENCE_LATENTS), ("latents", 4)),
    **dict.fromkeys((AUDIO_LATENTS, REFERENCE_AUDIO_LATENTS), ("latents", 3)),
    **dict.fromkeys((VIDEO_MASKS, AUDIO_MASKS), ("mask", None)),
    CONDITIONS: (VIDEO_TEXT, 2),
}
# A clip need not have sound.
_OPTIONAL = (AUDIO_LATENTS, AUDIO_MASKS)
# Tiles of the Lightricks trainer: 512 pixels overlapping by 128, 128 frames overlapping by 24.
_TILES = TilingConfig(SpatialTilingConfig(512, 128), TemporalTilingConfig(128, 24))
_DECODING_ORDER = (AUDIO_LATENTS, LATENTS, REFERENCE_LATENTS)
COMPRESSION = (32, 8)
"""Pixels and frames per latent of all published checkpoints."""
# Sound may be longer or shorter than its video by two and a half audio latents.
_SOUND_SLACK_S = 0.1
# What lies further from the others, in standard deviations as the median deviation tells them, is worth a look; so is a
# clip without any contrast. Normalised latents have a mean near 0 and a deviation near 1.
_FAR, _LEAST_FAR, _FLAT = 6.0, 0.15, 0.05
_MAD_TO_DEVIATION = 1.4826


@dataclass
class DatasetCheck:
    """What a folder of precomputed samples holds.

    Args:
        root: The folder.
        samples: Clips whose required files are all there and sound.
        counts: Files by folder.
        bytes: Their sizes on disk.
        missing: Samples that lack a file, by the folder that lacks it.
        orphans: Files without a sample, by folder.
        without_sound: Samples without audio latents, where others have some.
        damaged: Files that cannot be read, or hold numbers that are not finite, with the reasons.
        mismatched: Samples whose parts do not fit together, with the reasons.
        sizes: Samples by width, height and frames in pixels.
        rates: Samples by frames per second.
        video_s, audio_s: Seconds in all.
        tokens: Fewest, median and most tokens of a caption.
        outliers: Samples whose latents differ from the others, with their mean and standard deviation.
    """

    root: Path
    samples: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)
    orphans: dict[str, list[str]] = field(default_factory=dict)
    without_sound: list[str] = field(default_factory=list)
    damaged: dict[Path, str] = field(default_factory=dict)
    mismatched: dict[str, str] = field(default_factory=dict)
    sizes: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    rates: Counter[float] = field(default_factory=Counter)
    video_s: float = 0.0
    audio_s: float = 0.0
    tokens: tuple[int, int, int] | None = None
    outliers: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def is_sound(self) -> bool:
        """Whether nothing is missing, damaged or mismatched; outliers and orphans are only worth a look."""
        return not (self.missing or self.damaged or self.mismatched)


@dataclass
class DecodeReport:
    """What was decoded.

    Args:
        written: Clips, pictures and sounds.
        damaged: Files that cannot be decoded, with the reasons.
        sheet: The contact sheet; `None` if there were no pictures.
    """

    written: list[Path] = field(default_factory=list)
    damaged: dict[Path, str] = field(default_factory=dict)
    sheet: Path | None = None


@dataclass(frozen=True)
class DecodePlan:
    """Which folders are decoded.

    Args:
        places: Folder of samples and folder to write to (`None` to write nothing), by what the first one is called in a
            dataset.
    """

    places: Mapping[str, tuple[Path, Path | None]]

    @classmethod
    def of(
        cls, latents_dir: Path, output_dir: Path, audio_latents_dir: Path | None = None, with_audio: bool = True
    ) -> "DecodePlan":
        """What is meant by a folder of latents.

        Args:
            latents_dir: A dataset with `.precomputed` or that itself, of which all kinds of latents are decoded, into
                `decoded_videos`, `decoded_reference_videos` and `decoded_audio`; or one folder of video latents, decoded into
                `output_dir` itself, with its sound into `decoded_audio` beside it.
            output_dir: Where to write.
            audio_latents_dir: Folder of the sound; `None` for the `audio_latents` of the dataset, or beside the folder.
            with_audio: Whether sound is decoded. Default true.

        Raises:
            FileNotFoundError: If there are no latents.
        """
        root = precomputed_folder(latents_dir)
        heard = output_dir / DECODED[AUDIO_LATENTS]
        places: dict[str, tuple[Path, Path | None]] = {
            kind: (root / kind, output_dir / name) for kind, name in DECODED.items() if (root / kind).is_dir()
        }
        if not places:
            if not root.is_dir() or not sample_files(root.parent, root.name, False):
                raise FileNotFoundError(
                    f"{str(latents_dir)!r} holds no latents; give a dataset, its .precomputed or a folder of latents"
                )
            heard = output_dir.absolute().parent / DECODED[AUDIO_LATENTS]
            places = {LATENTS: (root, output_dir)}
            if (root.parent / AUDIO_LATENTS).is_dir():
                places[AUDIO_LATENTS] = (root.parent / AUDIO_LATENTS, heard)
        if audio_latents_dir is not None:
            if not audio_latents_dir.is_dir():
                raise FileNotFoundError(f"there is no folder {str(audio_latents_dir)!r} of audio latents")
            places[AUDIO_LATENTS] = (audio_latents_dir, heard)
        if not with_audio:
            places.pop(AUDIO_LATENTS, None)
        return cls(places)


class Decoder:
    """Turns the latents of samples back into pictures and sound.

    Args:
        pipeline: With its video VAE and, for sound, audio VAE and vocoder.
        tiling: Whether video is decoded in tiles, so that memory does not grow with it. Default true.
        seed: Seed of noise that a decoder adds, if it does; `None` for another one each time.
    """

    def __init__(self, pipeline: LTX2GenerationPipeline, tiling: bool = True, seed: int | None = None) -> None:
        self.pipeline = pipeline
        self.tiling = tiling
        device = pipeline._execution_device
        self.generator = None if seed is None else torch.Generator(device).manual_seed(seed)

    @property
    def compression(self) -> tuple[int, int]:
        """Pixels and frames per latent."""
        return self.pipeline.vae_spatial_compression_ratio, self.pipeline.vae_temporal_compression_ratio

    @torch.no_grad()
    def frames(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """Bytes `[f, H, W, 3]`, piece by piece, of normalised video latents `[C, F', h, w]`."""
        pipeline = self.pipeline
        pipeline.require("vae")
        latents = latents[None].to(pipeline._execution_device, torch.float32)
        latents, timestep = with_decoder_noise(pipeline, latents, Delivery(generator=self.generator))
        latents = pipeline.vae.denormalize_latents(latents).to(pipeline.vae.dtype)
        if self.tiling:
            pieces = pipeline.vae.decode_in_tiles(latents, _TILES, timestep, generator=self.generator)
        else:
            pieces = iter([pipeline.vae.decode(latents, timestep, return_dict=False)[0]])
        for piece in pieces:
            yield from decoded_frames(piece[0])

    @torch.no_grad()
    def sound(self, latents: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The waveform `[C, N]` of normalised audio latents `[C, L, M]`, and its samples per second."""
        self.pipeline.require("audio_vae", "vocoder")
        latents = latents[None].to(self.pipeline._execution_device, torch.float32)
        waveform = decode_audio(self.pipeline, latents, "pt")[0].float().cpu()
        return waveform, self.pipeline.vocoder.config.output_sampling_rate


def decode_dataset(
    decoder: Decoder,
    plan: DecodePlan,
    sheet: Path,
    captions: Mapping[str, str] | None = None,
    max_samples: int | None = None,
    on_sample: Callable[[str], None] = lambda _name: None,
) -> DecodeReport:
    """Decode latents into clips (a picture where there is one frame) and sounds, and draw a contact sheet of the clips.

    Args:
        decoder: See there.
        plan: Which folders, and where clips and sounds are written. A clip has its own sound.
        sheet: PNG file of the contact sheet, which shows the first, the middle and the last frame of at most 60 samples.
        captions: Texts of the samples for the sheet, by name; see [`captions_of`].
        max_samples: Most samples, spread evenly; `None` for all.
        on_sample: Called with the name of each sample when it is done.
    """
    if max_samples is not None:
        check_at_least_one(max_samples=max_samples)
    report, cards = DecodeReport(), []
    files = {kind: sample_files(place.parent, place.name, False) for kind, (place, _) in plan.places.items()}
    names = sorted({name for found in files.values() for name in found})
    chosen = _spread(names, max_samples)
    drawn = set(_spread([name for name in chosen if name in files.get(LATENTS, ())], MAX_CARDS))
    for name in chosen:
        samples: dict[str, Sample] = {}
        for kind, found in files.items():
            with _noted(report.damaged, found.get(name)) as path:
                if path is not None:
                    samples[kind] = _read(kind, path)
        stills: list[np.ndarray] = []
        for kind in (kind for kind in _DECODING_ORDER if kind in samples):
            with _noted(report.damaged, files[kind][name]):
                if (written := _decode(decoder, plan, name, samples, kind, stills)) is not None:
                    report.written.append(written)
        if name in drawn and stills:
            cards.append(_card(name, samples, stills, (captions or {}).get(name), decoder.compression))
        on_sample(name)
    if cards:
        report.sheet = draw_sheet(sheet, cards, f"{len(cards)} of {len(names)} samples")
    return report


def captions_of(dataset: Path) -> dict[str, str]:
    """The captions of a dataset by the names of its samples.

    Args:
        dataset: Metadata file, or folder; see [`~ltx2_diffusers.data.metadata.read_clips`].
    """
    return {clip.name: clip.caption for clip in read_clips(dataset)}


def check_dataset(
    root: Path, compression: tuple[int, int] = COMPRESSION, on_file: Callable[[Path], None] = lambda _path: None
) -> DatasetCheck:
    """Count and measure what was computed, and name what is missing, damaged or odd.

    Args:
        root: A dataset with `.precomputed`, or that itself.
        compression: Pixels and frames per latent, default those of all published checkpoints.
        on_file: Called after each file.

    Raises:
        FileNotFoundError: If there are no samples.
    """
    check = DatasetCheck(precomputed_folder(root))
    files = {name: sample_files(check.root, name, True) for name in _CONTENTS if (check.root / name).is_dir()}
    main = LATENTS if files.get(LATENTS) else AUDIO_LATENTS
    if not files.get(main):
        raise FileNotFoundError(f"{str(check.root)!r} holds no samples; run `ltx2 data process` first")
    check.counts = {folder: len(found) for folder, found in files.items()}
    check.bytes = {folder: sum(path.stat().st_size for path in found.values()) for folder, found in files.items()}
    partners = {
        name: {folder: path for folder, found in files.items() if (path := matching_file(found, folder, name))}
        for name in sorted(files[main])
    }
    _find_missing(check, files, partners, main)
    latents, tokens = {}, []
    for name, paths in partners.items():
        samples: dict[str, Sample] = {}
        for folder, path in paths.items():
            with _noted(check.damaged, path):
                samples[folder] = _read(folder, path)
            on_file(path)
        if (reason := _measure(check, samples, compression)) is not None:
            check.mismatched[name] = reason
        if main in samples:
            values = _tensor(samples[main]).float()
            latents[name] = float(values.mean()), float(values.std())
        if CONDITIONS in samples:
            tokens.append(len(_tensor(samples[CONDITIONS], VIDEO_TEXT)))
        required = [folder for folder in files if folder not in _OPTIONAL or folder == main]
        check.samples += reason is None and all(folder in samples for folder in required) and CONDITIONS in samples
    check.tokens = (min(tokens), round(median(tokens)), max(tokens)) if tokens else None
    check.outliers = {name: latents[name] for name in _odd(latents)}
    return check


def _find_missing(
    check: DatasetCheck, files: Mapping[str, Mapping[str, Path]], partners: Mapping[str, Mapping[str, Path]], main: str
) -> None:
    """Note which samples lack which files, and which files have no sample."""
    required = [folder for folder in (*files, CONDITIONS) if folder not in (main, *_OPTIONAL)]
    for folder in dict.fromkeys(required):
        if lacking := [name for name, paths in partners.items() if folder not in paths]:
            check.missing[folder] = lacking
    if main == LATENTS and AUDIO_LATENTS in files:
        check.without_sound = [name for name, paths in partners.items() if AUDIO_LATENTS not in paths]
    for folder, found in files.items():
        used = {paths[folder] for paths in partners.values() if folder in paths}
        if alone := sorted(name for name, path in found.items() if path not in used):
            check.orphans[folder] = alone


def _measure(check: DatasetCheck, samples: Mapping[str, Sample], compression: tuple[int, int]) -> str | None:
    """Add the parts of a sample to the sums; say what does not fit together."""
    video, sound = samples.get(LATENTS), samples.get(AUDIO_LATENTS)
    sound_s = float(sound.get("duration", 0.0)) if sound is not None else 0.0
    check.audio_s += sound_s
    if video is None:
        return None
    grid, rate = _grid(video), float(video.get("fps", 0.0))
    told = [video.get(name) for name in ("num_frames", "height", "width")]
    num_frames = _in_pixels(grid, compression)[2]
    check.sizes[_in_pixels(grid, compression)] += 1
    check.rates[rate] += 1
    is_clip = num_frames > 1
    video_s = num_frames / rate if is_clip and rate > 0 else 0.0
    check.video_s += video_s
    if told != list(grid):
        return f"its numbers say {told} latent frames, rows and columns, its latents are {list(grid)}"
    if not rate > 0:
        return f"its frame rate is {rate}"
    if sound is not None and is_clip and abs(sound_s - video_s) > _SOUND_SLACK_S:
        return f"its sound lasts {sound_s:.2f} s, its video {video_s:.2f} s"
    if VIDEO_MASKS in samples and tuple(_tensor(samples[VIDEO_MASKS], "mask").shape) != grid:
        return f"its mask has shape {list(_tensor(samples[VIDEO_MASKS], 'mask').shape)}, its latents {list(grid)}"
    if CONDITIONS in samples and not len(_tensor(samples[CONDITIONS], VIDEO_TEXT)):
        return "its caption has no tokens"
    return (
        None if REFERENCE_LATENTS not in samples else _misfit(samples[REFERENCE_LATENTS], grid, video_s, compression)
    )


def _misfit(reference: Sample, grid: tuple[int, int, int], video_s: float, compression: tuple[int, int]) -> str | None:
    """Why a reference does not fit its clip, of which it may be a smaller or a slower copy."""
    own = _grid(reference)
    factors = {Fraction(whole, part) for whole, part in zip(grid[1:], own[1:])}
    if len(factors) > 1 or next(iter(factors)).denominator > 1:
        return f"its reference has {own[1]} x {own[2]} latents, no whole part of its own {grid[1]} x {grid[2]}"
    rate = float(reference.get("fps", 0.0))
    reference_s = _in_pixels(own, compression)[2] / rate if own[0] > 1 and rate > 0 else 0.0
    if video_s and abs(reference_s - video_s) > compression[1] / max(rate, 1.0):
        return f"its reference lasts {reference_s:.2f} s, its video {video_s:.2f} s"
    return None


def _odd(latents: Mapping[str, tuple[float, float]]) -> list[str]:
    """Samples whose mean or standard deviation lies far from the others', or without any contrast."""
    odd = {name for name, (_, deviation) in latents.items() if deviation < _FLAT}
    for values in ({name: pair[part] for name, pair in latents.items()} for part in ((0, 1) if latents else ())):
        middle = median(values.values())
        spread = median(abs(value - middle) for value in values.values()) * _MAD_TO_DEVIATION
        far = max(_FAR * spread, _LEAST_FAR)
        odd |= {name for name, value in values.items() if abs(value - middle) > far}
    return sorted(odd)


def _decode(
    decoder: Decoder, plan: DecodePlan, name: str, samples: Mapping[str, Sample], kind: str, stills: list[np.ndarray]
) -> Path | None:
    """Decode one part of a sample, into a file if the plan has a place for it; keep three frames of a clip."""
    folder = plan.places[kind][1]
    if kind == AUDIO_LATENTS:
        if folder is None:
            return None
        return write_audio(folder / f"{name}.wav", *decoder.sound(_tensor(samples[kind])))
    sample = samples[kind]
    count = _in_pixels(_grid(sample), decoder.compression)[2]
    places = [0, count // 2, count - 1] if kind == LATENTS else []
    frames = _watched(decoder.frames(_tensor(sample)), places, stills)
    if folder is None:
        for _ in frames:
            pass
        return None
    if count == 1:
        picture = PIL.Image.fromarray(next(frames)[0].numpy())
        with complete_file(output := folder / f"{name}.png") as partial:
            picture.save(partial)
        return output
    rate = _rate(sample)
    sound: tuple[Any, Any] = (None, None)
    if kind == LATENTS and AUDIO_LATENTS in samples:
        waveform, sampling_rate = decoder.sound(_tensor(samples[AUDIO_LATENTS]))
        sound = fit_audio(waveform, count / rate, sampling_rate), sampling_rate
    return write_video(folder / f"{name}.mp4", frames, rate, *sound)


def _watched(
    pieces: Iterator[torch.Tensor], places: Sequence[int], stills: list[np.ndarray]
) -> Iterator[torch.Tensor]:
    """Pass pieces `[f, H, W, 3]` of a clip on, and keep the frames at some places."""
    start = 0
    for piece in pieces:
        stills += [piece[place - start].numpy() for place in places if start <= place < start + len(piece)]
        start += len(piece)
        yield piece


def _card(
    name: str,
    samples: Mapping[str, Sample],
    stills: Sequence[np.ndarray],
    caption: str | None,
    compression: tuple[int, int],
) -> Card:
    """What the sheet shows of a sample."""
    sample, sound = samples[LATENTS], samples.get(AUDIO_LATENTS)
    height, width = stills[0].shape[:2]
    # The whole frames of a sheet would not fit into memory.
    small = [fitted(PIL.Image.fromarray(still)) for still in stills]
    if _grid(sample)[0] == 1:
        return Card(name, caption, f"{width}x{height}, picture", small[:1])
    num_frames = _in_pixels(_grid(sample), compression)[2]
    heard = "no sound" if sound is None else f"sound {float(sound.get('duration', 0.0)):.2f} s"
    rate = _rate(sample)
    facts = f"{width}x{height}x{num_frames}, {rate:g} fps, {num_frames / rate:.2f} s, {heard}"
    return Card(name, caption, facts, small)


def _read(folder: str, path: Path) -> Sample:
    """A sample that holds what its folder promises, in finite numbers.

    Raises:
        ValueError: If it does not; the message names the file.
    """
    sample = read_sample(path)
    name, ndim = _CONTENTS[folder]
    value = sample.get(name)
    if not isinstance(value, torch.Tensor) or (ndim is not None and value.ndim != ndim):
        shape = list(value.shape) if isinstance(value, torch.Tensor) else "none"
        raise ValueError(
            f"{str(path)!r} has to hold {name!r} with {ndim} axes, but its shape is {shape}; process it anew"
        )
    for key, tensor in sample.items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.numel():
            check_finite(f"{key!r} of {str(path)!r}", tensor, "process it anew")
    return sample


def _tensor(sample: Sample, name: str = "latents") -> torch.Tensor:
    """A tensor that is there, as `_read` has seen."""
    return cast(torch.Tensor, sample[name])


def _rate(sample: Sample) -> float:
    """Frames per second.

    Raises:
        ValueError: If they are not told.
    """
    rate = float(sample.get("fps", 0.0))
    if not rate > 0:
        raise ValueError(f"its frame rate (fps) is {rate:g}; process it anew")
    return rate


def _grid(sample: Sample) -> tuple[int, int, int]:
    """Latent frames, rows and columns."""
    frames, height, width = _tensor(sample).shape[-3:]
    return frames, height, width


def _in_pixels(grid: tuple[int, int, int], compression: tuple[int, int]) -> tuple[int, int, int]:
    """Width, height and frames of latents."""
    frames, height, width = grid
    return width * compression[0], height * compression[0], 1 + (frames - 1) * compression[1]


def _spread(names: Sequence[str], most: int | None) -> list[str]:
    """At most that many names, in even distances."""
    count = len(names) if most is None else min(most, len(names))
    return [names[index * len(names) // count] for index in range(count)]


@contextmanager
def _noted(damaged: dict[Path, str], path: Path | None) -> Iterator[Path | None]:
    """Note what is wrong with a file, and go on."""
    try:
        yield path
    except (ValueError, OSError) as error:
        damaged[path or Path()] = str(error)
