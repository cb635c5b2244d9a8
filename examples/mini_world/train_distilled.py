"""The distilled LoRA: few steps without guidance give what many guided steps give.

The guided model makes clips from noise that is kept. The adapter learns the straight way from each noise to its clip, at
the noise levels of the distilled schedule alone (rectified flow on pairs, arXiv 2209.03003).

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

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.atomic import complete_file
from ltx2_diffusers.checkpoints.folder import new_scheduler
from ltx2_diffusers.schedulers.sigmas import DISTILLED_SIGMAS
from ltx2_diffusers.training.components import ConnectorsStep, FitOptions, TransformerStep, text_to_video_and_audio
from ltx2_diffusers.training.objective.noise_levels import TorchDraws

from . import networks
from .clips import Size
from .drawing import FRAME_RATE
from .scenes import prompts
from .stages import Phase, arguments, train
from .train_flow import UNGUIDED, judged, read

RANK = 8
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "audio_ff.net.0.proj", "audio_ff.net.2")
# How many clips of each size, and how many of them are in a batch.
SIZES = {
    Size(17, 64, 64): (768, 64),
    Size(25, 64, 64): (256, 40),
    Size(17, 128, 128): (512, 32),
    Size(17, 64, 96): (128, 40),
}


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


class KeptNoise(TorchDraws):
    """The noise that clips were made from, in place of new one."""

    def __init__(self, *noise: Tensor) -> None:
        super().__init__(noise[0].device)
        self._noise = iter(noise)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """That of the next stream."""
        noise = next(self._noise)
        assert noise.shape == torch.Size(shape)
        return noise


class StraightFlow(TransformerStep):
    """Asks for the straight way from the noise that a clip was made from to the clip.

    A batch holds what that of [`TransformerStep`] holds, and `noise` and `audio_noise` `[B, tokens, features]`.
    """

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
        # Every second one is of the first size.
        pool, count = self.pools[0 if number % 2 == 0 else 1 + number // 2 % (len(self.pools) - 1)]
        rows = random.Random(f"distilled {number}").sample(range(len(pool["prompts"])), count)
        video, audio = pool["latents"][rows], pool["audio_latents"][rows]
        return {
            "prompts": [pool["prompts"][row] for row in rows],
            "noise": pool["noise"][rows],
            "audio_noise": pool["audio_noise"][rows],
            "latents": {"latents": video},
            "audio_latents": {"latents": audio},
        }


def main() -> None:
    """Make the pairs, train the adapter and write it."""
    parser = arguments(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the assembled checkpoint")
    parser.add_argument("--steps", type=int, default=800, help="steps before the rate falls")
    given = parser.parse_args()
    torch.manual_seed(0)
    pipe = LTX2Pipeline.from_pretrained(given.checkpoint).to(given.place.device)
    pipe.set_progress_bar_config(disable=True)
    folder = given.out / "distilled"
    folder.mkdir(parents=True, exist_ok=True)
    pools = Batches(folder, pipe, given.place.times)
    # Pairs are made at the checkpoint's levels; those of the adapter are taken as they are.
    pipe.scheduler = new_scheduler(distilled=True)
    for part in (pipe.transformer, pipe.connectors, pipe.text_encoder):
        part.requires_grad_(False)
    pipe.transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS)), "distilled")
    levels = ListedLevels(DISTILLED_SIGMAS[:-1])
    flow = StraightFlow(pipe.transformer, pipe.sizes, text_to_video_and_audio(), levels)
    step = ConnectorsStep(pipe.connectors, flow, networks.TEXT_POSITIONS, pipe.text_encoder, pipe.tokenizer)

    batches = given.place.ahead(lambda number: read(step, pools(number)))
    options = FitOptions(warmup_steps=50, ema_decay=0.99, cuda_graphs=given.place.device.type == "cuda")
    phases = [
        Phase("learn", batches, given.steps, 1e-3, options, every=250),
        Phase("settle", batches, given.steps // 2, 1e-3, replace(options, schedule="linear", warmup_steps=0)),
    ]
    train(
        folder, step, phases, lambda: judged(pipe, 64, 2, 64, sigmas=list(DISTILLED_SIGMAS[:-1]), **UNGUIDED), "worst"
    )
    LTX2Pipeline.save_lora_weights(
        given.out,
        get_peft_model_state_dict(pipe.transformer, adapter_name="distilled"),
        weight_name="distilled_lora.safetensors",
        base_model="ltx2-mini",
    )


if __name__ == "__main__":
    main()
