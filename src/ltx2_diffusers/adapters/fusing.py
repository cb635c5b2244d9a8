"""Adapters made part of the weights, and taken out of them again."""

from collections.abc import Sequence

from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.utils import logging
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear

from .active import AdapterState, adapter_metadata, named_adapter_layers
from .settings import is_finite_number

logger = logging.get_logger(__name__)


def fuse(
    pipeline: LoraBaseMixin,
    components: Sequence[str] | None,
    lora_scale: float,
    safe_fusing: bool,
    adapter_names: Sequence[str] | None,
) -> None:
    """Add the deltas of adapters to the weights: of all of them, or of none if that fails."""
    if not is_finite_number(lora_scale):
        raise ValueError(f"`lora_scale` has to be a finite number but is {lora_scale!r}; use 1.0")
    loaded = list(adapter_metadata(pipeline))
    if unknown := [name for name in adapter_names or () if name not in loaded]:
        raise ValueError(f"`adapter_names` has {unknown}, but the loaded adapters are {loaded}")
    places = {
        layer: [name for name in adapter_names or layer.active_adapters if name in layer.lora_A]
        for layer in _layers(pipeline, components)
    }
    for layer, names in places.items():
        _check_fusable(layer, names)
    before = AdapterState(pipeline)
    try:
        for layer, names in places.items():
            for name in names:
                layer.scaling[name] *= lora_scale
            layer.merge(safe_merge=safe_fusing, adapter_names=names)
    except BaseException:
        unfuse(pipeline, components)
        before.restore()
        raise


def unfuse(pipeline: LoraBaseMixin, components: Sequence[str] | None) -> None:
    """Subtract the deltas of fused adapters from the weights."""
    for layer in _layers(pipeline, components):
        if layer.merged:
            layer.unmerge()


def fused_adapters(pipeline: LoraBaseMixin) -> list[str]:
    """Names of the adapters that are part of the weights of any component."""
    layers = (layer for _, _, layer in named_adapter_layers(pipeline))
    return list(dict.fromkeys(name for layer in layers for name in layer.merged_adapters))


def warn_of_lost_parts(pipeline: LoraBaseMixin) -> None:
    """Say which parts of fused adapters are lost if adapters are unloaded now."""
    fused = set(fused_adapters(pipeline))
    lost = {
        (name, component)
        for component, _, layer in named_adapter_layers(pipeline)
        for name in layer.active_adapters
        if name in fused and name in layer.lora_A and name not in layer.merged_adapters
    }
    for name, component in sorted(lost):
        logger.warning(f"the adapter {name!r} was fused, but not into the {component}: that part of it is unloaded")


def _layers(pipeline: LoraBaseMixin, components: Sequence[str] | None) -> list[LoraLayer]:
    """The layers with adapters of the given components, or of all."""
    known = pipeline._lora_loadable_modules
    wanted = known if components is None else [components] if isinstance(components, str) else list(components)
    if not wanted or not set(wanted) <= set(known):
        raise ValueError(f"`components` has to name one or more of {known} but is {wanted}")
    return [layer for component, _, layer in named_adapter_layers(pipeline) if component in wanted]


def _check_fusable(layer: LoraLayer, names: Sequence[str]) -> None:
    """Raise `ValueError` for weights that cannot take the adapters, before any does."""
    if twice := [name for name in names if name in layer.merged_adapters]:
        raise ValueError(f"the adapter {twice[0]!r} is fused already; call unfuse_lora() first to change its strength")
    if names and layer.disable_adapters:
        raise ValueError("adapters cannot be fused while they are disabled; call enable_lora() first")
    base = layer.get_base_layer()
    for name in names:
        if layer.lora_bias.get(name) and getattr(base, "bias", None) is None:
            raise ValueError(f"the adapter {name!r} has biases for a layer without one, so it cannot be fused")
    stored = base.weight.dtype
    if names and type(layer) is Linear and (stored.itemsize == 1 or not stored.is_floating_point):
        raise ValueError(
            f"the weights are stored as {stored}, which adapters cannot be fused into; fuse first and cast or quantise then"
        )
