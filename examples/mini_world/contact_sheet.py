"""A picture of what the miniature makes of captions: frames in a row, and below them spectrograms of left and right.

Run `python -m examples.mini_world.contact_sheet -o sheet.png`. Captions name combinations that the miniature never saw. Time runs
from left to right in all rows alike; a frame stands over the sound that is heard while it is in the middle of its place.
Shapes: F frames, H and W rows and columns of pixels, N samples, M mel bins.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.checkpoints.packaged import checkpoint_path
from ltx2_diffusers.models.mel import log_mel_spectrogram

from .drawing import FRAME_RATE
from .scenes import MOTIONS, prompts

WIDTH, MARGIN, GAP = 900, 18, 3
FRAMES = 8
"""Frames of a clip that are shown."""
SOUND_HEIGHT, TEXT_SIZE, TEXT_HEIGHT, BLOCK_GAP = 48, 19, 30, 22
GROUND, INK, SOFT = "#ffffff", "#111111", "#777777"
MEL_BINS, RANGE_DB = 64, 70.0
LOUDNESS_COLOURS = ((0, 0, 8), (70, 12, 100), (185, 55, 85), (250, 150, 40), (252, 250, 190))
"""From silence to the loudest."""


@dataclass(frozen=True)
class Card:
    """A clip on the sheet.

    Args:
        text: Its caption.
        frames: `[F, 3, H, W]` in [0, 1], or `None` for a sound alone.
        audio: Waveform `[2, N]` as long as the frames, or `None` for silent ones.
        rate: Its samples in a second.
    """

    text: str
    frames: Tensor | None
    audio: Tensor | None
    rate: int

    @property
    def facts(self) -> str:
        """How long it lasts, and what its spectrograms show."""
        sound_s = 0.0 if self.audio is None else self.audio.shape[-1] / self.rate
        duration_s = sound_s if self.frames is None else len(self.frames) / FRAME_RATE
        heard = "" if self.audio is None else f", left and right up to {self.rate / 2000:g} kHz"
        return f"{duration_s:.2g} s{heard}"


def sheet(cards: Sequence[Card]) -> Image.Image:
    """All cards, one below the other, in a picture 900 pixels wide."""
    blocks = [block(card) for card in cards]
    height = 2 * MARGIN + sum(one.height for one in blocks) + BLOCK_GAP * (len(blocks) - 1)
    picture = Image.new("RGB", (WIDTH, height), GROUND)
    top = MARGIN
    for one in blocks:
        picture.paste(one, (MARGIN, top))
        top += one.height + BLOCK_GAP
    return picture


def block(card: Card) -> Image.Image:
    """Caption, frames and spectrogram of a clip."""
    width = WIDTH - 2 * MARGIN
    rows = [] if card.frames is None else [frame_row(card.frames, width)]
    rows += [] if card.audio is None else [spectrograms(card.audio, card.rate, width)]
    picture = Image.new("RGB", (width, TEXT_HEIGHT + sum(row.height + GAP for row in rows) - GAP), GROUND)
    write(picture, card.text, card.facts)
    top = TEXT_HEIGHT
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height + GAP
    return picture


def write(picture: Image.Image, text: str, facts: str) -> None:
    """Write the caption at the left and facts at the right of the first line; a long caption is cut."""
    brush, font, small = (
        ImageDraw.Draw(picture),
        *(ImageFont.load_default(size) for size in (TEXT_SIZE, TEXT_SIZE - 6)),
    )
    room = picture.width - small.getlength(facts) - MARGIN
    while font.getlength(text) > room:
        text = text.removesuffix(" ...").rpartition(" ")[0] + " ..."
    brush.text((0, 2), text, INK, font)
    brush.text((picture.width, 8), facts, SOFT, small, anchor="ra")


def frame_row(frames: Tensor, width: int) -> Image.Image:
    """Frames at equal distances of time, side by side."""
    places = [round(part * width / FRAMES) for part in range(FRAMES + 1)]
    side = places[1] - GAP
    row = Image.new("RGB", (width, round(side * frames.shape[2] / frames.shape[3])), GROUND)
    for number, (left, right) in enumerate(pairwise(places)):
        # The last place, too, is filled up to the edge.
        space = 0 if number == FRAMES - 1 else GAP
        frame = frames[int((number + 0.5) / FRAMES * len(frames))]
        row.paste(image_of(frame).resize((right - left - space, row.height), Image.Resampling.BICUBIC), (left, 0))
    return row


def image_of(frame: Tensor) -> Image.Image:
    """An image of `[3, H, W]` in [0, 1]."""
    return Image.fromarray((frame.clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy())


def spectrograms(audio: Tensor, rate: int, width: int) -> Image.Image:
    """Loudness of a waveform `[2, N]` by time, to the right, and pitch, upwards: the left side's above the right side's."""
    # Windows of 20 ms show a click as a line, and hops of a pixel keep it sharp.
    window, hop = 2 ** round(math.log2(0.02 * rate)), max(1, round(audio.shape[-1] / width))
    mel = log_mel_spectrogram(audio[None].float().cpu(), rate, MEL_BINS, hop, n_fft=window)[0]
    level = mel * (20 / math.log(10))
    part = ((level - level.max()) / RANGE_DB + 1).clamp(0, 1).transpose(1, 2).flip(1)
    stops = torch.tensor(LOUDNESS_COLOURS, dtype=torch.float32)
    place = part * (len(stops) - 1)
    first = place.long().clamp(max=len(stops) - 2)
    colours = torch.lerp(stops[first], stops[first + 1], (place - first)[..., None]).round().byte()
    picture = Image.new("RGB", (width, 2 * SOUND_HEIGHT + GAP), GROUND)
    for number, side in enumerate(colours.numpy()):
        sized = Image.fromarray(side).resize((width, SOUND_HEIGHT), Image.Resampling.BILINEAR)
        picture.paste(sized, (0, number * (SOUND_HEIGHT + GAP)))
    return picture


def generated(checkpoint: Path, texts: Sequence[str], seed: int, **call: int) -> list[Card]:
    """What a checkpoint makes of captions."""
    pipeline = LTX2Pipeline.from_pretrained(checkpoint, dtype=torch.float32)
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(texts))]
    output = pipeline(list(texts), generator=generators, output_type="pt", **call)
    return [Card(*one, output.sampling_rate) for one in zip(texts, output.frames, output.audio)]


def captions(split: str, seed: int) -> list[str]:
    """A caption for every motion, with combinations of a split."""
    return [text for motion in MOTIONS for text, _ in prompts(split, 1, seed + MOTIONS.index(motion), motion=motion)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate clips and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("sheet.png"), help="PNG file (default sheet.png)")
    parser.add_argument("--checkpoint", default="ltx2-mini", help="packaged checkpoint or folder (default ltx2-mini)")
    parser.add_argument(
        "--prompt", action="append", help="caption, once or often (default: held-out ones, all motions)"
    )
    parser.add_argument("--count", type=int, help="take the first captions only")
    parser.add_argument("--seed", type=int, default=0, help="of captions and noise (default 0)")
    parser.add_argument("--num-frames", type=int, default=33, help="8 k + 1 (default 33)")
    parser.add_argument("--size", type=int, nargs=2, default=(128, 128), metavar=("W", "H"), help="default 128 128")
    parser.add_argument("--steps", type=int, help="denoising steps (default the checkpoint's)")
    options = parser.parse_args(arguments)
    texts = (options.prompt or captions("held_out", options.seed))[: options.count]
    width, height = options.size
    call = {"width": width, "height": height, "num_frames": options.num_frames}
    call |= {"num_inference_steps": options.steps} if options.steps else {}
    sheet(generated(checkpoint_path(options.checkpoint), texts, options.seed, **call)).save(options.output)
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
