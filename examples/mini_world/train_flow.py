"""The transformer, its connectors and the language model, trained together from nothing on latents of both autoencoders.

Run as `python -m examples.mini_world.train_flow --out FOLDER` once the autoencoders are there.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ltx2_diffusers import LTX2Pipeline, LTX2Scheduler, LTX2TextConnectors, LTX2VideoTransformer3DModel
from ltx2_diffusers.checkpoints.folder import new_scheduler
from ltx2_diffusers.conditioning import Streams
from ltx2_diffusers.pipelines.plan import ModelSizes
from ltx2_diffusers.training.components import (
    ConnectorsStep,
    FitOptions,
    TransformerStep,
    initialise_transformer,
    save_networks,
)
from ltx2_diffusers.training.objective.noise_levels import Draws
from ltx2_diffusers.training.objective.strategies import MaskedStrategy, OutsideStretch, Prefix, Role

from . import networks
from .clips import Parts, Size, kept_pool
from .drawing import FRAME_RATE
from .networks import SHIFT
from .reading import judge
from .scenes import prompts
from .stages import Phase, Place, Scores, arguments, train

UNGUIDED = {
    "guidance_scale": 1.0,
    "audio_guidance_scale": 1.0,
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
}
JUDGED = ("shape", "colour", "background", "direction", "pitch")

CAPTION_TOKENS = 24
"""At least as many as a caption has."""

# How many clips of each size, and how many of them are in a batch.
SIZES = {
    Size(17, 128, 128): (1600, 32),
    Size(25, 128, 128): (800, 24),
    Size(49, 128, 128): (250, 12),
    Size(17, 128, 192): (300, 20),
    Size(17, 64, 64): (1200, 64),
    Size(49, 64, 64): (400, 32),
    Size(25, 64, 96): (300, 40),
}
# Steps of one size come one after the other in this order.
ORDER = (1, 0, 4, 1, 0, 3, 1, 5, 0, 1, 2, 6)
ISOLATED_EVERY = 7
"""One of so many batches has streams that do not attend to each other: guidance by modality compares with them."""


@dataclass(frozen=True)
class ManyHighLevels:
    """Noise levels whose logits are normal, most of them high, and levels that are all equally likely.

    The many channels of a clip's latents say the same few things, so that what is where is settled while a clip is nearly
    all noise: with the levels of the published models, which have a hundred times as many tokens, it would hardly be learned.
    What a shape looks like is settled at low levels, which high ones alone would leave out.

    Args:
        mean: Of the normal logits.
        std: Of the normal logits.
        even: Share of the levels that are equally likely.
    """

    mean: float = SHIFT
    std: float = 1.6
    even: float = 0.5

    def sample(self, batch_size: int, num_tokens: int, draws: Draws) -> torch.Tensor:  # noqa: ARG002 (does not depend)
        """Noise levels `[B]`."""
        high = torch.sigmoid(self.mean + self.std * draws.normal((batch_size,)))
        return torch.where(draws.uniform((batch_size,)) < self.even, draws.uniform((batch_size,)), high)


def strategy() -> MaskedStrategy:
    """Both streams are made; some clips show their first frame, their beginning or what surrounds a stretch of time."""
    stretch = OutsideStretch(0.08, (0.3, 0.7))
    video = Role("latents", rules=(Prefix(0.15, optional=True), Prefix(0.08, boundary=2, optional=True), stretch))
    return MaskedStrategy(None, Streams(video, Role("audio_latents", rules=(stretch,))))


def fresh_step(sizes: ModelSizes) -> ConnectorsStep:
    """Networks of the transformer's side that know nothing yet."""
    torch.manual_seed(0)
    tokenizer = networks.tokenizer()
    transformer = LTX2VideoTransformer3DModel(**networks.TRANSFORMER)
    initialise_transformer(transformer)
    flow = TransformerStep(transformer, sizes, strategy(), ManyHighLevels())
    connectors = LTX2TextConnectors(**networks.CONNECTORS)
    encoder = networks.text_encoder(len(tokenizer))
    return ConnectorsStep(connectors, flow, networks.TEXT_POSITIONS, encoder, tokenizer)


def pipeline(step: ConnectorsStep, parts: Parts) -> LTX2Pipeline:
    """What generates with the networks of a step."""
    return LTX2Pipeline(
        LTX2Scheduler.from_config(new_scheduler(distilled=False).config, base_shift=SHIFT, max_shift=SHIFT),
        parts.vae,
        parts.audio_vae,
        step.text_encoder,
        step.tokenizer,
        step.connectors,
        step.flow.model.transformer,
        parts.vocoder,
    )


def scores(step: ConnectorsStep, parts: Parts, count: int) -> Scores:
    """Shares of validation prompts whose clips show, and sound, what they say."""
    pipe = pipeline(step, parts)
    pipe.set_progress_bar_config(disable=True)
    guided = UNGUIDED | {"guidance_scale": 3.0, "audio_guidance_scale": 3.0}
    return judged(pipe, count, 1, 128, num_inference_steps=16, **guided)


def judged(pipe: LTX2Pipeline, count: int, seed: int, side: int, **call: Any) -> Scores:
    """Share of validation clips that show, and sound, what their prompts say: of each kind, the worst and the mean."""
    texts, scenes = zip(*prompts("validation", count, seed))
    chance = torch.Generator().manual_seed(0)
    size = {"height": side, "width": side, "num_frames": 17, "frame_rate": FRAME_RATE}
    made = pipe(list(texts), generator=chance, output_type="pt", **(size | call))
    rate = pipe.vocoder.config.output_sampling_rate
    found = [judge(scene, frames, sound, rate) for scene, frames, sound in zip(scenes, made.frames, made.audio)]
    right = {name: sum(one[name] for one in found) / count for name in JUDGED}
    return {"worst": min(right.values()), "mean": sum(right.values()) / len(right)} | right


def read(step: ConnectorsStep, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with tokens in place of texts, as many in every batch: all of it is tensors of few shapes."""
    rest = {name: value for name, value in batch.items() if name != "prompts"}
    return rest | step.tokens(batch["prompts"], CAPTION_TOKENS)


class Batches:
    """Batches of clips whose latents are made once and kept, in an order that follows from the step's number."""

    def __init__(self, folder: Path, parts: Parts, times: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.counts = [batch * times for _, batch in SIZES.values()]
        self.pools = [
            kept_pool(folder / f"pool{number}.pt", parts, size, count * times)
            for number, (size, (count, _)) in enumerate(SIZES.items())
        ]

    def __call__(self, number: int) -> dict[str, Any]:
        """The batch of a step."""
        which, draw_from = ORDER[number % len(ORDER)], random.Random(f"flow {number}")
        pool = self.pools[which]
        batch = pool.batch(draw_from.sample(range(len(pool.scenes)), self.counts[which]), draw_from)
        return batch | {"isolated": number % ISOLATED_EVERY == 0}


def main() -> None:
    """Train until the score is reached."""
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=6000, help="most steps before the rate falls")
    given = parser.parse_args()
    place: Place = given.place
    parts = Parts.load(given.out, place.device)
    step = fresh_step(parts.sizes).to(place.device)
    # Muon learns from one step what AdamW learns from several.
    graphs = place.device.type == "cuda"
    options = FitOptions("muon", betas=(0.95, 0.99), warmup_steps=50, ema_decay=0.995, cuda_graphs=graphs)
    pools = Batches(given.out / "flow", parts, place.times)

    batches = place.ahead(lambda number: read(step, pools(number)))
    phases = [
        Phase("learn", batches, given.steps, 1e-2, options, every=1000, enough=0.95),
        Phase("settle", batches, given.steps // 3, 1e-2, replace(options, schedule="linear", warmup_steps=0)),
    ]
    train(given.out / "flow", step, phases, lambda: scores(step, parts, 64), "worst")
    save_networks(step, given.out / "networks")


if __name__ == "__main__":
    main()
