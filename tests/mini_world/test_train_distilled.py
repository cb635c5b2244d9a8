"""What the distilled LoRA of the miniature world learns from."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device

from examples.mini_world.train_distilled import FIRST, LEVELS, ORDER, SECOND, Batches, FewSteps, after_step
from ltx2_diffusers.conditioning import Streams
from ltx2_diffusers.training.components import text_to_video_and_audio
from tests.training.components.test_flow import SIZES, FromTheCpu, transformer, with_contexts


def test_the_noise_after_a_step_leads_from_the_clip_to_where_the_step_has_come():
    torch.manual_seed(0)
    clean, noise, velocity = torch.randn(3, 2, 5, 4)
    stepped = torch.lerp(clean, noise, 0.9) + (0.6 - 0.9) * velocity
    after = after_step(noise, SimpleNamespace(velocity=noise - clean), velocity, 0.9, 0.6)
    assert torch.allclose(torch.lerp(clean, after, 0.6), stepped, atol=1e-6)


@pytest.fixture
def step():
    return FewSteps(transformer("2.0", initialised=False), SIZES, text_to_video_and_audio())


@pytest.fixture
def batch() -> dict[str, Any]:
    torch.manual_seed(3)
    return with_contexts("2.0") | {"noise": torch.randn(2, 8, 128), "audio_noise": torch.randn(2, 9, 32)}


def by_hand(step: FewSteps, batch: dict[str, Any], sigmas: tuple[float, ...]) -> list[float]:
    """Squared error of both streams, with Euler steps from the noise in place of noise that is thought out."""
    contexts = Streams(batch["video_context"], batch["audio_context"])
    clean = [batch["latents"]["latents"].flatten(2).mT, batch["audio_latents"]["latents"].transpose(1, 2).flatten(2)]
    made = [torch.lerp(*both, sigmas[0]) for both in zip(clean, (batch["noise"], batch["audio_noise"]))]

    def velocities(sigma: float) -> Streams:
        # The strategy places tokens and levels; what is noisy is what the steps have made.
        noise = Streams(*(real + (one - real) / sigma for one, real in zip(made, clean)))
        return step.velocities(step.noised(batch, noise, sigma), contexts)

    for sigma, following in pairwise(sigmas):
        made = [one + (following - sigma) * velocity for one, velocity in zip(made, velocities(sigma))]
    wanted = [(one - real) / sigmas[-1] for one, real in zip(made, clean)]
    return [float((one - other).square().mean()) for one, other in zip(velocities(sigmas[-1]), wanted)]


@torch.no_grad()
@pytest.mark.parametrize("sigmas", [(1.0,), (1.0, 0.9), (0.9, 0.7, 0.4)])
def test_a_step_is_learned_from_where_the_steps_before_it_have_come(step, batch, sigmas):
    losses = step(batch | {"sigmas": sigmas})
    assert [float(losses[name]) for name in ("video", "audio")] == pytest.approx(
        by_hand(step, batch, sigmas), rel=1e-4
    )


def test_steps_that_are_taken_are_not_learned_from(step, batch):
    seen = []
    step.model.transformer.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    step(batch | {"sigmas": (0.9, 0.7, 0.4)})
    assert seen == [False, False, True]


def test_steps_on_another_device_copy_nothing_from_the_cpu(step, batch):
    """As a CUDA graph demands."""
    batch["latents"].pop("fps")
    batch["audio_latents"].pop("fps", None)
    step, batch = step.to("meta"), send_to_device(batch | {"sigmas": (0.9, 0.7)}, "meta")
    step(batch)  # what is kept from the first step on
    with FromTheCpu() as seen:
        step(batch)["loss"].backward()
    assert seen.copies == []


@pytest.fixture
def batches(tmp_path):
    torch.manual_seed(0)
    for name, sizes in (("pairs", FIRST), ("enlarged", SECOND)):
        for number, (_, count) in enumerate(sizes.values()):
            kept = {"latents": torch.randn(count, 6, 1, 2, 2), "audio_latents": torch.randn(count, 2, 5, 3)}
            if name == "pairs":
                kept |= {"noise": torch.randn(count, 4, 6), "audio_noise": torch.randn(count, 5, 6)}
            else:
                kept["enlarged"] = torch.randn(count, 4, 6)
            torch.save(kept | {"prompts": [str(row) for row in range(count)]}, tmp_path / f"{name}{number}.pt")
    return Batches(tmp_path, few=None)


def test_a_first_stage_begins_with_the_noise_and_a_second_one_with_the_enlarged_latents_of_its_clips(batches):
    stages = set()
    for number, (stage, place) in enumerate(ORDER):
        batch, (kept, _) = batches(number), batches.pools[stage, place]
        rows = [int(text) for text in batch["prompts"]]
        assert torch.equal(batch["latents"]["latents"], kept["latents"][rows])
        assert batch["sigmas"] == LEVELS[stage][: len(batch["sigmas"])]
        assert torch.equal(batch["noise"], batches(number)["noise"])
        if stage == 1:
            assert torch.equal(batch["noise"], kept["noise"][rows])
        else:
            sigma, clean = batch["sigmas"][0], kept["latents"][rows].flatten(2).mT
            noisy = torch.lerp(clean, batch["noise"], sigma)
            rest = (noisy - (1 - sigma) * kept["enlarged"][rows]) / sigma
            assert rest.std() == pytest.approx(1.0, abs=0.1) and not torch.allclose(rest, batch["noise"], atol=0.1)
        stages.add(stage)
    assert stages == {1, 2}


def test_every_step_of_every_stage_is_learned(batches):
    seen = {(ORDER[number % len(ORDER)][0], len(batches(number)["sigmas"])) for number in range(200)}
    assert seen == {(stage, count) for stage, levels in LEVELS.items() for count in range(1, len(levels) + 1)}
