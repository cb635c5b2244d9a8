"""Samplers on both streams: golden trajectories, order of noise, other dtypes and refused options."""

import re
from dataclasses import replace

import pytest
import torch

from ltx2_diffusers.conditioning.state import LatentState
from ltx2_diffusers.conditioning.streams import Streams
from ltx2_diffusers.sampling import samplers
from ltx2_diffusers.sampling.steppers import post_process
from tests.golden_data import assert_within, load_tensors

TRAJECTORIES = load_tensors("sampling/trajectories.safetensors")
NEWEST = load_tensors("sampling/trajectories_newest.safetensors")
NAMES = ("video", "audio")


def toy_prediction(latent: torch.Tensor, mask: torch.Tensor, sigma: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    x, t = latent.float(), mask * sigma
    return ((1 - t) * torch.tanh(x) + t * mean + 0.05 * torch.sin(4 * x)).to(latent.dtype)


class ToyRun:
    """The denoiser of the golden trajectories; records what it sees and serves their noise."""

    def __init__(self, table: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32, root: str = "init") -> None:
        self.table, self.seen, self.sigmas, self.drawn = table, [], [], [0, 0]
        self.negatives = Streams(None, None)
        init = Streams(
            *({key: table[f"{root}/{name}/{key}"] for key in ("latent", "mask", "clean")} for name in NAMES)
        )
        self.states = samplers.on_streams(
            lambda s: LatentState(s["latent"].to(dtype), s["mask"], torch.empty(0), s["clean"].to(dtype)), init
        )

    def predict(self, states: Streams, sigma: torch.Tensor) -> Streams:
        self.seen.append([None if state is None else state.latent for state in states])
        self.sigmas.append(float(sigma))
        means = Streams(*(self.table[f"mu_{name}"] for name in NAMES))
        raw = samplers.on_streams(lambda s, mean: toy_prediction(s.latent, s.denoise_mask, sigma, mean), states, means)
        self.negatives = samplers.on_streams(lambda s, x: 0.8 * x + 0.1 * s.latent, states, raw)
        return samplers.on_streams(lambda s, x: post_process(x, s.denoise_mask, s.clean_latent), states, raw)

    def noise(self, like: torch.Tensor) -> torch.Tensor:
        stream = [self.table[f"noise/0/{name}"].shape for name in NAMES].index(like.shape)
        self.drawn[stream] += 1
        return self.table[f"noise/{self.drawn[stream] - 1}/{NAMES[stream]}"].to(like.dtype)

    def run(self, sampler: samplers.Sampler, sigmas: torch.Tensor) -> Streams:
        states = self.states
        for step in range(len(sigmas) - 1):
            states, prediction = sampler.step(self.predict, states, sigmas, step)
            assert len(prediction) == 2
        return states

    def check(self, states: Streams, key: str, row: str = "trajectory") -> None:
        for i, name in enumerate(NAMES):
            seen = torch.cat([latents[i] for latents in self.seen]).float()
            assert_within(seen, self.table[f"{key}/seen/{name}"], row)
            latent = states[i].latent.float()
            assert_within(latent, self.table[f"{key}/final/{name}"], row)
        if f"{key}/seen/sigma" in self.table:
            assert self.sigmas == pytest.approx(self.table[f"{key}/seen/sigma"].tolist(), abs=1e-6)


def runs_of(table: dict[str, torch.Tensor], kind: str = "") -> list[str]:
    return sorted({key.split("/final")[0] for key in table if "/final/" in key and key.startswith(kind)})


def option(key: str, name: str) -> float:
    return float(re.search(rf"{name}(\d+(?:\.\d+)?)", key).group(1))


@pytest.mark.parametrize("key", runs_of(TRAJECTORIES))
def test_euler_and_gradient_estimation_follow_the_golden_trajectories(key):
    dtype, schedule, loop = key.split("/")
    bf16 = dtype == "bf16"
    run = ToyRun(TRAJECTORIES, torch.bfloat16 if bf16 else torch.float32, f"{dtype}/init")
    sampler = samplers.EulerSampler() if loop == "euler" else samplers.GradientEstimatingSampler(option(loop, "ge"))
    run.check(run.run(sampler, TRAJECTORIES[f"sigmas/{schedule}"]), key, "exact" if bf16 else "trajectory")


@pytest.mark.parametrize("key", runs_of(NEWEST, "euler_"))
def test_ancestral_and_cfg_pp_follow_the_golden_trajectories(key):
    kind, schedule, _ = key.split("/")
    run = ToyRun(NEWEST)
    if kind == "euler_ancestral":
        sampler = samplers.EulerAncestralSampler(run.noise, eta=option(key, "eta"))
    else:
        sampler = samplers.EulerCFGPPSampler(run.noise, lambda: run.negatives, eta=option(key, "eta"))
    run.check(run.run(sampler, NEWEST[f"sigmas/{schedule}"]), key)


@pytest.mark.parametrize("key", runs_of(NEWEST, "res2s"))
def test_res_2s_follows_the_golden_trajectories(key):
    run = ToyRun(NEWEST)
    sampler = samplers.Res2sSampler(
        run.noise, eta=option(key, "eta"), refine_anchor=option(key, "bong") == 1, per_token=option(key, "legacy") == 0
    )
    sigmas = NEWEST[f"sigmas/{key.split('/')[1]}"]
    run.check(run.run(sampler, sigmas), key)
    assert len(run.seen) == 2 * (len(sigmas) - 1) + (sigmas[-1] == 0)


@pytest.mark.parametrize("name", sorted(samplers.SAMPLERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stream_may_be_absent_and_given_tokens_stay(name, dtype):
    run = ToyRun(NEWEST, dtype)
    video = replace(run.states.video, latent=run.states.video.latent.clone())
    given = (video.denoise_mask == 0).expand_as(video.latent)
    video.latent[given] = video.clean_latent[given]
    run.states = Streams(video, None)
    options = {"negative": lambda: run.negatives} if name == "euler_cfg_pp" else {}
    sampler = samplers.get_sampler(name, torch.Generator().manual_seed(0), **options)
    result = run.run(sampler, NEWEST["sigmas/stage2"])
    assert result.audio is None and result.video.latent.dtype == dtype
    assert result.video.latent.isfinite().all()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(result.video.latent[given], video.clean_latent[given], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["euler_ancestral", "res_2s"])
def test_noise_comes_from_the_generator_only(name):
    results = []
    for seed in (5, 5, 6):
        run = ToyRun(NEWEST)
        sampler = samplers.get_sampler(name, torch.Generator().manual_seed(seed))
        results.append(run.run(sampler, NEWEST["sigmas/stage2"]).video.latent)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_noise_of_a_batch_item_depends_on_its_own_generator():
    like = torch.empty(2, 4, 3)
    for make in (samplers.gaussian_noise, samplers.normalized_noise):
        both = make([torch.Generator().manual_seed(seed) for seed in (1, 2)])(like)
        swapped = make([torch.Generator().manual_seed(seed) for seed in (2, 1)])(like)
        torch.testing.assert_close(both.flip(0), swapped)


def test_video_noise_is_drawn_before_audio_noise():
    order = []
    for sampler in (
        samplers.EulerAncestralSampler(lambda like: order.append(like.shape[1]) or torch.zeros_like(like)),
        samplers.Res2sSampler(lambda like: order.append(like.shape[1]) or torch.zeros_like(like)),
    ):
        run = ToyRun(NEWEST)
        run.run(sampler, torch.tensor([0.9, 0.5]))
    assert order == [10, 7] * 3


def test_res_2s_predicts_at_once_below_its_last_level():
    run = ToyRun(NEWEST)
    result = run.run(samplers.Res2sSampler(run.noise), torch.tensor([0.0005, 0.0]))
    assert run.sigmas == pytest.approx([0.0005]) and result.video.latent.isfinite().all()


def test_one_gradient_estimating_sampler_can_run_again():
    sampler = samplers.GradientEstimatingSampler()
    first, second = (ToyRun(NEWEST).run(sampler, NEWEST["sigmas/no_zero_end"]) for _ in range(2))
    assert torch.equal(first.video.latent, second.video.latent)


def test_options_are_passed_on_and_unknown_names_refused():
    assert samplers.get_sampler("gradient_estimating", gamma=1.5).gamma == 1.5
    assert samplers.get_sampler("res_2s", eta=0.25).eta == 0.25
    with pytest.raises(ValueError, match=r"euler, gradient_estimating, .*got 'dpm'"):
        samplers.get_sampler("dpm")
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\], got 1.5; use 1.0"):
        samplers.get_sampler("euler_ancestral", eta=1.5)
