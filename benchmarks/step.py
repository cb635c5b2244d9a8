"""Forward passes, guided steps and loops, diffusers against ours with the same weights in the same process.

Run `python -m benchmarks.step [--quick] [--device cuda]`. Widths are those of `benchmarks.transformer_forward`, so that a CPU
can run them; functions take turns, and ratios are diffusers' time over ours. On a card widths are those of LTX-2, with 8 of
its 48 blocks, in bfloat16, and ours is compared with diffusers as it comes and tuned (`benchmarks.contenders`). A bound that
is missed ends with exit status 1.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.pipeline_ltx2 import rescale_noise_cfg
from diffusers.utils import logging

from benchmarks.common import interleaved, print_table, ratio, write_results
from benchmarks.contenders import COMPILED, EAGER, GRAPHS, OURS, TUNED, contenders, tune
from benchmarks.transformer_forward import CONFIG, make_inputs, with_coords
from ltx2_diffusers import LTX2AVTransformer3DModel, MultiModalGuiderParams, TextCache, fusion
from ltx2_diffusers.conditioning.state import LatentState
from ltx2_diffusers.conditioning.streams import Streams, TextContext
from ltx2_diffusers.guidance.guiders import MultiModalGuider
from ltx2_diffusers.planning.counting import measured
from ltx2_diffusers.sampling.denoiser import GuidedDenoiser

SIGMA, SCALE, RESCALE, STEPS = 0.7, 3.0, 0.7, 8
TOKENS, SHORT, TEXT_TOKENS = 1152, 288, 1024
# Of the four blocks, so that a perturbed pass shares half of them.
PERTURBED = (2,)
BOUNDS = {
    "forward": 1.05,
    "forward, compiled blocks": 1.0,
    "guided step, four terms": 1.2,
    f"loop of {STEPS} steps, {TEXT_TOKENS} text tokens": 1.3,
    "forward, image to video": 1.25,
}
MEMORY_BOUND = 0.4
# On a card: video tokens, whether a picture is given, and least ratios to diffusers as it comes and tuned.
WIDE = {"rope_type": "split", "num_layers": 8, "perturbed_attn": True}
WIDE_CASES = {
    "forward, 6144 tokens": (6144, False, 1.4, 1.05),
    "forward, 24576 tokens": (24_576, False, 1.35, 1.1),
    "forward, 6144 tokens, image to video": (6144, True, 1.5, 1.1),
    "forward, 576 tokens": (576, False, 2.0, 1.3),
}
# Of 8 blocks as many shared as 28 of 48.
WIDE_STEP, WIDE_STEP_BOUNDS, WIDE_PERTURBED = "guided step, four terms, 6144 tokens", (1.6, 1.2), (5,)
Run = Callable[[], Any]


def step_of_diffusers(model: Any, inputs: dict[str, Any], blocks: Sequence[int]) -> Run:
    """A guided step as diffusers' pipeline makes it: a batch of two, the perturbed and the isolated pass, and its formulas.

    Args:
        model: Its transformer.
        inputs: Arguments of a forward pass.
        blocks: Blocks that the perturbed pass perturbs.
    """
    both = {
        name: value.repeat(2, *(1 for _ in value.shape[1:])) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }
    dtype = inputs["hidden_states"].dtype
    latents = [inputs[f"{name}hidden_states"].float() for name in ("", "audio_")]

    def run() -> list[torch.Tensor]:
        pairs = [torch.cat([one] * 2).to(dtype) for one in latents]
        negative, positive = zip(*(x.float().chunk(2) for x in model(**_with_latents(both, pairs))))
        single = _with_latents(inputs, [one.to(dtype) for one in latents])
        perturbed = model(**single, spatio_temporal_guidance_blocks=list(blocks))
        isolated = model(**single, isolate_modalities=True)
        streams = zip(latents, positive, negative, perturbed, isolated)
        return [_guided(one, *predictions) for one, *predictions in streams]

    return run


def _with_latents(inputs: dict[str, Any], latents: list[torch.Tensor]) -> dict[str, Any]:
    return {**inputs, "hidden_states": latents[0], "audio_hidden_states": latents[1]}


def _guided(latents: torch.Tensor, *velocities: torch.Tensor) -> torch.Tensor:
    """Diffusers' formulas: clean samples, three differences, rescaling, and the velocity for the scheduler."""
    positive, *others = (latents - velocity.float() * SIGMA for velocity in velocities)
    deltas = [(SCALE - 1) * (positive - other) for other in others]
    guided = rescale_noise_cfg(positive + deltas[0] + deltas[1] + deltas[2], positive, guidance_rescale=RESCALE)
    return (latents - guided) / SIGMA


def step_of_ours(model: LTX2AVTransformer3DModel, inputs: dict[str, Any], blocks: Sequence[int]) -> Run:
    """The same step as our pipelines make it; the negative text is the positive one here, as above."""
    # Away from a perturbed pass goes by the scale itself, from the others by what is above one.
    params = MultiModalGuiderParams(SCALE, SCALE - 1, tuple(blocks), RESCALE, SCALE)
    text = TextContext(inputs["encoder_hidden_states"], inputs["audio_encoder_hidden_states"])
    states = Streams(*(_state(inputs, *names) for names in (("", "video"), ("audio_", "audio"))))
    guiders = Streams(MultiModalGuider(params), MultiModalGuider(params))
    negative = TextContext(text.video.clone(), text.audio.clone())
    denoiser = GuidedDenoiser(model, text, negative, guiders)
    sigma = torch.tensor(SIGMA)
    return lambda: [(state.latent.float() - clean) / SIGMA for state, clean in zip(states, denoiser(states, sigma, 0))]


def _state(inputs: dict[str, Any], prefix: str, name: str) -> LatentState:
    latent = inputs[f"{prefix}hidden_states"]
    return LatentState(latent, torch.ones(*latent.shape[:2], 1), inputs[f"{name}_coords"], torch.zeros_like(latent))


def models(**overrides: Any) -> dict[str, Any]:
    """Both classes with the same random weights."""
    torch.manual_seed(0)
    theirs = LTX2VideoTransformer3DModel(**CONFIG, **overrides).eval()
    ours = LTX2AVTransformer3DModel(**CONFIG, **overrides).eval()
    ours.load_state_dict(theirs.state_dict())
    return {"diffusers": theirs, "ours": ours}


def forwards(pair: dict[str, Any], tokens: int = TOKENS, image: bool = False, **text: int) -> dict[str, Run]:
    """A forward pass of each."""
    return {name: partial(m, **with_coords(m, make_inputs(m, tokens, image, **text))) for name, m in pair.items()}


def cases() -> dict[str, dict[str, Run]]:
    """What is timed, by the name of its bound."""
    plain, perturbing, compiled = models(), models(perturbed_attn=True), models()
    for model in compiled.values():
        model.compile_repeated_blocks(fullgraph=True)
    inputs = {
        n: with_coords(m, make_inputs(m, TOKENS, False))
        | {"timestep": torch.tensor([SIGMA * 1000])}
        | {"audio_timestep": torch.tensor([SIGMA * 1000])}
        for n, m in perturbing.items()
    }
    short = forwards(plain, SHORT, text_tokens=TEXT_TOKENS)

    def loop_of_diffusers() -> None:
        for _ in range(STEPS):
            result = short["diffusers"]()
        return result

    def loop_of_ours() -> None:
        cache = TextCache()
        for _ in range(STEPS):
            result = short["ours"](text_cache=cache)
        return result

    names = list(BOUNDS)
    runs = [
        forwards(plain),
        forwards(compiled),
        {
            "diffusers": step_of_diffusers(perturbing["diffusers"], inputs["diffusers"], PERTURBED),
            "ours": step_of_ours(perturbing["ours"], inputs["ours"], PERTURBED),
        },
        {"diffusers": loop_of_diffusers, "ours": loop_of_ours},
        forwards(plain, image=True),
    ]
    return dict(zip(names, runs, strict=True))


def wide_cases(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Run], tuple[float, float]]]:
    """Name, runs and bounds of what is timed on a card."""
    for name, (tokens, image, *bounds) in WIDE_CASES.items():
        yield name, forwards(found, tokens, image, text_tokens=TEXT_TOKENS), (bounds[0], bounds[1])
    runs = {}
    for name, model in found.items():
        inputs = with_coords(model, make_inputs(model, 6144, False, TEXT_TOKENS))
        make = step_of_diffusers if name in (EAGER, TUNED) else step_of_ours
        runs[name] = make(model, inputs, WIDE_PERTURBED)
    yield WIDE_STEP, runs, WIDE_STEP_BOUNDS


@torch.no_grad()
def on_card(is_quick: bool) -> int:
    """The same on a card."""
    found = contenders(WIDE, "cuda", (EAGER, TUNED, OURS, COMPILED, GRAPHS))
    rows, low = [], []
    with fusion("auto"):
        for index, (name, runs, bounds) in enumerate(wide_cases(found)):
            if not index:
                print("attention of diffusers, tuned:", tune(found[TUNED], runs[TUNED]))
            expected = runs[EAGER]()
            times = interleaved(runs, repeats=3 if is_quick else 9, warmup=2)
            ours = [who for who in runs if who.startswith("ours")]
            for who, run in runs.items():
                over = {rival: ratio(times, rival, who)["median"] for rival in (EAGER, TUNED)}
                difference = max(float((a - b).abs().max()) for a, b in zip(run(), expected))
                row = {"case": name, "by": who, "ms": 1e3 * statistics.median(times[who])}
                rows.append(
                    {**row, **{f"over {k}": v for k, v in over.items()}, "max difference": f"{difference:.1e}"}
                )
            for rival, bound in zip((EAGER, TUNED), bounds):
                best = max(ratio(times, rival, who)["median"] for who in ours)
                low += [f"{name}: {best:.2f} over {rival}, bound {bound:g}"] if best < bound else []
            # After every case, since a limit may end it.
            write_results("step_cuda", {"config": WIDE, "cases": rows})
    print_table(rows)
    print("\n".join(low))
    return int(bool(low) and not is_quick)


@torch.no_grad()
def main() -> int:
    """Measure, print and write; exit status 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one sample each, held to no bound")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default cpu")
    options = parser.parse_args()
    quick = options.quick
    logging.set_verbosity_error()
    if options.device == "cuda":
        return on_card(quick)
    rows = []
    for name, runs in cases().items():
        ours, theirs = runs["ours"](), runs["diffusers"]()
        difference = max(float((a - b).abs().max()) for a, b in zip(ours, theirs))
        times = interleaved(runs, repeats=1 if quick else 15)
        found = ratio(times, "diffusers", "ours")
        rows.append({"case": name, **found, "bound": f">= {BOUNDS[name]:g}", "max difference": f"{difference:.1e}"})
    peaks = {who: measured(run).allocated for who, run in forwards(models(), image=True).items()}
    memory = peaks["ours"] / peaks["diffusers"]
    print_table(rows)
    print(f"memory of a forward pass, image to video: {memory:.3f} of diffusers', bound <= {MEMORY_BOUND}")
    payload = {"config": CONFIG, "cases": rows, "memory, image to video": memory}
    print("written to", write_results("step_quick" if quick else "step", payload))
    is_low = any(row["median"] < BOUNDS[row["case"]] for row in rows) or memory > MEMORY_BOUND
    return int(is_low and not quick)


if __name__ == "__main__":
    sys.exit(main())
