"""Streams of a step against the reference's trainer, both generations."""

import random
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from ltx2_diffusers.conditioning import Streams
from ltx2_diffusers.training.objective.losses import step_losses, velocity_loss
from ltx2_diffusers.training.objective.noise_levels import LEVELS
from ltx2_diffusers.training.objective.strategies import reference_scale, strategy_of
from ltx2_diffusers.training.objective.streams import TrainedStream
from ltx2_diffusers.training.reports import LossMeter
from tests.golden_data import load_json, load_tensors
from tests.training.drawing import GlobalDraws, HalfDraws, sizes

FORMS = {"2_0": "shifted_logit_normal_2_0", "newest": "shifted_logit_normal_newest"}
# Uniform numbers that a form draws for its levels.
BEFORE = {"2_0": 0, "newest": 2}
CASES = [(form, case) for form in FORMS for case in load_json(f"training/training_inputs_{form}.json")]


def namespace(value):
    if isinstance(value, dict):
        return SimpleNamespace(**{key: namespace(entry) for key, entry in value.items()})
    return [namespace(entry) for entry in value] if isinstance(value, list) else value


def section(case: dict) -> SimpleNamespace:
    """Section `training_strategy` of a case, with the defaults of the schema."""
    found = {
        "name": case["strategy"],
        "first_frame_conditioning_p": case.get("first_frame_conditioning_p"),
        "with_audio": case.get("with_audio", False),
        "audio_latents_dir": "audio_latents",
        "reference_latents_dir": "reference_latents",
        "video": None,
        "audio": None,
    }
    for stream, part in case.get("config", {}).items():
        conditions = [{"probability": 1.0, **condition} for condition in part.get("conditions", [])]
        found[stream] = {**part, "conditions": conditions}
    return namespace(found)


def batch(tensors: dict, case: dict) -> dict:
    fps = {} if case["fps"] is None else {"fps": torch.full((2,), case["fps"], dtype=torch.float64)}
    name = case["case"]
    flexible = case["strategy"] == "flexible"
    reference = "reference_latents" if flexible else "ref_latents"
    found = {"latents": {"latents": tensors[f"{name}.in.latents"], **fps}}
    for key, folder in (("audio_latents", "audio_latents"), ("ref_latents", reference)):
        if f"{name}.in.{key}" in tensors:
            found[folder] = {"latents": tensors[f"{name}.in.{key}"]}
    if f"{name}.in.mask" in tensors:
        found["video_masks"] = {"mask": tensors[f"{name}.in.mask"]}
    return found


def draws(form: str, case: dict) -> GlobalDraws:
    """Draws in the reference's order: named strategies choose first frames before anything else."""
    random.seed(case["seed"])
    torch.manual_seed(case["seed"])
    kind = HalfDraws if case.get("dtype") == "bfloat16" else GlobalDraws
    probability = case.get("first_frame_conditioning_p")
    if probability is None or case["strategy"] == "flexible":
        return kind()
    if not probability or case["case"] == "image_p1.0":
        # Nothing is drawn.
        return kind(torch.ones(2), BEFORE[form])
    # The reference of 2.0 decides for the batch, and with Python's numbers.
    return kind(torch.full((2,), random.random()) if form == "2_0" else torch.rand(2), BEFORE[form])


@pytest.mark.parametrize("form, case", CASES, ids=[f"{form}-{case['case']}" for form, case in CASES])
def test_streams_are_those_of_the_reference(form, case):
    tensors = load_tensors(f"training/training_inputs_{form}.safetensors")
    strategy = strategy_of(section(case), shared_noise_level=case["strategy"] == "text_to_video")
    levels, source = LEVELS[FORMS[form]](), draws(form, case)
    streams = strategy.prepare(batch(tensors, case), levels, source, sizes())
    for name, stream in zip(("video", "audio"), streams):
        expected = {
            key.removeprefix(f"{case['case']}."): value
            for key, value in tensors.items()
            if key.startswith((f"{case['case']}.{name}.", f"{case['case']}.{name}_"))
        }
        assert (stream is None) == (not expected)
        if stream is not None:
            assert compared(stream, expected, name, case) == len(expected)
    if "checkpoint_metadata" in case:
        assert strategy.metadata() == {k: str(v) for k, v in case["checkpoint_metadata"].items()}


def compared(stream: TrainedStream, expected: dict, name: str, case: dict) -> int:
    """Compare one stream; the reference puts appended tokens in front. Returns how many tensors were compared."""
    appended = 0 if stream.velocity is None else stream.state.num_tokens - stream.velocity.shape[1]

    def in_front(tensor: torch.Tensor, axis: int) -> torch.Tensor:
        return tensor.roll(appended, axis)

    mask = stream.loss_mask
    got = {
        f"{name}.latent": in_front(stream.state.latent, 1),
        f"{name}.timesteps": in_front(stream.timesteps, 1),
        f"{name}.positions": in_front(stream.state.positions, 2),
        f"{name}.sigma": stream.sigma,
        f"{name}_targets": stream.velocity,
        f"{name}_loss_mask": None if mask is None else torch.cat([mask.new_zeros(2, appended), mask], 1),
    }
    count = 0
    for key, value in expected.items():
        if value.dtype == torch.bfloat16:
            # The reference of 2.0 rounds positions before it divides by the frame rate, and targets of such latents.
            rounded = [t if key.endswith("targets") else t * scale_of(case) for t in (got[key], value)]
            assert torch.equal(rounded[0].to(torch.bfloat16), rounded[1].to(torch.bfloat16)) or close(*rounded)
        else:
            assert got[key].dtype == value.dtype, key
            torch.testing.assert_close(got[key], value, atol=1e-6, rtol=1e-6, msg=lambda m, key=key: f"{key}: {m}")
        count += 1
    return count


def scale_of(case: dict) -> torch.Tensor:
    """Frames per second along the time axis."""
    return torch.tensor([case["fps"], 1.0, 1.0])[None, :, None, None]


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal but for the rounding of bfloat16."""
    return bool(((one.float() - other.float()).abs() <= 2**-8 * other.float().abs() + 1e-6).all())


@pytest.mark.parametrize("form", FORMS)
def test_losses_are_those_of_the_reference(form):
    tensors = load_tensors(f"training/loss_{form}.safetensors")
    for case in load_json(f"training/loss_{form}.json"):
        if case["case"] == "t2v_all_masked":
            continue
        name = case["case"]
        per_sample = 0
        for stream in ("video", "audio"):
            if f"{name}.{stream}_pred" not in tensors:
                continue
            velocity = tensors[f"{name}.{stream}_targets"]
            mask = tensors.get(f"{name}.{stream}_loss_mask", torch.ones(velocity.shape[:2], dtype=torch.bool))
            mask = mask[:, -velocity.shape[1] :]
            predicted = tensors[f"{name}.{stream}_pred"][:, -velocity.shape[1] :]
            per_sample = per_sample + velocity_loss(predicted, velocity, mask)
        if form == "newest":
            torch.testing.assert_close(per_sample, torch.tensor(case["expected"]), rtol=2e-6, atol=0)
        uneven = form == "2_0" and name.endswith("ragged")
        if not uneven:
            assert per_sample.mean().item() == pytest.approx(case["scalar"], rel=2e-6)


def test_a_sample_without_tokens_to_learn_has_no_loss():
    mask = torch.tensor([[False, False], [True, False]])
    loss = velocity_loss(torch.ones(2, 2, 3), torch.zeros(2, 2, 3), mask)
    assert loss.tolist() == [0.0, 1.0]


def test_losses_are_weighted_and_told_by_noise_level():
    velocity = torch.zeros(2, 4, 3)
    state = SimpleNamespace(num_tokens=4)
    stream = TrainedStream(state, torch.tensor([0.1, 1.0]), velocity, torch.ones(2, 4, dtype=torch.bool))
    said = torch.stack([torch.ones(4, 3), 2 * torch.ones(4, 3)])
    both = step_losses(Streams(said, said), Streams(stream, stream), Streams(1.0, 0.5))
    assert both.total.item() == pytest.approx(2.5 + 0.5 * 2.5)
    silent = step_losses(Streams(said, None), Streams(stream, None), Streams(1.0, 0.5))
    assert silent.total.item() == pytest.approx(2.5)
    meter = LossMeter(torch.device("cpu"))
    for losses in (both, silent):
        meter.add(losses)
    # Buckets without samples are not told.
    assert meter.means(Accelerator(cpu=True)) == {
        "loss": pytest.approx((3.75 + 2.5) / 2),
        **{
            f"loss_{name}{level}": pytest.approx(value)
            for name in ("video", "audio")
            for level, value in (("", 2.5), ("_sigma_0.00-0.25", 1.0), ("_sigma_0.75-1.00", 4.0))
        },
    }


def test_reference_scales():
    for case in load_json("training/reference_scale.json"):
        if "error" in case:
            with pytest.raises(ValueError, match="does not fit"):
                reference_scale(case["target"], case["ref"])
        else:
            assert reference_scale(case["target"], case["ref"]) == case["factor"]
