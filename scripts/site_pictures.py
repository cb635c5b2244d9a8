"""The pictures of the site: the snippets of its pages are run, and what they make is drawn.

Run `python -m scripts.site_pictures`, or with names of pictures for some of them. Whoever changes a snippet of `docs/tasks/`
runs it and looks at the picture. `page` is the page of `ltx2 serve`, in a browser.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import PIL.Image

from benchmarks.serving_load import Server
from examples.mini_world.contact_sheet import Card, sheet
from ltx2_diffusers.atomic import complete_file
from ltx2_diffusers.media.reading import probe, read_audio, read_video
from scripts.browser import open_browser
from scripts.pages import ROOT, page, write_media

_QUALITY = 80
SCREEN = "page"
"""Name of the picture of the server's page."""
_SCREEN_SIZE = {"width": 1240, "height": 800}
PICTURES = {
    "text_to_video": (
        "tasks/text_to_video.md",
        {"a red circle bounces on a blue background": "out/text_to_video.mp4"},
    ),
    "pictures": (
        "tasks/pictures.md",
        {"the first frame is given": "out/first_frame.mp4", "the first and the last": "out/first_and_last.mp4"},
    ),
    "two_stages": ("tasks/two_stages.md", {"a purple cross turns on a white background": "out/two_stages.mp4"}),
    "distilled": ("tasks/distilled.md", {"a green triangle moves up on a yellow background": "out/distilled.mp4"}),
    "audio_to_video": ("tasks/audio_to_video.md", {"pictures for a given sound": "out/to_a_sound.mp4"}),
    "video_to_audio": ("tasks/sound.md", {"a sound for given pictures": "out/heard.mp4"}),
    "text_to_audio": ("tasks/sound.md", {"a red circle bounces on a blue background": "out/alone.wav"}),
    "retake": (
        "tasks/retake.md",
        {
            "given": "clip.mp4",
            "made anew from 0.3 s to 0.7 s": "out/retaken.mp4",
            "the same, in the right half": "out/retaken_region.mp4",
        },
    ),
    "extend": ("tasks/extend.md", {"a clip and two parts more": "out/extended.mp4"}),
    "ic_lora": ("tasks/ic_lora.md", {"reference": "outline.mp4", "made after it": "out/filled.mp4"}),
    "combined": ("tasks/index.md", {"first and last picture, sound and outline are given": "out/combined.mp4"}),
}
"""Name of a picture: the page whose snippets make its clips, and these by their captions."""


def card(text: str, file: Path) -> Card:
    """A clip, or a sound alone, from its file."""
    sound, rate = read_audio(file) or (None, 0)
    frames = read_video(file).movedim(-1, 1) / 255 if probe(file).num_frames else None
    return Card(text, frames, None if sound is None else sound[0].expand(2, -1), rate)


def draw(names: Sequence[str], images: Path) -> None:
    """Run the snippets that pictures show, each page's once, and write the pictures."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_media(Path(folder))
        for place in dict.fromkeys(PICTURES[name][0] for name in names):
            for code in page(place).blocks("python"):
                exec(compile(code, place, "exec"), {})
        for name in names:
            cards = [card(text, Path(folder, file)) for text, file in PICTURES[name][1].items()]
            _write(sheet(cards), images / f"{name}.webp")


def draw_screen(images: Path) -> None:
    """Make two clips by the page of a server, and write what is seen then."""
    texts = ("a green square turns on a white background", "a red circle bounces on a blue background")
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        server = Server(Path(folder, "data"), "--grace", "1")
        try:
            screen = browser.new_page(viewport=_SCREEN_SIZE)
            screen.goto(f"{server.url}/")
            for count, text in enumerate(texts, start=1):
                screen.get_by_label("Prompt", exact=True).fill(text)
                screen.get_by_label("Seed", exact=True).fill("7")
                screen.get_by_role("button", name="Generate").click()
                screen.locator("#history canvas").nth(count - 1).wait_for(timeout=300_000)
            # Resolved when the frame is there.
            screen.get_by_label("the result").evaluate(
                "player => new Promise((done) => { player.pause(); player.onseeked = done; player.currentTime = 0.2; })"
            )
            screen.evaluate("scrollTo(0, 0)")
            seen = PIL.Image.open(io.BytesIO(screen.screenshot()))
        finally:
            server.stop()
    _write(seen.convert("RGB"), images / f"{SCREEN}.webp")


def _write(picture: PIL.Image.Image, place: Path) -> None:
    with complete_file(place) as path:
        picture.save(path, format="WEBP", quality=_QUALITY, method=6)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw pictures into `docs/images`."""
    known = [*PICTURES, SCREEN]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default all: {', '.join(known)}")
    names = parser.parse_args(arguments).names or known
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no picture {unknown[0]!r}; there are {', '.join(known)}")
    images = ROOT / "docs" / "images"
    draw([name for name in names if name != SCREEN], images)
    if SCREEN in names:
        draw_screen(images)
    return 0


if __name__ == "__main__":
    sys.exit(main())
