"""Messages between processes, each a line of JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .jobs import located


def written(message: Mapping[str, Any]) -> str:
    """The line of a message, which may hold names of files."""
    return json.dumps(message, default=lambda path: {"file": str(path)})


def read_message(line: str) -> dict[str, Any]:
    """The message of a line."""
    message: dict[str, Any] = json.loads(line, object_hook=lambda value: located(value, Path()))
    return message
