"""Compiled parts of networks.

A region is one function that `torch.compile` traces whole, for all modules of a kind in a model: their weights are arguments
of its graphs, so that 48 blocks share one graph. It stands in the place of the method of each module, below everything that
hooks, offloading, caches and block streaming put around a module's call, none of which is traced.

A graph holds for one plan of branches, one set of tensors that are given or not, and one data type. Sizes that change from
clip to clip are marked as such, and change no graph.
"""

import inspect
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from .diffusion_decoder import LTX2VideoDiffusionDecoderModel
from .diffusion_decoder_blocks import SwiGLU
from .modulation import Modulation
from .transformer import LTX2AVTransformer3DModel
from .transformer_block import LTX2AVTransformerBlock, StreamInputs
from .video_vae import AutoencoderKLLTX2Video
from .video_vae_blocks import CausalConv3d
from .vocoder import LTX2Vocoder, LTX2VocoderWithBWE

# Graphs of one region. A guided pipeline with adapters makes about 20.
MOST_GRAPHS = 64
_ATTRIBUTE = "_compiled_region"

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """What of a model is compiled.

    Args:
        model: Classes of the model.
        module: Classes of the modules in it, or of itself.
        method: Their method.
        mark: Marks the axes of its arguments whose sizes change between clips; may replace arguments.
        level: What the traced function has within: all `"layers"` of a model, those of one `"block"`, or `"no layers"`.
    """

    model: tuple[type[nn.Module], ...]
    module: tuple[type[nn.Module], ...]
    method: str
    mark: Callable[[Arguments], None]
    level: str


def _mark(tensor: torch.Tensor | None, *axes: int) -> None:
    """Let the tracer take the sizes of these axes for numbers that change. A size of 0 or 1 stays what it is."""
    if tensor is None or hasattr(tensor, "_dynamo_weak_dynamic_indices"):
        return
    for axis in axes:
        if tensor.shape[axis] > 1:
            torch._dynamo.maybe_mark_dynamic(tensor, axis % tensor.ndim)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy if it is a view: the tracer guards what that is a view of, which would cost another graph."""
    return tensor.clone() if tensor.numel() and tensor._is_view() else tensor


def _mark_block(arguments: Arguments) -> None:
    for name in ("hidden_states", "audio_hidden_states"):
        tokens = arguments[name] = _own(arguments[name])
        _mark(tokens, 1)
        _mark(arguments[f"{name.removesuffix('hidden_states')}encoder_hidden_states"], 1)
    for name in ("video_inputs", "audio_inputs"):
        _mark_inputs(arguments[name])
    for slots in (arguments.get("text_slots", ()), arguments.get("negative_slots", ())):
        for slot in slots:
            if slot is not None:
                _mark(slot.key, 1)
                _mark(slot.value, 1)


def _mark_inputs(inputs: StreamInputs) -> None:
    for modulation in (inputs.modulation, inputs.cross_scale_shift, inputs.cross_gate):
        if isinstance(modulation, Modulation):
            _mark(modulation.layout.row_index, 1)
            # With runs of tokens the rows are as many as runs, which the code iterates over.
            if modulation.layout.lengths is None:
                _mark(modulation.rows, 1)
    for table in (*(inputs.rotary or ()), *(inputs.cross_rotary or ())):
        _mark(table, 2 if table.ndim == 4 else 1)
    _mark(inputs.text_mask, -1, -2)
    _mark(inputs.self_mask, -1, -2)
    if inputs.negative is not None:
        _mark(inputs.negative.context, 1)


def _mark_clip(arguments: Arguments) -> None:
    _mark(arguments["x"], 2, 3, 4)


def _mark_rows(arguments: Arguments) -> None:
    _mark(arguments["x"], 0)


def _mark_spectrogram(arguments: Arguments) -> None:
    name = "hidden_states" if "hidden_states" in arguments else "mel_spec"
    spectrogram = arguments[name] = _own(arguments[name])
    _mark(spectrogram, 3 if arguments.get("time_last") else 2)


_VOCODERS = (LTX2Vocoder, LTX2VocoderWithBWE)
KINDS = (
    Kind((LTX2AVTransformer3DModel,), (LTX2AVTransformerBlock,), "forward", _mark_block, "block"),
    Kind((AutoencoderKLLTX2Video,), (CausalConv3d,), "activated", _mark_clip, "no layers"),
    Kind((LTX2VideoDiffusionDecoderModel,), (SwiGLU,), "forward", _mark_rows, "block"),
    Kind(_VOCODERS, _VOCODERS, "forward", _mark_spectrogram, "layers"),
)


class _Traced(threading.local):
    """Whether the call that runs in this thread has been traced."""

    happened = False


_TRACED = _Traced()


@torch.compiler.assume_constant_result
def _note_trace() -> None:
    """Run by the tracer, and never by compiled code."""
    _TRACED.happened = True


class CompiledRegion:
    """A compiled method, for all modules of a kind in one model.

    Args:
        kind: What is compiled.
        method: The plain method.
        dynamic: Whether sizes that change from clip to clip are numbers in graphs; `False` makes graphs for each size, and
            `None` leaves it to torch.
        settings: Further arguments of `torch.compile`.

    Attributes:
        graphs: How many graphs have been made.
        seconds: Time that calls took which made them.
        frozen: Weights that took gradients before.
    """

    def __init__(
        self, kind: Kind, method: Callable[..., Any], dynamic: bool | None, settings: Mapping[str, Any]
    ) -> None:
        self.kind, self.dynamic, self.settings = kind, dynamic, dict(settings)
        self.method = method
        self.enabled = True
        self.graphs, self.seconds = 0, 0.0
        self.frozen: list[nn.Parameter] = []
        self._told = (0, 0.0)
        self._names = tuple(inspect.signature(method).parameters)[1:]

        def traced(module: nn.Module, arguments: Arguments) -> Any:
            _note_trace()
            return method(module, **arguments)

        static = False if dynamic is False else None
        self._compiled = torch.compile(traced, fullgraph=True, dynamic=static, **_limits(), **self.settings)

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What the method of `module` returns."""
        if not self.enabled:
            return self.method(module, *args, **kwargs)
        arguments = {**dict(zip(self._names, args)), **kwargs}
        if self.dynamic:
            self.kind.mark(arguments)
        _TRACED.happened, started = False, time.perf_counter()
        try:
            return self._compiled(module, arguments)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            _refuse(type(module).__name__, error)
        finally:
            if _TRACED.happened:
                self.graphs += 1
                self.seconds += time.perf_counter() - started

    def newly_made(self) -> tuple[int, float]:
        """Graphs and seconds since this was last asked."""
        graphs, seconds = self.graphs - self._told[0], self.seconds - self._told[1]
        self._told = self.graphs, self.seconds
        return graphs, seconds

    def __reduce__(self) -> tuple:
        """What is copied and pickled is compiled anew when it first runs."""
        return CompiledRegion, (self.kind, self.method, self.dynamic, self.settings)


def _limits() -> dict[str, Any]:
    """Arguments that give a region room for its graphs."""
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        return {"recompile_limit": MOST_GRAPHS, "isolate_recompiles": True}
    # Before torch 2.13 all functions have the same limit.
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MOST_GRAPHS)
    return {}


def _refuse(name: str, error: Exception) -> NoReturn:
    why = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    raise RuntimeError(
        f"{name} cannot be compiled as it is now: {why}; call uncompile(), or take away what was put into it (layers of "
        "another library, hooks) and compile before it is put back"
    ) from error


class CompiledMethod:
    """The method of one module, run by a region; it stands in the place of the plain one.

    Args:
        module: The module, which holds this object.
        region: The region.
    """

    def __init__(self, module: nn.Module, region: CompiledRegion) -> None:
        self._module, self.region = weakref.ref(module), region

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the plain method returns."""
        module: Any = self._module()
        return self.region(module, *args, **kwargs)

    def __reduce__(self) -> tuple:
        """Of a module that is copied or pickled, the copy's."""
        return CompiledMethod, (self._module(), self.region)


def kind_of(model: Any) -> Kind | None:
    """What of a model can be compiled, if anything."""
    return next((kind for kind in KINDS if isinstance(model, kind.model)), None)


def region_of(model: Any) -> CompiledRegion | None:
    """The region of a compiled model."""
    return getattr(model, _ATTRIBUTE, None)


def compile_model(model: nn.Module, dynamic: bool | None = True, **settings: Any) -> None:
    """Compile the parts of a model that are worth it; its results differ by rounding, and its weights take no gradients.

    Args:
        model: A transformer, a video autoencoder, a diffusion decoder or a vocoder.
        dynamic: See [`CompiledRegion`].
        settings: Further arguments of `torch.compile`.

    Raises:
        ValueError: If the model cannot be compiled, is compiled, or has hooks within what would be traced.
    """
    check_compilable(model)
    kind = kind_of(model)
    assert kind is not None
    modules = list(_modules(model, kind))
    region = CompiledRegion(kind, getattr(type(modules[0]), kind.method), dynamic, settings)
    # Graphs hold for weights that take gradients or for such that take none, which is what adapters and streaming make them.
    region.frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    for module in modules:
        place = "_old_forward" if kind.method == "forward" and hasattr(module, "_hf_hook") else kind.method
        setattr(module, place, CompiledMethod(module, region))
    setattr(model, _ATTRIBUTE, region)


def uncompile_model(model: nn.Module) -> None:
    """Let a model compute as before; its graphs are given up."""
    region = region_of(model)
    if region is None:
        return
    # Hooks that were put around it since keep it, and run the plain method.
    region.enabled = False
    for module in _modules(model, region.kind):
        method = region.kind.method
        if isinstance(module.__dict__.get(method), CompiledMethod):
            del module.__dict__[method]
        elif isinstance(module.__dict__.get("_old_forward"), CompiledMethod):
            module.__dict__["_old_forward"] = getattr(type(module), method).__get__(module)
    del model.__dict__[_ATTRIBUTE]
    if not getattr(model, "peft_config", None):
        for parameter in region.frozen:
            parameter.requires_grad_(True)


def check_compilable(model: nn.Module) -> None:
    """Raise `ValueError` unless [`compile_model`] can compile a model."""
    name, kind = type(model).__name__, kind_of(model)
    if kind is None:
        raise ValueError(
            f"{name} has no part that is compiled; compile a transformer, a video autoencoder or a vocoder"
        )
    if region_of(model) is not None or any(part._compiled_call_impl is not None for part in model.modules()):
        raise ValueError(f"this {name} is compiled already; call uncompile() first, or leave it out")
    check_unhooked(model, kind)


def check_unhooked(model: nn.Module, kind: Kind) -> None:
    """Raise `ValueError` if hooks of other libraries are within what is traced, or around it where nothing is put below."""
    for module in _modules(model, kind):
        for part in module.modules() if kind.level != "no layers" else ():
            registry: Any = getattr(part, "_diffusers_hook", None)
            if (registry is not None and registry.hooks) or (hasattr(part, "_hf_hook") and part is not model):
                raise ValueError(
                    f"this {type(model).__name__} has hooks of offloading, of a cache or of layerwise casting on its "
                    f"{type(part).__name__}; call compile() before enable_group_offload() by blocks, and leave out caches of "
                    "attentions, enable_sequential_cpu_offload() and enable_layerwise_casting()"
                )


def _modules(model: nn.Module, kind: Kind) -> Iterator[nn.Module]:
    if isinstance(model, kind.module):
        return iter([model])
    return (module for module in model.modules() if isinstance(module, kind.module))
