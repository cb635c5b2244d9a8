"""A pipeline whose weights are stored in each of the ways that adapters meet, and what its tensors hold."""

import torch

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.adapters.active import adapted_models
from ltx2_diffusers.models.transformer import LTX2AVTransformer3DModel
from ltx2_diffusers.quantization.configs import FP8CastConfig, FP8ScaledMMConfig
from tests.adapters.tiny import VECTORS, build
from tests.checkpoints.tiny import V20
from tests.golden_parts import golden_file

SCALED_FILE = golden_file("checkpoint/fp8/ltx-2-tiny-dev-fp8.safetensors")


def in_fp8(kind: str) -> LTX2Pipeline:
    """A pipeline of bfloat16 with the transformer in float8."""
    if kind == "layerwise":
        pipe = build(torch.bfloat16)
        pipe.transformer.enable_layerwise_casting(
            torch.float8_e4m3fn, torch.bfloat16, ["norm", "proj", "embed", "cross"]
        )
        return pipe
    config = FP8CastConfig() if kind == "fp8_cast" else FP8ScaledMMConfig()
    load = LTX2AVTransformer3DModel.from_single_file
    return build(torch.bfloat16, transformer=load(V20, torch_dtype=torch.bfloat16, quantization_config=config))


def stored_as(kind: str | torch.dtype) -> LTX2Pipeline:
    """A pipeline with weights of a data type, or in float8 of a kind."""
    return build(kind) if isinstance(kind, torch.dtype) else in_fp8(kind)


def bits(pipe: LTX2Pipeline) -> dict[str, torch.Tensor]:
    """All tensors of both models as bytes, by the names that they have without adapters."""
    return {
        f"{component}.{name.replace('.base_layer.', '.')}": tensor.detach().reshape(-1).view(torch.uint8).clone()
        for component, model in adapted_models(pipe).items()
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }


def changed(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that differ in any bit."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@torch.no_grad()
def velocity(pipe: LTX2Pipeline) -> torch.Tensor:
    """What the transformer of bfloat16 computes of the golden inputs, both streams."""
    inputs = {
        key.removeprefix("input.transformer."): t for key, t in VECTORS.items() if key.startswith("input.transformer.")
    }
    inputs = {k: t.bfloat16() if t.is_floating_point() and "coords" not in k else t for k, t in inputs.items()}
    result = pipe.transformer(**inputs)
    return torch.cat([result.sample.flatten(), result.audio_sample.flatten()]).float()
