"""Original checkpoints of several files, as LTX-2.5 is published: which file holds what, and all of them as one.

A file is recognised by what it holds, whatever it is called. Some hold one component alone, without its prefix.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .hub_files import local_file
from .keys import COMPONENTS
from .original import OriginalCheckpoint

Files = str | os.PathLike | Sequence[str | os.PathLike] | Mapping[str, str | os.PathLike]
"""One file or Hub link, a folder of files, a list of files, or files by what they hold."""
_PIPELINE = [component for component in COMPONENTS if component != "latent_upsampler"]


def component_files(source: Files, **hub_options: Any) -> dict[str, list[Path]]:
    """The file of every component of a pipeline; the connectors may be in two.

    Args:
        source: What is given. Of a folder, files of other content, such as LoRAs and upscalers, are left out.
        hub_options: Options of the download of Hub links.

    Raises:
        ValueError: If a file holds no component or not the one that it is given for, or two files hold the same.
    """
    is_folder = False
    if isinstance(source, (str, os.PathLike)) and os.path.isdir(source):
        is_folder, paths = True, sorted(Path(source).rglob("*.safetensors"))
    else:
        values = source.values() if isinstance(source, Mapping) else source
        given = [values] if isinstance(values, (str, os.PathLike)) else list(values)
        paths = [Path(local_file(path, **hub_options)) for path in given]
    if not paths:
        raise ValueError(f"{str(source)!r} holds no safetensors files; give the files of a checkpoint")
    held = {path: [name for name in OriginalCheckpoint(path).components() if name in _PIPELINE] for path in paths}
    for path, names in held.items():
        if not names and not is_folder:
            raise ValueError(f"{str(path)!r} holds no component of a pipeline; leave it out")
    for component, path in zip(source, paths) if isinstance(source, Mapping) else ():
        if component not in held[path]:
            raise ValueError(f"`{component}` is {str(path)!r}, which holds {', '.join(held[path])}; give another file")
    found = {name: [path for path, names in held.items() if name in names] for name in _PIPELINE}
    for component, places in found.items():
        if len(places) > 1 and component != "connectors":
            raise ValueError(
                f"{component} is in {' and in '.join(repr(str(path)) for path in places)}; give one of them, in a list of files"
            )
    return {component: places for component, places in found.items() if places}


def holds_originals(folder: Path) -> bool:
    """Whether a folder is one of original files, and not in diffusers' layout."""
    is_diffusers = any((folder / name).is_file() for name in ("model_index.json", "config.json"))
    return not is_diffusers and any(folder.rglob("*.safetensors"))


def opened_components(source: str | os.PathLike) -> dict[str, OriginalCheckpoint]:
    """The components of an original file, or of a folder of them, each with what it is read from."""
    if not os.path.isdir(source):
        checkpoint = OriginalCheckpoint(source)
        names = checkpoint.components()
        if not names:
            first = next(iter(checkpoint.entries))
            raise ValueError(
                f"{checkpoint.name} holds no component of LTX-2 but {first}; give the file of a checkpoint"
            )
        return dict.fromkeys(names, checkpoint)
    found = component_files(source)
    return {name: OriginalCheckpoint(paths[0] if len(paths) == 1 else paths) for name, paths in found.items()}
