"""From a dataset of clips to the precomputed samples that training reads: the whole of `ltx2 data process`.

A run that is killed leaves whole files only, and the next one goes on. Clips that cannot be used are named and left out.
"""

import hashlib
import json
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]  # it ships no types

from ..atomic import check_folder_writable, temporary_folder, write_json
from ..checkpoints.json_files import read_object
from ..devices import Process, launched
from .clips import IMPOSSIBLE, OFF, STORED, ClipEncoder, Content, ProcessOptions
from .dataset import (
    AUDIO_LATENTS,
    AUDIO_MASKS,
    CONDITIONS,
    EMPTY_PROMPT,
    LATENTS,
    REFERENCE_AUDIO_LATENTS,
    REFERENCE_LATENTS,
    VIDEO_MASKS,
)
from .encoding import Source, check_caption_length, encode_captions, release_memory
from .metadata import Clip, read_clips
from .samples import LEGACY_SUFFIX, SUFFIX, VIDEO_TEXT, read_notes, write_sample

SETTINGS_FILE, SKIPPED_FILE = "process.json", "skipped.json"
"""Beside the samples: how they were made, and which clips are not among them and why."""
# Which folder holds what is made of a file of a clip, beside its video and its sound.
_FOLDERS = {
    "reference_video": REFERENCE_LATENTS,
    "reference_audio": REFERENCE_AUDIO_LATENTS,
    "video_mask": VIDEO_MASKS,
    "audio_mask": AUDIO_MASKS,
}
_MEDIA_FOLDERS = (LATENTS, AUDIO_LATENTS, *_FOLDERS.values())
# Notes in the metadata of a sample: what it was made of and how, the times and digests of its files, and what became of the
# sound.
_MADE_WITH, _FILES, _SOUND = "made_with", "files", "sound"
# Longest name of a file in the usual file systems, in bytes.
_LONGEST_NAME = 255
# Settings that change what is encoded of a text, those that change the text, and those of all else.
_OF_CAPTIONS = ("checkpoint", "text_encoder", "text_encoder_in_8bit", "max_sequence_length")
_OF_TEXTS = ("remove_llm_prefixes", "lora_trigger")
_OF_MEDIA = (
    *("checkpoint", "resolution_buckets", "frame_rate", "reshape_mode", "vae_tiling", "audio_durations"),
    *("reference_downscale_factor", "reference_temporal_scale_factor"),
)
# Other processes may have more to do, for as long as a data set takes.
_LONGEST_WAIT = timedelta(days=30)


@dataclass(frozen=True)
class Problem:
    """A clip that is not used, or something of it.

    Args:
        clip: Name of its samples.
        file: Its main media file.
        reason: What is wrong with it.
    """

    clip: str
    file: str
    reason: str

    def __str__(self) -> str:
        # Names that are no text in Unicode cannot be printed.
        return f"{self.file}: {self.reason}".encode(errors="backslashreplace").decode()


@dataclass
class Report:
    """What became of the clips of a dataset.

    Args:
        folder: Where the samples are.
        total: Clips of the dataset.
        made: Clips of which something was encoded.
        kept: Clips that were there already.
        skipped: Clips that cannot be used.
        without_sound: Clips that are used without sound, where sound was wanted.
        remarks: What somebody may want to know of clips that are used.
    """

    folder: Path
    total: int
    made: int = 0
    kept: int = 0
    skipped: list[Problem] = field(default_factory=list)
    without_sound: list[Problem] = field(default_factory=list)
    remarks: list[Problem] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Take over what another process did."""
        self.made += other.made
        self.kept += other.kept
        for mine, others in zip(self._lists, other._lists):
            mine.extend(others)

    @property
    def _lists(self) -> tuple[list[Problem], list[Problem], list[Problem]]:
        return self.skipped, self.without_sound, self.remarks

    def summary(self) -> str:
        """One line with all counts."""
        parts = [f"{self.made} processed", f"{self.kept} there already", f"{len(self.skipped)} skipped"]
        silent = f"; {len(self.without_sound)} without sound" if self.without_sound else ""
        return f"{self.total} clips: {', '.join(parts)}{silent}"


def process(options: ProcessOptions) -> Report:
    """Make the samples of a dataset.

    Whoever is started by `accelerate launch` or `torchrun` takes his share of the clips; the first process reports.

    Args:
        options: What to make.

    Returns:
        What became of the clips; it also stands in `skipped.json` beside the samples.

    Raises:
        FileNotFoundError: If the dataset or a file that it names does not exist.
        ValueError: If an option is not possible, the folder holds samples that were made with others, or no clip can be
            used.
        ChildProcessError: If one of several processes dies.
    """
    clips = read_clips(options.dataset, options.columns)
    share = launched()
    if share.world > 1 and options.num_processes > 1:
        raise ValueError(
            f"num_processes is {options.num_processes}, but a launcher has started {share.world} processes; leave it out"
        )
    options.source.check()
    _check_columns(options, clips)
    check_folder_writable(options.folder)
    _check_settings(options)
    report = Report(options.folder, len(clips))
    if options.num_processes > 1:
        parts = _spawned(options, clips)
    elif share.world > 1:
        parts = _gathered(_Worker(options, clips, share).run(), share)
    else:
        parts = [_Worker(options, clips, share).run()]
    for part in parts:
        report.add(part)
    _finish(report, clips, writes=share.rank == 0)
    return report


def is_first_process() -> bool:
    """Whether this is the process that reports, of those that a launcher started."""
    return launched().rank == 0


def _check_columns(options: ProcessOptions, clips: Sequence[Clip]) -> None:
    """Options that go with what a dataset has."""
    if options.resolution_buckets is None and any(clip.video for clip in clips):
        raise ValueError(
            "the dataset has videos, which need resolution_buckets, the sizes that they are brought to; give 960x544x49, say"
        )
    factors = (options.reference_downscale_factor, options.reference_temporal_scale_factor)
    if max(factors) > 1 and not any(clip.reference_video for clip in clips):
        warnings.warn("the dataset has no references, so their factors are not used", stacklevel=3)
    if options.audio_durations is not None and all(clip.video for clip in clips):
        warnings.warn("the dataset has no sounds without video, so audio_durations is not used", stacklevel=3)
    if options.with_audio is False and not any(clip.video for clip in clips):
        raise ValueError("with_audio is False, but the dataset holds sounds alone, of which nothing would be left")


def _settings_before(options: ProcessOptions) -> dict[str, Any]:
    """How the samples that are there and stay were made; empty if there are none."""
    path = options.folder / SETTINGS_FILE
    # A run that could use no clip has left settings, but nothing that could be mixed.
    places = (options.folder / folder for folder in (LATENTS, AUDIO_LATENTS))
    made = (sample for place in places for sample in place.rglob(f"[!.]*{SUFFIX}"))
    if options.overwrite or not path.is_file() or next(made, None) is None:
        return {}
    try:
        return read_object(path)
    except ValueError:
        raise ValueError(
            f"{str(path)!r}, which says how the samples beside it were made, is damaged; overwrite to make all anew"
        ) from None


def _check_settings(options: ProcessOptions) -> None:
    """Refuse to mix samples that were made in different ways."""
    before = _settings_before(options)
    for name, value in options.settings.items():
        if name in before and before[name] != value:
            raise ValueError(
                f"{str(options.folder)!r} holds samples that were made with {name} {before[name]!r}, not {value!r}; use that, "
                "another output_dir, or overwrite to make all anew"
            )


def _finish(report: Report, clips: Sequence[Clip], writes: bool) -> None:
    """Say in the folder and to the caller which clips are not used."""
    names = {clip.name for clip in clips}
    first = report.folder / (LATENTS if any(clip.video for clip in clips) else AUDIO_LATENTS)
    files = (path for suffix in (SUFFIX, LEGACY_SUFFIX) for path in first.rglob(f"*{suffix}"))
    strange = sorted(
        {path.relative_to(first).with_suffix("").as_posix() for path in files if path.name[0] != "."} - names
    )
    if strange:
        reason = f"{len(strange)} samples of the folder, such as this, are of no clip of the dataset, but would be trained on"
        report.remarks.append(Problem(strange[0], str(first / strange[0]), reason))
    report.remarks += _lacking(clips)
    if writes:
        kinds = ("skipped", "without_sound", "remarks")
        lists = {name: [asdict(problem) for problem in getattr(report, name)] for name in kinds}
        write_json(report.folder / SKIPPED_FILE, lists)
    if report.made + report.kept == 0:
        raise ValueError(f"none of the {report.total} clips can be used; the first: {report.skipped[0]}")


def _lacking(clips: Sequence[Clip]) -> Iterator[Problem]:
    """What some clips have and others do not: training that reads it leaves those out."""
    for kind, folder in _FOLDERS.items():
        without = [clip for clip in clips if kind not in clip.files]
        if 0 < len(without) < len(clips):
            reason = f"{len(without)} of {len(clips)} clips, such as this, have no {kind}; training with {folder} leaves them out"
            yield Problem(without[0].name, str(without[0].video or without[0].audio), reason)


def _spawned(options: ProcessOptions, clips: Sequence[Clip]) -> list[Report]:
    """Work in several processes of this machine."""
    count = min(options.num_processes, len(clips))
    with temporary_folder(options.folder) as answers:
        try:
            torch.multiprocessing.spawn(_spawned_worker, (options, clips, count, answers), nprocs=count)
        except torch.multiprocessing.ProcessExitedException as error:
            raise ChildProcessError(f"{error}; what is written is whole, so run it again to go on") from error
        results = [pickle.loads((answers / str(rank)).read_bytes()) for rank in range(count)]
    for result in results:
        if isinstance(result, str):
            raise ValueError(result)
    return results


def _spawned_worker(rank: int, options: ProcessOptions, clips: Sequence[Clip], count: int, answers: Path) -> None:
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    for log in (logging, transformers_logging):
        # Those of several processes would overwrite each other.
        log.disable_progress_bar()
    result: Report | str
    try:
        result = _Worker(options, clips, Process(rank, count, rank)).run()
    except (ValueError, OSError) as error:
        # What a user did wrong is told once and in one line, by the process that he started.
        result = str(error)
    (answers / str(rank)).write_bytes(pickle.dumps(result))


def _gathered(report: Report, share: Process) -> list[Report]:
    """The reports of all processes that a launcher started, in each of them."""
    reports: list[Any] = [None] * share.world
    torch.distributed.init_process_group("gloo", timeout=_LONGEST_WAIT)
    try:
        torch.distributed.all_gather_object(reports, report)
    finally:
        torch.distributed.destroy_process_group()
    return reports


class _Worker:
    """Encodes a share of the clips.

    Args:
        options: What to make.
        clips: All clips of the dataset.
        share: Which of them.
    """

    def __init__(self, options: ProcessOptions, clips: Sequence[Clip], share: Process) -> None:
        self.options, self.share, self.all_clips = options, share, clips
        self.clips = list(clips[share.rank :: share.world])
        self.settings = options.settings
        self.source = _on_own_device(options.source, share.local)
        self.report = Report(options.folder, len(self.clips))
        self.stored_settings = _settings_before(options)

    def run(self) -> Report:
        """Encode all media, then the captions of the clips that can be used."""
        made = self._process_media()
        release_memory()
        skipped = {problem.clip for problem in self.report.skipped}
        usable = [clip for clip in self.clips if clip.name not in skipped]
        made |= self._process_captions(usable)
        self.report.made, self.report.kept = len(made), len(usable) - len(made)
        return self.report

    def _process_media(self) -> set[str]:
        stale = [clip for clip in self.clips if self._can_be_stored(clip) and not self._is_there(clip)]
        if not stale:
            return set()
        encoder = ClipEncoder(self.options, self.source.load_media(), self.all_clips)
        self._write_settings(_OF_MEDIA)
        made = set()
        for clip in self._progress(stale, "clips"):
            # Another run may have made it by now.
            if self._is_there(clip):
                continue
            # An older sample of the clip must not be taken for it, nor be mixed with what is new.
            self._path(_main_folder(clip), clip).unlink(missing_ok=True)
            try:
                notes = {_MADE_WITH: self._media_mark(clip), _FILES: _files_of(clip)}
                samples, sound = encoder.encode(clip)
            except (ValueError, OSError) as error:
                self._note(self.report.skipped, clip, str(error))
                continue
            self._write(clip, samples, {**notes, _SOUND: sound})
            made.add(clip.name)
            self._note_sound(clip, sound)
            for remark in encoder.remarks:
                self._note(self.report.remarks, clip, remark)
        return made

    def _can_be_stored(self, clip: Clip) -> bool:
        """Whether samples can have the clip's name and its caption be read; if not, notes why."""
        try:
            _check_storable(clip)
        except ValueError as error:
            self._note(self.report.skipped, clip, str(error))
            return False
        return True

    def _write(self, clip: Clip, samples: dict[str, Content], notes: dict[str, str]) -> None:
        """Write what was made of a clip; the main file comes last, so that a sample that has it is whole."""
        main = _main_folder(clip)
        for folder in _MEDIA_FOLDERS:
            if folder not in samples:
                self._path(folder, clip).unlink(missing_ok=True)
        for folder in sorted(samples, key=lambda name: name == main):
            write_sample(self._path(folder, clip), *samples[folder], notes)

    def _process_captions(self, clips: Sequence[Clip]) -> set[str]:
        """Encode captions, and in one process the empty one."""
        texts = {self._path(CONDITIONS, clip): self.options.caption(clip) for clip in clips}
        owners = {self._path(CONDITIONS, clip): clip for clip in clips}
        if self.share.rank == 0:
            texts[self.options.folder / EMPTY_PROMPT] = ""
        stale = {path for path, text in texts.items() if not self._is_fresh(path, self._caption_mark(text))}
        if not stale:
            return set()
        # Captions of like length waste no padding.
        paths = sorted(texts, key=lambda path: len(texts[path]))
        pipeline, length = self.source.load_text(), self.options.max_sequence_length
        check_caption_length(pipeline, length)
        self._write_settings((*_OF_CAPTIONS, *_OF_TEXTS))
        size = self.options.batch_size
        # The last bit of a caption depends on its batch. That has to be the one of a run that was not killed.
        batches = [paths[start : start + size] for start in range(0, len(paths), size)]
        for batch in self._progress([batch for batch in batches if stale & set(batch)], "batches of captions"):
            features = encode_captions(pipeline, [texts[path] for path in batch], length)
            for path, tensors in zip(batch, features):
                if path in stale:
                    write_sample(path, tensors, {}, {_MADE_WITH: self._caption_mark(texts[path])})
                    self._note_caption(owners.get(path), texts[path], len(tensors[VIDEO_TEXT]))
        return {owners[path].name for path in stale if path in owners}

    def _is_there(self, clip: Clip) -> bool:
        """Whether all that is wanted of a clip is there; if so, notes what is to be told of its sound again."""
        mark, notes = self._media_mark(clip), read_notes(self._path(_main_folder(clip), clip))
        if self.options.overwrite or notes.get(_MADE_WITH) != mark or not _has_same_files(clip, notes):
            return False
        sound, folders = notes.get(_SOUND, OFF), [_FOLDERS[kind] for kind in clip.files if kind in _FOLDERS]
        if not self.options.wants_sound:
            folders = [folder for folder in folders if folder != AUDIO_MASKS]
        else:
            if sound == OFF or (sound == IMPOSSIBLE and self.options.with_audio):
                return False
            folders += [AUDIO_LATENTS] * (sound == STORED)
        if not all(self._is_fresh(self._path(folder, clip), mark) for folder in folders):
            return False
        self._note_sound(clip, sound)
        return True

    def _is_fresh(self, path: Path, mark: str) -> bool:
        return not self.options.overwrite and read_notes(path).get(_MADE_WITH) == mark

    def _media_mark(self, clip: Clip) -> str:
        files = {kind: (path.name, path.stat().st_size) for kind, path in clip.files.items()}
        return _digest([self._settings(_OF_MEDIA), files])

    def _caption_mark(self, text: str) -> str:
        return _digest([self._settings(_OF_CAPTIONS), text])

    def _settings(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: self.settings[name] for name in names}

    def _path(self, folder: str, clip: Clip) -> Path:
        return self.options.folder / folder / f"{clip.name}{SUFFIX}"

    def _note(self, where: list[Problem], clip: Clip, reason: str) -> None:
        where.append(Problem(clip.name, str(clip.video or clip.audio), reason))

    def _note_sound(self, clip: Clip, sound: str) -> None:
        if self.options.wants_sound and sound not in (STORED, IMPOSSIBLE, OFF):
            self._note(self.report.without_sound, clip, sound)

    def _note_caption(self, clip: Clip | None, text: str, tokens: int) -> None:
        if clip is None:
            return
        if tokens >= self.options.max_sequence_length:
            self._note(self.report.remarks, clip, f"its caption is cut at {tokens} tokens, max_sequence_length")
        if not text.strip():
            self._note(self.report.remarks, clip, "its caption is empty")

    def _write_settings(self, names: Sequence[str]) -> None:
        """Before the first sample, so that a run that was killed is not mixed with another kind, either."""
        self.stored_settings |= self._settings(names)
        if self.share.rank == 0:
            write_json(self.options.folder / SETTINGS_FILE, self.stored_settings)

    def _progress(self, items: Sequence[Any], what: str) -> Iterator[Any]:
        name = what if self.share.world == 1 else f"{what} of process 1 of {self.share.world}"
        # The first process has as much to do as the others.
        hidden = not self.options.progress_bar or self.share.rank > 0
        yield from tqdm(items, desc=name, disable=hidden, dynamic_ncols=True)


def _main_folder(clip: Clip) -> str:
    """Whose file says of a sample that it is whole."""
    return LATENTS if clip.video else AUDIO_LATENTS


def _check_storable(clip: Clip) -> None:
    """Raise `ValueError` if no sample can have the name of a clip, or nothing can read its caption."""
    for what, text, advice in (("name", clip.name, "rename it"), ("caption", clip.caption, "write it anew")):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"its {what} is no text in Unicode; {advice}") from None
    stem, most = clip.name.rpartition("/")[2], _LONGEST_NAME - len(SUFFIX)
    if stem.startswith("."):
        raise ValueError("its name begins with a dot, as those of files do that are being written; rename it")
    if len(stem.encode()) > most:
        raise ValueError(f"its name is too long for a sample, {len(stem.encode())} bytes; use at most {most}")


def _files_of(clip: Clip) -> str:
    """Times and digests of the files of a clip, by what they are."""
    return json.dumps({kind: [path.stat().st_mtime_ns, _digest_of(path)] for kind, path in clip.files.items()})


def _has_same_files(clip: Clip, notes: Mapping[str, str]) -> bool:
    """Whether the files of a clip are those that were noted; only what has another time is read."""
    try:
        noted = json.loads(notes.get(_FILES, "{}"))
        return all(
            path.stat().st_mtime_ns == noted[kind][0] or _digest_of(path) == noted[kind][1]
            for kind, path in clip.files.items()
        )
    except (ValueError, KeyError, OSError):
        return False


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _on_own_device(source: Source, local: int) -> Source:
    """The networks on a GPU of the process's own, where no number was given."""
    if source.device != "cuda" or torch.cuda.device_count() < 2:
        return source
    return replace(source, device=f"cuda:{local % torch.cuda.device_count()}")
