import re
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from ltx2_diffusers.media import colours
from ltx2_diffusers.media.reading import iterate_video, probe, read_video

from .clips import PATCHES, patch_error, patches, write_frames

X264 = {"codec": "libx264", "pix_fmt": "yuv420p", "options": {"crf": "1"}}


def converted(pixels, matrix, color_range=ColorRange.MPEG, pix_fmt="yuv420p"):
    """A frame whose pixels went through another matrix than the default one."""
    return av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
        format=pix_fmt, dst_colorspace=matrix, src_color_range=ColorRange.JPEG, dst_color_range=color_range
    )


@pytest.mark.parametrize(
    ("height", "matrix"), [(704, Colorspace.ITU601), (720, Colorspace.ITU709)], ids=["untagged SD", "untagged HD"]
)
def test_untagged_videos_have_the_matrix_of_their_size(tmp_path, height, matrix):
    frame = converted(patches(height, 128), matrix)
    frame.colorspace, frame.color_range = 2, 0
    path = write_frames(tmp_path / "clip.mp4", [frame], **X264)
    assert patch_error(read_video(path)[0]) < 2


@pytest.mark.parametrize("color_range", [ColorRange.MPEG, ColorRange.JPEG])
@pytest.mark.parametrize(
    ("tag", "matrix"),
    [(1, Colorspace.ITU709), (6, Colorspace.ITU601), (7, Colorspace.SMPTE240M), (9, Colorspace.BT2020)],
)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p10le"])
def test_matrix_and_range_are_those_of_the_tags(tmp_path, tag, matrix, color_range, pix_fmt):
    frame = converted(patches(), matrix, color_range, pix_fmt)
    tags = {"colorspace": tag, "color_range": int(color_range), "color_primaries": 1, "color_trc": 1}
    path = write_frames(tmp_path / "clip.mkv", [frame], "ffv1", pix_fmt, **tags)
    assert patch_error(read_video(path)[0]) < 2


@pytest.mark.parametrize(
    ("codec", "pix_fmt"), [("libx264rgb", "rgb24"), ("ffv1", "gbrp10le"), ("ffv1", "bgr0"), ("qtrle", "rgb24")]
)
def test_videos_without_a_matrix_are_read_exactly(tmp_path, codec, pix_fmt):
    options = {"crf": "0"} if codec == "libx264rgb" else {}
    path = (
        write_frames(tmp_path / "clip.mov", [patches()], codec, pix_fmt, options)
        if codec == "qtrle"
        else (write_frames(tmp_path / "clip.mkv", [patches()], codec, pix_fmt, options))
    )
    assert (read_video(path)[0].numpy() == patches()).all()


def test_usual_videos_are_read_as_ffmpeg_converts_them(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (3, 48, 64, 3), dtype=np.uint8)
    path = write_frames(
        tmp_path / "clip.mp4", list(noise), **X264, colorspace=1, color_range=1, color_primaries=1, color_trc=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames = read_video(path).numpy()
    with av.open(str(path)) as container:
        assert (frames == [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).all()


def test_unknown_matrices_are_refused(tmp_path):
    path = write_frames(tmp_path / "ycgco.mp4", [patches()], **X264, colorspace=8)
    with pytest.raises(ValueError, match=r"ycgco\.mp4.*colour matrix 8"):
        read_video(path)


def wide_patches(transfer, primaries):
    """The patches as 10-bit codes of another transfer curve and other primaries, made by other arithmetic."""
    light = (PATCHES / 255.0) ** 2.4 @ np.linalg.inv(colours.to_bt709_primaries(primaries).astype(float)).T
    light = light.clip(0)
    if transfer == 16:
        power = (light * 203 / 10000) ** 0.1593017578125
        code = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    elif transfer == 18:
        scene = (light * 203 / 1000) ** (1 / 1.2)
        code = np.where(
            scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log((12 * scene - 0.28466892).clip(0.1)) + 0.55991073
        )
    else:
        code = light ** (1 / 2.4)
    codes = np.rint(1023 * code).astype(np.uint16)
    return np.repeat(np.repeat(codes[None], 32, 0), 8, 1)


@pytest.mark.parametrize(
    ("transfer", "primaries", "words"),
    [(16, 9, "HDR \\(PQ\\)"), (18, 9, "HDR \\(HLG\\)"), (16, 2, "HDR"), (14, 9, "BT.2020"), (1, 12, "Display P3")],
)
def test_wide_colours_become_bt709_with_one_warning(tmp_path, transfer, primaries, words):
    codes = wide_patches(transfer, 9 if primaries == 2 else primaries)
    frames = [av.VideoFrame.from_ndarray(codes, format="gbrp10le") for _ in range(3)]
    path = write_frames(
        tmp_path / "wide.mkv", frames, "ffv1", "gbrp10le", color_primaries=primaries, color_trc=transfer
    )
    with pytest.warns(UserWarning, match=rf"wide\.mkv.*{words}") as caught:
        pixels = read_video(path)
    assert len(caught) == 1
    assert patch_error(pixels[0]) < 5


def test_wide_colours_are_read_through_their_matrix(tmp_path):
    """Grey of 203 nits is white whatever the matrix, and PQ without a matrix has that of BT.2020."""
    for colorspace in (9, 2):
        frame = av.VideoFrame(64, 32, "yuv444p10le")
        for plane, code in zip(frame.planes, (round(64 + 876 * 0.5806888), 512, 512)):
            plane.update(np.full(plane.buffer_size // 2, code, np.uint16).tobytes())
        path = write_frames(
            tmp_path / "pq.mkv",
            [frame],
            "ffv1",
            "yuv444p10le",
            colorspace=colorspace,
            color_range=1,
            color_primaries=9,
            color_trc=16,
        )
        with pytest.warns(UserWarning, match="HDR"):
            white = read_video(path)[0].numpy()
        assert (white == white[0, 0, 0]).all()
        assert 240 <= white[0, 0, 0] <= 252


def test_tone_curve_keeps_order_up_to_the_brightest_light():
    codes = np.linspace(0, 65535, 256).astype(np.uint16)[None, :, None].repeat(3, axis=2)
    curve = colours._to_bt709(codes, transfer=16, primaries=9)[0].astype(int)
    assert (curve == curve[:, :1]).all()
    assert (np.diff(curve[:, 0]) >= 0).all()
    assert (curve[0, 0], curve[-1, 0]) == (0, 255)


@pytest.mark.parametrize(
    ("aspect", "width"),
    [((2, 1), 128), ((1, 2), 32), ((16, 11), 94), ((64, 45), 92), ((4319, 4320), 64)],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("rotation", [0, 90])
def test_pixels_that_are_no_squares_become_squares(tmp_path, aspect, width, rotation):
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
        stream.set_display_rotation(rotation)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(patches(), format="rgb24")))
        container.mux(stream.encode())
    info = probe(path)
    size = (32, width) if rotation == 0 else (width, 32)
    assert (info.height, info.width) == size
    assert read_video(path).shape == (1, *size, 3)


def test_pixels_of_absurd_shapes_are_refused(tmp_path):
    path = write_frames(tmp_path / "strip.mp4", [patches(32, 1024)], **X264, sample_aspect_ratio=Fraction(20))
    with pytest.raises(ValueError, match=r"strip\.mp4.*20480 columns"):
        read_video(path)


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((1, 0, 0, 1), lambda p: p),
        ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
        ((1, 0, 0, -1), lambda p: p[::-1]),
        ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
        ((0, 1, -1, 0), lambda p: p.swapaxes(0, 1)[:, ::-1]),
        ((0, -1, 1, 0), lambda p: p.swapaxes(0, 1)[::-1]),
        ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda p: p.swapaxes(0, 1)[::-1, ::-1]),
    ],
    ids=lambda value: str(value) if isinstance(value, tuple) else "",
)
def test_videos_are_turned_and_mirrored_as_they_say(tmp_path, matrix, turned):
    corners = np.zeros((32, 64, 3), np.uint8)
    corners[:16, :32], corners[:16, 32:], corners[16:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    path = tmp_path / "phone.mp4"
    a, b, c, d = (value << 16 for value in matrix)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        container.mux(stream.encode(av.VideoFrame.from_ndarray(corners, format="rgb24")))
        container.mux(stream.encode())
    pixels, wanted = read_video(path)[0].numpy().astype(int), turned(corners).astype(int)
    assert pixels.shape == wanted.shape == (probe(path).height, probe(path).width, 3)
    assert np.abs(pixels - wanted).mean() < 4


def moving_fields(top_first):
    """24 frames whose odd rows show a bar later (or earlier) than their even rows."""
    frames = []
    for number in range(0, 24, 2):
        frame = np.full((32, 64, 3), 40, np.uint8)
        first, second = (0, 1) if top_first else (1, 0)
        frame[first::2, 2 * number : 2 * number + 10] = 220
        frame[second::2, 2 * number + 2 : 2 * number + 12] = 220
        frames.append(frame)
    return frames


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "prores_ks"])
@pytest.mark.parametrize("top_first", [True, False])
def test_interlaced_videos_are_deinterlaced_with_one_warning(tmp_path, codec, top_first):
    order = "1" if top_first else "0"
    options = {
        "libx264": {"crf": "4", "flags": "+ilme+ildct", "x264-params": "tff=1" if top_first else "bff=1"},
        "mpeg2video": {"flags": "+ilme+ildct", "qscale": "2", "top": order},
        "prores_ks": {"flags": "+ildct", "top": order},
    }[codec]
    pix_fmt = "yuv422p10le" if codec == "prores_ks" else "yuv420p"
    path = tmp_path / "clip.mov"
    frames = _field_frames(moving_fields(top_first), pix_fmt, top_first)
    write_frames(path, frames, codec, pix_fmt, options)
    with pytest.warns(UserWarning, match=r"clip\.mov' is interlaced") as caught:
        pixels = read_video(path).numpy().astype(int)
    assert len(caught) == 1
    assert len(pixels) == 12
    for frame in pixels[2:-2, :, :, 1]:
        assert np.abs(frame[1:-1:2] - (frame[0:-2:2] + frame[2::2]) / 2).mean() < 3


def test_deinterlaced_frames_keep_their_times(tmp_path):
    path = tmp_path / "clip.mov"
    options = {"crf": "4", "flags": "+ilme+ildct", "x264-params": "tff=1"}
    write_frames(path, _field_frames(moving_fields(True), "yuv420p", True), "libx264", "yuv420p", options)
    with av.open(str(path)) as container:
        times = [(frame.pts, frame.time_base, frame.duration) for frame in container.decode(video=0)]
    with av.open(str(path)) as container, pytest.warns(UserWarning, match="interlaced"):
        frames = list(colours.decoded_frames(container, container.streams.video[0]))
    assert [(frame.pts, frame.time_base, frame.duration) for frame in frames] == times
    # The last picture is not shown for longer than it lasts.
    with pytest.warns(UserWarning, match="interlaced"):
        assert len(read_video(path, frame_rate=48)) == 2 * len(times)


def test_frames_of_several_sizes_are_refused(tmp_path):
    small = write_frames(tmp_path / "a.ts", [patches()] * 3, **X264).read_bytes()
    large = write_frames(tmp_path / "b.ts", [patches(48, 64)] * 3, **X264).read_bytes()
    path = tmp_path / "changing.ts"
    path.write_bytes(small + large)
    with pytest.raises(ValueError, match=r"changing\.ts.*from 32x64 to 48x64"):
        read_video(path)


def test_interlaced_frames_of_several_sizes_are_refused(tmp_path):
    options = {"flags": "+ilme+ildct", "top": "1"}
    parts = []
    for width in (64, 96):
        fields = [np.full((32, width, 3), 10 * number, np.uint8) for number in range(4)]
        frames = _field_frames(fields, "yuv420p", True)
        parts.append(write_frames(tmp_path / f"{width}.ts", frames, "mpeg2video", "yuv420p", options).read_bytes())
    path = tmp_path / "changing.ts"
    path.write_bytes(b"".join(parts))
    with (
        pytest.raises(ValueError, match=r"changing\.ts.*from 32x64 to 32x96"),
        pytest.warns(UserWarning, match="interl"),
    ):
        read_video(path)


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt", "options"),
    [
        ("webm", "libvpx-vp9", "yuva420p", {"crf": "4", "b": "0"}),
        ("webm", "libvpx", "yuva420p", {"crf": "4", "auto-alt-ref": "0"}),
        ("mov", "prores_ks", "yuva444p10le", {"profile": "4444"}),
        ("mov", "qtrle", "argb", {}),
        ("mov", "png", "rgba", {}),
        ("mkv", "ffv1", "bgra", {}),
    ],
    ids=["VP9", "VP8", "ProRes 4444", "Animation", "PNG", "FFV1"],
)
def test_transparent_parts_of_videos_are_black(tmp_path, suffix, codec, pix_fmt, options):
    seen = np.full((32, 64, 4), 255, np.uint8)
    seen[:, :32, 3] = 0
    path = write_frames(tmp_path / f"clip.{suffix}", [seen] * 2, codec, pix_fmt, options, given="rgba")
    frames = read_video(path).float()
    assert len(frames) == 2
    assert frames[:, :, :28].max() <= 2
    assert frames[:, :, 36:].min() >= 250


def test_last_part_that_cannot_be_decoded_is_an_error(tmp_path):
    noise = list(np.random.default_rng(0).integers(0, 255, (24, 32, 64, 3), dtype=np.uint8))
    path = write_frames(tmp_path / "clip.flv", noise, **X264)
    cut = tmp_path / "cut.flv"
    # As of a broadcast, whose header tells no size.
    content = re.sub(rb"(?<=filesize\0).{8}", bytes(8), path.read_bytes(), flags=re.DOTALL)
    cut.write_bytes(content[: int(len(content) * 0.6)])
    assert len(read_video(path)) == 24
    with pytest.raises(ValueError, match=r"cut\.flv.*holds pictures up to .* but they can be decoded only up to"):
        read_video(cut)
    # What lies before the damage can be used.
    assert len(list(iterate_video(cut, max_frames=4))) == 4


def _field_frames(arrays, pix_fmt, top_first):
    """Frames that are marked as interlaced, which only a filter can do."""
    graph = av.filter.Graph()
    buffer = graph.add_buffer(
        None, arrays[0].shape[1], arrays[0].shape[0], av.VideoFormat(pix_fmt), time_base=Fraction(1, 24)
    )
    mark = graph.add("setfield", "tff" if top_first else "bff")
    graph.link_nodes(buffer, mark, graph.add("buffersink")).configure()
    marked = []
    for number, array in enumerate(arrays):
        # Chroma stays in its field because the picture is grey.
        frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format=pix_fmt)
        frame.pts = number
        graph.vpush(frame)
        marked.append(graph.vpull())
    return marked
