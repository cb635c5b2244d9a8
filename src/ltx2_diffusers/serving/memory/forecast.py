"""What a call takes of the device's memory, from the configurations of what is loaded: said by the worker, counted here."""

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import nn

from ... import devices, planning
from ...cli.fitting.wishes import wish
from ...cli.values import Options
from ...guidance.presets import preset
from ...memory.streaming import block_list
from ...models.video_vae import STREAMED_ABOVE
from ...pipelines.plan import ModelSizes
from ...pipelines.planned import clip_sizes, model_sizes, most_fitting, sizes_below
from ...planning.parts import num_bytes, tensors_of
from ...prompts.encoding import DEFAULT_TEXT_POSITIONS

logger = logging.getLogger(__name__)

MARGIN = 0.1
"""Share of what is counted that kernels, fragments, LoRA and references may take beside it."""
# Enough to find the most frames among a million.
_TRIES = 20
_GIB = 2**30
Facts = Mapping[str, Any]
"""What is known of a loaded checkpoint, in values that JSON holds; see [`memory_facts`]."""


def memory_facts(pipeline: Any, options: Options) -> dict[str, Any]:
    """What has to be known of a loaded pipeline to foretell the memory of its calls.

    Args:
        pipeline: It has the components of all modes.
        options: Options of `ltx2 generate` that say how it was loaded.

    Returns:
        `kind` of the device, `dtype`, `tiling`, text `positions`, `free` bytes of the device beside what is loaded,
        `configs` of the components that compute clips, and `weights`: of every component the bytes on the device while it
        waits and while it runs.
    """
    device, offload = torch.device(options["device"]), options["offload"]
    kind = "cuda" if device.type == "cuda" else "cpu"
    models: dict[str, Any] = {n: model for n, model in pipeline.components.items() if isinstance(model, nn.Module)}
    weights = {
        name: (_waiting(model, kind, offload), _running(model, kind, offload)) for name, model in models.items()
    }
    computing = [name for name in planning.COMPONENTS if name in models and name != planning.LANGUAGE_MODEL]
    configs = {name: {**_plain(models[name].config), "_class_name": type(models[name]).__name__} for name in computing}
    longest = getattr(pipeline.components.get("tokenizer"), "model_max_length", DEFAULT_TEXT_POSITIONS)
    card_gib = devices.free_gib(device)
    free = devices.host_gib() * _GIB if card_gib is None else card_gib * _GIB - torch.cuda.memory_allocated(device)
    return {
        "kind": kind,
        "dtype": options["dtype"],
        "tiling": bool(options.get("tiling")),
        "positions": min(longest, DEFAULT_TEXT_POSITIONS),
        "free": int(free),
        "configs": configs,
        "weights": weights,
    }


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name[0] != "_" and name != "quantization_config"}


def _waiting(model: nn.Module, kind: str, offload: str) -> int:
    """Bytes of a component on the device before it runs for the first time."""
    if kind == "cuda":
        return sum(tensor.nbytes for tensor in tensors_of(model) if tensor.device.type == kind)
    return _blocks(model)[0] if offload == "disk" else num_bytes(model)


def _running(model: nn.Module, kind: str, offload: str) -> int:
    """The same while it runs."""
    if offload == "disk" or (offload == "blocks" and kind == "cuda"):
        rest, block = _blocks(model)
        # One computes, and the next one is copied.
        return rest + 2 * block
    if offload == "sequential":
        return max(tensor.nbytes for tensor in tensors_of(model))
    return num_bytes(model)


def _blocks(model: nn.Module) -> tuple[int, int]:
    """Bytes of all that is no block of a component, and of its largest block."""
    try:
        sizes = [num_bytes(block) for block in model.get_submodule(block_list(model)).children()]
    except ValueError:
        return num_bytes(model), 0
    return num_bytes(model) - sum(sizes), max(sizes)


class Needs:
    """Bytes that calls take of a device.

    Args:
        facts: What is loaded.
        version, kind: Those of the checkpoint.
    """

    def __init__(self, facts: Facts, version: str, kind: str) -> None:
        self._facts, dtype = facts, getattr(torch, facts["dtype"])
        self._parts = planning.ModelParts("served", facts["configs"], preset(version, kind), dtype)
        self._lock = threading.Lock()

    def of(self, wish: planning.ClipWish) -> int:
        """Most bytes that a call takes, beside what lies on the device while nothing runs."""
        clips = planning.Clips(*clip_sizes(self._parts, replace(wish, num_videos=1), self._sizes))
        pixels = wish.num_videos * wish.num_frames * wish.height * wish.width
        streamed = pixels > STREAMED_ABOVE and not self._facts["tiling"]
        weights, taken = self._facts["weights"], []
        for peak in self._lines.peaks(wish, clips, streamed):
            moved = sum(max(weights[name][1] - weights[name][0], 0) for name in peak.uses)
            taken.append(int((1 + MARGIN) * (peak.activations + moved)))
        return max(taken)

    @cached_property
    def _sizes(self) -> ModelSizes:
        return model_sizes(self._parts)

    @property
    def _lines(self) -> planning.Lines:
        with self._lock:
            return self._counted

    @cached_property
    def _counted(self) -> planning.Lines:
        """Counted for the first clip that is asked for, which takes some seconds."""
        clips = [clip_sizes(self._parts, planning.ClipWish(*one), self._sizes)[0] for one in planning.SIZES]
        counts = planning.Counts(self._parts, self._facts["kind"], lambda model, _: model)
        return planning.Lines(counts, clips, self._facts["positions"], self._facts["tiling"])


@lru_cache(maxsize=2)
def _needs(facts: str, version: str, kind: str) -> Needs:
    """Of a checkpoint that was loaded before, by a server of this process, all that is known already."""
    return Needs(json.loads(facts), version, kind)


class Forecast:
    """Says whether the clips of requests fit beside the checkpoint.

    Args:
        facts: What is loaded.
        version, kind: Those of the checkpoint.
        memory_gb: Memory of the device that may be taken together with the weights, in GiB. Default what was free when they
            were loaded.
    """

    def __init__(self, facts: Facts, version: str, kind: str, memory_gb: float | None = None) -> None:
        self._needs = _needs(json.dumps({**facts, "free": None}, sort_keys=True), version, kind)
        self._kind = kind
        loaded = sum(waiting for waiting, _ in facts["weights"].values())
        self._free: float = facts["free"] if memory_gb is None else memory_gb * _GIB - loaded
        self._works = True

    def fits(self, options: Options, count: int = 1) -> bool:
        """Whether one call can make so many clips of these options."""
        clip = self._wish(options)
        return self._has_room(replace(clip, num_videos=count * clip.num_videos))

    def check(self, options: Options) -> None:
        """Refuse a clip that does not fit.

        Args:
            options: Options of `ltx2 generate`, defaults filled in.

        Raises:
            ValueError: Naming what makes it large, and what would fit.
        """
        clip = self._wish(options)
        if self._has_room(clip):
            return
        size = f"{clip.width}x{clip.height} pixels"
        what = f"`num_frames` {clip.num_frames} of {size} (`width`, `height`)"
        if "video" in options and "extend" not in options:
            what = f"`video`, {clip.num_frames} frames of {size},"
        elif "audio_only" in options:
            what = f"`duration` {options['duration']:g} s"
        raise ValueError(
            f"{what} would take about {_shown(self._needs.of(clip))} GiB of memory beside the checkpoint, and this server has "
            f"{_shown(max(self._free, 0))}; {self._nearest(clip)}"
        )

    def _wish(self, options: Options) -> planning.ClipWish:
        asked = wish(options)
        asked.pop("num_inference_steps", None)
        return planning.ClipWish(**{"guided": self._kind == "dev", **asked})

    def _has_room(self, clip: planning.ClipWish) -> bool:
        if not self._works:
            return True
        try:
            return self._needs.of(clip) <= self._free
        except Exception:
            # Whatever a checkpoint is made of, it can be tried.
            logger.exception("the memory of clips of this checkpoint cannot be foretold; all are taken")
            self._works = False
            return True

    def _nearest(self, clip: planning.ClipWish) -> str:
        """What fits, in words."""

        def shorter(frames: int) -> bool:
            given = frames if clip.given_frames else 0
            return self._has_room(replace(clip, num_frames=frames, given_frames=given))

        found = []
        if (frames := most_fitting(range(9, clip.num_frames, 8), shorter, _TRIES)) is not None:
            found.append(f"{frames} frames of this size")
        smaller = sizes_below(clip.height, clip.width, 64 if clip.two_stage else 32)
        size = most_fitting(smaller, lambda one: self._has_room(replace(clip, height=one[0], width=one[1])))
        if size is not None:
            found.append(f"{size[1]}x{size[0]} pixels of this length")
        return f"what fits is {', or '.join(found)}" if found else "ask for a smaller and shorter one"


def _shown(size: float) -> str:
    return f"{size / _GIB:.3g}"
