"""Adapters made part of the weights, and taken out of them again."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from diffusers.hooks.group_offloading import _GROUP_OFFLOADING
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.utils import logging
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear

from ..kernels.add_round import check_rounding
from ..models.stored import stored_tensor
from ..quantization.linear import FLOAT8, FP8CastLinear, FP8ScaledLinear
from .active import AdapterState, adapted_models, adapter_metadata, named_adapter_layers
from .loading import casting_of
from .merging import Arithmetic, changed_tensors, is_cast_to_fp8, merged_tensors
from .originals import Original, Source, files_read_anew
from .settings import is_finite_number
from .strengths import listed_weights

logger = logging.get_logger(__name__)

_PLAIN_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_FIRST = "fuse first and cast, quantise or stream then"


@dataclass(frozen=True)
class Fusing:
    """What a call of `fuse_lora` asks for, see there."""

    components: Sequence[str] | None = None
    lora_scale: float = 1.0
    safe_fusing: bool = False
    adapter_names: Sequence[str] | str | None = None
    how: Arithmetic = field(default_factory=Arithmetic)
    keep_originals: bool = True


@dataclass(frozen=True)
class _Place:
    """A layer and what is fused into it."""

    component: str
    path: str
    layer: LoraLayer
    names: list[str]
    source: Source


def fuse(pipeline: LoraBaseMixin, asked: Fusing) -> None:
    """Add the deltas of adapters to the weights: of all of them, or of none if that fails."""
    places = _places(pipeline, asked)
    _warn_of_what_is_left(pipeline, asked, places)
    before = AdapterState(pipeline)
    touched: list[_Touched] = []
    try:
        for place in places:
            for name in place.names:
                place.layer.scaling[name] *= asked.lora_scale
        # Without a copy nothing that was written could be taken back for sure.
        for place in [] if asked.keep_originals else places:
            _check_values(place, asked)
        for place in places:
            touched.append(_Touched.of(place, asked))
            _fuse_layer(place, asked, touched[-1])
    except BaseException:
        before.restore()
        for one in touched:
            one.take_back()
        raise
    for one in touched:
        one.original.how = asked.how
        if not asked.keep_originals:
            one.original.forget()


def unfuse(pipeline: LoraBaseMixin, components: Sequence[str] | None) -> None:
    """Put the weights back that adapters were fused into: all of them, or none if they cannot be read again."""
    layers = [layer for _, _, layer in _layers(pipeline, components) if layer.merged]
    _put_at_rest(adapted_models(pipeline).values())
    with files_read_anew():
        for original in filter(None, map(Original.on, layers)):
            original.check()
        for layer in layers:
            layer.unmerge()


def settle(pipeline: LoraBaseMixin) -> None:
    """Leave fused adapters in the weights for good: what was there before is dropped."""
    for _, _, layer in named_adapter_layers(pipeline):
        vars(layer).pop("unmerge", None)


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


@dataclass(frozen=True)
class _Touched:
    """A layer that a call changes, and what was fused into it before."""

    layer: LoraLayer
    original: Original
    former: list[str]
    former_how: Arithmetic

    @classmethod
    def of(cls, place: _Place, asked: Fusing) -> "_Touched":
        original = Original.on(place.layer) or Original(place.layer, place.source, asked.keep_originals)
        return cls(place.layer, original, list(place.layer.merged_adapters), original.how)

    def take_back(self) -> None:
        """Make the layer what it was before the call."""
        self.original()
        if self.former:
            _merge(self.layer, self.former, self.former_how, False, self.original)
            self.original.install()


def _fuse_layer(place: _Place, asked: Fusing, touched: _Touched) -> None:
    """Make the adapters part of one layer; from its original weights, if they are kept, so that they are rounded once."""
    names, original = place.names, touched.original
    if touched.former and original.is_kept:
        original()
        names = [*touched.former, *names]
    _merge(place.layer, names, asked.how, asked.safe_fusing, original)
    original.install()


def _merge(layer: LoraLayer, names: Sequence[str], how: Arithmetic, safe: bool, original: Original) -> None:
    base, changed = layer.get_base_layer(), changed_tensors(layer, names)
    original.record(changed)
    if _is_variant(layer, names):
        # PEFT's formula may put other tensors in the place of those that offloading knows.
        own = {name: getattr(base, name).data for name in ("weight", *changed)}
        layer.merge(safe_merge=safe, adapter_names=list(names))
        for name, tensor in own.items():
            tensor.copy_(getattr(base, name).data)
            getattr(base, name).data = tensor
        return
    for name, tensor in merged_tensors(layer, names, how, safe):
        stored_tensor(base, name).copy_(tensor)
    layer.merged_adapters.extend(names)


def _check_values(place: _Place, asked: Fusing) -> None:
    """Raise `ValueError` for values that cannot be stored."""
    if not _is_variant(place.layer, place.names):
        for _ in merged_tensors(place.layer, place.names, asked.how, asked.safe_fusing):
            pass


def _places(pipeline: LoraBaseMixin, asked: Fusing) -> list[_Place]:
    """Where adapters go, after all that can be wrong with that."""
    if not is_finite_number(asked.lora_scale):
        raise ValueError(f"`lora_scale` has to be a finite number but is {asked.lora_scale!r}; use 1.0")
    check_rounding(asked.how.rounding, asked.how.seed)
    wanted = [asked.adapter_names] if isinstance(asked.adapter_names, str) else asked.adapter_names
    if wanted is not None:
        listed_weights(wanted, None, list(adapter_metadata(pipeline)))
        if not wanted:
            raise ValueError("`adapter_names` is empty; leave it out to fuse the active adapters")
    models = adapted_models(pipeline)
    places = [
        _Place(component, path, layer, names, Source.of(pipeline, component, models[component], path))
        for component, path, layer in _layers(pipeline, asked.components)
        if (names := [name for name in wanted or layer.active_adapters if name in layer.lora_A])
    ]
    for place in places:
        _check_fusable(place, asked.how)
    _put_at_rest(models.values())
    if asked.how.rounding == "stochastic" and not any(is_cast_to_fp8(p.layer.get_base_layer()) for p in places):
        raise ValueError(
            '`rounding` is "stochastic", but no weights here are stored in float8 without scales (fp8_cast); use "nearest"'
        )
    return places


def _layers(pipeline: LoraBaseMixin, components: Sequence[str] | None) -> list[tuple[str, str, LoraLayer]]:
    """Component, path and layer of all that carries adapters in the given components, or in all."""
    known = pipeline._lora_loadable_modules
    wanted = known if components is None else [components] if isinstance(components, str) else list(components)
    if not wanted or not set(wanted) <= set(known):
        raise ValueError(f"`components` has to name one or more of {known} but is {wanted}")
    return [place for place in named_adapter_layers(pipeline) if place[0] in wanted]


def _check_fusable(place: _Place, how: Arithmetic) -> None:
    """Raise `ValueError` for weights that cannot take the adapters, before any does."""
    layer, names = place.layer, place.names
    if layer.merged and Original.on(layer) is None:
        raise ValueError(f"the model's own fuse_lora() fused {layer.merged_adapters}; call unfuse_lora() first")
    if twice := [name for name in names if name in layer.merged_adapters]:
        raise ValueError(f"the adapter {twice[0]!r} is fused already; call unfuse_lora() first to change its strength")
    if layer.disable_adapters:
        raise ValueError("adapters cannot be fused while they are disabled; call enable_lora() first")
    base = layer.get_base_layer()
    for name in names:
        if layer.lora_bias.get(name) and getattr(base, "bias", None) is None:
            raise ValueError(f"the adapter {name!r} has biases for a layer without one, so it cannot be fused")
    kind, stored = type(base.weight), base.weight.dtype
    if type(layer) is not Linear or kind not in (torch.nn.Parameter, torch.Tensor):
        held = type(layer) if kind in (torch.nn.Parameter, torch.Tensor) else kind
        raise ValueError(
            f"the weights of {place.path} are quantised, sharded or streamed ({held.__name__}), so that adapters cannot be fused "
            f"into them exactly; they work beside them, or {_FIRST}"
        )
    knows_fp8 = isinstance(base, (FP8CastLinear, FP8ScaledLinear)) or casting_of(base) is not None
    if stored not in _PLAIN_TYPES and not (stored == FLOAT8 and knows_fp8):
        raise ValueError(f"the weights are stored as {stored}, which adapters cannot be fused into; {_FIRST}")
    if _is_variant(layer, names) and (stored == FLOAT8 or base.weight.is_meta):
        where = "weights in float8" if stored == FLOAT8 else "weights under sequential offloading"
        raise ValueError(f"DoRA cannot be fused into {where}: its lengths are those of real weights; {_FIRST}")
    if how.reference and (stored not in (torch.bfloat16, FLOAT8) or _is_variant(layer, names)):
        what = "DoRA" if _is_variant(layer, names) else f"weights in {stored}"
        raise ValueError(
            f"reference_rounding=True is that of plain adapters on bfloat16 and float8, not of {what}; leave it out"
        )


def _is_variant(layer: LoraLayer, names: Iterable[str]) -> bool:
    """Whether any of the adapters is a DoRA here."""
    return any(name in layer.lora_variant for name in [*layer.merged_adapters, *names])


def _put_at_rest(models: Iterable[torch.nn.Module]) -> None:
    """Let groups of offloaded layers go back to host memory, where they are changed in place.

    Raises:
        ValueError: If they are on disk, where they are not.
    """
    for module in (module for model in models for module in model.modules()):
        registry = getattr(module, "_diffusers_hook", None)
        hook = None if registry is None else registry.get_hook(_GROUP_OFFLOADING)
        if hook is not None and hook.group.offload_to_disk_path is not None:
            raise ValueError(
                "adapters cannot be fused into weights that group offloading keeps on disk, or taken out of them; fuse first, "
                "then call enable_group_offload()"
            )
        if hook is not None and hook.group.stream is not None:
            hook.group.offload_()


def _warn_of_what_is_left(pipeline: LoraBaseMixin, asked: Fusing, places: Sequence[_Place]) -> None:
    """Say which parts of adapters are not fused, but for adapters that the call leaves out by name."""
    fused = {name for place in places for name in place.names}
    known = {(place.component, name) for place in places for name in place.names}
    left: dict[tuple[str, str], None] = {}
    for component, _, layer in named_adapter_layers(pipeline):
        for name in layer.lora_A:
            if name in fused and (component, name) not in known and name not in layer.merged_adapters:
                left[name, component] = None
    for name, component in left:
        logger.warning(
            f"the adapter {name!r} is not fused into the {component}, which it changes too; leave `components` out to fuse all"
        )
    idle = [name for name in adapter_metadata(pipeline) if name not in {*fused, *fused_adapters(pipeline)}]
    if idle and asked.adapter_names is None:
        logger.warning(
            f"the adapters {idle} are not fused, because they are not active; call set_adapters() first, or pass `adapter_names`"
        )
