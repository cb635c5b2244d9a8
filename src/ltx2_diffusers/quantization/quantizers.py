"""How diffusers' loaders fill a model with float8 layers, one tensor at a time."""

# diffusers calls every method with more than most of them read.
# ruff: noqa: ARG002

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.quantizers.base import DiffusersQuantizer
from torch import nn

from .calibration import input_scales
from .configs import FP8CastConfig, FP8Method, FP8ScaledMMConfig
from .layers import Shapes, cast_layers, put_cast, put_scaled, scaled_layers
from .linear import FLOAT8, cast_tensor, quantize_tensor
from .stored import SCALES, Scales, layer_scales, read_scales, scale_names

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


class _FP8Quantizer(DiffusersQuantizer):
    """What both methods share: which scales the files hold, and float8 weights of layers that are not quantised."""

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.scales: dict[str, Scales] = {}
        # The layers, and whether they have a stored scale of inputs.
        self._layers: dict[str, bool] = {}
        self._dtype: torch.dtype | None = None

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse weights on the disk, which diffusers stores there before anything is quantised."""
        if isinstance(device_map, dict) and "disk" in device_map.values():
            raise ValueError(
                "`device_map` puts layers on the disk, which float8 layers cannot be; use group offloading"
            )

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype | None:  # type: ignore[override]  # it hands on `None`
        """The data type of what is not stored in float8, as given."""
        self._dtype = torch_dtype
        return torch_dtype

    def adjust_target_dtype(self, torch_dtype: torch.dtype) -> torch.dtype:
        """By which memory is counted when layers are spread over devices."""
        return FLOAT8

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[Any]) -> list[str]:
        """Take the scales out of the files before anything else is read."""
        files = [file for file in checkpoint_files or [] if not isinstance(file, Mapping)]
        self.scales = layer_scales(read_scales(map(str, files)))
        lost = set(scale_names(loaded_keys))
        return [name for name in loaded_keys if name not in lost]

    def maybe_update_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """What is left of a file without its scales."""
        return {name: tensor for name, tensor in state_dict.items() if name not in scale_names([name])}

    def update_missing_keys(self, model: Any, missing_keys: list[str], prefix: str) -> list[str]:
        """Scales are not missing: they were read before, or follow from the weights."""
        lost = set(scale_names(missing_keys))
        return [name for name in missing_keys if name not in lost]

    def plan(self, shapes: Shapes, dtypes: Mapping[str, torch.dtype] | None = None) -> list[str]:
        """Choose the layers that are stored in float8, and return their names.

        Args:
            shapes: Shapes of the tensors of the model, without scales.
            dtypes: Data types in which the files hold them, if that is known before they are read.

        Raises:
            ValueError: If there are none, or the files hold what cannot be stored so.
        """
        raise NotImplementedError

    def stored_tensors(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """What a layer stores for one tensor of the file: by the last part of the name.

        Args:
            name: Name of the tensor.
            tensor: It, as the file holds it.
        """
        raise NotImplementedError

    def stored_dtypes(self, name: str) -> dict[str, torch.dtype | None]:
        """Data types of what `stored_tensors` gives for the tensor of that name; `None` for what keeps its own."""
        raise NotImplementedError

    def check_if_quantized_param(
        self, model: Any, param_value: torch.Tensor, param_name: str, state_dict: dict[str, Any], **kwargs: Any
    ) -> bool:
        """Whether `create_quantized_param` has to set this tensor."""
        return param_name.rpartition(".")[0] in self._layers or state_dict[param_name].dtype in _FLOAT8

    def create_quantized_param(  # type: ignore[override]  # it promises a parameter that nobody reads
        self,
        model: Any,
        param_value: Any,
        param_name: str,
        target_device: Any,
        state_dict: Any = None,
        *args: Any,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        """Set what a layer stores for a tensor; the loader has rounded `param_value`, so that of `state_dict` counts."""
        path = param_name.rpartition(".")[0]
        layer, tensor = model.get_submodule(path), state_dict[param_name].to(target_device)
        for kind, value in self.stored_tensors(param_name, tensor).items():
            if value.dtype not in _FLOAT8 and kind not in SCALES and value.is_floating_point():
                value = value.to(dtype or torch.float32)
            old = layer._parameters.get(kind)
            value = value.to(target_device)
            if old is None:
                layer._buffers[kind] = value
            else:
                layer._parameters[kind] = nn.Parameter(value, requires_grad=old.requires_grad)

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        if not self._layers:
            self.plan({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
        self._put(model)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        # diffusers refuses casts of what it calls quantised; these layers keep their data types themselves.
        model.is_quantized = False
        return model

    def _put(self, model: Any) -> None:
        raise NotImplementedError

    @property
    def is_serializable(self) -> bool:
        """Whether a model can be saved as it is: yes."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether a model can be compiled: yes."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether gradients go through the layers, to adapters beside them."""
        return isinstance(self.quantization_config, FP8CastConfig)


class FP8CastQuantizer(_FP8Quantizer):
    """Fills layers of `fp8_cast`."""

    quantization_config: FP8CastConfig

    def plan(self, shapes: Shapes, dtypes: Mapping[str, torch.dtype] | None = None) -> list[str]:
        """All attention and feed-forward layers of the blocks."""
        self._layers = dict.fromkeys(cast_layers(shapes, self.quantization_config.variant), False)
        return _found(self._layers, FP8Method.CAST)

    def stored_tensors(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """Weight or bias, rounded once from what the file holds."""
        path, _, kind = name.rpartition(".")
        if kind == "weight" and path in self.scales:
            # What the reference casts is the weight in bfloat16.
            tensor = (tensor.float() * self.scales[path].weight.to(tensor.device)).to(torch.bfloat16)
        elif tensor.dtype in _FLOAT8:
            tensor = tensor.to(torch.bfloat16)
        if path not in self._layers:
            return {kind: tensor}
        with _named(name):
            return {kind: cast_tensor(tensor)}

    def stored_dtypes(self, name: str) -> dict[str, torch.dtype | None]:
        """Float8 for all of a layer."""
        path, _, kind = name.rpartition(".")
        return {kind: FLOAT8 if path in self._layers else None}

    def _put(self, model: Any) -> None:
        put_cast(model, self._layers, self._dtype)


class FP8ScaledMMQuantizer(_FP8Quantizer):
    """Fills layers of `fp8_scaled_mm`."""

    quantization_config: FP8ScaledMMConfig

    def plan(self, shapes: Shapes, dtypes: Mapping[str, torch.dtype] | None = None) -> list[str]:
        """The layers for which the files have scales; without any, those that are chosen by name."""
        layers = _found(list(self.scales) or scaled_layers(shapes), FP8Method.SCALED_MM)
        if unknown := [name for name in layers if f"{name}.weight" not in shapes]:
            raise ValueError(f"the weights have a scale for {unknown[0]!r}, which the model has not")
        for name, dtype in (dtypes or {}).items():
            self._check_dtype(name, dtype)
        stored = {name: scales.input for name, scales in self.scales.items() if scales.input is not None}
        self._inputs = {**stored, **input_scales(self.quantization_config.calibration_amax_path, layers)}
        self._layers = {name: name in self._inputs for name in layers}
        return layers

    def stored_tensors(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """Bias as it is; a weight with its scales, rounded if the file has none."""
        path, _, kind = name.rpartition(".")
        self._check_dtype(name, tensor.dtype)
        if kind != "weight" or path not in self._layers:
            return {kind: tensor}
        if path in self.scales:
            weight, scale = tensor, self.scales[path].weight
        else:
            with _named(name):
                weight, scale = quantize_tensor(tensor)
        scales = {"input_scale": self._inputs[path]} if path in self._inputs else {}
        return {"weight": weight, "weight_scale": scale, **scales}

    def stored_dtypes(self, name: str) -> dict[str, torch.dtype | None]:
        """Float8 for a weight, and float32 for its scales."""
        path, _, kind = name.rpartition(".")
        if kind != "weight" or path not in self._layers:
            return {kind: None}
        scales = SCALES if path in self._inputs else SCALES[:1]
        return {"weight": FLOAT8, **dict.fromkeys(scales, torch.float32)}

    def _check_dtype(self, name: str, dtype: torch.dtype) -> None:
        """Float8 is multiplied with a scale or not at all, and only one of the two kinds has units."""
        path, _, kind = name.rpartition(".")
        has_scale = kind == "weight" and path in self.scales
        if dtype in _FLOAT8 and not has_scale:
            raise ValueError(
                f"{name} is {dtype} without a weight_scale, so it cannot be multiplied as fp8_scaled_mm; use fp8_cast, which "
                "needs none"
            )
        if has_scale and dtype != FLOAT8:
            raise ValueError(
                f"{name} has a weight_scale but is {dtype}; fp8_scaled_mm multiplies {FLOAT8}; use fp8_cast, or load without "
                "quantization_config"
            )

    def _put(self, model: Any) -> None:
        put_scaled(model, self._layers, self._dtype)


def _found(layers: Iterable[str], method: FP8Method) -> list[str]:
    found = list(layers)
    if not found:
        raise ValueError(
            f"there is no layer that {method.value} stores; it is for the transformer of LTX-2, and fp8_scaled_mm leaves the first "
            "block and the last tenth alone"
        )
    return found


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Let errors in the values of a tensor say which one it is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


QUANTIZERS: dict[str, tuple[type, type[DiffusersQuantizer]]] = {
    FP8Method.CAST.value: (FP8CastConfig, FP8CastQuantizer),
    FP8Method.SCALED_MM.value: (FP8ScaledMMConfig, FP8ScaledMMQuantizer),
}
