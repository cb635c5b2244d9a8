"""Building blocks are public: their lists hold what their page shows, and by hand they make what a pipeline makes."""

import ast
from dataclasses import replace
from itertools import pairwise
from types import ModuleType

import pytest
import torch

import ltx2_diffusers
from ltx2_diffusers import LTX2ModalityModel, conditioning, guidance, sampling
from ltx2_diffusers.conditioning import (
    AudioLatentShape,
    AudioLatentTools,
    AudioPatchifier,
    GaussianNoiser,
    Modality,
    Streams,
    TextContext,
    VideoLatentPatchifier,
    VideoLatentShape,
    VideoLatentTools,
    VideoPixelShape,
)
from ltx2_diffusers.guidance import MultiModalGuider, MultiModalGuiderParams
from ltx2_diffusers.sampling import GuidedDenoiser, denoise, euler_step, get_sampler, to_denoised
from scripts.pages import page

from .pipelines.tiny import EXPLICIT, NO_GUIDANCE, PROMPT, SIZE, ours, seeded

ROOMS = (conditioning, guidance, sampling)
PAGE = page("reference/building_blocks.md")
BLOCKS = PAGE.blocks("python")
SIGMAS = torch.tensor([1.0, 0.7, 0.3, 0.0])


@pytest.fixture(autouse=True)
def no_grad():
    """Tests leave torch as it was, whatever a script says."""
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    yield
    torch.set_grad_enabled(before)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
def test_a_room_lists_what_it_has_and_says_what_it_is(room: ModuleType):
    assert len(room.__all__) == len(set(room.__all__))
    assert room.__name__ in PAGE.text
    for name in room.__all__:
        assert getattr(room, name).__doc__, name


def test_the_page_imports_what_is_listed():
    imported = [node for block in BLOCKS for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
    lists = {room.__name__: room.__all__ for room in (ltx2_diffusers, *ROOMS)}
    shown = {(node.module, name.name) for node in imported if node.module in lists for name in node.names}
    assert {module for module, _ in shown} == set(lists)
    assert shown <= {(module, name) for module, names in lists.items() for name in names}


def test_the_page_runs():
    names = {}
    (block,) = BLOCKS
    exec(compile(block, PAGE.name, "exec"), names)
    assert names["frames"].shape == (1, 3, 25, 128, 128) and names["frames"].isfinite().all()
    tools, kept = names["tools"], names["picture"]
    for state in (names["state"], names["states"].video):
        latent = tools.unpatchify(state).latent
        assert torch.equal(latent[:, :, :1], kept)
        assert not torch.equal(latent[:, :, 1:], tools.unpatchify(names["start"]).latent[:, :, 1:])


@pytest.fixture
def by_pipeline() -> Streams:
    """Latents that the pipeline makes from noise in three Euler steps without guidance."""
    output = ours()(PROMPT, **EXPLICIT | NO_GUIDANCE, timesteps=(SIGMAS[:-1] * 1000).tolist(), generator=seeded(3))
    return Streams(output.frames, output.audio)


@pytest.fixture
def tools() -> Streams:
    pixels = VideoPixelShape(1, SIZE["num_frames"], SIZE["height"], SIZE["width"], SIZE["frame_rate"])
    pixels.check()
    pipe = ours()
    video = VideoLatentShape.from_pixel_shape(pixels, pipe.transformer.config.in_channels)
    channels = pipe.audio_vae.config.latent_channels
    audio = AudioLatentShape.from_video_pixel_shape(
        pixels, channels, pipe.transformer.config.audio_in_channels // channels
    )
    return Streams(
        VideoLatentTools(VideoLatentPatchifier(), video, fps=pixels.fps), AudioLatentTools(AudioPatchifier(), audio)
    )


@pytest.fixture
def start(tools: Streams) -> Streams:
    """Both streams as noise; the pipeline draws it in the shape of the latents, as diffusers does."""
    noiser = GaussianNoiser(seeded(3))
    noise = [tool.patchifier.patchify(noiser.draw(tool.target_shape)) for tool in tools]
    return Streams(*(noiser(tool.create_initial_state(), noise=drawn) for tool, drawn in zip(tools, noise)))


@pytest.fixture
def context() -> TextContext:
    length = EXPLICIT["max_sequence_length"]
    embeds, mask, *_ = ours().encode_prompt(PROMPT, do_classifier_free_guidance=False, max_sequence_length=length)
    video, audio, _ = ours().connectors(embeds, mask)
    return TextContext(video, audio)


def assert_same(states: Streams, tools: Streams, expected: Streams) -> None:
    vaes = ours().vae, ours().audio_vae
    for state, tool, vae, latent in zip(states, tools, vaes, expected):
        made = vae.denormalize_latents(tool.unpatchify(state).latent)
        torch.testing.assert_close(made, latent, rtol=1e-4, atol=1e-4)


def test_steps_by_hand_make_what_a_pipeline_makes(by_pipeline, tools, start, context):
    model, states = LTX2ModalityModel(ours().transformer), start
    for sigma, sigma_next in pairwise(SIGMAS):
        inputs = [
            Modality(True, state.latent, sigma * state.denoise_mask, state.positions, text)
            for state, text in zip(states, (context.video, context.audio))
        ]
        denoised = [to_denoised(state.latent, velocity, sigma) for state, velocity in zip(states, model(*inputs))]
        states = Streams(
            *(
                replace(state, latent=euler_step(state.latent, clean, sigma, sigma_next))
                for state, clean in zip(states, denoised)
            )
        )
    assert_same(states, tools, by_pipeline)


def test_the_loop_makes_what_a_pipeline_makes(by_pipeline, tools, start, context):
    guiders = Streams(*(MultiModalGuider(MultiModalGuiderParams()) for _ in range(2)))
    denoiser = GuidedDenoiser(ours().transformer, context, None, guiders)
    assert_same(denoise(denoiser, start, SIGMAS, get_sampler("euler")), tools, by_pipeline)
