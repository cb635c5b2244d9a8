"""Whole calls of pipelines, diffusers against ours: guided, and distilled with eight and three steps, from given embeddings.

Run `python -m benchmarks.pipeline [--quick] [--device cuda]`. One set of random weights serves both; calls take turns, and
ratios are diffusers' time over ours. Calls end with latents: decoding is timed by `benchmarks.vae`. On a processor the
transformer has the widths of `benchmarks.transformer_forward`; on a card it has those of LTX-2, with 8 of its 48 blocks, at
the published sizes. What does not belong to a step comes from the packaged miniature.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers import LTX2Pipeline as DiffusersPipeline
from diffusers.pipelines.ltx2 import LTX2TextConnectors as DiffusersConnectors
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel as DiffusersUpsampler
from diffusers.pipelines.ltx2.utils import DISTILLED_SIGMA_VALUES, STAGE_2_DISTILLED_SIGMA_VALUES
from diffusers.utils import logging

from benchmarks.common import interleaved, print_table, ratio, write_results
from benchmarks.contenders import COMPILED, EAGER, GRAPHS, OURS, TUNED, contenders, tune
from benchmarks.transformer_forward import CONFIG
from ltx2_diffusers import (
    LTX2DistilledPipeline,
    LTX2LatentUpsamplerModel,
    LTX2Pipeline,
    LTX2TextConnectors,
    fusion,
    packaged_checkpoint,
)

# Channels of the packaged miniature's sound, which gives what is around the transformer.
AROUND = {"audio_in_channels": 64, "audio_out_channels": 64, "perturbed_attn": True}
# Widths are those of the class by default.
LTX2_WIDE = {"rope_type": "split", "num_layers": 8}
UNGUIDED = {
    f"{stream}{name}": value
    for stream in ("", "audio_")
    for name, value in {
        "guidance_scale": 1.0,
        "stg_scale": 0.0,
        "modality_scale": 1.0,
        "guidance_rescale": 0.0,
    }.items()
}
TWO_TERMS = UNGUIDED | {"guidance_scale": 3.0, "audio_guidance_scale": 3.0}
ALL_TERMS = TWO_TERMS | {
    f"{stream}{name}": value
    for stream in ("", "audio_")
    for name, value in {"stg_scale": 1.0, "modality_scale": 3.0, "guidance_rescale": 0.7}.items()
}
# Least ratios to diffusers as it comes, and to diffusers tuned.
BOUNDS = {
    "cpu": {"guided": (1.2, None), "distilled": (1.0, None)},
    "cuda": {"guided": (1.6, 1.2), "distilled": (1.4, 1.1)},
}
Run = Callable[[], Any]


class Setting(NamedTuple):
    """What a device runs.

    Args:
        config: Of the transformer.
        connectors: Config of the connectors.
        size: Height, width and number of frames; a distilled call begins at half the height and width.
        steps: Of a guided call.
        lengths: Positions of the embeddings; the last one is that of the calls that are not about them.
        perturbed: Blocks that a perturbed pass perturbs.
        names: Who takes part.
    """

    config: dict[str, Any]
    connectors: dict[str, Any]
    size: tuple[int, int, int]
    steps: int
    lengths: tuple[int, ...]
    perturbed: list[int]
    names: tuple[str, ...]


def _connectors(heads: int, width: int) -> dict[str, Any]:
    sizes = {f"{stream}_connector_num_attention_heads": heads for stream in ("video", "audio")}
    sizes |= {f"{stream}_connector_attention_head_dim": width for stream in ("video", "audio")}
    return {"caption_channels": heads * width, "text_proj_in_factor": 3, "rope_type": "split", **sizes}


SETTINGS = {
    "cpu": Setting(CONFIG | AROUND, _connectors(8, 32), (256, 384, 33), 2, (128, 256, 512, 1024), [2], (EAGER, OURS)),
    "cuda": Setting(
        LTX2_WIDE | AROUND,
        _connectors(30, 128),
        (1024, 1536, 121),
        4,
        (1024,),
        [5],
        (EAGER, TUNED, OURS, COMPILED, GRAPHS),
    ),
}


class Built(NamedTuple):
    """What a contender calls.

    Args:
        pipe: For a guided call.
        distilled: For a distilled one, with the noise levels of distilled models.
        upsampler: Between the stages of a distilled call.
    """

    pipe: Any
    distilled: Any
    upsampler: Any


def pipelines(setting: Setting, device: str) -> dict[str, Built]:
    """Every contender's pipelines, by name."""
    unshifted = {"scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=False, shift_terminal=None)}
    checkpoint, transformers = packaged_checkpoint("ltx2-mini"), contenders(setting.config, device, setting.names)
    torch.manual_seed(0)
    connectors, other = LTX2TextConnectors(**setting.connectors), DiffusersConnectors(**setting.connectors)
    other.load_state_dict(connectors.state_dict())
    dtype, built = next(iter(transformers.values())).dtype, {}
    for name, transformer in transformers.items():
        is_theirs = name in (EAGER, TUNED)
        parts = {"transformer": transformer, "connectors": other if is_theirs else connectors, "dtype": dtype}
        pipe = (DiffusersPipeline if is_theirs else LTX2Pipeline).from_pretrained(checkpoint, **parts)
        upsampler_class = DiffusersUpsampler if is_theirs else LTX2LatentUpsamplerModel
        upsampler = upsampler_class.from_pretrained(checkpoint, subfolder="latent_upsampler").to(device, dtype)
        # The transformer has its place already.
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module) and part is not transformer:
                part.to(device, dtype)
        if is_theirs:
            whole = DiffusersPipeline(**{**pipe.components, **unshifted})
        else:
            whole = LTX2DistilledPipeline.from_pipe(pipe, latent_upsampler=upsampler, **unshifted)
        for one in (pipe, whole):
            one.set_progress_bar_config(disable=True)
        built[name] = Built(pipe, whole, upsampler)
    return built


def embeddings(setting: Setting, length: int, device: str, dtype: torch.dtype, tokens: int = 100) -> dict[str, Any]:
    """States of two prompts of so many tokens, with padding in front up to a length."""
    generator = torch.Generator().manual_seed(1)
    width = setting.connectors["caption_channels"] * setting.connectors["text_proj_in_factor"]
    given = {}
    for prefix in ("", "negative_"):
        states = torch.randn(1, length, width, generator=generator)
        given[f"{prefix}prompt_embeds"] = states.to(device, dtype)
        mask = (torch.arange(length)[None] >= length - tokens).long()
        given[f"{prefix}prompt_attention_mask"] = mask.to(device)
    return given


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def guided(built: Built, call: dict[str, Any]) -> Any:
    """A guided call in one stage."""
    return built.pipe(**call, generator=_seeded())


def distilled(built: Built, call: dict[str, Any]) -> Any:
    """A distilled call: in diffusers two calls around the upsampler, in ours one."""
    pipe, generator = built.distilled, _seeded()
    given = {name: value for name, value in call.items() if not name.startswith("negative_")}
    if isinstance(pipe, LTX2DistilledPipeline):
        return pipe(**given, generator=generator)
    half = given | {"height": given["height"] // 2, "width": given["width"] // 2}
    first = pipe(**half, **UNGUIDED, sigmas=DISTILLED_SIGMA_VALUES, generator=generator)
    with torch.no_grad():
        latents = built.upsampler(first.frames.to(built.upsampler.dtype))
    levels = STAGE_2_DISTILLED_SIGMA_VALUES
    again = {"sigmas": levels, "noise_scale": levels[0], "latents": latents, "audio_latents": first.audio}
    return pipe(**given, **UNGUIDED, **again, generator=generator)


def cases(setting: Setting, built: dict[str, Built], device: str) -> Iterator[tuple[str, dict[str, Run]]]:
    """What is timed: a name, and the call of everyone."""
    height, width, frames = setting.size
    dtype = next(iter(built.values())).pipe.transformer.dtype
    common = {"num_frames": frames, "frame_rate": 24.0, "use_cross_timestep": False, "output_type": "latent"}
    # On a card a guided call has the size of the first stage of a distilled one.
    part = 2 if device == "cuda" else 1
    small = {"height": height // part, "width": width // part, "num_inference_steps": setting.steps, **common}
    for length in setting.lengths:
        given = embeddings(setting, length, device, dtype)
        if len(setting.lengths) > 1:
            call = {**small, **TWO_TERMS, **given}
            yield f"classifier-free guidance, {length} positions", _calls(guided, built, call)
    terms = {**ALL_TERMS, "spatio_temporal_guidance_blocks": setting.perturbed}
    yield f"guided, four terms, {setting.steps} steps", _calls(guided, built, {**small, **terms, **given})
    large = {"height": height, "width": width, **common}
    yield "distilled, 8 + 3 steps", _calls(distilled, built, {**large, **given})


def _calls(function: Callable[..., Any], built: dict[str, Built], call: dict[str, Any]) -> dict[str, Run]:
    return {name: partial(function, one, call) for name, one in built.items()}


def measured(name: str, calls: dict[str, Run], repeats: int, warmup: int) -> list[dict[str, Any]]:
    """Rows of one case, after a comparison of the results."""
    expected = calls[EAGER]()
    rows, differences = [], {}
    for who, call in calls.items():
        found = call()
        pairs = ((found.frames, expected.frames), (found.audio, expected.audio))
        differences[who] = max(float((one.float() - two.float()).abs().max()) for one, two in pairs)
    times = interleaved(calls, repeats=repeats, warmup=warmup)
    for who in calls:
        row = {"case": name, "by": who, "seconds": sorted(times[who])[len(times[who]) // 2]}
        row["over diffusers"] = ratio(times, EAGER, who)["median"]
        row["over tuned"] = ratio(times, TUNED, who)["median"] if TUNED in times else None
        rows.append({**row, "largest difference": f"{differences[who]:.1e}"})
    return rows


def bounds_of(case: str, device: str) -> tuple[float, float | None]:
    """Least ratios of a case to diffusers as it comes, and to diffusers tuned."""
    return next((both for key, both in BOUNDS[device].items() if case.startswith(key)), (1.0, None))


def missed(rows: list[dict[str, Any]], device: str) -> list[str]:
    """Cases whose best row of ours is below a bound."""
    found = []
    for name in dict.fromkeys(row["case"] for row in rows):
        ours = [row for row in rows if row["case"] == name and row["by"].startswith("ours")]
        for column, bound in zip(("over diffusers", "over tuned"), bounds_of(name, device)):
            if bound is not None and max(row[column] for row in ours) < bound:
                found.append(f"{name}: {column} below {bound:g}")
    return found


def main() -> int:
    """Measure, print and write; exit status 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one sample of each call, held to no bound")
    parser.add_argument("--device", default="cpu", choices=sorted(SETTINGS), help="default cpu")
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    setting, rows = SETTINGS[options.device], []
    built = pipelines(setting, options.device)
    repeats = 1 if options.quick else 5 if options.device == "cuda" else 7
    name = f"pipeline_{options.device}" if options.device != "cpu" else "pipeline"
    with fusion("auto"):
        for index, (case, calls) in enumerate(cases(setting, built, options.device)):
            if TUNED in calls and not index:
                print("attention of diffusers, tuned:", tune(built[TUNED].pipe.transformer, calls[TUNED]))
            rows += measured(case, calls, repeats, 0 if options.quick else 1)
            # After every case, since a limit may end it.
            path = write_results(f"{name}_quick" if options.quick else name, {"cases": rows})
    print_table(rows)
    print("written to", path)
    low = [] if options.quick else missed(rows, options.device)
    print("\n".join(low))
    return int(bool(low))


if __name__ == "__main__":
    sys.exit(main())
