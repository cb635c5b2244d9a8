import threading
import wave
from dataclasses import replace

import av
import numpy as np
import pytest
import torch

from ltx2_diffusers.media import writing
from ltx2_diffusers.media.muxing import join_clips, replace_audio
from ltx2_diffusers.media.reading import probe, read_audio, read_video
from ltx2_diffusers.media.streaming import ClipWriter
from ltx2_diffusers.media.writing import ClipFile, write_audio, write_video
from tests.pipelines.watching import packets

from .clips import gradient_clip, tone


@pytest.fixture
def talking_clip(tmp_path):
    return write_video(tmp_path / "talking.mp4", gradient_clip(12), 24, tone(), 24000)


def test_clip_with_sound_reads_back(tmp_path):
    clip = gradient_clip(12)
    path = write_video(tmp_path / "new" / "folder" / "clip.mp4", clip, 23.976, tone(), 24000, crf=5)
    info = probe(path)
    assert (info.num_frames, info.height, info.width) == (12, 48, 64)
    assert str(info.frame_rate) == "24000/1001"
    assert info.sampling_rate == 24000
    with av.open(str(path)) as container:
        assert [stream.channels for stream in container.streams.audio] == [2]
    assert (read_video(path).float() / 255 - clip.movedim(1, -1)).abs().mean() < 0.01
    audio, rate = read_audio(path)
    assert rate == 24000
    # AAC fills its last frame with silence.
    assert 12000 <= audio.shape[-1] < 12000 + 1024
    assert (audio[0, :, :12000] - tone()).abs().mean() < 0.01


def test_stream_is_tagged_h264_yuv420p_bt709_with_the_index_in_front(talking_clip):
    with av.open(str(talking_clip)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        assert container.streams.audio[0].codec_context.name == "aac"
    content = talking_clip.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_saturated_colours_survive(tmp_path):
    clip = torch.zeros(3, 3, 32, 32)
    clip[0, 0] = clip[1, 1] = clip[2, 2] = 1
    frames = read_video(write_video(tmp_path / "rgb.mp4", clip, 24, crf=0))
    assert (frames.float() / 255 - clip.movedim(1, -1)).abs().max() < 0.03


def test_sound_lies_next_to_its_pictures(tmp_path):
    path = write_video(tmp_path / "long.mp4", torch.zeros(96, 3, 32, 32), 24, tone(4.0), 24000)
    with av.open(str(path)) as container:
        kinds = [packet.stream.type for packet in container.demux() if packet.size]
    half = kinds[: len(kinds) // 2]
    assert 0.3 < half.count("audio") / kinds.count("audio") < 0.7


def test_mono_is_written_on_both_channels_and_layouts_agree(tmp_path):
    mono = tone()[0]
    expected = None
    for audio in (mono, mono[None], mono[:, None], torch.stack([mono, mono]), torch.stack([mono, mono], dim=1)):
        path = write_video(tmp_path / "mono.mp4", gradient_clip(2), 24, audio.numpy(), 24000)
        written = packets(path, "audio")
        expected = expected or written
        assert written == expected


def test_lower_crf_and_other_presets_change_the_file(tmp_path):
    clip = (gradient_clip(8) + torch.rand(8, 3, 48, 64) * 0.2).clamp(0, 1)
    default = write_video(tmp_path / "default.mp4", clip, 24).stat().st_size
    fine = write_video(tmp_path / "fine.mp4", clip, 24, crf=5).stat().st_size
    other = write_video(tmp_path / "slow.mp4", clip, 24, preset="slow").stat().st_size
    assert fine > 2 * default
    assert other != default


def test_equal_frames_make_equal_files_whatever_lies_in_memory(tmp_path):
    # x264's AVX-512 code reads uninitialised memory for these widths, which showed in every third file.
    generator = torch.Generator().manual_seed(0)
    first, last = torch.rand(2, 3, 4, 4, generator=generator)
    frames = torch.stack([torch.lerp(first, last, step / 8) for step in range(9)])
    frames = torch.nn.functional.interpolate(frames, (64, 64), mode="bilinear")
    files, sizes = set(), np.random.default_rng(0)
    for value in range(40):
        remains = [np.full(size, value * 6, np.uint8) for size in sizes.integers(1, 30000, 300)]
        del remains[::2]
        files.add(write_video(tmp_path / "clip.mp4", frames, 24).read_bytes())
    assert len(files) == 1


def test_equal_files_do_not_depend_on_the_kernels_that_torch_is_told_to_use(monkeypatch):
    options = writing.repeatable_encoding()
    assert options == ({"x264-params": "asm=avx2"} if torch.cpu._is_avx512_supported() else {})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert writing.repeatable_encoding() == options


def test_frames_are_made_in_the_calling_thread_while_earlier_ones_are_encoded(tmp_path):
    threads = set()

    def decode():
        for chunk in gradient_clip(8).split(2):
            threads.add(threading.current_thread())
            yield chunk

    path = write_video(tmp_path / "stream.mp4", decode(), 24)
    assert threads == {threading.current_thread()}
    assert probe(path).num_frames == 8


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_decoding_leaves_nothing(tmp_path, error):
    def decode():
        yield gradient_clip(4)
        raise error

    with pytest.raises(error):
        write_video(tmp_path / "half.mp4", decode(), 24, tone(), 24000)
    assert list(tmp_path.iterdir()) == []


def test_a_growing_file_can_be_read_before_its_end_and_holds_the_same(tmp_path):
    growing, path, sizes = tmp_path / "growing.mp4", tmp_path / "clip.mp4", []
    noise = torch.randint(0, 256, (72, 48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def frames():
        for chunk in noise.split(6):
            sizes.append(growing.stat().st_size if growing.exists() else 0)
            if len(sizes) == 12:
                with av.open(str(growing)) as begun:
                    assert next(begun.decode(video=0)).width == 64
                with av.open(str(growing)) as begun:
                    seconds = sum(frame.samples for frame in begun.decode(audio=0)) / 24000
                # Sound lies beside the pictures that it belongs to.
                assert 0.5 < seconds < 3.0
                assert not path.exists()
            yield chunk

    sound = tone(3.0)
    assert write_video(ClipFile(path, growing), frames(), 24, sound, 24000) == path
    assert sizes[-1] > sizes[len(sizes) // 2] > 0
    assert not growing.exists()
    whole = write_video(tmp_path / "whole.mp4", noise, 24, sound, 24000)
    assert torch.equal(read_video(path), read_video(whole))
    assert torch.equal(read_audio(path)[0], read_audio(whole)[0])


def test_a_growing_file_is_gone_after_an_error(tmp_path):
    def frames():
        yield torch.zeros(2, 48, 64, 3, dtype=torch.uint8)
        raise RuntimeError("the decoder broke")

    with pytest.raises(RuntimeError, match="the decoder broke"):
        write_video(ClipFile(tmp_path / "clip.mp4", tmp_path / "growing.mp4"), frames(), 24)
    assert list(tmp_path.iterdir()) == []


def test_who_watches_is_told_how_many_frames_are_encoded_and_may_end_it(tmp_path):
    told = []
    path = write_video(ClipFile(tmp_path / "clip.mp4", on_frames=told.append), gradient_clip(12).split(4), 24)
    assert (told[0], told == sorted(told), told[-1]) == (0, True, 12)
    path.unlink()

    def stop(num_frames):
        if num_frames:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        write_video(ClipFile(path, tmp_path / "growing.mp4", on_frames=stop), gradient_clip(12).split(4), 24)
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_sound_has_none_whatever_is_given(tmp_path):
    file = ClipFile(tmp_path / "clip.mp4", sound=False)
    frames = gradient_clip(4)
    assert probe(write_video(file, frames, 24, tone(), 24000)).sampling_rate is None
    with ClipWriter(file, 24, 24000) as writer:
        writer.write(frames, tone())
    assert probe(file).sampling_rate is None
    source = write_video(tmp_path / "source.mp4", frames, 24, tone(), 24000)
    assert probe(write_video(file, frames, 24, audio_source=source)).sampling_rate is None
    assert probe(join_clips([source, source], file, [tone(), tone()], 24000)).sampling_rate is None
    with pytest.raises(ValueError, match="leave `sound=False` out"):
        replace_audio(source, file, tone(), 24000)


def test_packets_are_copied_into_a_growing_file(tmp_path):
    source = write_video(tmp_path / "source.mp4", gradient_clip(48), 24)
    file, told = ClipFile(tmp_path / "clip.mp4", tmp_path / "growing.mp4"), []
    plain = replace_audio(source, tmp_path / "plain.mp4", tone(2.0), 24000)
    replace_audio(source, replace(file, on_frames=lambda _: told.append(file.growing.exists())), tone(2.0), 24000)
    assert (len(told), told[-1]) == (48, True)
    assert (b"moof" in file.path.read_bytes(), b"moof" in plain.read_bytes()) == (True, False)
    for kind in ("video", "audio"):
        assert packets(file.path, kind) == packets(plain, kind)


@pytest.mark.parametrize(
    ("growing", "message"), [("clip.mp4", "both"), ("clip.tmp", r"clip\.mp4"), ("./new/../clip.mp4", "both")]
)
def test_the_name_of_a_growing_file_is_one_of_its_kind_and_another(tmp_path, monkeypatch, growing, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        ClipFile(tmp_path / "clip.mp4", growing)


def test_frames_of_different_sizes_are_refused(tmp_path):
    chunks = [gradient_clip(2), gradient_clip(2, height=32)]
    with pytest.raises(ValueError, match="first is 48x64, frame 2 is 32x64"):
        write_video(tmp_path / "sizes.mp4", chunks, 24)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": []}, "frames is empty"),
        ({"frames": torch.zeros(0, 3, 32, 32)}, "frames is empty"),
        ({"frames": torch.zeros(2, 3, 33, 32)}, "crop to 32x32"),
        ({"frame_rate": 0}, "frame_rate"),
        ({"audio": tone()}, "sampling_rate is required"),
        ({"audio": tone(), "sampling_rate": 24001}, "resample to 24000"),
        ({"audio": torch.zeros(2, 0), "sampling_rate": 24000}, "no samples"),
        ({"audio": torch.zeros(6, 100), "sampling_rate": 24000}, "1 or 2 channels"),
        ({"audio": torch.zeros(1, 2, 100), "sampling_rate": 24000}, r"\[channels, samples\]"),
        ({"audio": torch.zeros(2, 100, dtype=torch.int16), "sampling_rate": 24000}, "32768"),
        ({"audio": torch.full((2, 100), float("nan")), "sampling_rate": 24000}, "not finite"),
        ({"audio": tone(), "sampling_rate": 24000, "audio_source": "talking.mp4"}, "both given"),
        ({"crf": 52}, "use 51"),
        ({"preset": "quick"}, "preset must be one of"),
        ({"path": "clip.gif"}, r"clip\.mp4"),
    ],
)
def test_wrong_arguments_are_refused_before_a_file_appears(tmp_path, change, message):
    arguments = {"path": "clip.mp4", "frames": torch.zeros(2, 3, 32, 32), "frame_rate": 24} | change
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(ValueError, match=message):
        write_video(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_sound_of_another_file_is_copied_up_to_the_end_of_the_video(tmp_path, talking_clip):
    same = write_video(tmp_path / "same.mp4", gradient_clip(12, 64, 64), 24, audio_source=talking_clip)
    assert packets(same, "audio") == packets(talking_clip, "audio")
    short = write_video(tmp_path / "short.mp4", gradient_clip(6), 24, audio_source=talking_clip)
    kept = packets(short, "audio")
    assert kept == packets(talking_clip, "audio")[: len(kept)]
    assert probe(short).duration_s == pytest.approx(0.25, abs=0.05)


def test_silent_audio_source_is_refused(tmp_path):
    silent = write_video(tmp_path / "silent.mp4", gradient_clip(2), 24)
    with pytest.raises(ValueError, match="has no audio stream"):
        write_video(tmp_path / "new.mp4", gradient_clip(2), 24, audio_source=silent)


def test_new_sound_keeps_every_video_packet(tmp_path, talking_clip):
    sound = tone(0.5, 48000, 880.0)
    path = replace_audio(talking_clip, tmp_path / "dubbed.mp4", sound, 48000)
    assert packets(path, "video") == packets(talking_clip, "video")
    assert torch.equal(read_video(path), read_video(talking_clip))
    audio, rate = read_audio(path)
    assert rate == 48000
    assert (audio[0, :, :24000] - sound).abs().mean() < 0.01


def test_sound_may_be_replaced_in_place_but_not_without_pictures(tmp_path, talking_clip):
    before = packets(talking_clip, "video")
    replace_audio(talking_clip, talking_clip, tone(0.5, 48000), 48000)
    assert packets(talking_clip, "video") == before
    assert probe(talking_clip).sampling_rate == 48000
    sound = write_audio(tmp_path / "sound.wav", tone(), 24000)
    with pytest.raises(ValueError, match="no video stream"):
        replace_audio(sound, tmp_path / "new.mp4", tone(), 24000)


def test_wave_file_holds_rounded_16_bit_samples(tmp_path):
    path = write_audio(tmp_path / "sounds" / "sound.wav", torch.tensor([[0.0, 1.0, -1.0, 2.0, 0.5]]), 24000)
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 24000)
        samples = np.frombuffer(file.readframes(5), dtype="<i2").reshape(-1, 2)
    assert samples[:, 0].tolist() == [0, 32767, -32767, 32767, 16384]
    assert np.array_equal(samples[:, 0], samples[:, 1])
    with pytest.raises(ValueError, match=r"sound\.wav"):
        write_audio(tmp_path / "sound.mp3", tone(), 24000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frame_rate": "24"}, "`frame_rate` has to be a finite number or a Fraction but is '24'; use 24.0"),
        ({"frame_rate": float("nan")}, "`frame_rate` has to be a finite number"),
        ({"crf": 19.5}, "`crf` has to be a whole number but is 19.5; use 20"),
        ({"crf": True}, "`crf` has to be a whole number but is True"),
        ({"preset": 3}, "`preset` has to be a `str` but is 3"),
        ({"frames": np.full((2, 32, 32, 3), np.nan, np.float32)}, "the frames hold values that are not finite"),
    ],
)
def test_values_of_another_kind_are_named_and_nothing_is_written(tmp_path, arguments, message):
    call = {
        "path": tmp_path / "out.mp4",
        "frames": np.zeros((2, 32, 32, 3), np.uint8),
        "frame_rate": 24.0,
        **arguments,
    }
    with pytest.raises(ValueError, match=message):
        write_video(**call)
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_other_libraries_are_taken(tmp_path):
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    path = write_video(tmp_path / "out.mp4", frames, np.float32(24), crf=np.int64(30))
    assert path.is_file()
