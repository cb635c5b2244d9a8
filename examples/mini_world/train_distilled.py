"""The distilled LoRA: few steps without guidance give what many guided steps give.

The guided model makes clips from noise that is kept. The adapter learns the straight way from each noise to its clip, at
the noise levels of the distilled schedule alone (rectified flow on pairs, arXiv 2209.03003). A second stage begins with noise
that its clip was not made from: some batches have new noise, and the levels of that stage.

Run as `python -m examples.mini_world.train_distilled --out FOLDER --checkpoint CHECKPOINT`.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor

from ltx2_diffusers import LTX2DistilledPipeline, LTX2Pipeline
from ltx2_diffusers.atomic import complete_file
from ltx2_diffusers.conditioning import Streams
from ltx2_diffusers.schedulers.sigmas import DISTILLED_SIGMAS, STAGE_2_DISTILLED_SIGMAS
from ltx2_diffusers.training.components import ConnectorsStep, FitOptions, TransformerStep, text_to_video_and_audio
from ltx2_diffusers.training.components.step import Losses
from ltx2_diffusers.training.objective.noise_levels import TorchDraws

from . import networks
from .clips import Size
from .drawing import FRAME_RATE
from .scenes import prompts
from .stages import Phase, arguments, train
from .train_flow import judged, read

RANK = 8
TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "audio_ff.net.0.proj", "audio_ff.net.2"),
    *("proj_in", "proj_out", "time_embed.linear"),
)
# How many clips of each size, and how many of them are in a batch. Stages make the small ones first, then the large ones.
SIZES = {
    Size(25, 64, 64): (1536, 40),
    Size(17, 64, 64): (512, 64),
    Size(17, 64, 96): (256, 40),
    Size(25, 128, 128): (768, 24),
    Size(17, 128, 128): (384, 32),
}
# Steps of one size come one after the other in this order, those of a second stage where it says so.
ORDER = (
    (0, False),
    (3, True),
    (1, False),
    (0, False),
    (3, False),
    (0, False),
    (4, True),
    (2, False),
    (0, False),
    (3, False),
)
TEACHER = {"guidance_scale": 5.0}
"""More guidance than by default: fewer of the clips show another shape than they should."""


@dataclass(frozen=True)
class ListedLevels:
    """The noise levels of a fixed schedule, all equally likely."""

    levels: tuple[float, ...]

    def sample(self, batch_size: int, num_tokens: int, draws: Any) -> Tensor:  # noqa: ARG002 (does not depend)
        """Noise levels `[B]`."""
        places = (draws.uniform((batch_size,)) * len(self.levels)).long()
        return _table(self.levels, places.device)[places]


@cache
def _table(levels: tuple[float, ...], device: torch.device) -> Tensor:
    """Kept where it is wanted: what has to come from the CPU cannot be in a CUDA graph."""
    return torch.tensor(levels, device=device)


FIRST_STAGE, SECOND_STAGE = (ListedLevels(levels[:-1]) for levels in (DISTILLED_SIGMAS, STAGE_2_DISTILLED_SIGMAS))


class KeptNoise(TorchDraws):
    """Noise of a batch in place of new one, and levels that are the same for both streams, as in generation."""

    def __init__(self, *noise: Tensor) -> None:
        super().__init__(noise[0].device)
        self._noise = iter(noise)
        self._levels = super().uniform((len(noise[0]),))

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Always the same `[B]`."""
        assert self._levels.shape == torch.Size(shape)
        return self._levels

    def normal(self, shape: Sequence[int]) -> Tensor:
        """That of the next stream."""
        noise = next(self._noise)
        assert noise.shape == torch.Size(shape)
        return noise


class StraightFlow(TransformerStep):
    """Asks for the straight way from noise to a clip.

    A batch holds what that of [`TransformerStep`] holds, `noise` and `audio_noise` `[B, tokens, features]`, and
    `second_stage`: whether its noise levels are those of the second stage.
    """

    def flow_losses(self, batch: Mapping[str, Any], contexts: Streams[Tensor | None]) -> Losses:
        """The losses at the levels of the batch's stage."""
        self.levels = SECOND_STAGE if batch["second_stage"] else FIRST_STAGE
        return super().flow_losses(batch, contexts)

    def draws(self, batch: Mapping[str, Any]) -> KeptNoise:
        """The noise of the batch."""
        return KeptNoise(batch["noise"], batch["audio_noise"])


@torch.no_grad()
def pairs(pipe: LTX2Pipeline, size: Size, count: int, seed: int, group: int = 48) -> dict[str, Any]:
    """Noise, and the clips that the guided model makes of it, as batches of [`StraightFlow`] hold them."""
    texts = [text for text, _ in prompts("train", count, seed, aspect=size.aspect)]
    chance = torch.Generator().manual_seed(seed)
    sizes = pipe.sizes
    heard = sizes.audio_shape(count, size.num_frames / FRAME_RATE)
    tokens = (size.num_frames // 8 + 1) * (size.height // 32) * (size.width // 32)
    noise = torch.randn(count, tokens, sizes.channels, generator=chance).to(pipe.device)
    audio_noise = torch.randn(count, heard.frames, heard.channels * heard.mel_bins, generator=chance).to(pipe.device)
    made = []
    for start in range(0, count, group):
        rows = slice(start, start + group)
        made.append(
            pipe(
                texts[rows],
                height=size.height,
                width=size.width,
                num_frames=size.num_frames,
                frame_rate=FRAME_RATE,
                latents=noise[rows],
                audio_latents=pipe.audio_vae.denormalize_latents(audio_noise[rows]),
                output_type="latent",
                **TEACHER,
            )
        )
    return {
        "prompts": texts,
        "noise": noise,
        "audio_noise": audio_noise,
        "latents": pipe.vae.normalize_latents(torch.cat([clip.frames for clip in made])),
        "audio_latents": pipe.audio_vae.normalize_latents(torch.cat([clip.audio for clip in made])),
    }


class Batches:
    """Batches of pairs, made once and kept in files."""

    def __init__(self, folder: Path, pipe: LTX2Pipeline, times: int = 1) -> None:
        self.pools = []
        # Making clips costs more than learning them.
        more = max(1, times // 4)
        for number, (size, (count, batch)) in enumerate(SIZES.items()):
            file = folder / f"pairs{number}.pt"
            if not file.exists():
                with complete_file(file) as temporary:
                    torch.save(pairs(pipe, size, count * more, 1000 + number, 48 * times), temporary)
            kept = torch.load(file, map_location="cpu", weights_only=True)
            self.pools.append((kept, batch * times))

    def __call__(self, number: int) -> dict[str, Any]:
        """The batch of a step."""
        which, second_stage = ORDER[number % len(ORDER)]
        pool, count = self.pools[which]
        rows = random.Random(f"distilled {number}").sample(range(len(pool["prompts"])), count)
        video, audio = pool["latents"][rows], pool["audio_latents"][rows]
        noise = [pool[name][rows] for name in ("noise", "audio_noise")]
        if second_stage:
            chance = torch.Generator().manual_seed(number)
            noise = [torch.randn(one.shape, generator=chance) for one in noise]
        return {
            "prompts": [pool["prompts"][row] for row in rows],
            "noise": noise[0],
            "audio_noise": noise[1],
            "latents": {"latents": video},
            "audio_latents": {"latents": audio},
            "second_stage": second_stage,
        }


def main() -> None:
    """Make the pairs, train the adapter and write it."""
    parser = arguments(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the assembled checkpoint")
    parser.add_argument("--steps", type=int, default=1600, help="steps before the rate falls")
    given = parser.parse_args()
    torch.manual_seed(0)
    few = LTX2DistilledPipeline.from_pretrained(given.checkpoint).to(given.place.device)
    pipe = LTX2Pipeline.from_pipe(few)
    for one in (few, pipe):
        one.set_progress_bar_config(disable=True)
    folder = given.out / "distilled"
    folder.mkdir(parents=True, exist_ok=True)
    pools = Batches(folder, pipe, given.place.times)
    for part in (pipe.transformer, pipe.connectors, pipe.text_encoder):
        part.requires_grad_(False)
    pipe.transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS)), "distilled")
    flow = StraightFlow(pipe.transformer, pipe.sizes, text_to_video_and_audio())
    step = ConnectorsStep(pipe.connectors, flow, networks.TEXT_POSITIONS, pipe.text_encoder, pipe.tokenizer)

    batches = given.place.ahead(lambda number: read(step, pools(number)))
    options = FitOptions(warmup_steps=50, ema_decay=0.99, cuda_graphs=given.place.device.type == "cuda")
    phases = [
        Phase("learn", batches, given.steps, 1e-3, options, every=250),
        Phase("settle", batches, given.steps // 2, 1e-3, replace(options, schedule="linear", warmup_steps=0)),
    ]
    train(folder, step, phases, lambda: judged(few, 64, 2, 128, num_frames=25), "worst")
    LTX2Pipeline.save_lora_weights(
        given.out,
        get_peft_model_state_dict(pipe.transformer, adapter_name="distilled"),
        weight_name="distilled_lora.safetensors",
    )


if __name__ == "__main__":
    main()
