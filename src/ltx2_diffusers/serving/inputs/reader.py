"""The media of a request: bytes in the request, never names of files or addresses, and read in a process of their own."""

import base64
import binascii
import hashlib
import json
import multiprocessing
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

from ..admission import Refusal
from ..settings import MIB, Limits

_DATA_URI = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(;[\w-]+=[^;,]*)*(?P<base64>;base64)?,", re.ASCII)
_SUFFIXES = {"picture": ".png", "pictures": "", "sound": ".wav", "clip": ".mkv"}
# Files that are read at the same time.
_AT_ONCE = 2


def decoded_media(name: str, text: str, limits: Limits) -> bytes:
    """The bytes of a data URI or of bare base64.

    Args:
        name: Field that holds it.
        text: What the field holds.
        limits: See there.

    Raises:
        Refusal: If it is neither, or too long.
    """
    if len(text) * 3 / 4 > limits.max_media_mb * MIB:
        raise Refusal(f"`{name}` is larger than the {limits.max_media_mb:g} MiB that this server takes", name)
    match = _DATA_URI.match(text)
    if match is not None and not match["base64"]:
        raise Refusal(f"`{name}` is a data URI without base64; begin it with 'data:TYPE;base64,'", name)
    coded = text[match.end() :] if match else text
    try:
        content = base64.b64decode(re.sub(r"\s+", "", coded), validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(
            f"`{name}` has to be base64, best a data URI such as 'data:image/png;base64,...'; names of files and "
            "addresses are not read",
            name,
        ) from None
    if not content:
        raise Refusal(f"`{name}` is empty; give the content of a file, or leave it out", name)
    return content


@dataclass
class MediaReader:
    """Reads media in processes of their own, which start from a template that holds the libraries.

    Args:
        limits: See there.
    """

    limits: Limits
    _free: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(_AT_ONCE))

    def __post_init__(self) -> None:
        methods = multiprocessing.get_all_start_methods()
        self._context: BaseContext = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            self._context.set_forkserver_preload([f"{__package__}.process"])

    def warm_up(self) -> None:
        """Start the template, so that the first request need not wait for it."""
        # Of the template's own module: any other would be imported anew by each process.
        from .process import be_there

        process = self._context.Process(target=be_there, daemon=True)  # type: ignore[attr-defined]
        process.start()
        process.join()

    def read(self, name: str, kind: str, content: bytes, folder: Path) -> Path:
        """Read the content of a file and write it anew.

        Args:
            name: Field that it comes from.
            kind: As in [`~ltx2_diffusers.serving.inputs.process.read_media`].
            content: The bytes.
            folder: Where the new file goes.

        Raises:
            Refusal: If it cannot be read within the limits.
        """
        if len(content) > self.limits.max_media_mb * MIB:
            raise Refusal(f"`{name}` is larger than the {self.limits.max_media_mb:g} MiB that this server takes", name)
        folder.mkdir(parents=True, exist_ok=True)
        index = len(list(folder.iterdir()))
        source, target = folder / f"{index}.upload", folder / f"{index}{_SUFFIXES[kind]}"
        source.write_bytes(content)
        try:
            with self._free:
                report = self._report(kind, source, target)
        finally:
            source.unlink()
        if "error" in report:
            target.unlink(missing_ok=True)
            said = report["error"].replace(repr(str(source)), f"`{name}`").replace(str(source), name)
            raise Refusal(said if f"`{name}`" in said else f"`{name}`: {said}", name)
        return target

    def _report(self, kind: str, source: Path, target: Path) -> dict[str, Any]:
        from .process import read_media

        ours, theirs = self._context.Pipe(duplex=False)
        arguments = (theirs, kind, str(source), str(target), self.limits)
        process = self._context.Process(target=read_media, args=arguments, daemon=True)  # type: ignore[attr-defined]
        ends = time.monotonic() + self.limits.media_time
        process.start()
        theirs.close()
        try:
            if not ours.poll(max(0.0, ends - time.monotonic())):
                return {"error": f"reading it takes longer than {self.limits.media_time:g} s; give a smaller file"}
            # JSON, since nothing that a stranger's file might have taken over may send objects.
            report: dict[str, Any] = json.loads(ours.recv_bytes(MIB))
            return report
        except (EOFError, OSError, ValueError):
            return {"error": "it cannot be read: it is damaged, or needs more time or memory than this server gives"}
        finally:
            ours.close()
            process.kill()
            process.join()
            process.close()


@dataclass
class Inputs:
    """The media of one request.

    Args:
        reader: What reads them.
        folder: Where they go.
        hashes: Names of their content as they came (sha256), by the names of their files.
    """

    reader: MediaReader
    folder: Path
    hashes: dict[str, str] = field(default_factory=dict)

    def check_count(self, counts: Mapping[str, int]) -> None:
        """Refuse more media than this server takes, by the numbers of each field."""
        limits = self.reader.limits
        if sum(counts.values()) > limits.max_media:
            most = max(counts, key=lambda name: counts[name])
            raise Refusal(f"there are more than the {limits.max_media} media files that this server takes", most)

    def read(self, name: str, kind: str, text: str) -> Path:
        """The file that holds what a field brings as base64; see [`MediaReader`]."""
        content = decoded_media(name, text, self.reader.limits)
        path = self.reader.read(name, kind, content, self.folder)
        self.hashes[path.name] = hashlib.sha256(content).hexdigest()
        return path
