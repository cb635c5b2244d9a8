"""Block streaming as pipelines offer it."""

import difflib
import inspect
import os
from collections.abc import Sequence
from itertools import chain
from typing import Any, Self

import torch
from accelerate import cpu_offload_with_hook
from diffusers.hooks import apply_group_offloading
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.torch_utils import get_device

from ..checkpoints.fingerprint import model_fingerprint
from ..checkpoints.origin import origin_of
from ..checks import check_choice, check_loaded
from .streaming import (
    SOURCES,
    BlockStreamer,
    block_list,
    check_num_on_device,
    check_streamable,
    present_device,
    stop_streaming,
    stream_blocks,
    streamer_of,
)


class BlockStreamingMixin(DiffusionPipeline):
    """Streaming of the blocks of a pipeline's networks."""

    _waiting: Sequence[Any] = ()
    """Hooks of the components that wait in host memory until they run."""

    def enable_block_streaming(
        self,
        components: Sequence[str] | str | None = None,
        source: str = "ram",
        device: torch.device | str | None = None,
        num_on_device: int = 2,
        offload_others: bool = False,
    ) -> None:
        """Have the blocks of the large networks come to the device when they run, and compute the same.

        All else of the transformers goes to the device now, all else of a language model comes when it runs; one that is on
        demand is streamed when it is loaded. LoRA adapters stay on the device.

        Args:
            components: Names of components with blocks. Default all there are: the transformers and the language models.
            source: Where the weights of the blocks lie: in host memory, `"ram"` (default), or in the safetensors files
                that they were loaded from, `"disk"`, which gives their memory back. To never read them into memory, load
                with `from_pretrained(..., block_streaming="disk")`.
            device: Where to compute, default the accelerator, or the CPU without one. `to()` changes it later.
            num_on_device: Most blocks of a network on the device at a time, from 1 to their number. Default 2.
            offload_others: Whether the other networks wait in host memory until they run, as with
                `enable_model_cpu_offload`. Default `False`: they stay on the device.

        Raises:
            ValueError: If a component has no blocks, is offloaded, compiled or streamed already, or its weights are not
                those of its files; the pipeline is as it was then.
        """
        check_choice("source", source, SOURCES)
        self._refuse_moving("enable_block_streaming")
        place, listed = present_device(get_device() if device is None else device), components
        if components is not None:
            listed = [components] if isinstance(components, str) else list(components)
            if not listed:
                raise ValueError("`components` is empty; leave it out to stream all that have blocks")
        later = [name for name in self._on_demand if listed is None or name in listed]
        models = self._with_blocks(None if listed is None else [name for name in listed if name not in later])
        for model in models.values():
            check_streamable(model, num_on_device)
            if source == "disk":
                origin_of(model).check()
        for name in later:
            check_num_on_device(num_on_device, self._on_demand[name].num_layers)
        others = [name for name in self._networks if name not in models and streamer_of(getattr(self, name)) is None]
        self._check_plain(others)
        started: list[torch.nn.Module] = []
        try:
            for model in models.values():
                stream_blocks(model, source, place, num_on_device)
                started.append(model)
        except BaseException:
            for model in started:
                stop_streaming(model)
            raise
        self._place_others(others, place, offload_others)
        for name in later:
            self._on_demand[name].streamed, self._on_demand[name].num_on_device = source, num_on_device

    def disable_block_streaming(self) -> None:
        """Give all components their weights back, in host memory; `to()` moves them from there.

        Raises:
            ValueError: If files that weights are streamed from have changed or are gone.
        """
        for streamer in self._streamers:
            if streamer.origin is not None:
                streamer.origin.check()
        for hook in self._waiting:
            hook.offload()
            hook.remove()
        self._waiting = ()
        for streamer in self._streamers:
            streamer.stop()
        for model in self._on_demand.values():
            model.streamed = None

    @property
    def streamed_components(self) -> list[str]:
        """Names of the components whose blocks are streamed."""
        return [name for name in self._networks if streamer_of(getattr(self, name)) is not None]

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast the pipeline. Takes the arguments of diffusers' method.

        Blocks that are streamed stay where they are, and come to the new device from then on.

        Raises:
            ValueError: If blocks are streamed and the data type would be another, or other components wait in host memory.
        """
        values = [*args, *kwargs.values()]
        for name in self.streamed_components:
            dtype = getattr(self, name).dtype
            if any(isinstance(value, torch.dtype) and value != dtype for value in values):
                raise ValueError(
                    f"the blocks of `{name}` are streamed in {dtype}; call disable_block_streaming() before a cast, or load the "
                    "pipeline in the other type"
                )
        for name, model in self._on_demand.items():
            own = model.dtype or model.config.dtype
            if own is not None and any(isinstance(value, torch.dtype) and value != own for value in values):
                raise ValueError(
                    f"`{name}` is on demand and is loaded in {own} whenever it is needed; load the pipeline in the other type, or call "
                    "disable_text_encoder_release() before a cast"
                )
        if self._waiting and any(isinstance(value, (str, torch.device, int)) for value in values):
            raise ValueError(
                "components wait in host memory until they run (offload_others=True), so that the pipeline cannot be moved; call "
                "disable_block_streaming() first"
            )
        return super().to(*args, **kwargs)

    def enable_model_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers; refused while blocks are streamed."""
        self._refuse_offload("enable_model_cpu_offload")
        super().enable_model_cpu_offload(*args, **kwargs)

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers; refused while blocks are streamed."""
        self._refuse_offload("enable_sequential_cpu_offload")
        super().enable_sequential_cpu_offload(*args, **kwargs)

    def enable_group_offload(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers, whose arguments it takes; refused while blocks are streamed.

        With `offload_to_disk_path` every network has a folder of its own there, named by it and its weights: diffusers calls
        files of different networks alike, and takes one that is there already for its own.
        """
        self._refuse_offload("enable_group_offload")
        given = inspect.signature(DiffusionPipeline.enable_group_offload).bind(self, *args, **kwargs).arguments
        place, left_out = given.get("offload_to_disk_path"), given.get("exclude_modules") or ()
        if place is None:
            return super().enable_group_offload(*args, **kwargs)
        networks = {name: part for name, part in self.components.items() if isinstance(part, torch.nn.Module)}
        kept = {left_out} if isinstance(left_out, str) else set(left_out)
        for name, model in networks.items():
            if name in kept:
                model.to(given["onload_device"])
                continue
            given["offload_to_disk_path"] = os.path.join(place, f"{name}-{model_fingerprint(model)[:16]}")
            options = {key: value for key, value in given.items() if key not in ("self", "exclude_modules")}
            # Means and deviations of latents are read by pipelines, for whom diffusers does not bring them back.
            read_from_outside = {key: value.clone() for key, value in model._buffers.items() if value is not None}
            if isinstance(model, ModelMixin):
                model.enable_group_offload(**options)
            else:
                apply_group_offloading(module=model, **options)
            model._buffers.update(read_from_outside)

    def maybe_free_model_hooks(self) -> None:
        """At the end of a call, as in diffusers; components that wait in host memory go back there."""
        for hook in self._waiting:
            hook.offload()
        super().maybe_free_model_hooks()

    def release(self, *names: str) -> None:
        """Have components that wait in host memory until they run go back there now. Others stay where they are.

        Args:
            names: Names of components.
        """
        models = [getattr(self, name, None) for name in names]
        for hook in self._waiting:
            if any(hook.model is model for model in models):
                hook.offload()

    @property
    def _execution_device(self) -> torch.device:
        if streamers := self._streamers:
            return streamers[0].device
        models = [model for model in self.components.values() if isinstance(model, torch.nn.Module)]
        if any(map(_is_hooked, models)):
            return super()._execution_device
        # As diffusers finds it: the first accelerator, or else the first device.
        tensors = (next(chain(model.parameters(), model.buffers()), None) for model in models)
        devices = [tensor.device for tensor in tensors if tensor is not None] or [torch.device("cpu")]
        return next((device for device in devices if device.type not in ("cpu", "meta")), devices[0])

    @property
    def _on_demand(self) -> dict[str, Any]:
        """Components that are loaded only while they are needed, and are streamed then; by name."""
        return {}

    @property
    def _networks(self) -> list[str]:
        """Components with weights, in the order in which they run."""
        order = str(self.model_cpu_offload_seq).split("->")
        return [name for name in order if isinstance(getattr(self, name, None), torch.nn.Module)]

    @property
    def _streamers(self) -> list[BlockStreamer]:
        found = (streamer_of(getattr(self, name)) for name in self._networks)
        return [streamer for streamer in found if streamer is not None]

    def _with_blocks(self, components: Sequence[str] | None) -> dict[str, torch.nn.Module]:
        """The components to stream; those that are streamed already only if they are named."""
        possible = [name for name in self._networks if _has_blocks(getattr(self, name))]
        if components is None:
            chosen = [name for name in possible if streamer_of(getattr(self, name)) is None]
        else:
            chosen = list(components)
        for name in chosen:
            if name in self.components:
                check_loaded([name] if self.components[name] is None else [])
            if name not in possible:
                near = difflib.get_close_matches(name, possible, n=1, cutoff=0.0) or ["transformer"]
                raise ValueError(
                    f"`components` names {name!r}, which is no component with blocks; use {near[0]!r} (there are "
                    f"{', '.join(possible) or 'none'})"
                )
        return {name: getattr(self, name) for name in chosen}

    def _check_plain(self, names: Sequence[str]) -> None:
        for name in names:
            model = getattr(self, name)
            if self._is_pipeline_device_mapped() or any(hasattr(part, "_hf_hook") for part in model.modules()):
                raise ValueError(
                    f"`{name}` is offloaded or spread over devices, which block streaming would contradict; call "
                    "remove_all_hooks() or reset_device_map() first"
                )

    def _place_others(self, names: Sequence[str], device: torch.device, wait: bool) -> None:
        hooks: list[Any] = []
        for name in names:
            model = getattr(self, name)
            if not wait:
                model.to(device)
                continue
            model.to("cpu")
            hooks.append(cpu_offload_with_hook(model, device, prev_module_hook=hooks[-1] if hooks else None)[1])
        self._waiting = tuple(hooks)

    def _refuse_moving(self, method: str) -> None:
        """Raise `ValueError` where weights have to stay where they are; for subclasses."""

    def _refuse_offload(self, method: str) -> None:
        self._refuse_moving(method)
        if self.streamed_components:
            raise ValueError(
                f"{method}() contradicts block streaming, which is on for {', '.join(self.streamed_components)}; call "
                "disable_block_streaming() first, or leave one of them out"
            )
        if self._waiting:
            raise ValueError(
                f"{method}() contradicts components that wait in host memory until they run already, as a plan or "
                "offload_others=True has it; call disable_block_streaming() first, or leave one of them out"
            )


def _has_blocks(model: torch.nn.Module) -> bool:
    try:
        return bool(block_list(model))
    except ValueError:
        return False


def _is_hooked(model: torch.nn.Module) -> bool:
    """Whether diffusers or Accelerate act on any part of a model."""
    waiting = [model]
    while waiting:
        part = waiting.pop()
        # Beside `modules()` and `hasattr`, which take ten times as long: it is asked several times a call.
        if "_diffusers_hook" in part.__dict__ or "_hf_hook" in part.__dict__:
            return True
        waiting += [within for within in part._modules.values() if within is not None]
    return False
