"""Caches between steps and guidance intervals in calls: what is skipped, that it is said, and that nothing is left over."""

import numpy as np
import pytest
from diffusers import FirstBlockCacheConfig, MagCacheConfig, PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig

from ltx2_diffusers import LTX2ImageToVideoPipeline, LTX2TextToAudioPipeline, LTX2TwoStagePipeline
from ltx2_diffusers.guidance import GuidanceOptions, MultiModalGuiderParams
from ltx2_diffusers.sampling import PassLayout
from tests.golden_data import EQUAL_PIPELINES
from tests.pipelines.tiny import (
    ALL_GUIDANCE,
    CFG,
    EXPLICIT,
    NO_GUIDANCE,
    PROMPT,
    load,
    max_difference,
    ours,
    seeded,
    sibling,
)

CALL = {**EXPLICIT, "num_inference_steps": 4, "prompt": PROMPT}
NAMES = ["conditional", "perturbed", "isolated", "negative"]
MODELS = ("2.0", "2.3")


def every_second(in_a_row=1):
    """Reuses what is no older than so many steps; the table is stretched to the run."""
    return MagCacheConfig(mag_ratios=[1.0], num_inference_steps=1, retention_ratio=0, max_skip_steps=in_a_row)


@pytest.fixture(scope="module", params=MODELS)
def pipe(request):
    return load(request.param)


@pytest.fixture
def runs(pipe):
    """Indices of the blocks that ran."""
    found = []
    handles = [
        block.register_forward_pre_hook(lambda *_, index=index: found.append(index))
        for index, block in enumerate(pipe.transformer.transformer_blocks)
    ]
    yield found
    for handle in handles:
        handle.remove()


def run(pipe, config=None, **call):
    """A call with a cache, which is disabled again."""
    if config is None:
        return pipe(**{**CALL, "generator": seeded(0), **call})
    pipe.transformer.enable_cache(config)
    try:
        return run(pipe, **call)
    finally:
        pipe.transformer.disable_cache()


def made(output):
    return {name: (one["forwards"], one["skip_ratio"]) for name, one in output.info["passes"].items()}


@pytest.mark.parametrize("guidance", [NO_GUIDANCE, ALL_GUIDANCE], ids=["none", "all"])
def test_a_threshold_of_zero_is_off_to_the_bit_and_costs_nothing(pipe, runs, guidance):
    expected = run(pipe, **guidance)
    plain = list(runs)
    found = run(pipe, FirstBlockCacheConfig(threshold=0.0), **guidance)
    assert max_difference(found, expected) == 0
    assert sorted(runs[len(plain) :]) == sorted(plain)
    assert made(found) == made(expected)
    assert all(ratio == 0 and forwards == 4 for forwards, ratio in made(found).values())


def test_every_pass_is_skipped_by_itself_and_it_is_said(pipe, runs):
    found = run(pipe, every_second(), **ALL_GUIDANCE)
    assert made(found) == dict.fromkeys(NAMES, (2, 0.5))
    # In steps that are skipped no block runs; in the others as many as ever.
    reused = len(runs)
    expected = run(pipe, **ALL_GUIDANCE)
    assert len(runs) - reused == 2 * reused
    assert max_difference(found, expected) > 1e-3
    # With one pass more or less, the others are what they were.
    alone = run(pipe, every_second(), **CFG)
    assert made(alone) == dict.fromkeys(["conditional", "negative"], (2, 0.5))


@pytest.mark.parametrize(
    "config",
    [
        every_second,
        lambda: FirstBlockCacheConfig(threshold=1.2),
        lambda: TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1),
        lambda: PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(0, 1001),
            current_timestep_callback=lambda: 500,
        ),
    ],
    ids=["table", "first block", "extrapolation", "broadcast"],
)
@pytest.mark.quick_cases(3)
def test_nothing_is_left_over_between_calls(pipe, config):
    expected = run(pipe, **ALL_GUIDANCE)
    pipe.transformer.enable_cache(config())
    try:
        first = run(pipe, **ALL_GUIDANCE)
        # A call that ends in the middle, and one of another size.
        with pytest.raises(ZeroDivisionError):
            run(pipe, **ALL_GUIDANCE, callback_on_step_end=lambda *_: 1 / 0)
        run(pipe, width=64, **CFG)
        second = run(pipe, **ALL_GUIDANCE)
    finally:
        pipe.transformer.disable_cache()
    assert max_difference(first, second) == 0
    assert max_difference(first, expected) > 1e-4
    assert max_difference(run(pipe, **ALL_GUIDANCE), expected) == 0


@pytest.mark.parametrize(
    "config",
    [
        lambda: TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1),
        lambda: PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(0, 1001),
            current_timestep_callback=lambda: 500,
        ),
    ],
    ids=["extrapolation", "broadcast"],
)
def test_skipped_layers_are_no_skipped_predictions(pipe, runs, config):
    """Every pass goes through all blocks, none of which is shared, and the ratio says so."""
    found = run(pipe, config(), **ALL_GUIDANCE)
    assert made(found) == dict.fromkeys(NAMES, (4, 0.0))
    blocks = len(pipe.transformer.transformer_blocks)
    assert len(runs) == len(NAMES) * 4 * blocks


def test_a_schedule_makes_of_a_batch_what_it_makes_of_singles(pipe):
    prompts = [PROMPT, "rain"]
    batch = run(pipe, every_second(), **CFG, prompt=prompts, generator=seeded(1, 2))
    for index, prompt in enumerate(prompts):
        single = run(pipe, every_second(), **CFG, prompt=prompt, generator=seeded(index + 1))
        assert (batch.frames[index] - single.frames[0]).abs().max() <= EQUAL_PIPELINES
        assert (batch.audio[index] - single.audio[0]).abs().max() <= EQUAL_PIPELINES


def test_passes_that_would_be_one_batch_are_made_apart(pipe):
    expected = run(pipe, every_second(), **ALL_GUIDANCE)
    pipe.pass_layout = PassLayout(batched=True)
    try:
        found, plain = run(pipe, every_second(), **ALL_GUIDANCE), run(pipe, **ALL_GUIDANCE)
    finally:
        pipe.pass_layout = PassLayout()
    assert max_difference(found, expected) == 0
    assert made(plain) == dict.fromkeys(NAMES, (4, 0.0))


def test_a_given_picture_and_a_second_stage_are_reused_too():
    pipe = load("2.0", LTX2TwoStagePipeline, **{k: v for k, v in ours("2.0").components.items() if v is not None})
    call = {"height": 128, "width": 128, "num_frames": 9, "max_sequence_length": 64, "output_type": "latent"}
    picture = np.zeros((64, 96, 3), np.uint8)
    arguments = {"prompt": PROMPT, **call, "num_inference_steps": 4, "stage_2_adapters": {}, **CFG}
    pipe.transformer.enable_cache(every_second())
    try:
        output = pipe(**arguments, image=picture, generator=seeded(0))
        images = LTX2ImageToVideoPipeline.from_pipe(ours("2.0"))
        still = images(**CALL, **CFG, image=picture, generator=seeded(0))
    finally:
        pipe.transformer.disable_cache()
    first, second = output.info["passes"]
    assert {name: one["forwards"] for name, one in first.items()} == {"conditional": 2, "negative": 2}
    assert {name: one["forwards"] for name, one in second.items()} == {"conditional": 2}
    assert second["conditional"]["skip_ratio"] == pytest.approx(1 / 3, abs=1e-4)
    assert still.info["passes"]["negative"]["skip_ratio"] == 0.5
    assert output.frames.isfinite().all() and still.frames.isfinite().all()


def test_skipped_steps_and_a_cache_go_together(pipe):
    options = GuidanceOptions(skip_step=1)
    # Steps 0 and 2 update both streams, 1 and 3 the sound alone: the later one of each pair is two steps away.
    assert made(run(pipe, every_second(1), **NO_GUIDANCE, guidance_options=options)) == {"conditional": (4, 0.0)}
    assert made(run(pipe, every_second(2), **NO_GUIDANCE, guidance_options=options)) == {"conditional": (2, 0.5)}
    both = GuidanceOptions(skip_step=1, audio_skip_step=1)
    assert made(run(pipe, **NO_GUIDANCE, guidance_options=both)) == {"conditional": (2, 0.5)}


def test_calibration_says_what_it_measured(pipe):
    expected = run(pipe, **CFG)
    found = run(pipe, MagCacheConfig(calibrate=True), **CFG)
    assert max_difference(found, expected) == 0
    ratios = {name: one["mag_ratios"] for name, one in found.info["passes"].items()}
    assert ratios.keys() == {"conditional", "negative"}
    assert all(len(measured) == 4 and measured[0] == 1 and measured[1] != 1 for measured in ratios.values())
    assert "mag_ratios" not in expected.info["passes"]["conditional"]


def test_streamed_blocks_are_skipped_as_well(pipe):
    expected = run(pipe, every_second(), **CFG)
    streamed = load("2.0" if pipe.transformer.config.use_prompt_embeddings else "2.3")
    streamed.enable_block_streaming()
    assert max_difference(run(streamed, every_second(), **CFG), expected) == 0
    near = FirstBlockCacheConfig(threshold=1.2)
    assert max_difference(run(streamed, near, **CFG), run(pipe, near, **CFG)) == 0


@pytest.mark.gpu
def test_caches_decide_on_a_card_as_on_a_processor(pipe):
    here = run(pipe, FirstBlockCacheConfig(threshold=1.2), **ALL_GUIDANCE)
    there = load("2.0" if pipe.transformer.config.use_prompt_embeddings else "2.3").to("cuda")
    output = run(there, FirstBlockCacheConfig(threshold=1.2), **ALL_GUIDANCE)
    assert made(output) == made(here)
    assert (output.frames.cpu() - here.frames).abs().max() <= EQUAL_PIPELINES


# Guidance between two noise levels


def test_an_interval_guides_within_it_alone(pipe):
    levels = {"timesteps": [1000.0, 800.0, 500.0, 200.0], "num_inference_steps": None}
    options = GuidanceOptions(guidance_interval=(0.3, 0.9))
    found = run(pipe, **ALL_GUIDANCE, **levels, guidance_options=options)
    inside = dict.fromkeys(NAMES[1:], (2, 0.5))
    assert made(found) == {"conditional": (4, 0.0), **inside}
    scales = [MultiModalGuiderParams(*scale) for scale in ((3.0, 1.0, [1], 0.7, 3.0), (7.0, 0.5, [1], 0.4, 2.0))]
    bins = [{0.29: MultiModalGuiderParams(), 0.9: one, 1.0: MultiModalGuiderParams()} for one in scales]
    by_hand = run(
        pipe, guidance_options=GuidanceOptions(bins=bins[0], audio_bins=bins[1]), spatio_temporal_guidance_blocks=[1],
        **levels,
    )  # fmt: skip
    assert max_difference(found, by_hand) == 0
    everywhere = GuidanceOptions(guidance_interval=(0.0, 1.0))
    assert max_difference(run(pipe, **CFG, guidance_options=everywhere), run(pipe, **CFG)) == 0


def test_an_interval_of_bins_and_of_changed_scales(pipe):
    levels = {"timesteps": [1000.0, 800.0, 500.0, 200.0], "num_inference_steps": None}
    bins = {1.0: MultiModalGuiderParams(3.0, interval=(0.7, 1.0)), 0.4: MultiModalGuiderParams(3.0)}
    binned = GuidanceOptions(bins=bins, guidance_interval=(0.0, 0.1))
    found = run(
        pipe, **levels, **{k: v for k, v in NO_GUIDANCE.items() if k.startswith("audio")}, guidance_options=binned
    )
    assert found.info["passes"]["negative"]["forwards"] == 2

    def stronger(pipeline, _step, _timestep, _tensors):
        pipeline._guidance_scale = 5.0
        return {}

    options = GuidanceOptions(guidance_interval=(0.3, 1.0))
    changed = run(pipe, **CFG, **levels, guidance_options=options, callback_on_step_end=stronger)
    assert changed.info["passes"]["negative"] == {"forwards": 3, "skip_ratio": 0.25}


@pytest.mark.parametrize(
    ("interval", "message"),
    [
        ((0.8, 0.2), r"`guidance_interval` .* is \(0\.8, 0\.2\); use \(0\.2, 0\.8\)"),
        ((0.5, 1.5), r"is \(0\.5, 1\.5\); use \(0\.5, 1\.0\)"),
        ((0.5, 0.5), r"use \(0\.0, 1\.0\)"),
        ((0.5,), r"is \(0\.5,\); use \(0\.0, 1\.0\)"),
    ],
)
def test_intervals_that_are_none_are_refused(interval, message):
    with pytest.raises(ValueError, match=message):
        GuidanceOptions(guidance_interval=interval)


def test_an_interval_needs_guidance_and_cfg_plus_plus_needs_it_everywhere():
    options = GuidanceOptions(guidance_interval=(0.2, 0.8))
    with pytest.raises(ValueError, match=r"`guidance_interval` is \(0\.2, 0\.8\), but this call is not guided at all"):
        run(ours(), **NO_GUIDANCE, guidance_options=options)
    with pytest.raises(ValueError, match="does not make in every step"):
        run(ours(), **CFG, guidance_options=options, sampler="euler_cfg_pp")
    sound = sibling("2.0", LTX2TextToAudioPipeline)
    output = sound(PROMPT, duration_s=0.5, num_inference_steps=3, max_sequence_length=64, output_type="latent",
                   guidance_options=options, generator=seeded(0))  # fmt: skip
    assert output.info["passes"]["negative"]["skip_ratio"] > 0
