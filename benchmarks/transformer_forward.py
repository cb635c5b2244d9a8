"""One forward pass of the transformer, diffusers against ours, with the same weights in the same process.

Run `python -m benchmarks.transformer_forward [--quick]`. Widths are reduced so that a CPU can run it, which keeps the
share of matrix products and attention honest; what kernels do on an accelerator cannot be read off it.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel

from benchmarks.common import interleaved, print_table, ratio, write_results
from ltx2_diffusers import LTX2AVTransformer3DModel

CONFIG = {
    "num_attention_heads": 8,
    "attention_head_dim": 64,
    "cross_attention_dim": 512,
    "audio_num_attention_heads": 8,
    "audio_attention_head_dim": 32,
    "audio_cross_attention_dim": 256,
    "num_layers": 4,
    "caption_channels": 256,
    "rope_type": "split",
}
TEXT_TOKENS = 256
AUDIO_TOKENS = 126
# Video tokens -> latent frames, rows, columns
GRIDS = {288: (8, 6, 6), 1152: (8, 12, 12)}


def make_inputs(tokens: int, per_token: bool) -> dict[str, Any]:
    """Arguments of one forward pass: plain generation, or the first latent frame given as an image."""
    generator = torch.Generator().manual_seed(0)
    frames, height, width = GRIDS[tokens]
    timestep = torch.full((1,), 700.0)
    if per_token:
        timestep = torch.full((1, tokens), 700.0)
        timestep[:, : height * width] = 0.0
    text = (1, TEXT_TOKENS, CONFIG["caption_channels"])
    mask = torch.ones(1, TEXT_TOKENS)
    return {
        "hidden_states": torch.randn(1, tokens, 128, generator=generator),
        "audio_hidden_states": torch.randn(1, AUDIO_TOKENS, 128, generator=generator),
        "encoder_hidden_states": torch.randn(*text, generator=generator),
        "audio_encoder_hidden_states": torch.randn(*text, generator=generator),
        "timestep": timestep,
        "audio_timestep": torch.full((1,), 700.0),
        "encoder_attention_mask": mask,
        "audio_encoder_attention_mask": mask.clone(),
        "num_frames": frames,
        "height": height,
        "width": width,
        "audio_num_frames": AUDIO_TOKENS,
        "return_dict": False,
    }


def with_coords(model: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs with positions computed once, as pipelines do."""
    grid = [inputs[key] for key in ("num_frames", "height", "width")]
    video = model.rope.prepare_video_coords(1, *grid, "cpu")
    audio = model.audio_rope.prepare_audio_coords(1, AUDIO_TOKENS, "cpu")
    return {**inputs, "video_coords": video, "audio_coords": audio}


def make_models() -> dict[str, torch.nn.Module]:
    """Both classes with the same random weights."""
    torch.manual_seed(0)
    baseline = LTX2VideoTransformer3DModel(**CONFIG).eval()
    ours = LTX2AVTransformer3DModel(**CONFIG).eval()
    ours.load_state_dict(baseline.state_dict())
    return {"diffusers": baseline, "ours": ours}


@torch.no_grad()
def measure(models: dict[str, torch.nn.Module], tokens: int, per_token: bool, repeats: int) -> dict[str, Any]:
    """Time one case on both sides and compare the outputs."""
    inputs = make_inputs(tokens, per_token)
    calls: dict[str, Callable] = {}
    for name, model in models.items():
        arguments = with_coords(model, inputs)
        calls[name] = lambda model=model, arguments=arguments: model(**arguments)
    outputs = [call() for call in calls.values()]
    difference = max(float((a - b).abs().max()) for a, b in zip(*outputs))
    times = interleaved(calls, repeats=repeats, warmup=2)
    return {
        "case": "image to video" if per_token else "text to video",
        "tokens": tokens,
        **{f"{name} s": statistics.median(seconds) for name, seconds in times.items()},
        **{f"ratio {key}": value for key, value in ratio(times, "diffusers", "ours").items()},
        "max difference": f"{difference:.1e}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    repeats = 7 if parser.parse_args().quick else 31
    models = make_models()
    rows = [
        measure(models, tokens, per_token, repeats if tokens < 1000 else repeats // 2 + 1)
        for tokens in GRIDS
        for per_token in (False, True)
    ]
    print_table(rows)
    print("written to", write_results("transformer_forward", {"config": CONFIG, "repeats": repeats, "cases": rows}))


if __name__ == "__main__":
    main()
