"""Packets that are copied: all of them, at their times, with pictures and sound counted from one zero."""

from fractions import Fraction

import av
import numpy as np
import pytest

from ltx2_diffusers.media import copying
from ltx2_diffusers.media.audio_tracks import can_copy_audio
from ltx2_diffusers.media.copying.schedule import Schedule, Stamp, read_schedule
from ltx2_diffusers.media.muxing import replace_audio
from ltx2_diffusers.media.writing import write_audio, write_video

from .clips import gradient_clip, tone
from .sources import BURST_AT_S, RATE, Track, onset_s, packets_of, shown, starts, write_source

NEW = tone(1.0, RATE)
MS = 1e-3


def with_new_sound(source, suffix=".mp4"):
    return replace_audio(source, source.with_name(f"result{suffix}"), NEW, RATE)


def assert_same_pictures(source, result):
    assert packets_of(result, "video") == packets_of(source, "video")
    before, after = shown(source), shown(result)
    assert after[0] == before[0]
    assert np.abs(after[1] - before[1]).max() <= MS
    assert starts(result) == (0.0, 0.0)


# --- pictures ---


@pytest.mark.parametrize(
    ("name", "suffix", "codec"),
    [
        ("b-frames.mkv", ".mp4", "libx264"),
        ("b-frames.mp4", ".mov", "libx264"),
        ("b-frames.ts", ".mp4", "libx264"),
        ("b-frames.mkv", ".mp4", "libx265"),
        ("b-frames.mkv", ".mp4", "mpeg4"),
        ("b-frames.avi", ".mov", "mpeg4"),
        ("b-frames.mkv", ".mp4", "mpeg2video"),
        ("b-frames.flv", ".mp4", "libx264"),
        ("modern.mkv", ".mp4", "libsvtav1"),
        ("modern.mp4", ".mp4", "libsvtav1"),
        ("modern.webm", ".mp4", "libvpx-vp9"),
        ("studio.mov", ".mov", "prores_ks"),
        ("stills.mov", ".mov", "mjpeg"),
        ("stills.mov", ".mov", "png"),
        ("stills.mov", ".mov", "qtrle"),
    ],
)
def test_new_sound_keeps_every_packet_picture_and_time(tmp_path, name, suffix, codec):
    source = write_source(tmp_path / name, Track(codec))
    result = with_new_sound(source, suffix)
    before, after = shown(source), shown(result)
    assert len(before[0]) == 25
    assert after[0] == before[0]
    assert np.abs(after[1] - before[1]).max() <= MS
    assert starts(result) == (0.0, 0.0)
    # Some files do not tell how long the last picture lasts; it must not end at once.
    with av.open(str(result)) as file:
        stream = file.streams.video[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(25 / 24, abs=2 * MS)
    # What MPEG-TS puts before each packet is no part of it.
    if not name.endswith(".ts"):
        assert packets_of(result, "video") == packets_of(source, "video")


def test_packets_without_times_of_decoding_are_packets(tmp_path):
    source = write_source(tmp_path / "b-frames.mkv", Track("libx264"))
    stamps = read_schedule(source, "video").stamps
    assert stamps[0].dts is None
    assert_same_pictures(source, with_new_sound(source))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.mov"])
@pytest.mark.parametrize(("video_s", "audio_s"), [(3.0, 3.0), (0.5, 0.0), (0.0, 0.5), (1.4, 1.0)])
def test_new_sound_begins_with_the_first_picture_wherever_the_file_starts(tmp_path, name, video_s, audio_s):
    source = write_source(tmp_path / name, Track("libx264", video_s), Track("aac", audio_s))
    assert_same_pictures(source, with_new_sound(source))


def test_a_cut_clip_shows_the_same_pictures(tmp_path):
    # Five frames before the start, which a player decodes and does not show.
    source = write_source(tmp_path / "cut.mp4", Track("libx264", -5 / 24), Track("aac", -5 / 24))
    stamps = read_schedule(source, "video").stamps
    assert sum(stamp.hidden for stamp in stamps) == 5
    result = with_new_sound(source)
    assert_same_pictures(source, result)
    assert len(shown(result)[0]) == 20
    assert sum(stamp.hidden for stamp in read_schedule(result, "video").stamps) == 5


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_a_variable_frame_rate_stays_so(tmp_path, name):
    stamps = [Fraction(i + 2 * (i // 3), 24) for i in range(25)]
    source = write_source(tmp_path / name, Track("libx264"), stamps=stamps)
    result = with_new_sound(source)
    assert_same_pictures(source, result)
    assert np.abs(shown(result)[1] - np.array(stamps, dtype=float)).max() <= MS


@pytest.mark.parametrize(
    ("name", "tag", "kept"), [("a.mp4", "hvc1", "hvc1"), ("a.mp4", "hev1", "hev1"), ("a.mkv", None, "hvc1")]
)
def test_hevc_keeps_its_tag_or_gets_the_one_that_apple_plays(tmp_path, name, tag, kept):
    source = write_source(tmp_path / name, Track("libx265", settings={"codec_tag": tag} if tag else {}))
    with av.open(str(with_new_sound(source))) as file:
        assert file.streams.video[0].codec_context.codec_tag == kept


def test_tags_of_prores_say_which_kind_it_is(tmp_path):
    source = write_source(
        tmp_path / "proxy.mov", Track("prores_ks", settings={"codec_tag": "apco"}, options={"profile": "0"})
    )
    with av.open(str(with_new_sound(source, ".mov"))) as file:
        assert file.streams.video[0].codec_context.codec_tag == "apco"


def test_what_a_file_says_about_itself_is_kept(tmp_path):
    settings = {
        "rotation": 90,
        "sample_aspect_ratio": Fraction(6, 5),
        "color_primaries": 9,
        "color_trc": 16,
        "colorspace": 9,
    }
    said = {"title": "A walk", "artist": "Me", "creation_time": "2024-03-01T12:00:00.000000Z"}
    source = write_source(tmp_path / "phone.mp4", Track("libx264", settings=settings), description=said)
    with av.open(str(with_new_sound(source))) as file:
        stream = file.streams.video[0]
        assert {name: file.metadata[name] for name in said} == said
        assert stream.sample_aspect_ratio == Fraction(6, 5)
        context = stream.codec_context
        assert (context.color_primaries, context.color_trc, context.colorspace) == (9, 16, 9)
        assert next(file.decode(stream)).rotation == 90


def test_the_aspect_that_only_the_container_tells_is_kept(tmp_path):
    plain = write_source(tmp_path / "plain.mp4", Track("libx264"))
    source = tmp_path / "wide.mp4"
    with av.open(str(plain)) as file, av.open(str(source), "w") as target:
        stream = target.add_stream_from_template(file.streams.video[0], opaque=True)
        stream.codec_context.sample_aspect_ratio = Fraction(6, 5)
        for packet in file.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux_one(packet)
    with av.open(str(with_new_sound(source))) as file:
        assert file.streams.video[0].sample_aspect_ratio == Fraction(6, 5)


def test_chapters_move_with_the_pictures(tmp_path):
    source = tmp_path / "chapters.mkv"
    plain = write_source(tmp_path / "plain.mp4", Track("libx264"))
    with av.open(str(plain)) as file, av.open(str(source), "w") as target:
        chapters = [(0, 300, "Before"), (300, 900, "One"), (900, 1500, "Two")]
        target.set_chapters(
            [
                {"id": i, "start": a, "end": b, "time_base": Fraction(1, 1000), "metadata": {"title": title}}
                for i, (a, b, title) in enumerate(chapters)
            ]
        )
        stream = target.add_stream_from_template(file.streams.video[0], opaque=True)
        for packet in file.demux(video=0):
            if packet.size:
                shift = round(Fraction(1, 2) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                target.mux_one(packet)
    with av.open(str(with_new_sound(source))) as file:
        found = [(c["metadata"]["title"], float(c["start"] * c["time_base"])) for c in file.chapters()]
        assert found == [("One", 0.0), ("Two", pytest.approx(0.4))]
        assert file.streams.video[0].codec_context.name == "h264"


@pytest.mark.parametrize("cover", ["first", "last"])
def test_the_main_video_is_written_and_cover_pictures_are_left_out(tmp_path, cover):
    source = write_source(tmp_path / "covered.mp4", Track("libx264"), Track("aac"), cover=cover)
    result = with_new_sound(source)
    assert_same_pictures(source, result)
    with av.open(str(result)) as file:
        assert [stream.type for stream in file.streams] == ["video", "audio"]


def test_the_first_video_is_written_and_all_other_streams_are_left_out(tmp_path):
    first = write_source(tmp_path / "first.mp4", Track("libx264"), Track("aac"))
    second = write_source(tmp_path / "second.mp4", Track("mpeg4"), Track("ac3"))
    source = tmp_path / "many.mkv"
    with av.open(str(source), "w") as target, av.open(str(first)) as one, av.open(str(second)) as other:
        text = target.add_mux_stream("subrip")
        streams = {s: target.add_stream_from_template(s, opaque=True) for s in (*one.streams, *other.streams)}
        spoken = av.Packet(b"hello")
        spoken.stream, spoken.pts, spoken.dts, spoken.duration, spoken.time_base = text, 0, 0, 500, Fraction(1, 1000)
        target.mux_one(spoken)
        for packet in (packet for file in (one, other) for packet in file.demux() if packet.size):
            packet.stream = streams[packet.stream]
            target.mux_one(packet)
    with av.open(str(source)) as file:
        assert len(file.streams) == 5
    result = with_new_sound(source)
    assert_same_pictures(source, result)
    assert packets_of(result, "video") == packets_of(first, "video")
    copied = with_copied_sound(source)
    assert packets_of(copied, "audio") == packets_of(first, "audio")
    for path in (result, copied):
        with av.open(str(path)) as file:
            assert [stream.type for stream in file.streams] == ["video", "audio"]


def test_a_file_may_be_its_own_target(tmp_path):
    source = write_source(tmp_path / "clip.mp4", Track("libx264", 3.0), Track("aac", 3.0), cover="first")
    before = packets_of(source, "video")
    replace_audio(source, source, NEW, RATE)
    assert packets_of(source, "video") == before
    assert starts(source) == (0.0, 0.0)
    before = packets_of(source, "audio")
    write_video(source, gradient_clip(36), 24, audio_source=source)
    assert packets_of(source, "audio") == before


# --- sound ---


SOUNDS = {
    "aac": "m4a",
    "libmp3lame": "mp3",
    "ac3": "ac3",
    "eac3": "eac3",
    "alac": "m4a",
    "flac": "flac",
    "libopus": "ogg",
}
NAMES = {"libmp3lame": "mp3", "libopus": "opus"}


def with_copied_sound(source, suffix=".mp4", num_frames=48):
    return write_video(source.with_name(f"result{suffix}"), gradient_clip(num_frames), 24, audio_source=source)


@pytest.mark.parametrize("codec", SOUNDS)
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_sound_is_copied_where_the_file_holds_it(tmp_path, codec, suffix):
    source = write_source(tmp_path / f"sound.{SOUNDS[codec]}", None, Track(codec))
    assert can_copy_audio(source, suffix) is (suffix == ".mp4" or codec not in ("flac", "libopus"))
    if can_copy_audio(source, suffix):
        result = with_copied_sound(source, suffix)
        assert packets_of(result, "audio") == packets_of(source, "audio")
        assert onset_s(result) == pytest.approx(onset_s(source), abs=MS)
        # Dolby's encoders are late by 256 samples, which no file says.
        assert onset_s(result) == pytest.approx(BURST_AT_S, abs=256 / RATE + MS)
        with av.open(str(result)) as file:
            assert file.streams.audio[0].codec_context.codec.canonical_name == NAMES.get(codec, codec)


@pytest.mark.parametrize("codec", ["aac", "libmp3lame", "flac"])
def test_a_cover_picture_beside_the_sound_changes_nothing(tmp_path, codec):
    plain = write_source(tmp_path / f"plain.{SOUNDS[codec]}", None, Track(codec))
    covered = write_source(tmp_path / f"covered.{SOUNDS[codec]}", None, Track(codec), cover="last")
    with av.open(str(covered)) as file:
        assert len(file.streams.video) == 1
    assert can_copy_audio(covered)
    assert packets_of(with_copied_sound(covered), "audio") == packets_of(plain, "audio")


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "aac"), ("a.ts", "aac"), ("a.mkv", "libmp3lame"), ("a.mp4", "ac3")]
)
@pytest.mark.parametrize(("video_s", "audio_s"), [(0.0, 0.0), (3.0, 3.0), (0.2, 0.0), (0.0, 0.5), (-0.125, -0.125)])
def test_copied_sound_keeps_its_distance_from_the_first_picture(tmp_path, name, codec, video_s, audio_s):
    if name != "a.mp4":
        # Only an edit list can tell of times before 0.
        video_s, audio_s = video_s + 1, audio_s + 1
    source = write_source(tmp_path / name, Track("libx264", video_s), Track(codec, audio_s))
    if name == "a.mkv" and audio_s > video_s:
        # Matroska says how much of the first packet is not to be heard, which an edit list can only say at the start.
        with pytest.raises(ValueError, match="sound that is not to be heard, after the first picture"):
            with_copied_sound(source)
        return
    result = with_copied_sound(source)
    assert onset_s(result) == pytest.approx(onset_s(source), abs=MS)
    assert starts(result)[0] == 0.0
    # What MPEG-TS puts before each packet is no part of it.
    headers = 7 if name == "a.ts" else 0
    copied, original = packets_of(result, "audio"), packets_of(source, "audio")
    assert copied == [(content[headers:], key) for content, key in original]


def test_sound_stops_with_the_pictures(tmp_path):
    source = write_source(tmp_path / "late.mp4", Track("libx264", 3.0), Track("aac", 3.0))
    result = with_copied_sound(source, num_frames=12)
    copied, original = packets_of(result, "audio"), packets_of(source, "audio")
    assert copied == original[: len(copied)]
    assert len(copied) == pytest.approx(0.5 * RATE / 1024, abs=2)


# --- the rule ---


@pytest.mark.parametrize(
    ("name", "codec", "suffix", "remedy"),
    [
        ("a.mov", "prores_ks", ".mp4", "use .mov, which holds prores"),
        ("a.mov", "mjpeg", ".mp4", "use .mov, which holds mjpeg"),
        ("a.webm", "libvpx-vp9", ".mov", "use .mp4, which holds vp9"),
        ("a.mkv", "libsvtav1", ".mov", "use .mp4, which holds av1"),
        ("a.flv", "flv", ".mp4", "convert the file"),
        ("a.avi", "libx264", ".mp4", "does not say when they are shown"),
    ],
)
def test_what_cannot_be_copied_is_refused_by_name_before_a_file_appears(tmp_path, name, codec, suffix, remedy):
    source = write_source(tmp_path / name, Track(codec))
    with pytest.raises(ValueError, match=remedy) as error:
        with_new_sound(source, suffix)
    assert str(source) in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_sound_that_cannot_be_copied_is_refused_before_a_file_appears(tmp_path):
    source = write_audio(tmp_path / "sound.wav", tone(), 24000)
    assert not can_copy_audio(source)
    assert can_copy_audio(source, ".mov")
    with pytest.raises(ValueError, match=r"pcm_s16le.*use \.mov"):
        with_copied_sound(source)
    assert [path.name for path in tmp_path.iterdir()] == ["sound.wav"]
    with_copied_sound(source, ".mov")


def test_a_silent_file_has_no_sound_to_copy(tmp_path):
    assert not can_copy_audio(write_source(tmp_path / "silent.mp4", Track("libx264")))


def schedule(stamps, zero=0):
    return Schedule("h264", Fraction(1, 24), [Stamp(*stamp) for stamp in stamps], zero, Fraction(0))


def test_times_of_decoding_are_made_up_only_where_they_are_missing():
    given = schedule([(0, -2, False), (3, -1, False), (1, 0, False), (2, 1, False)], zero=0)
    assert given.times() == [(0, -2), (3, -1), (1, 0), (2, 1)]
    missing = schedule([(10, None, False), (13, None, False), (11, 10, False), (12, 11, False)], zero=10)
    assert missing.times() == [(0, -1), (3, 0), (1, 1), (2, 2)]
    uneven = schedule([(0, None, False), (40, None, False), (5, None, False), (6, None, False)])
    shown_at, decoded_at = zip(*uneven.times())
    assert shown_at == (0, 40, 5, 6)
    assert list(decoded_at) == sorted(set(decoded_at))
    assert all(decoded <= seen for seen, decoded in uneven.times())


def test_hidden_packets_at_the_end_are_left_out():
    clip = schedule([(0, 0, False), (1, 1, False), (2, 2, True)])
    assert clip.times() == [(0, 0), (1, 1)]


@pytest.mark.parametrize(
    ("stamps", "problem"),
    [
        ([(0, 0, False), (None, 1, False)], "does not say when"),
        ([(0, 0, False), (0, 1, False)], "does not say when"),
        ([(0, 0, False), (1, 1, True), (2, 2, False)], "hides some of them later"),
        ([(2, -1, False), (0, 0, False), (1, 1, False)], "shown after others"),
        ([], "there are none"),
        ([(-1, -1, True), (0, 0, False), (1, 1, False)], None),
    ],
)
def test_times_that_one_cut_at_the_start_cannot_express_are_named(stamps, problem):
    from ltx2_diffusers.media.copying.schedule import _problem

    found = _problem(schedule(stamps), "video")
    assert found is None if problem is None else problem in found


def test_a_warning_names_file_codec_container_and_remedy(tmp_path):
    source = write_source(tmp_path / "a.mov", Track("prores_ks"))
    with pytest.warns(copying.EncodedAnewWarning, match=r"as H\.264.*a\.mov' \(prores\).*a \.mp4 file; use \.mov"):
        copying.warn_of_encoding(source, "video", ".mp4")
    assert copying.encoding_notice(source, "video", ".mov") is None
