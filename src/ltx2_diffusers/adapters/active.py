"""Which adapters of a pipeline are active: recorded, switched for a while, and put back exactly."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from peft.tuners.lora import LoraLayer

from ..models.connectors import LTX2TextConnectors
from ..models.transformer import LTX2AVTransformer3DModel
from .file import LoraMetadata

AdaptedModel = LTX2AVTransformer3DModel | LTX2TextConnectors

DISTILLED_ADAPTER = "distilled"
"""Name under which a refining stage looks for the distilled LoRA of a dev checkpoint."""


def adapted_models(pipeline: LoraBaseMixin) -> dict[str, AdaptedModel]:
    """The models of the pipeline that can carry adapters, by component."""
    models = {component: getattr(pipeline, component, None) for component in pipeline._lora_loadable_modules}
    return {component: model for component, model in models.items() if model is not None}


def adapter_layers(pipeline: LoraBaseMixin) -> list[LoraLayer]:
    """All layers of the pipeline that carry adapters, in the order of components and modules."""
    models = adapted_models(pipeline).values()
    return [module for model in models for module in model.modules() if isinstance(module, LoraLayer)]


def adapter_configs(model: torch.nn.Module) -> dict[str, Any]:
    """PEFT's settings of every adapter of a model."""
    return getattr(model, "peft_config", {})


def adapter_metadata(pipeline: LoraBaseMixin) -> dict[str, LoraMetadata | None]:
    """What the file of every loaded adapter says about itself; `None` for one that came by another way."""
    found: dict[str, LoraMetadata | None] = {}
    for model in adapted_models(pipeline).values():
        for name, config in adapter_configs(model).items():
            found.setdefault(name, getattr(config, "ltx2_metadata", None))
    return found


class AdapterState:
    """The active adapters of a pipeline and their strengths, as they were when this object was made.

    Args:
        pipeline: A pipeline with [`~ltx2_diffusers.adapters.mixin.LTX2LoraMixin`].
    """

    def __init__(self, pipeline: LoraBaseMixin) -> None:
        self._layers = [
            (layer, layer._active_adapter, layer._disable_adapters, _copied(layer.scaling))
            for layer in adapter_layers(pipeline)
        ]
        factors = [getattr(layer, name) for layer, *_ in self._layers for name in layer.adapter_layer_names]
        self._gradients = [(p, p.requires_grad) for factor in factors for p in factor.parameters()]

    def restore(self) -> None:
        """Put the recorded state back; adapters deleted or added since stay so."""
        for layer, active, disabled, scaling in self._layers:
            layer._active_adapter, layer._disable_adapters = active, disabled
            layer.scaling.update({name: value for name, value in _copied(scaling).items() if name in layer.scaling})
        for parameter, requires_grad in self._gradients:
            parameter.requires_grad_(requires_grad)


def _copied(scaling: dict[str, float | torch.Tensor]) -> dict[str, float | torch.Tensor]:
    # Adapters prepared for hotswapping keep their strength in tensors, which PEFT changes in place.
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in scaling.items()}


@contextmanager
def unchanged_adapters(pipeline: LoraBaseMixin) -> Iterator[None]:
    """Put adapters and strengths back when the block ends, however it ends and whatever it did to them."""
    state = AdapterState(pipeline)
    try:
        yield
    finally:
        state.restore()


@contextmanager
def added_adapters(pipeline: LoraBaseMixin, strengths: Mapping[str, float]) -> Iterator[None]:
    """Add adapters to the active ones for a block; whatever happens in it, the former set comes back exactly.

    Args:
        pipeline: A pipeline with [`~ltx2_diffusers.adapters.mixin.LTX2LoraMixin`].
        strengths: Strength by name; an active adapter takes the new strength, and 0 leaves an adapter out. Without any
            the adapters stay as they are.

    Raises:
        ValueError: If an adapter is not loaded, or is on layers that other adapters were fused into: PEFT would leave
            it out there.
    """
    check_adapters_loaded(pipeline, strengths)
    with unchanged_adapters(pipeline):
        if strengths:
            _add(pipeline, strengths)
        yield


def _add(pipeline: LoraBaseMixin, strengths: Mapping[str, float]) -> None:
    wanted = {name: strength for name, strength in strengths.items() if strength}
    for layer in adapter_layers(pipeline):
        kept = [] if layer.disable_adapters else [n for n in layer.active_adapters if n not in strengths]
        layer.set_adapter(kept + list(wanted))
        for name in wanted.keys() & layer.scaling.keys():
            layer.set_scale(name, wanted[name])
    pipeline.enable_lora()


def check_adapters_loaded(pipeline: LoraBaseMixin, strengths: Mapping[str, float]) -> None:
    """Raise `ValueError` for an adapter that is not loaded, or that fused weights would swallow."""
    loaded = list(adapter_metadata(pipeline))
    for name in strengths:
        if name not in loaded:
            raise ValueError(
                f"no LoRA adapter {name!r} is loaded (there are {loaded}); load it with "
                f"load_lora_weights(..., adapter_name={name!r}), or leave it out of `stage_1_adapters` and `stage_2_adapters`"
            )
    wanted = {name for name, strength in strengths.items() if strength}
    for layer in adapter_layers(pipeline):
        if layer.merged and (lost := sorted(wanted & set(layer._all_available_adapter_names()))):
            raise ValueError(
                f"adapter {lost[0]!r} has no effect while {layer.merged_adapters} are fused; call unfuse_lora() first"
            )
