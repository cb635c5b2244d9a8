"""Files of high dynamic range: 10-bit HEVC in PQ or HLG, and numbered frames as EXR or 16-bit PNG.

Shapes: F frames, H and W rows and columns of pixels. Light is linear Rec.709, in which 1.0 is diffuse white.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from glob import escape
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Self

import av
import numpy as np
import torch
from av.container import OutputContainer

from ... import checks
from ...atomic import check_writable, temporary_folder
from ...declared import settle, takes_declared
from ...extras import library
from .. import writing as video
from ..colours import BT709, BT2020, HLG, LINEAR, PQ, PQ_PEAK_NITS, WHITE_NITS
from ..files import check_suffix, exact_frame_rate
from ..frames import FilePath
from . import curves

Light = torch.Tensor | np.ndarray | Iterable[torch.Tensor | np.ndarray]

# Signals that a kind of file can hold, the default one first.
_SIGNALS: dict[str, tuple[str, ...]] = dict.fromkeys(video.VIDEO_SUFFIXES, ("pq", "hlg"))
_SIGNALS |= {".exr": ("linear", "logc3"), ".png": ("logc3", "linear", "pq", "hlg")}
# Codes of primaries and transfer curve (ITU-T H.273); LogC3 has none.
_CODES = {"pq": (BT2020, PQ), "hlg": (BT2020, HLG), "linear": (BT709, LINEAR)}
# Red, green, blue and white of Rec.709 as x and y, and names of colour spaces, as files of EXR hold them.
_CHROMATICITIES = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)
_COLOUR_SPACES = {"linear": "lin_rec709", "logc3": "logc3_rec709"}
_LARGEST_HALF = 65504.0
# Shares of red, green and blue in the luma of BT.2020, and what its colour differences are divided by.
_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)
_BLUE_RANGE, _RED_RANGE = 1.8814, 1.4746
# What x265 is told. Chroma stands at the top left of its four pixels, as in other files of BT.2100. The mastering display has the
# primaries and the white of BT.2020, in units of 0.00002; its luminances are in units of 0.0001 cd/m2.
_SAID = "log-level=error:repeat-headers=1:range=limited:colorprim=bt2020:colormatrix=bt2020nc:chromaloc=2"
_DISPLAY = "G(8500,39850)B(6550,2300)R(35400,14600)WP(15635,16450)L({peak:.0f},1)"
_REMEDY = "decode in float32: pipe.vae.to(torch.float32)"
_PQ_SAID, _HLG_SAID = f"transfer=smpte2084:hdr10=1:master-display={_DISPLAY}", "transfer=arib-std-b67"


@dataclass(frozen=True)
class HDRFile(video.ClipFile):
    """A file of high dynamic range that is to be written, and how; it stands in the place of its name.

    Args:
        path: `.mp4` and `.mov` are 10-bit HEVC (yuv420p10le, Rec.2020, limited range); `.exr` and `.png` a sequence, whose frame
            `i` is `<stem>_<i, five digits><suffix>`: EXR of half floats (ZIP), PNG of 16 bits. A sequence takes the place of an
            older one of its name.
        growing: As in [`ClipFile`], for a video.
        on_frames: As in [`ClipFile`].
        signal: `"pq"` (SMPTE ST 2084; default of videos) or `"hlg"` (ITU-R BT.2100), both in Rec.2020, for videos and PNG;
            `"linear"`, Rec.709 light, the default of EXR, of which PNG holds 0 to 1 alone; or `"logc3"`, the ARRI LogC3
            (EI 800) signal of Rec.709, the default of PNG.
        white_nits: Of PQ: luminance of diffuse white (light 1.0) in cd/m2; default 203.0, as ITU-R BT.2408 has it.
        peak_nits: Of PQ: luminance in cd/m2 above which channels are clipped, told to displays as the peak of the mastering
            display; default 10000.0, all that PQ holds.

    Raises:
        ValueError: If such a file cannot hold the signal, or a value is out of range or not read.
    """

    sound: bool = field(init=False, default=False)
    signal: str | None = None
    white_nits: float = WHITE_NITS
    peak_nits: float = PQ_PEAK_NITS
    suffixes: ClassVar[tuple[str, ...]] = tuple(_SIGNALS)

    def __post_init__(self) -> None:
        settle(self)
        super().__post_init__()
        suffix = check_suffix(self.path, self.suffixes, "HDR video").suffix.lower()
        checks.check_choice("signal", self.signal, (None, *_SIGNALS[suffix]))
        nits = {"white_nits": self.white_nits, "peak_nits": self.peak_nits}
        checks.check_positive(**nits)
        checks.check_most(PQ_PEAK_NITS, **nits)
        for name, value in nits.items():
            if self.curve != "pq" and value != getattr(HDRFile, name):
                raise ValueError(
                    f"`{name}` is {value}, which {suffix} files of the signal {self.curve!r} do not say; leave it out"
                )

    @classmethod
    def of(cls, path: str | os.PathLike) -> Self:
        """The file of a name, or of a [`ClipFile`] that says nothing of light."""
        if isinstance(path, cls) or not isinstance(path, video.ClipFile):
            return super().of(path)
        return cls(path.path, path.growing, path.on_frames)

    @property
    def suffix(self) -> str:
        """Which kind of file it is."""
        return Path(self.path).suffix.lower()

    @property
    def is_sequence(self) -> bool:
        """Whether each frame is a file."""
        return self.suffix not in video.VIDEO_SUFFIXES

    @property
    def curve(self) -> str:
        """The signal that is written."""
        return self.signal or _SIGNALS[self.suffix][0]

    def frame_path(self, index: int) -> Path:
        """The file of a frame of a sequence."""
        path = Path(self.path)
        return path.with_name(f"{path.stem}_{index:05d}{path.suffix}")

    def check(self, batch_size: int = 1) -> None:
        """Try out whether the files of a batch can be written.

        Raises:
            OSError: If one cannot; the message names it.
            ImportError: If the package is missing that writes EXR; the message says how to install it.
        """
        if self.suffix == ".exr":
            _openexr()
        if not self.is_sequence:
            super().check(batch_size)
            return
        for item in self.items(batch_size):
            check_writable(item.frame_path(0))

    def encoded(self, light: torch.Tensor) -> np.ndarray:
        """The signal of light `[F, H, W, 3]`, float32 on the host."""
        checks.check_finite("the light", light, _REMEDY)
        light = light.detach().float()
        # Colours outside of Rec.709 are below 0 there, and may lie inside of Rec.2020.
        if self.curve == "pq":
            signal = curves.pq(light, self.white_nits, self.peak_nits)
        elif self.curve == "hlg":
            signal = curves.hlg(light)
        else:
            signal = curves.logc3(light.clamp(min=0)) if self.curve == "logc3" else light.clamp(min=0)
        return signal.cpu().numpy()


@takes_declared
def write_hdr(
    path: FilePath, frames: Light, frame_rate: float | Fraction, crf: int | None = None, preset: str | None = None
) -> None:
    """Write a clip of light as HEVC in PQ or HLG, or as a sequence of EXR or 16-bit PNG.

    Frames are taken from an iterator while those before them are encoded; files appear only when all are complete.

    Args:
        path: Name of a video or sequence, or an [`HDRFile`], which says more.
        frames: Linear Rec.709 light `[F, H, W, 3]` in which 1.0 is diffuse white, floats; or an iterable of such pieces or of
            frames `[H, W, 3]`. What is below 0, in Rec.2020 where that is written, is written as 0. H and W of a video must be even.
        frame_rate: Frames per second; PNG does not hold it.
        crf: Constant rate factor of x265, 0 to 51; default 18. Videos alone.
        preset: Speed of x265; default `"medium"`. Videos alone.

    Raises:
        ValueError: If an argument is not valid, there are no frames, or they hold values that are not finite.
        ImportError: If the package is missing that writes EXR; the message says how to install it.
    """
    file, rate = HDRFile.of(path), exact_frame_rate(frame_rate)
    if file.is_sequence and (crf, preset) != (None, None):
        raise ValueError(f"`crf` and `preset` belong to videos, but {file.suffix} frames are lossless; leave them out")
    crf, preset = 18 if crf is None else crf, "medium" if preset is None else preset
    video.check_encoder_options(crf, preset)
    file.check()
    pieces = _light(frames)
    first = next(pieces, None)
    if first is None:
        raise ValueError("frames is empty; a clip needs at least one frame")
    if not file.is_sequence:
        video.check_frame_size(first.shape[1], first.shape[2])
    signals = map(file.encoded, chain([first], pieces))
    file.report(0)
    if file.is_sequence:
        _write_sequence(file, (signal for piece in signals for signal in piece), rate)
        return
    with file.opened() as container:
        track = _HDRTrack(file, container, tuple(first.shape[1:3]), rate, {"crf": str(crf), "preset": preset})
        for _ in video.encode_in_background(track, signals):
            file.report(track.num_frames)
        track.flush()


def _light(frames: Light) -> Iterator[torch.Tensor]:
    """Any form of a clip as pieces `[1, H, W, 3]`, of which one is in memory at a time."""
    if not isinstance(frames, torch.Tensor | np.ndarray):
        for part in frames:
            yield from _light(part)
        return
    light = torch.as_tensor(frames)
    if light.ndim not in (3, 4) or light.shape[-1] != 3 or not light.is_floating_point():
        raise ValueError(
            f"frames must be floats [F, H, W, 3] of linear light, got {light.dtype} {list(light.shape)}; pass one clip of a batch"
        )
    yield from light.reshape(-1, 1, *light.shape[-3:])


class _HDRTrack(video.VideoTrack):
    """The HEVC stream of an open container, which is given signals `[f, H, W, 3]`."""

    encoder, pixel_format = "libx265", "yuv420p10le"
    primaries = BT2020
    matrix = BT2020

    def __init__(self, file: HDRFile, container: OutputContainer, shape: Any, rate: Fraction, options: dict[str, str]):
        self.transfer, said = (PQ, _PQ_SAID) if file.curve == "pq" else (HLG, _HLG_SAID)
        said = f"{_SAID}:{said.format(peak=file.peak_nits * 10000)}"
        super().__init__(container, shape, rate, {**options, "x265-params": said})
        # By this name of the codec players of Apple know it, too.
        self.stream.codec_context.codec_tag = "hvc1"

    def frame(self, pixels: np.ndarray) -> av.VideoFrame:
        """The signal of a frame as samples of 10 bits."""
        return av.VideoFrame.from_ndarray(_samples(pixels), format=self.pixel_format)

    def flush(self) -> float:
        """As of other videos; of one or two frames, x265 leaves the times unset at which they are decoded."""
        packets = self.stream.encode()
        for packet in packets if self.num_frames < 3 else ():
            packet.dts = packet.pts
        self.container.mux(packets)
        return float(self.num_frames / self.rate)


def _samples(signal: np.ndarray) -> np.ndarray:
    """A signal `[H, W, 3]` as samples `[1.5 H, W]` of BT.2020, 10 bits of limited range in 4:2:0.

    FFmpeg's own conversion is off by two codes on average.
    """
    luma = signal @ _LUMA
    blue, red = (signal[..., 2] - luma) / _BLUE_RANGE, (signal[..., 0] - luma) / _RED_RANGE
    planes = (luma * 876 + 64, _halved(blue) * 896 + 512, _halved(red) * 896 + 512)
    flat = np.concatenate([np.rint(plane).astype(np.uint16).ravel() for plane in planes])
    return flat.reshape(-1, signal.shape[1])


def _halved(plane: np.ndarray) -> np.ndarray:
    """Half the rows and columns: every second one, with a quarter of each of its neighbours."""
    for axis in (0, 1):
        padded = np.pad(np.moveaxis(plane, axis, 0), ((1, 0), (0, 0)), mode="edge")
        plane = np.moveaxis((padded[:-1:2] + 2 * padded[1::2] + padded[2::2]) / 4, 0, axis)
    return plane


def _write_sequence(file: HDRFile, signals: Iterable[np.ndarray], rate: Fraction) -> None:
    """Write signals `[H, W, 3]` into a folder beside the sequence, and move them to their names when all are there."""
    place, names = Path(file.path).parent, list[str]()
    with temporary_folder(place) as folder:
        for signal in signals:
            names.append(file.frame_path(len(names)).name)
            if file.suffix == ".exr":
                _write_exr(folder / names[-1], signal, file.curve, rate)
            else:
                (folder / names[-1]).write_bytes(_png(signal, file.curve))
            file.report(len(names))
        for name in names:
            os.replace(folder / name, place / name)
    # What a longer sequence of this name has left would be taken for the end of this one.
    pattern = f"{escape(Path(file.path).stem)}_{'[0-9]' * 5}{Path(file.path).suffix}"
    for left in {*place.glob(pattern)} - {place / name for name in names}:
        left.unlink()


def _openexr() -> Any:
    return library("OpenEXR", "writing EXR")


def _write_exr(path: Path, signal: np.ndarray, curve: str, rate: Fraction) -> None:
    openexr, half = _openexr(), signal.clip(max=_LARGEST_HALF).astype(np.float16)
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage, "framesPerSecond": rate}
    header |= {"chromaticities": _CHROMATICITIES, "colorSpace": _COLOUR_SPACES[curve]}
    with openexr.File(header, {"RGB": half}) as file:
        file.write(os.fspath(path))


def _png(signal: np.ndarray, curve: str) -> bytes:
    """A PNG file of 16 bits, which says how its samples are meant where there is a code for that."""
    codes = np.rint(signal.clip(0, 1) * 65535).astype(np.uint16)
    encoder: Any = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = codes.shape[:2]
    encoder.pix_fmt, encoder.time_base = "rgb48be", Fraction(1)
    frame = av.VideoFrame.from_ndarray(codes, format="rgb48be")
    if curve in _CODES:
        frame.color_primaries, frame.color_trc = _CODES[curve]
        frame.colorspace, frame.color_range = 0, 2
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


@takes_declared
def encode_hdr_tensor_to_mp4(
    frames: torch.Tensor | np.ndarray,
    output_mp4: str | os.PathLike,
    frame_rate: float,
    tone_mapping_fn: Callable[[np.ndarray], np.ndarray] | None = None,
    tone_map_in_rgb: bool = True,
    crf: int = 18,
) -> None:
    """Write linear light as an H.264 video of standard range (sRGB curve, BT.709); [`write_hdr`] keeps the range.

    Args:
        frames: Linear light `[F, H, W, 3]`, in which 1.0 is white.
        output_mp4: File name ending in `.mp4` or `.mov`.
        frame_rate: Frames per second.
        tone_mapping_fn: From the light of a frame, float32 `[H, W, 3]`, to light in [0, 1]; what lies outside is clipped. Default:
            all is clipped that is brighter than white.
        tone_map_in_rgb: Whether it is given red first, and blue first otherwise, as OpenCV's tone mappers expect. Default `True`.
        crf: Constant rate factor of x264, 0 to 51; default 18.

    Raises:
        ValueError: If an argument is not valid, there are no frames, or they hold values that are not finite.
    """
    pieces = (tone_mapped(light[0], tone_mapping_fn, tone_map_in_rgb)[None] for light in _light(frames))
    video.write_video(output_mp4, pieces, frame_rate, crf=crf)


def tone_mapped(
    light: torch.Tensor, function: Callable[[np.ndarray], np.ndarray] | None = None, in_rgb: bool = True
) -> np.ndarray:
    """Bytes `[H, W, 3]` of a frame of light, red first."""
    checks.check_finite("the light", light, _REMEDY)
    order = slice(None) if in_rgb else slice(None, None, -1)
    ordered = light.detach().float().cpu().numpy()[..., order]
    mapped = np.clip(ordered if function is None else function(ordered), 0.0, 1.0)
    return np.ascontiguousarray((curves.srgb(mapped) * 255.0 + 0.5).astype(np.uint8)[..., order])
