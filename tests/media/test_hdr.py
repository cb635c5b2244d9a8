"""Curves and files of high dynamic range, by their standards and by what other software reads of them."""

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from ltx2_diffusers import HDRFile, encode_hdr_tensor_to_mp4, write_hdr
from ltx2_diffusers.media import colours
from ltx2_diffusers.media.hdr import curves, writing
from ltx2_diffusers.media.reading import read_video
from tests.golden_data import load_tensors

# Light from black to 4000 cd/m2 in 2 x 2 blocks of colours, so that chroma of half the size is exact inside of them.
BLOCK = 8


def ramp(most: float = 4000 / 203) -> torch.Tensor:
    """Frames `[2, 48, 64, 3]` of colours in blocks, some of them grey."""
    rng = np.random.default_rng(0)
    colour = most ** rng.uniform(-1.0, 1.0, (2, 6, 8, 3))
    colour[:, :2] = colour[:, :2, :, :1]
    colour[:, 0, 0], colour[:, 0, 1] = 0.0, 1.0
    return torch.from_numpy(colour.repeat(BLOCK, 1).repeat(BLOCK, 2)).float()


def samples(path: Path) -> list[np.ndarray]:
    """Planes of the frames of a video, as floats."""
    found = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            planes = [
                np.frombuffer(plane, np.uint16).reshape(plane.height, -1)[:, : plane.width] for plane in frame.planes
            ]
            found.append([plane.astype(np.float64) for plane in planes])
    return found


def decoded_png(path: Path) -> np.ndarray:
    """Codes of a PNG file of 16 bits, `[H, W, 3]`."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert frame.format.name == "rgb48be"
    return frame.to_ndarray()


# --- curves ---


def test_recorded_curve_and_bytes():
    recorded = load_tensors("dfr_hdr/hdr.safetensors")
    signal = recorded["curve.vae_range"] / 2 + 0.5
    torch.testing.assert_close(curves.from_logc3(signal), recorded["curve.linear"], rtol=1e-6, atol=1e-6)
    for light, expected in zip(recorded["mp4.linear"], recorded["mp4.rgb8"].numpy()):
        assert np.array_equal(writing.tone_mapped(light), expected)


def acescct(light: torch.Tensor) -> torch.Tensor:
    """ACEScct signal of light (Academy S-2016-001)."""
    light = light @ torch.from_numpy(np.linalg.inv(curves._FROM_ACESCG).T).float()
    return torch.where(light > 2**-7, (torch.log2(light) + 9.72) / 17.52, curves._SLOPE * light + curves._OFFSET)


@pytest.mark.parametrize(
    ("compress", "decompress"), [(curves.logc3, curves.from_logc3), (acescct, curves.from_acescct)]
)
def test_transforms_are_inverse(compress, decompress):
    # Of a colour of a dark and a bright channel, primaries mix them, and rounding of the bright one shows in the dark.
    grey, colour = (torch.rand(1000, n, generator=torch.Generator().manual_seed(n)) for n in (1, 3))
    signal = 0.1 + 0.7 * grey + 0.1 * colour
    torch.testing.assert_close(compress(decompress(signal)), signal, rtol=0, atol=1e-5)


def test_values_of_the_standards():
    white, grey = torch.ones(1, 3), torch.full((1, 3), 0.18)
    # ARRI: 18 % grey at EI 800 is 400 of 1023.
    assert curves.logc3(grey) == pytest.approx(np.full((1, 3), 0.391007), abs=1e-5)
    # ACES: 18 % grey is 0.4136.
    assert curves.from_acescct(torch.full((1, 3), 0.413588)) == pytest.approx(np.full((1, 3), 0.18), abs=2e-4)
    # ITU-R BT.2408: 203 cd/m2 are 58 % of PQ and 75 % of HLG; ST 2084: 100 cd/m2 are 0.5081, 10000 are 1.
    assert curves.pq(white) == pytest.approx(np.full((1, 3), 0.58069), abs=1e-4)
    assert curves.pq(white, 100.0) == pytest.approx(np.full((1, 3), 0.508078), abs=1e-5)
    assert curves.pq(white * 1e6) == pytest.approx(np.ones((1, 3)), abs=1e-6)
    assert curves.pq(white * 1e6, peak_nits=1000.0) == pytest.approx(np.full((1, 3), 0.751827), abs=1e-5)
    assert curves.hlg(white) == pytest.approx(np.full((1, 3), 0.75), abs=1e-5)
    assert curves.hlg(torch.zeros(1, 3)).abs().max() == 0 and curves.hlg(white * 1000) == pytest.approx(
        np.ones((1, 3))
    )
    # Colours of Rec.2020 outside of Rec.709 are kept.
    green = torch.tensor([[0.0, 1.0, 0.0]]) @ torch.from_numpy(colours.to_bt709_primaries(9).T)
    assert green[0, 0] < 0
    assert HDRFile("clip.mp4").encoded(green[None])[0, 0] == pytest.approx([0, 0.58069, 0], abs=2e-3)
    assert HDRFile("clip.mp4", signal="hlg").encoded(green[None])[0, 0] == pytest.approx([0, 0.75, 0], abs=2e-3)
    # ITU-R BT.2087: pure red of BT.709 in BT.2020.
    red = curves._mixed(torch.tensor([1.0, 0.0, 0.0]), curves._TO_BT2020)
    assert red == pytest.approx([0.6274, 0.0691, 0.0164], abs=1e-4)


# --- videos ---


@pytest.mark.parametrize("signal", ["pq", "hlg"])
def test_a_video_holds_its_light_within_steps_of_ten_bits(signal):
    """From light to samples, and back by the formulas of the standards that reading uses."""
    light = ramp()
    file = HDRFile("clip.mp4", signal=signal)
    encoded = file.encoded(light)
    for frame, expected in zip(encoded, light.numpy()):
        luma, chroma = np.split(writing._samples(frame), [48])
        blue, red = chroma.reshape(2, 24, 32)
        inside = (slice(3, None, BLOCK), slice(3, None, BLOCK))
        y = (luma[inside] - 64.0) / 876
        b, r = ((plane[1::4, 1::4] - 512.0) / 896 for plane in (blue, red))
        rgb = np.stack([y + 1.4746 * r, np.zeros_like(y), y + 1.8814 * b], axis=-1)
        rgb[..., 1] = (y - 0.2627 * rgb[..., 0] - 0.0593 * rgb[..., 2]) / 0.678
        # Half a step of each of the three samples.
        step = 0.5 / 876 + 1.8814 * 0.5 / 896 + 1e-6
        wanted = frame[inside].astype(np.float64)
        assert np.abs(rgb - wanted).max() <= step
        low, high = (backwards((wanted + sign * step).clip(0, 1), signal) for sign in (-1, 1))
        for light_in in (backwards(rgb.clip(0, 1), signal), expected[inside] @ curves._TO_BT2020.T):
            # Light that is computed in float32.
            assert (low * (1 - 1e-5) - 1e-5 <= light_in).all() and (light_in <= high * (1 + 1e-5) + 1e-5).all()


def backwards(code: np.ndarray, signal: str) -> np.ndarray:
    """Light of codes, BT.2020, by another way than it was encoded."""
    if signal == "pq":
        return colours._linear_light(colours.PQ)[np.rint(code * 65535).astype(int)]
    a, b, c = colours.HLG_CURVE
    scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    w = curves._HLG_WHITE
    return np.where(scene <= w, scene / w, 1 - (1 - w) / w * np.log((1 - np.minimum(scene, 0.9999)) / (1 - w)))


@pytest.mark.parametrize(("signal", "transfer"), [("pq", 16), ("hlg", 18)])
def test_a_video_says_what_it_is(tmp_path, signal, transfer):
    light = ramp()
    file = HDRFile(tmp_path / "clip.mp4", signal=signal)
    write_hdr(file, light, 23.976, crf=1, preset="ultrafast")
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.codec_tag, context.profile) == (
            "hevc",
            "yuv420p10le",
            "hvc1",
            "Main 10",
        )
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (
            9,
            transfer,
            9,
            1,
        )
        assert stream.average_rate == Fraction(24000, 1001)
        frames = list(container.decode(stream))
    kinds = {data.type.name for data in frames[0].side_data}
    assert ("MASTERING_DISPLAY_METADATA" in kinds) == (signal == "pq")
    assert len(frames) == 2
    for planes, encoded in zip(samples(tmp_path / "clip.mp4"), file.encoded(light)):
        expected = writing._samples(encoded)[:48]
        assert np.abs(planes[0] - expected).mean() <= 1.5
    # Other videos are read as of standard range, this one is brought there.
    with pytest.warns(UserWarning, match="is HDR"):
        assert read_video(tmp_path / "clip.mp4").shape == (2, 48, 64, 3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_clip_of_one_or_two_frames_has_its_times(tmp_path, count):
    """Which x265 takes from memory that it never wrote: most of several files failed."""
    for index in range(6):
        write_hdr(tmp_path / f"{index}.mp4", ramp()[:count], 24, preset="ultrafast")
        with av.open(str(tmp_path / f"{index}.mp4")) as container:
            times = [(packet.pts, packet.dts) for packet in container.demux(video=0) if packet.size]
        assert times == [(512 * frame, 512 * frame) for frame in range(count)]


def test_a_video_of_standard_range_to_look_at(tmp_path):
    light = torch.full((2, 32, 48, 3), 0.5)
    light[..., 2] = 3.0
    encode_hdr_tensor_to_mp4(light, tmp_path / "look.mp4", 24.0, crf=1)
    assert np.abs(read_video(tmp_path / "look.mp4").float() - torch.tensor([188.0, 188.0, 255.0])).max() <= 4
    seen = []
    encode_hdr_tensor_to_mp4(
        light.numpy(),
        tmp_path / "mapped.mp4",
        24.0,
        lambda frame: seen.append(frame) or frame / 3,
        tone_map_in_rgb=False,
    )
    assert seen[0][0, 0].tolist() == [3.0, 0.5, 0.5]
    first = read_video(tmp_path / "mapped.mp4")[0, 8, 8]
    assert first[2] > 250 and abs(int(first[0]) - 113) < 6


# --- sequences ---


def test_exr_holds_light_exactly_to_half(tmp_path):
    openexr = pytest.importorskip("OpenEXR", reason="the extra hdr is not installed")
    light = ramp()
    light[0, 0, 0] = torch.tensor([-0.01, 1e6, 0.5])
    write_hdr(tmp_path / "clip.exr", (frame for frame in light), 23.976)
    expected = light.clamp(0, 65504).half().numpy()
    for index, frame in enumerate(expected):
        with openexr.File(str(tmp_path / f"clip_{index:05d}.exr"), separate_channels=True) as file:
            header, channels = file.header(), file.channels()
            assert np.array_equal(np.stack([channels[name].pixels for name in "RGB"], axis=-1), frame)
            assert header["chromaticities"] == pytest.approx((0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290))
            assert (header["colorSpace"], header["framesPerSecond"]) == ("lin_rec709", Fraction(24000, 1001))
            assert header["compression"] == openexr.ZIP_COMPRESSION
    write_hdr(HDRFile(tmp_path / "log.exr", signal="logc3"), light[:1], 24)
    with openexr.File(str(tmp_path / "log_00000.exr"), separate_channels=True) as file:
        red = file.channels()["R"].pixels
        assert file.header()["colorSpace"] == "logc3_rec709"
    assert np.array_equal(red, curves.logc3(light[0].clamp(min=0)).half().numpy()[..., 0])


@pytest.mark.parametrize("lacks", [True, False])
def test_a_sequence_of_exr_needs_the_extra(tmp_path, monkeypatch, lacks):
    if lacks:
        monkeypatch.setitem(sys.modules, "OpenEXR", None)
        with pytest.raises(
            ImportError, match=r"writing EXR needs OpenEXR; install it with pip install 'ltx2-diffusers\[hdr\]'"
        ):
            HDRFile(tmp_path / "clip.exr").check()
    HDRFile(tmp_path / "clip.png").check()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("signal", "codes", "to_light"),
    [
        (None, None, curves.from_logc3),
        ("linear", (1, 8), lambda code: code),
        ("pq", (9, 16), None),
        ("hlg", (9, 18), None),
    ],
)
def test_png_holds_sixteen_bits(tmp_path, signal, codes, to_light):
    light = ramp(0.9 if signal == "linear" else 20.0)
    light[:, :, :8] = 0.25
    write_hdr(HDRFile(tmp_path / "clip.png", signal=signal), light, 24)
    for index, frame in enumerate(HDRFile("clip.png", signal=signal).encoded(light)):
        data = (tmp_path / f"clip_{index:05d}.png").read_bytes()
        written = decoded_png(tmp_path / f"clip_{index:05d}.png")
        assert np.abs(written / 65535 - frame.clip(0, 1)).max() <= 0.5 / 65535 + 1e-7
        place = data.find(b"cICP")
        assert (tuple(data[place + 4 : place + 6]) if place > 0 else None) == codes
        if to_light is not None and signal is None:
            back = to_light(torch.from_numpy(written / 65535)).numpy()
            assert (np.abs(back - light[index].numpy()) / light[index].numpy().clip(0.1)).max() <= 3e-4


def test_a_shorter_sequence_takes_the_place_of_a_longer_one_and_an_error_leaves_the_old_one(tmp_path):
    light = ramp()
    write_hdr(tmp_path / "clip.png", [light, light], 24)
    (tmp_path / "clip_other.png").write_bytes(b"of somebody else")
    before = (tmp_path / "clip_00000.png").read_bytes()
    counts = []
    with pytest.raises(ValueError, match="not finite"):
        write_hdr(HDRFile(tmp_path / "clip.png", on_frames=counts.append), [light / 2, light * torch.nan], 24)
    assert counts == [0, 1, 2] and (tmp_path / "clip_00000.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 5
    write_hdr(tmp_path / "clip.png", light[:1] / 2, 24)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["clip_00000.png", "clip_other.png"]
    assert (tmp_path / "clip_00000.png").read_bytes() != before


# --- errors ---


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("clip.avi", {}, "is written as .mp4 or .mov or .exr or .png"),
        ("clip.mp4", {"signal": "logc3"}, "`signal` has to be one of None, 'pq', 'hlg' but is 'logc3'"),
        ("clip.exr", {"signal": "pq"}, "`signal` has to be one of None, 'linear', 'logc3'"),
        (
            "clip.mp4",
            {"signal": "hlg", "white_nits": 100.0},
            "`white_nits` is 100.0, which .mp4 files of the signal 'hlg'",
        ),
        ("clip.exr", {"peak_nits": 1000.0}, "`peak_nits` is 1000.0, which .exr files"),
        ("clip.mp4", {"peak_nits": 20000.0}, "`peak_nits` has to be at most 10000"),
        ("clip.mp4", {"white_nits": 0.0}, "`white_nits` has to be"),
        ("clip.mp4", {"signal": 3}, "`signal`"),
        ("clip.png", {"growing": "part.png"}, "is written as .mp4 or .mov"),
    ],
)
def test_what_a_file_cannot_be(name, settings, message):
    with pytest.raises(ValueError, match=message):
        HDRFile(name, **settings)


@pytest.mark.parametrize(
    ("name", "frames", "options", "message"),
    [
        ("clip.mp4", torch.ones(1, 31, 32, 3), {}, "needs even sides"),
        ("clip.mp4", torch.ones(1, 3, 32, 32), {}, "frames must be floats"),
        ("clip.mp4", torch.ones(1, 32, 32, 3, dtype=torch.uint8), {}, "frames must be floats"),
        ("clip.mp4", [], {}, "frames is empty"),
        ("clip.png", torch.ones(0, 32, 32, 3), {}, "frames is empty"),
        ("clip.mp4", torch.ones(1, 32, 32, 3), {"crf": 52}, "crf must be between 0 and 51"),
        ("clip.mp4", torch.ones(1, 32, 32, 3), {"preset": "quick"}, "preset must be one of"),
        ("clip.png", torch.ones(1, 32, 32, 3), {"crf": 20}, "`crf` and `preset` belong to videos"),
        ("clip.mp4", [torch.ones(1, 32, 32, 3), torch.ones(1, 64, 32, 3)], {}, "all frames must have one size"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, frames, options, message):
    with pytest.raises(ValueError, match=message):
        write_hdr(tmp_path / name, frames, 24, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.ones(1, 3, 32, 32), "frames must be floats"),
        (np.ones((1, 32, 32, 3), np.uint8), "frames must be floats"),
        (torch.full((1, 32, 32, 3), torch.nan), "holds values that are not finite"),
        (torch.ones(0, 32, 32, 3), "frames is empty"),
    ],
)
def test_what_cannot_be_looked_at(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        encode_hdr_tensor_to_mp4(frames, tmp_path / "look.mp4", 24.0)
    assert list(tmp_path.iterdir()) == []
