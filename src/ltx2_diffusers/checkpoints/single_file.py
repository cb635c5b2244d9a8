"""Loading one component out of an original checkpoint file."""

import inspect
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import GGUFQuantizationConfig

from ..quantization.configs import FP8Config, as_config
from . import class_names
from .fit import ModelClass, check_fit
from .gguf_file import fill_quantized
from .hub_files import local_file
from .json_files import read_config
from .origin import origin_at, remember
from .original import OriginalCheckpoint, main_dtype
from .safetensors_io import Entry
from .scaled_fp8 import planned, without_scales


def load_component(
    cls: ModelClass,
    path_or_dict: str | os.PathLike | Sequence[str | os.PathLike] | Mapping[str, torch.Tensor],
    *,
    torch_dtype: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    config: str | os.PathLike | Mapping[str, Any] | None = None,
    original_config: Mapping[str, Any] | str | os.PathLike | None = None,
    subfolder: str | None = None,
    config_revision: str | None = None,
    revision: str | None = None,
    device_map: str | torch.device | Mapping[str, Any] | None = None,
    quantization_config: object = None,
    low_cpu_mem_usage: bool | None = None,
    disable_mmap: bool = False,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    force_download: bool = False,
    proxies: Mapping[str, str] | None = None,
    **config_overrides: Any,
) -> Any:
    """Loads a model of class `cls` from an original checkpoint, reading only this component's tensors.

    Args:
        cls: A model class of an LTX-2 component, or diffusers' one of an LTX-Video component.
        path_or_dict: A safetensors or GGUF file, a Hub link to one, a list of safetensors files that hold it together, or a
            state dict, which is not changed.
        torch_dtype, dtype: Floating-point dtype of the model; `dtype` wins. Default: as stored; scaled fp8 weights
            are multiplied with their scale in float32 and take the dtype of the other weights. Quantised weights of a
            GGUF file are float32 without `quantization_config`.
        device: Device of the model, default CPU.
        config: A diffusers folder or repository with this component's `config.json`, or such a config. Default: from
            the file's metadata, or without metadata that of the published model with these tensor names.
        original_config: Metadata `config` (dictionary or JSON file) to use instead of the file's.
        subfolder: Sub-folder of `config`; by default the component's own where there is one.
        config_revision: Revision of the repository `config`.
        revision: Revision of the repository the file is fetched from.
        device_map: A single device, or `{"": device}`, as another spelling of `device`.
        quantization_config: `"fp8_cast"`, `"fp8_scaled_mm"` or one of their configurations, with which layers are stored
            in float8, rounded one tensor at a time if the file holds real weights; or diffusers'
            `GGUFQuantizationConfig`, with which the linear layers of a GGUF file stay packed. Other kinds raise, and
            belong to `from_pretrained`.
        low_cpu_mem_usage: `False` initialises the model before filling it; default True.
        disable_mmap: Read the file into memory instead of mapping it, default False.
        cache_dir, local_files_only, token, force_download: Options of the download from the Hub.
        proxies: Not supported by the Hub client; raises. Set `HTTPS_PROXY` instead.
        config_overrides: Constructor arguments of `cls` that replace values of the config.

    Returns:
        The model, in evaluation mode.
    """
    _check_options(cls, config, original_config, config_overrides)
    quantization_config = as_config(quantization_config)
    if proxies is not None:
        raise ValueError("proxies is not supported by the Hub client; set the environment variable HTTPS_PROXY")
    target = _target_device(device, device_map)
    component = class_names.component_of(cls)
    hub_options = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
    if isinstance(path_or_dict, (str, os.PathLike)):
        path_or_dict = local_file(path_or_dict, revision, force_download=force_download, **hub_options)
    checkpoint = OriginalCheckpoint(path_or_dict, mmap=not disable_mmap, original_config=original_config)
    _check_float8(cls, checkpoint)
    dtype = dtype if dtype is not None else torch_dtype
    if quantization_config is None:
        entries = checkpoint.component(component, dtype)
    else:
        _check_quantization(quantization_config, checkpoint, low_cpu_mem_usage)
        entries = checkpoint.component(component, keep_quantized=True)
    if config is not None:
        config = _given_config(cls, component, config, subfolder, revision=config_revision, **hub_options)
    model_config = _fitting_config(cls, checkpoint, entries, config, config_overrides)
    quantizer = None
    if isinstance(quantization_config, FP8Config):
        with checkpoint.named(component):
            quantizer = planned(quantization_config, entries, dtype or main_dtype(entries))
    model = empty_model(cls, model_config, initialised=low_cpu_mem_usage is False)
    remember(model, origin_at(path_or_dict, dtype=dtype) if isinstance(path_or_dict, (str, os.PathLike)) else None)
    if quantizer is not None:
        with checkpoint.named(component):
            _fill_float8(model, entries, quantizer, dtype, target, copy=isinstance(path_or_dict, Mapping))
        return model.eval()
    if quantization_config is not None:
        fill_quantized(model, entries, quantization_config, dtype, target)
        return model.eval()
    # A model that shares memory with the caller's dictionary would change it when trained.
    tensors = {key: entry.load().to(target, copy=isinstance(path_or_dict, Mapping)) for key, entry in entries.items()}
    model.load_state_dict(tensors, strict=False, assign=True)
    return model.to(target).eval()


def empty_component(
    cls: ModelClass,
    path: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    config: str | os.PathLike | Mapping[str, Any] | None = None,
) -> tuple[Any, dict[str, Entry], Path]:
    """A model of an original file as shapes alone, its tensors in the file by name, and the file.

    Args:
        cls, dtype, config: As in [`load_component`].
        path: A safetensors file, or a Hub link to one.
    """
    file, component = local_file(path), class_names.component_of(cls)
    checkpoint = OriginalCheckpoint(file, mmap=True)
    if checkpoint.is_gguf:
        raise ValueError(
            f"{checkpoint.name} is a GGUF file, whose weights are packed; load it whole, then stream from RAM"
        )
    entries = checkpoint.component(component, dtype)
    given = None if config is None else _given_config(cls, component, config, None)
    return empty_model(cls, _fitting_config(cls, checkpoint, entries, given, {})), entries, Path(file)


def empty_model(cls: ModelClass, config: Mapping[str, Any], initialised: bool = False) -> Any:
    """A model without values, or with those that its constructor draws."""
    with nullcontext() if initialised else init_empty_weights():
        return cls.from_config(dict(config))


def _fitting_config(
    cls: ModelClass,
    checkpoint: OriginalCheckpoint,
    entries: Mapping[str, Entry],
    given: Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """The configuration of a component, which builds exactly the tensors that there are."""
    component = class_names.component_of(cls)
    own = checkpoint.config(component, class_names.family_of(cls)) if given is None else given
    config = {**own, **overrides}
    if component == "vocoder":
        _check_stages(cls, entries, checkpoint.name)
    is_guess = given is None and not checkpoint.has_config(component)
    hint = "; without `config` metadata the published model was assumed: pass config= or original_config="
    check_fit(cls, config, without_scales(entries), checkpoint.name, hint if is_guess else "")
    return config


def _check_options(cls: ModelClass, config: object, original_config: object, overrides: Mapping[str, Any]) -> None:
    if config is not None and original_config is not None:
        raise ValueError("config and original_config exclude each other; give one of them")
    if unknown := sorted(set(overrides) - set(inspect.signature(cls).parameters)):
        raise TypeError(f"from_single_file got unknown arguments: {', '.join(unknown)}")


def _check_float8(cls: ModelClass, checkpoint: OriginalCheckpoint) -> None:
    """Refuse weights of LTX-Video in float8: their files are made for kernels that rotate what they multiply."""
    float8 = any(entry.dtype.is_floating_point and entry.dtype.itemsize == 1 for entry in checkpoint.entries.values())
    if float8 and class_names.family_of(cls) == "ltx_video":
        raise ValueError(
            f"{checkpoint.name} holds float8 weights of LTX-Video, whose layout is not published; load the bfloat16 file of the same "
            "model, with quantization_config='fp8_cast' if its transformer has to be small"
        )


def _fill_float8(
    model: Any,
    entries: Mapping[str, Entry],
    quantizer: Any,
    dtype: torch.dtype | None,
    target: torch.device,
    copy: bool,
) -> None:
    """Fill an empty model, one tensor at a time; tensors of a caller are copied."""
    quantizer.preprocess_model(model=model)
    main = dtype or main_dtype(entries)
    for name, entry in without_scales(entries).items():
        state = {name: entry.load().to(target, copy=copy)}
        kept = dtype or (main if entry.dtype.itemsize == 1 else entry.dtype)
        quantizer.create_quantized_param(model, state[name], name, target, state, dtype=kept)
    model.to(target)
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer
    model.register_to_config(quantization_config=quantizer.quantization_config)


def _check_quantization(config: Any, checkpoint: OriginalCheckpoint, low_cpu_mem_usage: bool | None) -> None:
    if low_cpu_mem_usage is False:
        raise ValueError("low_cpu_mem_usage cannot be False with quantization_config; leave it out")
    if isinstance(config, FP8Config):
        return
    if not isinstance(config, GGUFQuantizationConfig):
        raise ValueError(
            f"quantization_config of type {type(config).__name__} cannot be applied to an original file; convert it "
            "with `ltx2 convert` and pass quantization_config to from_pretrained"
        )
    if not checkpoint.is_gguf:
        raise ValueError(
            f"this quantization_config belongs to GGUF files, which {checkpoint.name} is not; leave it out"
        )


def _target_device(device: str | torch.device | None, device_map: Any) -> torch.device:
    if device_map is not None:
        mapped: Any = device_map.get("") if isinstance(device_map, Mapping) and len(device_map) == 1 else device_map
        is_device = isinstance(mapped, (torch.device, int)) or (
            isinstance(mapped, str) and mapped not in ("auto", "balanced", "balanced_low_0", "sequential")
        )
        if not is_device:
            raise ValueError(
                f"device_map={device_map!r} spreads a model over devices, which a single file does not support; give "
                "one device, or convert the file and use from_pretrained"
            )
        if device is not None and torch.device(device) != torch.device(mapped):
            raise ValueError(f"device={device!r} and device_map={device_map!r} contradict each other; give one")
        device = mapped
    return torch.device("cpu" if device is None else device)


def _given_config(cls: ModelClass, component: str, config: Any, subfolder: str | None, **hub: Any) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return dict(config)
    if subfolder is None and not os.path.isfile(os.path.join(config, "config.json")):
        subfolder = component
    file = Path(config, subfolder or "", "config.json")
    if file.is_file():
        return read_config(file)
    return cls.load_config(os.fspath(config), subfolder=subfolder, **hub)


def _check_stages(cls: ModelClass, entries: Mapping[str, Entry], name: str) -> None:
    has_two_stages = any(key.startswith("bwe_generator.") for key in entries)
    is_two_stage_class = any(base.__name__ == "LTX2VocoderWithBWE" for base in cls.__mro__)
    if has_two_stages != is_two_stage_class:
        stages, better = ("two stages", "LTX2VocoderWithBWE") if has_two_stages else ("one stage", "LTX2Vocoder")
        raise ValueError(f"the vocoder in {name} has {stages}; load it with {better}.from_single_file")
