"""`ltx2 train`: options read off the schema, what it prints, and a run from the command line."""

import subprocess
import sys

import pytest
import torch
import yaml

from ltx2_diffusers.cli.main import main
from ltx2_diffusers.data.samples import write_sample
from ltx2_diffusers.training.config_files import fields, load_config
from tests.training.running import settings, stored_samples

BASE = ("--model-path", "ltx2-mini", "--preprocessed-data-root", "clips", "--output-dir", "outputs")


def printed(capsys, *words: str) -> dict:
    assert main(["train", *words, "--print-config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def complaints(capsys, *words: str) -> list[str]:
    """Lines on stderr of a command that ends with status 2."""
    try:
        status = main(["train", *words])
    except SystemExit as end:
        status = end.code
    assert status == 2
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("ltx2 train:")]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path, tmp_path / "out")))
    return str(path)


def test_without_a_file(capsys):
    found = printed(capsys, *BASE, "--steps", "200")
    assert (found["model"]["model_path"], found["optimization"]["steps"], found["lora"]["rank"]) == (
        "ltx2-mini",
        200,
        64,
    )


def test_what_is_printed_loads_as_the_same(capsys, tmp_path):
    assert main(["train", *BASE, "--prompts", "a: b", "c", "--video-dims", "64", "64", "9", "--print-config"]) == 0
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    found = load_config(path)
    assert found.validation.prompts == ["a: b", "c"] and found.validation.video_dims == (64, 64, 9)
    assert printed(capsys, str(path)) == yaml.safe_load(path.read_text())


def test_options_win_over_values_and_values_over_the_file(capsys, file):
    assert printed(capsys, file)["lora"]["rank"] == 4
    assert printed(capsys, file, "lora.rank=8")["lora"]["rank"] == 8
    assert printed(capsys, file, "lora.rank=8", "--rank", "16")["lora"]["rank"] == 16
    assert printed(capsys, file, "--lora.rank", "16", "--validation.seed", "3")["validation"]["seed"] == 3


def test_words_may_stand_between_options(capsys, file):
    found = printed(capsys, "--steps", "9", file, "--rank", "16", "lora.alpha=2", "--no-with-audio", "seed=5")
    assert (found["optimization"]["steps"], found["lora"]["rank"], found["lora"]["alpha"], found["seed"]) == (
        9,
        16,
        2,
        5,
    )


def test_switches_have_two_sides(capsys, file):
    assert printed(capsys, file, "--no-with-audio")["training_strategy"]["with_audio"] is False
    assert printed(capsys, file, "--enable-gradient-checkpointing")["optimization"]["enable_gradient_checkpointing"]
    bars = printed(capsys, file, "tracking.progress_bar=true", "--disable-progress-bars")
    assert bars["tracking"]["progress_bar"] is False


@pytest.mark.parametrize(
    ("words", "resume"),
    [((), None), (("--resume",), "latest"), (("--resume", "latest"), "latest"), (("--resume=runs/1",), "runs/1")],
)
def test_resuming(capsys, file, words, resume):
    assert printed(capsys, file, *words)["checkpoints"]["resume"] == resume


def test_resume_before_the_file_does_not_take_it_for_a_checkpoint(capsys, file):
    found = printed(capsys, "--resume", file, "lora.rank=8")
    assert (found["checkpoints"]["resume"], found["lora"]["rank"]) == ("latest", 8)


def test_resume_before_a_value_does_not_take_it_for_a_checkpoint(capsys, file):
    found = printed(capsys, file, "--resume", "lora.rank=8")
    assert (found["checkpoints"]["resume"], found["lora"]["rank"]) == ("latest", 8)


def short_run(tmp_path, **sections) -> list[str]:
    """A command of one step."""
    given = settings(
        stored_samples(tmp_path / "data", silent=(1,)), tmp_path / "out", optimization={"steps": 1}, **sections
    )
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(given))
    return ["train", str(path)]


def test_notes_are_single_lines_and_the_last_line_names_the_adapter(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [*short_run(tmp_path), "training_strategy={name: audio_to_video}"]
    assert main(command) == 0
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("out/pytorch_lora_weights.safetensors: adapter after 1 steps")
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert "such as 'clip_1': files are missing for 1 in 'audio_latents'" in notes[0]
    assert "holds checkpoint-1 of an earlier run, and this run begins anew" in notes[-1]
    assert "UserWarning" not in err


def test_sound_that_is_not_trained_is_told(capsys, tmp_path):
    assert main([*short_run(tmp_path), "--no-with-audio"]) == 0
    assert (
        "note: the data have sound, which this run does not train; --with-audio trains it" in capsys.readouterr().err
    )


def test_an_interrupted_run_says_how_to_go_on(capsys, tmp_path, monkeypatch):
    from ltx2_diffusers.training.trainer import LTX2Trainer

    monkeypatch.chdir(tmp_path)
    assert main(short_run(tmp_path)) == 0

    def interrupted(_trainer):
        raise KeyboardInterrupt

    monkeypatch.setattr(LTX2Trainer, "train", interrupted)
    assert main([*short_run(tmp_path), "--resume"]) == 130
    expected = "ltx2 train: interrupted; --resume goes on from out/checkpoints/checkpoint-1"
    assert capsys.readouterr().err.splitlines()[-1] == expected


def test_every_error_has_a_line(capsys, file):
    found = complaints(capsys, file, "lora.ranks=4", "--steps", "0", "--name", "nope")
    assert [line.removeprefix("ltx2 train: ").partition(":")[0] for line in found] == [
        "lora.ranks",
        "training_strategy",
        "optimization.steps",
    ]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("gone.yaml",), "ltx2 train: there is no configuration file 'gone.yaml'; give a YAML file"),
        (("lora.rank=4", "rank"), "ltx2 train: 'rank' is neither an option nor section.key=value"),
        ((), "ltx2 train: model: is missing; give model.model_path"),
        (("--rnak", "3"), "ltx2 train: error: unknown option --rnak; did you mean --rank?"),
    ],
)
def test_wrong_words_are_named(capsys, words, line):
    assert complaints(capsys, *words)[0] == line


def test_help_shows_every_field_by_section_with_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for row in fields():
        assert f"--{row.name}" in text
        assert f"(default: {row.default}" in text, row.name
        assert row.description.rstrip(".") in text
    assert "accelerate launch -m ltx2_diffusers.cli.main train lora.yaml" in text


def run_python(*lines: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)


def test_help_of_all_commands_does_not_read_the_schema():
    result = run_python(
        "import sys",
        "from ltx2_diffusers.cli.main import build_parser",
        "print('train a LoRA' in build_parser().format_help(), 'pydantic' in sys.modules)",
    )
    assert result.stdout == "True False\n"


@pytest.mark.quick_cases(0)
def test_without_pydantic_the_extra_is_named():
    result = run_python(
        "import sys",
        "sys.modules['pydantic'] = None",
        "from ltx2_diffusers.cli.main import main",
        "main(['train', '--help'])",
    )
    assert result.returncode == 2
    assert "training needs pydantic: pip install 'ltx2-diffusers[train]'" in result.stderr


def test_a_dry_run_counts_and_writes_nothing(capsys, file, tmp_path):
    stored_samples(tmp_path)
    assert main(["train", file, "--dry-run", "--gpu", "rtx4090"]) == 0
    text = capsys.readouterr().out
    assert (
        "data: 5 samples" in text and "fits the 24 GiB of rtx4090" in text and "largest batch: 1 x 12 tokens" in text
    )
    assert not (tmp_path / "out").exists()


def test_a_dry_run_names_a_missing_folder(capsys, file):
    (line,) = complaints(capsys, file, "--dry-run")
    assert (
        line.startswith("ltx2 train: data.preprocessed_data_root: there is no folder") and "ltx2 data process" in line
    )


def test_a_run(file, tmp_path):
    stored_samples(tmp_path)
    assert main(["train", file, "--steps", "2", "--disable-progress-bars"]) == 0
    assert load_config(tmp_path / "out" / "training_config.yaml").optimization.steps == 2
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()


def test_a_run_that_cannot_go_on_says_so_in_a_line(file, tmp_path, capsys):
    root = stored_samples(tmp_path)
    for path in (root / ".precomputed" / "latents").iterdir():
        grid = {"num_frames": 2, "height": 1, "width": 2, "fps": 24.0}
        write_sample(path, {"latents": torch.full((128, 2, 1, 2), 3e38)}, grid)
    assert main(["train", file, "--steps", "20", "--disable-progress-bars"]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("ltx2 train: losses or gradients were not finite for 10 steps in a row")


def test_a_revision_is_of_a_hub_id(file, capsys):
    assert main(["train", file, "--revision", "main"]) == 2
    assert "model.revision: is of a Hub id" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_under_accelerates_launcher(file, tmp_path):
    stored_samples(tmp_path)
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
    ]
    command = [
        *launcher,
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "-m",
        "ltx2_diffusers.cli.main",
        "train",
    ]
    subprocess.run([*command, file, "--steps", "2"], check=True, capture_output=True)
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()
