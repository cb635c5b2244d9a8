"""Normalized attention guidance: the formula by hand, and what it costs and changes in the transformer."""

from collections import Counter

import pytest
import torch

from ltx2_diffusers.models.attention import LTX2AttnProcessor
from ltx2_diffusers.models.negative_text import NagWeights, NegativeText, normalized_attention_guidance
from ltx2_diffusers.models.text_cache import TextCache
from tests.golden_data import EQUAL_MODELS

from .transformer_tools import max_difference, tiny_inputs, tiny_transformer

POSITIVE, NEGATIVE = torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[1.0, 2.0]]])
WEIGHTS = NagWeights(scale=4.0)


def guided(scale: float, tau: float, alpha: float, positive=POSITIVE, negative=NEGATIVE) -> list[float]:
    return normalized_attention_guidance(positive, negative, NagWeights(scale, tau, alpha)).flatten().tolist()


def negative_text(inputs, weights=WEIGHTS, cache=None, shift=0.5) -> NegativeText:
    video, audio = (inputs[f"{prefix}encoder_hidden_states"] for prefix in ("", "audio_"))
    return NegativeText(video.flip(1) + shift, audio.flip(1) + shift, weights, cache)


def test_values_are_pushed_away_from_the_negative_ones():
    # 2 * (3, 1) - 1 * (1, 2) = (5, 0), whose L1 norm 5 is within 2.5 * 4.
    assert guided(2.0, 2.5, 1.0) == [5.0, 0.0]
    # A quarter of it and three quarters of (3, 1).
    assert guided(2.0, 2.5, 0.25) == [3.5, 0.75]


def test_long_values_are_cut_to_tau_times_the_positive_length():
    # 5 * (3, 1) - 4 * (1, 2) = (11, -3): norm 14, allowed 2 * 4 = 8.
    assert guided(5.0, 2.0, 1.0) == pytest.approx([11 * 8 / 14, -3 * 8 / 14])
    # Every token has its own length: the second one, twice as long, is twice the first.
    both = guided(5.0, 2.0, 1.0, torch.cat([POSITIVE, 2 * POSITIVE], 1), torch.cat([NEGATIVE, 2 * NEGATIVE], 1))
    assert both[2:] == pytest.approx([2 * value for value in both[:2]])


def test_neutral_weights_and_empty_values():
    assert guided(1.0, 2.5, 1.0) == POSITIVE.flatten().tolist()
    assert guided(5.0, 2.5, 0.0) == POSITIVE.flatten().tolist()
    zero = torch.zeros_like(POSITIVE)
    assert guided(5.0, 2.5, 0.5, zero, zero) == [0.0, 0.0]
    assert guided(5.0, 2.5, 0.5, zero, NEGATIVE) == [0.0, 0.0]


def test_half_precision_is_computed_in_float32():
    positive, negative = (tensor.bfloat16() + 0.01 for tensor in (POSITIVE, NEGATIVE))
    result = normalized_attention_guidance(positive, negative, WEIGHTS)
    expected = normalized_attention_guidance(positive.float(), negative.float(), WEIGHTS)
    assert result.dtype == torch.bfloat16 and torch.equal(result, expected.bfloat16())


class CountingProcessor(LTX2AttnProcessor):
    """Counts attentions by the shape of their keys."""

    def __init__(self, counts: Counter) -> None:
        self.counts = counts

    def _attend(self, attn, query, key, *rest):
        self.counts["text" if attn.is_text else "other"] += 1
        return super()._attend(attn, query, key, *rest)


def counted(model) -> Counter:
    counts = Counter()
    model.set_attn_processor(CountingProcessor(counts))
    for name, module in model.named_modules():
        module.is_text = name.endswith("attn2")
    return counts


@pytest.mark.parametrize("layout", ["2.0", "2.3"])
@torch.no_grad()
def test_only_the_attention_to_the_text_runs_twice(layout):
    model = tiny_transformer(layout)
    inputs, counts = tiny_inputs(model), counted(model)
    plain = model(**inputs)
    without = dict(counts)
    counts.clear()
    changed = model(**inputs, negative_text=negative_text(inputs))
    assert counts == {"text": 2 * without["text"], "other": without["other"]}
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(plain, changed))


@pytest.mark.parametrize("layout", ["2.0", "2.3"])
@torch.no_grad()
def test_the_same_text_as_negative_changes_nothing(layout):
    model = tiny_transformer(layout)
    inputs = tiny_inputs(model)
    same = NegativeText(inputs["encoder_hidden_states"], inputs["audio_encoder_hidden_states"], WEIGHTS)
    assert max_difference(model(**inputs, negative_text=same), model(**inputs)) <= EQUAL_MODELS


@pytest.mark.parametrize("layout", ["2.0", "2.3"])
@torch.no_grad()
def test_rows_of_a_batch_equal_single_runs(layout):
    model = tiny_transformer(layout)
    inputs = tiny_inputs(model, 2)
    negative = negative_text(inputs)
    together = model(**inputs, negative_text=negative)
    for row in range(2):
        single = {k: v[row : row + 1] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        own = negative._replace(video=negative.video[row : row + 1], audio=negative.audio[row : row + 1])
        alone = model(**single, negative_text=own)
        assert max_difference([stream[row : row + 1] for stream in together], alone) <= EQUAL_MODELS


@pytest.mark.parametrize(
    ("layout", "overrides", "projections"),
    [("2.0", {}, 1), ("2.3", {}, 2), ("2.3", {"use_prompt_adaln_single": False}, 1)],
)
@torch.no_grad()
def test_the_negative_text_is_projected_once_per_prompt(layout, overrides, projections):
    model = tiny_transformer(layout, **overrides)
    inputs = tiny_inputs(model)
    negative = negative_text(inputs)
    expected = model(**inputs, negative_text=negative)
    calls = []
    model.transformer_blocks[1].attn2.to_k.register_forward_hook(lambda *_: calls.append(1))
    cached = negative._replace(cache=TextCache())
    for _ in range(2):
        assert max_difference(model(**inputs, text_cache=TextCache(), negative_text=cached), expected) == 0
    # The positive text is new each time.
    assert len(calls) == 2 + projections


@torch.no_grad()
def test_all_predictions_of_a_call_are_guided():
    model = tiny_transformer()
    inputs = tiny_inputs(model)
    negative = negative_text(inputs)
    keep = torch.ones(4, 3, 1)
    keep[:2, 1] = 0
    both = model(**inputs, negative_text=negative, perturbation_keep_masks=[None, keep])
    for outputs, mask in zip(both, (None, keep)):
        alone = model(**inputs, negative_text=negative, perturbation_keep_masks=mask)
        assert max_difference(outputs, alone) <= EQUAL_MODELS


def test_guidance_goes_through_gradient_checkpointing():
    model = tiny_transformer()
    inputs = tiny_inputs(model)
    negative = negative_text(inputs)
    with torch.no_grad():
        expected = model(**inputs, negative_text=negative)
    model.enable_gradient_checkpointing()
    model.train()
    outputs = model(**inputs, negative_text=negative)
    assert max_difference([stream.detach() for stream in outputs], expected) <= EQUAL_MODELS
    outputs[0].sum().backward()
    assert model.transformer_blocks[0].attn2.to_k.weight.grad.abs().max() > 0


@torch.no_grad()
def test_negative_text_of_another_batch_is_refused():
    model = tiny_transformer()
    inputs = tiny_inputs(model, 2)
    negative = negative_text(inputs)
    with pytest.raises(ValueError, match="negative_text needs audio features for 2 samples, got None"):
        model(**inputs, negative_text=negative._replace(audio=None))
    with pytest.raises(ValueError, match=r"needs video features for 2 samples, got \(1, 6, 12\)"):
        model(**inputs, negative_text=negative._replace(video=negative.video[:1]))
