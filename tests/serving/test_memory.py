"""Clips that do not fit into memory are refused before they are queued."""

import inspect
import json
import re
import time
from dataclasses import replace

import pytest
import torch

from ltx2_diffusers import LTX2VideoDiffusionDecoderModel, planning
from ltx2_diffusers.pipelines.planned import clip_sizes, model_sizes
from ltx2_diffusers.planning.counting import counted as needed
from ltx2_diffusers.planning.policy import LANGUAGE_MODEL
from ltx2_diffusers.sampling import PassLayout
from ltx2_diffusers.serving.memory.forecast import MARGIN
from ltx2_diffusers.serving.settings import Limits
from tests.serving.clips import create, finished, generate, refusal
from tests.serving.conftest import JOB, QUICK

GIB, MIB = 2**30, 2**20
LARGE = {**JOB, "width": 256, "height": 256, "num_frames": 33}


def loaded_gib(runner) -> float:
    return sum(waiting for waiting, _ in runner.model.memory["weights"].values()) / GIB


@pytest.fixture(scope="module")
def room(served) -> float:
    """GiB in which small clips fit, and large ones do not."""
    forecast = served[1].model.forecast(None)
    small, large = (
        forecast._needs.of(planning.ClipWish(*size, image=False)) for size in ((64, 64, 9), (256, 256, 33))
    )
    assert 2 * small < large
    return loaded_gib(served[1]) + 0.75 * large / GIB


def test_a_clip_that_does_not_fit_is_refused_with_one_that_does(serve, room):
    with serve(limits=Limits(max_memory_gb=room)) as client:
        field, message = refusal(client.post("/v1/videos", json=LARGE))
        assert field == "num_frames"
        assert "`num_frames` 33 of 256x256 pixels (`width`, `height`) would take about" in message
        assert client.get("/v1/videos").json()["data"] == []
        fits = r"what fits is (\d+) frames of this size, or (\d+)x(\d+) pixels of this length$"
        frames, width, height = map(int, re.search(fits, message).groups())
        assert finished(client, create(client, **JOB))["status"] == "completed"
        for smaller in ({"num_frames": frames}, {"width": width, "height": height}):
            assert client.post("/v1/videos", json={**LARGE, **smaller}).status_code == 200
        field, _ = refusal(client.post("/generate", json={**QUICK, "width": 256, "height": 256, "num_frames": 33}))
        assert field == "num_frames"
        assert generate(client, **QUICK)["resolution"] == "64x64"


def test_the_length_that_is_said_to_fit_is_the_longest(serve, served):
    forecast = served[1].model.forecast(None)
    wide = loaded_gib(served[1]) + 1.1 * forecast._needs.of(planning.ClipWish(128, 128, 49)) / GIB
    with serve(limits=Limits(max_memory_gb=wide)) as client:
        long = {**JOB, "width": 128, "height": 128, "num_frames": 961}
        _, message = refusal(client.post("/v1/videos", json=long))
        frames = int(message.partition("what fits is ")[2].split()[0])
        assert 49 <= frames < 961
        assert client.post("/v1/videos", json={**long, "num_frames": frames}).status_code == 200
        assert client.post("/v1/videos", json={**long, "num_frames": frames + 8}).status_code == 422


def test_what_is_free_is_the_limit_unless_one_is_set(served):
    model = served[1].model
    scarce = replace(model, memory={**model.memory, "free": 0})
    options = {**served_options(), "width": 64, "height": 64, "num_frames": 9}
    assert not scarce.forecast(None).fits(options)
    assert scarce.forecast(loaded_gib(served[1]) + 1).fits(options)
    assert model.forecast(None).fits(options)
    assert not model.forecast(None).fits(options, count=10**6)
    assert replace(model, memory=None).forecast(1.0) is None


def served_options() -> dict:
    return {"prompt": ["waves"]}


def test_what_a_batch_has_no_room_for_is_made_alone(serve, served):
    one = served[1].model.forecast(None)._needs.of(planning.ClipWish(64, 64, 9)) / GIB
    for share, together in ((1.5, False), (4.5, True)):
        limits = Limits(max_batch=4, max_memory_gb=loaded_gib(served[1]) + share * one)
        with serve(limits=limits) as client:
            planner = client.app.state.server.planner
            options = {**served_options(), "width": 64, "height": 64, "num_frames": 9}
            assert planner._fits_together(options) is together
            assert finished(client, create(client, **JOB))["status"] == "completed"


def test_to_foretell_costs_nothing_after_the_first_time(served):
    forecast = served[1].model.forecast(None)
    options = {**served_options(), "width": 64, "height": 64, "num_frames": 9}
    forecast.check(options)
    began = time.process_time()
    for frames in range(9, 169, 8):
        forecast.check({**options, "num_frames": frames})
    assert (time.process_time() - began) / 20 < 0.05


def test_the_worker_says_what_is_loaded_in_json(served):
    facts = json.loads(json.dumps(served[1].model.memory))
    assert facts["kind"] == "cpu" and facts["free"] > 0
    assert LANGUAGE_MODEL in facts["weights"] and LANGUAGE_MODEL not in facts["configs"]
    # LoRA adapters are among the weights.
    parts = planning.ModelParts("tiny", facts["configs"], planning.parts_of("ltx2-mini").preset, torch.float32)
    assert (
        facts["weights"]["transformer"][0] > planning.Counts(parts, "cpu", lambda m, _: m).weights("transformer").total
    )


@pytest.mark.parametrize("size", [(128, 128, 25), (192, 320, 57), (512, 512, 121)])
@pytest.mark.parametrize("two_stage", [False, True])
@pytest.mark.quick_cases(1)
def test_lines_agree_with_what_is_counted(served, size, two_stage):
    needs = served[1].model.forecast(None)._needs
    wish = planning.ClipWish(*size, two_stage=two_stage, image=True, steps=(1, 1), prompt_tokens=1024)
    parts = needs._parts
    clips = planning.Clips(*clip_sizes(parts, wish, model_sizes(parts)))
    counts = planning.Counts(parts, "cpu", lambda model, _: model)
    streamed = size[0] * size[1] * size[2] > 2**24
    counted = planning.Needs(counts, wish, clips).clip_stages(None, PassLayout(), "streamed" if streamed else "whole")
    most = max(stage.activations for stage in counted)
    said = max(peak.activations for peak in needs._lines.peaks(wish, clips, streamed))
    # Kernels of a CPU that small clips take need less room for themselves.
    assert most / (1 + MARGIN) <= said <= most * (1 + MARGIN) + 32 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("tiling", [False, True])
def test_the_diffusion_decoder_is_counted(served, tiling):
    """Whole and in tiles, of a size that nothing was counted at; clips that the VAE decodes have none of it."""
    model, name = served[1].model, planning.DIFFUSION
    parameters = inspect.signature(LTX2VideoDiffusionDecoderModel).parameters
    config = {key: parameter.default for key, parameter in parameters.items()}
    config |= {"_class_name": "LTX2VideoDiffusionDecoderModel", "decoder_stage_depths": [1] * 5}
    config["latent_channels"] = model.memory["configs"]["vae"]["latent_channels"]
    configs, weights = model.memory["configs"] | {name: config}, model.memory["weights"] | {name: (0, 0)}
    memory = json.loads(json.dumps({**model.memory, "tiling": tiling, "configs": configs, "weights": weights}))
    needs = replace(model, memory=memory).forecast(None)._needs
    wish = planning.ClipWish(512, 512, 89, decoder="diffusion")
    clips = planning.Clips(*clip_sizes(needs._parts, wish, model_sizes(needs._parts)))
    run = planning.stages.decoding_by_diffusion(
        {name: needs._parts.model(name)}, clips.clip, "tiled" if tiling else "whole"
    )
    *_, peak = needs._lines.peaks(wish, clips, False)
    assert peak.uses == (name,)
    assert 1 / (1 + MARGIN) < peak.activations / needed(run, "cpu").peak < 1.3
    *_, other = needs._lines.peaks(replace(wish, decoder="vae"), clips, False)
    assert other.uses == ("vae",)
