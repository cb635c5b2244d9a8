"""Runs of the trainer: they learn, go on exactly where they stopped, and keep what they should."""

import json
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.data.samples import write_sample
from ltx2_diffusers.training.config_files import parse_config
from ltx2_diffusers.training.trainer import LTX2Trainer
from tests.tiny_checkpoints import tiny_checkpoint
from tests.training.running import Losses, config, settings, stored_samples


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return stored_samples(tmp_path_factory.mktemp("data"), silent=(2,))


def run(data, output, **sections):
    """Train; the losses of all steps and what `train` returns."""
    trainer = LTX2Trainer(config(data, output, **sections))
    losses = Losses(trainer)
    return losses.values, *trainer.train()


STRATEGIES = [
    {"name": "text_to_video", "with_audio": False},
    {"name": "image_to_video", "with_audio": True},
    {"name": "video_to_video"},
    {"name": "audio_to_video"},
    {"name": "video_to_audio"},
    {"name": "text_to_audio"},
    {"name": "inpainting"},
    {"name": "extension", "temporal_boundary": 1, "with_audio": True},
    {"name": "extension", "temporal_boundary": 1, "direction": "backward"},
    {"name": "retake", "with_audio": True},
    {"name": "reference_audio"},
    {"name": "flexible", "video": {"is_generated": True, "latents_dir": "latents"}},
]


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s["name"])
def test_every_strategy_learns_and_its_lora_loads(data, tmp_path, strategy):
    losses, checkpoint, stats = run_with(data, tmp_path, strategy)
    assert len(losses) == 2
    assert all(loss == loss and loss > 0 for loss in losses)
    pipe = LTX2Pipeline.from_pretrained(tiny_checkpoint("2.0"), text_encoder=None, tokenizer=None)
    pipe.load_lora_weights(checkpoint)
    weights = load_file(checkpoint / "pytorch_lora_weights.safetensors")
    assert any(value.abs().sum() > 0 for name, value in weights.items() if "lora_B" in name)
    with safe_open(checkpoint / "pytorch_lora_weights.safetensors", framework="pt") as file:
        told = file.metadata().get("reference_downscale_factor")
    assert told == ("1" if strategy["name"] == "video_to_video" else None)
    assert stats["global_batch_size"] == 1


def run_with(data, tmp_path, strategy):
    found = settings(data, tmp_path, optimization={"steps": 2})
    found["training_strategy"] = strategy
    trainer = LTX2Trainer(parse_config(found))
    losses = Losses(trainer)
    return losses.values, *trainer.train()


def test_a_run_learns(tmp_path):
    """Of one clip at one noise level, which a LoRA of this rank can learn by heart."""
    (one := tmp_path / "one").mkdir()
    stored_samples(one, count=1)
    losses, _, _ = run(
        one,
        tmp_path / "run",
        optimization={"steps": 40, "learning_rate": 0.02, "scheduler_type": "constant"},
        flow_matching={
            "timestep_sampling_mode": "uniform",
            "timestep_sampling_params": {"min_value": 0.9, "max_value": 0.91},
        },
    )
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_resumed_run_repeats_the_whole_one(data, tmp_path, stop):
    """Five samples, two forward passes per step: steps cross the ends of epochs; dropout draws, the average moves."""
    sections = {
        "lora": {"dropout": 0.2},
        "optimization": {"steps": 6, "gradient_accumulation_steps": 2, "ema_decay": 0.9},
        "training_strategy": {"caption_dropout_p": 0.3},
    }
    checkpoints = {"interval": stop, "keep_last_n": 0}
    whole, last, _ = run(data, tmp_path / "run", checkpoints=checkpoints, **sections)
    resumed = tmp_path / "run" / "checkpoints" / f"checkpoint-{stop}"
    rest, again, _ = run(data, tmp_path / "again", checkpoints={**checkpoints, "resume": str(resumed)}, **sections)
    assert rest == whole[stop:]
    for name in ("pytorch_lora_weights.safetensors", "training_state/trained.safetensors"):
        one, other = load_file(last / name), load_file(again / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    states = [torch.load(folder / "training_state" / "optimizer.bin", weights_only=True) for folder in (last, again)]
    for one, other in zip(*(state["state"].values() for state in states)):
        assert all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in one)


def test_the_latest_checkpoint_is_gone_on_from(data, tmp_path):
    first, _, _ = run(data, tmp_path, optimization={"steps": 4}, checkpoints={"interval": 2})
    with pytest.raises(ValueError, match="step 4 of 4; raise optimization"):
        run(data, tmp_path, optimization={"steps": 4}, checkpoints={"resume": "latest"})
    longer = {"steps": 6, "scheduler_type": "constant"}
    with pytest.raises(ValueError, match="scheduler_type was 'linear' and is 'constant'"):
        run(data, tmp_path, optimization=longer, checkpoints={"resume": "latest"})
    rest, checkpoint, _ = run(data, tmp_path, optimization={"steps": 6}, checkpoints={"resume": "latest"})
    assert (len(first), len(rest), checkpoint.name) == (4, 2, "checkpoint-6")
    with pytest.warns(UserWarning, match="begins anew"):
        run(data, tmp_path / "empty", checkpoints={"resume": "latest"})


def test_checkpoints_are_kept_by_count_and_never_the_newest_lost(data, tmp_path):
    (tmp_path / "checkpoints" / "checkpoint-1000").mkdir(parents=True)
    run(data, tmp_path, optimization={"steps": 6}, checkpoints={"interval": 2, "keep_last_n": 2})
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    # What another run wrote is left alone; the last step is an interval's, too, and written once.
    assert kept == ["checkpoint-1000", "checkpoint-4", "checkpoint-6"]
    assert (tmp_path / "pytorch_lora_weights.safetensors").is_file()
    assert (tmp_path / "lora_weights_step_00006.safetensors").is_file()
    assert (tmp_path / "training_config.yaml").is_file()
    for place in (tmp_path, tmp_path / "checkpoints" / "checkpoint-6"):
        assert "| Steps | 6 |" in (place / "README.md").read_text()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "README.md").write_text("My own card.")
    run(data, tmp_path / "one", optimization={"steps": 6}, checkpoints={"interval": 2})
    assert [path.name for path in (tmp_path / "one" / "checkpoints").iterdir()] == ["checkpoint-6"]
    assert (tmp_path / "one" / "README.md").read_text() == "My own card."


@pytest.mark.parametrize("kept", ["minimal", "off"])
def test_less_of_the_state_is_saved_on_demand(data, tmp_path, kept):
    _, checkpoint, _ = run(data, tmp_path, checkpoints={"save_training_state": kept})
    state = checkpoint / "training_state"
    assert (sorted(path.name for path in state.iterdir()) if state.is_dir() else []) == (
        ["progress.json", "trained.safetensors"] if kept == "minimal" else []
    )
    longer = {"optimization": {"steps": 6}, "checkpoints": {"resume": str(checkpoint)}}
    if kept == "off":
        with pytest.raises(ValueError, match="no run can go on from it"):
            run(data, tmp_path, **longer)
        return
    with pytest.warns(UserWarning, match="not exactly"):
        losses, _, _ = run(data, tmp_path, **longer)
    assert len(losses) == 2


def test_a_run_starts_from_the_weights_of_another(data, tmp_path):
    _, checkpoint, _ = run(data, tmp_path / "first")
    losses, _, _ = run(
        data, tmp_path / "second", model={"load_checkpoint": str(checkpoint / "lora_weights_step_00004.safetensors")}
    )
    fresh, _, _ = run(data, tmp_path / "third")
    assert losses[0] != fresh[0]


def damaged(tmp_path, *indices):
    """A data set in which some clips make losses infinite."""
    root = stored_samples(tmp_path / "damaged", count=4)
    for index in indices:
        latents = torch.full((128, 2, 1, 2), 3e38)
        grid = {"num_frames": 2, "height": 1, "width": 2, "fps": 24.0}
        write_sample(root / ".precomputed" / "latents" / f"clip_{index}.safetensors", {"latents": latents}, grid)
    return root


def test_losses_that_are_not_finite_are_named_and_cost_nothing(tmp_path, caplog):
    root = damaged(tmp_path, 1)
    losses, checkpoint, _ = run(root, tmp_path / "run", optimization={"steps": 4})
    assert sum(loss != loss or loss == float("inf") for loss in losses) == 1
    assert "clip_1" in caplog.text
    assert json.loads((checkpoint / "training_state" / "progress.json").read_text())["skipped"] == 1
    weights = load_file(checkpoint / "pytorch_lora_weights.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_first_step_that_is_skipped_warns_of_nothing_else(tmp_path):
    root = damaged(tmp_path, 0, 1, 2, 3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run(root, tmp_path / "run", optimization={"steps": 2})
    assert not [warning for warning in told if "lr_scheduler" in str(warning.message)]


def test_an_impossible_repository_is_refused_before_training(data, tmp_path):
    with pytest.raises(ValueError, match="cannot name a repository"):
        run(data, tmp_path / "run", hub={"push_to_hub": True, "hub_model_id": "a/b/c"})
    assert not (tmp_path / "run").exists()


def test_a_run_of_nothing_but_infinite_losses_ends_and_keeps_its_checkpoint(tmp_path):
    root = damaged(tmp_path, 0, 1, 2, 3)
    with pytest.raises(RuntimeError, match=r"10 steps in a row.*clip_\d.*checkpoint-5"):
        run(root, tmp_path / "run", optimization={"steps": 20}, checkpoints={"interval": 5})
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-5" / "pytorch_lora_weights.safetensors").is_file()


def test_data_is_checked_before_models_are_loaded(data, tmp_path):
    with pytest.raises(ValueError, match="5 samples, fewer than batch_size 8; use batch_size 5"):
        run(data, tmp_path, optimization={"batch_size": 8})
    with pytest.raises(FileNotFoundError, match="reference_latents"):
        root = stored_samples(tmp_path / "other", count=2)
        for path in (root / ".precomputed" / "reference_latents").iterdir():
            path.unlink()
        (root / ".precomputed" / "reference_latents").rmdir()
        run_with(root, tmp_path, {"name": "video_to_video"})


def test_every_adapted_layer_gets_a_gradient(data, tmp_path):
    """A silent strategy adapts no layer of the sound."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, checkpoint, _ = run_with(data, tmp_path, {"name": "text_to_video", "with_audio": False})
    weights = load_file(checkpoint / "pytorch_lora_weights.safetensors")
    assert not [name for name in weights if "audio" in name]
    assert all(value.abs().sum() > 0 for name, value in weights.items() if "lora_B" in name)


def test_the_callback_hears_of_every_step(data, tmp_path):
    heard = []
    LTX2Trainer(config(data, tmp_path), lambda *call: heard.append(call)).train()
    assert heard == [(step, 4, []) for step in (1, 2, 3, 4)]


def test_the_whole_transformer_publishes_its_average_in_the_precision_that_is_asked_for(data, tmp_path):
    sections = {"model": {"training_mode": "full"}, "checkpoints": {"precision": "bfloat16"}}
    _, checkpoint, _ = run(data, tmp_path, optimization={"learning_rate": 1e-3, "ema_decay": 0.99}, **sections)
    published = load_file(checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")
    trained = load_file(checkpoint / "training_state" / "trained.safetensors")
    assert {value.dtype for value in published.values()} == {torch.bfloat16}
    differ = [not torch.equal(v, trained[f"front.transformer.{k}"].bfloat16()) for k, v in published.items()]
    assert sum(differ) > 50


def test_the_whole_transformer_trains(data, tmp_path):
    _, checkpoint, _ = run(data, tmp_path, model={"training_mode": "full"}, optimization={"learning_rate": 1e-4})
    pipe = LTX2Pipeline.from_pretrained(tiny_checkpoint("2.0"), text_encoder=None, tokenizer=None)
    trained = type(pipe.transformer).from_pretrained(checkpoint / "transformer")
    before = pipe.transformer.state_dict()
    after = trained.state_dict()
    assert before.keys() == after.keys()
    assert sum(not torch.equal(before[key], after[key]) for key in before) > 50


def test_texts_take_as_many_positions_as_asked(data, tmp_path):
    first = {}
    for length in (16, 64):
        found = settings(data, tmp_path / str(length), optimization={"steps": 1})
        found["data"]["max_sequence_length"] = length
        trainer = LTX2Trainer(parse_config(found))
        losses = Losses(trainer)
        trainer.train()
        first[length] = losses.values[0]
    assert first[16] != first[64]


def test_a_run_in_the_folder_of_another_says_so(data, tmp_path):
    run(data, tmp_path, optimization={"steps": 2})
    with pytest.warns(UserWarning, match="checkpoint-2 of an earlier run"):
        run(data, tmp_path, optimization={"steps": 1})
