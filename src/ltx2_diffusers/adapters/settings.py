"""What the metadata of a LoRA file says: PEFT's settings, and the scale of an IC-LoRA's references."""

import json
import math
import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

# Where diffusers keeps PEFT's settings, as JSON: `<component>.<field of LoraConfig>`, or the field alone.
ADAPTER_METADATA = "lora_adapter_metadata"
_COMPONENTS = ("transformer", "connectors")
_DOWNSCALE = ("reference_downscale_factor", "reference_spatial_scale_factor")
_TEMPORAL_SCALE = ("reference_temporal_scale_factor",)
# Trainers of the kohya family put this before what they write of their own.
_TRAINER_PREFIX = "ss_"


def is_finite_number(value: Any) -> bool:
    """Whether a value is a finite number, of Python or numpy."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        # A whole number beyond all floats.
        return False


def adapter_configs(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Per component the LoRA settings in the file's metadata.

    Raises:
        ValueError: Naming the setting, if they cannot be read or hold what no LoRA can have.
    """
    text = metadata.get(ADAPTER_METADATA, "{}")
    try:
        settings = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"the metadata {ADAPTER_METADATA!r} is no JSON: {_shortened(text)}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"the metadata {ADAPTER_METADATA!r} has to be a JSON object but is {_shortened(settings)}")
    found: dict[str, dict[str, Any]] = {component: {} for component in _COMPONENTS}
    for name, value in settings.items():
        component, dot, field = name.rpartition(".")
        # A model that saves its own adapter has no other component to tell it from.
        for own in [component] if dot else _COMPONENTS:
            if own in found:
                _check_setting(name, field, value)
                found[own][field] = value
    return found


def configured_alpha(path: str, rank: int, config: Mapping[str, Any]) -> float:
    """The alpha of a module in PEFT's settings, else r."""
    if config.get("lora_alpha") is None:
        return rank
    patterns = config.get("alpha_pattern") or {}
    # PEFT's rule; its names are regular expressions, and diffusers writes full paths with a leading ^.
    special = (value for name, value in patterns.items() if re.fullmatch(rf"(.*\.)?({name})", path))
    value = next(special, config["lora_alpha"])
    # A rank-stabilised LoRA divides by the root of r instead.
    return value * rank**0.5 if config.get("use_rslora") else value


def reference_factors(metadata: Mapping[str, str]) -> tuple[int, int]:
    """How much smaller than the target an IC-LoRA expects its reference, in pixels and in frames per second.

    Raises:
        ValueError: Naming the entry, if it is no positive whole number, or contradicts another spelling of it.
    """
    return _reference_factor(metadata, _DOWNSCALE), _reference_factor(metadata, _TEMPORAL_SCALE)


def hdr_transform(metadata: Mapping[str, str]) -> str | None:
    """The curve of the signal that an HDR IC-LoRA makes, by its name, or `None` if it makes none."""
    for name in ("hdr_transform", "use_hdr_transform"):
        text = metadata.get(name, "").strip().lower()
        if text not in ("", "none", "false", "0"):
            return "logc3" if text in ("true", "1") else text
    return None


def _reference_factor(metadata: Mapping[str, str], names: tuple[str, ...]) -> int:
    spellings = [prefix + name for name in names for prefix in ("", _TRAINER_PREFIX)]
    written = {name: metadata[name] for name in spellings if name in metadata}
    # These trainers write all they know of, also what was not set.
    set_ones = {n: text for n, text in written.items() if not (n.startswith(_TRAINER_PREFIX) and text == "None")}
    found = {name: _positive_integer(name, text) for name, text in set_ones.items()}
    if len(set(found.values())) > 1:
        raise ValueError(f"the metadata contradicts itself: {found}; correct the file")
    return next(iter(found.values()), 1)


def _positive_integer(name: str, text: str) -> int:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = 0.0
    if not (value >= 1 and value.is_integer()):
        raise ValueError(f"the metadata {name!r} has to be a positive whole number but is {_shortened(text)}; use '1'")
    return int(value)


def _check_setting(name: str, field: str, value: Any) -> None:
    """Raise `ValueError` for a setting that decides what is added and has no possible value."""
    if value is None:
        return
    wanted = ""
    if field == "lora_alpha":
        wanted = "" if is_finite_number(value) else "a finite number"
    elif field == "r":
        wanted = "" if isinstance(value, int) and value > 0 else "a positive whole number"
    elif field in ("alpha_pattern", "rank_pattern"):
        wanted = "" if _is_pattern(value) else "finite numbers by module name"
    elif field in ("use_rslora", "use_dora"):
        wanted = "" if isinstance(value, bool) else "true or false"
    elif field == "peft_type":
        wanted = "" if value == "LORA" else '"LORA"'
    if wanted:
        raise ValueError(
            f"{name!r} in the metadata {ADAPTER_METADATA!r} has to be {wanted} but is {_shortened(value)}"
        )


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, dict) and all(re.compile(n) and is_finite_number(v) for n, v in value.items())
    except (re.error, RecursionError):
        return False


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
