"""Both libraries' transformers on one set of random weights: as they come, and at their best.

`diffusers, tuned` is what somebody can make of it who knows: no mask where it masks nothing, which lets attention take its
fast kernels, the fastest of those, and blocks compiled for each size.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel

from ltx2_diffusers import LTX2AVTransformer3DModel
from ltx2_diffusers.models.audio_stream import run_beside
from ltx2_diffusers.models.block_graphs import record_blocks
from ltx2_diffusers.models.compiled import compile_model

EAGER, TUNED, OURS, COMPILED, GRAPHS = "diffusers", "diffusers, tuned", "ours", "ours, compiled", "ours, CUDA graphs"
# Attention of PyTorch, whose own choice is the first.
BACKENDS = ("native", "_native_cudnn", "_native_flash")


def contenders(config: dict[str, Any], device: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Transformers by name, which share their weights; in bfloat16 on a card, in float32 on a processor."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    weights, models = None, {}
    for name in names:
        kind = LTX2VideoTransformer3DModel if name in (EAGER, TUNED) else LTX2AVTransformer3DModel
        with torch.device("meta"):
            model = kind(**config).eval().requires_grad_(False)
        if weights is None:
            generator = torch.Generator(device).manual_seed(0)
            weights = {
                key: torch.empty(value.shape, dtype=dtype, device=device).normal_(0, 0.02, generator=generator)
                for key, value in model.state_dict().items()
            }
        model.load_state_dict(weights, assign=True)
        models[name] = model
    for name, prepare in ((TUNED, without_masks), (COMPILED, compile_model), (GRAPHS, _recorded)):
        if name in models:
            prepare(models[name])
    return models


def without_masks(model: Any) -> None:
    """Have a transformer called without the masks of its texts, which mask nothing after the connectors."""
    forward = model.forward
    nothing = dict.fromkeys(("encoder_attention_mask", "audio_encoder_attention_mask"))
    model.forward = lambda *args, **kwargs: forward(*args, **{**kwargs, **nothing})


def _recorded(model: Any) -> None:
    run_beside(model, True)
    record_blocks(model)


@torch.no_grad()
def tune(model: Any, run: Callable[[], Any]) -> str:
    """Set the fastest attention for what `run` does with a model, and compile its blocks; returns the attention's name."""
    seconds = {}
    for backend in BACKENDS:
        try:
            model.set_attention_backend(backend)
            run()
            _wait()
            start = time.perf_counter()
            run()
            _wait()
        except (RuntimeError, ValueError, NotImplementedError):
            # Not for this device, type or width of heads.
            continue
        seconds[backend] = time.perf_counter() - start
    best = min(seconds, key=lambda name: seconds[name])
    model.set_attention_backend(best)
    # A perturbed block of diffusers cannot be traced whole.
    model.compile_repeated_blocks(fullgraph=False, dynamic=False)
    return best


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
