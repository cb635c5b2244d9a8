"""Dataset files as tables of text (csv, json, jsonl), and the media files of a folder.

Whoever adds a column or changes one keeps all the others; a file appears whole or not at all.
"""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic import complete_file

Row = dict[str, Any]
"""What a dataset file says of one clip, by column."""

TABLE_SUFFIXES = (".json", ".jsonl", ".csv")
"""Endings of dataset files."""
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MEDIA_SUFFIXES = VIDEO_SUFFIXES + IMAGE_SUFFIXES
"""Endings of the files that are taken from a folder."""
MEDIA_COLUMNS = ("media_path", "video", "file_name")
"""Columns that name a clip, the one that is looked for first in front."""
CAPTION_COLUMNS = ("caption", "text", "prompt")
"""Columns that hold its caption."""
DATASET_FILE = "dataset.json"
"""Dataset file that is written for a folder without one."""
MEDIA_COLUMN, CAPTION_COLUMN = MEDIA_COLUMNS[0], CAPTION_COLUMNS[0]
REFERENCE_COLUMN = "reference_path"
REFERENCE_ENDING = "_reference"
"""What the stem of a reference has behind that of its clip."""
# What spreadsheets write in some countries.
_OTHER_DIVIDERS = {";": "semicolons", "\t": "tabs"}


def read_rows(path: Path) -> list[Row]:
    """Read a dataset file.

    Args:
        path: A `.csv` file with a header, a `.json` file with a list of objects, or a `.jsonl` file with one a line.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has another ending, is damaged or holds no list of objects.
    """
    suffix = _checked_suffix(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if suffix == ".csv":
            return _csv_rows(text)
        rows = json.loads(text) if suffix == ".json" else _lines(text)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no dataset file {str(path)!r}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is no text in UTF-8 ({error}); save it as UTF-8") from None
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a dataset file: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            f'{str(path)!r} has to hold a list of objects, one per clip, each like {{"{MEDIA_COLUMN}": ...}}'
        )
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a dataset file, whole or not at all, in the form that its ending says.

    Raises:
        ValueError: If it has another ending than `.csv`, `.json` or `.jsonl`.
    """
    suffix = _checked_suffix(path)
    with complete_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        if suffix == ".json":
            file.write(json.dumps(list(rows), indent=2, ensure_ascii=False) + "\n")
        elif suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            columns = dict.fromkeys(column for row in rows for column in row)
            table = csv.DictWriter(file, list(columns), restval="", lineterminator="\n")
            table.writeheader()
            table.writerows(rows)


def column_of(
    rows: Sequence[Row], names: Sequence[str], path: Path, given: str | None = None, everywhere: bool = True
) -> str:
    """The column of a table to read: the given one, or the first of `names` that it has.

    Args:
        rows: The table.
        names: Columns that may be meant.
        path: Its file, for messages.
        given: The column that somebody asks for.
        everywhere: Whether every row has to have something there. Default true.

    Raises:
        ValueError: If the table has none of them, or a row lacks it; the message names the columns that there are.
    """
    present = dict.fromkeys(column for row in rows for column in row)
    column = given if given is not None else next((name for name in names if name in present), None)
    if column is None or column not in present:
        wanted = repr(column) if given is not None else " or ".join(map(repr, names))
        raise ValueError(f"{str(path)!r} has no column {wanted}; it has {', '.join(present) or 'none'}")
    lacking = [number for number, row in enumerate(rows, start=1) if not str(row.get(column) or "").strip()]
    if everywhere and lacking:
        raise ValueError(f"{str(path)!r} has no {column!r} in entry {lacking[0]}; add it, or take the entry out")
    return column


def media_of(row: Row, column: str, path: Path) -> Path:
    """The file that a row names, relative to the folder of the dataset file."""
    return path.parent / str(row[column]).strip()


def relative_name(media: Path, table: Path) -> str:
    """How a dataset file names a media file: from its own folder on, with forward slashes."""
    try:
        return Path(os.path.relpath(media, table.parent)).as_posix()
    except ValueError:
        # On another drive, as Windows has them.
        return media.absolute().as_posix()


def media_files(folder: Path, suffixes: Sequence[str] = MEDIA_SUFFIXES, recursive: bool = False) -> list[Path]:
    """The media files of a folder in the order of their names, without hidden ones and without references.

    Args:
        folder: Where to look.
        suffixes: Endings of names; upper case counts, too.
        recursive: Whether to look into its folders, also into those that are links. Default false.
    """
    found = [
        path
        for path in sorted(_inside(folder) if recursive else folder.iterdir())
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    ]
    stems = {path.with_suffix("") for path in found}
    return [path for path in found if _referred(path) not in stems]


def _inside(folder: Path) -> Iterator[Path]:
    """Files in a folder and in its folders that are not hidden; each folder once, whatever links to it."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [name for name in sorted(folders) if not name.startswith(".") and real not in seen]
        if real not in seen:
            yield from (Path(place, name) for name in files)
        seen.add(real)


def _referred(path: Path) -> Path | None:
    """The clip, without ending, that a file would be the reference of."""
    stem = path.stem.removesuffix(REFERENCE_ENDING)
    return None if stem == path.stem or not stem else path.with_name(stem)


def dataset_file(folder: Path) -> Path | None:
    """The dataset file of a folder, named `dataset` or `metadata`; `None` if it has none.

    Raises:
        ValueError: If it has several.
    """
    names = [f"{stem}{suffix}" for stem in ("dataset", "metadata") for suffix in TABLE_SUFFIXES]
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{str(folder)!r} holds {' and '.join(path.name for path in found)}; name the one to use")
    return found[0] if found else None


def _checked_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        is_clip = suffix in MEDIA_SUFFIXES
        meant = f"give the folder of the clips, {str(path.parent)!r}" if is_clip else f"use {path.stem + '.json'!r}"
        raise ValueError(f"a dataset file ends in {', '.join(TABLE_SUFFIXES)}, got {str(path)!r}; {meant}")
    return suffix


def _lines(text: str) -> list[Any]:
    """What stands on the lines of a `.jsonl` file that are not empty."""
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: {error.msg} at character {error.pos + 1}") from None
    return rows


def _csv_rows(text: str) -> list[Row]:
    table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    header = [name.strip() for name in table.fieldnames or ()]
    if len(header) == 1 and (
        other := next((name for sign, name in _OTHER_DIVIDERS.items() if sign in header[0]), None)
    ):
        raise ValueError(f"its columns are divided by {other}; divide them by commas")
    if twice := [name for name, count in Counter(header).items() if name and count > 1]:
        raise ValueError(f"it has two columns {twice[0]!r}; rename one")
    table.fieldnames = header
    rows = list(table)
    if (odd := next((row for row in rows if None in row), None)) is not None:
        raise ValueError(f"entry {rows.index(odd) + 1} has more cells than the header; quote cells that hold commas")
    return [{name: value for name, value in row.items() if value is not None} for row in rows]
