"""Media are read in processes of their own, within limits, and without loss."""

import io
import struct
import wave
import zlib
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import torch

from ltx2_diffusers.media.reading import probe, read_audio, read_image, read_video
from ltx2_diffusers.serving.admission import Refusal
from ltx2_diffusers.serving.inputs.process import limit_process
from ltx2_diffusers.serving.inputs.reader import MediaReader, decoded_media
from ltx2_diffusers.serving.settings import Limits
from tests.killing import child, ended

# Far above what it takes, two seconds at most, since other programs may keep the machine busy. Whoever reads for longer
# gives that as the reason.
SOON_S = 15.0


@pytest.fixture(scope="module")
def reader() -> MediaReader:
    """A reader whose processes start at once."""
    reader = MediaReader(Limits(max_picture_megapixels=10, max_clip_megapixels=50, media_time=SOON_S))
    reader.warm_up()
    return reader


def png(width: int, height: int, rows: bytes) -> bytes:
    """A PNG file of any size, whatever its rows hold."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def gif(frames: int, side: int) -> bytes:
    """An animation of empty pictures, a few bytes each."""
    size = struct.pack("<HH", side, side)
    picture = b"\x2c" + struct.pack("<HH", 0, 0) + size + b"\x00\x02\x02\x44\x01\x00"
    # All frames share the smallest data that is valid; a decoder fills the rest.
    shown = b"\x21\xf9\x04\x00\x0a\x00\x00\x00" + picture
    return b"GIF89a" + size + b"\x80\x00\x00" + b"\0\0\0\xff\xff\xff" + shown * frames + b"\x3b"


def long_sound(seconds: int) -> bytes:
    """Silence in a lossless format that writes hardly anything for it."""
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=8000, layout="mono")
        for start in range(seconds // 60):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000 * 60), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 8000, start * 8000 * 60
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def long_clip(frames: int, side: int) -> bytes:
    """Black pictures, which H.264 writes in a few bytes each."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width = stream.height = side
        picture = av.VideoFrame(side, side, "yuv420p")
        for index in range(frames):
            picture.pts = index
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return file.getvalue()


BOMBS = {
    "a huge picture": ("picture", lambda: png(60_000, 60_000, b"\0" * 10_000_000), "megapixels"),
    "a picture of many pixels in few bytes": (
        "pictures",
        lambda: png(4000, 4000, b"\0" * 4000 * 12_001),
        "megapixels",
    ),
    "an animation without end": ("clip", lambda: gif(5000, 64), "frames"),
    "an animation of huge pictures": ("pictures", lambda: gif(1000, 4000), "megapixels"),
    "hours of silence": ("sound", lambda: long_sound(3600), "seconds"),
    "a clip of many frames": ("clip", lambda: long_clip(1600, 16), "frames"),
    "a clip of many pixels": ("clip", lambda: long_clip(60, 1024), "megapixels"),
    "no media": ("picture", lambda: b"hello" * 1000, "cannot be read"),
    "zeros": ("clip", lambda: bytes(2**20), "cannot be read"),
    "a script that names files": ("clip", lambda: b"#EXTM3U\n/etc/passwd\n", "names other files"),
    "an address": ("sound", lambda: b"ffconcat version 1.0\nfile 'http://example.com/x'\n", "names other files"),
    "a drawing": ("picture", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "a picture that breaks off": ("picture", lambda: png(64, 64, bytes(64 * 193))[:60], "cannot be read"),
}


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("name", BOMBS)
def test_what_cannot_be_taken_is_refused_soon_with_a_reason(reader, tmp_path, name):
    kind, make, reason = BOMBS[name]
    content = make()
    with pytest.raises(Refusal, match=reason) as refused:
        reader.read("image", kind, content, tmp_path)
    assert (refused.value.field, "`image`" in str(refused.value), str(tmp_path) in str(refused.value)) == (
        "image",
        True,
        False,
    )
    assert list(tmp_path.iterdir()) == []


def test_reading_ends_when_its_time_is_over(tmp_path):
    slow = MediaReader(Limits(media_time=0.2))
    slow.warm_up()
    with pytest.raises(Refusal, match="reading it takes longer"):
        slow.read("video", "clip", long_clip(1000, 256), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("megabytes", [300])
def test_reading_ends_when_its_memory_is_over(tmp_path, megabytes):
    poor = MediaReader(Limits(media_memory_mb=megabytes, max_picture_megapixels=200))
    poor.warm_up()
    picture = png(12_000, 12_000, b"\0" * 12_000 * 36_001)
    with pytest.raises(Refusal, match="memory"):
        poor.read("image", "picture", picture, tmp_path)


def test_a_process_is_bounded():
    def try_it() -> None:
        limit_process(Limits(media_memory_mb=64))
        with pytest.raises(MemoryError):
            bytearray(2**30)
        bytearray(2**20)

    assert ended(child(try_it)) == 0


def test_pictures_keep_their_pixels(reader, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    file = tmp_path / "noise.png"
    PIL.Image.fromarray(pixels).save(file)
    kept = reader.read("image", "picture", file.read_bytes(), tmp_path / "inputs")
    assert np.array_equal(np.asarray(read_image(kept)), pixels)
    assert (tmp_path / "inputs" / "0.png").exists()


def test_clips_keep_their_frames_and_their_sound(reader, tmp_path, media):
    source = media / "clip.mp4"
    kept = reader.read("video", "clip", source.read_bytes(), tmp_path)
    assert torch.equal(read_video(kept), read_video(source))
    assert torch.equal(read_audio(kept)[0], read_audio(source)[0])
    assert (probe(kept).frame_rate, probe(kept).num_frames) == (24, 17)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_sound_keeps_its_samples(reader, tmp_path, channels):
    samples = np.random.default_rng(0).integers(-32768, 32768, (1000, channels), np.int16)
    file = tmp_path / "noise.wav"
    with wave.open(str(file), "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(2)
        sound.setframerate(44100)
        sound.writeframes(samples.tobytes())
    kept = reader.read("audio", "sound", file.read_bytes(), tmp_path / "inputs")
    waveform, rate = read_audio(kept)
    assert rate == 44100
    assert torch.equal(waveform[0], torch.from_numpy(samples.T.astype(np.float32) / 32768))


def test_what_comes_is_not_what_is_kept(reader, tmp_path, media):
    kept = reader.read("image", "picture", (media / "red.png").read_bytes() + b"<?php evil ?>", tmp_path)
    assert (kept.suffix, b"evil" in kept.read_bytes()) == (".png", False)


def test_too_large_a_file_is_not_even_decoded():
    with pytest.raises(Refusal, match="larger than the 1 MiB"):
        decoded_media("image", "A" * (2 * 2**20), Limits(max_media_mb=1))
    assert decoded_media("image", "data:image/png;charset=x;base64,aGVs\nbG8=", Limits()) == b"hello"
    assert decoded_media("image", "aGVsbG8=", Limits()) == b"hello"


def test_files_are_counted(client, media):
    from tests.serving.clips import data_uri, refusal
    from tests.serving.conftest import JOB

    pictures = [{"frame": 0, "media": data_uri(media / "red.png"), "strength": 1}] * 17
    answer = client.post("/v1/videos", json={**JOB, "image_at": pictures})
    assert refusal(answer)[0] == "image_at"
    assert "16 media files" in refusal(answer)[1]
    assert list(Path(client.app.state.server.settings.inputs).iterdir()) == []
