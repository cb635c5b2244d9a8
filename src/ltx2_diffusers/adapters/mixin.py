"""LoRA adapters of a pipeline: loading, saving, fusing and choosing them."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.loaders.peft import PeftAdapterMixin

from .. import publishing
from ..checkpoints.packaged import checkpoint_path
from ..kernels.add_round import Rounding
from . import active, fusing
from .active import adapted_models, adapter_configs, adapter_layers, adapter_metadata, held_adapters
from .card import lora_card, lora_facts, write_with_card
from .file import LORA_WEIGHT_NAME, LoraMetadata, by_component, load_lora, lora_for_saving
from .loading import check_hotswap, check_not_fused, delete_adapter, for_present, insert_adapter, offloading
from .merging import Arithmetic
from .settings import hdr_transform
from .strengths import AdapterWeight, listed_weights, strength_at

FACTOR_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class ReferenceFactors(NamedTuple):
    """How much smaller than the target the active IC-LoRAs expect references: in pixels, and in frames per second."""

    downscale: int
    temporal_scale: int


# mypy: disable-error-code="override"
# `LoraBaseMixin` declares its methods with `**kwargs` alone; diffusers' own pipelines name arguments as this class does.
class LTX2LoraMixin(LoraBaseMixin):
    """LoRA for pipelines with the components `transformer` and `connectors`.

    Method names and arguments are those of diffusers' LTX-2 pipelines.
    """

    _lora_loadable_modules = ["transformer", "connectors"]  # noqa: RUF012 (diffusers reads a list)
    transformer_name = "transformer"
    connectors_name = "connectors"

    @classmethod
    def lora_state_dict(
        cls,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | Mapping[str, torch.Tensor],
        *,
        return_lora_metadata: bool = False,
        **file_options: Any,
    ) -> dict[str, torch.Tensor] | tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Read a LoRA of any known layout under diffusers' names (`transformer.`, `connectors.`).

        Args:
            pretrained_model_name_or_path_or_dict: A file, a folder, a Hub id or link, or a state dict.
            return_lora_metadata: Whether to return the LoRA settings too, as `<component>.<field of LoraConfig>`.
                Without them alpha is folded into the factors. Default `False`.
            file_options: `weight_name`, `subfolder`, `revision`, `cache_dir`, `token`, `local_files_only`,
                `force_download`, `use_safetensors`.
        """
        lora = load_lora(pretrained_model_name_or_path_or_dict, **file_options)
        factors = by_component({name: lora.state_dict(name, not return_lora_metadata) for name in lora.components})
        if not return_lora_metadata:
            return factors
        return factors, by_component({name: lora.adapter_config(name) for name in lora.components})

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | Mapping[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = True,
        dtype: torch.dtype | None = None,
        **file_options: Any,
    ) -> None:
        """Load a LoRA of any known layout and make it the active adapter.

        Everything is checked before a model is touched; if loading fails, the pipeline is as it was.

        Args:
            pretrained_model_name_or_path_or_dict: A file, a folder, a Hub id or link, or a state dict.
            adapter_name: A new name, without dots. Default "default_0", "default_1", ...
            hotswap: Whether to put the factors in the place of those of the adapter of that name. Default `False`.
            low_cpu_mem_usage: Whether to leave out a random initialisation of the factors. Default `True`.
            dtype: Data type of the factors, in which the adapter computes. Default that of its layer, to which the values of
                the file are rounded.
            file_options: Those of [`lora_state_dict`].

        Raises:
            ValueError: If the name is taken, the file is no LoRA or does not fit the models as a whole, or adapters are
                fused: PEFT would silently take them out of the weights.
        """
        if dtype is not None and (hotswap or dtype not in FACTOR_DTYPES):
            why = (
                "hotswap=True keeps that of the old adapter; leave it out"
                if hotswap
                else f"it has to be one of {FACTOR_DTYPES}"
            )
            raise ValueError(f"`dtype` is {dtype!r}, but {why}")
        models = adapted_models(self)
        lora = for_present(load_lora(pretrained_model_name_or_path_or_dict, models, **file_options), models)
        with held_adapters(self):
            name = self._adapter_name(adapter_name, hotswap)
            check_not_fused(self)
            if hotswap:
                check_hotswap(self, lora, name)
            insert_adapter(self, lora, name, hotswap, low_cpu_mem_usage, dtype)

    @classmethod
    def load_lora_into_transformer(
        cls,
        state_dict: Mapping[str, torch.Tensor],
        transformer: PeftAdapterMixin,
        adapter_name: str | None = None,
        _pipeline: Any = None,
        low_cpu_mem_usage: bool = False,
        hotswap: bool = False,
        metadata: Mapping[str, Any] | None = None,
        prefix: str = "transformer",
    ) -> None:
        """Load what [`lora_state_dict`] returned into one model.

        Args:
            state_dict: Factors under diffusers' names.
            transformer: The transformer or, with `prefix="connectors"`, the connectors.
            adapter_name: A new name, default "default_0", "default_1", ...
            _pipeline: The pipeline that offloads the model, if one does.
            low_cpu_mem_usage, hotswap: As in [`load_lora_weights`].
            metadata: The LoRA settings, if `state_dict` was read with them.
            prefix: Component whose factors to take.
        """
        active.plain_model(transformer).load_lora_adapter(
            dict(state_dict),
            prefix=prefix,
            hotswap=hotswap,
            adapter_name=adapter_name,
            metadata=None if metadata is None else dict(metadata),
            low_cpu_mem_usage=low_cpu_mem_usage,
            _pipeline=offloading(_pipeline),
        )

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike,
        transformer_lora_layers: Mapping[str, torch.Tensor] | torch.nn.Module | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[[dict[str, torch.Tensor], str], Any] | None = None,
        safe_serialization: bool = True,
        transformer_lora_adapter_metadata: Mapping[str, Any] | None = None,
        connectors_lora_layers: Mapping[str, torch.Tensor] | torch.nn.Module | None = None,
        connectors_lora_adapter_metadata: Mapping[str, Any] | None = None,
        format: str = "diffusers",
        metadata: Mapping[str, str] | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        token: str | None = None,
        private: bool | None = None,
        commit_message: str | None = None,
        base_model: str | os.PathLike | None = None,
        trigger: str | None = None,
    ) -> None:
        """Save LoRA factors to one file with a model card beside it, and upload both if that is asked for.

        A `README.md` that somebody wrote or edited stays as it is. In the folder of a pipeline or a model no card is written.

        Args:
            save_directory: Folder, made if needed.
            transformer_lora_layers, connectors_lora_layers: Factors as `peft.get_peft_model_state_dict` returns them,
                or a module with such a state dict.
            is_main_process: Whether this process writes. Default `True`.
            weight_name: File name. Default "pytorch_lora_weights.safetensors", or ".bin".
            save_function: Called as `save_function(tensors, path)` in place of writing the file; no card is written then.
            safe_serialization: Whether to write safetensors rather than a pickle. Default `True`.
            transformer_lora_adapter_metadata, connectors_lora_adapter_metadata: Fields of PEFT's `LoraConfig`, of which
                alpha matters. Default alpha = rank.
            format: Layout, one of `LORA_FORMATS`: "diffusers" (default), "original" for Lightricks' tools and
                ComfyUI, ... All but "diffusers" have alpha folded into the factors.
            metadata: Strings for the file's metadata, such as `{"reference_downscale_factor": "2"}`.
            push_to_hub: Whether to upload the file once it is saved, with the card; one that somebody wrote or edited, here or
                in the repository, stays. Default `False`.
            repo_id: Repository to upload to, made if it does not exist. Default the name of `save_directory`.
            token: Token that may write, default the stored one.
            private: Whether a new repository is private, default the owner's setting.
            commit_message: Default "Upload with ltx2-diffusers".
            base_model: For the card: what the LoRA was trained on, a Hub id, a folder, a file or a packaged name.
            trigger: For the card: what a prompt says to make use of it.

        Raises:
            ValueError: If there is nothing to save, or an argument is not valid.
            OSError: If the file cannot be written, or the Hub cannot be reached or refuses; a file that was saved stays.
        """
        push = _push(save_directory, save_function, push_to_hub, repo_id, token, private, commit_message)
        given = {"transformer": transformer_lora_layers, "connectors": connectors_lora_layers}
        layers = {
            component: part.state_dict() if isinstance(part, torch.nn.Module) else part
            for component, part in given.items()
            if part
        }
        if not layers:
            raise ValueError("give transformer_lora_layers or connectors_lora_layers")
        if Path(save_directory).is_file():
            raise ValueError(f"save_directory must be a folder, {os.fspath(save_directory)!r} is a file")
        for_card = [name for name, value in (("base_model", base_model), ("trigger", trigger)) if value is not None]
        if save_function is not None and for_card:
            raise ValueError(
                f"`{for_card[0]}` is for the card beside a file that is written here; leave `save_function` out"
            )
        settings = {"transformer": transformer_lora_adapter_metadata, "connectors": connectors_lora_adapter_metadata}
        if not safe_serialization and (metadata or (format == "diffusers" and any(settings.values()))):
            raise ValueError("metadata can be saved with safe_serialization=True only")
        configs = {component: settings[component] for component in layers}
        tensors, header = lora_for_saving(layers, configs, format, metadata or {})
        if not is_main_process:
            return
        default_name = Path(LORA_WEIGHT_NAME).with_suffix(".safetensors" if safe_serialization else ".bin")
        path = Path(save_directory, weight_name or default_name)
        if save_function is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_function(tensors, path.as_posix())
            return
        base = None if base_model is None else checkpoint_path(os.fspath(base_model))
        told = (format, publishing.origin(base), trigger)
        write_with_card(path, tensors, header if safe_serialization else None, *told)
        if push is not None:
            facts = replace(lora_facts(path, path.parent, *told), others=(), left_out=0)
            publishing.publish_files([path], push, partial(lora_card, facts))

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save the pipeline as diffusers does; refused while adapters are loaded, which its folder cannot hold.

        Args:
            save_directory: Folder to save to.
            args, kwargs: Those of diffusers' method.
        """
        if adapter_layers(self):
            raise ValueError(
                "a pipeline with LoRA adapters cannot be saved: save the adapters with save_lora_weights(), or make "
                "them part of the weights with fuse_lora(), then call unload_lora_weights()"
            )
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]  # the pipeline's

    def fuse_lora(
        self,
        components: Sequence[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | str | None = None,
        *,
        rounding: Rounding = "nearest",
        seed: int = 0,
        reference_rounding: bool = False,
        keep_originals: bool = True,
    ) -> None:
        """Add the adapters' deltas to the weights, layer by layer.

        The deltas of a layer are computed and summed in float32, added to its weight and rounded once, also where adapters
        are fused one after the other: on bfloat16 each weight is the one nearest to the exact sum. Weights in float8 take
        adapters too: those of fp8_cast and of layerwise casting by a bfloat16 delta, those of fp8_scaled_mm with a new scale
        of the weight. DoRA is fused by PEFT's formula, in the type of the weights.

        A warning names what is left: inactive adapters, and components that `components` leaves out.

        Args:
            components: Models to change, "transformer" and "connectors". Default all that the adapters change.
            lora_scale: Factor on the strengths of these adapters, which they keep after [`unfuse_lora`]. Default 1.0.
            safe_fusing: Whether to refuse weights that would hold NaN. Default `False`.
            adapter_names: One adapter or several to add, default the active ones. Strengths are those of [`set_adapters`].
            rounding: How weights in float8 without scales are rounded: "nearest" (default), or "stochastic", which keeps small
                deltas on average and is lossy at random.
            seed: Of stochastic rounding. Default 0.
            reference_rounding: Whether to round as Lightricks' code of LTX-2.0 does on bfloat16 and float8: each product of
                factors, their sum, and the weight, all to bfloat16. It gives the bits of that code, and deviates from the
                exact sum in more places. Default `False`.
            keep_originals: Whether to copy the weights that change to host memory, which costs their size, so that
                [`unfuse_lora`] needs nothing else. Otherwise it reads them again from the folder or file that the model was
                loaded from. Default `True`.

        Raises:
            ValueError: If an adapter is fused already, the weights are quantised by another library or stored in a type that
                cannot take it, or an argument has no effect. The weights are as before then.
        """
        active.check_changeable(self, components)
        how = Arithmetic(rounding, seed, reference_rounding)
        asked = fusing.Fusing(components, lora_scale, safe_fusing, adapter_names, how, keep_originals)
        with held_adapters(self), torch.no_grad():
            fusing.fuse(self, asked)

    def unfuse_lora(self, components: Sequence[str] | None = None) -> None:
        """Take fused adapters out of the weights, which are then what they were before the first [`fuse_lora`], to the bit.

        Args:
            components: Models to change, default all.

        Raises:
            ValueError: If the weights were not kept, and cannot be read as they were; nothing is changed then.
        """
        with held_adapters(self), torch.no_grad():
            fusing.unfuse(self, components)

    @property
    def fused_loras(self) -> set[str]:
        """Names of the adapters that are part of the weights."""
        return set(fusing.fused_adapters(self))

    @property
    def num_fused_loras(self) -> int:
        """How many adapters are part of the weights."""
        return len(self.fused_loras)

    def unload_lora_weights(self) -> None:
        """Remove all adapters; those that are fused stay part of the weights for good."""
        with held_adapters(self):
            fusing.warn_of_lost_parts(self)
            fusing.settle(self)
            for model in adapted_models(self).values():
                model.unload_lora()

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove adapters.

        Args:
            adapter_names: Adapters that are loaded and not fused.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        with held_adapters(self):
            listed_weights(names, None, list(self.lora_metadata))
            if fused := self.fused_loras.intersection(names):
                raise ValueError(f"the adapters {sorted(fused)} are fused; call unfuse_lora() before deleting them")
            for model in adapted_models(self).values():
                for name in names:
                    if name in adapter_configs(model):
                        delete_adapter(model, name)

    def disable_lora(self) -> None:
        """Let the models compute without adapters, which stay loaded; fused ones are taken out of the weights."""
        with held_adapters(self):
            self.unfuse_lora()
            self._enable(False)

    def enable_lora(self) -> None:
        """Let the models compute with their active adapters again."""
        self._enable(True)

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: AdapterWeight | Sequence[AdapterWeight] = None
    ) -> None:
        """Make these adapters, and no others, the active ones.

        Args:
            adapter_names: Adapters; an empty list leaves the bare models.
            adapter_weights: Strength for all, or one each: a number, or one per part, such as `{"video": 1.0, "audio": 0.0}`,
                or per component, such as `{"transformer": 0.8, "connectors": 1.0}`, or within a component one per block, such
                as `{"transformer": {"transformer_blocks.0": 0.5}}`. Default 1, also for what is not named. Parts are "video"
                and "audio", the streams of the transformer, "cross_modal", what leads from one to the other, and "connectors".

        Raises:
            ValueError: If an adapter is not loaded or is fused, or a strength is no finite number or belongs to nothing.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        with held_adapters(self):
            weights = listed_weights(names, adapter_weights, list(self.lora_metadata))
            layers = list(active.named_adapter_layers(self))
            active.check_weights(self, dict(zip(names, weights)))
            active.check_has_effect(self, names)
            for component, path, layer in layers:
                layer.set_adapter(names)
                for name, weight in zip(names, weights):
                    active.set_strength(layer, name, strength_at(weight, component, path))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of the loaded adapters by component."""
        configs = {component: list(adapter_configs(model)) for component, model in adapted_models(self).items()}
        return {component: names for component, names in configs.items() if names}

    def enable_lora_hotswap(self, **options: Any) -> None:
        """Prepare the models for adapters that take each other's place.

        Args:
            options: `target_rank` and `check_compiled` of diffusers' method of the models.
        """
        for model in adapted_models(self).values():
            model.enable_lora_hotswap(**options)

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters that are active in any component."""
        active = (name for layer in adapter_layers(self) for name in layer.active_adapters)
        loaded = self.lora_metadata
        return [name for name in dict.fromkeys(active) if name in loaded]

    @property
    def lora_metadata(self) -> dict[str, LoraMetadata | None]:
        """What the file of every loaded adapter says about itself; `None` for one that came by another way."""
        return adapter_metadata(self)

    def reference_factors(self, adapter_names: Sequence[str] | None = None) -> ReferenceFactors:
        """The scale that the IC-LoRAs among some adapters expect references in.

        Args:
            adapter_names: Default the active adapters.

        Raises:
            ValueError: If two of them expect different scales.
        """
        names = self.get_active_adapters() if adapter_names is None else adapter_names
        known = {name: metadata for name, metadata in self.lora_metadata.items() if name in names and metadata}
        return ReferenceFactors(
            _common_factor({name: metadata.reference_downscale_factor for name, metadata in known.items()}),
            _common_factor({name: metadata.reference_temporal_scale_factor for name, metadata in known.items()}),
        )

    def lora_hdr_transform(self) -> str | None:
        """The curve of the signal that the active LoRAs make, by its name; `None` if their files name none.

        Raises:
            ValueError: If two of them name different ones.
        """
        known = {name: self.lora_metadata[name] for name in self.get_active_adapters()}
        told = {name: curve for name, data in known.items() if data and (curve := hdr_transform(data.header))}
        if len(set(told.values())) > 1:
            raise ValueError(f"the active LoRAs make signals of different curves: {told}; activate one of them")
        return next(iter(told.values()), None)

    def _enable(self, enabled: bool) -> None:
        with held_adapters(self):
            for layer in adapter_layers(self):
                layer.enable_adapters(enabled)

    def _adapter_name(self, name: str | None, hotswap: bool) -> str:
        loaded = self.lora_metadata
        if hotswap and name not in loaded:
            raise ValueError(f"hotswap=True needs the name of a loaded adapter, one of {sorted(loaded)}, got {name!r}")
        if name is None:
            return next(free for n in count(len(loaded)) if (free := f"default_{n}") not in loaded)
        if name in loaded and not hotswap:
            raise ValueError(
                f"adapter_name {name!r} is in use; choose another, or call delete_adapters({name!r}) first"
            )
        if not name or "." in name:
            advice = f"; use {name.replace('.', '_')!r}" if name else ""
            raise ValueError(f"adapter_name must not be empty or hold dots, got {name!r}{advice}")
        return name


def _push(
    folder: str | os.PathLike, save_function: Callable | None, push_to_hub: bool, repo_id: str | None, *how: Any
) -> publishing.Push | None:
    """Where to upload a saved LoRA to, checked before anything is written; `None` for nowhere."""
    if not push_to_hub:
        if repo_id is not None:
            raise ValueError(
                f"`repo_id` is {repo_id!r}, but `push_to_hub` is False; set it to True, or leave both out"
            )
        return None
    if save_function is not None:
        raise ValueError("push_to_hub=True uploads a file that is written here; leave `save_function` out")
    return publishing.Push(repo_id or Path(folder).absolute().name, *how)


def _common_factor(factors: Mapping[str, int]) -> int:
    different = {name: factor for name, factor in factors.items() if factor != 1}
    if len(set(different.values())) > 1:
        raise ValueError(f"the active LoRAs expect references of different scale: {different}; activate one of them")
    return next(iter(different.values()), 1)
