"""Clips of the world as files to train on: a video with sound, its caption beside it, and its outline if that is wanted.

Run as `python -m examples.mini_world.write_clips CLIPS --shapes star --count 64`.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from ltx2_diffusers.media.writing import write_video

from .drawing import FRAME_RATE, draw
from .scenes import NEW_SHAPE, SHAPES, Scene, caption, outlined, random_scene
from .sounding import sound

RATE = 48000
# The files are small; what they lose would be learned.
CRF = 6


def write_clip(
    folder: Path, name: str, scene: Scene, text: str, size: tuple[int, int, int], with_outline: bool
) -> None:
    """Write `NAME.mp4` and `NAME.txt`, and `NAME_reference.mp4`, of a scene.

    Args:
        folder: Where the files go.
        name: Their name.
        scene: What the clip shows.
        text: Its caption.
        size: Frames, height and width.
        with_outline: Whether the outline is written, too.
    """
    num_frames, height, width = size
    waveform = sound([scene], num_frames, RATE, width / height)[0]
    write_video(folder / f"{name}.mp4", _frames(scene, size), FRAME_RATE, waveform, RATE, crf=CRF)
    if with_outline:
        write_video(folder / f"{name}_reference.mp4", _frames(outlined(scene), size), FRAME_RATE, crf=CRF)
    (folder / f"{name}.txt").write_text(text)


def _frames(scene: Scene, size: tuple[int, int, int]):
    return draw([scene], *size)[0].transpose(0, 1) / 2 + 0.5


def write_clips(
    folder: Path,
    count: int,
    shapes: Sequence[str],
    split: str,
    size: tuple[int, int, int],
    with_outline: bool,
    seed: int,
    spread: float = 0.1,
) -> None:
    """Write random clips of a split; all their outcomes follow from the seed."""
    folder.mkdir(parents=True, exist_ok=True)
    draw_from = random.Random(f"clips {split} {seed}")
    for number in range(count):
        scene = random_scene(draw_from, split, size[2] / size[1], shapes=tuple(shapes), spread=spread)
        write_clip(folder, f"{number:04}", scene, caption(scene, draw_from), size, with_outline)


def whole(text: str) -> int:
    """A number of at least 1."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"has to be at least 1 but is {text}")
    return value


def part(text: str) -> float:
    """A number in [0, 1]."""
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"has to lie in [0, 1] but is {text}")
    return value


def main() -> None:
    """Write clips as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=whole, default=64)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=[*SHAPES, NEW_SHAPE])
    parser.add_argument("--split", default="train", choices=("train", "validation", "held_out"))
    parser.add_argument("--size", type=whole, nargs=3, default=(17, 128, 128), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    parser.add_argument("--outlines", action="store_true", help="write NAME_reference.mp4, the outline of every clip")
    parser.add_argument("--spread", type=part, default=0.1, help="part of the room that places are drawn from")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    size = tuple(given.size)
    write_clips(given.folder, given.count, given.shapes, given.split, size, given.outlines, given.seed, given.spread)


if __name__ == "__main__":
    main()
