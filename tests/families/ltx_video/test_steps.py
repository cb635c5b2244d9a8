"""Steps of tokens that wait, against the golden vectors."""

import pytest
import torch

from ltx2_diffusers.conditioning import LatentState, Streams
from ltx2_diffusers.families.ltx_video.steps import TokenSampler, token_step
from tests.golden_data import load_tensors

GOLDEN = load_tensors("ltx_video/steps.safetensors")
SIGMAS = torch.cat([GOLDEN["timesteps"], torch.zeros(1)])


class Known:
    """Predicts what a known velocity leads to."""

    def __call__(self, states, sigma):
        state = states.video
        self.seen = state
        return Streams(state.latent - state.levels(sigma) * GOLDEN["velocity"], None)


def state(mask=None, clean=None):
    sample = GOLDEN["sample"]
    mask = torch.ones(*sample.shape[:2], 1) if mask is None else mask
    positions = torch.zeros(1, 3, sample.shape[1], 2)
    return LatentState(sample, mask, positions, sample if clean is None else clean, waits=True)


def stepped(step, sampler, *args):
    known = Known()
    return sampler.step(known, Streams(state(*args), None), SIGMAS, step)[0].video.latent, known


@pytest.mark.parametrize("step", [0, 4, 6])
@pytest.mark.parametrize("is_stochastic", [False, True])
def test_all_tokens_step_together(step, is_stochastic):
    out, _ = stepped(step, TokenSampler(lambda _: GOLDEN["noise"], is_stochastic))
    name = "global_stochastic" if is_stochastic else "global"
    torch.testing.assert_close(out, GOLDEN[f"{name}/step{step}"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("noise", [None, GOLDEN["noise"]])
def test_each_token_steps_from_its_own_level(noise):
    levels = GOLDEN["per_token_timestep"][..., None]
    denoised = GOLDEN["sample"] - levels * GOLDEN["velocity"]
    out = token_step(GOLDEN["sample"], denoised, levels, SIGMAS, noise)
    torch.testing.assert_close(
        out, GOLDEN["per_token" if noise is None else "per_token_stochastic"], rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("step", [0, 5, 6])
def test_a_token_waits_until_the_run_comes_down_to_it(step):
    held = state(1 - GOLDEN["conditioning_mask"][..., None])
    torch.testing.assert_close(held.levels(SIGMAS[step])[..., 0], GOLDEN[f"gated/step{step}/timestep"], rtol=0, atol=0)
    out, _ = stepped(step, TokenSampler(torch.zeros_like), held.denoise_mask)
    torch.testing.assert_close(out, GOLDEN[f"gated/step{step}/out"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("step", [0, 5, 6])
def test_held_tokens_are_shown_with_noise(step):
    noise = GOLDEN[f"image_noise/step{step}/noise"]
    sampler = TokenSampler(lambda _: noise, held_noise_scale=0.15)
    _, known = stepped(step, sampler, 1 - GOLDEN["conditioning_mask"][..., None], GOLDEN["velocity"])
    torch.testing.assert_close(known.seen.latent, GOLDEN[f"image_noise/step{step}/out"], rtol=0, atol=2e-6)
