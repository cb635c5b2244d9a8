"""Clips are captioned by a model of the user's, and what was written stays written."""

import csv
import json
import os

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from ltx2_diffusers.data.captioning import (
    CaptionOptions,
    TransformersCaptioner,
    default_instruction,
    default_output,
    sampled_frames,
    without_other_turns,
    write_captions,
)
from ltx2_diffusers.media.writing import write_video
from tests.killing import child, ended
from tests.tiny_checkpoints import tiny_checkpoint

RATE = 24000
TINY = tiny_checkpoint("2.0")


class Describing:
    """Says what it was given."""

    def __init__(self, prefix: str = "The video shows "):
        self.prefix = prefix
        self.seen: list[tuple[np.ndarray, object, str]] = []

    def caption(self, frames, audio, instruction):
        self.seen.append((frames, audio, instruction))
        sound = "silence" if audio is None else f"{audio[0].shape[0]} channels at {audio[1]}"
        return f"{self.prefix}{len(frames)} frames, {sound}"


def grey_clip(path, brightness: int = 100, num_frames: int = 48, audio=None):
    """Two seconds in which brightness rises by one per frame."""
    frames = np.full((num_frames, 32, 32, 3), 0, np.uint8)
    frames += (brightness + np.arange(num_frames, dtype=np.uint8))[:, None, None, None]
    return write_video(path, frames, 24.0, audio, None if audio is None else RATE, crf=0)


@pytest.fixture
def folder(tmp_path):
    """A clip with sound, a silent one, a picture and a damaged file."""
    sound = torch.sin(torch.arange(2 * RATE) / 20)[None] * 0.3
    grey_clip(tmp_path / "a.mp4", audio=sound)
    grey_clip(tmp_path / "b.mp4")
    PIL.Image.new("RGB", (40, 30), (10, 200, 10)).save(tmp_path / "c.png")
    (tmp_path / "d.mp4").write_bytes(b"no clip")
    return tmp_path


def files_of(folder, *names):
    return [folder / name for name in names]


# --- what is asked, and what is made of the answer ---


def test_sections_about_sound_are_asked_for_only_if_there_is_some():
    heard, seen = default_instruction(True), default_instruction(False)
    assert all(label in heard for label in ("[VISUAL]", "[SPEECH]", "[SOUNDS]", "[TEXT]"))
    assert "[VISUAL]" in seen
    assert "[TEXT]" in seen
    assert "[SPEECH]" not in seen
    assert "[SOUNDS]" not in seen
    assert "4 sections" in heard
    assert "2 sections" in seen


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("A cat.\nHuman: and then?\nA dog.", "A cat."),
        ("A cat.\n Human\nWhat else?", "A cat."),
        ("Human figures walk.\nHuman hands wave.", "Human figures walk.\nHuman hands wave."),
        ("A cat says: Human: come.", "A cat says: Human: come."),
        ("Human: hello", ""),
    ],
)
def test_turns_that_nobody_took_are_cut(answer, kept):
    assert without_other_turns(answer) == kept


def test_frames_are_spread_over_the_clip(tmp_path):
    clip = grey_clip(tmp_path / "a.mp4", brightness=0)
    for rate, most, apart in ((3.0, 96, 8), (24.0, 4, 12)):
        frames = sampled_frames(clip, rate, most)
        numbers = frames.mean((1, 2, 3))
        assert frames.shape == (48 // apart, 32, 32, 3)
        assert np.abs(np.diff(numbers) - apart).max() < 2
        # A frame stands for the time around its own.
        assert 0 <= numbers[0] <= apart / 2 + 2


def test_a_picture_is_one_frame(folder):
    frames = sampled_frames(folder / "c.png", 3.0, 96)
    assert frames.shape == (1, 30, 40, 3)
    assert frames[0, 0, 0].tolist() == [10, 200, 10]


# --- the file ---


def test_what_the_captioner_is_given(folder):
    captioner = Describing()
    write_captions(files_of(folder, "a.mp4", "b.mp4", "c.png"), folder / "dataset.json", captioner)
    (frames, audio, heard), (_, silent, seen), (picture, none, _) = captioner.seen
    assert (frames.shape, frames.dtype) == ((6, 32, 32, 3), np.uint8)
    assert audio[0].shape[0] == 2
    assert audio[0].shape[1] >= 2 * RATE
    assert audio[1] == RATE
    assert (silent, none, len(picture)) == (None, None, 1)
    assert (heard, seen) == (default_instruction(True), default_instruction(False))


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_files_hold_captions_and_relative_paths(folder, suffix):
    output = folder / "sets" / f"x{suffix}"
    report = write_captions(files_of(folder, "a.mp4", "c.png", "d.mp4"), output, Describing())
    text = output.read_text()
    if suffix == ".csv":
        rows = list(csv.DictReader(text.splitlines()))
    else:
        rows = json.loads(text) if suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    assert rows == [
        {"media_path": "../a.mp4", "caption": "6 frames, 2 channels at 24000"},
        {"media_path": "../c.png", "caption": "1 frames, silence"},
    ]
    assert (report.written, report.kept, list(report.unreadable)) == (2, 0, [folder / "d.mp4"])
    assert "d.mp4" in report.unreadable[folder / "d.mp4"]
    assert report.output == [output]


def test_two_files_of_text(folder):
    captioner = Describing("Line one.\nLine two: ")
    report = write_captions(files_of(folder, "a.mp4", "b.mp4"), folder / "x.txt", captioner)
    assert report.output == [folder / "x_captions.txt", folder / "x_paths.txt"]
    assert (folder / "x_paths.txt").read_text() == "a.mp4\nb.mp4\n"
    lines = (folder / "x_captions.txt").read_text().splitlines()
    assert lines[1] == "Line one. Line two: 6 frames, silence"
    # As a kill between the two files leaves them.
    (folder / "x_paths.txt").write_text("a.mp4\n")
    report = write_captions(files_of(folder, "a.mp4", "b.mp4"), folder / "x.txt", captioner)
    assert (report.written, report.kept) == (1, 1)
    assert (folder / "x_captions.txt").read_text().splitlines() == lines
    (folder / "x_captions.txt").write_text("")
    with pytest.raises(ValueError, match="has 0 lines, fewer than"):
        write_captions([], folder / "x.txt", captioner)


def test_captions_are_cleaned_unless_raw_ones_are_wanted(folder):
    def captioned(**options):
        write_captions([folder / "b.mp4"], folder / "dataset.json", Describing(), CaptionOptions(**options))
        return json.loads((folder / "dataset.json").read_text())[0]["caption"]

    assert captioned() == "6 frames, silence"
    assert captioned(clean=False) == "6 frames, silence"
    assert captioned(clean=False, override=True) == "The video shows 6 frames, silence"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"frame_rate": 12.0}, "24 frames, 2 channels at 24000"),
        ({"max_frames": 2}, "2 frames, 2 channels at 24000"),
        ({"with_audio": False}, "6 frames, silence"),
    ],
)
def test_options_change_what_is_given(folder, options, said):
    write_captions([folder / "a.mp4"], folder / "dataset.json", Describing(), CaptionOptions(**options))
    assert json.loads((folder / "dataset.json").read_text())[0]["caption"] == said


def test_an_own_instruction(folder):
    captioner = Describing()
    write_captions([folder / "a.mp4"], folder / "x.json", captioner, CaptionOptions(instruction="Say it in Greek."))
    assert captioner.seen[0][2] == "Say it in Greek."


def test_one_that_does_not_hear_is_given_no_sound(folder):
    captioner = Describing()
    captioner.hears = False
    write_captions([folder / "a.mp4"], folder / "x.json", captioner)
    assert captioner.seen[0][1:] == (None, default_instruction(False))


def test_other_columns_and_entries_stay(folder):
    rows = [
        {"video": "elsewhere.mp4", "text": "kept", "note": 3},
        {"video": "./a.mp4", "text": "", "note": 4},
        {"video": "b.mp4", "text": "mine", "note": 5},
    ]
    (folder / "dataset.json").write_text(json.dumps(rows))
    report = write_captions(files_of(folder, "a.mp4", "b.mp4"), folder / "dataset.json", Describing())
    assert (report.written, report.kept) == (1, 1)
    rows[1]["text"] = "6 frames, 2 channels at 24000"
    assert json.loads((folder / "dataset.json").read_text()) == rows


def test_clips_without_an_answer_are_named(folder):
    captioner = Describing("Human: ")
    report = write_captions([folder / "b.mp4"], folder / "dataset.json", captioner)
    assert (report.written, report.unanswered) == (0, [folder / "b.mp4"])
    assert not (folder / "dataset.json").exists()


def test_an_error_of_the_model_loses_nothing(folder):
    class Failing(Describing):
        def caption(self, frames, audio, instruction):
            if self.seen:
                raise RuntimeError("out of memory")
            return super().caption(frames, audio, instruction)

    with pytest.raises(RuntimeError, match="out of memory"):
        write_captions(files_of(folder, "a.mp4", "b.mp4"), folder / "dataset.json", Failing())
    assert [row["media_path"] for row in json.loads((folder / "dataset.json").read_text())] == ["a.mp4"]


class Dying(Describing):
    """Ends its process at the fourth clip, as a kill does."""

    def caption(self, frames, audio, instruction):
        if len(self.seen) == 3:
            os._exit(9)
        super().caption(frames, audio, instruction)
        return f"number {len(self.seen)}"


def test_a_killed_run_goes_on_where_it_was_saved(tmp_path):
    for number in range(6):
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    files, output = sorted(tmp_path.glob("*.png")), tmp_path / "dataset.json"
    assert ended(child(lambda: write_captions(files, output, Dying(), CaptionOptions(save_every=2)))) == 9
    saved = json.loads(output.read_text())
    assert [row["caption"] for row in saved] == ["number 1", "number 2"]
    report = write_captions(files, output, Describing())
    assert (report.written, report.kept) == (4, 2)
    assert json.loads(output.read_text())[:2] == saved
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_wrong_outputs_are_refused_before_anything_is_captioned(folder):
    captioner = Describing()
    with pytest.raises(ValueError, match=r"captions are written to .json, .jsonl, .csv, .txt, got .*; use 'x.json'"):
        write_captions([folder / "a.mp4"], folder / "x.yaml", captioner)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset.json' cannot be read as a dataset file"):
        write_captions([folder / "a.mp4"], folder / "dataset.json", captioner)
    assert captioner.seen == []


@pytest.mark.parametrize("name", ["frame_rate", "max_frames", "save_every"])
def test_numbers_have_to_be_positive(name):
    with pytest.raises(ValueError, match=f"`{name}` has to be"):
        CaptionOptions(**{name: 0})


def test_default_outputs(tmp_path):
    assert default_output(tmp_path) == tmp_path / "dataset.json"
    (tmp_path / "metadata.csv").touch()
    assert default_output(tmp_path) == tmp_path / "metadata.csv"
    assert default_output(tmp_path / "a.mp4") == tmp_path / "a.mp4.dataset.json"


# --- models of transformers ---


@pytest.fixture(scope="module")
def tiny():
    return TransformersCaptioner.from_pretrained(TINY / "text_encoder", max_new_tokens=6)


def test_a_vision_language_model_describes_frames(tiny):
    frames = np.random.default_rng(0).integers(0, 255, (3, 24, 32, 3), np.uint8)
    answer = tiny.caption(frames, None, "Describe.")
    assert answer == tiny.caption(frames, None, "Describe.")
    assert not tiny.hears
    model = AutoModelForImageTextToText.from_pretrained(TINY / "text_encoder").eval()
    processor = AutoProcessor.from_pretrained(TINY / "processor")
    content = [{"type": "image"}] * 3 + [{"type": "text", "text": "Describe."}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    images = [PIL.Image.fromarray(frame) for frame in frames]
    inputs = processor(text=text, images=images, add_special_tokens=False, return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 3 * 4
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=6)
    assert processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip() == answer


def test_what_is_seen_and_asked_reaches_the_model(tiny):
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    one = tiny._inputs(frames, None, "Describe.")
    assert not torch.equal(one["pixel_values"], tiny._inputs(frames + 200, None, "Describe.")["pixel_values"])
    assert len(one["input_ids"][0]) < len(tiny._inputs(frames, None, "Describe it in many words.")["input_ids"][0])


def test_the_longest_answer(tiny):
    frames = np.zeros((1, 32, 32, 3), np.uint8)
    calls = []
    long = TransformersCaptioner(tiny.model, tiny.processor)
    generate = tiny.model.generate
    tiny.model.generate = lambda **options: calls.append(options) or generate(**{**options, "max_new_tokens": 1})
    try:
        long.caption(frames, None, "Describe.")
    finally:
        del tiny.model.generate
    assert (calls[0]["max_new_tokens"], calls[0]["do_sample"]) == (1024, False)
    with pytest.raises(ValueError, match="`max_new_tokens` has to be a whole number of at least 1"):
        TransformersCaptioner(tiny.model, tiny.processor, 0)


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded as a model that captions"):
        TransformersCaptioner.from_pretrained(tmp_path)
