"""Which family, generation and kind of model a checkpoint or a configuration belongs to."""

import os
import re
from collections.abc import Mapping
from typing import Any

from .class_names import FAMILIES, LTX_VIDEO_CLASSES
from .json_files import parse_object, read_object
from .original import OriginalCheckpoint
from .packaged import checkpoint_path

_NAMES = {"ltx2": ("LTX-2", "LTX2Pipeline"), "ltx_video": ("LTX-Video", "LTXVideoPipeline")}
# Names of repositories and files of LTX-Video, as published; later generations are LTX-2.
_LTX_VIDEO = re.compile(r"ltx[-_]?v|ltx[-_]0\.9", re.IGNORECASE)


def checkpoint_family(name: str | os.PathLike) -> str:
    """The family of a checkpoint, one of `FAMILIES`; of a repository of the Hub as its name says it.

    Args:
        name: A folder in diffusers' layout, an original file, a packaged name or a Hub id. Nothing is fetched.
    """
    path = checkpoint_path(os.fspath(name))
    if path.is_file():
        return OriginalCheckpoint(path, mmap=True).family
    if not path.is_dir():
        return FAMILIES[_LTX_VIDEO.search(os.fspath(name)) is not None]
    index = path / "model_index.json"
    entry = read_object(index).get("transformer") if index.is_file() else None
    return FAMILIES[isinstance(entry, list) and LTX_VIDEO_CLASSES["transformer"] in entry]


def check_family(shown: str, found: str, wanted: str, method: str) -> None:
    """Raise `ValueError` for a checkpoint of another family than a pipeline's.

    Args:
        shown: The checkpoint, as the message names it.
        found, wanted: Its family, and that of the pipeline.
        method: How the pipeline is loaded.
    """
    if found != wanted:
        (name, pipeline), (other, _) = _NAMES[found], _NAMES[wanted]
        raise ValueError(
            f"{shown} is a checkpoint of {name}, another family than that of this pipeline, {other}; load it with {pipeline}.{method}"
        )


def check_ltx2(name: str | os.PathLike, instead: str) -> None:
    """Raise `ValueError` for a checkpoint of LTX-Video, saying what to do `instead`."""
    if checkpoint_family(name) != FAMILIES[0]:
        raise ValueError(f"{os.fspath(name)!r} is a checkpoint of LTX-Video, not LTX-2; {instead}")


def model_version(transformer_config: Mapping[str, Any]) -> str:
    """The generation of a transformer, read from the switches that came with it."""
    if transformer_config.get("use_keyframes_abs_pos_embedding") or not transformer_config.get("ff_bias", True):
        return "2.5"
    if transformer_config.get("cross_attn_mod") or transformer_config.get("gated_attn"):
        return "2.3"
    return "2.0"


def check_gemma(metadata: Mapping[str, str], text_config: Mapping[str, Any], name: str) -> None:
    """Refuse a text encoder of another version than a checkpoint was trained with, where both say theirs.

    Args:
        metadata: Metadata of the original file with the transformer.
        text_config: Configuration of the text encoder.
        name: What messages call the checkpoint.
    """
    wanted = parse_object(metadata.get("gemma_source_checkpoint", "{}"), f"`gemma_source_checkpoint` of {name!r}")
    versions = [said.get("gemma_version") for said in (wanted, text_config)]
    if None not in versions and versions[0] != versions[1]:
        raise ValueError(
            f"{name!r} was trained with the text encoder {versions[0]!r}, but `text_encoder` is {versions[1]!r}; load the former"
        )


def model_kind(scheduler_config: Mapping[str, Any]) -> str:
    """`"distilled"` if the scheduler takes given noise levels as they are, else `"dev"`."""
    return "dev" if scheduler_config.get("use_dynamic_shifting", True) else "distilled"
