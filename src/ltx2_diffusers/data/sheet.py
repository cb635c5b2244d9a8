"""A contact sheet: frames of many clips on one picture, with what they are.

Shapes: H and W rows and columns of pixels.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from ..atomic import complete_file

MAX_CARDS = 60
"""Most samples on a sheet."""
_COLUMNS, _FRAMES = 2, 3
_FRAME_WIDTH, _FRAME_HEIGHT, _GAP, _MARGIN = 256, 192, 6, 24
_NAME_SIZE, _TEXT_SIZE, _TITLE_SIZE, _LEADING = 19, 16, 26, 1.35
_CAPTION_LINES = 4
_GROUND, _CARD, _INK, _SOFT = "#f4f4f2", "#ffffff", "#111111", "#555555"
# Fonts with the letters of many languages, if the machine has one; the one that Pillow brings knows Latin letters only.
_FONTS = ("NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf", "arial.ttf")


@dataclass(frozen=True)
class Card:
    """One sample on the sheet.

    Args:
        name: Its name.
        caption: Its text; `None` if it is not known.
        facts: Size, rate and so on, in one line.
        frames: Some of its frames, at most three.
    """

    name: str
    caption: str | None
    facts: str
    frames: Sequence[PIL.Image.Image]


def draw_sheet(path: Path, cards: Sequence[Card], title: str) -> Path:
    """Draw a contact sheet in two columns, and return its path.

    Args:
        path: PNG file to write; it appears only when it is complete.
        cards: At most 60.
        title: Line above them.
    """
    drawn = [_draw_card(card) for card in cards]
    rows = [drawn[start : start + _COLUMNS] for start in range(0, len(drawn), _COLUMNS)]
    heights = [max(card.height for card in row) for row in rows]
    width = _MARGIN + _COLUMNS * (_card_width() + _MARGIN)
    top = 2 * _MARGIN + round(_TITLE_SIZE * _LEADING)
    sheet = PIL.Image.new("RGB", (width, top + sum(heights) + _MARGIN * len(rows)), _GROUND)
    PIL.ImageDraw.Draw(sheet).text((_MARGIN, _MARGIN), title, _INK, _font(_TITLE_SIZE))
    for row, height in zip(rows, heights):
        for column, card in enumerate(row):
            sheet.paste(card, (_MARGIN + column * (_card_width() + _MARGIN), top))
        top += height + _MARGIN
    with complete_file(path) as partial:
        sheet.save(partial, "PNG")
    return path


def _card_width() -> int:
    return _FRAMES * _FRAME_WIDTH + (_FRAMES + 1) * _GAP


def _draw_card(card: Card) -> PIL.Image.Image:
    """Frames side by side, and the text below."""
    inner = _card_width() - 2 * _GAP
    lines = [(_NAME_SIZE, _INK, _shortened(card.name, _NAME_SIZE, inner)), (_TEXT_SIZE, _SOFT, card.facts)]
    text = "(no caption known)" if card.caption is None else card.caption
    lines += [(_TEXT_SIZE, _INK, line) for line in _wrapped(text, _TEXT_SIZE, inner)]
    pictures = [fitted(frame) for frame in card.frames]
    picture_height = max(picture.height for picture in pictures)
    height = picture_height + 3 * _GAP + sum(round(size * _LEADING) for size, _, _ in lines)
    image = PIL.Image.new("RGB", (_card_width(), height), _CARD)
    for index, picture in enumerate(pictures):
        image.paste(picture, (_GAP + index * (_FRAME_WIDTH + _GAP), _GAP))
    draw, top = PIL.ImageDraw.Draw(image), picture_height + 2 * _GAP
    for size, ink, line in lines:
        draw.text((_GAP, top), line, ink, _font(size))
        top += round(size * _LEADING)
    return image


def fitted(frame: PIL.Image.Image) -> PIL.Image.Image:
    """A frame as large as its place."""
    scale = min(_FRAME_WIDTH / frame.width, _FRAME_HEIGHT / frame.height)
    size = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    return frame.resize(size, PIL.Image.Resampling.LANCZOS)


def _wrapped(text: str, size: int, width: int) -> list[str]:
    """The first lines of a text, the last one with an ellipsis if there is more."""
    lines: list[str] = []
    font = _font(size)
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            if line and font.getlength(f"{line} {word}") > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}".strip()
        lines.append(line)
    if len(lines) > _CAPTION_LINES:
        lines = [*lines[: _CAPTION_LINES - 1], f"{lines[_CAPTION_LINES - 1]} ..."]
    return [_shortened(line, size, width) for line in lines]


def _shortened(line: str, size: int, width: int) -> str:
    """A line that fits, cut in the middle if it has to be."""
    font = _font(size)
    kept = len(line)
    shown = line
    while font.getlength(shown) > width:
        kept -= 1
        shown = f"{line[: kept - kept // 2]} ... {line[len(line) - kept // 2 :]}"
    return shown


@cache
def _font(size: int) -> PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont:
    for name in _FONTS:
        with suppress(OSError):
            return PIL.ImageFont.truetype(name, size)
    return PIL.ImageFont.load_default(size)
