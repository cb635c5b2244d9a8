"""Text contexts kept on disk, so that a prompt once encoded needs no text encoder again.

Shapes: T text positions, Wv and Wa widths of the video and audio context.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers.utils import logging

from ..atomic import write_json
from ..checkpoints.safetensors_io import Entry, SafetensorsFile, parse_size, write_file
from ..conditioning.streams import TextContext

logger = logging.get_logger(__name__)

# Raised whenever the meaning of an entry changes, so that older entries are no longer found.
_FORMAT = 1
# Of a context, as its fields; not every family has a mask.
_PARTS = ("video", "audio", "mask")
_IDENTITY_FILE = "encoded_by.json"
# Without those that other processes are writing.
_ENTRIES = "[!.]*.safetensors"


@dataclass(frozen=True)
class EncodedBy:
    """What contexts were computed with; `None` for a model that is not loaded.

    Args:
        encoder: Fingerprints of tokenizer and text encoder.
        connectors: Fingerprint of the connectors.
        dtype: Data type of the contexts, such as `"torch.bfloat16"`.
    """

    encoder: str | None
    connectors: str | None
    dtype: str | None

    @property
    def complete(self) -> bool:
        """Whether every part is known."""
        return None not in (self.encoder, self.connectors, self.dtype)

    def agrees(self, other: "EncodedBy") -> bool:
        """Whether all parts known on both sides are equal."""
        pairs = zip(asdict(self).values(), asdict(other).values())
        return all(None in pair or pair[0] == pair[1] for pair in pairs)


@dataclass(frozen=True)
class PromptKey:
    """A text as it was encoded: cut at `max_sequence_length` tokens, which is also the length of the context."""

    text: str
    max_sequence_length: int


class PromptCache:
    """Contexts of single prompts, one safetensors file each, in a folder that several processes may share.

    Every prompt is encoded alone, so an entry does not depend on the company in which its prompt was first met. Its
    rounding is that of the device which encoded it. The files hold the prompts as readable text.

    Args:
        folder: Where entries lie; created when the first one is stored.
        max_bytes: Most bytes of all entries together, as a number or like `"2GB"`; the least recently used ones are
            removed. Default no limit.
    """

    def __init__(self, folder: str | os.PathLike, max_bytes: int | str | None = None) -> None:
        self.folder = Path(folder)
        if self.folder.is_file():
            raise ValueError(f"a prompt cache needs a folder, but {os.fspath(folder)!r} is a file")
        self.max_bytes = None if max_bytes is None else parse_size(max_bytes, "max_bytes")

    def resolve(self, known: EncodedBy) -> EncodedBy:
        """Fill in what is not loaded from what the entries were computed with.

        Raises:
            ValueError: If no entries agree with the known parts, or those of several models do.
        """
        if known.complete:
            return known
        recorded = self._recorded()
        fitting = [by for by in recorded if by.agrees(EncodedBy(known.encoder, known.connectors, None))]
        # A data type narrows the choice only: the transformer's need not be that of the contexts.
        exact = [by for by in fitting if by.agrees(known)]
        chosen = exact if len(fitting) > 1 and exact else fitting
        if len(chosen) != 1:
            found = f"entries of {len(chosen)} different models" if chosen else "no entries that fit"
            raise ValueError(
                f"the prompt cache {os.fspath(self.folder)!r} has {found} for a pipeline without text encoder or "
                "connectors; load them, or use one folder per checkpoint and fill it with the whole pipeline first"
            )
        return chosen[0]

    def load(self, by: EncodedBy, key: PromptKey) -> TextContext | None:
        """The context `[1, T, W]` of each stream, or `None` if it was not stored or the file is damaged."""
        path = self._path(by, key)
        if not path.is_file():
            return None
        try:
            context = _read(path, key)
        except (ValueError, KeyError, TypeError, OSError) as error:
            logger.warning(f"the prompt cache entry {os.fspath(path)!r} is damaged and is not used: {error}")
            return None
        # The time of change is the time of last use; a folder that cannot be written to keeps the old one.
        with suppress(OSError):
            os.utime(path, ns=(time.time_ns(),) * 2)
        return context

    def store(self, by: EncodedBy, key: PromptKey, context: TextContext) -> None:
        """Write an entry under its final name only when complete, then remove what exceeds the size."""
        path = self._path(by, key)
        parts = {name: getattr(context, name) for name in _PARTS}
        tensors = {name: part.detach().cpu().contiguous() for name, part in parts.items() if part is not None}
        entries = {name: Entry.of(tensor) for name, tensor in tensors.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if _recorded_in(path.parent) != by:
                write_json(path.parent / _IDENTITY_FILE, asdict(by))
            write_file(path, entries, {"key": _text(key), "sha256": _checksum(tensors)})
        except OSError as error:
            logger.warning(f"the prompt {key.text!r} could not be stored in the prompt cache: {error}")
        self._evict()

    def _path(self, by: EncodedBy, key: PromptKey) -> Path:
        return self.folder / _name(asdict(by)) / f"{_name(asdict(key))}.safetensors"

    def _recorded(self) -> list[EncodedBy]:
        """Models whose entries are present."""
        folders = (folder for folder in sorted(self.folder.glob("*")) if any(folder.glob(_ENTRIES)))
        return [by for by in map(_recorded_in, folders) if by is not None]

    def _evict(self) -> None:
        if self.max_bytes is None:
            return
        found = []
        for path in self.folder.glob(f"*/{_ENTRIES}"):
            # Another process may have removed it since.
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        excess = sum(size for _, size, _ in found) - self.max_bytes
        for _, size, path in sorted(found):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size


def _recorded_in(folder: Path) -> EncodedBy | None:
    try:
        return EncodedBy(**json.loads((folder / _IDENTITY_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        # Without the record the entries serve complete pipelines only; the next entry stored writes it anew.
        return None


def _read(path: Path, key: PromptKey) -> TextContext:
    file = SafetensorsFile(path)
    tensors = {name: file.entries[name].load() for name in _PARTS if name in file.entries}
    if file.metadata["key"] != _text(key):
        raise ValueError("it belongs to another prompt")
    if file.metadata["sha256"] != _checksum(tensors):
        raise ValueError("its values are not those that were written")
    return TextContext(**tensors)


def _text(key: PromptKey) -> str:
    return json.dumps(asdict(key))


def _name(facts: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, facts], sort_keys=True).encode()).hexdigest()[:40]


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in _PARTS:
        if name in tensors:
            digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
