import gc
import io
import os
import signal
import tracemalloc

import av
import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import torch

from ltx2_diffusers.media.reading import iterate_video, probe, read_audio, read_image, read_video
from ltx2_diffusers.media.writing import write_audio, write_video

from .clips import gradient_clip, tone, write_sound


@pytest.fixture
def numbered_clip(tmp_path):
    """24 grey frames at 12 fps whose brightness tells their number."""
    levels = torch.linspace(0.1, 0.9, 24)[:, None, None, None].expand(-1, 3, 32, 32)
    return write_video(tmp_path / "numbered.mp4", levels, 12, tone(2.0), 24000, crf=1)


def numbers(frames):
    return ((frames.float().mean(dim=(1, 2, 3)) / 255 - 0.1) / 0.8 * 23).round().int().tolist()


def test_frames_are_capped_by_number(numbered_clip):
    assert numbers(read_video(numbered_clip)) == list(range(24))
    assert numbers(read_video(numbered_clip, max_frames=5)) == [0, 1, 2, 3, 4]
    assert len(list(iterate_video(numbered_clip, max_frames=100))) == 24


def test_frames_are_taken_from_a_time_window(numbered_clip):
    assert numbers(read_video(numbered_clip, start_s=0.5, end_s=1.0)) == [6, 7, 8, 9, 10, 11]
    assert numbers(read_video(numbered_clip, start_s=1.75)) == [21, 22, 23]
    assert numbers(read_video(numbered_clip, max_frames=2, start_s=1 / 12)) == [1, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_may_be_forked_after_a_video_was_read(numbered_clip):
    """What was decoded is collected in the child, which has none of the threads of its parent."""
    gc.disable()
    try:
        read_video(numbered_clip)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            gc.collect()
            os._exit(0)
    finally:
        gc.enable()
    assert os.waitpid(child, 0)[1] == 0


def test_a_video_is_read_without_holding_it_twice(tmp_path):
    path = write_video(tmp_path / "clip.mp4", torch.zeros(100, 3, 128, 128), 24)
    tracemalloc.start()
    try:
        frames = read_video(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert frames.shape == (100, 128, 128, 3)
    assert peak < 1.5 * frames.numel()


def test_windows_that_hold_nothing_are_refused(numbered_clip):
    with pytest.raises(ValueError, match=r"numbered\.mp4.*no video frames between 5\.0 s"):
        read_video(numbered_clip, start_s=5.0)
    with pytest.raises(ValueError, match=r"numbered\.mp4.*no sound between 5\.0 s"):
        read_audio(numbered_clip, start_s=5.0)
    with pytest.raises(ValueError, match="end_s must be larger"):
        read_video(numbered_clip, start_s=1.0, end_s=1.0)
    with pytest.raises(ValueError, match="start_s must not be negative"):
        read_audio(numbered_clip, start_s=-1.0)
    with pytest.raises(ValueError, match="max_frames must be at least 1"):
        read_video(numbered_clip, max_frames=0)


def test_sound_window_lies_where_it_should(tmp_path):
    ramp = torch.linspace(-1, 1, 48000)[None].expand(2, -1)
    path = write_audio(tmp_path / "ramp.wav", ramp, 24000)
    audio, rate = read_audio(path, start_s=0.5, end_s=0.75)
    assert (audio.shape, rate) == ((1, 2, 6000), 24000)
    assert (audio[0] - ramp[:, 12000:18000]).abs().max() < 1e-4
    assert read_audio(path, start_s=1.9)[0].shape == (1, 2, 2400)


@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("stereo", 2), ("5.1", 6)])
@pytest.mark.parametrize(
    ("codec", "sample_format", "dtype"), [("pcm_s16le", "s16", "<i2"), ("pcm_s32le", "s32", "<i4")]
)
def test_integer_samples_are_scaled_by_their_negative_range(tmp_path, layout, channels, codec, sample_format, dtype):
    path = tmp_path / "samples.wav"
    limit = 2 ** (8 * np.dtype(dtype).itemsize - 1)
    samples = np.tile(np.array([-limit, -limit // 2, 0, limit // 4, limit - 1], dtype=dtype)[:, None], (1, channels))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16000, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format=sample_format, layout=layout)
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    audio, rate = read_audio(path)
    assert (rate, audio.dtype, audio.shape) == (16000, torch.float32, (1, channels, 5))
    assert torch.allclose(audio[0, -1], torch.tensor([-1.0, -0.5, 0.0, 0.25, 1.0]), atol=1e-4)


def test_file_without_sound_gives_none_and_without_pictures_an_error(tmp_path):
    silent = write_video(tmp_path / "silent.mp4", gradient_clip(2), 24)
    assert read_audio(silent) is None
    assert probe(silent).sampling_rate is None
    sound = write_audio(tmp_path / "sound.wav", tone(), 24000)
    info = probe(sound)
    assert (info.frame_rate, info.num_frames, info.duration_s) == (None, 0, pytest.approx(0.5))
    with pytest.raises(ValueError, match=r"sound\.wav.*no video stream"):
        read_video(sound)


@pytest.mark.parametrize("read", [read_video, read_audio, probe, read_image])
def test_missing_empty_and_damaged_files_are_named(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
        read(tmp_path / "nowhere.mp4")
    for name, content in {"empty.mp4": b"", "text.mp4": b"not a film" * 50}.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read(path)


def test_damaged_pictures_are_an_error(tmp_path, numbered_clip):
    content = bytearray(numbered_clip.read_bytes())
    start = content.index(b"mdat") + 4
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content[:start] + b"\xff" * (len(content) - start))
    with pytest.raises(ValueError, match=r"damaged\.mp4"):
        read_video(path)


def test_number_of_frames_is_counted_where_the_header_does_not_tell(tmp_path):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(7):
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode())
    assert probe(path).num_frames == 7
    assert len(read_video(path)) == 7


def test_videos_of_phones_are_turned_upright(tmp_path):
    path = tmp_path / "phone.mp4"
    left_half_white = np.zeros((32, 64, 3), dtype=np.uint8)
    left_half_white[:, :32] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.set_display_rotation(90)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(left_half_white, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        rotation = next(container.decode(video=0)).rotation
    frame = read_video(path)[0]
    assert (probe(path).height, probe(path).width) == (64, 32)
    # A positive rotation is counter-clockwise: the left half comes to lie below.
    white_half = frame[32:] if rotation == 90 else frame[:32]
    assert abs(rotation) == 90
    assert white_half.float().mean() > 240


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_images_are_turned_by_their_exif_orientation(tmp_path, orientation, corner):
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    image = np.asarray(read_image(tmp_path / "photo.png"))
    assert image.shape == ((20, 30, 3) if orientation in (1, 3) else (30, 20, 3))
    assert image[corner].tolist() == [255, 255, 255]


def test_colours_of_another_profile_are_converted(tmp_path):
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    image = PIL.Image.new("RGB", (4, 4), (10, 120, 230))
    image.save(tmp_path / "srgb.png", icc_profile=profile)
    assert np.abs(np.asarray(read_image(tmp_path / "srgb.png")).astype(int) - [10, 120, 230]).max() <= 1
    # Exchanging the colour primaries of the profile makes a red picture anything but red.
    swapped = profile.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")
    PIL.Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "swapped.png", icc_profile=swapped)
    assert np.asarray(read_image(tmp_path / "swapped.png"))[0, 0].argmax() == 1


def test_broken_profile_is_ignored_with_a_warning():
    image = PIL.Image.new("RGB", (4, 4), (10, 120, 230))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", icc_profile=b"no profile")
    with pytest.warns(UserWarning, match="colour profile"):
        assert np.asarray(read_image(buffer.getvalue()))[0, 0].tolist() == [10, 120, 230]


def test_sound_that_changes_its_channels_is_refused(tmp_path):
    parts = [
        write_sound(tmp_path / f"{layout}.aac", "aac", tone(0.2)[:channels], layout).read_bytes()
        for channels, layout in ((1, "mono"), (2, "stereo"))
    ]
    (tmp_path / "both.aac").write_bytes(b"".join(parts))
    with pytest.raises(ValueError, match=r"both\.aac' changes its sound from 48000 Hz mono to 48000 Hz stereo"):
        read_audio(tmp_path / "both.aac")


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        *(
            ("sound.wav", "pcm_s16le"),
            ("sound.wav", "adpcm_ima_wav"),
            ("sound.wav", "adpcm_ms"),
            ("sound.flac", "flac"),
        ),
        *(("sound.mp3", "libmp3lame"), ("sound.m4a", "aac"), ("sound.ogg", "libopus"), ("sound.oga", "vorbis")),
        *(("sound.mkv", "aac"), ("sound.webm", "libopus"), ("sound.ts", "aac"), ("sound.avi", "libmp3lame")),
        *(("sound.ac3", "ac3"), ("sound.aac", "aac"), ("sound.mp2", "mp2"), ("sound.wma", "wmav2")),
    ],
)
def test_a_window_holds_the_samples_of_the_whole(tmp_path, name, codec):
    noise = torch.from_numpy(np.random.default_rng(0).uniform(-0.5, 0.5, (2, 96000)).astype(np.float32))
    path = write_sound(tmp_path / name, codec, noise, "stereo")
    whole, rate = read_audio(path)
    assert whole[..., :480].abs().max() > 0.01
    for start_s in (0.001, 0.01, 0.02, 0.1, 0.49, 1 / 3, 1.0, 1.37, 1.9):
        window, _ = read_audio(path, start_s, start_s + 0.2)
        first = round(start_s * rate)
        assert torch.equal(window, whole[..., first : first + round(0.2 * rate)]), start_s
        assert torch.equal(read_audio(path, start_s)[0], whole[..., first:]), start_s


@pytest.mark.parametrize(
    ("name", "codec"),
    [("sound.mp3", "libmp3lame"), ("sound.m4a", "aac"), ("sound.ogg", "libopus"), ("sound.flac", "flac")],
)
def test_what_an_encoder_puts_before_the_sound_is_left_out(tmp_path, name, codec):
    phase = torch.arange(96000) / 48000
    sweep = 0.5 * torch.sin(2 * torch.pi * (200 + 400 * phase) * phase)[None]
    audio, rate = read_audio(write_sound(tmp_path / name, codec, sweep))
    length = min(audio.shape[-1], 48000)
    errors = [(audio[0, :, 4800:length] - sweep[:, 4800 + d : length + d]).abs().mean().item() for d in range(-40, 41)]
    assert rate == 48000
    assert abs(errors.index(min(errors)) - 40) <= 1
    assert min(errors) < 0.02
