"""References made from clips: edges, and depth, poses or anything else by a model.

A reference has the rate, the size and as many frames as its clip, beside which it lies.

Shapes: F frames, H and W rows and columns of pixels.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch

from ..atomic import complete_file
from ..checks import check_at_least_one
from ..extras import library
from ..media.images import still_picture
from ..media.reading import iterate_video, probe
from ..media.writing import VIDEO_SUFFIXES, write_video
from .metadata import read_text, text_beside
from .tables import (
    CAPTION_COLUMN,
    DATASET_FILE,
    MEDIA_COLUMN,
    MEDIA_COLUMNS,
    MEDIA_SUFFIXES,
    REFERENCE_COLUMN,
    REFERENCE_ENDING,
    TABLE_SUFFIXES,
    Row,
    column_of,
    dataset_file,
    media_files,
    media_of,
    read_rows,
    relative_name,
    write_rows,
)

# Thresholds of Canny's method, those of the Lightricks trainer.
_WEAK, _STRONG = 100, 200
# Lines have to stay sharp.
_CRF = 12
# Models whose output is a distance and not its inverse, even if their configuration does not say so.
_METRIC_MODELS = ("zoedepth", "depth_pro")


class ReferenceMaker(Protocol):
    """Something that draws references.

    With a method `look_at(pieces)`, that is called first for every clip, with an iterator over all its frames `[F, H, W, 3]`.
    """

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Draw consecutive frames of a clip.

        Args:
            frames: Bytes `[F, H, W, 3]`.

        Returns:
            Bytes `[F, H, W, 3]` of the same shape.
        """


@dataclass
class ReferenceReport:
    """Which references were made.

    Args:
        made: New references.
        kept: References that were there already.
        unreadable: Clips that cannot be read, with the reasons.
        varying: Clips whose rate varies: their references have the average rate, and fit them at a constant one.
        table: Dataset file that names them; `None` for a single clip and for clips with texts beside them.
    """

    made: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)
    varying: list[Path] = field(default_factory=list)
    table: Path | None = None


def edges(frames: np.ndarray) -> np.ndarray:
    """The edges of pictures by Canny's method with thresholds 100 and 200, white on black.

    Args:
        frames: Bytes `[F, H, W, 3]`.

    Returns:
        Bytes `[F, H, W, 3]`, each 0 or 255.
    """
    cv2 = library("cv2", "finding edges")
    drawn = [cv2.Canny(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), _WEAK, _STRONG) for frame in frames]
    return np.repeat(np.stack(drawn)[..., None], 3, axis=-1)


class DepthMaker:
    """A depth model of transformers: near is white, far is black, by the nearest and the farthest point of a clip.

    Args:
        model: Model for depth estimation.
        processor: What makes its inputs.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model.eval()
        self.processor = processor
        kind = getattr(model.config, "depth_estimation_type", None)
        self.is_metric = kind == "metric" or (kind is None and model.config.model_type in _METRIC_MODELS)
        self.range = 0.0, 1.0

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, device: str | torch.device = "cpu") -> "DepthMaker":
        """Load a model.

        Args:
            source: Folder or Hub id of a model for depth estimation, such as Depth Anything or DPT.
            device: Where to compute, default `"cpu"`.

        Raises:
            ValueError: If there is no such model.
        """
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        try:
            model = AutoModelForDepthEstimation.from_pretrained(source)
            processor = AutoImageProcessor.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ValueError(f"{str(source)!r} cannot be loaded as a depth model: {error}") from error
        return cls(model.to(device), processor)

    def look_at(self, pieces: Iterator[np.ndarray]) -> None:
        """Find the nearest and the farthest point of a clip, so that its brightness does not flicker."""
        ends = [nearness.aminmax() for nearness in map(self._nearness, pieces)]
        self.range = min(float(low) for low, _ in ends), max(float(high) for _, high in ends)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Draw consecutive frames of a clip; see [`ReferenceMaker`]."""
        low, high = self.range
        scaled = (self._nearness(frames) - low) / max(high - low, torch.finfo(torch.float32).eps)
        size = frames.shape[1:3]
        scaled = torch.nn.functional.interpolate(scaled[:, None], size, mode="bicubic", align_corners=False)
        grey = (scaled[:, 0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        return np.repeat(grey[..., None], 3, axis=-1)

    @torch.no_grad()
    def _nearness(self, frames: np.ndarray) -> torch.Tensor:
        """Float32 `[F, h, w]`, the larger the nearer, of bytes `[F, H, W, 3]`."""
        shown = []
        for frame in frames:
            pixels = self.processor(images=PIL.Image.fromarray(frame), return_tensors="pt").to(self.model.device)
            shown.append(self.model(**pixels).predicted_depth.float())
        depth = torch.cat(shown)
        return -depth if self.is_metric else depth


def reference_file(media: Path) -> Path:
    """Where the reference of a clip lies: beside it, as `<stem>_reference`, in a format that can be written."""
    written = (*VIDEO_SUFFIXES, ".png")
    picture = media.suffix.lower() in (".jpg", ".jpeg")
    suffix = media.suffix if media.suffix.lower() in written else ".png" if picture else ".mp4"
    return media.with_name(f"{media.stem}{REFERENCE_ENDING}{suffix}")


def make_reference(media: Path, output: Path, maker: ReferenceMaker, batch_size: int = 100) -> bool:
    """Draw the reference of one clip, a few frames at a time.

    The last row or column of an odd side of a video is left out, since H.264 has none.

    Args:
        media: Clip or picture.
        output: File to write, with the clip's own frame rate; it appears only when it is complete.
        maker: What draws.
        batch_size: Frames that it is given at a time, default 100.

    Returns:
        Whether the frames of both belong together one by one. If the rate of a clip varies, the reference has its average
        rate, and they belong together by their times.

    Raises:
        FileNotFoundError, ValueError: If the clip cannot be read.
        RuntimeError: If the maker returns anything but bytes of the same shape.
    """
    picture = still_picture(media)
    if picture is not None:
        frame = np.asarray(picture)[None]
        _look(maker, lambda: iter([frame]))
        with complete_file(output) as partial:
            PIL.Image.fromarray(_drawn(maker, frame)[0]).save(partial)
        return True
    info = probe(media)
    if info.frame_rate is None:
        raise ValueError(f"{str(media)!r} has no video stream, so no reference can be drawn")
    rate = None if info.constant_rate else info.frame_rate

    def pieces() -> Iterator[np.ndarray]:
        frames = iterate_video(media, frame_rate=rate)
        while piece := list(islice(frames, batch_size)):
            yield np.stack(piece)[:, : len(piece[0]) & ~1, : len(piece[0][0]) & ~1]

    _look(maker, pieces)
    write_video(output, (_drawn(maker, piece) for piece in pieces()), info.frame_rate, crf=_CRF)
    return info.constant_rate


def make_references(
    source: Path,
    maker: ReferenceMaker,
    output: Path | None = None,
    column: str | None = None,
    batch_size: int = 100,
    override: bool = False,
    suffixes: Sequence[str] | None = None,
    on_file: Callable[[Path], None] = lambda _path: None,
) -> ReferenceReport:
    """Draw references of all clips of a dataset, and name them in its file under `reference_path`.

    Args:
        source: A dataset file; a folder with one; a folder of clips, for which `dataset.json` is written unless it holds
            captions as texts beside its clips; or one clip. Where no file is written, `output` may name one.
        maker: What draws.
        output: Dataset file to write; `None` for the one that was read.
        column: Column that names the clips; `None` for `media_path`, `video` or `file_name`.
        batch_size: As in [`make_reference`].
        override: Whether references that are there are drawn anew. Default false.
        suffixes: Endings of the clips that are taken from a folder; `None` for all kinds.
        on_file: Called after each clip.

    Raises:
        FileNotFoundError, ValueError: If the dataset cannot be read, before anything is drawn. Clips that cannot be read
            are listed in the report, and their entries stay as they are.
    """
    check_at_least_one(batch_size=batch_size)
    place, target, rows, column = _entries(source, output, column, suffixes)
    clips = [media_of(row, column, place) for row in rows]
    _check_apart(clips)
    report = ReferenceReport(table=target)
    for row, media in zip(rows, clips):
        reference = reference_file(media)
        try:
            if reference.is_file() and not override:
                report.kept.append(reference)
            else:
                if not make_reference(media, reference, maker, batch_size):
                    report.varying.append(media)
                report.made.append(reference)
            row[REFERENCE_COLUMN] = relative_name(reference, target or place)
        except (ValueError, OSError) as error:
            report.unreadable[media] = str(error)
        on_file(media)
    if target is not None:
        for row, media in zip(rows, clips) if target != place else ():
            row[column] = relative_name(media, target)
        write_rows(target, rows)
    return report


def _entries(
    source: Path, output: Path | None, column: str | None, suffixes: Sequence[str] | None
) -> tuple[Path, Path | None, list[Row], str]:
    """What the names in the rows are relative to, the dataset file to write, the rows, and the column of the clips."""
    table = dataset_file(source) if source.is_dir() else source if source.suffix.lower() in TABLE_SUFFIXES else None
    if table is not None:
        rows = read_rows(table)
        return table, output or table, rows, column_of(rows, MEDIA_COLUMNS, table, column)
    if column is not None:
        raise ValueError(f"{str(source)!r} is no dataset file, so it has no column {column!r}; leave it out")
    if source.is_dir():
        files, place = media_files(source, suffixes or MEDIA_SUFFIXES, recursive=True), source / DATASET_FILE
        if not files:
            raise ValueError(f"{str(source)!r} holds no clips")
        # Beside texts, references are found by their names; a dataset file would take the place of the texts.
        target = None if any(map(text_beside, files)) else place
    else:
        files, place, target = [source], source, None
    return place, output or target, [_row(file, place) for file in files], MEDIA_COLUMN


def _row(media: Path, place: Path) -> Row:
    """What a dataset file says of a clip before it names its reference."""
    text = text_beside(media)
    caption = {} if text is None else {CAPTION_COLUMN: read_text(text)}
    return {MEDIA_COLUMN: relative_name(media, place), **caption}


def _check_apart(clips: Sequence[Path]) -> None:
    """Raise `ValueError` if two clips would have the same reference."""
    owners: dict[Path, Path] = {}
    for media in clips:
        first = owners.setdefault(reference_file(media), media)
        if first != media:
            raise ValueError(
                f"{str(first)!r} and {str(media)!r} would both have the reference {reference_file(media).name!r}; rename one"
            )


def _look(maker: ReferenceMaker, pieces: Callable[[], Iterator[np.ndarray]]) -> None:
    """Let a maker that wants it see a clip as a whole."""
    look_at = getattr(maker, "look_at", None)
    if look_at is not None:
        look_at(pieces())


def _drawn(maker: ReferenceMaker, frames: np.ndarray) -> np.ndarray:
    """What a maker draws, which has to be bytes of the same shape.

    Raises:
        RuntimeError: If it is not. It is an error of the maker, and no clip's.
    """
    drawn = np.asarray(maker(frames))
    if drawn.shape != frames.shape or drawn.dtype != np.uint8:
        raise RuntimeError(
            f"the maker of references returned {drawn.dtype} of shape {list(drawn.shape)} for frames of shape "
            f"{list(frames.shape)}; it has to return bytes (uint8) of the same shape"
        )
    return drawn
