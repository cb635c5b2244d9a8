"""Whether the tensors of a checkpoint are those of the model that its configuration builds, by name and by shape.

The model is built as shapes alone. Files come from strangers, so that numbers which building would multiply are
compared with the tensors first.
"""

import difflib
import inspect
import math
import os
import re
import threading
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from ..models.config_values import check_sizes, check_types
from ..quantization.configs import NAMES
from ..quantization.layers import VARIANTS
from . import config_diffusion, config_duration
from .class_names import class_name_for, component_of
from .json_files import check_finite, read_config
from .safetensors_io import Entry, read_folder
from .scaled_fp8 import without_scales

# Any class of a component; diffusers' annotations promise something else than a model.
ModelClass = type[Any]
Shapes = Mapping[str, tuple[int, ...]]

# A computed buffer that files of other tools may lack; models fill it in themselves.
OPTIONAL_KEYS = {"latent_upsampler": ("upsampler.blur_down.kernel",)}
_STEM = "diffusion_pytorch_model"
_MAX_LISTED = 10
# Numbers of layers: the key of the configuration, and the tensors that are numbered by it.
_COUNTS = {
    "transformer": {"num_layers": r"transformer_blocks\.(\d+)\."},
    "connectors": {
        "video_connector_num_layers": r"video_connector\.transformer_blocks\.(\d+)\.",
        "audio_connector_num_layers": r"audio_connector\.transformer_blocks\.(\d+)\.",
    },
    "vae": {
        "block_out_channels": r"encoder\.down_blocks\.(\d+)\.",
        "decoder_block_out_channels": r"decoder\.up_blocks\.(\d+)\.",
    },
    # Of LTX-Video, some of whose encoders have one more width than blocks.
    "AutoencoderKLLTXVideo": {
        "down_block_types": r"encoder\.down_blocks\.(\d+)\.",
        "decoder_block_out_channels": r"decoder\.up_blocks\.(\d+)\.",
    },
    "audio_vae": {"ch_mult": r"decoder\.up\.(\d+)\.", "num_res_blocks": r"encoder\.down\.0\.block\.(\d+)\."},
    "vocoder": {
        "upsample_factors": r"(?:vocoder\.)?upsamplers\.(\d+)\.",
        "bwe_upsample_factors": r"bwe_generator\.upsamplers\.(\d+)\.",
    },
    "latent_upsampler": {"num_blocks_per_stage": r"res_blocks\.(\d+)\."},
    "duration_head": {},
    "diffusion_decoder": {},
}
# Widths: keys of the configuration whose product is a size of a tensor, the tensor, and its axis.
_WIDTHS = {
    "transformer": (
        (("num_attention_heads", "attention_head_dim"), "proj_in.weight", 0),
        (("audio_num_attention_heads", "audio_attention_head_dim"), "audio_proj_in.weight", 0),
        (("in_channels",), "proj_in.weight", 1),
        (("audio_in_channels",), "audio_proj_in.weight", 1),
        (("caption_channels",), "caption_projection.linear_1.weight", 1),
        (("num_attention_heads",), "transformer_blocks.0.attn1.to_gate_logits.weight", 0),
    ),
    "connectors": tuple(
        entry
        for name in ("video_connector", "audio_connector")
        for entry in (
            ((f"{name}_num_attention_heads", f"{name}_attention_head_dim"), f"{name}.learnable_registers", 1),
            ((f"{name}_num_learnable_registers",), f"{name}.learnable_registers", 0),
        )
    ),
    "vae": ((("latent_channels",), "latents_mean", 0),),
    "audio_vae": (
        (("base_channels",), "encoder.conv_in.conv.weight", 0),
        (("in_channels",), "encoder.conv_in.conv.weight", 1),
        (("latent_channels",), "decoder.conv_in.conv.weight", 1),
    ),
    "vocoder": tuple(
        ((f"{key}{name}",), f"{prefix}conv_in.weight", axis)
        for prefix, key in (("", ""), ("vocoder.", ""), ("bwe_generator.", "bwe_"))
        for axis, name in enumerate(("hidden_channels", "in_channels"))
    ),
    "latent_upsampler": ((("mid_channels",), "initial_conv.weight", 0), (("in_channels",), "initial_conv.weight", 1)),
    "duration_head": tuple(((key,), *place) for key, place in config_duration.SIZES.items()),
    "diffusion_decoder": tuple(((key,), *place) for key, place in config_diffusion.SIZES.items()),
}
# Means and deviations of latents, which every value of a clip passes through.
_STATISTICS = ("latents_mean", "latents_std")


def model_class(component: str, config: Mapping[str, Any]) -> ModelClass:
    """The class of this package for a component with the given diffusers config."""
    import ltx2_diffusers

    return getattr(ltx2_diffusers, class_name_for(component, config))


def check_fit(
    cls: ModelClass, config: Mapping[str, Any], entries: Mapping[str, Entry], where: str, hint: str = ""
) -> None:
    """Raise `ValueError` unless the entries are exactly the tensors that `config` builds; optional ones may be missing.

    Args:
        cls: Class of the model.
        config: Its configuration; absent keys have the constructor's defaults.
        entries: The tensors under diffusers' names.
        where: What messages call the checkpoint.
        hint: What messages advise at their end.
    """
    component = component_of(cls)
    problem = _number_problem(component, cls.__name__, complete_config(cls, config), entries)
    problems = [problem] if problem else []
    if not problems:
        shapes = {name: entry.shape for name, entry in entries.items()}
        problems = shape_problems(_built(cls, config, len(entries), where), shapes, OPTIONAL_KEYS.get(component, ()))
    # Quantised ones are made real before, or say so in the configuration.
    problems += [f"{name} holds {e.dtype}" for name, e in entries.items() if not e.dtype.is_floating_point][:1]
    if problems:
        raise ValueError(
            f"{where}: {'; '.join(problems)}; these are not the {component} tensors of {cls.__name__} in this configuration{hint}"
        )
    _check_statistics(entries, where)


def complete_config(cls: ModelClass, config: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every argument of the constructor: that of the configuration, or else the default."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return {parameter.name: config.get(parameter.name, parameter.default) for parameter in parameters}


def _number_problem(
    component: str, class_name: str, config: Mapping[str, Any], entries: Mapping[str, Entry]
) -> str | None:
    """The first number of the configuration that the tensors contradict, and which one fits."""
    for key, pattern in _COUNTS.get(class_name, _COUNTS[component]).items():
        value = config.get(key)
        layers = {match[1] for name in entries if (match := re.match(pattern, name))}
        count = len(value) if isinstance(value, (list, tuple)) else value
        if key in config and layers and count != len(layers):
            unit = "of length " if isinstance(value, (list, tuple)) else ""
            return f"`{key}` is {unit}{count!r}, but the weights have {len(layers)} of these layers; use {len(layers)}"
    for keys, name, axis in _WIDTHS[component]:
        values = [config.get(key) for key in keys]
        if name not in entries or len(entries[name].shape) <= axis or not all(isinstance(v, Integral) for v in values):
            continue
        size = entries[name].shape[axis]
        if math.prod(v for v in values if isinstance(v, Integral)) != size:
            given = " and ".join(f"`{key}` is {value!r}" for key, value in zip(keys, values))
            return f"{given}, but {name} of the weights has {size} in axis {axis}"
    return None


def _built(cls: ModelClass, config: Mapping[str, Any], limit: int, where: str) -> Shapes:
    """Names and shapes of the tensors of the model that `config` builds, which may be no more than `limit`."""
    arguments = _Frozen({name: config[name] for name in complete_config(cls, config) if name in config})
    try:
        return _shapes(cast(Hashable, cls), arguments, limit)
    # Torch answers impossible sizes with any of these.
    except (ValueError, NotImplementedError, TypeError, ArithmeticError, RuntimeError, LookupError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{where}: {reason}; this is no configuration of {cls.__name__}") from None


@lru_cache(maxsize=32)
def _shapes(cls: Hashable, arguments: "_Frozen", limit: int) -> Shapes:
    with torch.device("meta"), _at_most(limit):
        model = cast(ModelClass, cls)(**arguments)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@contextmanager
def _at_most(limit: int) -> Iterator[None]:
    """Stop a model that is built in this block when it has more parameters than the file has tensors."""
    owner, count = threading.get_ident(), 0

    def count_parameter(_module: torch.nn.Module, _name: str, _parameter: torch.nn.Parameter) -> None:
        nonlocal count
        if threading.get_ident() == owner:
            count += 1
            if count > limit + 1000:
                raise ValueError(f"it asks for more than {count - 1} tensors, but the weights are {limit}")

    hook = register_module_parameter_registration_hook(count_parameter)
    try:
        yield
    finally:
        hook.remove()


def shape_problems(own: Shapes, found: Shapes, optional: tuple[str, ...] = ()) -> list[str]:
    """What is missing, unexpected or of another shape than the model's, by name; unexpected names with the nearest."""
    missing, unexpected = sorted(set(own) - set(found) - set(optional)), sorted(set(found) - set(own))
    wrong = [
        f"{key} {list(found[key])} (the model has {list(own[key])})"
        for key in sorted(found)
        if key in own and found[key] != own[key]
    ]
    near = [f"{key}{_nearest(key, missing or list(own))}" for key in unexpected[:_MAX_LISTED]]
    kinds = (("missing", missing, missing), ("unexpected", unexpected, near), ("of another shape", wrong, wrong))
    return [f"{len(names)} {label}: {_listed(shown, len(names))}" for label, names, shown in kinds if names]


def _nearest(key: str, names: list[str]) -> str:
    close = difflib.get_close_matches(key, names[:1000], n=1, cutoff=0.8)
    return f" (like {close[0]})" if close else ""


def _listed(shown: list[str], count: int) -> str:
    more = f" and {count - _MAX_LISTED} more" if count > _MAX_LISTED else ""
    return ", ".join(shown[:_MAX_LISTED]) + more


def _check_statistics(entries: Mapping[str, Entry], where: str) -> None:
    """Refuse latents' means and deviations that would make every clip of the checkpoint NaN or infinite."""
    for name in _STATISTICS:
        values = entries[name].load().float() if name in entries else torch.ones(1)
        if not values.isfinite().all() or (name == "latents_std" and (values == 0).any()):
            rule = "finite and not 0" if name == "latents_std" else "finite"
            raise ValueError(f"{where}: {name} has values that are not {rule}; fetch the file again")


def check_folder(
    cls: ModelClass,
    path: str | os.PathLike,
    subfolder: str | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    ignore_mismatched_sizes: bool = False,
    **kwargs: Any,
) -> None:
    """Check a component's folder in diffusers' layout before it is loaded; what is not on this machine passes.

    Args:
        cls: Class of the model.
        path, subfolder, variant, use_safetensors, ignore_mismatched_sizes: As in `from_pretrained`.
        kwargs: Other arguments of it; those of the constructor replace values of the configuration.

    Raises:
        ValueError: If files are damaged, or the configuration builds another model than the weights are.
    """
    folder = Path(path, subfolder or "")
    if not (folder / "config.json").is_file():
        return
    config = read_config(folder / "config.json")
    changes = {name: value for name, value in kwargs.items() if name in inspect.signature(cls.__init__).parameters}
    where = repr(str(folder / "config.json"))
    check_finite(changes, where)
    try:
        check_types(cls.__init__, **config)
        check_sizes(**{name: value for name, value in complete_config(cls, config).items() if name in config})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    asked, saved = kwargs.get("quantization_config"), config.get("quantization_config")
    _check_methods(asked, saved, where)
    # Weights that were quantised before they were saved have shapes of their own, but for float8, which has scales.
    if use_safetensors is False or ignore_mismatched_sizes or (saved and not is_fp8(saved)):
        return
    has_scales = is_fp8(saved or asked)
    if stamp := _stamp(folder, variant):
        _check_weights(cast(Hashable, cls), folder, variant, stamp, _Frozen(config | changes), has_scales)


def _method(config: Any) -> Any:
    """The method of a quantisation configuration, saved or given."""
    return config.get("quant_method") if isinstance(config, Mapping) else getattr(config, "quant_method", None)


def is_fp8(config: Any) -> bool:
    """Whether a quantisation configuration, saved or given, is one of float8."""
    return _method(config) in NAMES


def _check_methods(asked: Any, saved: Any, where: str) -> None:
    """A model that was saved quantised stays so; diffusers would only warn."""
    if not asked or not saved or not (is_fp8(asked) or is_fp8(saved)):
        return
    if _method(asked) == _method(saved):
        wanted, stored = getattr(asked, "variant", None), saved.get("variant")
        # The default is what the name of the method stands for, too.
        if wanted not in (None, stored, VARIANTS[0]):
            raise ValueError(
                f"{where} is quantised in the variant {stored!r}, but `quantization_config` asks for {wanted!r}; leave it out, or "
                "load the weights before quantisation"
            )
        return
    raise ValueError(
        f"{where} is quantised as {str(_method(saved))!r}, but `quantization_config` asks for {str(_method(asked))!r}; leave it "
        "out, or load the weights before quantisation"
    )


class _Frozen(dict):
    """A configuration as the key of a cache: equal ones are one."""

    def __hash__(self) -> int:  # type: ignore[override]  # nobody changes it
        return hash(repr(sorted(self.items(), key=lambda item: item[0])))


def _stamp(folder: Path, variant: str | None) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of a folder's weights; nothing if it has none in safetensors files."""
    infix = f".{variant}" if variant else ""
    names = f"{_STEM}{infix}.safetensors", f"{_STEM}.safetensors.index{infix}.json"
    if not any((folder / name).is_file() for name in names):
        return ()
    files = sorted(path for path in folder.glob(f"{_STEM}*") if path.is_file())
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


# A pipeline checks all its folders before it loads the first one, and every model its own.
@lru_cache(maxsize=32)
def _check_weights(
    cls: Hashable, folder: Path, variant: str | None, _stamp: object, config: "_Frozen", has_scales: bool
) -> None:
    entries = read_folder(folder, _STEM, variant)
    plain, hint = without_scales(entries), ""
    if has_scales:
        entries = plain
    elif len(plain) < len(entries):
        hint = "; the folder holds float8 weights with scales: load it with quantization_config='fp8_scaled_mm'"
    check_fit(cast(ModelClass, cls), config, entries, repr(str(folder)), hint)
