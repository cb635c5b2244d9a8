"""The guided denoising loop against the reference's: results, and the passes it takes to reach them."""

from types import SimpleNamespace

import pytest
import torch

from ltx2_diffusers.conditioning import LatentState
from ltx2_diffusers.conditioning.streams import Streams, TextContext
from ltx2_diffusers.guidance.guiders import MultiModalGuider, MultiModalGuiderParams
from ltx2_diffusers.guidance.perturbations import PerturbationType
from ltx2_diffusers.models.negative_text import NagWeights
from ltx2_diffusers.sampling.denoiser import GuidedDenoiser
from ltx2_diffusers.sampling.loop import denoise
from ltx2_diffusers.sampling.samplers import EulerSampler
from tests.golden_data import assert_within, load_json, load_tensors

CALLS = load_json("sampling/guided_loop_calls.json")
VECTORS = load_tensors("sampling/guided_loop.safetensors")
# A token with mask 0 has no velocity; this little stands for it.
SMALLEST_MASK = 1e-7


class ToyTransformer:
    """The two-stream toy model of the golden vectors, which predicts clean tokens, called for velocities."""

    config = SimpleNamespace(timestep_scale_multiplier=1000, num_layers=30)

    def __init__(self):
        self.calls = []

    is_cache_enabled = False

    def __call__(self, perturbation_keep_masks, **inputs):
        return [self.predict(inputs, keep) for keep in perturbation_keep_masks]

    def predict(self, inputs, keep):
        streams = [inputs["hidden_states"], inputs["audio_hidden_states"]]
        contexts = [inputs["encoder_hidden_states"], inputs["audio_encoder_hidden_states"]]
        taus = [inputs[f"{prefix}timestep"] / 1000 for prefix in ("", "audio_")]
        taus = [tau[:, None, None] if tau.ndim == 1 else tau for tau in taus]
        skipped = [False] * 4 if keep is None else [bool((keep[kind] == 0).any()) for kind in range(4)]
        velocities = []
        for i, (x, other) in enumerate((streams, streams[::-1])):
            context = contexts[i].mean(dim=(1, 2), keepdim=True)
            clean = (1 - taus[i]) * torch.tanh(x + 0.3 * context) + 0.2 * taus[i] * x
            clean = clean + 0.1 * torch.cos(x) if skipped[i] else clean
            clean = clean if skipped[2 + i] else clean + 0.5 * other.mean(dim=(1, 2), keepdim=True)
            velocities.append((x - clean) / taus[i])
        kinds = sorted(kind.name for kind, skip in zip(PerturbationType, skipped) if skip)
        for row in reversed(range(streams[0].shape[0])):
            means = [round(context[row].mean().item(), 6) for context in contexts]
            self.calls.append((*means, inputs["video_enabled"], inputs["audio_enabled"], kinds))
        return velocities


def toy_state(stream):
    latent, mask, clean = (VECTORS[f"init/{stream}/{part}"] for part in ("latent", "mask", "clean"))
    positions = torch.zeros(1, 1, latent.shape[1], 2)
    return LatentState(latent, mask.clamp(min=SMALLEST_MASK), positions, clean)


def toy_context(video, audio):
    return TextContext(torch.full((1, 3, 2), video), torch.full((1, 3, 2), audio))


@pytest.mark.parametrize("case", sorted(CALLS))
def test_the_loop_makes_the_reference_s_passes_and_reaches_its_result(case):
    params = [MultiModalGuiderParams(**CALLS[case][f"{stream}_params"]) for stream in ("video", "audio")]
    transformer = ToyTransformer()
    denoiser = GuidedDenoiser(
        transformer, toy_context(0.4, 0.7), toy_context(-0.2, -0.5), Streams(*(MultiModalGuider(p) for p in params))
    )
    states = Streams(toy_state("video"), toy_state("audio"))
    result = denoise(denoiser, states, VECTORS["sigmas"], EulerSampler())
    for stream, state in zip(("video", "audio"), result):
        assert_within(state.latent, VECTORS[f"{case}/final/{stream}"], "trajectory")

    expected = CALLS[case]["calls"]
    assert len(transformer.calls) == len(expected)
    ours, reference = [], []
    for (video, audio, *enabled, kinds), call in zip(transformer.calls, expected):
        # The reference leaves a skipped stream running in the negative pass and throws its result away.
        ours.append((video, audio, kinds, enabled if video > 0 else None))
        flags = [call["video_enabled"], call["audio_enabled"]]
        kinds = sorted(kind for kind, _ in call["perturb"])
        reference.append((call["video_ctx"], call["audio_ctx"], kinds, flags if call["video_ctx"] > 0 else None))
    assert by_step(ours) == by_step(reference)


def by_step(calls):
    """Calls grouped by step, which begins with the plain positive pass; within it the order does not matter."""
    steps = []
    for call in calls:
        if call[0] > 0 and not call[2]:
            steps.append([])
        steps[-1].append(repr(call))
    return [sorted(step) for step in steps]


def test_a_guided_run_without_negative_context_is_refused():
    guiders = Streams(MultiModalGuider(MultiModalGuiderParams(cfg_scale=2.0)), None)
    with pytest.raises(ValueError, match="negative"):
        GuidedDenoiser(ToyTransformer(), toy_context(0.4, 0.7), None, guiders)


def test_interruption_leaves_the_remaining_steps_out():
    transformer = ToyTransformer()
    guiders = Streams(MultiModalGuider(MultiModalGuiderParams()), MultiModalGuider(MultiModalGuiderParams()))
    denoiser = GuidedDenoiser(transformer, toy_context(0.4, 0.7), None, guiders)
    states = Streams(toy_state("video"), toy_state("audio"))
    denoise(denoiser, states, VECTORS["sigmas"], EulerSampler(), interrupted=lambda: len(transformer.calls) == 2)
    assert len(transformer.calls) == 2


def test_a_skipped_stream_keeps_its_negative_prediction():
    video, audio = MultiModalGuiderParams(3.0, skip_step=1), MultiModalGuiderParams(3.0)
    guiders = Streams(MultiModalGuider(video), MultiModalGuider(audio))
    denoiser = GuidedDenoiser(ToyTransformer(), toy_context(0.4, 0.7), toy_context(-0.2, -0.5), guiders)
    states = Streams(toy_state("video"), toy_state("audio"))
    negatives = []
    for step in range(2):
        denoiser(states, VECTORS["sigmas"][step], step)
        negatives.append(denoiser.negative)
    assert negatives[1].video is negatives[0].video
    assert not torch.equal(negatives[1].audio, negatives[0].audio)


def test_a_pass_that_only_a_skipped_stream_needs_is_not_made():
    guiders = Streams(
        MultiModalGuider(MultiModalGuiderParams(3.0, skip_step=1)), MultiModalGuider(MultiModalGuiderParams())
    )
    transformer = ToyTransformer()
    denoiser = GuidedDenoiser(transformer, toy_context(0.4, 0.7), toy_context(-0.2, -0.5), guiders)
    states = Streams(toy_state("video"), toy_state("audio"))
    for step, passes in enumerate((2, 3, 5)):
        denoiser(states, VECTORS["sigmas"][step], step)
        assert len(transformer.calls) == passes


def test_attention_guidance_needs_a_negative_context():
    guiders = Streams(MultiModalGuider(MultiModalGuiderParams()), None)
    with pytest.raises(ValueError, match="need a negative context"):
        GuidedDenoiser(ToyTransformer(), toy_context(0.4, 0.7), None, guiders, nag=NagWeights(5.0))
