"""The packaged miniature against stored numbers: does this machine compute what diffusers computes from its weights?

Each check loads one component of `ltx2-mini`, runs it on stored inputs and compares with what diffusers' own class
computed from them. `scripts/build_doctor_vectors.py` writes inputs and results.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .packaged import packaged_checkpoint
from .tolerances import TOLERANCES, Tolerance

VECTORS = Path(__file__).parents[1] / "resources" / "golden"
# The reduced types are judged by their own rounding, whatever the component.
REDUCED = {torch.bfloat16: TOLERANCES["bfloat16"], torch.float16: TOLERANCES["float16"]}


@dataclass(frozen=True)
class Check:
    """One component, one case: how to run it, which tensor of the case holds the expected result, and its tolerance."""

    name: str
    class_name: str
    component: str
    case: str
    run: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]
    expected: str
    row: str = "miniature"


@dataclass(frozen=True)
class CheckResult:
    """Outcome of a check, or why it could not run.

    `error` and `tolerance` are those of the worst element, relative to the largest expected value.
    """

    name: str
    case: str
    error: float = float("nan")
    tolerance: float = float("nan")
    failure: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the check ran and its error is within the tolerance."""
        return self.failure is None and self.error <= self.tolerance


def transformer(stream: int, model: Any, case: dict[str, torch.Tensor]) -> torch.Tensor:
    """The velocities of a stream, 0 video and 1 sound."""
    inputs = {name: value for name, value in case.items() if not name.startswith("expected")}
    return model(**inputs, return_dict=False)[stream]


def connectors(stream: int, model: Any, case: dict[str, torch.Tensor]) -> torch.Tensor:
    """The embeddings of a stream, 0 video and 1 sound."""
    return model(case["text_encoder_hidden_states"], case["attention_mask"])[stream]


def decode(key: str, model: Any, case: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a VAE decodes."""
    return model.decode(case[key], return_dict=False)[0]


def encode(key: str, model: Any, case: dict[str, torch.Tensor]) -> torch.Tensor:
    """Means and logarithmic variances of what a VAE encodes."""
    return model.encode(case[key], return_dict=False)[0].parameters


def call(key: str, model: Any, case: dict[str, torch.Tensor]) -> torch.Tensor:
    """The result of a model of one input."""
    result = model(case[key])
    return result if isinstance(result, torch.Tensor) else result[0]


def _schedule(scheduler: Any, case: dict[str, torch.Tensor]) -> torch.Tensor:
    scheduler.set_timesteps(len(case["sigmas"]) - 1)
    return scheduler.sigmas


_TRANSFORMER, _VIDEO, _AUDIO = "LTX2AVTransformer3DModel", "AutoencoderKLLTX2Video", "AutoencoderKLLTX2Audio"
CHECKS = (
    Check("transformer, video", _TRANSFORMER, "transformer", "velocity", partial(transformer, 0), "expected_video"),
    Check("transformer, audio", _TRANSFORMER, "transformer", "velocity", partial(transformer, 1), "expected_audio"),
    Check("connectors, video", "LTX2TextConnectors", "connectors", "prompt", partial(connectors, 0), "expected_video"),
    Check("connectors, audio", "LTX2TextConnectors", "connectors", "prompt", partial(connectors, 1), "expected_audio"),
    Check("video VAE, decode", _VIDEO, "vae", "clip", partial(decode, "latents"), "video"),
    Check("video VAE, encode", _VIDEO, "vae", "clip", partial(encode, "video"), "moments"),
    Check("audio VAE, decode", _AUDIO, "audio_vae", "sound", partial(decode, "latents"), "mel"),
    Check("audio VAE, encode", _AUDIO, "audio_vae", "sound", partial(encode, "mel"), "moments"),
    Check("vocoder", "LTX2Vocoder", "vocoder", "sound", partial(call, "mel"), "waveform"),
    Check("latent upsampler", "LTX2LatentUpsamplerModel", "latent_upsampler", "upsampling", partial(call, "latents"), "upsampled"),
    Check("scheduler", "LTX2Scheduler", "scheduler", "schedule", _schedule, "sigmas", "sampling"),
)  # fmt: skip


@torch.no_grad()
def run_checks(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    checkpoint: Path | None = None,
    vectors: Path | None = None,
) -> Iterator[CheckResult]:
    """Run every check and yield its outcome.

    Args:
        device: Where the components run.
        dtype: Data type of weights and inputs: float32, bfloat16 or float16.
        checkpoint: Folder of the components, in diffusers' layout. Default: the packaged miniature.
        vectors: Folder of the stored inputs and results that belong to it. Default: those of the package.
    """
    dtypes = (torch.float32, *REDUCED)
    if dtype not in dtypes:
        raise ValueError(f"`dtype` has to be one of {', '.join(map(str, dtypes))} but is {dtype}")
    folders = checkpoint or packaged_checkpoint("ltx2-mini"), vectors or VECTORS
    for check in CHECKS:
        # Noise levels are float32, whatever the models are.
        row = TOLERANCES[check.row]
        tolerance = row if check.component == "scheduler" else REDUCED.get(dtype, row)
        try:
            yield _judged(check, tolerance, *_run(check, *folders, torch.device(device), dtype))
        except (RuntimeError, ValueError, OSError, TypeError, NotImplementedError) as failure:
            reason = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
            yield CheckResult(check.name, check.case, failure=reason)


def _judged(check: Check, tolerance: Tolerance, actual: torch.Tensor, expected: torch.Tensor) -> CheckResult:
    """The worst element's difference and what is allowed there, in units of the largest expected value."""
    error, allowed = tolerance.worst(actual, expected)
    peak = expected.abs().max().item()
    return CheckResult(check.name, check.case, error / peak, allowed / peak)


def _run(
    check: Check, checkpoint: Path, vectors: Path, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the component computes here, and what is expected."""
    model = _load_model(check, checkpoint, device, dtype)
    case = load_file(vectors / f"{check.case}.safetensors")
    # Times and positions stay in float32, as pipelines pass them.
    exact = ("timestep", "audio_timestep", "video_coords", "audio_coords")
    inputs = {
        name: value.to(device, dtype if value.is_floating_point() and name not in exact else None)
        for name, value in case.items()
    }
    return check.run(model, inputs), case[check.expected]


def _load_model(check: Check, checkpoint: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The component that a check runs."""
    import ltx2_diffusers

    component_class = getattr(ltx2_diffusers, check.class_name)
    if check.component == "scheduler":
        return component_class.from_pretrained(checkpoint, subfolder=check.component)
    return component_class.from_pretrained(checkpoint, subfolder=check.component, dtype=dtype).to(device).eval()
