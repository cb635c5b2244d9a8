"""The spatial upsampler: latents of a clip from those of the same clip at half the size.

Run as `python -m examples.mini_world.train_upsampler --out FOLDER` once the video VAE is there.
"""

import random
from dataclasses import replace
from typing import Any

import torch

from ltx2_diffusers import AutoencoderKLLTX2Video, LTX2LatentUpsamplerModel
from ltx2_diffusers.training.components import FitOptions, UpsamplerStep, latent_pair, save_networks

from . import networks
from .clips import Size, drawn
from .scenes import random_scene
from .stages import Phase, Scores, arguments, train
from .train_video_vae import psnr

# Size of the large clips, how many there are, and how many of them are in a batch.
SIZES = {Size(17, 128, 128): (1200, 24), Size(9, 128, 192): (300, 24), Size(33, 128, 128): (150, 12)}


class Pairs:
    """Latents of clips of the training split in both sizes."""

    def __init__(self, step: UpsamplerStep, times: int = 1) -> None:
        self.pools = [
            (self._pairs(step, size, count * times), batch * times) for size, (count, batch) in SIZES.items()
        ]

    @staticmethod
    def _pairs(step: UpsamplerStep, size: Size, count: int, group: int = 12) -> dict[str, torch.Tensor]:
        draw_from = random.Random(f"upsampler {size}")
        scenes = [random_scene(draw_from, "train", size.aspect, spread=1) for _ in range(count)]
        groups = (drawn(scenes[start : start + group], size, step.device) for start in range(0, count, group))
        pairs = [latent_pair(step.vae, step.upsampler, pixels) for pixels in groups]
        return {name: torch.cat([pair[name] for pair in pairs]) for name in ("small", "large")}

    def __call__(self, number: int) -> dict[str, Any]:
        """The batch of a step."""
        pairs, batch = self.pools[number % len(self.pools)]
        rows = random.Random(f"pairs {number}").sample(range(len(pairs["small"])), batch)
        return {name: latents[rows] for name, latents in pairs.items()}


@torch.no_grad()
def scores(step: UpsamplerStep, pixels: torch.Tensor) -> Scores:
    """PSNR in dB of validation clips that were encoded at half their size, enlarged and decoded."""
    small = latent_pair(step.vae, step.upsampler, pixels)["small"]
    return {"psnr": psnr(step.vae.decode(step.upsampler(small)).sample, pixels)}


def main() -> None:
    """Train for the number of steps that reaches the end of the curve."""
    given = arguments(__doc__).parse_args()
    out, place = given.out, given.place
    torch.manual_seed(0)
    vae = AutoencoderKLLTX2Video.from_pretrained(out / "vae").eval()
    step = UpsamplerStep(LTX2LatentUpsamplerModel(**networks.LATENT_UPSAMPLER), vae).to(place.device)
    draw_from = random.Random("upsampler validation")
    pixels = drawn(
        [random_scene(draw_from, "validation", spread=1) for _ in range(16)], Size(17, 128, 128), place.device
    )
    options = FitOptions(optimizer="muon", betas=(0.95, 0.99), warmup_steps=50, ema_decay=0.99)
    batches = Pairs(step, place.times)
    phases = [
        Phase("learn", batches, 1500, 1e-3, options, every=300),
        Phase("settle", batches, 500, 1e-3, replace(options, schedule="linear", warmup_steps=0)),
    ]
    train(out / "upsampler", step, phases, lambda: scores(step, pixels), "psnr")
    save_networks(step, out / "networks_upsampler")


if __name__ == "__main__":
    main()
