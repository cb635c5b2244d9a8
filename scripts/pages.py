"""What the README and the pages of the site hold, for the tests that run it and the script that draws its pictures."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from examples.mini_world.drawing import draw
from examples.mini_world.scenes import Scene, outlined
from examples.mini_world.sounding import sound
from ltx2_diffusers.media.writing import write_audio, write_video

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```(python|bash|sh)[^\n]*\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
_RATE = 24000
# Of clips: frames, height and width.
_SIZE = (25, 128, 128)
_SCENE = Scene("circle", "red", "blue", "right", radius=0.28, place=(0.5, 0.5), reach=0.38)


@dataclass(frozen=True)
class Page:
    """A page in Markdown.

    Args:
        path: Its file.
    """

    path: Path

    @property
    def name(self) -> str:
        """Its place in the repository."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def text(self) -> str:
        """All of it."""
        return self.path.read_text(encoding="utf-8")

    def blocks(self, kind: str) -> list[str]:
        """Its blocks of code of a kind: `"python"`, `"bash"`, or `"sh"` for what needs a server beside it."""
        return [code for found, code in _BLOCK.findall(self.text) if found == kind]


README = Page(ROOT / "README.md")
PAGES = [README, *(Page(path) for path in sorted((ROOT / "docs").rglob("*.md")))]


def page(name: str) -> Page:
    """The page of the site with a name such as `"tasks/retake.md"`."""
    return Page(ROOT / "docs" / name)


def write_media(folder: Path) -> None:
    """Write the pictures, clips and sounds that the pages name.

    They are a scene of the miniature's world as a clip with its tone, both of these alone, the scene's outline, its first
    and last picture, and a mask of the right half.
    """
    pixels, outline = (draw([scene], *_SIZE)[0].transpose(0, 1) / 2 + 0.5 for scene in (_SCENE, outlined(_SCENE)))
    tone = sound([_SCENE], _SIZE[0], _RATE)[0]
    write_video(folder / "clip.mp4", pixels, 24.0, tone, _RATE)
    write_video(folder / "silent.mp4", pixels, 24.0)
    write_video(folder / "outline.mp4", outline, 24.0)
    write_audio(folder / "tone.wav", tone, _RATE)
    for name, frame in (("first", pixels[0]), ("last", pixels[-1])):
        array = (frame.permute(1, 2, 0) * 255).round().byte().numpy()
        PIL.Image.fromarray(array).save(folder / f"{name}.png")
    mask = np.zeros(_SIZE[1:], np.uint8)
    mask[:, 64:] = 255
    PIL.Image.fromarray(mask).save(folder / "mask.png")
