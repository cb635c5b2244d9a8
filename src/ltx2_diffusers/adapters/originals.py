"""Weights as they were before adapters were fused into them: kept in host memory, or read again from the checkpoint."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from peft.tuners.lora import LoraLayer

from ..checkpoints.origin import noted_origin
from ..checkpoints.original import OriginalCheckpoint
from ..checkpoints.safetensors_io import Entry, read_folder
from ..checkpoints.scaled_fp8 import dequantized, stored_scales
from ..models.stored import sampled_bytes, stored_tensor
from ..quantization.linear import FLOAT8, FP8ScaledLinear, cast_tensor, quantize_tensor
from ..quantization.stored import checked_scale
from .active import AdaptedModel
from .loading import casting_of, compute_dtype
from .merging import Arithmetic

_ADVICE = "load the model anew, or fuse with keep_originals=True"


@dataclass(frozen=True)
class Source:
    """Where the weights of a layer were loaded from.

    Args:
        location: Folder or file, `None` if that is not known.
        component: The component of the pipeline.
        path: The layer in it.
        variant: Which of several weights in a folder.
    """

    location: str | None
    component: str
    path: str
    variant: str | None = None

    @classmethod
    def of(cls, pipeline: LoraBaseMixin, component: str, model: AdaptedModel, path: str) -> "Source":
        """The source of a layer of a pipeline's model: what was noted when that was loaded, or what the pipeline is from."""
        origin = noted_origin(model)
        if origin is not None:
            return cls(os.fspath(origin.path), component, path, origin.variant)
        named = model.config.get("_name_or_path") or pipeline.config.get("_name_or_path")  # type: ignore[attr-defined]
        return cls(None if named is None else os.fspath(named), component, path)

    def entries(self) -> dict[str, Entry]:
        """The tensors of the layer as they are stored, by their names in the component.

        Raises:
            ValueError: If there is no such file, or it does not hold the layer.
        """
        lost = "the weights before fusing were not kept, and"
        if self.location is None:
            raise ValueError(f"{lost} where they were loaded from is not known; {_ADVICE}")
        if not os.path.exists(self.location):
            raise ValueError(f"{lost} {self.location!r} is no file or folder here; {_ADVICE}")
        found, prefix = _read(self.location, self.component, self.variant), f"{self.path}."
        if f"{prefix}weight" not in found:
            raise ValueError(f"{lost} {self.location!r} holds no {prefix}weight; {_ADVICE}")
        return {name: entry for name, entry in found.items() if name.startswith(prefix)}


# For the layers of one model, whose header is read once.
@lru_cache(maxsize=2)
def _read(location: str, component: str, variant: str | None) -> dict[str, Entry]:
    """The tensors of a component under diffusers' names."""
    path = Path(location)
    if path.is_file():
        return OriginalCheckpoint(path).component(component, keep_quantized=True)
    return read_folder(path / component if (path / component).is_dir() else path, variant=variant)


@contextmanager
def files_read_anew() -> Iterator[None]:
    """Read the headers of files once in a block, and again in the next one."""
    _read.cache_clear()
    try:
        yield
    finally:
        _read.cache_clear()


class Original:
    """The weights of a layer before adapters were fused into it. Calling it puts them back, to the bit.

    It stands on the layer in place of PEFT's `unmerge`, which subtracts: so it goes where the layer goes, into copies,
    pickles and other pipelines, and whatever unmerges the layer is exact.

    Args:
        layer: A layer into which nothing is fused.
        source: Where its weights can be read again.
        keep: Whether to copy to host memory what changes.

    Attributes:
        how: How the adapters that are fused now were rounded.
    """

    def __init__(self, layer: LoraLayer, source: Source, keep: bool) -> None:
        self._layer, self._source = layer, source
        self.how = Arithmetic()
        # As bytes: storages of float8 tensors cannot be pickled.
        self._kept: dict[str, torch.Tensor] | None = {} if keep else None
        self._samples: dict[str, torch.Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}

    @classmethod
    def on(cls, layer: LoraLayer) -> "Original | None":
        """That of a layer into which adapters are fused, if they were fused here."""
        found = vars(layer).get("unmerge")
        return found if isinstance(found, cls) and layer.merged else None

    @property
    def is_kept(self) -> bool:
        """Whether there is a copy in host memory."""
        return self._kept is not None

    def record(self, names: Iterable[str]) -> None:
        """Note tensors that are about to change for the first time."""
        for name in names:
            if name not in self._dtypes:
                tensor = stored_tensor(self._layer.get_base_layer(), name)
                self._dtypes[name], self._samples[name] = tensor.dtype, sampled_bytes(tensor).cpu()
                if self._kept is not None:
                    self._kept[name] = tensor.reshape(-1).view(torch.uint8).to("cpu", copy=True)

    def install(self) -> None:
        """Take the place of the layer's `unmerge`."""
        vars(self._layer)["unmerge"] = self

    def check(self) -> None:
        """Raise `ValueError` unless the weights are kept, or can be read as they were."""
        if self._kept is None:
            for _ in self.tensors():
                pass

    def forget(self) -> None:
        """Drop the copy; from then on the weights are read from where they came from."""
        self._kept = None

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors that changed, as they were.

        Raises:
            ValueError: If they are not kept and cannot be read, or are others by now.
        """
        if self._kept is not None:
            for name, raw in self._kept.items():
                yield name, raw.view(self._dtypes[name])
            return
        read = self._read()
        for name, dtype in self._dtypes.items():
            tensor = read[name]
            if tensor.dtype != dtype or not torch.equal(sampled_bytes(tensor), self._samples[name]):
                raise ValueError(
                    f"the weights before fusing were not kept, and {self._source.path}.{name} in {self._source.location!r} is "
                    f"another than the adapters were fused into; {_ADVICE}"
                )
            yield name, tensor

    def _read(self) -> dict[str, torch.Tensor]:
        """The tensors from the checkpoint, stored as the layer stores them."""
        entries, path, base = self._source.entries(), self._source.path, self._layer.get_base_layer()
        weight, scales = entries[f"{path}.weight"], stored_scales(entries)
        scale = scales.get(f"{path}.weight_scale")
        is_scaled = isinstance(base, FP8ScaledLinear)
        if weight.dtype == FLOAT8 == self._dtypes["weight"] and is_scaled == (scale is not None):
            read = {"weight": weight.load()}
            if scale is not None:
                read["weight_scale"] = checked_scale(f"{path}.weight_scale", scale.load())
        else:
            real = dequantized(entries)[f"{path}.weight"].load()
            if casting_of(base) is not None:
                # Layers are cast after they were loaded.
                real = real.to(compute_dtype(base))
            elif scale is not None and self._dtypes["weight"] == FLOAT8:
                # As `fp8_cast` reads weights with scales.
                real = real.bfloat16()
            tensors = quantize_tensor(real) if is_scaled else (_as(real, self._dtypes["weight"]),)
            read = dict(zip(("weight", "weight_scale"), tensors))
        if "bias" in self._dtypes:
            read["bias"] = _as(entries[f"{path}.bias"].load(), self._dtypes["bias"])
        return read

    def __call__(self) -> None:
        """Put the weights back, in place."""
        layer = self._layer
        base = layer.get_base_layer()
        for name, tensor in self.tensors():
            target = stored_tensor(base, name)
            target.copy_(tensor.reshape(target.shape))
        layer.merged_adapters.clear()
        # What PEFT kept to divide a DoRA out again.
        for key in [key for key in layer._caches if key.endswith("-weight_norm")]:
            del layer._caches[key]
        vars(layer).pop("unmerge", None)


def _as(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return cast_tensor(tensor) if dtype == FLOAT8 else tensor.to(dtype)
