"""The whole way from clips to samples, on a packaged miniature."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch

from ltx2_diffusers.data.buckets import Bucket, crop_to, fitted
from ltx2_diffusers.data.clips import ProcessOptions, parse_durations
from ltx2_diffusers.data.dataset import PrecomputedDataset
from ltx2_diffusers.data.encoding import Source, encode_captions, encode_pixels, encode_sound, read_pixels, read_sound
from ltx2_diffusers.data.processing import process
from ltx2_diffusers.data.samples import read_sample
from ltx2_diffusers.media.writing import write_audio, write_video
from tests.killing import child, contents, ended, hidden, killed_after, killed_before
from tests.media.clips import gradient_clip, tone, write_timed
from tests.tiny_checkpoints import tiny_checkpoint

BUCKETS = "64x64x9"
TINY = Source(str(tiny_checkpoint("2.0")))


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Clips with sound (10 frames of 96 x 64 at 8 per second), without, and others."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "sub").mkdir()
    write_video(folder / "loud.mp4", gradient_clip(10, 64, 96), 8.0, tone(1.25), 24000)
    write_video(folder / "sub" / "tall.mp4", gradient_clip(17, 96, 64), 8.0, tone(3.0)[:1], 24000)
    write_video(folder / "silent.mp4", gradient_clip(10, 64, 96), 8.0)
    write_video(folder / "short.mp4", gradient_clip(8, 64, 96), 8.0)
    write_video(folder / "edges.mp4", gradient_clip(10, 32, 48), 8.0)
    write_audio(folder / "tone.wav", tone(1.3), 24000)
    (folder / "broken.mp4").write_bytes((folder / "loud.mp4").read_bytes()[:900])
    (folder / "empty.mp4").touch()
    PIL.Image.fromarray(np.full((64, 96, 3), 200, np.uint8)).save(folder / "picture.png")
    return folder


@pytest.fixture
def make(media, tmp_path):
    """Options for some clips of the folder, in a copy of it."""
    folder = tmp_path / "clips"
    shutil.copytree(media, folder)

    def options(*names, rows=None, **changes):
        rows = rows or [{"caption": f"A clip called {name}", "video": name} for name in names]
        (folder / "list.json").write_text(json.dumps(rows))
        given = {"resolution_buckets": BUCKETS, "progress_bar": False, "source": TINY, **changes}
        return ProcessOptions(folder / "list.json", **given)

    return options


def sample(options, folder, name):
    return read_sample(options.folder / folder / f"{name}.safetensors")


def test_samples_of_clips_with_sound(make):
    options = make("loud.mp4", "sub/tall.mp4")
    report = process(options)
    assert report.summary() == "2 clips: 2 processed, 0 there already, 0 skipped"
    assert options.folder == options.dataset.parent / ".precomputed"
    dataset = PrecomputedDataset(options.dataset.parent, ["latents", "audio_latents", "conditions"])
    assert dataset.names == ["loud", "sub/tall"]
    for item, path in zip(dataset, ("loud.mp4", "sub/tall.mp4")):
        file, bucket, pipeline = options.dataset.parent / path, Bucket(64, 64, 9), TINY.load_media()
        pixels = read_pixels(file, 9)
        latents = encode_pixels(pipeline, fitted(pixels.frames, bucket, crop_to(*pixels.size, bucket)))
        assert torch.equal(item["latents"].pop("latents"), latents)
        assert item["latents"] == {"num_frames": 2, "height": 2, "width": 2, "fps": 8.0}
        sound = item["audio_latents"]
        assert torch.equal(sound["latents"], encode_sound(pipeline, read_sound(file, 9 / 8)))
        assert sound["num_time_steps"] == sound["latents"].shape[1] == 29
        assert (sound["frequency_bins"], sound["duration"]) == (16, 9 / 8)
        assert sound["latents"].dtype == torch.float32
        (caption,) = encode_captions(TINY.load_text(), [f"A clip called {path}"])
        assert torch.allclose(item["conditions"]["video_prompt_embeds"], caption["video_prompt_embeds"], atol=0.02)
    assert dataset.empty_prompt()["video_prompt_embeds"].shape == (1, 32)


def test_bad_clips_are_named_and_never_stop_the_run(make):
    bad = ("broken.mp4", "empty.mp4", "short.mp4", "picture.png")
    options = make(*bad, "silent.mp4", "loud.mp4")
    report = process(options)
    assert report.summary() == "6 clips: 2 processed, 0 there already, 4 skipped; 1 without sound"
    reasons = {problem.clip: problem.reason for problem in report.skipped}
    assert list(reasons) == ["broken", "empty", "short", "picture"]
    assert "cut off" in reasons["broken"]
    assert "is empty, damaged or of another kind" in reasons["empty"]
    assert reasons["short"] == "it has 8 frames, fewer than the 9 of the shortest resolution bucket"
    assert reasons["picture"] == "it has 1 frames, fewer than the 9 of the shortest resolution bucket"
    said = json.loads((options.folder / "skipped.json").read_text())
    assert [entry["clip"] for entry in said["skipped"]] == list(reasons)
    assert [(entry["clip"], entry["reason"]) for entry in said["without_sound"]] == [("silent", "it has no sound")]
    assert sorted(p.stem for p in (options.folder / "conditions").iterdir()) == ["loud", "silent"]
    again = process(options)
    assert again.summary() == "6 clips: 0 processed, 2 there already, 4 skipped; 1 without sound"
    with pytest.raises(ValueError, match=r"none of the 2 clips can be used; the first: .*broken\.mp4: .*cut off"):
        process(make("broken.mp4", "empty.mp4"))


def test_damaged_sound_leaves_the_picture(make):
    options = make(rows=[{"caption": "x", "video": "loud.mp4", "audio": "empty.mp4"}])
    report = process(options)
    assert report.made == 1
    assert report.without_sound[0].reason.startswith("its sound cannot be used: ")
    assert not (options.folder / "audio_latents").exists()


def test_a_second_run_has_nothing_to_do(make, monkeypatch):
    options = make("loud.mp4", "silent.mp4")
    process(options)
    before = {path: path.stat().st_mtime_ns for path in options.folder.rglob("*.safetensors")}
    monkeypatch.setattr(Source, "load_media", None)
    monkeypatch.setattr(Source, "load_text", None)
    report = process(options)
    assert report.summary() == "2 clips: 0 processed, 2 there already, 0 skipped; 1 without sound"
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_only_what_changed_is_made_anew(make):
    names = ("loud.mp4", "silent.mp4", "sub/tall.mp4")
    options = make(*names)
    process(options)
    files = sorted(options.folder.rglob("*.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in files}
    # A damaged file, a file that is gone, another caption and another clip.
    (options.folder / "latents" / "loud.safetensors").write_bytes(b"damaged")
    (options.folder / "conditions" / "loud.safetensors").unlink()
    rows = [{"caption": f"A clip called {name}", "video": name} for name in names]
    rows[1]["caption"] = "Another caption"
    report = process(make(rows=rows))
    assert (report.made, report.kept) == (2, 1)
    changed = {
        path.relative_to(options.folder).with_suffix("").as_posix()
        for path in files
        if path.stat().st_mtime_ns != before[path]
    }
    assert changed == {"latents/loud", "audio_latents/loud", "conditions/loud", "conditions/silent"}
    write_video(options.dataset.parent / "loud.mp4", gradient_clip(12, 64, 96), 8.0)
    assert process(make(rows=rows)).made == 1
    assert not (options.folder / "audio_latents" / "loud.safetensors").exists()


def test_sound_can_be_added_later_and_left_out(make):
    silent = make("loud.mp4", with_audio=False)
    assert process(silent).without_sound == []
    assert not (silent.folder / "audio_latents").exists()
    options = make("loud.mp4")
    assert process(options).made == 1
    assert (options.folder / "audio_latents" / "loud.safetensors").is_file()
    assert process(make("loud.mp4", with_audio=False)).kept == 1


def test_settings_are_not_mixed_in_one_folder(make):
    process(make("loud.mp4"))
    for change in ({"resolution_buckets": "64x64x1"}, {"lora_trigger": "XYZ"}, {"frame_rate": 8.0}):
        with pytest.raises(
            ValueError,
            match=r"holds samples that were made with \w+ .*, not .*; use that, another output_dir, or overwrite",
        ):
            process(make("loud.mp4", **change))
    options = make("loud.mp4", resolution_buckets="64x64x1", lora_trigger="XYZ", overwrite=True)
    assert process(options).made == 1
    assert sample(options, "latents", "loud")["num_frames"] == 1
    assert process(dataclasses.replace(options, overwrite=False)).kept == 1
    other = make("loud.mp4", output_dir=options.dataset.parent / "other")
    assert process(other).made == 1
    assert (options.dataset.parent / "other" / "latents" / "loud.safetensors").is_file()


def test_a_clip_that_turned_bad_leaves_no_sample(make):
    options = make("loud.mp4", "silent.mp4")
    process(options)
    (options.dataset.parent / "loud.mp4").write_bytes(b"nothing")
    assert [problem.clip for problem in process(options).skipped] == ["loud"]
    assert PrecomputedDataset(options.folder, ["latents", "conditions"]).names == ["silent"]


def test_samples_of_no_clip_are_told(make):
    process(make("loud.mp4", "silent.mp4"))
    report = process(make("loud.mp4"))
    assert [(remark.clip, remark.reason.partition(",")[0]) for remark in report.remarks] == [
        ("silent", "1 samples of the folder")
    ]


def test_a_run_that_made_nothing_binds_no_settings(make):
    with pytest.raises(ValueError, match="none of the 1 clips can be used"):
        process(make("short.mp4", resolution_buckets="64x64x17", lora_trigger="A"))
    options = make("short.mp4", resolution_buckets="64x64x1", lora_trigger="B")
    assert process(options).made == 1
    assert json.loads((options.folder / "process.json").read_text()) == options.settings


def test_damaged_settings_are_named_and_overwritten(make):
    options = make("silent.mp4")
    process(options)
    (options.folder / "process.json").write_text("{half")
    with pytest.raises(ValueError, match=r"process\.json', which says how .* is damaged; overwrite to make all anew"):
        process(options)
    assert process(dataclasses.replace(options, overwrite=True)).made == 1
    assert process(options).kept == 1


def test_another_file_of_the_same_size_is_another_clip(make):
    options = make(rows=[{"caption": "x", "audio": "tone.wav"}], resolution_buckets=None)
    process(options)
    sound, before = options.dataset.parent / "tone.wav", sample(options, "audio_latents", "tone")["latents"]
    # A copy with another time is the same clip.
    os.utime(sound, ns=(0, 0))
    assert process(options).kept == 1
    size = sound.stat().st_size
    write_audio(sound, tone(1.3, frequency=880.0), 24000)
    assert sound.stat().st_size == size
    assert process(options).made == 1
    assert not torch.equal(sample(options, "audio_latents", "tone")["latents"], before)


def test_clips_that_no_sample_can_be_named_after_are_skipped(make):
    folder = make("loud.mp4").dataset.parent
    names = (".hidden", "x" * 244, os.fsdecode(b"caf\xe9"), "half")
    for name in names:
        shutil.copy(folder / "silent.mp4", folder / f"{name}.mp4")
    rows = [{"caption": "x \ud800" if name == "half" else "x", "video": f"{name}.mp4"} for name in ("loud", *names)]
    report = process(make(rows=rows))
    assert report.made == 1
    assert [problem.reason for problem in report.skipped] == [
        "its name begins with a dot, as those of files do that are being written; rename it",
        "its name is too long for a sample, 244 bytes; use at most 243",
        "its name is no text in Unicode; rename it",
        "its caption is no text in Unicode; write it anew",
    ]
    # They can be printed.
    assert "caf\\udce9.mp4: its name" in str(report.skipped[2])


def test_captions_that_are_cut_or_empty_are_told(make):
    names, texts = ("loud.mp4", "silent.mp4", "edges.mp4"), ("word " * 5000, " ", "A clip")
    options = make(rows=[{"caption": text, "video": name} for name, text in zip(names, texts)])
    report = process(options)
    assert report.made == 3
    assert [(remark.clip, remark.reason) for remark in report.remarks] == [
        ("silent", "its caption is empty"),
        ("loud", "its caption is cut at 1024 tokens, max_sequence_length"),
    ]
    assert len(sample(options, "conditions", "loud")["video_prompt_embeds"]) == 1024
    # What is said of more clips than fit on a screen is in the file.
    said = json.loads((options.folder / "skipped.json").read_text())
    assert [entry["clip"] for entry in said["remarks"]] == ["silent", "loud"]


def test_features_of_a_caption_do_not_depend_on_its_batch():
    pipeline = TINY.load_text()
    captions = ["A cat", "", "A dog runs over a street " * 9, "Rain", "x", "Two people talk", "A car", "Snow " * 30]
    for caption, found in zip(captions, encode_captions(pipeline, captions)):
        (alone,) = encode_captions(pipeline, [caption])
        for name, value in alone.items():
            assert value.shape == found[name].shape
            # Half a unit in the last place of bfloat16 at most, in either of them.
            assert torch.allclose(found[name].float(), value.float(), rtol=2**-7, atol=1e-5)


def test_captions_that_were_missed_are_made_as_in_one_run(make):
    """Bit by bit: they are encoded in the same batches."""
    options = make("loud.mp4", "silent.mp4", "edges.mp4", "sub/tall.mp4", batch_size=2)
    process(options)
    before = contents(options.folder)
    for name in ("silent", "sub/tall"):
        (options.folder / "conditions" / f"{name}.safetensors").unlink()
    process(options)
    assert contents(options.folder) == before


def test_what_only_some_clips_have_is_told(make):
    rows = [
        {"caption": "x", "video": "loud.mp4"},
        {"caption": "x", "video": "silent.mp4", "reference_path": "edges.mp4"},
    ]
    (remark,) = process(make(rows=rows)).remarks
    assert (remark.clip, remark.reason) == (
        "loud",
        "1 of 2 clips, such as this, have no reference_video; training with reference_latents leaves them out",
    )


def test_without_sound_its_mask_is_left_out(make):
    rows = [{"caption": "x", "video": "loud.mp4", "audio_mask": "tone.wav"}, {"caption": "x", "audio": "tone.wav"}]
    options = make(rows=rows, with_audio=False)
    report = process(options)
    assert [str(problem).partition(": ")[2] for problem in report.skipped] == ["it is a sound, and sound is left out"]
    assert not (options.folder / "audio_masks").exists()
    assert process(options).kept == 1
    assert process(make(rows=rows)).made == 2
    assert (options.folder / "audio_masks" / "loud.safetensors").is_file()


def test_durations_without_sounds_alone_are_told(make):
    with pytest.warns(UserWarning, match="audio_durations is not used"):
        process(make("silent.mp4", audio_durations="2"))


def test_captions_are_cleaned_and_get_a_trigger(make):
    rows = [{"caption": "The video shows a cat", "video": "silent.mp4"}]
    options = make(rows=rows, remove_llm_prefixes=True, lora_trigger="XYZ")
    process(options)
    (expected,) = encode_captions(TINY.load_text(), ["XYZ a cat"])
    assert torch.equal(sample(options, "conditions", "silent")["video_prompt_embeds"], expected["video_prompt_embeds"])


def test_streams_of_the_newer_generation_have_captions_of_their_own(make):
    options = make("silent.mp4", source=Source(str(tiny_checkpoint("2.3"))))
    process(options)
    assert list(sample(options, "conditions", "silent")) == ["audio_prompt_embeds", "video_prompt_embeds"]


def test_clips_are_brought_to_a_rate_by_their_times(make, tmp_path):
    path = tmp_path / "clips" / "varying.mkv"
    write_timed(path, [0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6])
    own = make("varying.mkv", resolution_buckets="32x32x9")
    report = process(own)
    assert "its frame rate varies" in report.remarks[0].reason
    assert sample(own, "latents", "varying")["fps"] == pytest.approx(11 / 1.8)
    timed = make("varying.mkv", resolution_buckets="32x32x17", frame_rate=10.0, output_dir=tmp_path / "timed")
    assert process(timed).remarks == []
    assert sample(timed, "latents", "varying")["fps"] == 10.0


def test_references_are_smaller_and_coarser(make):
    rows = [{"caption": "x", "video": "silent.mp4", "reference_path": "edges.mp4"}]
    options = make(rows=rows, resolution_buckets="64x64x9", reference_downscale_factor=2)
    process(options)
    reference = sample(options, "reference_latents", "silent")
    pixels, bucket = read_pixels(options.dataset.parent / "edges.mp4", 9), Bucket(32, 32, 9)
    expected = encode_pixels(TINY.load_media(), fitted(pixels.frames, bucket, crop_to(48, 32, bucket)))
    assert torch.equal(reference["latents"], expected)
    assert (reference["height"], reference["width"], reference["fps"]) == (1, 1, 8.0)
    clip = options.dataset.parent / "long.mp4"
    write_video(clip, gradient_clip(17, 64, 64), 8.0)
    rows = [{"caption": "x", "video": "long.mp4", "reference_path": "long.mp4"}]
    options = make(rows=rows, resolution_buckets="64x64x17", reference_temporal_scale_factor=2, overwrite=True)
    process(options)
    reference = sample(options, "reference_latents", "long")
    assert (reference["num_frames"], reference["fps"]) == (2, 4.0)
    frames = read_pixels(clip, 17).frames[[0, *range(1, 17, 2)]]
    bucket = Bucket(64, 64, 9)
    assert torch.equal(
        reference["latents"], encode_pixels(TINY.load_media(), fitted(frames, bucket, crop_to(64, 64, bucket)))
    )


def test_references_that_do_not_fit_are_named(make):
    references = {"loud": "short.mp4", "silent": "sub/tall.mp4", "edges": "picture.png"}
    rows = [{"caption": "x", "video": f"{name}.mp4", "reference_path": other} for name, other in references.items()]
    rows.append({"caption": "x", "video": "sub/tall.mp4", "reference_path": "sub/tall.mp4"})
    report = process(make(rows=rows))
    assert [problem.reason for problem in report.skipped] == [
        "its reference 'short.mp4' has 8 frames, fewer than 9",
        "its reference 'tall.mp4' is 64x96, of another shape than the clip, 96x64",
        "its reference 'picture.png' has 1 frames, fewer than 9",
    ]
    assert report.made == 1


def test_a_random_crop_is_the_same_in_every_run_and_of_the_reference(make, tmp_path):
    rows = [{"caption": "x", "video": "silent.mp4", "reference_path": "silent.mp4"}]
    options = make(rows=rows, reshape_mode="random")
    process(options)
    first = sample(options, "latents", "silent")["latents"]
    assert torch.equal(sample(options, "reference_latents", "silent")["latents"], first)
    again = make(rows=rows, reshape_mode="random", output_dir=tmp_path / "again")
    process(again)
    assert torch.equal(sample(again, "latents", "silent")["latents"], first)


def test_masks_lie_on_the_grid_of_the_latents(make, tmp_path):
    folder = tmp_path / "clips"
    # Of the clip's size: cut like it, 16 columns at each side; of another: stretched.
    for name, width, white in (("own", 96, slice(0, 48)), ("other", 64, slice(32, 64))):
        pixels = np.zeros((64, width, 3), np.uint8)
        pixels[:, white] = 255
        PIL.Image.fromarray(pixels).save(folder / f"{name}.png")
    torch.save(torch.tensor([0.0, 1.0]), folder / "half.pt")
    masks = {"loud": ("own.png", "half.pt"), "sub/tall": ("other.png", "tone.wav")}
    rows = [
        {"caption": "x", "video": f"{name}.mp4", "video_mask": video, "audio_mask": audio}
        for name, (video, audio) in masks.items()
    ]
    options = make(rows=rows)
    assert process(options).made == 2
    assert sample(options, "video_masks", "loud")["mask"].tolist() == [[[1, 0], [1, 0]]] * 2
    assert sample(options, "video_masks", "sub/tall")["mask"].tolist() == [[[0, 1], [0, 1]]] * 2
    assert sample(options, "audio_masks", "loud")["mask"].tolist() == [0.0] * 15 + [1.0] * 14
    # The mean amplitude of the tone stays below one half.
    assert not sample(options, "audio_masks", "sub/tall")["mask"].any()
    (folder / "broken.pt").write_bytes(b"PK no archive")
    bad = [("silent", "half.pt"), ("sub/tall", "broken.pt"), ("edges", "none.pt")]
    torch.save([1], folder / "none.pt")
    rows[1:] = [
        {"caption": "x", "video": f"{name}.mp4", "audio": "tone.wav" if name != "silent" else "", "audio_mask": mask}
        for name, mask in bad
    ]
    report = process(make(rows=rows))
    assert report.kept == 1
    reasons = [problem.reason for problem in report.skipped]
    assert reasons[0] == "it has no sound, but 'half.pt' is a mask of it"
    assert "broken.pt' cannot be read" in reasons[1]
    assert reasons[2] == "its mask 'none.pt' holds no tensor with values"


def test_masks_that_end_early_are_told(make):
    folder = make("loud.mp4").dataset.parent
    write_video(folder / "white.mp4", torch.ones(5, 3, 64, 96), 8.0)
    write_audio(folder / "brief.wav", torch.full((1, 12000), 0.9), 24000)
    rows = [{"caption": "x", "video": "loud.mp4", "video_mask": "white.mp4", "audio_mask": "brief.wav"}]
    options = make(rows=rows)
    assert [remark.reason for remark in process(options).remarks] == [
        "its mask 'white.mp4' has 5 frames; it is black behind them",
        "its mask 'brief.wav' ends 0.62 s early; it is silent behind that",
    ]
    assert sample(options, "video_masks", "loud")["mask"].flatten(1).tolist() == [[1.0] * 4, [0.0] * 4]


def test_sound_alone_and_reference_sound(make):
    rows = [{"caption": "x", "audio": "tone.wav", "reference_audio": "tone.wav"}]
    options = make(rows=rows, resolution_buckets=None)
    process(options)
    whole = sample(options, "audio_latents", "tone")
    assert whole["duration"] == pytest.approx(1.3)
    assert torch.equal(sample(options, "reference_audio_latents", "tone")["latents"], whole["latents"])
    assert PrecomputedDataset(options.folder, ["audio_latents", "conditions"]).names == ["tone"]
    options = make(rows=rows, resolution_buckets=None, audio_durations="5;0.5;1.0", overwrite=True)
    process(options)
    assert sample(options, "audio_latents", "tone")["duration"] == 1.0
    with pytest.raises(ValueError, match=r"it lasts 1\.30 s, less than the shortest of audio_durations, 5 s"):
        process(make(rows=rows, resolution_buckets=None, audio_durations="5", overwrite=True))
    with pytest.raises(ValueError, match="sounds alone"):
        process(make(rows=rows, resolution_buckets=None, with_audio=False))


def test_pictures_have_buckets_of_one_frame(make):
    options = make("picture.png", resolution_buckets="96x64x1")
    report = process(options)
    assert (report.made, [problem.reason for problem in report.without_sound]) == (1, ["it has no sound"])
    assert sample(options, "latents", "picture")["fps"] == 1.0
    assert sample(options, "latents", "picture")["latents"].shape == (128, 1, 2, 3)


def test_short_sound_is_told(make):
    options = make(
        rows=[{"caption": "x", "video": "silent.mp4", "audio": "tone.wav"}],
        frame_rate=5.0,
        resolution_buckets="64x64x1;32x32x1",
    )
    assert process(options).remarks == []
    write_audio(options.dataset.parent / "tone.wav", tone(0.5), 24000)
    options = make(rows=[{"caption": "x", "video": "silent.mp4", "audio": "tone.wav"}], overwrite=True)
    assert process(options).remarks[0].reason == "its sound ends 0.62 s early; silence stands there"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution_buckets": None}, "the dataset has videos, which need resolution_buckets"),
        ({"resolution_buckets": "60x64x9"}, "`width` has to be divisible by 32 but is 60; use 32 or 64"),
        ({"max_sequence_length": 30}, "`max_sequence_length` has to be a multiple of 16"),
        ({"source": Source("model.safetensors")}, "holds no text encoder"),
    ],
)
def test_impossible_options_are_refused(make, change, message):
    with pytest.raises(ValueError, match=message):
        process(make("silent.mp4", **change))
    # What was made before the texts were looked at stays, and the right length is taken.
    if "max_sequence_length" in change:
        assert process(make("silent.mp4")).made == 1
    else:
        assert not (make("silent.mp4").folder).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"num_processes": 0}, "num_processes"),
        ({"frame_rate": 0.0}, "frame_rate"),
        ({"frame_rate": float("inf")}, "frame_rate"),
        ({"reshape_mode": "left"}, "reshape_mode"),
        ({"audio_durations": "2;x"}, r"audio_durations must look like 2\.0;4\.0, positive seconds, got '2;x'"),
        ({"reference_downscale_factor": 0}, "reference_downscale_factor"),
    ],
)
def test_impossible_values_are_refused(make, change, message):
    with pytest.raises(ValueError, match=message):
        make("silent.mp4", **change)


def test_durations_are_sorted():
    assert parse_durations("4;2.5") == [2.5, 4.0]
    assert parse_durations(None) == []
    with pytest.raises(ValueError, match="positive seconds"):
        parse_durations("-1")


def test_factors_without_references_are_told_and_with_them_checked(make):
    with pytest.warns(UserWarning, match="no references"):
        process(make("silent.mp4", reference_downscale_factor=2))
    rows = [{"caption": "x", "video": "silent.mp4", "reference_path": "edges.mp4"}]
    with pytest.raises(ValueError, match="must be a multiple of 96 with reference_downscale_factor 3"):
        process(make(rows=rows, reference_downscale_factor=3, overwrite=True))


@pytest.mark.slow
def test_a_killed_run_leaves_whole_files_and_the_next_goes_on(make, tmp_path):
    options = make("loud.mp4", "silent.mp4", "sub/tall.mp4", batch_size=2)
    wanted = dataclasses.replace(options, output_dir=tmp_path / "whole")
    process(wanted)
    killed = 0
    for step in (4, 12, 25, 40, 55):
        killed += killed_before(lambda: process(options), options.folder, step)
        for path in options.folder.rglob("[!.]*.safetensors"):
            read_sample(path)
    killed += killed_after(lambda: process(options), 0.7)
    assert killed >= 3
    assert ended(child(lambda: process(options))) == 0
    assert contents(options.folder) == contents(wanted.folder)
    assert hidden(options.folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("way", ["spawned", "launched"])
def test_several_processes_make_what_one_makes(make, tmp_path, way):
    options = make("loud.mp4", "broken.mp4", "silent.mp4", "sub/tall.mp4", "edges.mp4")
    alone = process(dataclasses.replace(options, output_dir=tmp_path / "alone"))
    if way == "spawned":
        report = process(dataclasses.replace(options, num_processes=2))
        assert report.summary() == alone.summary()
    else:
        code = (
            "import sys; from pathlib import Path\n"
            "from ltx2_diffusers.data.clips import ProcessOptions\n"
            "from ltx2_diffusers.data.encoding import Source\n"
            "from ltx2_diffusers.data.processing import process\n"
            f"print(process(ProcessOptions(Path({str(options.dataset)!r}), Source({TINY.checkpoint!r}), {BUCKETS!r})).summary())"
        )
        started = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                env={
                    **os.environ,
                    **{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)},
                    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29731"},
                },
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        assert [run.communicate(timeout=120)[0].strip() for run in started] == [alone.summary()] * 2
    # Batches of captions differ, and with them the last bit.
    for path in alone.folder.rglob("*.safetensors"):
        expected, found = read_sample(path), read_sample(options.folder / path.relative_to(alone.folder))
        for name, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert torch.allclose(found[name].float(), value.float(), atol=0.02), path
    skipped = json.loads((options.folder / "skipped.json").read_text())
    assert [entry["clip"] for entry in skipped["skipped"]] == ["broken"]


@pytest.mark.slow
def test_what_a_process_refuses_is_said_by_the_first(make):
    options = make("loud.mp4", "silent.mp4", resolution_buckets="60x64x9", num_processes=2)
    with pytest.raises(ValueError, match=r"^resolution bucket '60x64x9': `width` has to be divisible by 32"):
        process(options)
    assert not options.folder.exists()


def test_one_may_not_launch_and_spawn(make, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="a launcher has started 2 processes"):
        process(make("silent.mp4", num_processes=2))
