"""Caches between steps: what is reused, of which stream and which pass, and what is refused."""

from itertools import pairwise

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import TextKVCacheConfig

from ltx2_diffusers.models.step_cache import FirstBlockCache, MagnitudeCache
from tests.models.test_transformer import keep_masks
from tests.models.transformer_tools import max_difference, tiny_inputs, tiny_transformer

LAYERS = 3
NEVER, ALWAYS = FirstBlockCacheConfig(threshold=0.0), FirstBlockCacheConfig(threshold=1e9)
MASKS = [None, keep_masks(video_self=[1], audio_self=[1]), keep_masks(a2v=range(LAYERS), v2a=range(LAYERS))]


def every_second(steps):
    """Every second prediction is reused: ratios of 1 leave no error, and one step in a row may be skipped."""
    return MagCacheConfig(mag_ratios=torch.ones(steps), num_inference_steps=steps, retention_ratio=0, max_skip_steps=1)


def attention_broadcast():
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_block_identifiers=["transformer_blocks"],
        current_timestep_callback=lambda: 500,
    )


class Watch:
    """How often each block ran, what went into the first one and came out of it, and what reached the output heads."""

    def __init__(self, model):
        self.runs, self.entered, self.first, self.left = [0] * LAYERS, [], [], {"": [], "audio_": []}
        for index, block in enumerate(model.transformer_blocks):
            block.register_forward_hook(lambda *_, index=index: self.count(index))
        model.transformer_blocks[0].register_forward_hook(self.note_first)
        for prefix, found in self.left.items():
            model.get_submodule(f"{prefix}norm_out").register_forward_pre_hook(
                lambda _, args, found=found: found.append(args[0])
            )

    def count(self, index):
        self.runs[index] += 1

    def note_first(self, _, args, output):
        self.entered.append(args[:2])
        self.first.append(output)

    def tokens(self, index):
        """Tokens of both streams of a prediction after the last block."""
        return tuple(found[index] for found in self.left.values())


def steps_of(model, count=2, batch_size=1):
    return [tiny_inputs(model, batch_size, seed=seed) for seed in range(1, count + 1)]


@pytest.mark.parametrize("layout", ["2.0", "2.3"])
@torch.no_grad()
def test_a_threshold_of_zero_changes_nothing_and_shares_as_much(layout):
    model = tiny_transformer(layout)
    watch, steps = Watch(model), steps_of(model, 3)
    expected = [model(**step, perturbation_keep_masks=MASKS) for step in steps]
    runs = list(watch.runs)
    model.enable_cache(NEVER)
    memory = model.new_step_cache()
    for step, outputs in zip(steps, expected):
        found = model(**step, perturbation_keep_masks=MASKS, step_cache=memory)
        assert [max_difference(*pair) for pair in zip(found, outputs)] == [0] * 3
    assert [both - alone for both, alone in zip(watch.runs, runs)] == runs


@torch.no_grad()
def test_what_all_blocks_added_to_both_streams_is_added_again():
    model = tiny_transformer("2.3")
    watch, steps = Watch(model), steps_of(model, 4)
    model.enable_cache(every_second(4))
    memory = model.new_step_cache(4)
    plain = tiny_transformer("2.3")
    seen = Watch(plain)
    for step in steps:
        model(**step, step_cache=memory)
        plain(**step)
    assert watch.runs == [2] * LAYERS
    for index in range(4):
        before, entered = seen.entered[index - index % 2], seen.entered[index]
        computed = seen.tokens(index - index % 2)
        by_hand = [old + (last - first) for old, last, first in zip(entered, computed, before)]
        expected = by_hand if index % 2 else computed
        assert max_difference(watch.tokens(index), expected) == 0
        assert all(tokens.abs().max() > 0.1 for tokens in expected)


@torch.no_grad()
def test_every_pass_reuses_its_own():
    model = tiny_transformer("2.3")
    watch, steps = Watch(model), steps_of(model)
    plain = Watch(other := tiny_transformer("2.3"))
    model.enable_cache(ALWAYS)
    memory = model.new_step_cache()
    for step in steps:
        model(**step, perturbation_keep_masks=MASKS, step_cache=memory)
        for mask in MASKS:
            other(**step, perturbation_keep_masks=mask)
    assert memory.skipped == [True] * 3
    # The passes of the second step share the first block as far as they did in the first one.
    assert watch.runs[0] == 2 * 2 and watch.runs[2] == 3
    for index in range(3):
        first, now = plain.first[index], plain.first[3 + index]
        by_hand = [new + (last - old) for new, last, old in zip(now, plain.tokens(index), first)]
        assert max_difference(watch.tokens(3 + index), by_hand) <= 1e-5
    assert max_difference(watch.tokens(3), watch.tokens(4)) > 1e-3


@pytest.mark.parametrize(("config", "times"), [(FirstBlockCacheConfig(threshold=1e-9), 2), (every_second(4), 1)])
@torch.no_grad()
def test_a_memory_takes_the_tokens_of_every_pass_once_or_twice(config, times):
    """What the blocks added, and of the first block what decides."""
    model = tiny_transformer("2.3")
    model.enable_cache(config)
    memory = model.new_step_cache(4)
    masks = [MASKS[0], MASKS[2]]
    for step in steps_of(model, 3):
        model(**step, perturbation_keep_masks=masks, step_cache=memory)
    kept = [tensor for value in vars(memory).values() if isinstance(value, dict) for pair in value.values()
            for tensor in (pair if isinstance(pair, tuple) else ())]  # fmt: skip
    unique = {tensor.data_ptr(): tensor.nbytes for tensor in kept}
    step = steps_of(model, 1)[0]
    widths = model.proj_in.out_features, model.audio_proj_in.out_features
    tokens = sum(step[f"{n}hidden_states"].shape[1] * width * 4 for n, width in zip(("", "audio_"), widths))
    assert sum(unique.values()) == times * len(masks) * tokens


@torch.no_grad()
def test_a_pass_that_comes_later_is_computed():
    model = tiny_transformer()
    model.enable_cache(ALWAYS)
    memory, step = model.new_step_cache(), steps_of(model, 1)[0]
    model(**step, perturbation_keep_masks=MASKS[:1], step_cache=memory)
    model(**step, perturbation_keep_masks=MASKS, step_cache=memory)
    assert memory.skipped == [True, False, False]
    model(**{**step, "audio_enabled": False}, perturbation_keep_masks=MASKS, step_cache=memory)
    assert memory.skipped == [False] * 3
    model(**tiny_inputs(model, 2), step_cache=memory)
    assert memory.skipped == [False]


@pytest.mark.parametrize("changed", ["hidden_states", "audio_hidden_states", None])
@torch.no_grad()
def test_the_stream_and_the_sample_that_change_most_decide(changed):
    model = tiny_transformer()
    model.enable_cache(FirstBlockCacheConfig(threshold=0.05))
    memory, step = model.new_step_cache(), tiny_inputs(model, 2)
    model(**step, step_cache=memory)
    if changed is not None:
        step[changed] = step[changed].clone()
        step[changed][1] += 1.0
    model(**step, step_cache=memory)
    assert memory.skipped == [changed is None]


@pytest.mark.parametrize("absent", ["hidden_states", "audio_hidden_states"])
@torch.no_grad()
def test_one_stream_alone_is_reused_too(absent):
    model = tiny_transformer()
    steps = [{**step, absent: None} for step in steps_of(model)]
    watch = Watch(model)
    model.enable_cache(ALWAYS)
    memory = model.new_step_cache()
    outputs = [model(**step, step_cache=memory) for step in steps]
    assert watch.runs == [2, 1, 1]
    assert all(sum(stream is not None for stream in output) == 1 for output in outputs)


def test_gradients_take_no_cache():
    model = tiny_transformer()
    inputs = tiny_inputs(model)
    model.enable_cache(ALWAYS)
    with torch.no_grad():
        expected = tiny_transformer()(**inputs)
    for _ in range(2):
        assert max_difference([x.detach() for x in model(**inputs)], expected) == 0


# The table of ratios


def test_a_table_is_stretched_to_the_run_and_skips_what_it_allows():
    config = MagCacheConfig(
        mag_ratios=[1.0, 0.9, 0.8, 0.99], num_inference_steps=4, retention_ratio=0.25, threshold=0.35, max_skip_steps=2
    )
    states = [(torch.ones(1, 2, 3), torch.ones(1, 2, 3))]

    def skips(num_predictions, indices):
        memory, found = MagnitudeCache(config, num_predictions), []
        for memory.index in indices:
            made = memory.reused(["pass"], states[0], states)
            found.append(made[0] is not None)
            if not found[-1]:
                memory.keep(["pass"], states, [(states[0][0] * 2, states[0][1] * 3)])
        return found

    # Errors of steps 1 to 3: 0.1 is skipped; 0.1 + 0.28 is too much; 0.01 is skipped.
    assert skips(4, range(4)) == [False, True, False, True]
    # A pass that is not made in step 1 has come just as far in step 2.
    assert skips(4, (0, 2, 3)) == [False, False, True]
    # Ratios at twice the steps: 1, 1, .9, .9, .8, .8, .99, .99; two steps are retained.
    assert skips(8, range(8)) == [False, False, True, True, False, True, False, True]


@torch.no_grad()
def test_calibration_measures_and_skips_nothing():
    model = tiny_transformer()
    steps = steps_of(model, 3)
    expected = [model(**step) for step in steps]
    watch = Watch(model)
    model.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=3))
    memory, ratios = model.new_step_cache(3), []
    for step, output in zip(steps, expected):
        assert max_difference(model(**step, step_cache=memory), output) == 0
        ratios += memory.measured
    added = [watch.left[""][i] - watch.entered[i][0] for i in range(3)]
    lengths = [one.norm(dim=-1) for one in added]
    by_hand = [1.0, *((new / old).mean().item() for old, new in pairwise(lengths))]
    assert ratios == pytest.approx(by_hand, rel=1e-4)


# Without a pipeline


@torch.no_grad()
def test_contexts_of_a_network_that_is_called_alone_are_kept_apart():
    model = tiny_transformer()
    one, other = steps_of(model)
    watch = Watch(model)
    model.enable_cache(ALWAYS)
    with pytest.raises(ValueError, match=r"has to know the pass.*cache_context\("):
        model(**one)
    for _ in range(2):
        for name, step in (("positive", one), ("negative", other)):
            with model.cache_context(name):
                model(**step)
    assert watch.runs == [4, 2, 2]
    model._reset_stateful_cache()
    with model.cache_context("positive"):
        model(**other)
    assert watch.runs == [5, 3, 3]


@torch.no_grad()
def test_a_table_begins_anew_after_its_last_step():
    model = tiny_transformer()
    watch = Watch(model)
    model.enable_cache(every_second(3))
    for step in steps_of(model, 6):
        with model.cache_context("positive"):
            model(**step)
    # Of 3 steps the second is skipped, in both runs.
    assert watch.runs == [4] * LAYERS


@torch.no_grad()
def test_passes_do_not_share_broadcast_attention():
    model = tiny_transformer()
    one, other = steps_of(model)
    expected = model(**other)
    model.enable_cache(attention_broadcast())
    with model.cache_context("positive"):
        model(**one)
    with model.cache_context("negative"):
        outputs = [model(**other) for _ in range(2)]
    assert [max_difference(output, expected) for output in outputs] == [0, 0]


@pytest.mark.parametrize("lite", [False, True])
@torch.no_grad()
def test_extrapolation_covers_both_streams(lite):
    model = tiny_transformer()
    inputs, (later,) = tiny_inputs(model), steps_of(model, 1)
    expected = model(**inputs)
    calls = []
    watched = ("proj_out", "audio_proj_out") if lite else [f"transformer_blocks.1.{n}" for n in ATTENTIONS]
    model.enable_cache(TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=1, use_lite_mode=lite))
    for name in watched:
        layer = model.get_submodule(name if lite else f"{name}.to_q")
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    with model.cache_context("positive"):
        outputs = [model(**inputs) for _ in range(3)] + [model(**later)]
    assert all(hook_free.isfinite().all() for output in outputs for hook_free in output)
    assert max_difference(outputs[0], expected) == 0
    if not lite:
        # Steps 0 and 2 are computed, of every attention of both streams.
        assert sorted(calls) == sorted([*watched, *watched])
    assert max_difference(outputs[1], expected) <= 0.05
    model.disable_cache()
    assert max_difference(model(**inputs), expected) == 0


ATTENTIONS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")


# What cannot work


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (FasterCacheConfig(), "`config` is FasterCacheConfig, which does not fit .* use FirstBlockCacheConfig"),
        (TextKVCacheConfig(), "`config` is TextKVCacheConfig"),
        (None, "`config` is NoneType"),
        (FirstBlockCacheConfig(threshold=-0.1), r"`threshold` of FirstBlockCacheConfig .* is -0\.1; use 0\.05"),
        (FirstBlockCacheConfig(threshold=float("nan")), "`threshold` .* is nan"),
        (MagCacheConfig(mag_ratios=[1.0], retention_ratio=1.5), r"`retention_ratio` .* is 1\.5; use 1\.0"),
        (MagCacheConfig(mag_ratios=[1.0], max_skip_steps=-1), "`max_skip_steps` .* is -1; use 0"),
        (MagCacheConfig(calibrate=True, num_inference_steps=0), "`num_inference_steps` .* is 0; use 1"),
        (TaylorSeerCacheConfig(cache_interval=0), "`cache_interval` .* is 0; use 1"),
    ],
)
def test_configurations_that_cannot_work_are_refused(config, message):
    model = tiny_transformer()
    with pytest.raises(ValueError, match=message):
        model.enable_cache(config)
    assert not model.is_cache_enabled


def test_there_is_one_cache_at_a_time_and_something_to_skip():
    model = tiny_transformer()
    model.enable_cache(ALWAYS)
    with pytest.raises(ValueError, match=r"FirstBlockCacheConfig is enabled already; call disable_cache\(\)"):
        model.enable_cache(every_second(4))
    model.disable_cache()
    model.enable_cache(every_second(4))
    with pytest.raises(ValueError, match="this network has 1; leave it out"):
        tiny_transformer(num_layers=1).enable_cache(ALWAYS)


def test_ranks_agree_by_the_largest_change():
    # What is measured on each rank's tokens is reduced before it is compared; one process has nothing to reduce.
    memory = FirstBlockCache(0.5)
    old, new = (torch.ones(1, 2, 3), torch.ones(1, 0, 1)), (torch.full((1, 2, 3), 1.4), torch.ones(1, 0, 1))
    zero = (torch.zeros(1, 2, 3), torch.ones(1, 0, 1))
    assert memory.reused(["pass"], zero, [old]) == [None]
    memory.keep(["pass"], [old], [old])
    assert memory.reused(["pass"], zero, [new])[0] is not None
    assert memory.reused(["pass"], zero, [(new[0] * 2, new[1])]) == [None]
