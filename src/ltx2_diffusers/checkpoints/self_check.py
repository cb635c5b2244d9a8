"""The packaged golden vectors: does this machine compute what the two reference implementations compute?

Each check loads tiny weights, runs one component and compares with numbers that the Lightricks reference and diffusers
agree on.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..schedulers.scheduling_ltx2 import LTX2Scheduler
from .tolerances import TOLERANCES, Tolerance

GOLDEN = Path(__file__).parents[1] / "resources" / "golden"
# The reduced types are judged by their own rounding, whatever the component.
REDUCED = {torch.bfloat16: TOLERANCES["bfloat16"], torch.float16: TOLERANCES["float16"]}


@dataclass(frozen=True)
class Check:
    """One component, one case: how to run it, which tensor of the case holds the expected result, and its tolerance."""

    name: str
    row: str
    class_name: str
    folder: str
    case: str
    run: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]
    expected: str


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


def _transformer(stream: int, model: Any, case: dict[str, torch.Tensor]) -> torch.Tensor:
    inputs = {name: value for name, value in case.items() if not name.startswith("expected")}
    return model(**inputs, return_dict=False)[stream]


def _connectors(stream: int, model: Any, case: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(case["text_encoder_hidden_states"], case["attention_mask"])[stream]


def _decode(key: str, model: Any, case: dict[str, torch.Tensor]) -> torch.Tensor:
    return model.decode(case[key], return_dict=False)[0]


def _encode(key: str, model: Any, case: dict[str, torch.Tensor]) -> torch.Tensor:
    return model.encode(case[key], return_dict=False)[0].parameters


def _call(key: str, model: Any, case: dict[str, torch.Tensor]) -> torch.Tensor:
    result = model(case[key])
    return result if isinstance(result, torch.Tensor) else result[0]


_TRANSFORMER, _VAE = "LTX2AVTransformer3DModel", "AutoencoderKLLTX2Video"
_OWN, _BWE = "transformer with its own angles", "vocoder with bandwidth extension"
CHECKS = (
    Check("transformer 2.0, video", _OWN, _TRANSFORMER, "transformer/ltx20_split", "t2v", partial(_transformer, 0), "expected_video"),
    Check("transformer 2.0, audio", _OWN, _TRANSFORMER, "transformer/ltx20_split", "t2v", partial(_transformer, 1), "expected_audio"),
    Check("transformer 2.3, video", _OWN, _TRANSFORMER, "transformer/ltx23", "t2v", partial(_transformer, 0), "expected_video"),
    Check("transformer 2.3, audio", _OWN, _TRANSFORMER, "transformer/ltx23", "t2v", partial(_transformer, 1), "expected_audio"),
    Check("connectors 2.0", "connectors", "LTX2TextConnectors", "connectors/ltx20_split", "batch_left_padded", partial(_connectors, 0), "expected_video_embeds"),
    Check("connectors 2.3", "connectors", "LTX2TextConnectors", "connectors/ltx23", "batch_left_padded", partial(_connectors, 1), "expected_audio_embeds"),
    Check("video VAE, decode", "video VAE", _VAE, "video_vae", "decode_f2_2x3", partial(_decode, "latent"), "video"),
    Check("video VAE, encode", "video VAE", _VAE, "video_vae", "encode_f25_32x32", partial(_encode, "video"), "moments"),
    Check("audio VAE, decode", "audio VAE", "AutoencoderKLLTX2Audio", "audio_vae", "decode_t5", partial(_decode, "latent"), "mel"),
    Check("audio VAE, encode", "audio VAE", "AutoencoderKLLTX2Audio", "audio_vae", "encode_t17", partial(_encode, "mel"), "moments"),
    Check("vocoder 2.0", "vocoder", "LTX2Vocoder", "vocoder", "waveform_t9", partial(_call, "mel"), "waveform"),
    Check("vocoder 2.3", _BWE, "LTX2VocoderWithBWE", "vocoder/bwe", "waveform_aligned", partial(_call, "mel"), "waveform_reference"),
    Check("latent upsampler x2", "latent upsampler", "LTX2LatentUpsamplerModel", "latent_upsampler/x2_rational", "a", partial(_call, "latent"), "upsampled"),
)  # fmt: skip


@torch.no_grad()
def run_checks(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Iterator[CheckResult]:
    """Run every check and yield its outcome.

    Args:
        device: Where the components run.
        dtype: Data type of weights and inputs: float32, bfloat16 or float16.
    """
    dtypes = (torch.float32, *REDUCED)
    if dtype not in dtypes:
        raise ValueError(f"`dtype` has to be one of {', '.join(map(str, dtypes))} but is {dtype}")
    for check in CHECKS:
        try:
            tolerance = REDUCED.get(dtype, TOLERANCES[check.row])
            yield _judged(check.name, check.case, tolerance, *_run(check, torch.device(device), dtype))
        except (RuntimeError, ValueError, OSError, TypeError, NotImplementedError) as failure:
            reason = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
            yield CheckResult(check.name, check.case, failure=reason)
    schedule = load_file(GOLDEN / "sampling" / "schedules.safetensors")["ltx2/default/steps40"]
    yield _judged("scheduler", "ltx2, 40 steps", TOLERANCES["sampling"], LTX2Scheduler.execute(40), schedule)


def _judged(name: str, case: str, tolerance: Tolerance, actual: torch.Tensor, expected: torch.Tensor) -> CheckResult:
    """The worst element's difference and what is allowed there, in units of the largest expected value."""
    error, allowed = tolerance.worst(actual, expected)
    peak = expected.abs().max().item()
    return CheckResult(name, case, error / peak, allowed / peak)


def _run(check: Check, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """What the component computes here, and what is expected."""
    folder = GOLDEN / check.folder
    model = _load_model(check.class_name, folder, device, dtype)
    case = load_file(folder / "cases" / f"{check.case}.safetensors")
    # Times and positions stay in float32, as pipelines pass them.
    exact = ("timestep", "audio_timestep", "sigma", "audio_sigma", "video_coords", "audio_coords")
    inputs = {
        name: value.to(device, dtype if value.is_floating_point() and name not in exact else None)
        for name, value in case.items()
    }
    return check.run(model, inputs), case[check.expected]


def _load_model(class_name: str, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The folder's model; its weights are in the original layout or in diffusers'."""
    import ltx2_diffusers

    model_class = getattr(ltx2_diffusers, class_name)
    original = folder / "original.safetensors"
    if original.is_file():
        return model_class.from_single_file(original, config=folder, dtype=dtype, device=device)
    model = model_class.from_config(model_class.load_config(folder))
    weights = load_file(folder / "diffusers.safetensors")
    model.load_state_dict({name: value.to(dtype) for name, value in weights.items()}, assign=True)
    return model.to(device).eval()
