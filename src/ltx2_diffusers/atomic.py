"""Files and folders that appear whole or not at all, even if the process is killed.

Everything is written under a temporary name first, beside what it becomes. The writer holds a lock on it, which ends
with its process: that tells what is being written from what a killed process left, and the next write into that folder
removes the latter. A folder changes by one step of the file system, in which it is exchanged for a complete one.
"""

import ctypes
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:
    # Windows, where leftovers are told by their age.
    fcntl = None  # type: ignore[assignment]

_PARTIAL, _COMPLETE = ".ltx2-partial-", ".ltx2-complete-"
_TEMPORARY = re.compile(r"\.ltx2-(?:partial|complete)-(?P<host>[0-9a-f]{8})-[0-9a-f]{12}(\..*)?", re.DOTALL)
# What versions without locks left: files, and folders as `tempfile.mkdtemp` makes them.
_OLD_FILE = re.compile(r"\..*\.[0-9a-f]{32}\.partial(\..*)?", re.DOTALL)
_OLD_FOLDER = re.compile(r"\..+\.[a-z0-9_]{8}", re.DOTALL)
_SAVED_SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".md")
# Locks say nothing about other machines that share the folder; nobody writes a file for a day without touching it.
_ABANDONED_S = 24 * 60 * 60
# A longer one is of no kind that an encoder knows, and the whole name must not get too long.
_SUFFIX_LENGTH = 16
_TRIES = 5

# Names of weight files and of shard indices, as diffusers and transformers write them, with and without variant.
_WEIGHTS = re.compile(r"(?P<name>.+?)(-\d{5}-of-\d{5})?\.(safetensors|bin)")
_INDEX = re.compile(r"(?P<name>.+?)\.(safetensors|bin)\.index(?P<variant>\.[^.]+)?\.json")
# Without the first of these no pipeline loads, without the others no component of it does.
_ENTRANCES = ("model_index.json", "config.json", "scheduler_config.json")
# In a complete folder whose files are moved one by one: what they replace without having its name.
_STALE = ".stale.json"


@contextmanager
def complete_file(path: str | os.PathLike) -> Iterator[Path]:
    """Give the name of a temporary file, and rename it to `path` when the block ends without error.

    Missing folders are created. After an error or an interrupt, nothing is left behind and an older file of that name
    is untouched.

    Raises:
        OSError: If there is nothing to write to; the message names `path`.
    """
    path = Path(path)
    with _temporary(path, path.parent, path.suffix[:_SUFFIX_LENGTH]) as partial:
        yield partial
        os.replace(partial, path)


def check_writable(path: str | os.PathLike) -> None:
    """Try out whether a file can be written, and leave nothing behind.

    Raises:
        OSError: If it cannot: its name is too long or that of a folder, or nothing can be written there. The message
            names `path`.
        ValueError: If no file can have such a name.
    """
    path = Path(path)
    with _temporary(path, path.parent, path.suffix[:_SUFFIX_LENGTH]):
        pass


def check_folder_writable(folder: str | os.PathLike) -> None:
    """Try out whether files can be written into a folder, which need not exist, and leave nothing behind.

    Raises:
        ValueError: If it is a file.
        OSError: If nothing can be written there. The message names it.
    """
    target = _followed(folder)
    # One that does not exist is tried beside its place, or a kill would leave an empty folder of that name.
    with _temporary(target, target if target.is_dir() else target.parent, None):
        pass


@contextmanager
def temporary_folder(place: str | os.PathLike) -> Iterator[Path]:
    """Give a new folder in the folder `place`, and remove it with all it holds when the block ends."""
    with _temporary(Path(place), Path(place), None) as temporary:
        yield temporary


@contextmanager
def replaced_folder(folder: str | os.PathLike) -> Iterator[str]:
    """Yield a temporary folder; put what it holds in place of `folder` when the block ends without an exception.

    Files of `folder` which the block did not write stay, except other files of the weights it wrote: an old shard or
    index must not survive beside a new one. Other variants of the weights stay.

    Whenever the process is killed, `folder` is the old one or the new one. Where the system cannot exchange folders
    (Windows, mount points, the current directory, a folder above that cannot be written to), files are moved one by
    one: a process killed in between leaves a folder that nothing can load until [`finish_save`] has gone on.
    """
    target = _followed(folder)
    if is_part_of_a_save(target):
        target.mkdir(parents=True, exist_ok=True)
        yield os.fspath(target)
        return
    finish_save(target)
    with ExitStack() as stack:
        for place in (target,) if _stays(target) else (target.parent, target):
            try:
                new = stack.enter_context(_temporary(target, place, None))
                break
            except OSError:
                # A folder in which nothing can be made may hold one in which it can.
                if place == target or not target.is_dir():
                    raise
        yield os.fspath(new)
        _put_in_place(new, target)


def is_part_of_a_save(folder: str | os.PathLike) -> bool:
    """Whether a folder belongs to something that is being saved as a whole."""
    target = _followed(folder)
    return any(_TEMPORARY.fullmatch(path.name) for path in (target, *target.parents))


def finish_save(folder: str | os.PathLike) -> None:
    """Go on with a save whose process was killed while its files were moved into `folder`.

    Raises:
        OSError: If the folder holds a half save with which one cannot go on.
    """
    folder = Path(folder)
    for complete in folder.glob(f"{_COMPLETE}*"):
        try:
            with _if_abandoned(complete) as abandoned:
                if abandoned:
                    with _alone(folder):
                        _move_in(complete, folder)
        except OSError as error:
            raise type(error)(
                f"{str(folder)!r} is half saved: a save was interrupted and cannot go on ({error}); make the folder "
                "writable, or save there again"
            ) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` in diffusers' manner (sorted, two spaces), never leaving half a file."""
    with complete_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _temporary(target: Path, place: Path, suffix: str | None) -> Iterator[Path]:
    """Give a locked new file with that suffix, or a folder if it is `None`, in the folder `place`; remove it afterwards.

    Missing folders are created, and removed if they stay empty.

    Raises:
        OSError, ValueError: If `target`, which it is to become, cannot be written; the message names it.
    """
    with ExitStack() as stack:
        try:
            path = _reserved(target, place, suffix, stack)
        except OSError as error:
            raise type(error)(f"cannot write to {str(target)!r}: {_reason(target, error)}") from error
        except ValueError as error:
            raise ValueError(f"no file can be named {str(target)!r}: {error}") from error
        yield path


def _reason(target: Path, error: OSError) -> str:
    file = (
        next((parent for parent in target.parents if parent.is_file()), None) if error.errno == errno.ENOTDIR else None
    )
    if file is not None:
        return f"{str(file)!r} is a file; choose a folder"
    if error.errno == errno.ENAMETOOLONG:
        return "the name is too long; choose a shorter one"
    return f"{error.strerror}; choose another place" if error.strerror else str(error)


def _make_folders(folder: Path, undo: ExitStack) -> None:
    for path in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        path.mkdir(exist_ok=True)
        undo.callback(_remove_if_empty, path)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _check_replaceable(target: Path, as_file: bool) -> None:
    """Refuse what must not be replaced; an error of the system says that the name is too long."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return
    if as_file and stat.S_ISDIR(mode):
        raise IsADirectoryError("it is a folder; give the name of a file")
    if as_file and not stat.S_ISREG(mode):
        raise OSError("it is no regular file; choose another name")
    # The first question is a user's, the second one that of an administrator, who may write everywhere.
    if not os.access(target, os.W_OK) or (as_file and not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)):
        raise PermissionError("it is read-only; choose another name, or make it writable")


def _reserved(target: Path, place: Path, suffix: str | None, stack: ExitStack) -> Path:
    def tried() -> Path:
        _make_folders(place, stack)
        _check_replaceable(target, suffix is not None)
        remove_leftovers(place)
        return _new_locked(place, suffix, stack)

    for _ in range(_TRIES - 1):
        # Another process may have made the folder to try it out, and have removed it since.
        with suppress(FileNotFoundError):
            return tried()
    return tried()


def _new_locked(place: Path, suffix: str | None, stack: ExitStack) -> Path:
    """A new temporary file or folder, locked as long as `stack` is open and then removed."""
    # A whole path, since encoders take the colon in "a:b/clip.mp4" for the end of a protocol's name.
    place = place.absolute()
    while True:
        path = place / f"{_PARTIAL}{_host()}-{uuid.uuid4().hex[:12]}{suffix or ''}"
        if suffix is None:
            path.mkdir()
        else:
            path.touch(exist_ok=False)
        lock = None
        with suppress(FileNotFoundError, BlockingIOError):
            lock = _lock(path)
        if path.exists():
            break
        # Another process took it for a leftover before it was locked.
        _unlock(lock)
    stack.callback(_unlock, lock)
    stack.callback(_remove, path)
    return path


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _lock(path: Path, wait: bool = False) -> int | None:
    """Lock a file or folder until the result is given to [`_unlock`], or the process ends; `None` where there are no locks.

    Raises:
        BlockingIOError: If it is locked already, and one does not want to wait.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of files and folders that they were writing into `folder`."""
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            name = entry.name
            is_ours = name.startswith(_PARTIAL) and _TEMPORARY.fullmatch(name)
            if name[0] == "." and (is_ours or _is_old_leftover(entry)):
                with suppress(OSError), _if_abandoned(Path(entry.path)) as abandoned:
                    if abandoned:
                        _remove(Path(entry.path))


def _is_old_leftover(entry: os.DirEntry) -> bool:
    """Whether a version without locks may have left it: a folder nobody else may look into, with nothing but a model."""
    if not entry.is_dir(follow_symlinks=False):
        return _OLD_FILE.fullmatch(entry.name) is not None
    if not _OLD_FOLDER.fullmatch(entry.name) or stat.S_IMODE(entry.stat().st_mode) != stat.S_IRWXU:
        return False
    return all(file.suffix in _SAVED_SUFFIXES for file in _files(Path(entry.path)))


@contextmanager
def _if_abandoned(path: Path) -> Iterator[bool]:
    """Hold the lock of a temporary file or folder, and say whether the process that made it is dead."""
    try:
        lock = _lock(path)
    except (BlockingIOError, FileNotFoundError):
        yield False
        return
    try:
        name = _TEMPORARY.fullmatch(path.name)
        is_local = lock is not None and name is not None and name["host"] == _host()
        yield is_local or time.time() - _last_change(path) > _ABANDONED_S
    finally:
        _unlock(lock)


def _last_change(path: Path) -> float:
    return max(part.lstat().st_mtime for part in (path, *path.rglob("*")))


def _followed(folder: str | os.PathLike) -> Path:
    """The folder to save to, behind all links."""
    try:
        target = Path(os.path.realpath(folder))
    except ValueError as error:
        raise ValueError(f"no folder can be named {os.fspath(folder)!r}: {error}") from error
    if os.path.isfile(target):
        raise ValueError(f"cannot save to {os.fspath(folder)!r}: it is a file; give a folder")
    return target


def _stays(folder: Path) -> bool:
    """Whether a folder is one that must not be exchanged for another: this process works in it, or it is a mount point."""
    here = None
    with suppress(OSError):
        here = Path.cwd()
    return os.path.ismount(folder) or (here is not None and here.is_relative_to(folder))


def _put_in_place(new: Path, target: Path) -> None:
    files = _files(new)
    if not files:
        return
    if new.parent == target.parent and not target.exists():
        # If another process makes it at this moment, it is a full folder, which cannot be renamed over.
        with suppress(OSError):
            os.rename(new, target)
            return
    target.mkdir(parents=True, exist_ok=True)
    with _alone(target):
        stale = _stale(target, files)
        if len(files) == 1 and not stale:
            (target / files[0]).parent.mkdir(parents=True, exist_ok=True)
            os.replace(new / files[0], target / files[0])
        elif new.parent == target or not _exchanged(new, target, stale):
            _fill(new, target, files, stale)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from changing a folder in this way, or wait for one that does."""
    while True:
        lock = _lock(folder, wait=True)
        # While one waited, the folder may have been exchanged for another.
        if lock is None or os.path.samestat(os.fstat(lock), folder.stat()):
            break
        _unlock(lock)
    try:
        yield
    finally:
        _unlock(lock)


def _files(folder: Path) -> list[Path]:
    """All files below a folder, relative to it."""
    return [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]


def _stale(target: Path, files: Sequence[Path]) -> list[Path]:
    """Other files in `target` of the weights that some saved files are."""
    saved = {weights for file in files if (weights := _weights_of(file)) is not None}
    places = [folder for folder in {folder for folder, _ in saved} if (target / folder).is_dir()]
    found = [folder / name for folder in places for name in os.listdir(target / folder)]
    return [file for file in found if file not in files and _weights_of(file) in saved]


def _weights_of(file: Path) -> tuple[Path, str] | None:
    """Folder and name (with variant) of the weights that a file is a part of; `None` for other files."""
    if match := _INDEX.fullmatch(file.name):
        return file.parent, match["name"] + (match["variant"] or "")
    match = _WEIGHTS.fullmatch(file.name)
    return (file.parent, match["name"]) if match else None


def _exchanged(new: Path, target: Path, stale: Sequence[Path]) -> bool:
    """Exchange a folder for `new` and what is kept of the old one, in one step; `False` where that is not possible."""
    try:
        _link_missing(target, new, stale)
        _exchange(new, target)
    except OSError:
        return False
    # `new` is the old folder now; other programs may have added files to it in the meantime.
    with suppress(OSError):
        _link_missing(new, target, stale)
    return True


def _link_missing(source: Path, target: Path, without: Sequence[Path], place: Path = Path()) -> None:
    """Link into a folder what it lacks of another one; `place` is where both stand, as the names in `without` count."""
    shutil.copymode(source, target)
    for entry in os.scandir(source):
        path, linked = Path(entry.path), target / entry.name
        if entry.is_dir() and (linked.is_dir() or not entry.is_symlink()):
            linked.mkdir(exist_ok=True)
            _link_missing(path, linked, without, place / entry.name)
        elif not os.path.lexists(linked) and place / entry.name not in without:
            if entry.is_symlink():
                linked.symlink_to(path.readlink())
            else:
                os.link(path, linked)


def _exchange(one: Path, other: Path) -> None:
    """Exchange two folders in one step.

    Raises:
        OSError: If the system or the file system cannot.
    """
    here, swap = -100, 2
    names = os.fsencode(one), os.fsencode(other)
    library: Any = None if sys.platform == "win32" else ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "renameat2"):
        failed = library.renameat2(here, names[0], here, names[1], swap)
    elif hasattr(library, "renamex_np"):
        failed = library.renamex_np(*names, swap)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _fill(new: Path, target: Path, files: Sequence[Path], stale: Sequence[Path]) -> None:
    """Move files into a folder one by one, so that it can be gone on with after a kill.

    They are gathered inside the folder, which is then on the same file system whatever it is.
    """
    with _temporary(target, target, None) as gathered:
        (gathered / _STALE).write_text(json.dumps([file.as_posix() for file in stale]), encoding="utf-8")
        for file in files:
            (gathered / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(new / file, gathered / file)
        complete = gathered.with_name(gathered.name.replace(_PARTIAL, _COMPLETE))
        os.rename(gathered, complete)
        _move_in(complete, target)


def _move_in(complete: Path, target: Path) -> None:
    """Move the files of a complete folder into one of which nothing can be loaded until all are there.

    Begun again after a kill, it goes on.
    """
    files = sorted(_files(complete), key=lambda file: (file.name in _ENTRANCES, -len(file.parts)))
    files = [file for file in files if file != Path(_STALE)]
    for file in reversed(files):
        if file.name in _ENTRANCES:
            (target / file).unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        for name in json.loads((complete / _STALE).read_text(encoding="utf-8")):
            (target / name).unlink(missing_ok=True)
        (complete / _STALE).unlink()
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(complete / file, target / file)
    shutil.rmtree(complete)
