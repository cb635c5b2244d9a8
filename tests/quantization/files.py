"""The golden fp8 file and its inputs, and models that hold the published sizes as shapes alone."""

from functools import cache

import torch

from ltx2_diffusers import LTX2AVTransformer3DModel
from tests.golden_data import GOLDEN_DIR, load_json, load_tensors
from tests.golden_parts import golden_file

CHECKPOINTS = GOLDEN_DIR / "checkpoint"
FULL = CHECKPOINTS / "ltx-2-tiny-dev.safetensors"
FULL_23 = CHECKPOINTS / "ltx-2.3-tiny-dev.safetensors"
FP8 = golden_file("checkpoint/fp8/ltx-2-tiny-dev-fp8.safetensors")
AMAX = CHECKPOINTS / "fp8" / "calibration_amax.json"
PREFIX = "model.diffusion_model."
FORWARD = load_tensors("checkpoint/fp8/expected/forward_fp32.safetensors")
INPUTS = {name.removeprefix("input.transformer."): t for name, t in FORWARD.items() if name.startswith("input.")}


def load(source=FP8, dtype=torch.float32, **options) -> LTX2AVTransformer3DModel:
    """The tiny transformer of an original file."""
    return LTX2AVTransformer3DModel.from_single_file(source, dtype=dtype, **options)


@torch.no_grad()
def outputs(model, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """What a model makes of the golden inputs."""
    is_real = ("timestep", "coords")
    cast = {n: t if any(part in n for part in is_real) else t.to(dtype) for n, t in INPUTS.items()}
    result = model(**cast)
    return {"sample": result.sample, "audio_sample": result.audio_sample}


def same_weights(model, other) -> bool:
    """Whether two models store the same, in data type and value."""
    mine, theirs = model.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        tensor.dtype == theirs[name].dtype and torch.equal(tensor.float(), theirs[name].float())
        for name, tensor in mine.items()
    )


@cache
def published_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a published transformer."""
    config = load_json(f"checkpoint/real_configs/{name}.json")["diffusers_configs"]["transformer"]
    with torch.device("meta"):
        model = LTX2AVTransformer3DModel.from_config(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
