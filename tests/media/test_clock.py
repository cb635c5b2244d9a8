"""The clock of a media file: its zero, the times of its frames, its frame rate, and frames at another rate."""

import io
from fractions import Fraction

import av
import numpy as np
import PIL.Image
import pytest
import torch

from ltx2_diffusers.media.clock import Timed, at_rate, pace, usual_rate, zero_s
from ltx2_diffusers.media.reading import iterate_video, probe, read_audio, read_video

from .clips import numbers, write_timed

RATE = 24000
STEADY = [i / 24 for i in range(24)]
# 30 frames per second, 10 for a second, and 30 again.
VARYING = [i / 30 for i in range(15)] + [0.5 + i / 10 for i in range(10)] + [1.5 + i / 30 for i in range(16)]


def clicks(*times: float, duration_s: float = 1.0) -> torch.Tensor:
    """A sound `[1, N]` that is silent but for a short beep at each time."""
    sound = torch.zeros(1, round(duration_s * RATE))
    beep = 0.5 * torch.sin(torch.arange(1200) * 2 * torch.pi * 1000 / RATE)
    for time in times:
        start = round(time * RATE)
        sound[0, start : start + 1200] = beep[: sound.shape[1] - start]
    return sound


def onset_s(path, **window) -> float:
    audio, rate = read_audio(path, **window)
    return (audio[0, 0].abs() > 0.1).nonzero()[0].item() / rate


@pytest.mark.parametrize("video_at, sound_at", [(0.0, 0.0), (3.0, 3.0), (0.5, 0.0), (0.0, 0.25), (3.25, 3.0)])
@pytest.mark.parametrize(
    "name, audio_codec",
    [("clip.mov", "pcm_s16le"), ("clip.mkv", "pcm_s16le"), ("clip.mp4", "aac"), ("clip.ts", "aac")],
)
@pytest.mark.parametrize("bframes", ["0", "3"])
def test_sound_is_counted_from_the_first_picture(tmp_path, name, audio_codec, video_at, sound_at, bframes):
    times = [time + video_at for time in STEADY]
    path = write_timed(tmp_path / name, times, clicks(0.6), sound_at, ("libx264", audio_codec), bf=bframes)
    info = probe(path)
    assert (info.frame_rate, info.num_frames, info.constant_rate) == (24, 24, True)
    assert info.duration_s == pytest.approx(1.0, abs=0.002)
    assert numbers(read_video(path)) == list(range(24))
    assert numbers(iterate_video(path, start_s=0.5, end_s=0.75)) == [12, 13, 14, 15, 16, 17]
    # AAC spreads a beep by a few milliseconds.
    slack = 0.001 if audio_codec == "pcm_s16le" else 0.003
    assert onset_s(path) == pytest.approx(0.6 + sound_at - video_at, abs=slack)


def test_what_an_edit_list_hides_does_not_count(tmp_path):
    path = write_timed(tmp_path / "cut.mp4", [time - 0.25 for time in STEADY], clicks(0.6), -0.25, g="24", bf="0")
    assert probe(path).num_frames == 18
    assert numbers(read_video(path)) == list(range(6, 24))
    assert probe(path).duration_s == pytest.approx(0.75, abs=0.002)
    assert onset_s(path) == pytest.approx(0.35, abs=0.001)


def test_sound_that_stops_for_a_while_stays_in_step(tmp_path):
    path = tmp_path / "gap.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for start, sound in ((0, torch.ones(1, RATE // 2)), (RATE, torch.full((1, RATE // 2), 0.5))):
            frame = av.AudioFrame.from_ndarray((sound.numpy() * 16384).astype(np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    audio, _ = read_audio(path)
    assert audio.shape == (1, 1, RATE * 3 // 2)
    assert audio[0, 0, [0, RATE // 2 - 1, RATE // 2, RATE - 1, RATE]].tolist() == [0.5, 0.5, 0, 0, 0.25]


def test_a_cover_picture_is_no_video(tmp_path):
    plain, path = tmp_path / "plain.mp3", tmp_path / "song.mp3"
    with av.open(str(plain), "w") as container:
        stream = container.add_stream("libmp3lame", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(clicks(0.6).numpy(), format="fltp", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    cover = io.BytesIO()
    PIL.Image.new("RGB", (32, 32), "red").save(cover, "JPEG")
    # An APIC frame of ID3v2.3: encoding, kind of file, front cover, no description.
    body = b"\0image/jpeg\0\x03\0" + cover.getvalue()
    frame = b"APIC" + len(body).to_bytes(4, "big") + b"\0\0" + body
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\x03\0\0" + size + frame + plain.read_bytes())
    info = probe(path)
    assert (info.frame_rate, info.num_frames, info.height, info.sampling_rate) == (None, 0, 0, RATE)
    assert torch.equal(read_audio(path)[0], read_audio(plain)[0])
    assert onset_s(path) == pytest.approx(0.6, abs=0.003)
    with pytest.raises(ValueError, match=r"song\.mp3' has no video stream"):
        read_video(path)


def test_frames_without_times_are_counted_by_the_frame_rate(tmp_path):
    path = write_timed(tmp_path / "clip.h264", STEADY, bf="3")
    assert probe(path).num_frames == 24
    rate = probe(path).frame_rate
    assert numbers(iterate_video(path, start_s=float(6 / rate))) == list(range(6, 24))


def test_avi_shows_pictures_in_the_order_of_decoding_times(tmp_path):
    path = write_timed(tmp_path / "clip.avi", STEADY, bf="3")
    assert numbers(read_video(path)) == list(range(24))
    assert numbers(iterate_video(path, start_s=0.25)) == list(range(6, 24))
    assert (probe(path).num_frames, probe(path).constant_rate) == (24, True)


def test_far_windows_hold_what_reading_from_the_start_gives(tmp_path):
    times = [5 + i / 8 for i in range(100)]
    for name in ("clip.mp4", "clip.mkv", "clip.ts"):
        path = write_timed(tmp_path / name, times, bf="3", g="30", **{"x264-params": "open-gop=1"})
        for first in (41, 47, 59, 60, 61, 73, 99):
            assert numbers(iterate_video(path, start_s=first / 8)) == list(range(first, 100)), (name, first)


@pytest.mark.parametrize(
    "rate, count, wanted, expected",
    [
        (60, 9, 24, [1, 3, 6, 8]),
        (30, 7, 24, [0, 1, 3, 4, 5, 6]),
        (24, 6, 25, [0, 1, 2, 3, 4, 5]),
        (24, 14, 25, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11, 12, 13]),
        (12, 4, 24, [0, 0, 1, 1, 2, 2, 3, 3]),
        (24000 / 1001, 6, 24, [0, 1, 2, 3, 4, 5]),
        (24, 6, 24, [0, 1, 2, 3, 4, 5]),
        (60, 1, 24, [0]),
        (1, 1, 24, [0] * 24),
    ],
)
def test_frames_are_left_out_and_repeated_by_their_times(tmp_path, rate, count, wanted, expected):
    # What `ffmpeg -vf fps=24` and the like write of the same clips; of one that is too short FFmpeg writes nothing.
    frames = [Timed(i, i / Fraction(rate), 1 / Fraction(rate)) for i in range(count)]
    assert list(at_rate(frames, Fraction(wanted))) == expected
    if count > 1:
        path = write_timed(tmp_path / "clip.mp4", [i / rate for i in range(count)], bf="0")
        assert numbers(iterate_video(path, frame_rate=wanted)) == expected


def test_a_window_at_a_rate_begins_with_the_frame_that_is_shown(tmp_path):
    path = write_timed(tmp_path / "clip.mp4", [i / 10 for i in range(20)], bf="2")
    assert numbers(iterate_video(path, start_s=0.34, end_s=0.76, frame_rate=10)) == [3, 4, 5, 6, 7]
    assert numbers(iterate_video(path, start_s=0.3, end_s=0.5, frame_rate=20)) == [3, 3, 4, 4]
    assert numbers(iterate_video(path, start_s=1.9, frame_rate=20)) == [19, 19]
    assert numbers(iterate_video(path, max_frames=3, frame_rate=5)) == [0, 2, 4]
    with pytest.raises(ValueError, match=r"no video frames between 2\.5 s"):
        read_video(path, start_s=2.5, frame_rate=10)
    with pytest.raises(ValueError, match="frame_rate must be a positive number"):
        read_video(path, frame_rate=0)


@pytest.mark.parametrize("name", ["phone.mp4", "screen.mkv"])
def test_a_varying_rate_is_told_and_frames_stay_within_half_a_frame_of_their_times(tmp_path, name):
    path = write_timed(tmp_path / name, VARYING, bf="2")
    info = probe(path)
    assert (info.num_frames, info.constant_rate) == (len(VARYING), False)
    assert float(info.frame_rate) == pytest.approx(len(VARYING) / (VARYING[-1] + 1 / 30), rel=0.02)
    for rate in (info.frame_rate, 24, 60):
        for count, number in enumerate(numbers(iterate_video(path, frame_rate=rate))):
            time = float(count / Fraction(rate))
            # Its place is the nearest one to its time, and no later frame has reached the place yet.
            assert VARYING[number] <= time + 0.5 / float(rate) + 0.002
            assert number + 1 == len(VARYING) or VARYING[number + 1] >= time + 0.5 / float(rate) - 0.002


@pytest.mark.parametrize(
    "times, declared, expected",
    [
        ([i / 24 for i in range(240)], [24], (24, True)),
        ([i / 23.976 for i in range(2400)], [24], (Fraction(24000, 1001), True)),
        ([round(i / 23.976, 3) for i in range(240)], [Fraction(2997, 125)], (Fraction(2997, 125), True)),
        ([i / 12.5 for i in range(100)], [None, Fraction(25, 2)], (Fraction(25, 2), True)),
        ([round(i / 24, 2) for i in range(48)], [25, 24], (24, True)),
        # A repeated picture that is not stored again.
        ([i / 24 for i in range(240) if i not in (50, 100)], [24], (24, False)),
        (VARYING, [Fraction(1230, 61), 30], (Fraction(1230, 61), False)),
        ([0, 0.05, 0.06, 0.15], [1000], (20, False)),
        ([0], [24], (24, True)),
        ([0], [], (24, True)),
    ],
)
def test_the_rate_of_a_video(times, declared, expected):
    exact = [Fraction(time).limit_denominator(10**6) for time in times]
    last = Fraction(1, 20) if len(times) < 10 else exact[-1] - exact[-2]
    assert pace(exact, exact[-1] + last, declared) == expected


def test_usual_rates_are_rounded_to_and_others_kept():
    assert usual_rate(Fraction(23.98)) == Fraction(24000, 1001)
    assert usual_rate(Fraction(24.01)) == 24
    assert usual_rate(Fraction(59.93)) == Fraction(60000, 1001)
    assert float(usual_rate(Fraction(20.16))) == pytest.approx(20.16, abs=1e-3)


def test_times_that_leap_are_refused_where_a_picture_would_be_repeated_without_end(tmp_path):
    path = write_timed(tmp_path / "leap.mkv", [0, 1 / 24, 9000, 9000 + 1 / 24], bf="0")
    assert numbers(read_video(path)) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"leap\.mkv' leap from 0\.04\d* s to 9000 s"):
        read_video(path, frame_rate=24)


def test_the_zero_of_a_file(tmp_path):
    late = write_timed(tmp_path / "late.mkv", [time + 0.5 for time in STEADY], clicks(0.6))
    assert zero_s(late) == Fraction(1, 2)
    (tmp_path / "text.mp4").write_bytes(b"no film" * 100)
    with pytest.raises(ValueError, match=r"text\.mp4"):
        zero_s(tmp_path / "text.mp4")
