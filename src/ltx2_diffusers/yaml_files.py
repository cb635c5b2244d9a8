"""Mappings in YAML files."""

import os
from pathlib import Path
from typing import Any

from .declared import shown


def read_mapping(
    path: str | os.PathLike, what: str = "configuration file", holds: str = "sections such as `model:`"
) -> dict[str, Any]:
    """The mapping in a YAML file; `python/tuple`, which the reference trainer writes, is read as a list.

    Args:
        path: The file.
        what: What it is, for messages.
        holds: What is to stand in it, for messages.

    Raises:
        ValueError: If the file is no YAML or no mapping; the message names the line.
        FileNotFoundError: If there is no such file.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads plain YAML, and tuples."""

        def construct_tuple(self, node: yaml.SequenceNode) -> list[Any]:
            """A tuple as a list."""
            return self.construct_sequence(node)

    Loader.add_constructor("tag:yaml.org,2002:python/tuple", Loader.construct_tuple)
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise FileNotFoundError(f"there is no {what} {name!r}; give a YAML file")
    try:
        # A safe loader with one further tag.
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{name}{line}: is no YAML: {getattr(error, 'problem', None) or error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{name}, line 1: has to hold {holds} but holds {shown(values)}")
    return values
