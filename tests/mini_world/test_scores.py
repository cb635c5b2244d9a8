"""The scores of the miniature world: what is summed up, and that every score runs as a user runs it."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import common, mini_world
from benchmarks.mini_world import CLIP, Asked, Bench, Clip, drawn, psnr, scored, spectral_distance
from examples.mini_world.scenes import prompts
from ltx2_diffusers.models.mel import log_mel_spectrogram
from tests.adapters.tiny import lora
from tests.tiny_checkpoints import tiny_checkpoint

pytestmark = pytest.mark.slow

RIGHT = ("shape", "colour", "background", "direction", "pitch", "clicks", "loudness")


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny checkpoint with random LoRAs beside its networks."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint(), folder)
    for seed, name in enumerate((mini_world.DISTILLED, mini_world.IN_CONTEXT)):
        save_file(lora(seed=seed), folder / name)
    return folder


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Where results are written."""
    for module in (common, mini_world):
        monkeypatch.setattr(module, "RESULTS_DIR", tmp_path)
    return tmp_path / "mini_world.json"


def asked(count: int = 20, **options) -> list[Asked]:
    return [Asked(*pair) for pair in prompts("held_out", count, 0, **options)]


def test_drawn_clips_have_full_scores():
    some = asked()
    numbers = scored(some, [drawn(scene, **CLIP) for _, scene in some])
    assert {name: numbers[name] for name in RIGHT} == dict.fromkeys(RIGHT, 100)
    assert numbers["clips"] == 20 and numbers["size"] == 100
    assert numbers["bounce_ms"] < 5 and numbers["pan_error"] < 0.01 and numbers["pan_correlation"] > 0.99


def test_clips_of_other_scenes_have_low_scores():
    some, others = asked(40), asked(41)[1:]
    numbers = scored(some, [drawn(scene, **CLIP) for _, scene in others])
    assert max(numbers[name] for name in ("shape", "colour", "background", "direction", "pitch")) < 50


def test_a_size_counts_only_where_the_caption_says_it():
    (_, scene), *_ = asked(1, motion="stays")
    clip = drawn(scene, **CLIP)
    silent, wrong = Asked("a thing", scene), Asked("a big thing", scene)
    assert "size" not in scored([silent], [clip])
    assert scored([wrong], [clip])["size"] == 100


def test_bounces_without_clicks_have_no_offset():
    some = asked(3, motion="bounces")
    silent = [Clip(drawn(scene, **CLIP).frames, torch.zeros(2, 16_000), 16_000) for _, scene in some]
    numbers = scored(some, silent)
    assert numbers["bounce_ms"] is None and numbers["clicks"] == 0
    scores = {"default": {"captions": dict.fromkeys(RIGHT, 95) | numbers | {"pitch": 95}}}
    assert [line for line in mini_world.missed(scores) if "bounce_ms is None" in line]


def test_bounds_hold_on_their_side():
    good = dict.fromkeys(("shape", "colour", "background", "direction", "pitch"), 90.0) | {"bounce_ms": 40.0}
    assert mini_world.missed({"default": {"captions": good}}) == []
    assert len(mini_world.missed({"default": {"captions": good | {"shape": 89.9, "bounce_ms": 40.1}}})) == 2
    assert len(mini_world.missed({"image_to_video": {"captions": {"first_frame_psnr_db": 24.9}}})) == 1
    distilled = {"full": good, "8 + 3 steps": good | {"shape": 85.0, "pitch": 84.9}}
    assert [line.split(" is ")[0] for line in mini_world.missed({"distilled": distilled})] == [
        "distilled, 8 + 3 steps: pitch"
    ]


def test_ratios_by_hand():
    half = torch.full((3, 4, 4), 0.5)
    assert psnr(half + 0.1, half) == pytest.approx(20, abs=1e-3)
    # One bin in four is 20 dB off; the root of the mean square over bins is 10 dB.
    real = torch.zeros(2, 5, 4)
    made = real.clone()
    made[..., 0] = math.log(10)
    assert spectral_distance(made, real) == pytest.approx(10, abs=1e-4)
    # What is 60 dB below the loudest is not heard.
    quiet = real.clone()
    quiet[..., 0] = -20
    assert spectral_distance(quiet - torch.tensor([5.0, 0, 0, 0]), quiet) == 0


def test_a_louder_sound_is_as_far_as_it_is_louder():
    wave = torch.randn(1, 2, 16_000, generator=torch.Generator().manual_seed(0)) * 0.1
    one, two = (log_mel_spectrogram(wave * gain)[0] for gain in (1, 2))
    assert spectral_distance(two, one) == pytest.approx(20 * math.log10(2), abs=0.01)


def test_batches_change_nothing():
    texts = [a.caption for a in asked(3)]
    clips = []
    for batch_size in (1, 3):
        bench = Bench(tiny_checkpoint(), batch_size=batch_size, steps=1)
        clips.append(bench.generate(bench.kind(mini_world.LTX2Pipeline), texts, height=64, width=64, num_frames=9))
    for one, other in zip(*clips):
        assert (one.frames - other.frames).abs().max() < 1e-3
        assert (one.audio - other.audio).abs().max() < 1e-3
    assert (clips[0][0].frames - clips[0][1].frames).abs().max() > 0.01


def test_asked_for_what_is_not_there(checkpoint, capsys):
    with pytest.raises(SystemExit, match=r"no score shapes; choose of default, "):
        mini_world.chosen(Bench(checkpoint), "default,shapes")
    (checkpoint / mini_world.DISTILLED).unlink()
    with pytest.raises(SystemExit, match=r"lacks what distilled need: distilled_lora"):
        mini_world.chosen(Bench(checkpoint), "distilled")
    left = mini_world.chosen(Bench(checkpoint), "")
    assert set(mini_world.SCORES) - set(left) == {"distilled", "two_stage"}
    assert "two_stage is left out" in capsys.readouterr().err


def test_scores_of_other_weights_are_forgotten(checkpoint, results, capsys):
    call = ["--checkpoint", str(checkpoint), "--prompts", "1", "--steps", "1"]
    mini_world.main([*call, "--only", "audio"])
    mini_world.main([*call, "--only", "vae"])
    assert list(json.loads(results.read_text())["scores"]) == ["vae", "audio"]
    (checkpoint / mini_world.DISTILLED).unlink()
    mini_world.main([*call, "--only", "vae"])
    assert list(json.loads(results.read_text())["scores"]) == ["vae"]
    assert "psnr_db" in capsys.readouterr().out


@pytest.mark.slow
def test_every_score_runs(checkpoint, results, capsys):
    # Random weights miss the bounds.
    assert mini_world.main(["--checkpoint", str(checkpoint), "--prompts", "2", "--steps", "2"]) == 1
    assert "default, captions: shape is " in capsys.readouterr().out
    content = json.loads(results.read_text())
    assert list(content["scores"]) == list(mini_world.SCORES)
    assert content["split"] == "held_out" and content["hardware"]
    for rows in content["scores"].values():
        for row in rows.values():
            assert row["clips"] == 2
            assert all(value is None or math.isfinite(value) for value in row.values())
    scores = content["scores"]
    # Settings change clips: no point of a curve is like another, but for two samplers that begin alike.
    assert len({json.dumps(row) for row in scores["guidance"].values()}) > 3
    assert scores["retake"]["drawn"]["kept_psnr_db"] == 100
    assert (
        scores["precision"]["float32"]["psnr_to_float32_db"]
        == 100
        > scores["precision"]["bfloat16"]["psnr_to_float32_db"]
    )
    assert scores["tiling"]["tiled"]["psnr_to_whole_db"] < 100
