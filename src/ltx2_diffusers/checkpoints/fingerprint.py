"""Short names for what a model computes, cheap enough to work out before every call."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..models.stored import sampled_bytes, stored_tensor

_PROBE_TEXT = "A quick test: où est Ἀθῆναι, 猫 & 12,345?\n"


def model_fingerprint(model: torch.nn.Module) -> str:
    """Name of a model's class, configuration, weights and active LoRA adapters; equal wherever the files lie.

    Args:
        model: A model on any device, also one that is offloaded.
    """
    digest = hashlib.sha256(f"{type(model).__name__} {_config_text(model)}".encode())
    adapters, idle = _adapters(model)
    digest.update(json.dumps(adapters, sort_keys=True).encode())
    names, samples = [], []
    for name, tensor in _weights(model):
        if not any(name.startswith(place) and f".{adapter}." in f"{name}." for place, adapter in idle):
            for part in _plain_parts(tensor):
                names.append(f"{name.replace('.base_layer.', '.')} {part.dtype} {tuple(part.shape)}")
                samples.append(sampled_bytes(part))
    digest.update("\n".join(names).encode())
    # One transfer per device instead of one per tensor.
    for device in sorted({sample.device for sample in samples}, key=str):
        digest.update(torch.cat([sample for sample in samples if sample.device == device]).cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Name of how a tokenizer cuts text into tokens."""
    facts = [len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer(_PROBE_TEXT).input_ids]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _config_text(model: torch.nn.Module) -> str:
    config = getattr(model, "config", {})
    return json.dumps(_without_origin(config.to_dict() if hasattr(config, "to_dict") else config), default=str)


def _without_origin(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in order, without where it came from and which version of a library wrote it."""
    return {
        key: _without_origin(value) if isinstance(value, Mapping) else value
        for key, value in sorted(config.items(), key=lambda item: str(item[0]))
        if not (isinstance(key, str) and (key.startswith("_") or key.endswith("_version")))
    }


def _adapters(model: torch.nn.Module) -> tuple[list[list[Any]], set[tuple[str, str]]]:
    """Adapters with an effect, as `[layer, name, scale]`, and those without one, as `(layer, name)`."""
    active, idle = [], set()
    for layer_name, layer in model.named_modules():
        if not (hasattr(layer, "base_layer") and isinstance(getattr(layer, "scaling", None), dict)):
            continue
        on = [] if layer.disable_adapters or layer.merged else layer.active_adapters
        for name, scale in layer.scaling.items():
            if name in on and scale != 0:
                active.append([layer_name, name, float(scale)])
            else:
                idle.add((f"{layer_name}.", name))
    return active, idle


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by name; values that an offloading hook keeps elsewhere are fetched from it."""
    for module_name, module in model.named_modules():
        own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        for name in own:
            yield f"{module_name}.{name}", stored_tensor(module, name)


def _plain_parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensor itself, or the tensors inside one of a quantised type."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) and hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain_parts(getattr(tensor, name))
    else:
        yield tensor
