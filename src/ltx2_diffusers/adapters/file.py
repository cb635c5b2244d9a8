"""LoRA files as pipelines use them: found, checked against the models, and read one component at a time."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
from huggingface_hub import HfApi, constants, hf_hub_download
from safetensors.torch import save_file

from ..atomic import complete_file, finish_save
from ..checkpoints.hub_files import local_file
from ..checkpoints.safetensors_io import Entry, SafetensorsFile
from .keys import LoraLayer, LoraLayers, linear_shapes, lora_to_format, read_lora
from .settings import ADAPTER_METADATA, reference_factors
from .spellings import without_compilation

# The name diffusers gives a LoRA file unless told otherwise.
LORA_WEIGHT_NAME = "pytorch_lora_weights.safetensors"
# The names that PEFT's `save_pretrained` gives the factors and their settings.
_PEFT_WEIGHTS, _PEFT_CONFIG = "adapter_model", "adapter_config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
Value = TypeVar("Value")

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class LoraMetadata:
    """What a LoRA file says about itself.

    Args:
        name: The file, for messages.
        rank: Its largest rank.
        header: Metadata of the file as written, strings by name.
        reference_downscale_factor: How much smaller than the target, in pixels, an IC-LoRA expects its reference.
        reference_temporal_scale_factor: The same for the frame rate.
    """

    name: str
    rank: int
    header: Mapping[str, str]
    reference_downscale_factor: int = 1
    reference_temporal_scale_factor: int = 1


@dataclass(frozen=True)
class LoraFile:
    """A LoRA that fits its models; the factors are read when a component's state dict is asked for.

    Args:
        metadata: What the file says about itself.
        layers: Factors by component and module path in diffusers' names.
    """

    metadata: LoraMetadata
    layers: LoraLayers

    @property
    def components(self) -> tuple[str, ...]:
        """Components that it changes, in the order of the file."""
        return tuple(dict.fromkeys(component for component, _ in self.layers))

    def only(self, components: Iterable[str]) -> "LoraFile":
        """The part of it that belongs to `components`."""
        kept = set(components)
        return LoraFile(self.metadata, {place: layer for place, layer in self.layers.items() if place[0] in kept})

    def modules(self, component: str) -> list[str]:
        """Paths of the component's modules that it changes."""
        return list(self._own(component))

    def network_alphas(self, component: str) -> dict[str, float]:
        """Alpha by module path; its delta is strength * alpha / rank * B A."""
        return {path: layer.alpha for path, layer in self._own(component).items()}

    def state_dict(self, component: str, fold_alpha: bool = False) -> dict[str, torch.Tensor]:
        """The component's factors in PEFT's names, `<module>.lora_A.weight` `[r, in]` and `lora_B` `[out, r]`.

        Args:
            component: "transformer" or "connectors".
            fold_alpha: Whether to multiply alpha / rank into the `lora_B` factors. Default `False`.
        """
        layers = self._own(component)
        has_bias = any(layer.bias is not None for layer in layers.values())
        result: dict[str, torch.Tensor] = {}
        for path, layer in layers.items():
            tensors = (layer.folded if fold_alpha else layer).tensors(path)
            try:
                result |= {name: entry.load() for name, entry in tensors.items()}
            except ValueError as error:
                raise ValueError(f"{self.metadata.name}: {error}") from None
            if has_bias and layer.bias is None:
                # PEFT has biases in all layers of an adapter, or in none.
                result[f"{path}.lora_B.bias"] = torch.zeros(layer.up.shape[0], dtype=layer.up.dtype)
        return result

    def adapter_config(self, component: str) -> dict[str, Any]:
        """Arguments of PEFT's `LoraConfig` that belong to `state_dict(component)`."""
        layers = self._own(component)
        ranks, alphas = ({path: getattr(layer, n) for path, layer in layers.items()} for n in ("rank", "alpha"))
        rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
        variants = {
            "use_dora": any(layer.magnitude is not None for layer in layers.values()),
            "lora_bias": any(layer.bias is not None for layer in layers.values()),
        }
        return {
            "r": rank,
            "lora_alpha": alpha,
            # PEFT reads names as regular expressions for the end of a path; the ^ makes them whole paths.
            "rank_pattern": {f"^{path}": value for path, value in ranks.items() if value != rank},
            "alpha_pattern": {f"^{path}": value for path, value in alphas.items() if value != alpha},
            "target_modules": list(alphas),
            **{name: True for name, used in variants.items() if used},
        }

    def plain_modules(self, component: str) -> list[str]:
        """Paths of the component's modules that are changed without magnitudes, as in a LoRA that is no DoRA."""
        return [path for path, layer in self._own(component).items() if layer.magnitude is None]

    def located(self, component: str, model: torch.nn.Module) -> "LoraFile":
        """The component's part of it, with the paths that the modules have where parts of the model are compiled."""
        actual = {without_compilation(path): path for path, _ in model.named_modules()}
        layers = {(component, actual.get(path, path)): layer for path, layer in self._own(component).items()}
        return LoraFile(self.metadata, layers)

    def _own(self, component: str) -> dict[str, LoraLayer]:
        return {path: layer for (owner, path), layer in self.layers.items() if owner == component}


def load_lora(
    source: str | os.PathLike | Mapping[str, torch.Tensor],
    models: Mapping[str, torch.nn.Module | None] | None = None,
    *,
    use_safetensors: bool | None = None,
    **location: Any,
) -> LoraFile:
    """Read a LoRA in any layout in use; factors in a safetensors file stay on disk until they are needed.

    Args:
        source: A file, a folder, a Hub id or link, or a state dict.
        models: The models it must fit, by component. Without them, or for a component that is `None`, any LTX-2 model
            will do.
        use_safetensors: `True` refuses pickled files. Others are read as plain tensors, never as code.
        location: Arguments of [`find_lora_file`].

    Raises:
        ValueError: Naming the file, if it is no LoRA, if any tensor fits no module, or if sizes differ.
    """
    name, tensors, header = _read(source, use_safetensors, location)
    modules = {component: linear_shapes(model) for component, model in (models or {}).items() if model is not None}
    try:
        layers = read_lora(tensors, modules, header, strict=True)
        factors = reference_factors(header)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    rank = max(layer.rank for layer in layers.values())
    return LoraFile(LoraMetadata(name, rank, dict(header), *factors), layers)


def find_lora_file(
    source: str | os.PathLike,
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The local path of a LoRA file, fetched through the Hub's cache if it is not here.

    Args:
        source: A file, a folder, a Hub id `owner/repository`, or a Hub link to a file.
        weight_name: File in that folder or repository. Default `LORA_WEIGHT_NAME`, else the only one there.
        subfolder: Folder below `source`.
        revision: Branch, tag or commit of the repository.
        cache_dir: The Hub's cache, default its usual place.
        token: For private repositories, default the stored one.
        local_files_only: Whether to take what the cache holds. Default `False`.
        force_download: Whether to fetch again what the cache holds. Default `False`.
    """
    hub_options: dict[str, Any] = {
        "cache_dir": cache_dir,
        "token": token,
        "local_files_only": local_files_only,
        "force_download": force_download,
    }
    path = Path(source, subfolder or "")
    if Path(source).is_file():
        return Path(source)
    if path.is_dir():
        finish_save(path)
        return path / (weight_name or _only_file([file.name for file in path.iterdir()], str(path)))
    repository = os.fspath(source)
    if not _REPOSITORY.fullmatch(repository) or repository.endswith(".safetensors"):
        return Path(local_file(repository, revision, **hub_options))
    if weight_name is None:
        if constants.HF_HUB_OFFLINE or local_files_only:
            raise ValueError(f"there is no file or folder {repository!r}; offline, a Hub id needs weight_name=")
        files = map(PurePosixPath, HfApi().list_repo_files(repository, revision=revision, token=token))
        folder = PurePosixPath(subfolder or "")
        weight_name = _only_file([file.name for file in files if file.parent == folder], repository)
    return Path(hf_hub_download(repository, weight_name, subfolder=subfolder, revision=revision, **hub_options))


def by_component(parts: Mapping[str, Mapping[str, Value]]) -> dict[str, Value]:
    """The values of all components in one dict, named `<component>.<key>`."""
    return {f"{component}.{key}": value for component, part in parts.items() for key, value in part.items()}


def lora_for_saving(
    layers: Mapping[str, Mapping[str, torch.Tensor]],
    configs: Mapping[str, Mapping[str, Any] | None],
    layout: str,
    metadata: Mapping[str, str],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a LoRA file.

    Args:
        layers: Factors per component, in PEFT's names.
        configs: Fields of PEFT's `LoraConfig` per component, or `None` for alpha equal to the rank.
        layout: One of `LORA_FORMATS`. "diffusers" keeps alpha in the metadata, all others fold it into the factors.
        metadata: Further strings for the file's metadata.
    """
    tensors = by_component(layers)
    fields = by_component({component: config or {} for component, config in configs.items()})
    settings = json.dumps(fields, indent=2, sort_keys=True, default=_plain)
    keeps_alpha = layout == "diffusers"
    read = read_lora(tensors, metadata={ADAPTER_METADATA: settings}, strict=True)
    entries = lora_to_format(read, layout, fold_alpha=not keeps_alpha)
    header = {"format": "pt", **metadata, **({ADAPTER_METADATA: settings} if keeps_alpha and fields else {})}
    return {key: entry.load() for key, entry in entries.items()}, header


def write_lora(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str] | None) -> None:
    """Write a LoRA file, whole or not at all: safetensors with the metadata `header`, or a pickle if it is `None`."""
    with complete_file(path) as temporary:
        if header is None:
            torch.save(dict(tensors), temporary)
        else:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary, metadata=dict(header))


def _plain(value: Any) -> Any:
    """Sets and enumerations, which PEFT's settings hold, as JSON can hold them."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def _read(
    source: str | os.PathLike | Mapping[str, torch.Tensor], use_safetensors: bool | None, location: dict[str, Any]
) -> tuple[str, Mapping[str, torch.Tensor | Entry], Mapping[str, str]]:
    """What to call the LoRA in messages, its tensors, and its metadata."""
    if isinstance(source, Mapping):
        if location:
            raise ValueError(f"{', '.join(location)} are for files, but the LoRA was given as a state dict")
        # Adapters own their factors: hotswapping and training change them in place.
        copies = {key: _copy_of(tensor) for key, tensor in source.items()}
        return "the given LoRA state dict", copies, {}
    path = find_lora_file(source, **location)
    name = repr(str(path))
    settings = path.with_name(_PEFT_CONFIG)
    # PEFT itself keeps its settings, alpha among them, in a file of their own.
    own = path.stem == _PEFT_WEIGHTS and settings.is_file()
    header = {ADAPTER_METADATA: settings.read_text(encoding="utf-8", errors="replace")} if own else {}
    if path.suffix not in _PICKLES:
        file = SafetensorsFile(path)
        return name, file.entries, {**header, **file.metadata}
    if use_safetensors:
        raise ValueError(f"{name} is a pickled file; with use_safetensors=True give a safetensors file")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # Damaged pickles fail in every way there is.
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(f"{name} cannot be read as a file of tensors ({reason}); fetch the file again") from None
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{name} holds something else than tensors by name")
    return name, tensors, header


def _copy_of(tensor: Any) -> Any:
    if not isinstance(tensor, torch.Tensor) or tensor.is_meta:
        return tensor
    return Entry(tensor.dtype, tuple(tensor.shape), lambda: tensor.detach().clone())


def _only_file(names: list[str], where: str) -> str:
    found = sorted(name for name in names if name.endswith(".safetensors"))
    found = found or sorted(name for name in names if name.endswith(_PICKLES))
    if LORA_WEIGHT_NAME in found:
        return LORA_WEIGHT_NAME
    if len(found) != 1:
        kind = f"several LoRA files ({', '.join(found)}); pass weight_name=" if found else "no LoRA file"
        raise ValueError(f"{where!r} holds {kind}")
    return found[0]
