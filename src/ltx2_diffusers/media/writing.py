"""Writing MP4 files: H.264 video, AAC sound, one piece of the clip in memory at a time.

Shapes: F frames, H and W rows and columns of pixels, C channels, N samples.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import ClassVar, Self, cast

import av
import numpy as np
import PIL.Image
import torch
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream

from ..atomic import check_writable, complete_file
from ..declared import takes_declared
from .audio_tracks import CopiedAudio, EncodedAudio, NoAudio, check_audio_source
from .colours import BT709
from .files import check_suffix, exact_frame_rate, item_paths, local_name
from .pixels import byte_frames
from .waveforms import stereo_samples, write_audio

__all__ = ["write_audio", "write_video"]

VIDEO_SUFFIXES = (".mp4", ".mov")
# Presets of x264, fastest first.
_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")
_MAX_CRF = 51
# A second in units of a file's clock.
_TIME_SCALE = 90000
# Length of a fragment in microseconds.
_FRAGMENT_US = "250000"

Frames = torch.Tensor | np.ndarray | Iterable[torch.Tensor | np.ndarray | PIL.Image.Image]


@dataclass(frozen=True)
class ClipFile(os.PathLike):
    """A video file that is to be written, and how; it stands in the place of its name.

    Args:
        path: File name ending in `.mp4` or `.mov`. Of a batch, item `i` is written to `<stem>-<i><suffix>`.
        growing: Name that the file has until it is complete, on the same file system, of the same kind and with the same
            number of an item. It is then MP4 in fragments, which a player can begin while the file grows. Default a hidden
            name, and one index in front.
        sound: Whether sound is written; what a call would generate of it is not decoded without. Default `True`.
        on_frames: Called with the number of frames that are encoded, again and again while the others are made. What it raises
            ends the writing, after which there is no file.

    Raises:
        ValueError: If a name has another suffix, or both are the same.
    """

    path: str | os.PathLike
    growing: str | os.PathLike | None = None
    sound: bool = True
    on_frames: Callable[[int], None] | None = None
    suffixes: ClassVar[tuple[str, ...]] = VIDEO_SUFFIXES

    def __post_init__(self) -> None:
        if self.growing is None:
            return
        path, growing = (check_suffix(one, VIDEO_SUFFIXES, "video") for one in (self.path, self.growing))
        if path.resolve() == growing.resolve():
            raise ValueError(f"`growing` and `path` are both {str(path)!r}; give the file another name while it grows")

    def __fspath__(self) -> str:
        return os.fspath(os.fspath(self.path))

    def __str__(self) -> str:
        return self.__fspath__()

    @classmethod
    def of(cls, path: str | os.PathLike) -> Self:
        """The file of a name, written as usual if the name says nothing else.

        Raises:
            ValueError: If it says how light is written, and this is a video of standard range.
        """
        if isinstance(path, ClipFile) and not issubclass(cls, type(path)):
            raise ValueError(
                f"{str(path)!r} is given as {type(path).__name__}, but the video is one of standard range; give a ClipFile or the name"
            )
        return path if isinstance(path, cls) else cls(path)

    def items(self, batch_size: int) -> list[Self]:
        """The files of the items of a batch."""
        names = item_paths(self.path, batch_size)
        growing = [None] * batch_size if self.growing is None else item_paths(self.growing, batch_size)
        return [replace(self, path=path, growing=name) for path, name in zip(names, growing)]

    def check(self, batch_size: int = 1) -> None:
        """Try out whether the files of a batch can be written.

        Raises:
            OSError: If one cannot; the message names it.
        """
        for item in self.items(batch_size):
            check_writable(item.path)
            if item.growing is not None:
                check_writable(item.growing)

    def report(self, num_frames: int) -> None:
        """Say that so many frames are encoded, to whoever wants to know."""
        if self.on_frames is not None:
            self.on_frames(num_frames)

    @contextmanager
    def opened(self) -> Iterator[OutputContainer]:
        """Give the container to write to, whose file has its name when the block ends without error, and is gone otherwise."""
        place = (
            complete_file(self.path) if self.growing is None else _growing_file(Path(self.growing), Path(self.path))
        )
        with place as partial, _open_output(partial, self.growing is not None) as container:
            yield container


@takes_declared
def write_video(
    path: str | os.PathLike,
    frames: Frames,
    frame_rate: float | Fraction,
    audio: torch.Tensor | np.ndarray | None = None,
    sampling_rate: int | None = None,
    audio_source: str | os.PathLike | None = None,
    crf: int = 19,
    preset: str = "veryfast",
) -> Path:
    """Write a clip as H.264 (yuv420p, BT.709) with optional AAC stereo sound, and return its path.

    Frames are taken from an iterator while the frames before them are encoded in another thread, so a clip that is
    decoded in chunks never exists as a whole. Conversion to bytes happens on the device that holds the frames.

    Args:
        path: File name ending in `.mp4` or `.mov`. Missing folders are created; the file appears only when complete, unless a
            [`ClipFile`] says otherwise.
        frames: `[F, 3, H, W]` or `[F, H, W, 3]`, floating point in [0, 1] or uint8, as tensor or array; or images; or
            an iterable of such chunks. H and W must be even.
        frame_rate: Frames per second; decimals stand for exact rates, 23.976 for 24000/1001.
        audio: Waveform `[C, N]` or `[N, C]` in [-1, 1], one or two channels; `None` for a silent file.
        sampling_rate: Samples per second of `audio`, one that AAC knows; required with `audio`.
        audio_source: Media file whose sound is copied unchanged, up to the end of the video, instead of `audio`. Its
            first picture, if it has any, stands for the first frame: sound keeps its distance from it.
        crf: Constant rate factor of x264, 0 (lossless) to 51; default 19, as the reference writes.
        preset: Speed of x264; default `"veryfast"`, as the reference writes.

    Raises:
        ValueError: If an argument is not valid, the sound of `audio_source` cannot be copied into such a file, or there
            are no frames.
    """
    file, path = ClipFile.of(path), check_suffix(path, VIDEO_SUFFIXES, "video")
    rate = exact_frame_rate(frame_rate)
    check_encoder_options(crf, preset)
    if not file.sound:
        audio = audio_source = None
    samples = check_audio(audio, sampling_rate)
    if audio_source is not None:
        if audio is not None:
            raise ValueError(
                "audio and audio_source are both given; pass the sound to encode or the file to copy it from"
            )
        check_audio_source(audio_source, path.suffix.lower())
    chunks = byte_frames(frames)
    first = next((chunk for chunk in chunks if len(chunk)), None)
    if first is None:
        raise ValueError("frames is empty; a video needs at least one frame")
    check_frame_size(first.shape[1], first.shape[2])

    file.report(0)
    with file.opened() as container:
        video = VideoTrack(container, first.shape[1:3], rate, {"crf": str(crf), "preset": preset})
        sound: NoAudio
        if samples is not None and sampling_rate is not None:
            sound = EncodedAudio(container, samples, int(sampling_rate))
        else:
            sound = NoAudio() if audio_source is None else CopiedAudio(container, audio_source)
        with sound:
            for seconds in encode_in_background(video, chain([first], chunks)):
                sound.write_until(seconds)
                file.report(video.num_frames)
            sound.write_until(video.flush())
            sound.finish()
    return path


@contextmanager
def _growing_file(growing: Path, path: Path) -> Iterator[Path]:
    """Give the name of a file that others read meanwhile, and rename it to `path` when the block ends without error."""
    check_writable(growing)
    check_writable(path)
    try:
        yield growing
        os.replace(growing, path)
    finally:
        growing.unlink(missing_ok=True)


class VideoTrack:
    """The H.264 stream of an open container; `shape` is (rows, columns)."""

    encoder, pixel_format = "libx264", "yuv420p"
    primaries = transfer = BT709
    matrix: int = Colorspace.ITU709

    def __init__(self, container: OutputContainer, shape: tuple[int, int], rate: Fraction, options: dict[str, str]):
        self.container = container
        self.shape = shape
        self.rate = rate
        self.num_frames = 0
        repeatable = repeatable_encoding() if self.encoder == "libx264" else {}
        self.stream = cast(VideoStream, container.add_stream(self.encoder, rate=rate, options=options | repeatable))
        self.stream.height, self.stream.width = shape
        self.stream.pix_fmt = self.pixel_format
        # Untagged files leave it to each player to guess the matrix, and players disagree below 720 rows.
        self.stream.codec_context.colorspace = self.matrix
        self.stream.codec_context.color_range = ColorRange.MPEG
        self.stream.codec_context.color_primaries = self.primaries
        self.stream.codec_context.color_trc = self.transfer
        self.reformatter = VideoReformatter()

    def write(self, chunk: np.ndarray) -> float:
        """Encode bytes `[f, H, W, 3]` and return the seconds written so far."""
        if chunk.shape[1:3] != self.shape:
            raise ValueError(
                f"all frames must have one size: the first is {self.shape[0]}x{self.shape[1]}, "
                f"frame {self.num_frames} is {chunk.shape[1]}x{chunk.shape[2]}"
            )
        for pixels in chunk:
            frame = self.frame(pixels)
            frame.pts = self.num_frames
            frame.time_base = 1 / self.rate
            self.container.mux(self.stream.encode(frame))
            self.num_frames += 1
        return float(self.num_frames / self.rate)

    def frame(self, pixels: np.ndarray) -> av.VideoFrame:
        """Bytes `[H, W, 3]` as the encoder takes them."""
        return self.reformatter.reformat(
            av.VideoFrame.from_ndarray(pixels, format="rgb24"),
            format=self.pixel_format,
            src_colorspace=Colorspace.ITU709,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )

    def flush(self) -> float:
        """Write what the encoder still holds and return the duration in seconds."""
        self.container.mux(self.stream.encode())
        return float(self.num_frames / self.rate)


def encode_in_background(video: VideoTrack, chunks: Iterable[np.ndarray]) -> Iterator[float]:
    """Encode each chunk while the next one is being made; yield the seconds written before each new chunk.

    Only one chunk waits or is encoded at any time. The caller's thread produces the chunks, because gradient modes
    belong to a thread; it may use the container whenever it holds a yielded value.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode-video") as pool:
        pending: Future[float] | None = None
        for chunk in chunks:
            if pending is not None:
                yield pending.result()
            pending = pool.submit(video.write, chunk)
        if pending is not None:
            yield pending.result()


def repeatable_encoding() -> dict[str, str]:
    """Options of x264 under which equal frames always make equal files.

    Its AVX-512 code for macroblock trees reads memory it never wrote wherever the width is no multiple of 128, so the
    same frames gave other files from run to run. AVX2 code is as fast here and has no such fault.
    """
    # What the processor can, which is what x264 goes by; the capability that torch reports may be set lower by a user.
    return {"x264-params": "asm=avx2"} if torch.cpu._is_avx512_supported() else {}


def _open_output(path: Path, in_fragments: bool) -> OutputContainer:
    # With the index in front a browser can start playing before it has the whole file. The times at which streams begin
    # are rounded to the time scale, by default to milliseconds.
    options = {"movflags": "+faststart", "movie_timescale": str(_TIME_SCALE)}
    if in_fragments:
        # Each fragment is written out as soon as it is there, with an index of its own. The first index waits for the first
        # packets, since it says by how much the sound begins before its time.
        options |= {
            "movflags": "+empty_moov+delay_moov+default_base_moof",
            "frag_duration": _FRAGMENT_US,
            "flush_packets": "1",
        }
    return av.open(local_name(path), mode="w", options=options)


def check_audio(audio: torch.Tensor | np.ndarray | None, sampling_rate: int | None) -> np.ndarray | None:
    """Check sound to encode; return its samples `[2, N]`, if any."""
    if audio is None:
        return None
    EncodedAudio.check_rate(sampling_rate)
    return stereo_samples(audio, sampling_rate)


def check_encoder_options(crf: int, preset: str) -> None:
    if not 0 <= crf <= _MAX_CRF:
        raise ValueError(f"crf must be between 0 and {_MAX_CRF}, got {crf}; use {min(max(crf, 0), _MAX_CRF)}")
    if preset not in _PRESETS:
        raise ValueError(f"preset must be one of {', '.join(_PRESETS)}, got {preset!r}")


def check_frame_size(height: int, width: int) -> None:
    if height % 2 or width % 2:
        raise ValueError(
            f"H.264 video (yuv420p) needs even sides, got {height}x{width} (rows x columns); "
            f"crop to {height - height % 2}x{width - width % 2}"
        )
