import json
import sys
from pathlib import Path

import pytest
import torch

from ltx2_diffusers.cli.main import Parser
from ltx2_diffusers.cli.training import process
from ltx2_diffusers.data.clips import ProcessOptions
from ltx2_diffusers.data.dataset import PrecomputedDataset
from ltx2_diffusers.data.encoding import Source
from ltx2_diffusers.media.writing import write_video
from tests.media.clips import gradient_clip, tone


def parsed(*words):
    parser = Parser(prog="ltx2 data")
    process.add_parser(parser.add_subparsers())
    return parser.parse_args(["process", *map(str, words)])


def run(*words):
    options = parsed(*words)
    return options.run(options)


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    write_video(folder / "loud.mp4", gradient_clip(10, 64, 96), 8.0, tone(1.25), 24000)
    (folder / "bad.mp4").touch()
    for name in ("loud", "bad"):
        (folder / f"{name}.txt").write_text(f"A clip called {name}")
    return folder


def test_a_folder_becomes_samples(clips, capsys):
    words = (
        clips,
        "--checkpoint",
        "ltx2-mini",
        "--resolution-buckets",
        "64x64x9",
        "--device",
        "cpu",
        "--no-progress-bar",
    )
    assert run(*words) == 0
    *problems, summary = capsys.readouterr().out.splitlines()
    assert len(problems) == 1
    assert problems[0].startswith(f"skipped: {clips / 'bad.mp4'}: ")
    assert summary == f"2 clips: 1 processed, 0 there already, 1 skipped; samples are in {clips / '.precomputed'}"
    assert PrecomputedDataset(clips, ["latents", "audio_latents", "conditions"]).names == ["loud"]
    with pytest.raises(ValueError, match=r"made with --lora-trigger None, not 'X'; use that, another --output-dir"):
        run(*words, "--id-token", "X")


def test_the_options_of_the_reference_are_taken(tmp_path):
    words = (
        "data.csv", "--model-path", "model.safetensors", "--text-encoder-path", "gemma", "--resolution-buckets", "64x64x9",
        "--caption-column", "text", "--video-column", "clip", "--batch-size", "2", "--vae-tiling", "--output-dir", tmp_path,
        "--lora-trigger", "X", "--remove-llm-prefixes", "--reference-column", "edges", "--with-audio",
        "--load-text-encoder-in-8bit", "--reference-downscale-factor", "2", "--reference-temporal-scale-factor", "4",
        "--overwrite", "--audio-durations", "2;4", "--reshape-mode", "random", "--frame-rate", "25", "--num-processes", "3",
        "--max-sequence-length", "512", "--no-progress-bar",
    )  # fmt: skip
    assert process.process_options(parsed(*words), "cpu") == ProcessOptions(
        dataset=Path("data.csv"),
        source=Source("model.safetensors", "gemma", "cpu", torch.float32, text_encoder_in_8bit=True),
        resolution_buckets="64x64x9",
        output_dir=tmp_path,
        columns={"caption": "text", "video": "clip", "reference_video": "edges"},
        batch_size=2,
        frame_rate=25.0,
        reshape_mode="random",
        vae_tiling=True,
        with_audio=True,
        audio_durations="2;4",
        remove_llm_prefixes=True,
        lora_trigger="X",
        reference_downscale_factor=2,
        reference_temporal_scale_factor=4,
        max_sequence_length=512,
        overwrite=True,
        num_processes=3,
        progress_bar=False,
    )
    options = parsed(
        "data.csv", "--checkpoint", "ltx2-mini", "--skip-audio", "--dtype", "float16", "--offload", "model"
    )
    made = process.process_options(options, "cuda")
    assert (made.with_audio, made.source.dtype, made.source.offload) == (False, torch.float16, "model")
    default = process.process_options(parsed("data.csv", "--checkpoint", "ltx2-mini"), "cuda")
    assert default == ProcessOptions(Path("data.csv"), Source("ltx2-mini", device="cuda", dtype=torch.bfloat16))


def test_messages_name_options(clips):
    with pytest.raises(ValueError, match=r"need --resolution-buckets, the sizes"):
        run(clips, "--checkpoint", "ltx2-mini", "--device", "cpu")
    with pytest.raises(ValueError, match=r"^--audio-durations must look like 2\.0;4\.0"):
        run(clips, "--checkpoint", "ltx2-mini", "--audio-durations", "x", "--device", "cpu")
    with pytest.raises(ValueError, match="no such folder; did you mean the packaged 'ltx2-mini'"):
        run(clips, "--checkpoint", "ltx2-mni", "--device", "cpu")
    with pytest.raises(FileNotFoundError, match="there is no dataset '/batch_size/x'"):
        run("/batch_size/x", "--checkpoint", "ltx2-mini", "--device", "cpu")


def test_help_states_how_frame_rates_are_handled(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "without --frame-rate the frames of a file are taken one by one" in text
    assert "--id-token" in text


def test_many_problems_are_not_all_shown(clips, capsys, monkeypatch):
    monkeypatch.setattr(process, "_NAMED_PROBLEMS", 1)
    (clips / "bad2.mp4").touch()
    (clips / "bad2.txt").write_text("x")
    run(clips, "--checkpoint", "ltx2-mini", "--resolution-buckets", "64x64x9", "--device", "cpu", "--no-progress-bar")
    assert f"skipped: 1 more, see {clips / '.precomputed' / 'skipped.json'}" in capsys.readouterr().out
    listed = json.loads((clips / ".precomputed" / "skipped.json").read_text())
    assert [entry["clip"] for entry in listed["skipped"]] == ["bad", "bad2"]


def test_parsing_loads_no_networks(monkeypatch):
    monkeypatch.setitem(sys.modules, "ltx2_diffusers.data.processing", None)
    parsed("data.csv", "--checkpoint", "ltx2-mini")
