"""What the distilled LoRA of the miniature world learns from."""

import pytest
import torch

from examples.mini_world.train_distilled import FIRST_STAGE, ORDER, SECOND_STAGE, SIZES, Batches, KeptNoise
from ltx2_diffusers.schedulers.sigmas import DISTILLED_SIGMAS, STAGE_2_DISTILLED_SIGMAS


@pytest.mark.parametrize(
    ("stage", "sigmas"), [(FIRST_STAGE, DISTILLED_SIGMAS), (SECOND_STAGE, STAGE_2_DISTILLED_SIGMAS)]
)
def test_a_stage_learns_at_every_level_that_it_denoises_from(stage, sigmas):
    torch.manual_seed(0)
    levels = stage.sample(200, 12, KeptNoise(torch.zeros(200, 1)))
    assert set(levels.tolist()) == set(torch.tensor(sigmas[:-1]).tolist())


def test_both_streams_have_the_levels_and_the_noise_of_their_clip():
    noise, audio_noise = torch.randn(4, 6, 8), torch.randn(4, 3, 5)
    draws = KeptNoise(noise, audio_noise)
    assert torch.equal(FIRST_STAGE.sample(4, 6, draws), FIRST_STAGE.sample(4, 3, draws))
    assert draws.normal((4, 6, 8)) is noise and draws.normal((4, 3, 5)) is audio_noise


@pytest.fixture
def batches(tmp_path):
    torch.manual_seed(0)
    for number, (_, count) in enumerate(SIZES.values()):
        kept = {name: torch.randn(count, 2) for name in ("noise", "audio_noise", "latents", "audio_latents")}
        torch.save(kept | {"prompts": [str(row) for row in range(count)]}, tmp_path / f"pairs{number}.pt")
    return Batches(tmp_path, pipe=None)


def test_a_second_stage_begins_with_noise_that_its_clips_were_not_made_from(batches):
    for number, (which, second_stage) in enumerate(ORDER):
        batch, kept = batches(number), batches.pools[which][0]
        rows = [int(text) for text in batch["prompts"]]
        assert batch["second_stage"] is second_stage
        assert torch.equal(batch["latents"]["latents"], kept["latents"][rows])
        for name in ("noise", "audio_noise"):
            assert torch.equal(batch[name], kept[name][rows]) is not second_stage
            assert torch.equal(batch[name], batches(number)[name])
