"""Ways in which files go wrong: headers that break the format, flipped bits, cuts, and JSON that says something else."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

JUNK = [None, -1, 0, 1.5, float("nan"), float("inf"), 10**9, 10**30, "x", "", [], [1, 2], {}, {"a": 1}, True, [None]]


def split_file(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a safetensors file."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(path: Path, header: Any, tensors: bytes = b"") -> Path:
    """A file with this header (an object, or bytes as they are) in front of these tensors."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + tensors)
    return path


def with_header(source: Path, path: Path, change: Callable[[dict[str, Any]], Any], more: bytes = b"") -> Path:
    """A copy of a file whose header went through `change`, with `more` bytes at its end."""
    header, tensors = split_file(source)
    change(header)
    return write_header(path, header, tensors + more)


def flipped_or_cut(content: bytes, random_source: random.Random) -> bytes:
    """The file with some bits of its header flipped, or cut anywhere."""
    damaged, header = bytearray(content), 8 + struct.unpack("<Q", content[:8])[0]
    if random_source.random() < 0.4:
        return bytes(damaged[: random_source.randrange(len(damaged))])
    for _ in range(random_source.choice((1, 1, 3))):
        damaged[random_source.randrange(header)] ^= 1 << random_source.randrange(8)
    return bytes(damaged)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every entry of nested objects and lists, as what holds it and its key."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def with_junk(value: Any, random_source: random.Random) -> str:
    """Change one entry of a JSON document in place, or remove it; what was done."""
    holder, key = random_source.choice(places(value))
    if random_source.random() < 0.2:
        del holder[key]
        return f"{key} removed"
    holder[key] = random_source.choice(JUNK)
    return f"{key} = {holder[key]!r}"
