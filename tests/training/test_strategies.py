"""What strategies show of a clip, against masks written by hand: 4 latent frames of 2 tokens, and a second of sound.

At 25 frames per second the latents end after 0.04, 0.36, 0.68 and 1 s; of the sound, latent t ends after 0.04 t + 0.01 s.
"""

import pytest
import torch

from ltx2_diffusers.training.config import STRATEGY_SECTIONS
from ltx2_diffusers.training.objective.noise_levels import RowDraws, UniformLevels
from ltx2_diffusers.training.objective.strategies import strategy_of
from tests.training.drawing import sizes

ALL = "1" * 25


def batch(steps: int = 25) -> dict:
    noise = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=noise)

    rates = {"fps": torch.tensor([25.0], dtype=torch.float64)}
    return {
        "latents": {"latents": randn(1, 128, 4, 1, 2), **rates},
        "audio_latents": {"latents": randn(1, 8, steps, 16)},
        "ref_latents": {"latents": randn(1, 128, 4, 1, 2), **rates},
        "reference_audio_latents": {"latents": randn(1, 8, 5, 16)},
        "video_masks": {"mask": torch.tensor([1.0, 0, 0, 1, 1, 1, 0, 0]).view(1, 4, 1, 2)},
        "audio_masks": {"mask": (torch.arange(steps) % 4 == 0).float()[None]},
    }


def prepared(strategy: dict, given: dict | None = None, shared: bool = False, seed: int = 1):
    section = STRATEGY_SECTIONS[strategy["name"]].model_validate(strategy)
    return strategy_of(section, shared).prepare(given or batch(), UniformLevels(), RowDraws(seed, 0, [0]), sizes())


def bits(values: torch.Tensor) -> str:
    return "".join(str(int(value > 0)) for value in values[0])


def flexible(video: dict | None = None, audio: dict | None = None) -> dict:
    streams = {"video": ("latents", video), "audio": ("audio_latents", audio)}
    return {"name": "flexible"} | {k: {"latents_dir": d, **v} for k, (d, v) in streams.items() if v is not None}


SOUND_ENDS = [
    {"type": "prefix", "temporal_boundary": 2},
    {"type": "suffix", "temporal_boundary": 3},
    {"type": "mask", "mask_dir": "audio_masks"},
    {"type": "reference", "latents_dir": "reference_audio_latents"},
]
# Strategy -> noise and loss of the video, noise and loss of the sound; None without a loss.
EXPECTED = {
    "image to video": ({"name": "image_to_video", "with_audio": True}, ("00111111", "00111111", ALL, ALL)),
    "forward": (
        {"name": "extension", "temporal_boundary": 2, "with_audio": True},
        ("00001111", "00001111", "0" * 9 + "1" * 16, "0" * 9 + "1" * 16),
    ),
    "backward": (
        {"name": "extension", "temporal_boundary": 1, "direction": "backward", "with_audio": True},
        ("11111100", "11111100", "1" * 18 + "0" * 7, "1" * 18 + "0" * 7),
    ),
    "inpainting": ({"name": "inpainting", "with_audio": True}, ("01100011", "01100011", ALL, ALL)),
    "reference audio": ({"name": "reference_audio"}, ("1" * 8, "1" * 8, ALL + "00000", ALL)),
    "references": (
        flexible({"is_generated": True, "conditions": [{"type": "reference", "latents_dir": "ref_latents"}]}),
        ("1" * 8 + "0" * 8, "1" * 8, None, None),
    ),
    "video to audio": ({"name": "video_to_audio"}, ("0" * 8, None, ALL, ALL)),
    "audio to video": ({"name": "audio_to_video"}, ("1" * 8, "1" * 8, "0" * 25, None)),
    "given video with references, sound with all conditions": (
        flexible(
            {"is_generated": False, "conditions": [{"type": "reference", "latents_dir": "ref_latents"}]},
            {"is_generated": True, "conditions": SOUND_ENDS},
        ),
        ("0" * 16, None, "0011011101110111011101" + "000" + "00000", "0011011101110111011101" + "000"),
    ),
    "crop and first frame": (
        flexible(
            {
                "is_generated": True,
                "conditions": [{"type": "spatial_crop", "spatial_region": [0, 32, 32, 64]}, {"type": "first_frame"}],
            },
            {"is_generated": False},
        ),
        ("00101010", "00101010", "0" * 25, None),
    ),
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("strategy, expected", EXPECTED.values(), ids=EXPECTED)
def test_what_is_held_is_clean_and_has_no_loss(strategy, expected, shared):
    given = batch()
    streams = prepared(strategy, given, shared)
    found = []
    for stream, source in zip(streams, ("latents", "audio_latents")):
        if stream is None:
            found += [None, None]
            continue
        found += [bits(stream.timesteps), None if stream.loss_mask is None else bits(stream.loss_mask)]
        clean = given[source]["latents"]
        tokens = clean.movedim(1, 2).flatten(2) if clean.ndim == 4 else clean.flatten(2).movedim(1, 2)
        count = tokens.shape[1]
        assert torch.equal((stream.state.latent[:, :count] == tokens).all(-1), stream.timesteps[:, :count] == 0)
        assert (stream.sigma == 0).all() == (stream.velocity is None)
    assert tuple(found) == expected
    if all(stream is not None and stream.velocity is not None for stream in streams):
        assert torch.equal(streams.video.sigma, streams.audio.sigma) == shared


@pytest.mark.parametrize("seed", range(8))
def test_a_retake_frees_the_same_time_of_both_streams(seed):
    streams = prepared({"name": "retake", "with_audio": True}, seed=seed)
    spans = []
    for stream in streams:
        times = stream.state.positions[0, 0][stream.loss_mask[0]]
        spans.append((times[:, 0].min().item(), times[:, 1].max().item()))
        # One stretch without holes.
        assert "0" not in bits(stream.loss_mask).strip("0")
    (video_start, video_end), (start, end) = spans
    assert video_start - 1e-6 <= start + 0.04 and end - 0.04 <= video_end + 1e-6
    assert 0.2 - 0.1 < end - start < 0.8 + 0.1


def test_sound_that_ends_early_is_still_learnt():
    """As that of a last, unfinished latent does in every data set, and that of a damaged file by more."""
    forward = {"name": "extension", "temporal_boundary": 3, "with_audio": True}
    assert bits(prepared(forward, batch(12)).audio.loss_mask) == "0" * 11 + "1"
    for seed in range(8):
        strategy = {"name": "retake", "with_audio": True, "min_share": 0.001, "max_share": 0.001}
        assert "1" in bits(prepared(strategy, batch(12), seed=seed).audio.loss_mask)
