"""AdaIN and tone mapping of latents."""

import pytest
import torch

from ltx2_diffusers.models.latent_filters import adain_filter_latent, tone_map_latents
from tests.golden_data import assert_within, load_tensors

FILTERS = load_tensors("latent_upsampler/cases/latent_filters.safetensors")
LEGACY = load_tensors("sampling/legacy_ltx_video.safetensors")


@pytest.mark.parametrize("key", [key for key in FILTERS if key.startswith("adain_")])
def test_adain_matches_the_golden_vectors(key):
    result = adain_filter_latent(FILTERS["latents"], FILTERS["reference_latents"], float(key.split("_")[1]))
    assert_within(result, FILTERS[key], "latent upsampler")


@pytest.mark.parametrize("key", [key for key in FILTERS if key.startswith("tone_map_")])
def test_tone_map_matches_the_golden_vectors(key):
    result = tone_map_latents(FILTERS["latents"], float(key.split("_")[2]))
    assert_within(result, FILTERS[key], "latent upsampler")


@pytest.mark.parametrize("key", [key for key in LEGACY if key.startswith(("adain/factor", "tone_map/"))])
def test_filters_match_those_of_ltx_video(key):
    latents = LEGACY["adain/latents"]
    if key.startswith("adain"):
        result = adain_filter_latent(latents, LEGACY["adain/reference"], float(key.removeprefix("adain/factor")))
    else:
        result = tone_map_latents(latents, float(key.split("/")[1]))
    assert_within(result, LEGACY[key], "sampling")


def test_adain_by_hand():
    latents = torch.tensor([0.0, 2.0]).view(1, 1, 2, 1, 1)
    reference = torch.tensor([10.0, 16.0]).view(1, 1, 2, 1, 1)
    torch.testing.assert_close(adain_filter_latent(latents, reference).flatten(), torch.tensor([10.0, 16.0]))
    torch.testing.assert_close(adain_filter_latent(latents, reference, 0.5).flatten(), torch.tensor([5.0, 9.0]))


@pytest.mark.parametrize("frames", [1, 2])
def test_adain_of_a_channel_without_deviation_takes_the_mean(frames):
    reference = torch.tensor([10.0, 16.0]).view(1, 1, 2, 1, 1)
    assert adain_filter_latent(torch.ones(1, 1, frames, 1, 1), reference).eq(13.0).all()
    assert adain_filter_latent(reference, torch.ones(1, 1, frames, 1, 1)).eq(1.0).all()


def test_unusable_arguments_are_refused():
    with pytest.raises(ValueError, match="reference_latents"):
        adain_filter_latent(torch.zeros(1, 4, 2, 2, 2), torch.zeros(2, 4, 2, 2, 2))
    for compression, nearest in [(-0.1, "use 0.0"), (1.5, "use 1.0")]:
        with pytest.raises(ValueError, match=nearest):
            tone_map_latents(torch.zeros(1), compression)
