"""Compiling the networks of a pipeline, and what it cost; recording and spreading their blocks on a card."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import logging

from ..checks import check_choice
from ..memory.mixin import BlockStreamingMixin
from ..models.audio_stream import run_beside, runs_beside
from ..models.block_graphs import MOST_GRAPHS, graphs_of, record_blocks, stop_recording
from ..models.compiled import CompiledRegion, check_compilable, compile_model, kind_of, region_of, uncompile_model

logger = logging.get_logger(__name__)

TRANSFORMERS = ("transformer", "stage_2_transformer")
COMPONENTS = (*TRANSFORMERS, "vae", "diffusion_decoder", "vocoder")
_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
# Graphs of the first step fill what the text is kept in, those of the second one read it.
_WARM_UP_STEPS = 2


@dataclass(frozen=True)
class CompiledPart:
    """What compiling a component has cost so far.

    Args:
        graphs: How many graphs were made.
        seconds: How long the calls took that made them, in seconds.
    """

    graphs: int
    seconds: float


class CompilationMixin(BlockStreamingMixin):
    """`compile()` of pipelines, CUDA graphs of their blocks, and the sound's part of a block beside the video's."""

    def compile(
        self,
        components: Sequence[str] | str | None = None,
        *,
        mode: str | None = None,
        dynamic: bool | None = True,
        backend: str | Callable[..., Any] = "inductor",
        options: Mapping[str, Any] | None = None,
        warm_up: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
        cache_dir: str | os.PathLike | None = None,
    ) -> None:
        """Have the networks computed by compiled code, in every pass of every call; results differ by rounding.

        Compiled are the blocks of the transformers, one graph for all of them, the elementwise steps of the video autoencoder,
        the MLPs of the diffusion decoder, and the vocoder. The first call that needs a graph waits for it, and a message says
        how many there were and how long they took. A graph is made for each plan of branches that a pass runs, for calls with
        one clip and with several, and anew when layers change, as they do with an adapter; not for another size of clips or
        length of prompts.

        It is the same for all pipelines that share the components. Offloading by components, block streaming and caches go
        with it; adapters may be loaded, switched and fused at any time. Weights of compiled components take no gradients.

        Args:
            components: Names out of `transformer`, `stage_2_transformer`, `vae`, `diffusion_decoder` and `vocoder`. Default all
                that are loaded.
            mode: Of `torch.compile`: `"default"`, `"max-autotune-no-cudagraphs"`, and others that record no CUDA graphs.
            dynamic: Whether graphs take all sizes. Default `True`. `False` makes graphs for each size, which may be a little
                faster and is recommended for one size only; `None` leaves it to torch: for the first size, then for all.
            backend, options: Of `torch.compile`. Default `"inductor"`, which needs a C++ compiler on a CPU and Triton on CUDA.
            warm_up: Arguments of calls that are made now, so that no later one waits, such as
                `{"height": 512, "width": 768, "num_frames": 121}`; or several of them. Default none. What is left out is the
                empty prompt and two steps.
            cache_dir: Folder in which torch keeps compiled code for later processes, for all that this process compiles from
                now on. Default that of the variable `TORCHINDUCTOR_CACHE_DIR`, or a temporary one.

        Raises:
            ValueError: Before anything is compiled, if an argument is not valid, there is no compiler, a component cannot be
                compiled or is compiled already; the pipeline is as it was then.
        """
        models = self._compilable(components)
        settings = _checked_settings(mode, backend, options)
        check_choice("dynamic", dynamic, (True, False, None))
        calls = self._warm_up_calls(warm_up)
        if backend == "inductor":
            _check_compiler(self._execution_device)
        if cache_dir is not None:
            folder = os.path.abspath(cache_dir)
            os.makedirs(folder, exist_ok=True)
            os.environ[_CACHE_VARIABLE] = folder
        for model in models.values():
            compile_model(model, dynamic, **settings)
        try:
            for call in calls:
                self(**call)  # type: ignore[operator]  # the pipeline's
        except BaseException:
            for model in models.values():
                uncompile_model(model)
            raise

    def uncompile(self) -> None:
        """Have the networks computed as they are written again, and give up what was compiled."""
        for name in self.compiled:
            uncompile_model(getattr(self, name))

    @property
    def compiled(self) -> dict[str, CompiledPart]:
        """The components that [`compile`] has compiled, and what it has cost so far."""
        return {name: CompiledPart(region.graphs, region.seconds) for name, region in self._regions.items()}

    def enable_cuda_graphs(self, most_graphs: int = MOST_GRAPHS) -> None:
        """Record the blocks of the transformers as CUDA graphs and replay them: all their kernels are launched at once.

        It is faster where launching kernels takes longer than running them, as with few tokens; results are the same. A graph
        is recorded in the second step that needs it, for the passes of the step, sizes of clips and lengths of prompts that it
        has; adapters that change have it recorded anew. A graph takes memory for what its blocks compute in between, which
        all graphs share, and for their inputs, of which keys and values of the text are 1.2 GB at full size. `compile()` goes
        with it, before or after.

        Args:
            most_graphs: Most graphs of a transformer that are kept, at least 1. Default 8; the one that was not used for
                longest makes room.

        Raises:
            ValueError: If a transformer is not on a CUDA device as a whole, or has hooks; nothing is recorded then.
        """
        models = self._transformers
        try:
            for model in models:
                record_blocks(model, most_graphs)
        except ValueError:
            self.disable_cuda_graphs()
            raise

    def disable_cuda_graphs(self) -> None:
        """Launch kernels one by one again, and give the graphs up."""
        for model in self._transformers:
            stop_recording(model)

    def enable_audio_stream(self) -> None:
        """Have the sound's part of every block run on a CUDA stream of its own, beside the video's; results are the same.

        The sound has few tokens, whose kernels leave most of a card idle. Calls with gradients, and on other devices, run as
        before. Offloading and `compile()` of the transformers exclude it.

        Raises:
            ValueError: If a transformer is not on a CUDA device, is compiled or has hooks.
        """
        for model in self._transformers:
            if model.device.type != "cuda":
                raise ValueError(f"the transformer is on {model.device}, which has one stream; move it by to('cuda')")
            check_compilable(model)
        for model in self._transformers:
            run_beside(model, True)

    def disable_audio_stream(self) -> None:
        """Run the sound's part of every block after the video's again."""
        for model in self._transformers:
            run_beside(model, False)

    def _refuse_moving(self, method: str) -> None:
        is_recorded = any(graphs_of(model) is not None for model in self._transformers)
        is_beside = any(map(runs_beside, self._transformers))
        for name, is_on in (("cuda_graphs", is_recorded), ("audio_stream", is_beside)):
            if is_on:
                raise ValueError(
                    f"{method}() moves weights while calls run, but enable_{name}() needs them to stay where they are; call "
                    f"disable_{name}() first"
                )

    @property
    def _transformers(self) -> list[Any]:
        """The transformers that are loaded."""
        return [model for model in (getattr(self, name, None) for name in TRANSFORMERS) if model is not None]

    def maybe_free_model_hooks(self) -> None:
        """At the end of a call, as in diffusers; a message says what was compiled in it."""
        super().maybe_free_model_hooks()
        parts = []
        for name, region in self._regions.items():
            graphs, seconds = region.newly_made()
            if graphs:
                parts.append(f"{name}: {graphs} graph{'s' if graphs > 1 else ''} in {seconds:.1f} s")
        if parts:
            logger.warning(f"compiled {', '.join(parts)}; later calls of this kind use them")

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers; refused while components are compiled or streamed."""
        if self.compiled:
            raise ValueError(
                f"enable_sequential_cpu_offload() puts hooks on layers, which {', '.join(self.compiled)} were compiled without; call "
                "enable_block_streaming() instead, or uncompile() first"
            )
        super().enable_sequential_cpu_offload(*args, **kwargs)

    def enable_group_offload(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers, whose arguments it takes; refused while blocks are streamed, or compiled layers would get hooks."""
        given = inspect.signature(super().enable_group_offload).bind(*args, **kwargs).arguments
        given = {**given, **given.pop("kwargs", {})}
        left_out = given.get("exclude_modules") or ()
        kept = {left_out} if isinstance(left_out, str) else set(left_out)
        by_layer = "leaf_level" in (*args, kwargs.get("offload_type"))
        for name, region in self._regions.items():
            level = region.kind.level
            if name not in kept and (level == "layers" or (level == "block" and by_layer)):
                advice = (
                    f'exclude_modules="{name}"'
                    if level == "layers"
                    else 'offload_type="block_level", num_blocks_per_group=1'
                )
                raise ValueError(
                    f"this group offloading puts hooks within what is compiled of `{name}`; pass {advice}, or call uncompile() first"
                )
        super().enable_group_offload(*args, **kwargs)

    @property
    def _regions(self) -> dict[str, CompiledRegion]:
        found = {name: region_of(getattr(self, name, None)) for name in COMPONENTS}
        return {name: region for name, region in found.items() if region is not None}

    def _compilable(self, components: Sequence[str] | str | None) -> dict[str, torch.nn.Module]:
        """The models to compile, after a check of all."""
        present = [name for name in COMPONENTS if kind_of(getattr(self, name, None)) is not None]
        if not present and any(getattr(self, name, None) is not None for name in COMPONENTS):
            raise ValueError(
                "compile() is for networks of LTX-2, and this pipeline has none; diffusers' own have a method for it, "
                "pipe.transformer.compile_repeated_blocks()"
            )
        asked = [components] if isinstance(components, str) else components
        if asked is not None:
            for name in asked:
                check_choice("components", name, present)
        chosen = present if asked is None else list(dict.fromkeys(asked))
        if not chosen:
            raise ValueError(
                f"there is nothing to compile; load one of {', '.join(COMPONENTS)}, and name it in `components` or leave that out"
            )
        models = {name: getattr(self, name) for name in chosen}
        for model in models.values():
            check_compilable(model)
            if runs_beside(model):
                raise ValueError("compiled blocks run on one stream; call disable_audio_stream() before compile()")
        return models

    def _warm_up_calls(self, warm_up: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None) -> list[dict[str, Any]]:
        given = [warm_up] if isinstance(warm_up, Mapping) else list(warm_up or ())
        takes = inspect.signature(type(self).__call__).parameters
        calls = []
        for call in given:
            if not isinstance(call, Mapping):
                raise ValueError(
                    f"`warm_up` has to hold arguments of calls but has {call!r}; pass {{'height': 512, 'width': 768}} or the like"
                )
            for name in call:
                check_choice("warm_up", name, list(takes)[1:])
            defaults = {"prompt": "", "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
            if not {"sigmas", "timesteps", "stages"} & call.keys():
                defaults["num_inference_steps"] = _WARM_UP_STEPS
            calls.append({**{name: value for name, value in defaults.items() if name in takes}, **call})
        return calls


def _checked_settings(
    mode: str | None, backend: str | Callable[..., Any], options: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Arguments of `torch.compile`, after a check of them."""
    if isinstance(backend, str):
        check_choice("backend", backend, [name for name in torch._dynamo.list_backends(()) if name != "cudagraphs"])
    if mode is not None and options:
        raise ValueError(
            f"`mode` is {mode!r} and `options` are given, of which torch takes one; leave one of them out"
        )
    chosen = dict(options or {})
    if mode is not None:
        check_choice("mode", mode, list(torch._inductor.list_mode_options()))
        chosen = torch._inductor.list_mode_options()[mode]
    if chosen.get("triton.cudagraphs"):
        what = f"`mode` {mode!r}" if mode is not None else "`options` with 'triton.cudagraphs'"
        raise ValueError(
            f"{what} records CUDA graphs, whose results live until the next block, but keys and values of the text are kept from "
            "step to step; use mode='max-autotune-no-cudagraphs' or leave it out, and call enable_cuda_graphs(), which keeps them"
        )
    settings: dict[str, Any] = {"backend": backend}
    if mode is not None:
        settings["mode"] = mode
    if options:
        settings["options"] = dict(options)
    return settings


def _check_compiler(device: torch.device) -> None:
    """Raise `ValueError` if torch cannot make code for a device here."""
    advice = "or pass backend='aot_eager', which needs none and gains little"
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ValueError(f"compiling for {device} needs Triton, which is missing or too old; install it, {advice}")
    elif device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except Exception as error:
            raise ValueError(f"compiling for the CPU needs a C++ compiler ({error}); install g++, {advice}") from error
