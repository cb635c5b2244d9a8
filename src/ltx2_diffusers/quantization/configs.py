"""What a user asks for: quantisation configurations as diffusers takes them, by object or by name."""

import copy
import difflib
import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from diffusers import PipelineQuantizationConfig
from diffusers.quantizers.quantization_config import QuantizationConfigMixin

from .layers import VARIANTS


class FP8Method(StrEnum):
    """Names of the methods, as they stand in a saved configuration."""

    CAST = "fp8_cast"
    SCALED_MM = "fp8_scaled_mm"


class _FP8Config(QuantizationConfigMixin):
    """What diffusers asks of every configuration beside `to_dict`."""

    def to_diff_dict(self) -> dict[str, Any]:
        """What its text shows."""
        return self.to_dict()


class FP8CastConfig(_FP8Config):
    """Linear layers of the transformer's blocks are stored in float8 and upcast when they are used.

    Half the memory of bfloat16, on any device, and lossy: weights keep three bits of mantissa. Weights beyond 448 are
    refused. On a file with scaled float8 weights, these are multiplied with their scales first.

    Args:
        variant (`str`, defaults to `"newest"`): `"newest"` stores all attention and feed-forward layers, as the newest
            reference does; `"2.0"` leaves those feed-forward layers that belong to the sound, as that of LTX-2.0 does.
        quant_method (`str`, *optional*): Stands in saved configurations; `"fp8_cast"` is the only value.
    """

    def __init__(self, variant: str = "newest", quant_method: str = FP8Method.CAST.value) -> None:
        _check_method(quant_method, FP8Method.CAST)
        if variant not in VARIANTS:
            raise ValueError(
                f"`variant` must be one of {', '.join(map(repr, VARIANTS))}, got {variant!r}; use 'newest'"
            )
        register()
        self.quant_method = FP8Method.CAST  # type: ignore[assignment]  # diffusers lists its own methods
        self.variant = variant

    def to_dict(self) -> dict[str, Any]:
        """What a saved model says of itself."""
        return {"quant_method": FP8Method.CAST.value, "variant": self.variant}


class FP8ScaledMMConfig(_FP8Config):
    """Linear layers of the transformer's blocks are stored and multiplied in float8, each with its scales.

    Layers that a file holds as scaled float8 stay as they are stored, and no others are added. Of real weights, all
    blocks but the first and the last tenth are rounded, one tensor at a time. Inputs are rounded, too: with the scale of
    the file, else with that of the calibration, else with one of each input. Lossy; the product needs a GPU of compute
    capability 8.9 or more to be quick.

    Args:
        calibration_amax_path (`str`, *optional*): JSON file with the largest input of layers, as `ltx2 calibrate` writes
            it. Layers that it names take their input scale from it, also those of a file with scales. Saved models
            hold the scales, and not this path.
        quant_method (`str`, *optional*): Stands in saved configurations; `"fp8_scaled_mm"` is the only value.
    """

    def __init__(
        self, calibration_amax_path: str | os.PathLike | None = None, quant_method: str = FP8Method.SCALED_MM.value
    ) -> None:
        _check_method(quant_method, FP8Method.SCALED_MM)
        if calibration_amax_path is not None and not Path(calibration_amax_path).is_file():
            raise FileNotFoundError(
                f"`calibration_amax_path`: there is no file {os.fspath(calibration_amax_path)!r}; `ltx2 calibrate` writes one"
            )
        register()
        self.quant_method = FP8Method.SCALED_MM  # type: ignore[assignment]  # as above
        self.calibration_amax_path = calibration_amax_path

    def to_dict(self) -> dict[str, Any]:
        """What a saved model says of itself; the scales are in its weights."""
        return {"quant_method": FP8Method.SCALED_MM.value}


FP8Config = FP8CastConfig | FP8ScaledMMConfig


class QuantizationPolicy:
    """The FP8 methods under the names of the original code."""

    @staticmethod
    def fp8_cast() -> FP8CastConfig:
        """Store in float8, compute as before."""
        return FP8CastConfig()

    @staticmethod
    def fp8_scaled_mm(calibration_amax_path: str | os.PathLike | None = None) -> FP8ScaledMMConfig:
        """Store and multiply in float8.

        Args:
            calibration_amax_path: File of a calibration, default none.
        """
        return FP8ScaledMMConfig(calibration_amax_path)


_BY_NAME: dict[str, type[FP8CastConfig] | type[FP8ScaledMMConfig]] = {
    FP8Method.CAST.value: FP8CastConfig,
    FP8Method.SCALED_MM.value: FP8ScaledMMConfig,
}
NAMES = tuple(_BY_NAME)
"""What may be given in the place of a configuration."""
TRANSFORMERS = ("transformer", "stage_2_transformer")
"""Components of a pipeline for which a configuration holds that names none."""


def as_config(value: Any) -> Any:
    """The configuration that a user means.

    Args:
        value: A configuration of diffusers or of this package, or one as a dictionary; a name of `NAMES`, also with a
            dash; or `None`.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(value, str):
        name = value.replace("-", "_")
        if name not in _BY_NAME:
            nearest = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"`quantization_config` is {value!r}, which is none of {', '.join(NAMES)}; use {nearest!r}, or a configuration of "
                "diffusers"
            )
        return _BY_NAME[name]()
    if isinstance(value, dict):
        return as_config_of(value)
    if value is not None and not isinstance(value, QuantizationConfigMixin):
        raise ValueError(
            f"`quantization_config` is of the type {type(value).__name__}; give {' or '.join(map(repr, NAMES))}, or a "
            "quantisation configuration of diffusers"
        )
    return value


def as_config_of(value: dict[str, Any]) -> Any:
    """The configuration that a dictionary says, if it is one of this package; others are left to diffusers."""
    method = value.get("quant_method")
    return _BY_NAME[method](**value) if isinstance(method, str) and method in _BY_NAME else value


def with_exceptions(config: Any, names: Sequence[str]) -> Any:
    """A configuration of another library that leaves layers as they are, unless it says itself which ones.

    Args:
        config: The configuration, which is not changed.
        names: Names of layers.
    """
    for field in ("modules_to_not_convert", "llm_int8_skip_modules"):
        if names and getattr(config, field, names) is None:
            config = copy.copy(config)
            setattr(config, field, list(names))
    return config


def as_pipeline_config(value: Any, transformers: list[str]) -> Any:
    """What `from_pretrained` of a pipeline takes: diffusers' configuration of all components, or one for the transformers.

    Args:
        value: A [`PipelineQuantizationConfig`], or what `as_config` takes.
        transformers: Names of the transformers that are going to be loaded.

    Raises:
        ValueError: If it is something else, or there is no transformer to quantise.
    """
    if value is None or isinstance(value, PipelineQuantizationConfig):
        return value
    config = as_config(value)
    if not transformers:
        raise ValueError(
            "`quantization_config` is for the transformer, which was given by name and stays as it is; give it to the "
            "`from_pretrained` of the transformer"
        )
    return PipelineQuantizationConfig(quant_mapping=dict.fromkeys(transformers, config))


def _check_method(given: str, own: FP8Method) -> None:
    if given != own.value:
        raise ValueError(f"`quant_method` must be {own.value!r}, got {given!r}; use {own.value!r}")


def register() -> None:
    """Let diffusers find the methods of this package by their names; a second time changes nothing.

    A later diffusers that has a method of such a name keeps it.
    """
    from diffusers.quantizers import auto

    from .quantizers import QUANTIZERS

    for method, (config, quantizer) in QUANTIZERS.items():
        auto.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(method, config)
        auto.AUTO_QUANTIZER_MAPPING.setdefault(method, quantizer)
