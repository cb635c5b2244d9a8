import os
import struct

import numpy as np
import PIL.Image
import pytest
import torch

from ltx2_diffusers.media.files import open_media
from ltx2_diffusers.media.frames import read_frames
from ltx2_diffusers.media.reading import probe, read_audio, read_image, read_video
from ltx2_diffusers.media.writing import write_audio, write_video

from .clips import gradient_clip, patches, tone, write_frames, write_sound

READERS = [read_frames, read_image, read_video, read_audio, probe]
X264 = ("libx264", "yuv420p")

# The table of `docs/reference/files.md`: kinds of video files, each with a container, codec and pixel format that
# every build of PyAV can write.
VIDEO_KINDS = {
    "MP4": ("mp4", *X264),
    "MOV": ("mov", "prores_ks", "yuv422p10le"),
    "M4V": ("mp4", "mpeg4", "yuv420p"),
    "MKV": ("matroska", *X264),
    "WebM": ("webm", "libvpx-vp9", "yuv420p"),
    "AVI": ("avi", "mjpeg", "yuvj420p"),
    "TS": ("mpegts", *X264),
    "MTS": ("mpegts", *X264),
    "FLV": ("flv", *X264),
    "3GP": ("3gp", "mpeg4", "yuv420p"),
    "MPG": ("mpeg", "mpeg2video", "yuv420p"),
    "WMV": ("asf", "wmv2", "yuv420p"),
}
IMAGE_KINDS = ["PNG", "JPEG", "WebP", "TIFF", "BMP", "GIF", "JPEG 2000"]
PILLOW_NAMES = {"JPEG 2000": "JPEG2000"}


@pytest.mark.parametrize("kind", VIDEO_KINDS)
@pytest.mark.parametrize("suffix", ["own", "none", "wrong"])
def test_videos_are_known_by_their_content(tmp_path, kind, suffix):
    container, codec, pix_fmt = VIDEO_KINDS[kind]
    name = {"own": f"clip.{kind.lower()}", "none": "clip", "wrong": "clip.png"}[suffix]
    options = {"qscale": "2"} if codec in ("mpeg4", "wmv2", "mpeg2video") else {}
    path = write_frames(tmp_path / name, [patches(96, 128)] * 5, codec, pix_fmt, options, container)
    frames = read_frames(path)
    assert frames.shape == (5, 96, 128, 3)
    assert (frames == read_video(path)).all()


@pytest.mark.parametrize("kind", IMAGE_KINDS)
@pytest.mark.parametrize("suffix", ["", ".mp4"])
def test_images_are_known_by_their_content(tmp_path, kind, suffix):
    path = tmp_path / f"picture{suffix}"
    PIL.Image.new("RGB", (16, 8), (40, 40, 40)).save(path, format=PILLOW_NAMES.get(kind, kind))
    frames = read_frames(path)
    assert frames.shape == (1, 8, 16, 3)
    assert (frames.int() - 40).abs().max() <= 2


NAMES = [
    "take:1.mp4",
    "12:30 shot.mp4",
    "-",
    "100%.mp4",
    "%03d.mp4",
    "ünï☃.mp4",
    "http:x.mp4",
    "concat:a|b.mp4",
    "data:,x",
]


@pytest.mark.parametrize("name", [*NAMES, "file:x.mp4", "pipe:0", "a\nb.mp4", "subfile,,start,0,end,9,,:x"])
def test_any_name_is_that_of_a_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    clip = write_video(tmp_path / "clip.mp4", gradient_clip(3), 24, tone(0.2), 24000)
    os.rename(clip, name)
    assert len(read_frames(name)) == 3
    assert read_audio(name) is not None
    assert probe(name).num_frames == 3
    # The same relative to a folder.
    assert len(read_frames(tmp_path / name)) == 3


@pytest.mark.parametrize("name", ["take:1.mp4", "50%d.mp4", "http:x.mp4", "-.mp4", "ü.mov"])
def test_any_name_can_be_written(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_video(name, gradient_clip(3), 24)
    assert os.listdir() == [name]
    assert len(read_video(name)) == 3


@pytest.mark.parametrize("name", ["shot%03d.png", "shot%03d.jpg", "shot%d.gif"])
def test_names_of_single_pictures_are_no_patterns(tmp_path, name):
    for number, level in ((1, 10), (2, 20)):
        PIL.Image.new("L", (8, 8), level).save(tmp_path / (name % number))
    PIL.Image.new("L", (8, 8), 99).save(tmp_path / name)
    assert read_frames(tmp_path / name).float().mean().round() == 99
    assert read_video(tmp_path / name).float().mean().round() == 99
    (tmp_path / name).unlink()
    for read in READERS:
        with pytest.raises(FileNotFoundError, match="no media file"):
            read(tmp_path / name)


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nclip.mp4\n#EXT-X-ENDLIST\n",
    "hidden.mp4": "\ufeff\n#EXTM3U\n#EXTINF:5,\nclip.mp4\n",
    "list.ffconcat": "ffconcat version 1.0\nfile clip.mp4\n",
    "list.txt": "file 'clip.mp4'\n",
    "stream.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\n",
    "dash.mpd": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    "list.pls": "[playlist]\nFile1=clip.mp4\n",
    "list.xspf": '<?xml version="1.0"?>\n<playlist version="1"></playlist>',
    "plain.m3u": "clip.mp4\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("read", READERS)
def test_playlists_are_refused(tmp_path, name, read):
    write_video(tmp_path / "clip.mp4", gradient_clip(3), 24)
    (tmp_path / name).write_text(PLAYLISTS[name])
    with pytest.raises(ValueError, match=rf"{name}' is .*which names other files; give the media file itself"):
        read(tmp_path / name)


def test_files_that_lead_elsewhere_are_not_followed_even_if_they_are_not_recognised(tmp_path, monkeypatch):
    """The formats of playlists and patterns are shut as well, for what a look at the content misses."""
    monkeypatch.setattr("ltx2_diffusers.media.kinds._PLAYLISTS", ())
    monkeypatch.setattr("ltx2_diffusers.media.kinds._PLAYLIST_SUFFIXES", ())
    write_video(tmp_path / "clip.mp4", gradient_clip(3), 24)
    for name in ("list.m3u8", "list.ffconcat"):
        (tmp_path / name).write_text(PLAYLISTS[name])
        with pytest.raises(ValueError, match=f"{name}' cannot be read"), open_media(tmp_path / name):
            pass


OTHERS = {
    "photo.heic": (
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
        "is HEIC; install pillow-heif, or convert it to JPEG",
    ),
    "photo.heif": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(99), "is HEIC"),
    "drawing.svg": (
        b"<?xml version='1.0'?>\n<!-- x -->\n<svg xmlns='x'/>",
        "is SVG, which cannot be read; export it as PNG",
    ),
    "small.svg": (b"<svg/>", "is SVG"),
    "page.pdf": (b"%PDF-1.7\n", "is a PDF document"),
    "layers.psd": (b"8BPS\0\1" + bytes(99), "is a PSD document"),
    "page.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is PostScript"),
    "photo.cr2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(99), "is RAW.*develop it"),
    "photo.raf": (b"FUJIFILMCCD-RAW " + bytes(99), "is RAW"),
    "photo.nef": (b"MM\0*" + bytes(99), "is RAW"),
    "render.exr": (b"v/1\x01" + bytes(99), "is a picture of linear light"),
    "photo.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "is JPEG XL"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("read", READERS)
def test_kinds_that_cannot_be_shown_are_named(tmp_path, monkeypatch, name, read):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    content, words = OTHERS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}' {words}"):
        read(tmp_path / name)


@pytest.mark.parametrize("read", READERS)
def test_what_is_no_file_is_named(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "text.mp4").write_text("x")
    for name, words in {"pipe.mp4": "a device or a pipe", "folder.mp4": "a folder"}.items():
        with pytest.raises(ValueError, match=f"{name}' is {words}; give the name of a media file"):
            read(tmp_path / name)
    for name in ("nul\0.mp4", "x" * 300):
        with pytest.raises(ValueError, match="cannot be opened"):
            read(tmp_path / name)
    for name in ("nowhere.mp4", "text.mp4/below.mp4", ""):
        with pytest.raises((FileNotFoundError, ValueError), match=r"no media file at|is a folder"):
            read(tmp_path / name)


NOISE = torch.rand(12, 3, 48, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "flv", "wmv", "wav", "aiff", "mp3"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_files_that_are_cut_off_are_refused_with_both_sizes(tmp_path, suffix, share):
    if suffix == "mp4":
        path = write_video(tmp_path / "whole.mp4", NOISE, 24, tone(0.5), 24000)
    elif suffix in ("mkv", "avi"):
        frames = list((NOISE * 255).byte().permute(0, 2, 3, 1).contiguous().numpy())
        path = write_frames(tmp_path / f"whole.{suffix}", frames, "mjpeg", "yuvj420p")
    elif suffix in ("flv", "wmv"):
        frames = list((NOISE * 255).byte().permute(0, 2, 3, 1).contiguous().numpy())
        codec = {"flv": "flv", "wmv": "wmv2"}[suffix]
        path = write_frames(tmp_path / f"whole.{suffix}", frames, codec, "yuv420p")
    elif suffix == "wav":
        path = write_audio(tmp_path / "whole.wav", tone(0.5), 24000)
    elif suffix == "aiff":
        path = write_sound(tmp_path / "whole.aiff", "pcm_s16be", tone(0.5)[:1])
    else:
        path = _write_mp3(tmp_path / "whole.mp3")
    cut = tmp_path / f"cut.{suffix}"
    content = path.read_bytes()
    cut.write_bytes(content[: int(len(content) * share)])
    readers = (probe, read_audio) if suffix in ("wav", "aiff", "mp3") else (probe, read_audio, read_video)
    for read in readers:
        read(path)
        with pytest.raises(
            ValueError, match=rf"cut\.{suffix}' is cut off: .* {len(content)} bytes but {cut.stat().st_size} "
        ):
            read(cut)


def test_broadcasts_whose_header_tells_no_size_are_read(tmp_path):
    path = write_frames(tmp_path / "clip.wmv", [patches()] * 3, "wmv2", "yuv420p")
    content = bytearray(path.read_bytes())
    place = content.index(b"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11")
    content[place + 40 : place + 48], content[place + 88] = b"\xff" * 8, 3
    path.write_bytes(content)
    assert len(read_video(path)) == 3


def test_sound_of_an_unknown_kind_is_named(tmp_path):
    path = write_sound(tmp_path / "sound.mov", "pcm_s16le", tone(0.2)[:1])
    content = path.read_bytes()
    assert content.count(b"sowt") == 1
    path.write_bytes(content.replace(b"sowt", b"xxxx"))
    for read in (probe, read_audio):
        with pytest.raises(ValueError, match=r"sound\.mov' has sound of a kind that cannot be decoded"):
            read(path)


def test_letters_of_a_text_are_no_pictures(tmp_path):
    (tmp_path / "release.nfo").write_text("A text, of some lines\nand more.\n")
    with pytest.raises(ValueError, match=r"release\.nfo' cannot be read"):
        probe(tmp_path / "release.nfo")


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_headers_that_do_not_know_the_size_are_believed(tmp_path, size):
    content = bytearray(write_audio(tmp_path / "sound.wav", tone(0.5), 24000).read_bytes())
    content[4:8] = content[40:44] = struct.pack("<I", 0xFFFFFFFF)
    content[4:8] = struct.pack("<I", size)
    path = tmp_path / "streamed.wav"
    path.write_bytes(content)
    assert read_audio(path)[0].shape[-1] == 12000


def test_matroska_of_unknown_size_is_read(tmp_path):
    path = write_frames(tmp_path / "clip.mkv", [patches()] * 3)
    content = bytearray(path.read_bytes())
    place = content.index(b"\x18\x53\x80\x67") + 4
    content[place : place + 8] = b"\x01" + b"\xff" * 7
    path.write_bytes(content[: len(content) - 40])
    assert len(read_video(path)) >= 2


def test_boxes_without_media_may_be_missing(tmp_path):
    path = write_video(tmp_path / "clip.mp4", gradient_clip(3), 24)
    path.write_bytes(path.read_bytes() + struct.pack(">I4s", 1000, b"free"))
    assert len(read_video(path)) == 3


def test_names_of_damaged_metadata_do_not_stop_reading(tmp_path):
    path = write_frames(tmp_path / "clip.mkv", [patches()] * 2)
    content = path.read_bytes()
    assert b"Lavf" in content
    path.write_bytes(content.replace(b"Lavf", b"L\xe9vf"))
    assert np.array_equal(read_video(path)[0].numpy(), patches())


def _write_mp3(path):
    """Noise, so that its bit rate varies and the header tells its size."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libmp3lame", rate=24000, options={"q": "2"})
        noise = np.random.default_rng(0).uniform(-1, 1, (1, 240000)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
        frame.sample_rate = 24000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
