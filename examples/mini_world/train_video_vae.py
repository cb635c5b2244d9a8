"""The video VAE: first pictures, then small clips, then large ones; then the encoder is kept and the decoder polished.

Run as `python -m examples.mini_world.train_video_vae --out FOLDER`.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ltx2_diffusers import AutoencoderKLLTX2Video
from ltx2_diffusers.training.components import (
    FitOptions,
    VideoVaeStep,
    VideoVaeWeights,
    calibrate_video_latents,
    spread_latents,
)

from .clips import Size, drawn
from .drawing import draw
from .networks import VIDEO_VAE
from .scenes import NEW_SHAPE, SHAPES, Scene, outlined, random_scene
from .stages import Phase, Place, Scores, arguments, train

# Sizes of clips, and how many make a batch; steps go through them in turn. A network that begins with clips learns nothing
# for a long time, and what it learns of small ones holds for large ones.
PICTURES = ((Size(1, 64, 64), 32),)
SMALL = (
    (Size(9, 64, 64), 8),
    (Size(1, 64, 64), 24),
    (Size(9, 64, 64), 8),
    (Size(1, 128, 128), 6),
    (Size(9, 64, 64), 8),
    (Size(17, 64, 64), 4),
    (Size(9, 64, 64), 8),
    (Size(9, 64, 96), 5),
)
LARGE = (
    (Size(9, 128, 128), 3),
    (Size(9, 64, 64), 6),
    (Size(9, 128, 128), 3),
    (Size(1, 128, 128), 8),
    (Size(9, 128, 128), 3),
    (Size(9, 64, 96), 4),
    (Size(17, 128, 128), 2),
    (Size(1, 64, 64), 20),
)
# Squares find out where things are, absolute differences and details where their edges are.
WEIGHTS = VideoVaeWeights(pixels=0.1, wavelets=0.1, squares=1.0)
LATENT_NOISE = 0.3
"""What the decoder learns to forgive, as part of the deviation of latents."""
OPTIONS = FitOptions(optimizer="muon", betas=(0.95, 0.99), warmup_steps=50, ema_decay=0.995, mixed_precision="bf16")


def varied_scene(draw_from: random.Random, aspect: float) -> Scene:
    """A scene of the training split; one in ten is an outline, one in ten stands anywhere at any angle."""
    scene = random_scene(draw_from, "train", aspect, shapes=(*SHAPES, NEW_SHAPE), spread=1)
    kind = draw_from.random()
    if kind < 0.1:
        return outlined(scene)
    if kind < 0.2:
        place = draw_from.uniform(0.1, aspect - 0.1), draw_from.uniform(0.1, 0.9)
        return replace(scene, turned=draw_from.random(), place=place, radius=draw_from.uniform(0.18, 0.32))
    return scene


def clips(name: object, size: Size, count: int, device: torch.device) -> Tensor:
    """Videos `[B, 3, F, H, W]` that follow from a name."""
    draw_from = random.Random(f"vae {name}")
    return drawn([varied_scene(draw_from, size.aspect) for _ in range(count)], size, device)


def batches(
    plan: Sequence[tuple[Size, int]], device: torch.device, times: int = 1
) -> Callable[[int], dict[str, Tensor]]:
    """Batches of the sizes of a plan in turn."""

    def batch(number: int) -> dict[str, Tensor]:
        size, count = plan[number % len(plan)]
        return {"pixels": clips(number, size, count * times, device)}

    return batch


@torch.no_grad()
def score(vae: AutoencoderKLLTX2Video, videos: dict[str, Tensor]) -> Scores:
    """PSNR in dB of reconstructed videos, by their names."""
    return {name: psnr(vae(video).sample, video) for name, video in videos.items()}


def psnr(made: Tensor, real: Tensor) -> float:
    """Mean over clips of the peak signal-to-noise ratio in dB of videos in [-1, 1]."""
    errors = ((made.clamp(-1, 1) - real) / 2).square().mean((1, 2, 3, 4))
    return (-10 * errors.log10()).mean().item()


@torch.no_grad()
def calibrate(vae: AutoencoderKLLTX2Video) -> None:
    """Measure the latents of scenes of the training split."""
    sizes = (Size(17, 64, 64), Size(17, 128, 128), Size(17, 64, 96), Size(33, 128, 128))
    draw_from = random.Random("calibrate")
    scenes = ([random_scene(draw_from, "train", size.aspect, spread=1) for _ in range(48)] for size in sizes)
    calibrate_video_latents(vae, (draw(group, *size) for size, group in zip(sizes, scenes)))


def train_all(out: Path, place: Place, videos: dict[str, Tensor]) -> AutoencoderKLLTX2Video:
    """The whole VAE, with the statistics of its latents."""
    torch.manual_seed(0)
    vae = AutoencoderKLLTX2Video(**VIDEO_VAE).to(place.device)
    spread_latents(vae, clips("first", Size(1, 64, 64), 128, place.device))
    # A GPU's time goes into more steps here: drawing takes as long as learning.
    pictures, small, large = (batches(plan, place.device) for plan in (PICTURES, SMALL, LARGE))
    phases = [
        Phase("pictures", pictures, 250, 2e-3, OPTIONS),
        Phase("small", small, 6000, 1e-3, OPTIONS, enough=19.5),
        Phase("large", large, 12000, 7e-4, OPTIONS, enough=24.0),
        Phase("settle", large, 2000, 7e-4, replace(OPTIONS, schedule="linear", warmup_steps=0)),
    ]
    train(out / "video_vae", VideoVaeStep(vae, WEIGHTS), phases, lambda: score(vae, videos), "psnr_128")
    calibrate(vae)
    return vae


def polish(out: Path, place: Place, vae: AutoencoderKLLTX2Video, videos: dict[str, Tensor], steps: int) -> None:
    """The decoder alone, on latents that miss a little, as those that a transformer makes do."""
    vae.encoder.requires_grad_(False)
    step = VideoVaeStep(vae, WEIGHTS, latent_noise=LATENT_NOISE)
    # Large clips, as many as fit beside each other.
    plan = [(size, max(1, count * place.times // 3)) for size, count in LARGE]
    phases = [
        Phase("polish", batches(plan, place.device), steps, 1e-3, OPTIONS),
        Phase("settle", batches(plan, place.device), steps, 1e-3, replace(OPTIONS, schedule="linear", warmup_steps=0)),
    ]
    train(out / "video_decoder", step, phases, lambda: score(vae, videos), "psnr_128")


def main() -> None:
    """Train until the scores are reached, measure the latents, polish the decoder."""
    parser = arguments(__doc__)
    parser.add_argument("--polish-steps", type=int, default=1500, help="steps of the decoder alone, twice")
    given = parser.parse_args()
    out, place = given.out, given.place
    draw_from = random.Random("vae validation")
    scenes = [random_scene(draw_from, "validation", spread=1) for _ in range(16)]
    videos = {f"psnr_{side}": drawn(scenes, Size(17, side, side), place.device) for side in (64, 128)}
    if (out / "vae").exists():
        vae = AutoencoderKLLTX2Video.from_pretrained(out / "vae").to(place.device)
    else:
        vae = train_all(out, place, videos)
        # From here on the transformer can be trained: latents stay what they are.
        vae.save_pretrained(out / "vae")
    polish(out, place, vae, videos, given.polish_steps)
    vae.save_pretrained(out / "vae")


if __name__ == "__main__":
    main()
