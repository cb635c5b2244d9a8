"""`ltx2 generate` writes the file it was asked for, or says what is wrong in one line."""

import functools
import json
from fractions import Fraction

import av
import numpy as np
import pytest

from ltx2_diffusers import RECOMMENDED_NEGATIVE_PROMPT, LTX2Pipeline
from ltx2_diffusers.cli.main import build_parser, main
from tests.golden_data import GOLDEN_DIR
from tests.tiny_checkpoints import tiny_checkpoint

QUICK = ["--width", "64", "--height", "64", "--num-frames", "9", "--steps", "2", "--device", "cpu"]
ORIGINAL = GOLDEN_DIR / "checkpoint" / "ltx-2-tiny-dev.safetensors"
GEMMA = GOLDEN_DIR / "checkpoint" / "expected_diffusers" / "ltx-2-tiny-dev"


def generate(path, *options: str) -> int:
    return main(["generate", "--prompt", "waves", "-o", str(path), *QUICK, *options])


def described(path) -> tuple[int, tuple[int, int], Fraction, int]:
    """Frames, size, frame rate and sampling rate of a clip whose sound lasts as long as its picture."""
    with av.open(str(path)) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        lengths = [float(stream.duration * stream.time_base) for stream in (video, audio)]
        assert lengths[0] == pytest.approx(lengths[1], abs=1024 / audio.rate)
        frames = sum(1 for _ in file.decode(video=0))
        return frames, (video.width, video.height), video.average_rate, audio.rate


@pytest.mark.parametrize(("version", "sampling_rate"), [("2.0", 24000), ("2.3", 48000)])
def test_a_checkpoint_makes_a_clip(tmp_path, capsys, version, sampling_rate):
    path = tmp_path / "out" / "clip.mp4"
    assert generate(path, "--checkpoint", str(tiny_checkpoint(version)), "--frame-rate", "23.976") == 0
    assert described(path) == (9, (64, 64), Fraction(24000, 1001), sampling_rate)
    captured = capsys.readouterr()
    assert f"{path}: 9 frames of 64x64, 0.38 s" in captured.out
    assert "2/2" in captured.err


def test_a_clip_as_long_as_its_text(tmp_path, capsys):
    path, options = tmp_path / "clip.mp4", [name for name in QUICK if name not in ("--num-frames", "9")]
    asked = [
        "--checkpoint",
        str(tiny_checkpoint("2.5")),
        "--auto-length",
        "--min-seconds",
        "0.2",
        "--max-seconds",
        "0.6",
    ]
    assert main(["generate", "--prompt", "waves", "-o", str(path), *options, *asked]) == 0
    manifest = json.loads(path.with_name("clip.mp4.json").read_text())
    frames = described(path)[0]
    assert frames in (9, 17) and manifest["result"]["num_frames"] == frames
    assert {**manifest["options"], "auto_length": True, "max_seconds": 0.6} == manifest["options"]
    assert main(["replay", str(path.with_name("clip.mp4.json")), "-o", str(tmp_path / "again.mp4")]) == 0
    capsys.readouterr()
    assert main(["generate", "--prompt", "waves", "-o", str(path), *options, "--auto-length"]) == 2
    assert "--auto-length needs a duration head" in capsys.readouterr().err


def test_the_recommended_negative_prompt_is_written_out(tmp_path):
    path = tmp_path / "x.mp4"
    assert generate(path, "--negative-prompt", "recommended") == 0
    options = json.loads(path.with_name("x.mp4.json").read_text())["options"]
    assert options["negative_prompt"] == RECOMMENDED_NEGATIVE_PROMPT
    assert len(RECOMMENDED_NEGATIVE_PROMPT) > 100


def test_an_original_file_makes_a_clip(tmp_path):
    assert generate(tmp_path / "clip.mp4", "--checkpoint", str(ORIGINAL), "--text-encoder", str(GEMMA)) == 0
    assert described(tmp_path / "clip.mp4")[0] == 9


def test_equal_seeds_give_equal_clips_and_others_do_not(tmp_path):
    clips = []
    for index, seed in enumerate(("1", "1", "2")):
        assert generate(tmp_path / f"{index}.mp4", "--seed", seed, "--guidance-scale", "1") == 0
        with av.open(str(tmp_path / f"{index}.mp4")) as file:
            clips.append(np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]).astype(int))
    assert (clips[0] == clips[1]).all()
    assert abs(clips[0] - clips[2]).mean() > 1


def test_options_reach_the_pipeline(tmp_path, monkeypatch):
    seen = {}

    @functools.wraps(LTX2Pipeline.__call__)
    def remember(_self, **kwargs):
        seen.update(kwargs)
        raise ValueError("enough seen")

    monkeypatch.setattr(LTX2Pipeline, "__call__", remember)
    options = ["--negative-prompt", "hum", "--guidance-scale", "2", "--audio-guidance-scale", "0", "--seed", "3"]
    assert generate(tmp_path / "x.mp4", *options, "--sampler", "res_2s") == 2
    assert (seen["prompt"], seen["negative_prompt"], seen["width"], seen["height"]) == ("waves", "hum", 64, 64)
    assert (seen["guidance_scale"], seen["audio_guidance_scale"], seen["sampler"]) == (2.0, 0.0, "res_2s")
    assert seen["generator"].initial_seed() == 3
    assert seen["num_inference_steps"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--width", "50"], "--width has to be divisible by 32 but is 50; use 32 or 64"),
        (["--device", "abacus"], "--device abacus cannot be used"),
        (["--num-frames", "10"], "use 9 or 17"),
        (["--frame-rate", "0"], "--frame-rate has to be greater than 0"),
        (["--sampler", "eulr"], "sampler must be one of euler"),
        (["--checkpoint", str(ORIGINAL)], "--text-encoder"),
        (["--checkpoint", "missing.safetensors", "--text-encoder", str(GEMMA)], "missing.safetensors"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_input_ends_with_one_line_and_status_2(tmp_path, capsys, options, message):
    assert generate(tmp_path / "x.mp4", *options) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ltx2 generate:")]
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_name_is_noticed_before_anything_is_computed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(LTX2Pipeline, "__call__", lambda *_, **__: pytest.fail("the pipeline ran"))
    assert generate(tmp_path / "x.gif") == 2
    assert ".gif" in capsys.readouterr().err


def test_help_and_version_of_the_command(capsys):
    for option, text in (("--help", "doctor"), ("--version", "ltx2-diffusers")):
        with pytest.raises(SystemExit, match="0"):
            main([option])
        assert text in capsys.readouterr().out
    assert build_parser().prog == "ltx2"


def test_an_unknown_command(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["paint"])
    assert "paint" in capsys.readouterr().err
