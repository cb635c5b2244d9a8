"""What a run refuses to go on from, and what it finds out before it begins."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx2_diffusers.data.samples import write_sample
from ltx2_diffusers.training import trainer as trainer_module
from ltx2_diffusers.training.checkpoints import load_trained
from ltx2_diffusers.training.trained.models import load_models
from ltx2_diffusers.training.trainer import LTX2Trainer
from tests.tiny_checkpoints import tiny_checkpoint
from tests.training.running import Losses, config, settings, stored_samples

LONGER = {"steps": 4, "ema_decay": 0.9}


def run(data, output, **sections):
    """Train; the losses of all steps and the last checkpoint."""
    trainer = LTX2Trainer(config(data, output, **sections))
    losses = Losses(trainer)
    checkpoint, _ = trainer.train()
    return losses.values, checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return stored_samples(tmp_path_factory.mktemp("data"), silent=(2,))


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    return run(data, tmp_path_factory.mktemp("run"), optimization={**LONGER, "steps": 2})[1]


@pytest.fixture
def not_loaded(monkeypatch):
    """Fails a test in which models are loaded."""
    monkeypatch.setattr(trainer_module, "load_models", lambda *_: pytest.fail("models were loaded"))


OTHER = [
    ("ema_decay was 0.9 and is None", {"optimization": {"ema_decay": None}}),
    ("ema_decay was 0.9 and is 0.5", {"optimization": {"ema_decay": 0.5}}),
    ("learning_rate was 0.01 and is 0.5", {"optimization": {"learning_rate": 0.5}}),
    ("weight_decay was None and is 0.5", {"optimization": {"optimizer_params": {"weight_decay": 0.5}}}),
    ("lora.alpha was 8 and is 1", {"lora": {"alpha": 1}}),
    ("lora.dropout was 0.0 and is 0.5", {"lora": {"dropout": 0.5}}),
    ("mixed_precision_mode was 'no' and is 'bf16'", {"acceleration": {"mixed_precision_mode": "bf16"}}),
    ("caption_dropout_p was 0.0 and is 0.3", {"training_strategy": {"caption_dropout_p": 0.3}}),
    ("audio_loss_weight was 1.0 and is 0.5", {"flow_matching": {"audio_loss_weight": 0.5}}),
]


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("message, sections", OTHER, ids=[message for message, _ in OTHER])
def test_what_a_checkpoint_would_overrule_is_refused(data, checkpoint, tmp_path, message, sections):
    """Rates, decays and the like are read back with the states, so a new value would do nothing."""
    sections = {"checkpoints": {"resume": str(checkpoint)}, "optimization": {}, **sections}
    sections["optimization"] = {**LONGER, **sections["optimization"]}
    with pytest.raises(ValueError, match=f"cannot go on exactly.*{message}"):
        run(data, tmp_path, **sections)


def test_samples_of_other_sizes_and_another_base_are_refused(data, checkpoint, tmp_path, monkeypatch):
    sections = {"optimization": LONGER, "checkpoints": {"resume": str(checkpoint)}}
    with pytest.raises(ValueError, match="samples was"):
        run(stored_samples(tmp_path / "longer", frames=3, silent=(2,)), tmp_path, **sections)

    def other(*arguments):
        models = load_models(*arguments)
        models.transformer.proj_in.weight.data.add_(1)
        return models

    monkeypatch.setattr(trainer_module, "load_models", other)
    with pytest.raises(ValueError, match="base_model was"):
        run(data, tmp_path, **sections)


@pytest.mark.parametrize("file", ["optimizer.bin", "random_states_0.pkl", "custom_checkpoint_1.pkl"])
def test_damaged_states_are_named(data, checkpoint, tmp_path, file):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    damaged = copy / "training_state" / file
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"copy/training_state.* cannot be read .*another checkpoint"):
        run(data, tmp_path / "run", optimization=LONGER, checkpoints={"resume": str(copy)})


def test_weights_of_another_shape_are_not_spread_over_those_that_train(tmp_path):
    network = torch.nn.Linear(3, 2, bias=False)
    before = network.weight.detach().clone()
    save_file({"weight": torch.ones(1, 3)}, tmp_path / "trained.safetensors")
    with pytest.raises(ValueError, match="differ in 'weight'"):
        load_trained(network, tmp_path / "trained.safetensors")
    assert torch.equal(network.weight, before)


@pytest.mark.usefixtures("not_loaded")
def test_a_checkpoint_is_looked_at_before_models_are_loaded(data, checkpoint, tmp_path):
    for resume, message in (("/nowhere", "no run can go on from it"), (str(checkpoint), "is at step 2 of 2")):
        sections = {"optimization": {**LONGER, "steps": 2}, "checkpoints": {"resume": resume}}
        with pytest.raises(ValueError, match=message):
            run(data, tmp_path, **sections)


@pytest.mark.usefixtures("not_loaded")
def test_a_folder_that_cannot_be_written_to_is_found_before_models_are_loaded(data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="is a file; choose a folder"):
        run(data, tmp_path / "file")


def test_settings_stand_beside_the_run_from_its_start(data, tmp_path):
    class Stop(Exception):
        """Ends a run."""

    def stop(*_):
        raise Stop

    with pytest.raises(Stop):
        LTX2Trainer(config(data, tmp_path), stop).train()
    assert "learning_rate: 0.01" in (tmp_path / "training_config.yaml").read_text()


def test_checkpoints_of_another_folder_are_left_alone(data, checkpoint, tmp_path):
    kept = tmp_path / "checkpoints" / "checkpoint-2"
    kept.mkdir(parents=True)
    (kept / "mine").touch()
    run(data, tmp_path, optimization=LONGER, checkpoints={"interval": 1, "resume": str(checkpoint)})
    assert sorted(path.name for path in kept.parent.iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_a_checkpoint_that_a_kill_saved_from_removal_is_removed_later(data, tmp_path):
    _, first = run(data, tmp_path, optimization={"steps": 2})
    left = shutil.copytree(first, tmp_path / "left")
    _, second = run(data, tmp_path, optimization={"steps": 3}, checkpoints={"resume": "latest"})
    assert json.loads((second / "training_state" / "progress.json").read_text())["written"] == [2, 3]
    # As if the process had been killed after it wrote the second one.
    left.rename(first)
    (tmp_path / "checkpoints" / ".checkpoint-1.removed").mkdir()
    run(data, tmp_path, optimization={"steps": 4}, checkpoints={"resume": "latest"})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-4"]


def test_a_save_that_fails_leaves_the_last_checkpoint(data, tmp_path, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    def fill(step, *_):
        if step == 3:
            monkeypatch.setattr("accelerate.accelerator.save_accelerator_state", full)

    trainer = LTX2Trainer(config(data, tmp_path, checkpoints={"interval": 2}), fill)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-2"]
    rest, last = run(data, tmp_path, checkpoints={"resume": "latest"})
    assert (len(rest), last.name) == (2, "checkpoint-4")


@pytest.mark.parametrize("targets", ["audio", "cross_modal"])
def test_clips_without_sound_are_left_out_where_they_teach_nothing(data, tmp_path, targets):
    with pytest.warns(UserWarning, match="1 of 5 samples .* are left out, such as 'clip_2'"):
        losses, _ = run(data, tmp_path, lora={"target_modules": targets}, optimization={"steps": 5})
    assert len(losses) == 5


def test_data_of_another_model_are_named(tmp_path):
    root = stored_samples(tmp_path / "narrow", count=1)
    grid = {"num_frames": 2, "height": 1, "width": 2, "fps": 24.0}
    folder = root / ".precomputed"
    write_sample(folder / "latents" / "clip_0.safetensors", {"latents": torch.zeros(64, 2, 1, 2)}, grid)
    with pytest.raises(ValueError, match="latents of sample 'clip_0' are 64 wide, but the model reads 128"):
        run(root, tmp_path / "run")
    root = stored_samples(tmp_path / "texts", count=1)
    with pytest.raises(ValueError, match="conditions of sample 'clip_0' are 32 wide, but the model reads 16"):
        run(root, tmp_path / "run", model={"model_path": str(tiny_checkpoint("2.3"))})


@pytest.mark.parametrize("prompts", [[], ["waves"]])
def test_a_text_encoder_is_loaded_only_for_samples(data, tmp_path, monkeypatch, prompts):
    asked = []

    def loaded(*arguments):
        asked.append(arguments[2])
        raise InterruptedError

    monkeypatch.setattr(trainer_module, "load_models", loaded)
    with pytest.raises(InterruptedError):
        run(data, tmp_path, validation={"interval": 100, "prompts": prompts})
    assert asked == [bool(prompts)]


def test_half_precision_is_refused_on_the_cpu(data, tmp_path):
    with pytest.raises(ValueError, match="fp16` needs a GPU; use 'bf16'"):
        run(data, tmp_path, acceleration={"mixed_precision_mode": "fp16"})


def test_infinite_losses_with_finite_gradients_change_nothing(data, tmp_path, monkeypatch):
    """A mean square overflows long before its gradient."""
    update, seen = LTX2Trainer._update, []

    def overflown(self, run, _loss):
        before = [parameter.detach().clone() for parameter in run.models.parameters()]
        result = update(self, run, float("inf"))
        seen.append(all(torch.equal(a, b) for a, b in zip(before, run.models.parameters())) and result is None)
        return result

    monkeypatch.setattr(LTX2Trainer, "_update", overflown)
    _, checkpoint = run(data, tmp_path)
    assert seen == [True] * 4
    progress = json.loads((checkpoint / "training_state" / "progress.json").read_text())
    assert progress["skipped"] == 4
    assert load_file(checkpoint / "training_state" / "trained.safetensors")


def test_fields_that_cannot_be_honoured_are_refused(data, tmp_path):
    from ltx2_diffusers.training.config_files import parse_config

    given = {"is_generated": False, "latents_dir": "audio_latents"}
    given["conditions"] = [{"type": "prefix", "temporal_boundary": 1}]
    strategies = [
        ("min_share: has to be greater than 0", {"name": "retake", "min_share": 0}),
        (
            "audio.conditions has prefix, but the whole audio is given",
            {"name": "flexible", "video": {"is_generated": True, "latents_dir": "latents"}, "audio": given},
        ),
    ]
    for message, strategy in strategies:
        found = settings(data, tmp_path)
        found["training_strategy"] = strategy
        with pytest.raises(ValueError, match=message):
            parse_config(found)
    with pytest.raises(ValueError, match="are both 0"):
        config(data, tmp_path, flow_matching={"video_loss_weight": 0, "audio_loss_weight": 0})
