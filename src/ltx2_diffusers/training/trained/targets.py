"""Which linear layers a LoRA is put on: presets, names, and what of it a strategy never runs.

A name stands for every layer whose path is that name or ends with a dot and that name, which is PEFT's rule: `attn1.to_k`
means the video's self-attention of every block, and not `audio_attn1.to_k`.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ...adapters.keys import linear_shapes
from ...conditioning.streams import Streams

_ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
_FEED_FORWARD = ("net.0.proj", "net.2")
_CONNECTORS = "connectors."
# Training starts from the features behind these, so they never run.
_TEXT_PROJECTION = re.compile(r"(video_|audio_)?text_proj_in$")
_BLOCK = re.compile(r"transformer_blocks\.\d+\.")
_BOTH_STREAMS = re.compile(r"audio_to_video_|video_to_audio_|av_cross_attn_")


def _in_each(modules: Iterable[str], layers: Iterable[str] = _ATTENTION) -> tuple[str, ...]:
    return tuple(f"{module}.{layer}" for module in modules for layer in layers)


_VIDEO = _in_each(("attn1", "attn2"))
_AUDIO = (*_in_each(("audio_attn1", "audio_attn2")), *_in_each(("audio_ff",), _FEED_FORWARD))
_VIDEO_FEED_FORWARD = _in_each(("ff",), _FEED_FORWARD)

PRESETS: dict[str, tuple[str, ...]] = {
    "av": _ATTENTION,
    "video": _VIDEO,
    "ic_lora": (*_VIDEO, *_VIDEO_FEED_FORWARD),
    "audio": _AUDIO,
    "cross_modal": _in_each(("audio_to_video_attn", "video_to_audio_attn")),
    "video_to_audio": (*_AUDIO, *_in_each(("video_to_audio_attn",))),
    "text": _in_each(("attn2", "audio_attn2")),
    "all": (*_ATTENTION, *_VIDEO_FEED_FORWARD, *_in_each(("audio_ff",), _FEED_FORWARD)),
    "connectors": tuple(f"{_CONNECTORS}{layer}" for layer in (*_ATTENTION, *_in_each(("ff",), _FEED_FORWARD))),
}
"""Names of layers by preset: `av` is all attention, `all` that and all feed-forward layers of the blocks."""


@dataclass(frozen=True)
class Targets:
    """Names of layers by the model that they are in, each for all paths that end with it.

    Args:
        transformer: Of the transformer.
        connectors: Of the text connectors.
    """

    transformer: tuple[str, ...] = ()
    connectors: tuple[str, ...] = ()


def resolve(targets: str | Sequence[str]) -> Targets:
    """The names of layers that presets and names stand for, each once, in their order.

    Args:
        targets: A preset or a name, or a list of them. Names that begin with `connectors.`, `video_connector.` or
            `audio_connector.` are of the text connectors, all others of the transformer.

    Raises:
        ValueError: Without any, or if one names a text projection: training reads the features behind it.
    """
    listed = [targets] if isinstance(targets, str) else list(targets)
    names = list(dict.fromkeys(name for target in listed for name in PRESETS.get(target, (target,))))
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(
            f"`lora.target_modules` has to name presets ({', '.join(PRESETS)}) or layers but is {targets!r}; use 'av'"
        )
    for name in names:
        if _TEXT_PROJECTION.search(name):
            raise ValueError(
                f"`lora.target_modules` names {name!r}, which never runs in training: its results are what the data set "
                "holds; use 'connectors'"
            )
    of_connectors = [name for name in names if name.startswith((_CONNECTORS, "video_connector.", "audio_connector."))]
    return Targets(
        tuple(name for name in names if name not in of_connectors),
        tuple(name.removeprefix(_CONNECTORS) for name in of_connectors),
    )


def matching_modules(model: torch.nn.Module, targets: Iterable[str]) -> list[str]:
    """Paths of the linear layers that are among the targets, in the order of the model.

    Args:
        model: The model, on any device; layers that carry adapters already count under their own path.
        targets: Names of layers, as [`resolve`] returns them for this model.

    Raises:
        ValueError: If a target is no layer of this model; it names the nearest.
    """
    paths, wanted = list(linear_shapes(model)), list(targets)
    found = {target: [path for path in paths if _matches(path, target)] for target in wanted}
    for target, matches in found.items():
        if not matches:
            raise ValueError(
                f"`lora.target_modules` names {target!r}, which is no linear layer of the {type(model).__name__}; did you "
                f"mean {_nearest(target, paths)!r}? Presets are {', '.join(PRESETS)}"
            )
    chosen = {path for matches in found.values() for path in matches}
    return [path for path in paths if path in chosen]


def unused_modules(names: Iterable[str], runs: Streams[bool]) -> list[str]:
    """The layers that never run if only some streams are there.

    Args:
        names: Paths of layers in the transformer or the connectors.
        runs: Which streams the model is given.

    Returns:
        Those among `names` that belong to an absent stream or to the attention between the streams.
    """
    return [name for name in names if not all(getattr(runs, stream) for stream in _streams_of(name))]


def _streams_of(path: str) -> tuple[str, ...]:
    """The streams without any one of which a layer does not run."""
    if path.startswith("audio_connector."):
        return ("audio",)
    place = _BLOCK.sub("", path)
    if _BOTH_STREAMS.match(place):
        return ("video", "audio")
    return ("audio",) if place.startswith("audio_") else ("video",)


def _matches(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")


def _nearest(target: str, paths: Iterable[str]) -> str:
    """The preset or the end of a path that a misspelt target is most like."""
    ends = {
        ".".join(parts[start:])
        for parts in (_BLOCK.sub("", p).split(".") for p in paths)
        for start in range(len(parts))
    }
    words = sorted({*PRESETS, *(end for end in ends if not end[0].isdigit())})
    return difflib.get_close_matches(_BLOCK.sub("", target), words, n=1, cutoff=0.0)[0]
