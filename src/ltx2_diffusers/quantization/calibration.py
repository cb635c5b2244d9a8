"""Calibration: the largest input of every linear layer of the blocks, recorded in runs, and the scales that follow from it."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from torch import nn

from ..atomic import write_json
from .linear import FLOAT8_MAX, MIN_SCALE, FP8ScaledLinear

logger = logging.get_logger(__name__)

_KEY = "amax_values"
_ENDING = ".input_quantizer"
_BLOCKS = "transformer_blocks."


def calibrate(pipeline: Any, prompts: Sequence[str] | str, **call: Any) -> dict[str, float]:
    """Run a pipeline on prompts, and record the largest input of every linear layer of the transformer's blocks.

    Args:
        pipeline: A pipeline of this package, with a transformer.
        prompts: A text or several, like those that are going to be used; one run each.
        call: Other arguments of its calls. Results are thrown away, so that nothing is decoded.

    Returns:
        The largest absolute values, by names of layers.

    Raises:
        ValueError: If there is no prompt, or a layer had values that are not finite.
    """
    if not prompts:
        raise ValueError("`prompts` is empty; give at least one text to calibrate on")
    pipeline.require("transformer")
    with recorded_inputs(pipeline.transformer) as largest:
        for prompt in [prompts] if isinstance(prompts, str) else prompts:
            pipeline(prompt=prompt, **{"output_type": "latent", **call})
    values = {name: value.item() for name, value in largest.items()}
    if broken := [name for name, value in values.items() if not math.isfinite(value)]:
        raise ValueError(f"the input of {broken[0]} was not finite; calibrate in another `dtype`, such as bfloat16")
    return values


@contextmanager
def recorded_inputs(transformer: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Record the largest absolute input of every linear layer of the blocks while this context is open.

    The dictionary fills as layers run: float32 tensors without axes, by names of layers, on the device of the layer.
    """
    largest: dict[str, torch.Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(partial(_record, largest, name.removesuffix(".base_layer")))
        for name, layer in transformer.named_modules()
        # Factors of adapters are linear layers, too.
        if isinstance(layer, nn.Linear) and name.startswith(_BLOCKS) and ".lora_" not in name
    ]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()


def _record(largest: dict[str, torch.Tensor], name: str, _layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    if inputs[0].numel():
        value = inputs[0].detach().abs().amax().float()
        largest[name] = torch.maximum(largest[name], value) if name in largest else value


def write_calibration(path: str | os.PathLike, values: Mapping[str, float]) -> None:
    """Write the largest inputs of layers as JSON; an interrupted write leaves no file."""
    write_json(Path(path), {_KEY: {f"{name}{_ENDING}": value for name, value in sorted(values.items())}})


def read_calibration(path: str | os.PathLike) -> dict[str, float]:
    """The largest inputs of layers, by diffusers' names of the layers.

    Raises:
        ValueError: If the file is no calibration, or a value is not finite or below 0.
    """
    where = repr(os.fspath(path))
    try:
        content = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}") from None
    values = content.get(_KEY) if isinstance(content, dict) else None
    if not isinstance(values, dict) or not values:
        raise ValueError(f'{where} is no calibration: it has to hold {{"{_KEY}": {{"LAYER{_ENDING}": NUMBER}}}}')
    result = {}
    for name, value in values.items():
        number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
        if not math.isfinite(number) or number < 0:
            raise ValueError(f"{where}: {name!r} has to be a number from 0 on but is {value!r}; calibrate again")
        # The linear layers of blocks have the same names in both layouts, behind a prefix in the original one.
        layer = name.removesuffix(_ENDING)
        result[layer[layer.find(_BLOCKS) :] if _BLOCKS in layer else layer] = float(number)
    return result


def input_scales(path: str | os.PathLike | None, layers: Sequence[str]) -> dict[str, torch.Tensor]:
    """Input scales of those layers that a calibration names: float32 without axes.

    Args:
        path: The file of the calibration; without one there are none.
        layers: Names of the layers that are quantised.

    Raises:
        ValueError: If the file is no calibration, or names none of the layers.
    """
    if path is None:
        return {}
    values = read_calibration(path)
    found = {name: values[name] for name in layers if name in values}
    if not found:
        raise ValueError(
            f"{os.fspath(path)!r} is the calibration of another model: it names none of the {len(layers)} quantised layers, such as "
            f"{layers[0]}"
        )
    if missing := [name for name in layers if name not in values]:
        logger.warning(
            f"the calibration {os.fspath(path)!r} lacks {len(missing)} of {len(layers)} quantised layers, such as {missing[0]}; they "
            "keep the scale of the file, or one of each input"
        )
    return {
        name: torch.tensor(value / FLOAT8_MAX, dtype=torch.float32).clamp(min=MIN_SCALE)
        for name, value in found.items()
    }


def calibrate_layers(model: nn.Module, path: str | os.PathLike) -> None:
    """Give the layers of a loaded model the input scales of a calibration."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, FP8ScaledLinear)}
    for name, scale in input_scales(path, list(layers)).items():
        layers[name].input_scale = scale.to(layers[name].weight.device)
