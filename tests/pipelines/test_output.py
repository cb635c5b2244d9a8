"""What a pipeline returns can be written to a file that plays."""

import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import torch

from ltx2_diffusers import LTX2PipelineOutput
from ltx2_diffusers.media.copying import EncodedAnewWarning
from tests.media.sources import Track, onset_s, packets_of, starts, write_source
from tests.media.sources import pictures as source_pictures
from tests.pipelines.tiny import CFG, EXPLICIT, PROMPT, ours, seeded

SIZE = (32, 64)
RATES = {24.0: Fraction(24), 23.976: Fraction(24000, 1001), 29.97: Fraction(30000, 1001), 12.5: Fraction(25, 2)}


def pixels(batch_size: int = 1, num_frames: int = 9) -> torch.Tensor:
    """A picture that brightens from frame to frame, `[B, F, H, W, 3]` bytes."""
    steps = torch.linspace(40, 200, num_frames).to(torch.uint8).view(1, -1, 1, 1, 1)
    return steps.expand(batch_size, -1, *SIZE, 3).contiguous()


def output(frame_rate: float = 24.0, batch_size: int = 1, **changes) -> LTX2PipelineOutput:
    seconds = 9 / frame_rate
    time = torch.arange(round(seconds * 24000)) / 24000
    audio = (0.5 * torch.sin(2 * torch.pi * 440 * time)).expand(batch_size, 2, -1)
    values = {"frames": pixels(batch_size), "audio": audio, "frame_rate": frame_rate, "sampling_rate": 24000}
    return LTX2PipelineOutput(**values | changes)


def read(path: str | Path) -> tuple[list[np.ndarray], Fraction, np.ndarray | None, int | None]:
    """Frames, frame rate, samples `[channels, samples]` and sampling rate of a media file."""
    with av.open(str(path)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        rate = file.streams.video[0].average_rate
        if not file.streams.audio:
            return frames, rate, None, None
        file.seek(0)
        samples = np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], axis=1)
        return frames, rate, samples, file.streams.audio[0].rate


@pytest.mark.parametrize("frame_rate", RATES)
def test_frames_rate_and_sound_of_the_file(tmp_path, frame_rate):
    (path,) = output(frame_rate).save(tmp_path / "clip.mp4")
    frames, rate, samples, sampling_rate = read(path)
    assert len(frames) == 9
    assert rate == RATES[frame_rate]
    assert sampling_rate == 24000
    with av.open(path) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        picture_s = float(video.duration * video.time_base)
        sound_s = float(audio.duration * audio.time_base)
    assert picture_s == pytest.approx(9 / RATES[frame_rate], abs=1e-3)
    # AAC comes in packets of 1024 samples.
    assert sound_s == pytest.approx(picture_s, abs=1024 / 24000)
    assert np.abs(samples).max() > 0.3


@pytest.mark.parametrize("kind", ["uint8", "pt", "np", "pil"])
def test_every_form_of_frames_gives_the_same_picture(tmp_path, kind):
    bytes_ = pixels()
    forms = {
        "uint8": bytes_,
        "pt": bytes_.permute(0, 1, 4, 2, 3) / 255,
        "np": bytes_.numpy().astype(np.float32) / 255,
        "pil": [[PIL.Image.fromarray(frame.numpy()) for frame in bytes_[0]]],
    }
    (path,) = output(frames=forms[kind]).save(tmp_path / "clip.mp4")
    frames, *_ = read(path)
    assert [frame.shape for frame in frames] == [(*SIZE, 3)] * 9
    for frame, expected in zip(frames, bytes_[0]):
        assert abs(frame.astype(int).mean() - expected.float().mean().item()) < 3


def test_a_batch_becomes_numbered_files(tmp_path):
    paths = output(batch_size=3).save(tmp_path / "new folder" / "clip.mp4")
    assert [Path(path).name for path in paths] == ["clip-0.mp4", "clip-1.mp4", "clip-2.mp4"]
    assert all(len(read(path)[0]) == 9 for path in paths)


@pytest.mark.parametrize("samples", [5000, 12000])
def test_sound_is_fitted_to_the_picture(tmp_path, samples):
    (path,) = output(audio=torch.zeros(1, 2, samples)).save(tmp_path / "clip.mp4")
    with av.open(path) as file:
        stream = file.streams.audio[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(9 / 24, abs=1024 / 24000)


def test_a_silent_clip(tmp_path):
    (path,) = output(audio=None, sampling_rate=None).save(tmp_path / "clip.mp4")
    frames, _, samples, _ = read(path)
    assert (len(frames), samples) == (9, None)


def test_sound_alone_becomes_a_wave_file(tmp_path):
    expected = output()
    (path,) = LTX2PipelineOutput(audio=expected.audio, sampling_rate=24000).save(tmp_path / "sound.wav")
    with av.open(path) as file:
        samples = np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], axis=1)
        assert file.streams.audio[0].rate == 24000
    assert samples.size == expected.audio.numel()


def test_encoder_options_reach_the_encoder(tmp_path):
    noise = torch.randint(0, 256, (1, 9, *SIZE, 3), generator=seeded(0), dtype=torch.uint8)
    fine, coarse = (
        Path(output(frames=noise).save(tmp_path / f"{crf}.mp4", crf=crf)[0]).stat().st_size for crf in (5, 45)
    )
    assert fine > coarse
    with pytest.raises(TypeError, match="quality"):
        output().save(tmp_path / "x.mp4", quality=5)


@pytest.mark.parametrize("part", ["frames", "audio"])
def test_latents_cannot_be_saved(tmp_path, part):
    latents = {"frames": torch.zeros(1, 128, 2, 1, 2), "audio": torch.zeros(1, 8, 9, 16)}[part]
    with pytest.raises(ValueError, match="holds latents"):
        output(**{part: latents}).save(tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_output_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="neither frames nor audio"):
        LTX2PipelineOutput().save(tmp_path / "clip.mp4")


@pytest.mark.parametrize("rate", ["frame_rate", "sampling_rate"])
def test_an_output_without_a_rate_cannot_be_saved(tmp_path, rate):
    result = output()
    result[rate] = None
    with pytest.raises(ValueError, match=f"does not say its `{rate}`.*give it, as in save.*{rate}="):
        result.save(tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["folder.mp4", "file/clip.mp4", "n" * 252 + ".mp4"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match=re.escape(f"cannot write to {str(tmp_path / name)!r}: ")):
        output().save(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_no_file_of_a_batch_is_written_if_one_cannot_be(tmp_path):
    (tmp_path / "clip-2.mp4").mkdir()
    with pytest.raises(IsADirectoryError, match=r"clip-2\.mp4' ?: it is a folder"):
        output(batch_size=3).save(tmp_path / "clip.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["clip-2.mp4"]


def test_a_colon_is_no_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("out:1.mp4", "a:b/out.mp4"):
        output().save(path)
        assert Path(path).stat().st_size > 1000


@pytest.mark.parametrize("as_array", [False, True], ids=["tensor", "array"])
def test_rates_are_given_to_an_output_that_does_not_say_them(tmp_path, as_array):
    frames, audio = (part.numpy() if as_array else part for part in (pixels() / 255, output().audio))
    result = LTX2PipelineOutput(torch.as_tensor(frames).movedim(-1, 2) if not as_array else frames, audio)
    (path,) = result.save(tmp_path / "clip.mp4", frame_rate=12.5, sampling_rate=24000, crf=30)
    found, rate, _, sampling_rate = read(path)
    assert (len(found), rate, sampling_rate) == (9, Fraction(25, 2), 24000)
    assert result.frame_rate is None and result.sampling_rate is None
    (path,) = LTX2PipelineOutput(audio=audio).save(tmp_path / "sound.wav", sampling_rate=24000)
    assert Path(path).is_file()
    (path,) = LTX2PipelineOutput(frames=result.frames).save(tmp_path / "silent.mp4", frame_rate=12.5)
    assert len(read(path)[0]) == 9


def test_a_rate_that_is_known_may_be_repeated_but_not_contradicted(tmp_path):
    assert output().save(tmp_path / "clip.mp4", frame_rate=24, sampling_rate=24000)
    for wrong in ({"frame_rate": 25.0}, {"sampling_rate": 48000}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(ValueError, match=f"`{name}` is {value}, but the output says that it was made at 24"):
            output().save(tmp_path / "other.mp4", **wrong)
    with pytest.raises(ValueError, match="`frame_rate` has to be greater than 0 but is -24"):
        LTX2PipelineOutput(pixels()).save(tmp_path / "other.mp4", frame_rate=-24)
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_wrong_suffix_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"\.txt"):
        output().save(tmp_path / "clip.txt")
    assert list(tmp_path.iterdir()) == []


def test_latents_of_a_pipeline_are_refused_and_frames_are_written(tmp_path):
    call = {**EXPLICIT, **CFG, "prompt": PROMPT, "frame_rate": 29.97}
    # The latents of 17 frames have the shape of 128 pictures.
    for num_frames in (9, 17):
        with pytest.raises(ValueError, match='output_type="pil"'):
            ours()(**call | {"num_frames": num_frames}).save(tmp_path / "latents.mp4")
    (path,) = ours()(**call | {"output_type": "uint8"}, generator=seeded(1)).save(tmp_path / "clip.mp4")
    frames, rate, samples, sampling_rate = read(path)
    assert (len(frames), frames[0].shape, rate, sampling_rate) == (9, (64, 96, 3), Fraction(30000, 1001), 24000)
    assert samples.shape[1] / sampling_rate == pytest.approx(9 / 29.97, abs=2 * 1024 / 24000)


def test_an_output_is_also_a_mapping_and_a_tuple():
    result = output()
    assert result["frames"] is result.frames
    assert result.to_tuple()[:2] == (result.frames, result.audio)


# --- given pictures and sound ---


def handed_over(source: Path, kind: str, **changes) -> LTX2PipelineOutput:
    """What a call returns that was given a file and hands over its pictures or sound."""
    frames = torch.from_numpy(np.stack(source_pictures()))[None] if kind == "video" else pixels()
    seconds = frames.shape[1] / 24
    audio = torch.zeros(1, 1, round(seconds * 48000))
    return LTX2PipelineOutput(frames, audio, 24.0, 48000, **{f"{kind}_source": str(source)}, **changes)


@pytest.mark.parametrize(
    ("name", "codec", "suffix", "copied"),
    [
        ("a.mkv", "libx264", ".mp4", True),
        ("a.mov", "prores_ks", ".mov", True),
        ("a.mov", "prores_ks", ".mp4", False),
        ("a.mkv", "libsvtav1", ".MP4", True),
        ("a.avi", "libx264", ".mp4", False),
    ],
)
def test_given_pictures_are_copied_or_encoded_anew_by_the_rule(tmp_path, recwarn, name, codec, suffix, copied):
    source = write_source(tmp_path / name, Track(codec, 0.0 if name.endswith(".avi") else 0.5))
    (path,) = handed_over(source, "video").save(tmp_path / f"new{suffix}")
    assert (packets_of(path, "video") == packets_of(source, "video")) is copied
    assert len(read(path)[0]) == 25
    assert starts(path) == (0.0, 0.0)
    # The call has said what is true of MP4 files.
    assert [str(w.message) for w in recwarn if w.category is EncodedAnewWarning] == []


def test_what_only_a_mov_file_cannot_hold_is_said_when_it_is_written(tmp_path):
    source = write_source(tmp_path / "a.mp4", Track("libsvtav1"))
    with pytest.warns(EncodedAnewWarning, match=r"a\.mp4' \(av1\) cannot be copied into a \.mov file; use \.mp4"):
        (path,) = handed_over(source, "video").save(tmp_path / "new.mov")
    assert len(read(path)[0]) == 25


def test_odd_sides_are_cut_where_pictures_are_encoded_anew(tmp_path):
    odd = source_pictures(9, 33, 65)
    source = write_source(tmp_path / "a.mov", Track("png"), frames=odd)
    output = LTX2PipelineOutput([[PIL.Image.fromarray(f) for f in odd]], None, 24.0, video_source=str(source))
    (path,) = output.save(tmp_path / "new.mp4")
    assert [frame.shape for frame in read(path)[0]] == [(32, 64, 3)] * 9


@pytest.mark.parametrize(("kind", "track"), [("video", "libx264"), ("audio", "aac")])
def test_a_source_that_is_gone_does_not_cost_the_result(tmp_path, kind, track):
    source = write_source(tmp_path / "a.mp4", **{kind: Track(track)})
    output = handed_over(source, kind)
    source.unlink()
    with pytest.warns(UserWarning, match=r"a\.mp4' cannot be read any more and is encoded anew"):
        (path,) = output.save(tmp_path / "new.mp4")
    assert len(read(path)[0]) == output.frames.shape[1]


@pytest.mark.parametrize(
    ("codec", "suffix", "copied"), [("aac", ".mp4", True), ("pcm_s16le", ".mov", True), ("pcm_s16le", ".mp4", False)]
)
def test_given_sound_keeps_its_distance_from_the_first_picture(tmp_path, codec, suffix, copied):
    source = write_source(tmp_path / "a.mov", Track("libx264", 0.1), Track(codec))
    output = handed_over(source, "audio")
    output.audio[..., round(0.15 * 48000) : round(0.17 * 48000)] = torch.ones(round(0.02 * 48000))
    (path,) = output.save(tmp_path / f"new{suffix}")
    found, original = packets_of(path, "audio"), packets_of(source, "audio")
    assert (found == original[: len(found)]) is copied
    assert onset_s(path) == pytest.approx(0.15, abs=1e-3 if copied else 5e-3)
