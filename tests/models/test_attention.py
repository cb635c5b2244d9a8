"""Attention and feed-forward layers: hand-computed values, parity with diffusers, options, refused input."""

import pytest
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention import FeedForward as DiffusersFeedForward
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from diffusers.models.transformers.transformer_ltx2 import LTX2Attention as DiffusersAttention
from diffusers.models.transformers.transformer_ltx2 import LTX2PerturbedAttnProcessor

from ltx2_diffusers.models import attention
from ltx2_diffusers.models.attention import FeedForward, GELUProjection, LTX2Attention, LTX2AttnProcessor
from ltx2_diffusers.models.rope import ROPE_TYPES, rotary_tables
from tests.golden_data import assert_within


def make_pair(context_dim: int | None = None, **options):
    ours = LTX2Attention(24, 4, 8, context_dim, **options)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
    theirs = DiffusersAttention(
        24, 4, 4, 8, cross_attention_dim=context_dim, processor=LTX2PerturbedAttnProcessor(), **options
    )
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("rope_type", ROPE_TYPES)
@pytest.mark.parametrize("gated", [False, True])
def test_self_attention_equals_diffusers(rope_type, gated):
    ours, theirs = make_pair(rope_type=rope_type, apply_gated_attention=gated)
    x, mask = torch.randn(2, 5, 24), torch.randn(2, 5, 5)
    tables = rotary_tables(torch.rand(2, 5, 1), 32, 4, rope_type)
    assert_within(ours(x, None, mask, tables), theirs(x, None, mask, tables), "equal layers")


def test_cross_attention_equals_diffusers_and_takes_masks_of_any_rank():
    ours, theirs = make_pair(10, rope_type="split")
    x, context, mask = torch.randn(2, 5, 24), torch.randn(2, 3, 10), torch.randn(2, 1, 3)
    tables = [rotary_tables(torch.rand(2, n, 1), 32, 4) for n in (5, 3)]
    expected = theirs(x, context, mask, *tables)
    assert_within(ours(x, context, mask, *tables), expected, "equal layers")
    assert_within(ours(x, context, mask[:, None], *tables), expected, "equal layers")


def test_perturbed_values_pass_through():
    ours, theirs = make_pair(apply_gated_attention=True)
    x, keep = torch.randn(2, 5, 24), torch.tensor([0.0, 1.0])[:, None, None]
    expected = theirs(x, perturbation_mask=keep)
    mixed = ours(x, perturbation_mask=keep)
    assert_within(mixed, expected, "equal layers")
    torch.testing.assert_close(mixed[1], ours(x)[1])
    torch.testing.assert_close(mixed[0], ours(x, all_perturbed=True)[0])


def test_one_key_gives_its_value_whatever_the_scores():
    layer = LTX2Attention(8, 2, 4)
    x = torch.randn(1, 1, 8)
    torch.testing.assert_close(layer(x), layer.to_out[0](layer.to_v(x)))


def test_gates_of_zero_logits_change_nothing():
    gated, plain = LTX2Attention(8, 2, 4, apply_gated_attention=True), LTX2Attention(8, 2, 4)
    plain.load_state_dict(gated.state_dict(), strict=False)
    torch.nn.init.zeros_(gated.to_gate_logits.weight)
    torch.nn.init.zeros_(gated.to_gate_logits.bias)
    x = torch.randn(1, 3, 8)
    torch.testing.assert_close(gated(x), plain(x))


@pytest.mark.parametrize("context_dim", [None, 10])
def test_fused_projections_give_the_same(context_dim):
    layer, _ = make_pair(context_dim)
    x = torch.randn(1, 3, 24)
    context = None if context_dim is None else torch.randn(1, 4, context_dim)
    with torch.no_grad():
        expected = layer(x, context)
        layer.fuse_projections()
        assert hasattr(layer, "to_qkv" if context is None else "to_kv")
        assert_within(layer(x, context), expected, "equal layers")
        layer.unfuse_projections()
        assert torch.equal(layer(x, context), expected)


def test_a_custom_processor_replaces_the_computation():
    class Zeros(LTX2AttnProcessor):
        def __call__(self, _, hidden_states, *__):
            return torch.zeros_like(hidden_states)

    layer = LTX2Attention(8, 2, 4)
    layer.set_processor(Zeros())
    assert not layer(torch.randn(1, 3, 8)).any()


class FakeQuery:
    """Stands for a tensor on a device that this machine may not have."""

    is_cuda, device = True, "cuda"

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        self.dtype = dtype


@pytest.mark.parametrize(
    "flash, xformers, capability, expected",
    [
        (True, True, (9, 0), AttentionBackendName._FLASH_3),
        (True, True, (8, 0), AttentionBackendName.XFORMERS),
        (True, False, (8, 0), None),
        (False, True, (9, 0), AttentionBackendName.XFORMERS),
        (False, False, (9, 0), None),
    ],
)
@torch.no_grad()
def test_order_of_preferred_kernels(monkeypatch, flash, xformers, capability, expected):
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_FLASH_ATTN_3", flash)
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_XFORMERS_ATTN", xformers)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert attention.preferred_backend(FakeQuery(), None) == expected
    assert attention.preferred_backend(FakeQuery(), torch.zeros(1)) is None
    assert attention.preferred_backend(FakeQuery(torch.float32), None) is None
    assert attention.preferred_backend(torch.zeros(1), None) is None
    with attention_backend("_native_math"):
        assert attention.preferred_backend(FakeQuery(), None) is None


@pytest.mark.parametrize("activation", ["gelu", "gelu-approximate"])
@pytest.mark.parametrize("bias", [False, True])
def test_feed_forward_equals_diffusers(activation, bias):
    ours = FeedForward(6, activation, bias)
    theirs = DiffusersFeedForward(6, activation_fn="gelu-approximate", bias=bias)
    theirs.load_state_dict(ours.state_dict())
    theirs.net[0].approximate = "tanh" if activation == "gelu-approximate" else "none"
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(ours(x), theirs(x))


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"activation_fn must be one of .* got 'swiglu'"):
        GELUProjection(4, 8, "swiglu")
