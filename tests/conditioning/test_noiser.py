"""Noise is the same on every device and for every batch row, and obeys the mask."""

import pytest
import torch

from ltx2_diffusers.conditioning import (
    AudioLatentShape,
    AudioLatentTools,
    AudioPatchifier,
    ConditionByWholeLatent,
    GaussianNoiser,
    VideoConditionByLatentIndex,
)

from .tiny import SHAPE, randn, video_tools


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rows_of_a_batch_equal_single_runs():
    batch = video_tools(target_shape=SHAPE._replace(batch=2)).create_initial_state()
    single = video_tools().create_initial_state()
    together = GaussianNoiser([generator(1), generator(2)])(batch).latent
    alone = [GaussianNoiser(generator(seed))(single).latent for seed in (1, 2)]
    assert torch.equal(together, torch.cat(alone))


def test_noise_may_be_drawn_unpacked():
    tools = video_tools()
    noise = torch.randn(tools.target_shape.to_torch_shape(), generator=generator(3))
    state = GaussianNoiser()(tools.create_initial_state(), noise=tools.patchifier.patchify(noise))
    assert torch.equal(tools.unpatchify(state).latent, noise)


def test_noise_does_not_depend_on_the_latents_dtype():
    tools = video_tools()
    full = GaussianNoiser(generator(4))(tools.create_initial_state()).latent
    half = GaussianNoiser(generator(4))(tools.create_initial_state(dtype=torch.bfloat16)).latent
    assert torch.equal(full.bfloat16(), half)
    drawn_in_half = GaussianNoiser(generator(4), noise_dtype=torch.bfloat16)
    drawn_by_hand = torch.randn(1, 18, 4, generator=generator(4), dtype=torch.bfloat16)
    assert torch.equal(drawn_in_half(tools.create_initial_state()).latent, drawn_by_hand.float())


@pytest.mark.parametrize(("blend", "fill"), [("latent", True), ("clean", False)])
def test_kept_tokens_are_exact(blend: str, fill: bool):
    tools = video_tools(fill_latent=fill)
    image = randn(1, 4, 1, 2, 3)
    state = VideoConditionByLatentIndex(image, 1.0, 0).apply_to(tools.create_initial_state(), tools)
    noised = GaussianNoiser(generator(5), blend=blend)(state)
    assert torch.equal(noised.latent[:, :6], tools.patchifier.patchify(image))
    assert (noised.latent[:, 6:] != 0).all()
    assert torch.equal(noised.clean_latent, state.clean_latent)


@pytest.mark.parametrize("noise_scale", [0.0, 0.15, 1.0])
def test_given_audio_keeps_its_share(noise_scale: float):
    tools = AudioLatentTools(AudioPatchifier(), AudioLatentShape(1, 2, 5, 4))
    audio, noise = randn(1, 2, 5, 4), randn(1, 5, 8)
    state = ConditionByWholeLatent(audio, noise_scale).apply_to(tools.create_initial_state(), tools)
    expected = noise_scale * noise + (1 - noise_scale) * tools.patchifier.patchify(audio)
    torch.testing.assert_close(GaussianNoiser()(state, noise=noise).latent, expected)
    assert state.frozen == (noise_scale == 0)


def test_wrong_arguments_are_refused():
    state = video_tools().create_initial_state()
    with pytest.raises(ValueError, match=r"noise_scale must lie in \[0, 1\], got 1.5"):
        GaussianNoiser()(state, 1.5)
    with pytest.raises(ValueError, match=r"noise must have shape \[1, 18, 4\], got \[1, 4\]"):
        GaussianNoiser()(state, noise=torch.zeros(1, 4))
    with pytest.raises(ValueError, match="got 2 for a batch of 1"):
        GaussianNoiser([generator(0), generator(1)])(state)
    with pytest.raises(ValueError, match="blend must be"):
        GaussianNoiser(blend="lerp")
