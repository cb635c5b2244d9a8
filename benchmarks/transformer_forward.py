"""One forward pass of the transformer, diffusers against ours, with the same weights in the same process.

Run `python -m benchmarks.transformer_forward [--quick]`. Widths are reduced so that a CPU can run it, which keeps the
share of matrix products and attention honest; what kernels do on an accelerator cannot be read off it. With
`--device cuda` the published model runs there, at its full width and depth, in bfloat16 and with random weights, which
both sides share.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel

from benchmarks.common import interleaved, print_table, ratio, write_results
from ltx2_diffusers import LTX2AVTransformer3DModel, fusion

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
# 25 frames of 288 x 512 pixels, 121 of 512 x 768, and of 1024 x 1536.
FULL_GRIDS = {576: (4, 9, 16), 6144: (16, 16, 24), 24576: (16, 32, 48)}


def make_inputs(
    model: torch.nn.Module, tokens: int, per_token: bool, text_tokens: int = TEXT_TOKENS, device: str | None = None
) -> dict[str, Any]:
    """Arguments of one forward pass: plain generation, or the first latent frame given as an image.

    Their device is that of the model, unless one is given.
    """
    generator = torch.Generator().manual_seed(0)
    frames, height, width = (GRIDS | FULL_GRIDS)[tokens]
    timestep = torch.full((1,), 700.0)
    if per_token:
        timestep = torch.full((1, tokens), 700.0)
        timestep[:, : height * width] = 0.0
    config = model.config
    widths = [config.caption_channels] * 2
    if not config.use_prompt_embeddings:
        widths = [config.cross_attention_dim, config.audio_cross_attention_dim]
    texts = [torch.randn(1, text_tokens, width, generator=generator) for width in widths]
    mask = torch.ones(1, text_tokens)
    inputs = {
        "hidden_states": torch.randn(1, tokens, 128, generator=generator),
        "audio_hidden_states": torch.randn(1, AUDIO_TOKENS, 128, generator=generator),
        "encoder_hidden_states": texts[0],
        "audio_encoder_hidden_states": texts[1],
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
    return {name: _placed(value, model, device or model.device) for name, value in inputs.items()}


def _placed(value: Any, model: torch.nn.Module, device: torch.device | str) -> Any:
    """A tensor on a device in the type of the model, but for noise levels, which stay float32."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, torch.float32 if value.ndim < 3 else model.dtype)


def with_coords(model: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs with positions computed once, as pipelines do."""
    grid = [inputs[key] for key in ("num_frames", "height", "width")]
    video = model.rope.prepare_video_coords(1, *grid, model.device)
    audio = model.audio_rope.prepare_audio_coords(1, AUDIO_TOKENS, model.device)
    return {**inputs, "video_coords": video, "audio_coords": audio}


def make_models() -> dict[str, torch.nn.Module]:
    """Both classes with the same random weights."""
    torch.manual_seed(0)
    baseline = LTX2VideoTransformer3DModel(**CONFIG).eval()
    ours = LTX2AVTransformer3DModel(**CONFIG).eval()
    ours.load_state_dict(baseline.state_dict())
    return {"diffusers": baseline, "ours": ours}


def make_full_models(device: str, layers: int) -> dict[str, torch.nn.Module]:
    """Both classes at the published width on one set of random weights."""
    with torch.device("meta"):
        models = {
            "diffusers": LTX2VideoTransformer3DModel(num_layers=layers),
            "ours": LTX2AVTransformer3DModel(num_layers=layers),
        }
    generator = torch.Generator(device).manual_seed(0)
    weights = {
        name: torch.empty(value.shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02, generator=generator)
        for name, value in models["ours"].state_dict().items()
    }
    for model in models.values():
        model.load_state_dict(weights, assign=True)
        model.eval()
    return models


@torch.no_grad()
def measure(models: dict[str, torch.nn.Module], tokens: int, per_token: bool, repeats: int) -> dict[str, Any]:
    """Time one case on both sides and compare the outputs."""
    inputs = make_inputs(models["ours"], tokens, per_token)
    calls: dict[str, Callable] = {}
    for name, model in models.items():
        arguments = with_coords(model, inputs)
        calls[name] = lambda model=model, arguments=arguments: model(**arguments)
    # Steps of ours are fused where there is a card.
    with fusion("auto"):
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
    parser.add_argument("--device", default="cpu", help="cpu (default) or an accelerator, which runs the full width")
    parser.add_argument(
        "--layers", type=int, default=48, help="blocks of the full width; default 48, the published depth"
    )
    options = parser.parse_args()
    repeats = 7 if options.quick else 31
    full = options.device != "cpu"
    models = make_full_models(options.device, options.layers) if full else make_models()
    name = f"transformer_forward_{options.device.partition(':')[0]}" if full else "transformer_forward"
    rows = []
    for tokens in FULL_GRIDS if full else GRIDS:
        # A pass over the longest clip takes seconds at the full depth.
        fewer = 2 if options.quick and full else repeats // 2 + 1
        for per_token in (False, True):
            rows.append(measure(models, tokens, per_token, repeats if tokens in (288, 6144) else fewer))
            # After every case, so that a run that is cut off loses none that is done.
            payload = {"config": dict(models["ours"].config), "repeats": repeats, "cases": rows}
            path = write_results(name, payload)
    print_table(rows)
    print("written to", path)


if __name__ == "__main__":
    main()
