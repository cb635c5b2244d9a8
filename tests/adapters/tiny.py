"""Pipelines with the models that adapters change, and what they compute."""

import torch
from diffusers import LTX2Pipeline as DiffusersLTX2Pipeline
from diffusers import LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors as DiffusersConnectors

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.adapters.active import adapter_layers
from ltx2_diffusers.models.connectors import LTX2TextConnectors
from ltx2_diffusers.models.transformer import LTX2AVTransformer3DModel
from tests.checkpoints.tiny import V20
from tests.golden_data import load_tensors

VECTORS = load_tensors("checkpoint/lora/expected/forward_fp32.safetensors")
OUTPUTS = ("sample", "audio_sample", "connectors.video", "connectors.audio")
Q = "transformer_blocks.0.attn1.to_q"


def build(dtype: torch.dtype = torch.float32, **components) -> LTX2Pipeline:
    """A pipeline with the models that LoRAs change and nothing else."""
    models = {
        "transformer": LTX2AVTransformer3DModel.from_single_file(V20, torch_dtype=dtype),
        "connectors": LTX2TextConnectors.from_single_file(V20, torch_dtype=dtype),
    }
    rest = dict.fromkeys(("scheduler", "vae", "audio_vae", "text_encoder", "tokenizer", "vocoder"))
    return LTX2Pipeline(**{**rest, **models, **components})


def in_diffusers(pipe: LTX2Pipeline) -> DiffusersLTX2Pipeline:
    """The same weights in diffusers' pipeline."""
    transformer = LTX2VideoTransformer3DModel.from_config(dict(pipe.transformer.config))
    connectors = DiffusersConnectors.from_config(dict(pipe.connectors.config))
    transformer.load_state_dict(pipe.transformer.state_dict())
    connectors.load_state_dict(pipe.connectors.state_dict())
    rest = dict.fromkeys(("scheduler", "vae", "audio_vae", "text_encoder", "tokenizer", "vocoder"))
    return DiffusersLTX2Pipeline(**rest, transformer=transformer.eval(), connectors=connectors.eval())


@torch.no_grad()
def outputs(pipe, **kwargs) -> dict[str, torch.Tensor]:
    """Results of the golden inputs, by their golden names."""
    inputs = {
        component: {
            key.removeprefix(f"input.{component}."): tensor
            for key, tensor in VECTORS.items()
            if key.startswith(f"input.{component}.")
        }
        for component in ("transformer", "connectors")
    }
    velocities = pipe.transformer(**inputs["transformer"], **kwargs)
    video, audio, _ = pipe.connectors(**inputs["connectors"])
    return dict(zip(OUTPUTS, (velocities.sample, velocities.audio_sample, video, audio)))


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def settings(pipe: LTX2Pipeline) -> list[tuple]:
    """All that says which adapters act how strongly."""
    return [
        (
            list(layer.active_adapters),
            layer.disable_adapters,
            dict(layer.scaling),
            [p.requires_grad for p in layer.parameters()],
        )
        for layer in adapter_layers(pipe)
    ]


def lora(
    path: str = Q, seed: int = 0, sizes: tuple[int, int] = (32, 32), prefix: str = "transformer."
) -> dict[str, torch.Tensor]:
    """Factors of rank 4 for one module."""
    generator = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(shape, generator=generator) * 0.3 for shape in ((4, sizes[1]), (sizes[0], 4)))
    return {f"{prefix}{path}.lora_A.weight": down, f"{prefix}{path}.lora_B.weight": up}


def largest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference between two results."""
    return max((one[key] - other[key]).abs().max().item() for key in one)
