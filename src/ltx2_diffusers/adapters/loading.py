"""How a LoRA file becomes an adapter of a pipeline's models: all of it, or nothing."""

import logging as std_logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks.layerwise_casting import _LAYERWISE_CASTING_HOOK, LayerwiseCastingHook
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.utils import logging
from peft.tuners.lora import LoraLayer

from ..quantization.linear import FP8CastLinear, FP8ScaledLinear
from .active import AdaptedModel, AdapterState, adapted_models, adapter_configs, adapter_layers
from .file import LoraFile

logger = logging.get_logger(__name__)


def insert_adapter(
    pipeline: LoraBaseMixin,
    lora: LoraFile,
    name: str,
    hotswap: bool,
    low_cpu_mem_usage: bool,
    dtype: torch.dtype | None = None,
) -> None:
    """Add the LoRA to the pipeline's models and make it the only active adapter.

    Args:
        pipeline: The pipeline, whose offloading is taken off and put back around the change.
        lora: A LoRA that fits its models.
        name: The adapter's name.
        hotswap: Whether to put the factors in the place of those of the adapter of that name.
        low_cpu_mem_usage: Whether to leave out a random initialisation of the factors.
        dtype: Data type of the factors, default that in which their layer computes.
    """
    models, before = adapted_models(pipeline), AdapterState(pipeline)
    parts = {component: lora.located(component, models[component]) for component in lora.components}
    for component, part in parts.items():
        _check_variants(models[component], part, component)
    # Damaged values show when they are read, so all are read before a model is touched.
    factors = {component: part.state_dict(component) for component, part in parts.items()}
    touched: list[AdaptedModel] = []
    try:
        for component, part in parts.items():
            model, state = models[component], factors.pop(component)
            touched.append(model)
            with _quiet_loading():
                model.load_lora_adapter(
                    state,
                    prefix=None,
                    hotswap=hotswap,
                    adapter_name=name,
                    metadata=part.adapter_config(component),
                    low_cpu_mem_usage=low_cpu_mem_usage,
                    _pipeline=offloading(pipeline),
                )
            if not hotswap:
                _settle(model, name, part.plain_modules(component), state, dtype)
            adapter_configs(model)[name].ltx2_metadata = lora.metadata
    except BaseException:
        if not hotswap:
            for model in touched:
                delete_adapter(model, name)
        before.restore()
        raise
    if not hotswap:
        # A component that this LoRA leaves alone would keep the adapters that were active before.
        for layer in adapter_layers(pipeline):
            layer.set_adapter([name])


def offloading(pipeline: Any) -> Any:
    """The pipeline, if diffusers has to take its offloading off and put it back around a change of layers.

    Hooks of components that wait by themselves bear the change, and diffusers would put others in their place.
    """
    return None if getattr(pipeline, "_waiting", ()) else pipeline


def _check_variants(model: AdaptedModel, part: LoraFile, component: str) -> None:
    """DoRA computes with the weights of its layers themselves, which float8 does not let it."""
    if not part.adapter_config(component).get("use_dora"):
        return
    layers = ((path, model.get_submodule(path)) for path in part.modules(component))
    bases = {path: layer.get_base_layer() if isinstance(layer, LoraLayer) else layer for path, layer in layers}
    if stored := [path for path, base in bases.items() if isinstance(base, (FP8CastLinear, FP8ScaledLinear))]:
        raise ValueError(
            f"{part.metadata.name} is a DoRA, but {stored[0]} is stored in float8, in which it has no lengths; load the {component} "
            "without quantization_config, or use a plain LoRA"
        )


def delete_adapter(model: AdaptedModel, name: str) -> None:
    """Take an adapter out of a model; without any, its layers are the plain ones again."""
    model.delete_adapters(name)
    if not adapter_configs(model):
        model.unload_lora()


def _settle(
    model: AdaptedModel, name: str, plain_modules: list[str], state: dict[str, torch.Tensor], dtype: torch.dtype | None
) -> None:
    """Correct what PEFT makes of an adapter that is new in a model."""
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    if adapter_configs(model)[name].use_dora:
        # PEFT has magnitudes in all layers of an adapter, but a file may name some.
        for path in plain_modules:
            del layers[path].lora_magnitude_vector[name]
            del layers[path].lora_variant[name]
            layers[path].use_dora[name] = False
    for path, layer in layers.items():
        own = dtype or compute_dtype(layer.get_base_layer())
        if name in layer.lora_A and own is not None:
            _restore_factors(layer, name, path, state, own)
        if name in layer.lora_magnitude_vector:
            layer.lora_magnitude_vector[name].register_forward_pre_hook(_raise_base, with_kwargs=True)
            layer.lora_magnitude_vector[name].register_forward_hook(_lower_base, with_kwargs=True, always_call=True)


def casting_of(layer: torch.nn.Module) -> LayerwiseCastingHook | None:
    """What keeps the weights of a layer in another data type than it computes in, if anything does."""
    registry = getattr(layer, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(_LAYERWISE_CASTING_HOOK)


def compute_dtype(layer: torch.nn.Module) -> torch.dtype | None:
    """The data type that a layer computes in, if it stores its weights in another."""
    casting = casting_of(layer)
    return casting.compute_dtype if casting is not None else getattr(layer, "compute_dtype", None)


def _raise_base(_dora: torch.nn.Module, _args: tuple, kwargs: dict[str, Any]) -> None:
    """Before a DoRA, which computes with the weights of its layer itself: bring them into the type for that."""
    if (casting := casting_of(kwargs["base_layer"])) is not None:
        kwargs["base_layer"].to(casting.compute_dtype)


def _lower_base(_dora: torch.nn.Module, _args: tuple, kwargs: dict[str, Any], _output: Any) -> None:
    """After a DoRA: store the weights of its layer as before."""
    if (casting := casting_of(kwargs["base_layer"])) is not None:
        kwargs["base_layer"].to(casting.storage_dtype)


def _restore_factors(
    layer: LoraLayer, name: str, path: str, state: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    """Give an adapter the factors of its file again, which PEFT has put into the type of the layer's weights."""
    for part in layer.adapter_layer_names:
        modules = getattr(layer, part)
        if name in modules:
            for key, parameter in modules[name].named_parameters():
                written = state.get(f"{path}.{part}.{key}", state.get(f"{path}.{part}"))
                if written is not None and not parameter.is_meta:
                    # Factors that are prepared for hotswapping are longer, with zeros at their end.
                    exact = torch.zeros(parameter.shape, dtype=dtype, device=parameter.device)
                    exact[tuple(map(slice, written.shape))] = written.to(parameter.device, dtype)
                    parameter.data = exact


def for_present(lora: LoraFile, present: Collection[str]) -> LoraFile:
    """The part of the LoRA whose models are there; the rest is warned about, unless it is all."""
    absent = [component for component in lora.components if component not in present]
    if absent == list(lora.components):
        raise ValueError(f"{lora.metadata.name} changes only {absent}, which the pipeline was built without")
    for component in absent:
        logger.warning(
            f"{lora.metadata.name} also changes {len(lora.modules(component))} modules of the {component}, which the "
            "pipeline was built without; prompts must have been encoded with them"
        )
    return lora.only(present)


def check_not_fused(pipeline: LoraBaseMixin) -> None:
    """`ValueError` while adapters are fused: PEFT takes them out of the weights when another one arrives."""
    fused = dict.fromkeys(name for layer in adapter_layers(pipeline) for name in layer.merged_adapters)
    if fused:
        raise ValueError(
            f"the adapters {list(fused)} are fused; before loading another, make them permanent with "
            "unload_lora_weights(), or take them out with unfuse_lora()"
        )


def check_hotswap(pipeline: LoraBaseMixin, lora: LoraFile, name: str) -> None:
    """`ValueError` for what PEFT cannot swap; its own check comes after the old adapter is lost."""
    models = adapted_models(pipeline)
    old = {component for component, model in models.items() if name in adapter_configs(model)}
    if different := sorted(old ^ set(lora.components)):
        which = "old" if different[0] in old else "new"
        raise ValueError(f"hotswap needs the same components, but only the {which} LoRA changes the {different[0]}")
    for component in lora.components:
        config, layers = adapter_configs(models[component])[name], dict(models[component].named_modules())
        part = lora.located(component, models[component])
        new = part.adapter_config(component)
        missing = [path for path in part.modules(component) if name not in getattr(layers[path], "lora_A", ())]
        variants = (config.use_dora, config.lora_bias), (new.get("use_dora", False), new.get("lora_bias", False))
        if missing or config.alpha_pattern != new["alpha_pattern"] or variants[0] != variants[1] or config.use_dora:
            reason = f"changes {missing[0]}, which the old does not" if missing else "has other alphas per module"
            if variants[0] != variants[1] or config.use_dora:
                reason = "or the old is DoRA, or only one of them has biases"
            raise ValueError(f"hotswap is not possible: the new LoRA {reason}; load it under another name")


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Hold back reports that are wrong here: fit is checked before, and several adapters per model are wanted."""
    # diffusers takes factors of other adapters for missing ones if its name occurs anywhere in theirs.
    reports = std_logging.getLogger("diffusers.utils.peft_utils")
    level = reports.level
    reports.setLevel(std_logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            yield
    finally:
        reports.setLevel(level)
