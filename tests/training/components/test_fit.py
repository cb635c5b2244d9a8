"""The loop: exact resume, averages, precision, clipping, named errors and saving."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ltx2_diffusers.models.video_vae import AutoencoderKLLTX2Video
from ltx2_diffusers.training.components import FitOptions, PairCritic, TrainingStep, VideoVaeStep, fit, save_networks
from tests.models.video_vae_tools import SMALLEST
from tests.training.components.made import QUIET, video

STEPS = 6
FLAT = SMALLEST | {"upsample_type": ("spatial",)}


class Line(TrainingStep):
    """Fits `weight * x` to y: the loss and its gradient can be followed by hand."""

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, batch):
        error = (self.weight * batch["x"] - batch["y"]).square().mean()
        return {"loss": error, "error": error}


POINTS = {"x": torch.tensor([1.0]), "y": torch.tensor([2.0])}


def vae_step(seed: int = 0) -> VideoVaeStep:
    torch.manual_seed(seed)
    return VideoVaeStep(AutoencoderKLLTX2Video(**FLAT), critic=PairCritic(channels=4, layers=2))


def drawn_batch(number: int) -> dict[str, torch.Tensor]:
    """A batch that follows from the random numbers of all three sources."""
    noise = 0.1 * torch.randn(1, 3, 3, 8, 8) + 0.1 * random.random() + 0.1 * np.random.rand()
    return {"pixels": video(1, 3, 8, seed=number) + noise}


def seeded() -> None:
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)


def options(tmp_path, **changes) -> FitOptions:
    settings = {"schedule": "cosine", "warmup_steps": 2, "ema_decay": 0.9, "save_every": 2, "weight_decay": 0.01}
    return FitOptions(progress=False, state_file=tmp_path / "state.pt", **settings | changes)


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(tmp_path):
    seeded()
    whole = vae_step()
    seeded()
    records = fit(whole, whole.vae.parameters(), drawn_batch, STEPS, 1e-3, options(tmp_path / "whole"))

    def interrupted(number: int) -> dict[str, torch.Tensor]:
        if number == 5:
            raise KeyboardInterrupt
        return drawn_batch(number)

    step = vae_step()
    seeded()
    with pytest.raises(KeyboardInterrupt):
        fit(step, step.vae.parameters(), interrupted, STEPS, 1e-3, options(tmp_path))
    # Another process begins with other weights and other random numbers.
    torch.manual_seed(99)
    resumed = vae_step(seed=99)
    again = fit(resumed, resumed.vae.parameters(), drawn_batch, STEPS, 1e-3, options(tmp_path))
    assert again == records
    weights = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


def test_a_finished_run_is_not_run_again(tmp_path):
    step = vae_step()
    records = fit(step, step.vae.parameters(), drawn_batch, STEPS, 1e-3, options(tmp_path))
    fresh = vae_step(seed=1)
    assert fit(fresh, fresh.vae.parameters(), drawn_batch, STEPS, 1e-3, options(tmp_path)) == records
    assert all(torch.equal(a, b) for a, b in zip(step.vae.parameters(), fresh.vae.parameters()))


def test_more_steps_at_a_constant_rate_go_on(tmp_path):
    kept = replace(QUIET, state_file=tmp_path / "state.pt")
    step = Line()
    fit(step, step.parameters(), [POINTS], 2, 0.1, kept)
    assert len(fit(step, step.parameters(), [POINTS], 4, 0.1, kept)) == 4
    whole = Line()
    fit(whole, whole.parameters(), [POINTS], 4, 0.1, QUIET)
    assert step.weight == whole.weight


@pytest.mark.parametrize(
    ("change", "learning_rate", "message"),
    [
        ({"ema_decay": 0.5}, 1e-3, "ema_decay=0.9, not 0.5"),
        ({}, 2e-3, "learning_rate=0.001, not 0.002"),
        ({"warmup_steps": 0}, 1e-3, "warmup_steps=2, not 0"),
    ],
)
def test_another_training_is_told_from_the_one_in_the_file(tmp_path, change, learning_rate, message):
    step = vae_step()
    fit(step, step.vae.parameters(), drawn_batch, 2, 1e-3, options(tmp_path))
    with pytest.raises(ValueError, match=message):
        fit(step, step.vae.parameters(), drawn_batch, 2, learning_rate, options(tmp_path, **change))


def test_a_state_of_other_weights_and_a_damaged_file_are_named(tmp_path):
    step = vae_step()
    fit(step, step.vae.parameters(), drawn_batch, 2, 1e-3, options(tmp_path))
    other = VideoVaeStep(AutoencoderKLLTX2Video(**FLAT | {"latent_channels": 8}), critic=PairCritic(channels=4))
    before = [value.clone() for value in other.state_dict().values()]
    with pytest.raises(
        ValueError, match=r"state.pt' is the state of other networks: vae.latents_mean has shape \[4\] there and \[8\]"
    ):
        fit(other, other.vae.parameters(), drawn_batch, 2, 1e-3, options(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(before, other.state_dict().values()))
    (tmp_path / "state.pt").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"state.pt' is no state of training"):
        fit(step, step.vae.parameters(), drawn_batch, 2, 1e-3, options(tmp_path))


def test_first_steps_of_adamw_by_hand():
    step = Line()
    records = fit(step, step.parameters(), [POINTS], 2, 0.1, QUIET)
    # Without weight decay a first step of Adam is the learning rate, against the sign of the gradient.
    assert [record["error"] for record in records] == pytest.approx([4.0, 1.9**2], rel=1e-5)


def test_a_warm_up_begins_at_zero():
    step = Line()
    records = fit(step, step.parameters(), [POINTS], 3, 0.1, replace(QUIET, warmup_steps=2))
    assert [record["loss"] for record in records] == pytest.approx([4.0, 4.0, 1.95**2], rel=1e-4)


def test_the_average_is_what_parameters_hold_in_the_end(tmp_path):
    weights = []
    for steps in (1, 2):
        raw = Line()
        fit(raw, raw.parameters(), [POINTS], steps, 0.1, QUIET)
        weights.append(raw.weight.item())
    averaged, kept = Line(), replace(QUIET, ema_decay=0.5, state_file=tmp_path / "state.pt")
    fit(averaged, averaged.parameters(), [POINTS], 2, 0.1, kept)
    # The first average is the first weight; the second one keeps (1 + 1) / (10 + 1) of it, which is less than a half.
    assert averaged.weight.item() == pytest.approx((2 * weights[0] + 9 * weights[1]) / 11, rel=1e-6)
    # The run goes on from the weights, not from their average.
    assert torch.load(kept.state_file, weights_only=True)["step"]["weight"].item() == weights[1]


def test_gradients_are_clipped():
    step = Line()
    fit(step, step.parameters(), [{"x": torch.tensor([100.0]), "y": torch.tensor([1e4])}], 1, 0.1, QUIET)
    assert_close(step.weight.grad.abs(), torch.tensor(1.0), atol=1e-4, rtol=0)


def test_bfloat16_is_computed_in_and_weights_stay_float32():
    step, seen = vae_step(), []
    step.critic = None
    step.vae.decoder.conv_in.conv.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    records = fit(
        step, step.vae.parameters(), [{"pixels": video(1, 3, 8)}], 20, 3e-3, replace(QUIET, mixed_precision="bf16")
    )
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in step.vae.parameters()} == {torch.float32}
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]


def test_a_loss_that_is_no_number_is_named_and_changes_nothing(tmp_path):
    step = Line(1.0)
    good, bad = POINTS, {"x": torch.tensor([1.0]), "y": torch.tensor([float("nan")])}
    kept = replace(QUIET, state_file=tmp_path / "state.pt", save_every=1)
    with pytest.raises(FloatingPointError, match="in step 2 the loss 'error' is nan"):
        fit(step, step.parameters(), [good, good, bad], 3, 0.1, kept)
    weight = step.weight.item()
    assert np.isfinite(weight)
    # What was kept goes on with a better batch.
    assert len(fit(Line(), [step.weight], [good], 2, 0.1, QUIET)) == 2
    resumed = Line(1.0)
    assert len(fit(resumed, resumed.parameters(), [good], 3, 0.1, kept)) == 3
    assert resumed.weight.item() != weight


def test_a_gradient_that_is_no_number_is_told():
    class Root(Line):
        def forward(self, batch):
            return {"loss": (0 * self.weight).sqrt() + batch["x"].sum()}

    step = Root(1.0)
    with pytest.raises(FloatingPointError, match="the gradient's norm is nan though its loss is 1"):
        fit(step, step.parameters(), [POINTS], 1, 0.1, QUIET)
    assert step.weight == 1.0


def test_wrong_wishes_are_refused_before_anything_runs():
    step = Line()
    for change, message in (
        ({"schedule": "step"}, "`schedule` has to be one of"),
        ({"mixed_precision": "fp16"}, "`mixed_precision` has to be one of"),
        ({"ema_decay": 2.0}, "`ema_decay` has to be between 0 and 1"),
        ({"save_every": 0}, "`save_every`"),
    ):
        with pytest.raises(ValueError, match=message):
            FitOptions(**change)
    with pytest.raises(ValueError, match="there are no batches"):
        fit(step, step.parameters(), [], 1, 0.1, QUIET)
    with pytest.raises(ValueError, match="there are no parameters to train"):
        fit(step, [], [POINTS], 1, 0.1, QUIET)


def test_networks_are_saved_whole_and_load_again(tmp_path):
    step = vae_step()
    fit(step, step.vae.parameters(), drawn_batch, 2, 1e-3, QUIET)
    save_networks(step, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["vae"]
    again = AutoencoderKLLTX2Video.from_pretrained(tmp_path / "out" / "vae")
    assert all(torch.equal(a, b) for a, b in zip(step.vae.state_dict().values(), again.state_dict().values()))
    pixels = video(1, 3, 8)
    with torch.no_grad():
        assert torch.equal(again.encode(pixels).latent_dist.mode(), step.vae.encode(pixels).latent_dist.mode())


def test_a_save_that_fails_leaves_the_folder_as_it_was(tmp_path):
    step = vae_step()
    save_networks(step, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    nn.init.zeros_(next(step.vae.parameters()))
    step.vae.decoder = torch.compile(step.vae.decoder)
    with pytest.raises(ValueError, match="compiled"):
        save_networks(step, tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_cuda_graphs_are_refused_where_there_are_none():
    with pytest.raises(
        ValueError, match="cuda_graphs need a step on a GPU without a critic, but Line is on cpu without"
    ):
        fit(Line(), Line().parameters(), [POINTS], 1, 0.1, FitOptions(cuda_graphs=True))


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_replayed_steps_are_the_steps_themselves(optimizer):
    """A transformer with texts, of two sizes of clips in turn; needs a GPU."""
    from tests.training.components.test_flow import PROMPTS, flow_with_texts, latents

    found = []
    for cuda_graphs in (False, True):
        step = flow_with_texts("2.0").to("cuda")
        clips = [latents(), latents()]
        clips[1]["latents"]["latents"] = clips[1]["latents"]["latents"][:, :, :1]
        batches = [{**part, **step.tokens(PROMPTS, 20)} for part in clips]
        for batch in batches:
            # Without a rate clips have 24 frames per second.
            batch["latents"].pop("fps", None)
        torch.manual_seed(0)
        settings = FitOptions(optimizer=optimizer, progress=False, warmup_steps=3, cuda_graphs=cuda_graphs)
        records = fit(step, step.parameters(), batches, 10, 1e-3, settings)
        found.append([record["loss"] for record in records])
    eager, replayed = map(torch.tensor, found)
    # The same noise, rates and weights: chance is drawn in the same order.
    assert_close(replayed, eager, rtol=1e-3, atol=1e-4)
