"""From decoded video frames to pictures as they are meant to be seen.

Frames are deinterlaced, shown on black where they are transparent, converted to full-range BT.709, scaled to square pixels,
and turned or mirrored as the file says.

Shapes: H and W rows and columns of pixels.
"""

import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video.reformatter import Colorspace, Interpolation
from av.video.stream import VideoStream

from .files import file_of
from .images import on_background

# Codes of ITU-T H.273 for matrices, transfer curves and primaries.
_UNTAGGED = 2
_RESERVED = 3
_KNOWN_MATRICES = (0, 1, _UNTAGGED, _RESERVED, 4, 5, 6, 7, 9)
BT709, BT2020 = 1, 9
LINEAR, PQ, HLG = 8, 16, 18
# Curves of SMPTE ST 2084 (PQ) and ITU-R BT.2100 (HLG).
PQ_CURVE = (1305 / 8192, 2523 / 32, 107 / 128, 2413 / 128, 2392 / 128)
PQ_PEAK_NITS = 10_000.0
HLG_CURVE = (0.17883277, 0.28466892, 0.55991073)
# Red, green, blue and white as x, y: BT.2020, DCI P3 and Display P3.
_D65 = (0.3127, 0.3290)
_PRIMARIES = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), _D65),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),
}
_WIDE_PRIMARIES = {9: "BT.2020", 11: "DCI P3", 12: "Display P3"}
# Untagged videos of at least this size are taken for BT.709, as players do; smaller ones for BT.601.
_HD_HEIGHT, _HD_WIDTH = 720, 1280
# Luminance of white in HDR videos that becomes white in others (ITU-R BT.2408), and the peak of a usual HLG display.
WHITE_NITS, _HLG_NITS = 203.0, 1000.0
# Up to here the tone curve leaves linear light as it is; what is brighter comes ever closer to 1.
_KNEE = 0.85
# Gamma of a display of standard range (ITU-R BT.1886).
_GAMMA = 2.4
# Decoders that see the transparency of VP8 and VP9, which FFmpeg's own ignore.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_MAX_SIDE = 16384
# Display matrices (a, b, c, d) of 0, 1, 2 and 3 quarter turns to the left.
_TURNS = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))


@dataclass(frozen=True)
class Look:
    """What a file says about how the frames of a video are to be seen; it stays when the file is closed.

    Args:
        name: The file.
        aspect: Width of a pixel by its height.
        transfer: Code of the transfer curve.
        primaries: Code of the primaries.
    """

    name: str
    aspect: Fraction
    transfer: int
    primaries: int

    @classmethod
    def of(cls, stream: VideoStream) -> "Look":
        """The look of a stream of which a frame was decoded; some say it only there."""
        context = stream.codec_context
        tags = (int(context.color_trc), int(context.color_primaries))
        return cls(file_of(stream.container), stream.sample_aspect_ratio or Fraction(1), *tags)

    @property
    def is_hdr(self) -> bool:
        """Whether the video has a higher dynamic range than BT.709."""
        return self.transfer in (PQ, HLG)


def decoded_frames(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """Yield the frames of a video in one size and deinterlaced, each with its own time.

    Seeking before the first frame is taken moves the start.

    Raises:
        ValueError: If frames change their size, or the last part of the video cannot be decoded.
    """
    yield from _deinterlaced(_one_size(container, stream), repr(file_of(container)))


def _one_size(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """Decode frames, and raise `ValueError` if they change their size."""
    name = repr(file_of(container))
    size: tuple[int, int] | None = None
    for frame in _complete(container, stream):
        if size is None:
            size = (frame.height, frame.width)
            _tell_conversion(frame, Look.of(stream))
        if (frame.height, frame.width) != size:
            raise ValueError(
                f"{name} changes its size from {size[0]}x{size[1]} to {frame.height}x{frame.width} (rows x columns) on the "
                "way; convert it to one size"
            )
        yield frame


def displayed_pixels(frame: av.VideoFrame, look: Look) -> np.ndarray:
    """Bytes `[H, W, 3]` of a decoded frame as it is to be seen: full-range BT.709, square pixels, upright, on black."""
    if frame.colorspace not in _KNOWN_MATRICES:
        raise ValueError(
            f"{look.name!r} has the colour matrix {frame.colorspace} (ITU-T H.273), which cannot be "
            "converted; convert the file to BT.709"
        )
    primaries = _primaries(frame, look)
    wide = look.is_hdr or primaries in _WIDE_PRIMARIES
    transparent = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
    height, width = _square_size(frame, look)
    pixels: np.ndarray = frame.reformat(
        width=width,
        height=height,
        format=("rgba64le" if wide else "rgba") if transparent else ("rgb48le" if wide else "rgb24"),
        src_colorspace=_matrix(frame, wide),
        interpolation=None if width == frame.width else Interpolation.BICUBIC,
        # Threads of a single picture cost more than they save, and outlive it until it is collected: in a forked process
        # that would wait for them without end.
        threads=1,
    ).to_ndarray()
    alpha = pixels[..., 3] if transparent else None
    pixels = pixels[..., :3]
    if wide:
        pixels = _to_bt709(pixels, look.transfer, primaries)
        alpha = None if alpha is None else (alpha >> 8).astype(np.uint8)
    if alpha is not None:
        pixels = on_background(pixels, alpha)
    return np.ascontiguousarray(_upright(pixels, _display_matrix(frame)))


def displayed_size(frame: av.VideoFrame, look: Look) -> tuple[int, int]:
    """Rows and columns of a frame as it is to be seen."""
    height, width = _square_size(frame, look)
    a, b, c, d = _display_matrix(frame)
    return (width, height) if abs(b) + abs(c) > abs(a) + abs(d) else (height, width)


def _complete(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """Decode to the end, and raise `ValueError` if frames are missing there that the packets of the file hold."""
    decoder: av.VideoCodecContext | None = None
    if stream.metadata.get("alpha_mode") == "1" and stream.codec_context.name in _ALPHA_DECODERS:
        decoder = cast(av.VideoCodecContext, av.CodecContext.create(_ALPHA_DECODERS[stream.codec_context.name], "r"))
    promised = shown = -1
    count = 0
    for packet in container.demux(stream):
        # An empty packet with a time says that the picture before it stays; one without marks the end of the file.
        if not packet.size and packet.dts is not None:
            continue
        if packet.size and packet.pts is not None and not packet.is_discard:
            promised = max(promised, packet.pts)
        for frame in packet.decode() if decoder is None else decoder.decode(packet):
            shown = shown if frame.pts is None else max(shown, frame.pts)
            count += 1
            yield frame
    # A frame may be missing, or one in a hundred.
    missing_s = float((promised - shown) * (stream.time_base or 0))
    if count and shown >= 0 and missing_s * float(stream.average_rate or 0) > max(1.5, 0.01 * count):
        start = (stream.start_time or 0) * float(stream.time_base or 0)
        promised_s, shown_s = (float(pts * (stream.time_base or 0)) - start for pts in (promised, shown))
        raise ValueError(
            f"{file_of(container)!r} holds pictures up to {promised_s:.3f} s, but they can be decoded only up to "
            f"{shown_s:.3f} s; it is damaged, so copy or download it again"
        )


def _deinterlaced(frames: Iterator[av.VideoFrame], name: str) -> Iterator[av.VideoFrame]:
    """Replace each interlaced frame by a progressive one of the same time."""
    graph: Graph | None = None
    waiting: deque[av.VideoFrame] = deque()
    for frame in frames:
        if graph is None:
            if not frame.interlaced_frame:
                yield frame
                continue
            warnings.warn(f"{name} is interlaced; it is deinterlaced, one picture for two fields", stacklevel=2)
            graph = _deinterlacer(frame)
        waiting.append(frame)
        graph.vpush(frame)
        yield from _filtered(graph, waiting)
    if graph is not None:
        graph.vpush(None)
        yield from _filtered(graph, waiting)


def _deinterlacer(frame: av.VideoFrame) -> Graph:
    graph = Graph()
    filters = (
        graph.add_buffer(None, frame.width, frame.height, frame.format, time_base=frame.time_base),
        graph.add("bwdif", "mode=send_frame:deint=interlaced"),
        graph.add("buffersink"),
    )
    graph.link_nodes(*filters).configure()
    return graph


def _filtered(graph: Graph, waiting: deque[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """What a filter that keeps order and number of frames has ready, with the times and tags of what went in."""
    while waiting:
        try:
            frame = graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return
        original = waiting.popleft()
        frame.pts, frame.time_base, frame.duration = original.pts, original.time_base, original.duration
        frame.colorspace, frame.color_range = original.colorspace, original.color_range
        yield frame


def _square_size(frame: av.VideoFrame, look: Look) -> tuple[int, int]:
    """Rows and columns of a frame with square pixels: as many rows, and an even number of columns."""
    exact = frame.width * float(look.aspect)
    width = 2 * round(exact / 2)
    if abs(exact - frame.width) < 1 or width < 2:
        width = frame.width
    if width > _MAX_SIDE:
        raise ValueError(
            f"{look.name!r} has pixels of the shape {look.aspect}, which makes {width} columns, more than {_MAX_SIDE}; "
            "scale the file to square pixels"
        )
    return frame.height, width


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """a, b, c, d of a display matrix, by which (x, y) is shown at (a x + c y, b x + d y)."""
    try:
        side_data: Any = frame.side_data
        data = side_data.get(Type.DISPLAYMATRIX)
    except ValueError:
        # Something beside it is of a kind that PyAV does not know; then the rotation alone can be had.
        return _TURNS[round(frame.rotation / 90) % 4]
    if data is None:
        return _TURNS[0]
    a, b, _, c, d, *_ = np.frombuffer(data, np.int32).tolist()
    return a, b, c, d


def _upright(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Turn and mirror a picture by the quarter turns and mirrors nearest to a display matrix."""
    a, b, c, d = matrix
    along_x, along_y = a, d
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, along_x, along_y = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if along_y < 0 else 1, :: -1 if along_x < 0 else 1]


def _primaries(frame: av.VideoFrame, look: Look) -> int:
    """Code of the primaries; untagged ones of HDR are those of BT.2100."""
    is_2020 = look.primaries == _UNTAGGED and (look.is_hdr or frame.colorspace == BT2020)
    return BT2020 if is_2020 else look.primaries


def _matrix(frame: av.VideoFrame, wide: bool) -> int | None:
    """The matrix to read an untagged frame with; `None` for that of its tag."""
    if frame.colorspace not in (_UNTAGGED, _RESERVED):
        return None
    if wide:
        return BT2020
    is_hd = frame.height >= _HD_HEIGHT or frame.width >= _HD_WIDTH
    return int(Colorspace.ITU709 if is_hd else Colorspace.ITU601)


def _tell_conversion(frame: av.VideoFrame, look: Look) -> None:
    """Warn once that colours change."""
    primaries = _primaries(frame, look)
    if look.is_hdr:
        kind = "PQ" if look.transfer == PQ else "HLG"
        what = f"is HDR ({kind}); its colours are tone-mapped to BT.709, {WHITE_NITS:.0f} nits to white"
    elif primaries in _WIDE_PRIMARIES:
        what = f"has the colours of {_WIDE_PRIMARIES[primaries]}; they are converted to BT.709"
    else:
        return
    warnings.warn(f"{look.name!r} {what}", stacklevel=3)


def _to_bt709(pixels: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Bytes `[H, W, 3]` in BT.709 of 16-bit pixels with other curves or primaries.

    Light is counted in shares of reference white. Colours outside BT.709 are clipped; what is brighter than the knee of
    the tone curve keeps its hue.
    """
    light = _linear_light(transfer)[pixels]
    light = np.maximum(light @ to_bt709_primaries(primaries).T, 0)
    if transfer in (PQ, HLG):
        peak = np.maximum(light.max(axis=-1, keepdims=True), np.float32(1e-6))
        bright = np.maximum(peak, np.float32(_KNEE)) - np.float32(_KNEE)
        light *= np.minimum(peak, _KNEE + (1 - _KNEE) * -np.expm1(-bright / (1 - _KNEE))) / peak
    return np.rint(255 * np.minimum(light, 1) ** np.float32(1 / _GAMMA)).astype(np.uint8)


@cache
def _linear_light(transfer: int) -> np.ndarray:
    """Light that a display makes of each 16-bit code, in shares of reference white, as float32."""
    code = np.arange(65536) / 65535
    if transfer == PQ:
        m1, m2, c1, c2, c3 = PQ_CURVE
        power = code ** (1 / m2)
        light = PQ_PEAK_NITS / WHITE_NITS * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    elif transfer == HLG:
        # With the system gamma of 1.2 for each channel alone, as zscale does it: the look of videos of
        # standard range, whose cameras and displays know no other way.
        a, b, c = HLG_CURVE
        scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
        light = _HLG_NITS / WHITE_NITS * scene**1.2
    else:
        light = code**_GAMMA
    return light.astype(np.float32)


@cache
def to_bt709_primaries(primaries: int) -> np.ndarray:
    """The matrix `[3, 3]` from linear light of some primaries to that of BT.709; white stays white."""
    source, target = (_to_xyz(code) for code in (primaries if primaries in _PRIMARIES else 1, 1))
    return (np.linalg.inv(target) @ source).astype(np.float32)


def _to_xyz(primaries: int) -> np.ndarray:
    """The matrix `[3, 3]` from linear light to CIE XYZ, in which white has the place of D65."""
    *corners, white = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in _PRIMARIES[primaries])
    columns = np.stack(corners, axis=1)
    matrix = columns * np.linalg.solve(columns, white)
    # DCI white is not D65: scaled so that equal amounts of all three are white in the target too.
    return matrix * (np.array([_D65[0] / _D65[1], 1, (1 - sum(_D65)) / _D65[1]]) / white)[:, None]
