"""LoRA files in all layouts in use, read into one form and written in any of them.

A LoRA on a linear layer `[out, in]` has a down factor A `[r, in]` and an up factor B `[out, r]`; what it adds is
strength * (alpha / r) * B A. The one form has diffusers' module paths, and alpha apart from the factors.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import logging

from ..checkpoints import keys
from ..checkpoints.safetensors_io import Entry
from .modules import ModuleShapes, known_modules, nearest_module, original_module, underscored_modules

logger = logging.get_logger(__name__)

LORA_FORMATS = (
    "diffusers",
    "original",
    "original_with_alpha",
    "kohya_dotted",
    "kohya_underscored",
    "peft",
    "bare",
)
_UNDERSCORED = "lora_unet_"
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<factor>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(\.[^.]+)?\.weight"
)
_DOWN = {"lora_A", "lora_down", "lora.down"}
_OTHER_KINDS = {
    "DoRA": ("dora_scale", "lora_magnitude_vector"),
    "a full weight difference": (".diff", ".diff_b"),
    "LoKr": ("lokr_",),
    "LoHa": ("loha_", "hada_"),
    "OFT": ("oft_",),
    "a LoRA with biases": ("lora_B.bias", "lora_up.bias"),
    "a LoRA of convolutions": ("lora_mid.weight",),
}
_CONNECTOR_PREFIXES = tuple(f"{root}." for root in keys.CONNECTOR_ROOTS)
ADAPTER_METADATA = "lora_adapter_metadata"


@dataclass(frozen=True)
class LoraLayer:
    """The two factors of one module, `down` `[r, in]` and `up` `[out, r]`, and their alpha (`None` stands for r)."""

    down: Entry
    up: Entry
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def folded_up(self) -> Entry:
        """The up factor times alpha / r, in its own dtype."""
        if self.alpha is None:
            return self.up
        scale = self.alpha / self.rank
        return Entry(self.up.dtype, self.up.shape, lambda: (self.up.load().float() * scale).to(self.up.dtype))


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
        ValueError: If the file is of another kind than LoRA, fits no module, lacks a factor, or has wrong sizes; with
            `strict` also if any tensor fits no module.
    """
    _refuse_other_kinds(tensors)
    entries = {key: _as_entry(tensor) for key, tensor in tensors.items()}
    modules = {**known_modules(*_num_blocks(entries)), **(modules or {})}
    table = underscored_modules(modules)
    factors: dict[tuple[str, str], dict[str, Entry]] = {}
    unmatched = []
    for key, entry in entries.items():
        module, part = _split(key)
        place = _place(module, modules, table) if part else None
        if place is None:
            unmatched.append(key)
        elif factors.setdefault(place, {}).setdefault(part, entry) is not entry:
            raise ValueError(f"the LoRA holds the {part} factor of {place[1]} twice, the second time as {key!r}")
    if not entries:
        raise ValueError("the LoRA holds no tensors")
    _report_unmatched(unmatched, len(entries), bool(factors), strict, modules)
    adapter_configs = _adapter_configs(metadata or {})
    return {
        place: _layer(place, found, modules[place[0]][place[1]], adapter_configs.get(place[0], {}))
        for place, found in factors.items()
    }


def lora_to_format(layers: LoraLayers, layout: str) -> dict[str, Entry]:
    """Names the factors as one of `LORA_FORMATS` does; layouts with alpha get alpha = r, which changes nothing."""
    if layout not in LORA_FORMATS:
        raise ValueError(f"format must be one of {', '.join(LORA_FORMATS)}, got {layout!r}")
    kohya = layout.startswith("kohya")
    down_name, up_name = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
    result = {}
    for (component, path), layer in layers.items():
        name = _module_name(component, path, layout)
        result[f"{name}.{down_name}.weight"] = layer.down
        result[f"{name}.{up_name}.weight"] = layer.folded_up
        if kohya or layout == "original_with_alpha":
            result[f"{name}.alpha"] = _as_entry(torch.tensor(float(layer.rank)))
    return result


def linear_shapes(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """Paths and sizes (out, in) of a model's linear layers, for `modules` of [`read_lora`].

    Layers that already carry an adapter are reported under their own path.
    """
    return {
        path.removesuffix(".base_layer"): (module.out_features, module.in_features)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".lora_" not in path
    }


def _refuse_other_kinds(tensors: Mapping[str, torch.Tensor | Entry]) -> None:
    for kind, marks in _OTHER_KINDS.items():
        for key in tensors:
            if any(key.endswith(mark) if mark.startswith(".") else mark in key for mark in marks):
                raise ValueError(f"this adapter is {kind} (tensor {key!r}); only plain LoRA is supported")


def _as_entry(tensor: torch.Tensor | Entry) -> Entry:
    return tensor if isinstance(tensor, Entry) else Entry.of(tensor)


def _num_blocks(entries: Mapping[str, Entry]) -> tuple[int, int]:
    """Upper bounds of the block numbers a file speaks of: in the transformer, and in the connectors."""
    bounds = [0, 0]
    for key in entries:
        if match := re.search(r"transformer(?:_1d)?_blocks[._](\d+)[._]", key):
            side = 1 if "connector" in key else 0
            bounds[side] = max(bounds[side], int(match[1]) + 1)
    return bounds[0], bounds[1]


def _split(key: str) -> tuple[str, str]:
    """Module name as written, and "down", "up" or "alpha"; an empty part if the key is none of them."""
    if key.endswith(".alpha"):
        return key.removesuffix(".alpha"), "alpha"
    match = _FACTOR.fullmatch(key)
    if match is None:
        return key, ""
    return match["module"], "down" if match["factor"] in _DOWN else "up"


def _place(name: str, modules: ModuleShapes, table: Mapping[str, tuple[str, str]]) -> tuple[str, str] | None:
    """The component and diffusers path that a module name of any layout stands for; None if there is none."""
    if name.startswith(_UNDERSCORED):
        return table.get(name.removeprefix(_UNDERSCORED))
    name = name.removeprefix("base_model.model.")
    for prefix in ("model.diffusion_model.", "diffusion_model.", "transformer."):
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            break
    component = "transformer"
    for prefix in ("connectors.", "text_embedding_projection."):
        if name.startswith(prefix):
            component, name = "connectors", name.removeprefix(prefix)
    if name.startswith(_CONNECTOR_PREFIXES):
        component = "connectors"
    path = keys.rename(component, [name], to="diffusers")[name]
    return (component, path) if path in modules.get(component, {}) else None


def _report_unmatched(unmatched: list[str], total: int, found: bool, strict: bool, modules: ModuleShapes) -> None:
    if not unmatched:
        return
    nearest = f"the module nearest to the first is {nearest_module(_split(unmatched[0])[0], modules)}"
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


def _adapter_configs(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Per component the LoRA settings that diffusers saves in the file's metadata."""
    result: dict[str, dict[str, Any]] = {}
    for name, value in json.loads(metadata.get(ADAPTER_METADATA, "{}")).items():
        component, _, field = name.partition(".")
        result.setdefault(component, {})[field] = value
    for component, config in result.items():
        if config.get("use_dora"):
            raise ValueError(
                f"this adapter is DoRA (lora_adapter_metadata of {component}); only plain LoRA is supported"
            )
    return result


def _layer(
    place: tuple[str, str], found: Mapping[str, Entry], shape: tuple[int, int] | None, config: Mapping[str, Any]
) -> LoraLayer:
    path = place[1]
    if missing := [part for part in ("down", "up") if part not in found]:
        raise ValueError(f"the LoRA has no {missing[0]} factor for {path}, although it has other tensors of it")
    down, up = found["down"], found["up"]
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1]:
        raise ValueError(f"the LoRA factors of {path} do not fit together: down {down.shape}, up {up.shape}")
    if shape is not None and (up.shape[0], down.shape[1]) != tuple(shape):
        raise ValueError(
            f"the LoRA factors of {path} are for a layer of [{up.shape[0]}, {down.shape[1]}], "
            f"but the model's is {list(shape)}"
        )
    alpha = _alpha(path, down.shape[0], found.get("alpha"), config)
    return LoraLayer(down, up, None if alpha == down.shape[0] else alpha)


def _alpha(path: str, rank: int, alpha: Entry | None, config: Mapping[str, Any]) -> float:
    """The module's own alpha, else the one in diffusers' settings, else r."""
    if alpha is not None:
        return float(alpha.load())
    if "lora_alpha" not in config:
        return rank
    patterns = config.get("alpha_pattern") or {}
    # PEFT's rule; its names are regular expressions, and diffusers writes full paths with a leading ^.
    special = (value for name, value in patterns.items() if re.fullmatch(rf"(.*\.)?({name})", path))
    value = next(special, config["lora_alpha"])
    # A rank-stabilised LoRA divides by the root of r instead.
    return value * rank**0.5 if config.get("use_rslora") else value


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
