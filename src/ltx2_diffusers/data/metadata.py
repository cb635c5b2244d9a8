"""What a dataset consists of: a metadata file or a folder of media, read as a list of clips with their captions."""

import difflib
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .tables import (
    CAPTION_COLUMNS,
    MEDIA_COLUMNS,
    MEDIA_SUFFIXES,
    REFERENCE_COLUMN,
    REFERENCE_ENDING,
    Row,
    dataset_file,
    media_files,
    read_rows,
)

AUDIO_SUFFIXES = (".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac")
"""Endings of files that hold sound alone."""
CAPTION_SUFFIXES = (".txt", ".caption")
"""Endings of the file beside a clip that holds its caption."""
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "caption": CAPTION_COLUMNS,
    "video": (*MEDIA_COLUMNS, "video_path"),
    "reference_video": ("reference_video", "ref_media_path", REFERENCE_COLUMN),
    "audio": ("audio",),
    "reference_audio": ("reference_audio",),
    "video_mask": ("video_mask",),
    "audio_mask": ("audio_mask",),
}
"""What a clip has, and the columns that are taken for it, the first that a file has."""
_NAMED_FILES = 5


@dataclass(frozen=True)
class Clip:
    """One entry of a dataset; files that it does not have are `None`.

    Args:
        name: Sub-path of its samples, without ending: that of its video, or of its sound where it has no video.
        caption: Its text.
        video: A video or a picture.
        audio: A sound that replaces that of the video.
        reference_video, reference_audio: What it is made from.
        video_mask, audio_mask: Where it is trained.
    """

    name: str
    caption: str
    video: Path | None = None
    audio: Path | None = None
    reference_video: Path | None = None
    reference_audio: Path | None = None
    video_mask: Path | None = None
    audio_mask: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """Its media files, by what they are."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Path)}


def read_clips(dataset: str | Path, columns: Mapping[str, str] | None = None) -> list[Clip]:
    """Read what a dataset consists of.

    Args:
        dataset: A `.csv` (with header), `.json` (list of objects) or `.jsonl` file, whose paths are relative to its own
            folder. Or a folder: with a file of these kinds named `metadata` or `dataset`, or with media files and beside
            each a `.txt` or `.caption` file of the same stem; the clip or sound `NAME_reference` beside `NAME` is its reference.
        columns: Columns to take instead of those in `COLUMNS`, by what they are.

    Returns:
        Clips in the order of the file, or of their names.

    Raises:
        FileNotFoundError: If the dataset or files that it names do not exist.
        ValueError: If the file cannot be read, lacks a column or names two clips that differ only in their suffix.
    """
    dataset, columns = Path(dataset).expanduser(), columns or {}
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise ValueError(f"a clip has no {unknown[0]!r}{_nearest(unknown[0], COLUMNS)}; it has {', '.join(COLUMNS)}")
    if not dataset.exists():
        raise FileNotFoundError(
            f"there is no dataset {str(dataset)!r}; give a folder, or a .csv, .json or .jsonl file"
        )
    table = dataset_file(dataset) if dataset.is_dir() else dataset
    clips = _of_folder(dataset, columns) if table is None else _of_table(table, columns)
    if not clips:
        raise ValueError(f"{str(dataset)!r} names no clips; add at least one")
    _check_files(clips)
    _check_names(clips)
    return clips


def dataset_folder(dataset: str | Path) -> Path:
    """The folder of a dataset, beside whose media the computed files lie."""
    dataset = Path(dataset).expanduser()
    return dataset if dataset.is_dir() else dataset.parent


def _of_table(path: Path, columns: Mapping[str, str]) -> list[Clip]:
    rows = read_rows(path)
    chosen = _chosen_columns(path, rows, columns)
    return [_clip_of(path, number, row, chosen) for number, row in enumerate(rows, start=1)]


def _chosen_columns(path: Path, rows: Sequence[Row], columns: Mapping[str, str]) -> dict[str, str]:
    """Which column holds what."""
    present = list(dict.fromkeys(column for row in rows for column in row))
    chosen = {}
    for role, names in COLUMNS.items():
        wanted = columns.get(role)
        if wanted is not None and wanted not in present:
            raise ValueError(
                f"{str(path)!r} has no column {wanted!r}{_nearest(wanted, present)}; it has {', '.join(present) or 'none'}"
            )
        found = wanted or next((name for name in names if name in present), None)
        if found is not None:
            chosen[role] = found
    for roles in (("caption",), ("video", "audio")):
        if rows and not any(role in chosen for role in roles):
            asked = [name for role in roles for name in COLUMNS[role]]
            near = next(filter(None, (_nearest(name, present) for name in asked)), "")
            raise ValueError(
                f"{str(path)!r} has no column {', '.join(asked[:-1])} or {asked[-1]}{near}; it has "
                f"{', '.join(present) or 'none'}: name the one that holds the {' or the '.join(roles)}"
            )
    return chosen


def _nearest(word: str, known: Any) -> str:
    """Which known word somebody meant, for messages."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _clip_of(path: Path, number: int, row: Row, chosen: Mapping[str, str]) -> Clip:
    caption = row.get(chosen["caption"])
    if not isinstance(caption, str):
        raise ValueError(f"{str(path)!r} has no text under {chosen['caption']!r} in entry {number}; add it")
    given = {role: row.get(column) for role, column in chosen.items() if role != "caption"}
    for role, value in given.items():
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{str(path)!r} names no file under {chosen[role]!r} in entry {number} but has {value!r}")
    files = {role: path.parent / value.strip() for role, value in given.items() if value and value.strip()}
    # A column of media may name sounds.
    if "audio" not in files and "video" in files and files["video"].suffix.lower() in AUDIO_SUFFIXES:
        files["audio"] = files.pop("video")
    main = files.get("video", files.get("audio"))
    if main is None:
        column = chosen.get("video", chosen.get("audio"))
        raise ValueError(
            f"{str(path)!r} names no file under {column!r} in entry {number}; add it, or take the entry out"
        )
    return Clip(_name_of(main, path.parent), caption, **files)


def _of_folder(folder: Path, columns: Mapping[str, str]) -> list[Clip]:
    """The media of a folder and the texts beside them."""
    if columns:
        raise ValueError(
            f"{str(folder)!r} has no metadata file, so it has no column {next(iter(columns.values()))!r}; leave it out"
        )
    clips, silent = [], []
    for path in media_files(folder, MEDIA_SUFFIXES + AUDIO_SUFFIXES, recursive=True):
        text = text_beside(path)
        if text is None:
            silent.append(path)
            continue
        files = {"audio" if path.suffix.lower() in AUDIO_SUFFIXES else "video": path}
        for kind, suffixes in (("video", MEDIA_SUFFIXES), ("audio", AUDIO_SUFFIXES)):
            endings = (path.with_name(f"{path.stem}{REFERENCE_ENDING}{suffix}") for suffix in suffixes)
            reference = next((own for own in endings if own.is_file()), None)
            if reference is not None and (kind in files or kind == "audio"):
                files[f"reference_{kind}"] = reference
        clips.append(Clip(_name_of(path, folder), read_text(text), **files))
    if silent:
        raise ValueError(
            f"{len(silent)} media files of {str(folder)!r} have no caption, such as {_some(silent)}; write "
            f"{silent[0].with_suffix('.txt').name!r}, or give a metadata file"
        )
    _tell_lone_texts(folder, clips)
    return clips


def _tell_lone_texts(folder: Path, clips: Sequence[Clip]) -> None:
    """Warn of captions of nothing: their clips may be of a kind that is not taken from folders."""
    known = {clip.name for clip in clips}
    texts = media_files(folder, CAPTION_SUFFIXES, recursive=True)
    if lone := [path for path in texts if _name_of(path, folder) not in known]:
        warnings.warn(
            f"{len(lone)} texts of {str(folder)!r} are captions of no clip, such as {str(lone[0])!r}; clips of a folder "
            f"end in {', '.join(MEDIA_SUFFIXES + AUDIO_SUFFIXES)}, others need a metadata file",
            stacklevel=4,
        )


def text_beside(media: Path) -> Path | None:
    """The file with the caption of a clip, which has its stem; `None` if there is none."""
    return next((own for suffix in CAPTION_SUFFIXES if (own := media.with_suffix(suffix)).is_file()), None)


def read_text(path: Path) -> str:
    """The caption in a file.

    Raises:
        ValueError: If it is no text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is no text in UTF-8 ({error}); save it as UTF-8") from None


def _name_of(media: Path, folder: Path) -> str:
    """The sub-path of a clip's samples; that of media outside of the folder is the whole path without its root."""
    path, root = (Path(os.path.abspath(place)) for place in (media, folder))
    inside = path.relative_to(root) if path.is_relative_to(root) else path.relative_to(path.anchor)
    return inside.with_suffix("").as_posix()


def _check_files(clips: Sequence[Clip]) -> None:
    missing = list(dict.fromkeys(path for clip in clips for path in clip.files.values() if not path.is_file()))
    if missing:
        raise FileNotFoundError(f"{len(missing)} media files do not exist: {_some(missing)}")


def _check_names(clips: Sequence[Clip]) -> None:
    """Samples are named after their clips without suffix, so that two must not differ in that alone."""
    name, count = Counter(clip.name for clip in clips).most_common(1)[0]
    if count > 1:
        media = [str(clip.video or clip.audio) for clip in clips if clip.name == name]
        what = "differ only in their suffix" if len(set(media)) > 1 else "are the same"
        raise ValueError(
            f"{media[0]!r} and {media[1]!r} {what}, but name the same sample {name!r}; rename one, or drop it"
        )


def _some(paths: Sequence[Path]) -> str:
    named = ", ".join(repr(str(path)) for path in paths[:_NAMED_FILES])
    return f"{named}, ..." if len(paths) > _NAMED_FILES else named
