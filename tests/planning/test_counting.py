"""What is predicted on the meta device against what PyTorch allocates, stage by stage and for whole calls."""

from functools import cache

import numpy as np
import pytest
import torch
from diffusers.utils import logging

from ltx2_diffusers import LTX2LatentUpsamplerModel, LTX2Pipeline, packaged_checkpoint
from ltx2_diffusers.pipelines.plan import Size, plan_clip
from ltx2_diffusers.planning.counting import LiveTensors, counted, measured, peak_bytes
from ltx2_diffusers.planning.parts import num_bytes, parts_of
from ltx2_diffusers.planning.stages import (
    Denoising,
    Reading,
    connecting,
    decoding_audio,
    decoding_video,
    denoising,
    encoding_given,
    reading_text,
    upsampling,
)
from ltx2_diffusers.sampling import PassLayout
from tests.tiny_checkpoints import tiny_checkpoint

logging.disable_progress_bar()

# Least and most of what is measured, as shares of what is predicted.
BOUNDS = 0.7, 1.1
SHAPES = {"square": (128, 128, 25, 1), "wide": (64, 160, 17, 1), "two of them": (64, 64, 9, 2)}
FOLDERS = {"mini": lambda: packaged_checkpoint("ltx2-mini"), "2.3": lambda: tiny_checkpoint("2.3")}


@cache
def both(name, dtype):
    """The components of a checkpoint with values and without."""
    folder = FOLDERS[name]()
    parts = parts_of(folder, dtype=dtype)
    real = dict(LTX2Pipeline.from_pretrained(folder, dtype=dtype).components)
    real["latent_upsampler"] = LTX2LatentUpsamplerModel.from_pretrained(folder / "latent_upsampler", dtype=dtype)
    return parts, {part: parts.model(part) for part in parts.components}, real


def stages(name, dtype, shape):
    """Each stage as a function of the models."""
    parts, _, real = both(name, dtype)
    height, width, frames, count = shape
    pipeline = LTX2Pipeline(scheduler=None, tokenizer=None, **{k: real[k] for k in real if k in PARTS})
    clip = plan_clip(pipeline.sizes, count, Size(height, width, frames), [(1.0, 1.0)])
    guided = (parts.preset.video, parts.preset.audio)
    reading = Reading(2 * count, 100, 128)

    def step(**settings):
        scales = settings.pop("scales", None)
        return lambda models: denoising(models, clip, Denoising(parts.preset, scales, positions=128, **settings))

    return {
        "text": lambda models: reading_text(models, reading),
        "connectors": lambda models: connecting(models, reading),
        "step": step(),
        "step with image": step(image=True),
        "guided": step(scales=guided),
        "guided with image": step(scales=guided, image=True),
        "guided in one batch": step(scales=guided, layout=PassLayout(batched=True)),
        "without kept text": step(scales=guided, layout=PassLayout(keeps_text=False)),
        "upsampling": lambda models: upsampling(models, clip),
        "image": lambda models: encoding_given(models, clip),
        "whole": lambda models: decoding_video(models, clip, "whole"),
        "streamed": lambda models: decoding_video(models, clip, "streamed"),
        "tiled": lambda models: decoding_video(models, clip, "tiled"),
        "sound": lambda models: decoding_audio(models, clip),
    }


PARTS = ("transformer", "vae", "audio_vae", "vocoder", "connectors", "text_encoder")
CASES = [
    ("mini", torch.float32, "square"),
    ("mini", torch.float32, "two of them"),
    ("mini", torch.bfloat16, "square"),
    ("2.3", torch.float32, "wide"),
]
GROUPS = {
    "steps": ("step", "step with image", "guided", "guided with image", "guided in one batch", "without kept text"),
    "ends": ("text", "connectors", "upsampling", "image", "sound"),
    "decoding": ("whole", "streamed", "tiled"),
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("name", "dtype", "shape"), CASES)
def test_what_stages_allocate_is_what_is_predicted(name, dtype, shape, group):
    _, meta, real = both(name, dtype)
    ratios, runs = {}, stages(name, dtype, SHAPES[shape])
    for stage in GROUPS[group]:
        run = runs[stage]
        predicted = counted(run(meta), "cpu").peak
        ratios[stage] = measured(run(real)).allocated / predicted
    wrong = {stage: round(ratio, 3) for stage, ratio in ratios.items() if not BOUNDS[0] <= ratio <= BOUNDS[1]}
    assert wrong == {}


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.quick_cases(1)
def test_models_without_values_have_the_bytes_of_those_with_values(name):
    _, meta, real = both(name, torch.float32)
    assert {part: num_bytes(model) for part, model in meta.items()} == {part: num_bytes(real[part]) for part in meta}


def test_a_tensor_counts_while_it_is_referenced():
    with LiveTensors() as counter:
        kept = torch.zeros(100)
        (kept + 1) * 2
        assert counter.alive == 400
    assert counter.peak == 1200


def test_weights_inputs_and_views_do_not_count():
    weight = torch.zeros(100)
    assert peak_bytes(lambda: weight.view(10, 10).t()) == 0


def test_what_comes_to_lie_at_the_address_of_an_input_counts():
    with LiveTensors() as counter:
        for _ in range(20):
            given = torch.from_numpy(np.zeros(4, np.float32))
            doubled = given * 2
            del given, doubled
            made = torch.zeros(1000)
            assert counter.alive == 4000
            del made


def test_measuring_sees_what_operations_allocate_within():
    """A convolution of frames in float32 writes out the windows of its input, 27 values each."""
    convolution = torch.nn.Conv3d(8, 8, 3)
    clip = torch.zeros(1, 8, 6, 20, 20)
    found = measured(lambda: convolution(clip))
    result = 8 * 4 * 18 * 18 * 4
    assert found.allocated == result + 27 * 8 * 4 * 18 * 18 * 4
    convolution, clip = convolution.to("meta"), clip.to("meta")
    assert counted(lambda: convolution(clip), "cpu").peak == found.allocated


def test_attention_without_values_does_not_write_its_scores_out():
    query = torch.empty(1, 2, 1000, 16, device="meta")
    found = counted(lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query))
    assert found.peak < 1000 * 1000
    assert (found.operations, found.attention) == (2 * 2 * 2 * 1000 * 1000 * 16,) * 2


def test_operations_of_the_published_transformer_are_those_of_its_formula():
    """Per block: 16 D^2 of projections a token, two products of attention, and what the sound and the text add."""
    parts = parts_of("ltx-2-19b")
    small, large = (parts.model("transformer", depth) for depth in (1, 2))
    pipeline = LTX2Pipeline(None, parts.model("vae"), parts.model("audio_vae"), None, None, None, small, None)
    clip = plan_clip(pipeline.sizes, 1, Size(512, 768, 121), [(1.0, 1.0)])
    counts = [
        counted(denoising({"transformer": model}, clip, Denoising(parts.preset, None))) for model in (small, large)
    ]
    per_block = counts[1].operations - counts[0].operations
    assert per_block * 48 == pytest.approx(198.8e12, rel=2e-3)


@pytest.mark.gpu
def test_what_a_gpu_reserves_is_what_is_predicted():
    from ltx2_diffusers.devices import FRAGMENTS

    _, meta, real = both("mini", torch.bfloat16)
    on_device = {name: model.to("cuda") for name, model in real.items() if isinstance(model, torch.nn.Module)}
    for stage, run in stages("mini", torch.bfloat16, (256, 384, 49, 1)).items():
        found = measured(run(on_device), "cuda").allocated
        predicted = counted(run(meta), "cuda").peak
        assert found <= 1.1 * predicted * (1 + FRAGMENTS), stage
    for model in on_device.values():
        model.to("cpu")
