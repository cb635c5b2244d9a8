"""Cutting long videos into scenes: cuts are found by PySceneDetect, and every scene becomes a clip of its own.

A video is seen at one constant rate, its own, so that frame `k` is shown `k / rate` seconds after the first one.

Shapes: F frames, H and W rows and columns of pixels.
"""

import base64
import html
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from ..atomic import complete_file, write_json
from ..checkpoints.json_files import read_object
from ..checks import check_at_least_one, check_choice, check_from_zero
from ..extras import library
from ..media.clock import main_audio, packet_spans, zero_s
from ..media.files import open_media
from ..media.reading import MediaInfo, iterate_video, probe, read_audio
from ..media.writing import write_video
from ..pipelines.output import encodable

# Detector -> class of PySceneDetect, the argument that its threshold is, and the options that it reads besides.
_DETECTORS: dict[str, tuple[str, str, dict[str, str]]] = {
    "content": ("ContentDetector", "threshold", {"luma_only": "luma_only"}),
    "adaptive": (
        "AdaptiveDetector",
        "adaptive_threshold",
        {"luma_only": "luma_only", "adaptive_window": "window_width"},
    ),
    "threshold": ("ThresholdDetector", "threshold", {"fade_bias": "fade_bias"}),
    "histogram": ("HistogramDetector", "threshold", {}),
}
DETECTORS = (*_DETECTORS, "hist")
"""Names of detectors; `hist` is short for `histogram`."""
_OWN_OPTIONS = ("luma_only", "adaptive_window", "fade_bias")
# Columns that a picture has at least while cuts are looked for, as in PySceneDetect.
_LOOKED_AT_COLUMNS = 256
# Sound is read in pieces of this length, since each piece is decoded from the start of its file.
_SOUND_S = 300.0
_TIME = re.compile(r"(?:(?P<hours>\d+):(?P<minutes>[0-5]?\d):)(?P<seconds>[0-5]?\d(?:\.\d+)?)")
_PREVIEW_COLUMNS = 320


@dataclass(frozen=True)
class SceneOptions:
    """How a video is cut.

    Times are numbers of frames (`"123"`), seconds (`"12.5s"`) or `"HH:MM:SS"`, with decimals if wished.

    Args:
        detector: `"content"` (default) for changes of the picture, `"adaptive"` for changes against their
            neighbourhood, `"threshold"` for fades to black, `"histogram"` (or `"hist"`) for changes of brightness.
        threshold: What counts as a cut, in the detector's own unit; `None` for PySceneDetect's default.
        min_scene_length: Time that has to pass from one cut to the next; `None` for PySceneDetect's default, 15 frames.
        filter_shorter_than: Scenes shorter than this are left out.
        max_scenes: Most scenes to keep, the first ones.
        skip_start: Time at the start that is left out.
        skip_end: Time at the end that is left out.
        duration: Time that is looked at, from the start or from `skip_start` on.
        luma_only: Whether brightness alone counts (content, adaptive).
        adaptive_window: Frames before and after each one that it is compared with (adaptive).
        fade_bias: Where in the dark a fade is cut, from -1 (fade out) to 1 (fade in) (threshold).
        downscale: Factor by which pictures are made smaller for the search; `None` for about 256 columns.
        frame_skip: Frames left out in the search after each one, default 0; cuts become that much coarser.
    """

    detector: str = "content"
    threshold: float | None = None
    min_scene_length: str | None = None
    filter_shorter_than: str | None = None
    max_scenes: int | None = None
    skip_start: str | None = None
    skip_end: str | None = None
    duration: str | None = None
    luma_only: bool | None = None
    adaptive_window: int | None = None
    fade_bias: float | None = None
    downscale: int | None = None
    frame_skip: int = 0

    def __post_init__(self) -> None:
        check_choice("detector", self.detector, DETECTORS)
        if self.detector == "hist":
            object.__setattr__(self, "detector", "histogram")
        reads = _DETECTORS[self.detector][2]
        for option in _OWN_OPTIONS:
            if getattr(self, option) is not None and option not in reads:
                owners = [name for name, (_, _, options) in _DETECTORS.items() if option in options]
                raise ValueError(
                    f"`{option}` means nothing for the detector {self.detector!r}; leave it out, or use "
                    f"{' or '.join(map(repr, owners))}"
                )
        for name in ("max_scenes", "adaptive_window", "downscale"):
            if getattr(self, name) is not None:
                check_at_least_one(**{name: getattr(self, name)})
        check_from_zero(frame_skip=self.frame_skip, threshold=self.threshold or 0.0)
        if self.fade_bias is not None and not -1 <= self.fade_bias <= 1:
            raise ValueError(f"`fade_bias` has to be from -1 to 1 but is {self.fade_bias}; use 0")
        for name in ("min_scene_length", "filter_shorter_than", "skip_start", "skip_end", "duration"):
            if (text := getattr(self, name)) is not None:
                frames_of(text, Fraction(24), name)


@dataclass(frozen=True)
class Scene:
    """A part of a video: frames from `start` on, up to `end`, which is the first one behind it."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """Frames."""
        return self.end - self.start


@dataclass(frozen=True)
class SplitVideo:
    """What became of one video.

    Args:
        source: The video.
        files: Its scenes as clips, in order.
        scenes: Where they lie in it.
        dropped: Scenes left out because they were too short, or beyond the most.
    """

    source: Path
    files: list[Path]
    scenes: list[Scene]
    dropped: int


def frames_of(text: str, frame_rate: Fraction, name: str = "time") -> int:
    """The number of frames that a time stands for.

    Args:
        text: Frames `"123"`, seconds `"12.5s"`, or `"HH:MM:SS[.nnn]"`.
        frame_rate: Frames per second.
        name: What messages call it.
    """
    text = str(text).strip()
    if text.isascii() and text.isdigit():
        return int(text)
    seconds = None
    if match := _TIME.fullmatch(text):
        seconds = 3600 * int(match["hours"]) + 60 * int(match["minutes"]) + Fraction(match["seconds"])
    elif re.fullmatch(r"\d+(\.\d+)?s", text):
        seconds = Fraction(text[:-1])
    if seconds is None:
        raise ValueError(
            f"`{name}` has to be a number of frames like 123, seconds like 12.5s or HH:MM:SS like 00:01:30.5, got {text!r}"
        )
    return round(seconds * frame_rate)


def find_scenes(path: Path, options: SceneOptions, stats_file: Path | None = None) -> tuple[list[Scene], int]:
    """Find the scenes of a video.

    Args:
        path: The video.
        options: How it is cut.
        stats_file: CSV file to write with what the detector measured of every frame that it looked at.

    Returns:
        The scenes that are kept, and how many were left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If PySceneDetect is not installed.
        ValueError: If the video is damaged, or nothing of it is left to look at.
    """
    info = _video_info(path)
    start, end = _looked_at(path, info, options)
    cuts, end = _cuts(path, info, options, (start, end), stats_file)
    edges = [start, *sorted({cut for cut in cuts if start < cut < end}), end]
    scenes = [Scene(*pair) for pair in pairwise(edges)]
    shortest = 1 if options.filter_shorter_than is None else frames_of(options.filter_shorter_than, _rate(info))
    kept = [scene for scene in scenes if scene.length >= shortest][: options.max_scenes]
    return kept, len(scenes) - len(kept)


def split_video(
    path: Path,
    output_dir: Path,
    options: SceneOptions,
    save_images: int = 0,
    stats_file: Path | None = None,
    crf: int = 14,
    override: bool = False,
) -> SplitVideo | None:
    """Write every scene of a video as an MP4 file of its own, frame by frame and with its sound.

    Pictures are encoded anew, so that a scene begins and ends at its very frame; the last row or column of an odd side is
    left out, since H.264 has none. The list `<stem>-scenes.json` is written last, and says that a video is done.

    Args:
        path: The video.
        output_dir: Folder for `<stem>-scene-001.mp4` and so on.
        options: How it is cut.
        save_images: Pictures of each scene, which are written to the folder `<output_dir>-previews`, beside that of the
            clips, with the page `<stem>-scenes.html` that shows them. Default 0.
        stats_file: As in [`find_scenes`].
        crf: Quality of the clips as x264 counts it, 0 (lossless) to 51; default 14.
        override: Whether a video that was split before is split anew. Default false.

    Returns:
        The scenes; `None` if the video was split before in this way.

    Raises:
        FileNotFoundError, ImportError: As in [`find_scenes`].
        ValueError: As in [`find_scenes`], or if it was split before in another way, or no scene is left.
    """
    check_from_zero(save_images=save_images)
    listed = output_dir / f"{path.stem}-scenes.json"
    made_by = {"source": path.name, "save_images": save_images, "crf": crf, **asdict(options)}
    if listed.is_file() and not override:
        if read_object(listed).get("made_by") != made_by:
            raise ValueError(
                f"{str(path)!r} was split with other options, says {str(listed)!r}; override it, or use another folder"
            )
        return None
    scenes, dropped = find_scenes(path, options, stats_file)
    if not scenes:
        raise ValueError(f"{str(path)!r} has no scene that is long enough; lower `filter_shorter_than`")
    listed.unlink(missing_ok=True)
    rate = _rate(_video_info(path))
    files = _write_scenes(path, output_dir, scenes, rate, crf)
    _remove_former(output_dir, path.stem, files)
    if save_images:
        folder = output_dir.absolute()
        _write_previews(folder.with_name(f"{folder.name}-previews"), path.stem, files, save_images)
    entries = [_entry(file, scene, rate) for file, scene in zip(files, scenes)]
    write_json(listed, {"made_by": made_by, "frame_rate": str(rate), "scenes": entries})
    return SplitVideo(path, files, scenes, dropped)


def _video_info(path: Path) -> MediaInfo:
    info = probe(path)
    if info.frame_rate is None:
        raise ValueError(f"{str(path)!r} has no video stream, so it has no scenes")
    return info


def _rate(info: MediaInfo) -> Fraction:
    return info.frame_rate or Fraction(24)


def _looked_at(path: Path, info: MediaInfo, options: SceneOptions) -> tuple[int, int]:
    """The first frame that is looked at, and the first one behind those."""
    rate = _rate(info)
    skipped = [0 if text is None else frames_of(text, rate) for text in (options.skip_start, options.skip_end)]
    total = round(info.duration_s * rate)
    start, end = skipped[0], total - skipped[1]
    if options.duration is not None:
        end = min(end, start + frames_of(options.duration, rate))
    if start >= end:
        raise ValueError(
            f"nothing of {str(path)!r} is left to look at: it has {total} frames, of which `skip_start`, `skip_end` and "
            f"`duration` leave those from {start} to {end}"
        )
    return start, end


def _frames(path: Path, rate: Fraction, start: int, end: int) -> Iterator[np.ndarray]:
    """Bytes `[H, W, 3]` of frames from `start` up to `end`."""
    return islice(iterate_video(path, start_s=float(start / rate), frame_rate=rate), end - start)


def _cuts(
    path: Path, info: MediaInfo, options: SceneOptions, window: tuple[int, int], stats_file: Path | None
) -> tuple[list[int], int]:
    """First frames of new scenes, and the frame behind the last one that there is."""
    scenedetect = library("scenedetect", "finding scenes")
    cv2 = library("cv2", "finding scenes")
    rate, (start, end) = _rate(info), window
    detector = _detector(options, rate)
    if stats_file is not None:
        detector.stats_manager = scenedetect.StatsManager()
        detector.stats_manager.register_metrics(detector.get_metrics())
    factor = options.downscale or max(1.0, info.width / _LOOKED_AT_COLUMNS)
    size = max(1, round(info.width / factor)), max(1, round(info.height / factor))
    cuts: list[Any] = []
    number, timecode = start, scenedetect.FrameTimecode(start, rate)
    for number, frame in enumerate(_frames(path, rate, start, end), start):
        if (number - start) % (options.frame_skip + 1) == 0:
            timecode = scenedetect.FrameTimecode(number, rate)
            # PySceneDetect sees pictures as OpenCV reads them, blue first.
            smaller = cv2.resize(np.ascontiguousarray(frame[..., ::-1]), size, interpolation=cv2.INTER_LINEAR)
            cuts += detector.process_frame(timecode, smaller)
    cuts += detector.post_process(timecode)
    if stats_file is not None:
        with complete_file(stats_file) as partial:
            detector.stats_manager.save_to_csv(partial)
    return [cut.frame_num for cut in cuts], number + 1


def _detector(options: SceneOptions, rate: Fraction) -> Any:
    name, threshold, own = _DETECTORS[options.detector]
    arguments = {argument: getattr(options, option) for option, argument in own.items()}
    arguments[threshold] = options.threshold
    if options.min_scene_length is not None:
        arguments["min_scene_len"] = frames_of(options.min_scene_length, rate)
    given = {argument: value for argument, value in arguments.items() if value is not None}
    return getattr(library("scenedetect", "finding scenes"), name)(**given)


class _Sound:
    """The sound of a video, read in pieces that serve many scenes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held: tuple[float, torch.Tensor, int] | None = None
        with open_media(path) as container:
            stream = main_audio(container)
            spans = [] if stream is None else packet_spans(container, stream, zero_s(path))
        self.spans_s = (float(spans[0][0]), float(max(end for _, end in spans))) if spans else (0.0, 0.0)

    def between(self, start_s: float, end_s: float) -> tuple[torch.Tensor, int] | None:
        """Samples `[C, N]` of a stretch and their rate; `None` where the sound is over, or has not begun."""
        if end_s <= self.spans_s[0] or start_s >= self.spans_s[1]:
            return None
        if self.held is None or start_s < self.held[0] or end_s > self.held[0] + self.held[1].shape[1] / self.held[2]:
            samples, rate = read_audio(self.path, start_s, max(end_s, start_s + _SOUND_S))  # type: ignore[misc]
            self.held = start_s, samples[0], rate
        first_s, samples, rate = self.held
        start = round((start_s - first_s) * rate)
        piece = samples[:, start : start + round((end_s - start_s) * rate)]
        return (piece, rate) if piece.shape[1] else None


def _write_scenes(path: Path, output_dir: Path, scenes: Sequence[Scene], rate: Fraction, crf: int) -> list[Path]:
    """Write the scenes in one pass through the video; return the files."""
    sound, files = _Sound(path), []
    frames, at = _frames(path, rate, scenes[0].start, scenes[-1].end), scenes[0].start
    for number, scene in enumerate(scenes, start=1):
        for _ in islice(frames, scene.start - at):
            # Of a scene that was left out.
            pass
        at = scene.end
        heard = sound.between(float(scene.start / rate), float(scene.end / rate))
        samples, sampling_rate = (None, None) if heard is None else encodable(*heard)
        pictures = (frame[None, : len(frame) & ~1, : len(frame[0]) & ~1] for frame in islice(frames, scene.length))
        file = output_dir / f"{path.stem}-scene-{number:03d}.mp4"
        files.append(write_video(file, pictures, rate, samples, sampling_rate, crf=crf))
    return files


def _remove_former(output_dir: Path, stem: str, files: Sequence[Path]) -> None:
    """Remove scenes of an earlier split of the same video, which had more of them."""
    former = re.compile(re.escape(stem) + r"-scene-\d{3,}\.mp4")
    for path in list(output_dir.iterdir()):
        if former.fullmatch(path.name) and path not in files:
            path.unlink()


def _entry(file: Path, scene: Scene, rate: Fraction) -> dict[str, Any]:
    return {
        "file": file.name,
        "start_frame": scene.start,
        "end_frame": scene.end,
        "start_s": round(float(scene.start / rate), 6),
        "end_s": round(float(scene.end / rate), 6),
    }


def _write_previews(folder: Path, stem: str, files: Sequence[Path], count: int) -> None:
    """Write pictures of the scenes, and a page that shows them."""
    rows = []
    for file in files:
        pictures = [PIL.Image.fromarray(frame) for frame in _spread(file, count)]
        for number, picture in enumerate(pictures, start=1):
            with complete_file(folder / f"{file.stem}-{number:02d}.jpg") as partial:
                picture.save(partial, quality=90)
        rows.append(f"<h2>{html.escape(file.name)}</h2>" + "".join(map(_inlined, pictures)))
    title = f"{len(files)} scenes of {html.escape(stem)}"
    page = f"<!DOCTYPE html><meta charset='utf-8'><title>{title}</title><h1>{title}</h1>" + "\n".join(rows)
    with complete_file(folder / f"{stem}-scenes.html") as partial:
        partial.write_text(page + "\n", encoding="utf-8")


def _spread(file: Path, count: int) -> Iterator[np.ndarray]:
    """Frames `[H, W, 3]` from the middles of `count` equal parts of a clip."""
    total = probe(file).num_frames
    places = [(2 * part + 1) * total // (2 * count) for part in range(count)]
    for number, frame in enumerate(iterate_video(file)):
        for _ in range(places.count(number)):
            yield frame


def _inlined(picture: PIL.Image.Image) -> str:
    """A small copy of a picture as a part of a page."""
    small, data = picture.copy(), io.BytesIO()
    small.thumbnail((_PREVIEW_COLUMNS, _PREVIEW_COLUMNS))
    small.save(data, "JPEG", quality=80)
    return f"<img src='data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}'> "
