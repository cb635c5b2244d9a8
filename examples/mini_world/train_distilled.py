"""The distilled LoRA: few steps without guidance give what many guided steps give.

The guided model makes clips from noise that is kept, and the adapter learns the way from each noise to its clip at the noise
levels of the distilled schedule alone (rectified flow on pairs, arXiv 2209.03003). A second stage has no such clips: it learns
the way from enlarged latents of a clip, and new noise, to the clip at full size. Either way the adapter goes by itself up to
the step that it learns, for what it makes of noise in few steps is not what lies halfway between noise and clip.

Run as `python -m examples.mini_world.train_distilled --out FOLDER --checkpoint CHECKPOINT`.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor

from ltx2_diffusers import AutoencoderKLLTX2Video, LTX2DistilledPipeline, LTX2Pipeline
from ltx2_diffusers.atomic import complete_file
from ltx2_diffusers.conditioning import AudioPatchifier, Streams, VideoLatentPatchifier
from ltx2_diffusers.schedulers.sigmas import DISTILLED_SIGMAS, STAGE_2_DISTILLED_SIGMAS
from ltx2_diffusers.training.components import ConnectorsStep, FitOptions, TransformerStep, text_to_video_and_audio
from ltx2_diffusers.training.components.step import Losses
from ltx2_diffusers.training.objective.noise_levels import TorchDraws
from ltx2_diffusers.training.objective.streams import TrainedStream

from . import networks
from .clips import Parts, Size, encoded
from .drawing import FRAME_RATE
from .reading import judged_picture, see
from .scenes import Scene, prompts
from .stages import Phase, arguments, train
from .train_flow import JUDGED, judged, read

RANK = 8
TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "audio_ff.net.0.proj", "audio_ff.net.2"),
    *("proj_in", "proj_out", "time_embed.linear"),
)
# Of how many clips of each size the good ones are kept for the first stage, and how many of them are in a batch.
FIRST = {
    Size(25, 64, 64): (1536, 40),
    Size(17, 64, 64): (512, 64),
    Size(17, 64, 96): (256, 40),
    Size(25, 128, 128): (768, 24),
    Size(17, 128, 128): (384, 32),
}
# How many clips of each size there are for the second stage, and how many of them are in a batch.
SECOND = {Size(25, 128, 128): (1200, 24), Size(17, 128, 128): (600, 32), Size(17, 128, 192): (200, 20)}
# Batches come one after the other in this order: the stage, and the place in its list.
ORDER = (
    *((1, 0), (2, 0), (1, 3), (2, 0), (1, 1), (1, 0), (2, 1)),
    *((1, 3), (2, 0), (1, 2), (1, 0), (2, 2), (1, 4), (2, 1)),
)
LEVELS = {1: DISTILLED_SIGMAS[:-1], 2: STAGE_2_DISTILLED_SIGMAS[:-1]}
"""Noise levels of the steps of each stage."""
_PATCHES = Streams(VideoLatentPatchifier(1), AudioPatchifier())
TEACHER = {"guidance_scale": 5.0}
"""More guidance than by default: more of the clips show the shape that they should."""


@dataclass(frozen=True)
class Level:
    """Noise levels that are known, where they are wanted: what has to come from the CPU cannot be in a CUDA graph.

    Args:
        sigma: Of every sample `[B]`.
    """

    sigma: Tensor

    def sample(self, batch_size: int, num_tokens: int, draws: Any) -> Tensor:  # noqa: ARG002 (does not depend)
        """These levels."""
        return self.sigma


class KeptNoise(TorchDraws):
    """Noise of both streams in place of new one."""

    def __init__(self, noise: Streams[Tensor]) -> None:
        super().__init__(noise.video.device)
        self._noise = iter(noise)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """That of the next stream."""
        noise = next(self._noise)
        assert noise.shape == torch.Size(shape)
        return noise


class FewSteps(TransformerStep):
    """Asks for the way to a clip from where the steps before have come to.

    A batch holds what that of [`TransformerStep`] holds, `noise` and `audio_noise` `[B, tokens, features]`, and `sigmas`: the
    levels of the steps that are taken, and that of the step that is learned.
    """

    def flow_losses(self, batch: Mapping[str, Any], contexts: Streams[Tensor | None]) -> Losses:
        """The losses of the last of the steps."""
        noise = Streams(batch["noise"], batch["audio_noise"])
        with torch.no_grad():
            for sigma, following in pairwise(batch["sigmas"]):
                streams = self.noised(batch, noise, sigma)
                velocities = self.velocities(streams, contexts)
                noise = Streams(*(after_step(*both, sigma, following) for both in zip(noise, streams, velocities)))
        streams = self.noised(batch, noise, batch["sigmas"][-1])
        return self.losses(streams, self.velocities(streams, contexts))

    def noised(self, batch: Mapping[str, Any], noise: Streams[Tensor], sigma: float) -> Streams[Any]:
        """The clips of a batch with that much of this noise."""
        level = Level(noise.video.new_full((len(noise.video),), sigma))
        return self.strategy.prepare(batch, level, KeptNoise(noise), self.sizes)


def after_step(noise: Tensor, stream: TrainedStream, velocity: Tensor, sigma: float, following: float) -> Tensor:
    """The noise that would have made of the clip, at the following level, what an Euler step makes of the stream."""
    clean = noise - stream.velocity
    away = sigma * stream.velocity + (following - sigma) * velocity
    return clean + away / following


@torch.no_grad()
def pairs(few: LTX2DistilledPipeline, size: Size, count: int, seed: int, group: int = 48) -> dict[str, Any]:
    """Noise, and clips that the guided model makes of it, as batches of [`FewSteps`] hold them.

    Of `count` clips those are kept that show what they should.
    """
    pipe = LTX2Pipeline.from_pipe(few)
    pipe.set_progress_bar_config(disable=True)
    texts, scenes = zip(*prompts("train", count, seed, aspect=size.aspect))
    chance = torch.Generator().manual_seed(seed)
    sizes = pipe.sizes
    heard = sizes.audio_shape(count, size.num_frames / FRAME_RATE)
    tokens = (size.num_frames // 8 + 1) * (size.height // 32) * (size.width // 32)
    noise = torch.randn(count, tokens, sizes.channels, generator=chance).to(pipe.device)
    audio_noise = torch.randn(count, heard.frames, heard.channels * heard.mel_bins, generator=chance).to(pipe.device)
    video, audio = [], []
    for start in range(0, count, group):
        rows = slice(start, start + group)
        made = pipe(
            list(texts[rows]),
            height=size.height,
            width=size.width,
            num_frames=size.num_frames,
            frame_rate=FRAME_RATE,
            latents=noise[rows],
            audio_latents=pipe.audio_vae.denormalize_latents(audio_noise[rows]),
            output_type="latent",
            **TEACHER,
        )
        video.append(made.frames)
        audio.append(made.audio)
    latents = torch.cat(video)
    good = [row for row in range(count) if shows(pipe.vae, latents[row], scenes[row])]
    return {
        "prompts": [texts[row] for row in good],
        "noise": noise[good],
        "audio_noise": audio_noise[good],
        "latents": pipe.vae.normalize_latents(latents)[good],
        "audio_latents": pipe.audio_vae.normalize_latents(torch.cat(audio))[good],
    }


def shows(vae: AutoencoderKLLTX2Video, latents: Tensor, scene: Scene) -> bool:
    """Whether latents `[C, F, h, w]` are a clip of a scene."""
    frames = (vae.decode(latents[None]).sample[0].movedim(0, 1) / 2 + 0.5).clamp(0, 1)
    verdict = judged_picture(scene, see(frames))
    return all(verdict[name] for name in JUDGED if name in verdict)


@torch.no_grad()
def enlarged(pipe: LTX2DistilledPipeline, size: Size, count: int, seed: int, group: int = 24) -> dict[str, Any]:
    """Clips of scenes and, as `enlarged`, what the upsampler makes of the same clips at half the size, as tokens."""
    texts, scenes = zip(*prompts("train", count, seed, aspect=size.aspect))
    parts, vae = Parts(pipe.vae, pipe.audio_vae, pipe.vocoder), pipe.vae
    small = Size(size.num_frames, size.height // 2, size.width // 2)
    video, audio, large = [], [], []
    for start in range(0, count, group):
        some = scenes[start : start + group]
        latents, heard = encoded(parts, some, size)
        little = vae.denormalize_latents(encoded(parts, some, small)[0])
        video.append(latents)
        audio.append(heard)
        large.append(_PATCHES.video.patchify(vae.normalize_latents(pipe.latent_upsampler(little))))
    return {
        "prompts": list(texts),
        "latents": torch.cat(video),
        "audio_latents": torch.cat(audio),
        "enlarged": torch.cat(large),
    }


class Batches:
    """Batches of both stages, of clips that are made once and kept in files."""

    def __init__(self, folder: Path, few: LTX2DistilledPipeline, times: int = 1) -> None:
        self.pools: dict[tuple[int, int], tuple[dict[str, Any], int]] = {}
        # Making clips costs more than learning them.
        more = max(1, times // 4)
        for number, (size, (count, batch)) in enumerate(FIRST.items()):
            made = self._kept(folder / f"pairs{number}.pt", pairs, few, size, count * more, 1000 + number, 48 * times)
            self.pools[1, number] = made, batch * times
        for number, (size, (count, batch)) in enumerate(SECOND.items()):
            made = self._kept(folder / f"enlarged{number}.pt", enlarged, few, size, count * times, 2000 + number)
            self.pools[2, number] = made, batch * times

    @staticmethod
    def _kept(file: Path, make: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
        if not file.exists():
            with complete_file(file) as temporary:
                torch.save(make(*given), temporary)
        return torch.load(file, map_location="cpu", weights_only=True)

    def __call__(self, number: int) -> dict[str, Any]:
        """The batch of a step."""
        (stage, place), draw_from = ORDER[number % len(ORDER)], random.Random(f"distilled {number}")
        pool, count = self.pools[stage, place]
        rows, levels = draw_from.sample(range(len(pool["prompts"])), count), LEVELS[stage]
        if stage == 1:
            noise, audio_noise = pool["noise"][rows], pool["audio_noise"][rows]
        else:
            noise, audio_noise = self._renoised(pool, rows, levels[0], number)
        return {
            "prompts": [pool["prompts"][row] for row in rows],
            "noise": noise,
            "audio_noise": audio_noise,
            "latents": {"latents": pool["latents"][rows]},
            "audio_latents": {"latents": pool["audio_latents"][rows]},
            "sigmas": levels[: draw_from.randint(1, len(levels))],
        }

    @staticmethod
    def _renoised(pool: Mapping[str, Any], rows: Sequence[int], sigma: float, seed: int) -> tuple[Tensor, Tensor]:
        """New noise, and in that of the picture what makes of the clip, at the first level, its enlarged latents."""
        chance = torch.Generator().manual_seed(seed)
        large, clean = pool["enlarged"][rows], _PATCHES.video.patchify(pool["latents"][rows])
        sound = _PATCHES.audio.patchify(pool["audio_latents"][rows])
        noise, audio_noise = (torch.randn(one.shape, generator=chance) for one in (large, sound))
        return noise + (1 - sigma) / sigma * (large - clean), audio_noise


def main() -> None:
    """Make the pairs, train the adapter and write it."""
    parser = arguments(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the assembled checkpoint")
    parser.add_argument("--steps", type=int, default=800, help="steps before the rate falls")
    given = parser.parse_args()
    torch.manual_seed(0)
    few = LTX2DistilledPipeline.from_pretrained(given.checkpoint).to(given.place.device)
    few.set_progress_bar_config(disable=True)
    folder = given.out / "distilled"
    folder.mkdir(parents=True, exist_ok=True)
    pools = Batches(folder, few, given.place.times)
    for part in (few.transformer, few.connectors, few.text_encoder):
        part.requires_grad_(False)
    few.transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS)), "distilled")
    flow = FewSteps(few.transformer, few.sizes, text_to_video_and_audio())
    step = ConnectorsStep(few.connectors, flow, networks.TEXT_POSITIONS, few.text_encoder, few.tokenizer)

    batches = given.place.ahead(lambda number: read(step, pools(number)))
    graphs = given.place.device.type == "cuda"
    options = FitOptions("muon", betas=(0.95, 0.99), warmup_steps=50, ema_decay=0.99, cuda_graphs=graphs)
    phases = [
        Phase("learn", batches, given.steps, 1e-2, options, every=250),
        Phase("settle", batches, given.steps // 2, 1e-2, replace(options, schedule="linear", warmup_steps=0)),
    ]
    train(folder, step, phases, lambda: judged(few, 64, 2, 128, num_frames=25), "worst")
    LTX2Pipeline.save_lora_weights(
        given.out,
        get_peft_model_state_dict(few.transformer, adapter_name="distilled"),
        weight_name="distilled_lora.safetensors",
        base_model="ltx2-mini",
    )


if __name__ == "__main__":
    main()
