"""What FP8 costs and saves: bytes of the published transformers, and how far velocities and clips of the miniature move.

Run `python -m benchmarks.quantization [--quick]`. Bytes are counted on models without values, built from the published
configurations. Errors are those against float32: of the velocities on the inputs of a float32 call, and of the frames
that a call of its own makes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging

from benchmarks.common import print_table, write_results
from ltx2_diffusers import (
    FP8CastConfig,
    FP8ScaledMMConfig,
    LTX2AVTransformer3DModel,
    LTX2Pipeline,
    packaged_checkpoint,
)
from ltx2_diffusers.checkpoints.packaged import PACKAGED_SIZE
from ltx2_diffusers.quantization.layers import cast_layers, put_cast, put_scaled, scaled_layers

CONFIGS = Path(__file__).parents[1] / "tests" / "golden" / "checkpoint" / "real_configs"
MODELS = {"19B": "ltx-2-19b.json", "22B": "ltx-2.3-22b.json"}
METHODS = {
    "bfloat16": {"dtype": torch.bfloat16},
    "fp8_cast": {"quantization_config": FP8CastConfig()},
    "fp8_cast, variant 2.0": {"quantization_config": FP8CastConfig("2.0")},
    "fp8_scaled_mm": {"quantization_config": FP8ScaledMMConfig()},
}
PROMPTS = ("a red ball moves to the right", "a blue square stands still, a high tone sounds")


def empty_model(name: str, method: str) -> LTX2AVTransformer3DModel:
    """A published transformer as a method stores it, without values."""
    config = json.loads((CONFIGS / MODELS[name]).read_text())["diffusers_configs"]["transformer"]
    with torch.device("meta"):
        model = LTX2AVTransformer3DModel.from_config(config).to(torch.bfloat16)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if method.startswith("fp8_cast"):
        put_cast(model, cast_layers(shapes, METHODS[method]["quantization_config"].variant), torch.bfloat16)
    elif method == "fp8_scaled_mm":
        put_scaled(model, dict.fromkeys(scaled_layers(shapes), True), torch.bfloat16)
    return model


def gigabytes(model: torch.nn.Module) -> float:
    """Size of its tensors, in units of 10^9 bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 1e9


def velocities(steps: int) -> tuple[list[dict[str, Any]], list[torch.Tensor]]:
    """Arguments of every forward of float32 calls, and what they predicted, both streams in one row."""
    pipeline, inputs, outputs = LTX2Pipeline.from_pretrained(packaged_checkpoint("ltx2-mini")), [], []
    pipeline.set_progress_bar_config(disable=True)

    def record(_model: Any, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
        inputs.append({name: value for name, value in kwargs.items() if name not in ("text_cache", "return_dict")})
        outputs.append(flat(output))

    hook = pipeline.transformer.register_forward_hook(record, with_kwargs=True)
    for prompt in PROMPTS:
        pipeline(
            prompt,
            **PACKAGED_SIZE,
            num_inference_steps=steps,
            guidance_scale=1.0,
            output_type="latent",
            generator=seeded(),
        )
    hook.remove()
    return inputs, outputs


def flat(output: Any) -> torch.Tensor:
    """All predictions of a forward as one row, float32."""
    if isinstance(output, torch.Tensor):
        return output.float().flatten()
    parts = output.values() if hasattr(output, "values") else output
    return torch.cat([flat(part) for part in parts if part is not None])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@torch.no_grad()
def error(method: str, inputs: list[dict[str, Any]], expected: list[torch.Tensor]) -> float:
    """Relative error of the velocities, root of the mean of squares."""
    folder, options = packaged_checkpoint("ltx2-mini") / "transformer", METHODS[method]
    model = LTX2AVTransformer3DModel.from_pretrained(folder, **options)
    dtype = options.get("dtype", torch.float32)
    found = []
    for call in inputs:
        states = {n: v.to(dtype) for n, v in call.items() if isinstance(v, torch.Tensor) and "hidden_states" in n}
        found.append(flat(model(**{**call, **states})))
    wrong, right = torch.cat(found) - torch.cat(expected), torch.cat(expected)
    return (wrong.square().mean() / right.square().mean()).sqrt().item()


def decibels(method: str, steps: int) -> float:
    """Mean peak signal-to-noise ratio of clips against those in float32, which start from the same noise."""
    folder, mean = packaged_checkpoint("ltx2-mini"), 0.0
    both = [LTX2Pipeline.from_pretrained(folder), LTX2Pipeline.from_pretrained(folder, **METHODS[method])]
    for prompt in PROMPTS:
        clips = []
        for pipeline in both:
            pipeline.set_progress_bar_config(disable=True)
            call = {**PACKAGED_SIZE, "num_inference_steps": steps, "output_type": "np", "generator": seeded()}
            clips.append(torch.from_numpy(pipeline(prompt, **call).frames))
        mean += -10 * (clips[0] - clips[1]).square().mean().log10().item() / len(PROMPTS)
    return mean


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps")
    steps = 4 if parser.parse_args().quick else 40
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    inputs, expected = velocities(steps)
    rows = [
        {
            "method": method,
            **{f"{name}, GB": gigabytes(empty_model(name, method)) for name in MODELS},
            "velocity error": error(method, inputs, expected),
            "clip, dB": decibels(method, steps),
        }
        for method in METHODS
    ]
    write_results("quantization", {"steps": steps, "prompts": PROMPTS, "methods": rows})
    print_table(rows)


if __name__ == "__main__":
    main()
