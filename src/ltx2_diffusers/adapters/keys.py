"""LoRA files in all layouts in use, read into one form and written in any of them.

A LoRA on a linear layer `[out, in]` has a down factor A `[r, in]` and an up factor B `[out, r]`; what it adds is
strength * (alpha / r) * B A. The one form has diffusers' module paths, and alpha apart from the factors.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import logging

from ..checkpoints.safetensors_io import Entry
from .modules import ModuleShapes, known_modules, nearest_module, original_module, written_names
from .settings import adapter_configs, configured_alpha
from .spellings import (
    ALPHA,
    BIAS,
    DOWN,
    MAGNITUDE,
    UP,
    find_module,
    refuse_other_kinds,
    split_name,
    without_compilation,
    without_wrappers,
)

logger = logging.get_logger(__name__)

LORA_FORMATS = ("diffusers", "original", "original_with_alpha", "kohya_dotted", "kohya_underscored", "peft", "bare")
_UNDERSCORED = "lora_unet_"
# No model is that deep; a damaged file shall not make a table without end.
_MOST_BLOCKS = 500
# Layouts of PEFT call the magnitudes of a DoRA by its name, others as ComfyUI reads them.
_PEFT_FORMATS = ("diffusers", "peft", "bare")


@dataclass(frozen=True)
class LoraLayer:
    """The LoRA of one module.

    Args:
        down, up: Its factors, `[r, in]` and `[out, r]`.
        alpha: What they are multiplied by, times r.
        magnitude: Of a DoRA, the length `[out]` of every row of the changed weight.
        bias: What is added to the product of the factors, `[out]`.
    """

    down: Entry
    up: Entry
    alpha: float
    magnitude: Entry | None = None
    bias: Entry | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def folded(self) -> "LoraLayer":
        """The same with alpha / r in the up factor and the bias, in their own dtypes."""
        if self.alpha == self.rank:
            return self
        scale = self.alpha / self.rank
        bias = None if self.bias is None else _scaled(self.bias, scale)
        return LoraLayer(self.down, _scaled(self.up, scale), self.rank, self.magnitude, bias)

    def tensors(self, name: str, down: str = "lora_A", up: str = "lora_B") -> dict[str, Entry]:
        """What PEFT keeps for this module, by the names it has under the module's name."""
        found = {f"{down}.weight": self.down, f"{up}.weight": self.up}
        if self.bias is not None:
            found[f"{up}.bias"] = self.bias
        if self.magnitude is not None:
            found["lora_magnitude_vector"] = self.magnitude
        return {f"{name}.{part}": entry for part, entry in found.items()}


LoraLayers = dict[tuple[str, str], LoraLayer]


def read_lora(
    tensors: Mapping[str, torch.Tensor | Entry],
    modules: ModuleShapes | None = None,
    metadata: Mapping[str, str] | None = None,
    strict: bool = False,
) -> LoraLayers:
    """Reads a LoRA of any known layout.

    Args:
        tensors: The file's tensors.
        modules: Linear modules of the models it is meant for (component -> diffusers path -> (out, in)); factors of
            other modules are dropped with a warning, sizes are checked. Components not named have all modules an LTX-2
            model can have, of any size.
        metadata: The file's metadata, of which diffusers' `lora_adapter_metadata` is honoured.
        strict: Whether factors of other modules are an error. Default `False`.

    Returns:
        (component, diffusers module path) -> factors, in the order of the file.

    Raises:
        ValueError: If the file is of another kind than LoRA, fits no module, lacks a factor, or has wrong sizes or types;
            with `strict` also if any tensor fits no module. Values are checked when they are read.
    """
    entries = {name: _as_entry(name, tensor) for name, tensor in tensors.items()}
    if not entries:
        raise ValueError("the LoRA holds no tensors")
    refuse_other_kinds(entries)
    modules = {**known_modules(*_num_blocks(entries)), **(modules or {})}
    table = {name.replace(".", "_"): place for name, place in written_names(modules).items()}
    parts: dict[tuple[str, str], dict[str, str]] = {}
    unmatched = []
    for name in entries:
        module, part = split_name(name)
        place = find_module(module, modules, table) if part else None
        if place is None:
            unmatched.append(name)
        elif (first := parts.setdefault(place, {}).setdefault(part, name)) is not name:
            raise ValueError(f"the LoRA holds the {part} part of {place[1]} twice, as {first!r} and {name!r}")
    _report_unmatched(unmatched, len(entries), bool(parts), strict, modules)
    configs = adapter_configs(metadata or {})
    layers = {
        place: _layer(place[1], names, entries, modules[place[0]][place[1]], configs[place[0]])
        for place, names in parts.items()
    }
    _check_variants(layers, configs)
    return layers


def lora_to_format(layers: LoraLayers, layout: str, fold_alpha: bool = True) -> dict[str, Entry]:
    """Names the factors as one of `LORA_FORMATS` does.

    Args:
        layers: What [`read_lora`] returned.
        layout: One of `LORA_FORMATS`; those with alpha get alpha = r, which changes nothing.
        fold_alpha: Whether to multiply alpha / r into the up factors. Default `True`.
    """
    if layout not in LORA_FORMATS:
        raise ValueError(f"format must be one of {', '.join(LORA_FORMATS)}, got {layout!r}")
    kohya = layout.startswith("kohya")
    result: dict[str, Entry] = {}
    for (component, path), layer in layers.items():
        name = _module_name(component, path, layout)
        layer = layer.folded if fold_alpha else layer
        tensors = layer.tensors(name, *(("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")))
        if layer.magnitude is not None and layout not in _PEFT_FORMATS:
            magnitude = tensors.pop(f"{name}.lora_magnitude_vector")
            tensors[f"{name}.dora_scale"] = _reshaped(magnitude, (*magnitude.shape, 1))
        result |= tensors
        if kohya or layout == "original_with_alpha":
            result[f"{name}.alpha"] = Entry.of(torch.tensor(float(layer.rank)))
    return result


def linear_shapes(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """Paths and sizes (out, in) of a model's linear layers, for `modules` of [`read_lora`].

    Layers that already carry an adapter are reported under their own path.
    """
    return {
        without_compilation(path).removesuffix(".base_layer"): (module.out_features, module.in_features)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".lora_" not in path
    }


def _as_entry(name: str, tensor: Any) -> Entry:
    if not isinstance(name, str) or not isinstance(tensor, Entry | torch.Tensor):
        raise ValueError(f"a LoRA holds tensors by name, but {name!r} is of type {type(tensor).__name__}")
    if isinstance(tensor, Entry):
        return tensor
    if tensor.is_meta:
        raise ValueError(f"the tensor {name!r} has no values (it is on the device 'meta'); load it first")
    return Entry.of(tensor.detach())


def _scaled(entry: Entry, scale: float) -> Entry:
    return Entry(entry.dtype, entry.shape, lambda: (entry.load().float() * scale).to(entry.dtype))


def _reshaped(entry: Entry, shape: tuple[int, ...]) -> Entry:
    return Entry(entry.dtype, shape, lambda: entry.load().reshape(shape))


def _finite(name: str, entry: Entry) -> Entry:
    """The tensor of a factor; `ValueError` if it cannot be one, at the latest when it is read."""
    if not entry.dtype.is_floating_point:
        raise ValueError(f"the tensor {name!r} is of type {entry.dtype}; a LoRA has floating-point factors")
    # Nothing computes in fp8, and bfloat16 holds all its values.
    entry = entry.to(torch.bfloat16) if entry.dtype.itemsize == 1 else entry

    def load() -> torch.Tensor:
        tensor = entry.load()
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"the tensor {name!r} holds NaN or infinite values; the file is damaged or its training failed"
            )
        return tensor

    return Entry(entry.dtype, entry.shape, load)


def _num_blocks(entries: Mapping[str, Entry]) -> tuple[int, int]:
    """Upper bounds of the block numbers a file speaks of: in the transformer, and in the connectors."""
    bounds = [0, 0]
    for key in entries:
        if match := re.search(r"transformer(?:_1d)?_blocks[._](\d{1,6})[._]", key):
            side = 1 if "connector" in key else 0
            bounds[side] = min(max(bounds[side], int(match[1]) + 1), _MOST_BLOCKS)
    return bounds[0], bounds[1]


def _report_unmatched(unmatched: list[str], total: int, found: bool, strict: bool, modules: ModuleShapes) -> None:
    if not unmatched:
        return
    nearest = (
        f"the module nearest to the first is {nearest_module(without_wrappers(split_name(unmatched[0])[0]), modules)}"
    )
    if not found:
        raise ValueError(
            f"none of the {total} tensors is a LoRA factor of an LTX-2 module, e.g. "
            f"{', '.join(repr(key) for key in unmatched[:3])}; understood are diffusion_model.<module>.lora_A.weight "
            "(Lightricks), transformer.<module>.lora_A.weight (diffusers), base_model.model.<module>.lora_A.weight "
            "(PEFT), <module>.lora_A.weight, and <module>.lora_down.weight or lora_unet_<module>.lora_down.weight "
            f"(kohya); {nearest}"
        )
    if strict:
        shown = ", ".join(unmatched[:8]) + (f" and {len(unmatched) - 8} more" if len(unmatched) > 8 else "")
        raise ValueError(
            f"{len(unmatched)} of {total} LoRA tensors match no module of the model, which may be of another version: "
            f"{shown}; {nearest}"
        )
    logger.warning(
        f"{len(unmatched)} of {total} LoRA tensors match no module of the model and are not used, e.g. "
        f"{', '.join(unmatched[:3])}"
    )


def _layer(
    path: str,
    names: Mapping[str, str],
    entries: Mapping[str, Entry],
    shape: tuple[int, int] | None,
    config: Mapping[str, Any],
) -> LoraLayer:
    """The LoRA of one module from its tensors, whose names are given by part."""
    if missing := [part for part in (DOWN, UP) if part not in names]:
        raise ValueError(
            f"the LoRA has no {missing[0]} factor for {path}, although it has other tensors of it, such as "
            f"{next(iter(names.values()))!r}"
        )
    found = {part: _finite(name, entries[name]) for part, name in names.items() if part != ALPHA}
    down, up = found[DOWN], found[UP]
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1] or not down.shape[0]:
        raise ValueError(
            f"the LoRA factors of {path} do not fit together: {names[DOWN]!r} is {list(down.shape)}, {names[UP]!r} "
            f"{list(up.shape)}; they have to be [r, in] and [out, r] with r above 0"
        )
    rank, out = down.shape[0], up.shape[0]
    if shape is not None and (out, down.shape[1]) != tuple(shape):
        raise ValueError(
            f"the LoRA factors of {path} are for a layer of [{out}, {down.shape[1]}], but the model's is {list(shape)}"
        )
    for part, shapes in ((MAGNITUDE, [(out,), (out, 1)]), (BIAS, [(out,)])):
        if part in found and found[part].shape not in shapes:
            raise ValueError(
                f"the tensor {names[part]!r} has to be {' or '.join(str(list(one)) for one in shapes)} but is "
                f"{list(found[part].shape)}"
            )
    alpha = _alpha(names[ALPHA], entries[names[ALPHA]]) if ALPHA in names else configured_alpha(path, rank, config)
    magnitude = _reshaped(found[MAGNITUDE], (out,)) if MAGNITUDE in found else None
    # A whole number stays one, as PEFT's settings hold it.
    return LoraLayer(down, up, rank if alpha == rank else alpha, magnitude, found.get(BIAS))


def _alpha(name: str, entry: Entry) -> float:
    value = entry.load().float().flatten().tolist() if math.prod(entry.shape) == 1 else []
    if not value or not math.isfinite(value[0]):
        raise ValueError(f"the tensor {name!r} has to be one finite number but is {value or list(entry.shape)}")
    return value[0]


def _check_variants(layers: LoraLayers, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `ValueError` for a DoRA without its magnitudes, or with biases, which PEFT cannot compute."""
    for component, config in configs.items():
        own = {path: layer for (owner, path), layer in layers.items() if owner == component}
        doras = [path for path, layer in own.items() if layer.magnitude is not None]
        if own and config.get("use_dora") and not doras:
            raise ValueError(f"the metadata says that the adapter of {component} is DoRA, but it has no magnitudes")
        if doras and any(layer.bias is not None for layer in own.values()):
            raise ValueError(f"the adapter of {component} is DoRA with biases, which PEFT cannot compute")


def _module_name(component: str, path: str, layout: str) -> str:
    if layout == "diffusers":
        return f"{component}.{path}"
    original = original_module(component, path)
    if layout == "kohya_underscored":
        return _UNDERSCORED + original.replace(".", "_")
    if layout == "bare":
        return original
    if layout == "peft":
        return f"base_model.model.{original}"
    return original if original.startswith("text_embedding_projection.") else f"diffusion_model.{original}"
