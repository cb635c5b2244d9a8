"""Passes of DFR against recorded ones of diffusers."""

import json
from itertools import pairwise

import pytest
import torch

from ltx2_diffusers import LTX2DFRPipelineOutput, LTX2VideoCondition
from ltx2_diffusers.conditioning import (
    GaussianNoiser,
    VideoConditionByKeyframeIndex,
    VideoConditionByLatentIndex,
    VideoConditionByReferenceLatent,
    VideoKeyframeSlots,
    VideoLatentPatchifier,
    VideoLatentShape,
    VideoLatentTools,
    epilogue_tiles,
)
from ltx2_diffusers.sampling.steppers import euler_ancestral_step
from tests.golden_data import load_metadata, load_tensors
from tests.pipelines.dfr_stand_ins import MeanVAE, picture, pipelines, recorded

pytestmark = pytest.mark.usefixtures("golden_sinusoid")

PICTURES = [(picture(64, 96, 0), 0, 1.0), (picture(80, 96, 90), 2, 0.8)]
CONDITIONS = [LTX2VideoCondition(frames, index, strength, crf=0) for frames, index, strength in PICTURES]


@pytest.fixture(scope="module")
def both():
    return pipelines()


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def check(output: LTX2DFRPipelineOutput, tensors: dict[str, torch.Tensor], positions: list[int]) -> None:
    found = {"video": output.frames, "audio": output.audio, "keyframes": output.keyframes}
    for name, value in found.items():
        close(value, tensors[name], 2e-5)
    assert output.keyframe_positions == positions


def test_first_stage(both):
    call, *expected = recorded("stage_1", conditions=CONDITIONS)
    check(both[0](**call), *expected)


def test_second_stage(both):
    call, *expected = recorded("stage_2")
    check(both[0](**call), *expected)


def test_epilogue_in_tiles(both):
    call, *expected = recorded("epilogue_tiled")
    call["video_tiles"] = epilogue_tiles(tuple(call["latents"].shape[2:]), 2, [3])
    check(both[0](**call), *expected)


def test_temporal_round(both):
    call, *expected = recorded("temporal_refine", conditions=CONDITIONS[1:])
    check(both[1](**call), *expected)


def test_ancestral_steps():
    tensors = load_tensors("dfr_hdr/ancestral.safetensors")
    sigmas = json.loads(load_metadata("dfr_hdr/ancestral.safetensors")["sigmas"])
    for eta in (0.0, 0.5, 1.0):
        sample = tensors["start"]
        for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            denoised = sample - sigma * tensors[f"velocity.{step}"]
            sample = euler_ancestral_step(sample, denoised, sigma, sigma_next, tensors.get(f"noise.{step}"), eta)
            close(sample, tensors[f"eta{eta}.{step}"])


def test_sequence_of_a_pass():
    """What the conditions of a pass make of its tokens, before and after the noise."""
    tensors = load_tensors("dfr_hdr/prepare_latents.safetensors")
    metadata = load_metadata("dfr_hdr/prepare_latents.safetensors")
    vae = MeanVAE()
    given = {
        name: vae.normalize_latents(tensors[f"in.{name}"]) for name in ("latents", "keyframe", "slots", "reference")
    }
    shape = VideoLatentShape.from_torch_shape(given["latents"].shape)
    tools = VideoLatentTools(VideoLatentPatchifier(), shape, 24.0, fill_latent=False, mark_keyframes=True)
    state = tools.create_initial_state(initial_latent=given["latents"])
    encoded = json.loads(metadata["encoded"])
    first, *others = [(tensors[f"encoded.{i}"], start, strength) for i, (start, strength, _) in enumerate(encoded)]
    items = [VideoConditionByLatentIndex(first[0], first[2])]
    items += [VideoConditionByKeyframeIndex(*one) for one in [*others, (given["keyframe"], 24, 0.95)]]
    items += [VideoKeyframeSlots([24, 48], given["slots"]), VideoConditionByReferenceLatent(given["reference"], 2)]
    for item in items:
        state = item.apply_to(state, tools)
    held = tensors["conditioning_mask"]
    close(1 - state.denoise_mask, held)
    close(state.clean_latent * held, tensors["clean_latents"] * held)
    close(state.positions, tensors["video_coords"])
    assert torch.equal(state.keyframes_mask, tensors["keyframes_mask"])
    start, end = json.loads(metadata["slot_slice"])
    assert state.keyframes_mask[0, shape.frames * 6 :].flatten().nonzero().flatten().tolist() == list(
        range(start - shape.frames * 6, end - shape.frames * 6)
    )
    noiser = GaussianNoiser(torch.Generator().manual_seed(int(metadata["seed"])), "clean")
    close(noiser(state, 0.7).latent, tensors["latents"])
