"""Which adapters of a pipeline are active: recorded, switched for a while, and put back exactly."""

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.utils.torch_utils import is_compiled_module
from peft.tuners.lora import LoraLayer

from ..memory.streaming import streamer_of
from ..models.connectors import LTX2TextConnectors
from ..models.transformer import LTX2AVTransformer3DModel
from .file import LoraMetadata
from .modules import part_of
from .spellings import without_compilation
from .strengths import AdapterWeight, StageStrengths, check_weight, strength_at

AdaptedModel = LTX2AVTransformer3DModel | LTX2TextConnectors

DISTILLED_ADAPTER = "distilled"
"""Name under which a refining stage looks for the distilled LoRA of a dev checkpoint."""

# Not kept on the models, which are copied and pickled.
_LOCKS: WeakKeyDictionary[torch.nn.Module, AbstractContextManager] = WeakKeyDictionary()
_NEW_LOCK = threading.Lock()


def adapted_models(pipeline: LoraBaseMixin) -> dict[str, AdaptedModel]:
    """The models of the pipeline that can carry adapters, by component; of a compiled one, the model itself."""
    models = {component: getattr(pipeline, component, None) for component in pipeline._lora_loadable_modules}
    return {component: plain_model(model) for component, model in models.items() if model is not None}


def plain_model(model: Any) -> Any:
    """The model inside of what `torch.compile` returns."""
    return model._orig_mod if is_compiled_module(model) else model


def check_changeable(pipeline: LoraBaseMixin, components: Collection[str] | None) -> None:
    """Raise `ValueError` if the weights of a model stay in their file while it is used, so that nothing can be added to them."""
    for component, model in adapted_models(pipeline).items():
        streamer = streamer_of(model)
        if streamer is not None and streamer.source == "disk" and (components is None or component in components):
            raise ValueError(
                f"adapters cannot be fused into the `{component}`, whose blocks are streamed from their file; use the adapters as "
                "they are, or stream with source='ram'"
            )


@contextmanager
def held_adapters(pipeline: LoraBaseMixin, if_loaded: bool = False) -> Iterator[None]:
    """Keep all other threads from using or changing the adapters of these models until the block ends.

    Args:
        pipeline: A pipeline with [`~ltx2_diffusers.adapters.mixin.LTX2LoraMixin`]; others may share its models.
        if_loaded: Whether to let other threads in while the models have no adapters. Default `False`.
    """
    with ExitStack() as held:
        if not if_loaded or adapter_layers(pipeline):
            # In one order everywhere, so that no two threads wait for each other.
            for model in sorted(adapted_models(pipeline).values(), key=id):
                held.enter_context(_lock_of(model))
        yield


def _lock_of(model: torch.nn.Module) -> AbstractContextManager:
    with _NEW_LOCK:
        return _LOCKS.setdefault(model, threading.RLock())


def named_adapter_layers(pipeline: LoraBaseMixin) -> Iterator[tuple[str, str, LoraLayer]]:
    """Component, path and layer of all that carries adapters."""
    for component, model in adapted_models(pipeline).items():
        for path, module in model.named_modules():
            if isinstance(module, LoraLayer):
                yield component, without_compilation(path), module


def adapter_layers(pipeline: LoraBaseMixin) -> list[LoraLayer]:
    """All layers of the pipeline that carry adapters, in the order of components and modules."""
    return [layer for _, _, layer in named_adapter_layers(pipeline)]


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
    with held_adapters(pipeline, if_loaded=True):
        state = AdapterState(pipeline)
        try:
            yield
        finally:
            state.restore()


@contextmanager
def added_adapters(pipeline: LoraBaseMixin, strengths: StageStrengths) -> Iterator[None]:
    """Add adapters to the active ones for a block; whatever happens in it, the former set comes back exactly.

    Args:
        pipeline: A pipeline with [`~ltx2_diffusers.adapters.mixin.LTX2LoraMixin`].
        strengths: Strength by name, a number or one per part; an active adapter takes the new strength, and 0 leaves an
            adapter out. Without any the adapters stay as they are.

    Raises:
        ValueError: If an adapter is not loaded, or is on layers that other adapters were fused into: PEFT would leave
            it out there.
    """
    check_adapters_loaded(pipeline, strengths)
    with unchanged_adapters(pipeline):
        if strengths:
            _add(pipeline, strengths)
        yield


def set_strength(layer: LoraLayer, name: str, strength: float) -> None:
    """Set the strength of an adapter; one that is prepared for hotswapping keeps it in its tensor, which compiled code reads."""
    before = layer.scaling.get(name)
    layer.set_scale(name, strength)
    if isinstance(before, torch.Tensor):
        layer.scaling[name] = before.fill_(layer.scaling[name])


def _add(pipeline: LoraBaseMixin, strengths: StageStrengths) -> None:
    for component, path, layer in named_adapter_layers(pipeline):
        here = {name: strength_at(strength, component, path) for name, strength in strengths.items()}
        wanted = {name: strength for name, strength in here.items() if strength}
        kept = [] if layer.disable_adapters else [n for n in layer.active_adapters if n not in strengths]
        layer.set_adapter(kept + list(wanted))
        for name in wanted.keys() & layer.scaling.keys():
            set_strength(layer, name, wanted[name])
    pipeline.enable_lora()


def check_adapters_loaded(pipeline: LoraBaseMixin, strengths: StageStrengths) -> None:
    """Raise `ValueError` for an adapter that is not loaded, that fused weights would swallow, or without a strength."""
    if not isinstance(strengths, Mapping):
        raise ValueError(f"adapters have to be strengths by name, such as {{'style': 1.0}}, but are {strengths!r}")
    loaded = list(adapter_metadata(pipeline))
    if unknown := [name for name in strengths if name not in loaded]:
        raise ValueError(
            f"no LoRA adapter {unknown[0]!r} is loaded (there are {loaded}); load it with "
            f"load_lora_weights(..., adapter_name={unknown[0]!r}), or leave it out of `stage_1_adapters` and `stage_2_adapters`"
        )
    if none := [name for name, strength in strengths.items() if strength is None]:
        raise ValueError(f"the strength of the adapter {none[0]!r} has to be a finite number but is None; use 1.0")
    check_weights(pipeline, strengths)
    acting = {
        name
        for component, path, layer in named_adapter_layers(pipeline)
        for name, strength in strengths.items()
        if name in layer.lora_A and strength_at(strength, component, path)
    }
    check_has_effect(pipeline, acting)


def check_weights(pipeline: LoraBaseMixin, weights: Mapping[str, AdapterWeight]) -> None:
    """Raise `ValueError` for strengths of loaded adapters that are no numbers, or that belong to nothing."""
    if not weights:
        return
    layers = list(named_adapter_layers(pipeline))
    paths = {known: [path for c, path, _ in layers if c == known] for known in pipeline._lora_loadable_modules}
    for name, weight in weights.items():
        check_weight(name, weight, paths, {part_of(c, path) for c, path, layer in layers if name in layer.lora_A})


def check_has_effect(pipeline: LoraBaseMixin, names: Collection[str]) -> None:
    """Raise `ValueError` if any of the adapters is on layers that adapters were fused into."""
    for layer in adapter_layers(pipeline):
        if layer.merged and (lost := sorted(set(names) & set(layer._all_available_adapter_names()))):
            raise ValueError(
                f"adapter {lost[0]!r} has no effect while {layer.merged_adapters} are fused; call unfuse_lora() first"
            )
