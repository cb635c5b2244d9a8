"""With gradient checkpointing, what a step holds grows with the number of blocks by the inputs of a block, and no more."""

from functools import cache
from typing import Any

import pytest
import torch
from peft import LoraConfig

from ltx2_diffusers import LTX2VideoTransformer3DModel
from ltx2_diffusers.training.trained.block_streaming import BlockStreaming
from tests.models.transformer_tools import AUDIO_TOKENS, VIDEO_TOKENS, tiny_inputs, tiny_transformer
from tests.training.live_bytes import LiveBytes

# 768 x 448 pixels, 89 frames at 25 per second: 24 x 14 x 12 video tokens, 25 audio tokens a second.
TOKENS, SOUND, TEXT = 4032, 89, 1024
META = torch.device("meta")


def with_adapters(model: Any, checkpointing: bool = True) -> Any:
    model.requires_grad_(False).train()
    model.add_adapter(LoraConfig(r=32, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if checkpointing:
        model.enable_gradient_checkpointing()
    return model


def held(model: Any, inputs: dict[str, Any], backward: bool = True, slots: Any = ()) -> tuple[int, int]:
    """Bytes held between the passes, and the most at any time of a step, beside the weights."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        # Gradients are counted among the weights.
        parameter.grad = torch.zeros_like(parameter)
    count = LiveBytes([*model.parameters(), *model.buffers(), *slots, *(p.grad for p in trained)])
    with count:
        velocities = model(**inputs)
        between = count.now
        if backward:
            sum(v.float().square().mean() for v in velocities).backward()
    return between, count.peak


@cache
def small(num_layers: int, checkpointing: bool = True) -> tuple[int, int]:
    model = with_adapters(tiny_transformer(num_layers=num_layers), checkpointing)
    return held(model, tiny_inputs(model, batch_size=2))


def test_what_is_held_grows_by_block_inputs_alone():
    first, second = small(8), small(16)
    widths = 2 * 16, 2 * 8
    inputs = 2 * (VIDEO_TOKENS * widths[0] + AUDIO_TOKENS * widths[1]) * 4
    assert second[0] - first[0] == 8 * inputs
    # The first block that runs again in the backward pass finds all inputs in memory.
    assert second[1] - first[1] == 8 * inputs


@pytest.mark.quick_cases(0)
def test_without_checkpointing_all_that_blocks_make_is_held():
    first, second = small(8, False), small(16, False)
    grown, kept = second[0] - first[0], small(16)[0] - small(8)[0]
    assert grown > 20 * kept


@pytest.mark.quick_cases(0)
@pytest.mark.parametrize("num_on_device", [1, 2])
def test_streaming_holds_no_weights_for_the_backward_pass(num_on_device):
    """Weights in the places on the device that blocks share are the only ones there."""
    plain, streamed = (with_adapters(tiny_transformer(num_layers=8)) for _ in range(2))
    streaming = BlockStreaming(streamed, torch.device("cpu"), num_on_device)
    slots = [tensor for slot in streaming._slots for tensor in slot.tensors]
    assert held(streamed, tiny_inputs(streamed), slots=slots) == held(plain, tiny_inputs(plain))


# --- the geometry of the model of 19 billion parameters ---


class _Attention(torch.autograd.Function):
    """What a fused attention kernel holds for its backward pass; `meta` has none and would hold all scores."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        result = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, result)
        return result

    @staticmethod
    def backward(ctx: Any, _gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@pytest.fixture
def fused_attention(monkeypatch):
    def attend(query, key, value, *_args, **_options):
        return _Attention.apply(query, key, value)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)


def full_width(num_layers: int) -> Any:
    with META:
        model = LTX2VideoTransformer3DModel(num_layers=num_layers, rope_type="split")
    return with_adapters(torch.nn.Module.to(model, torch.bfloat16))


def full_inputs(batch_size: int = 1) -> dict[str, Any]:
    """Noise levels differ from token to token, as they do with a given first frame."""

    def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(batch_size, *shape, dtype=dtype, device=META)

    return {
        "hidden_states": tensor(TOKENS, 128),
        "audio_hidden_states": tensor(SOUND, 128),
        "encoder_hidden_states": tensor(TEXT, 3840),
        "audio_encoder_hidden_states": tensor(TEXT, 3840),
        "timestep": tensor(TOKENS, dtype=torch.float32),
        "audio_timestep": tensor(SOUND, dtype=torch.float32),
        "video_coords": tensor(3, TOKENS, 2, dtype=torch.float32),
        "audio_coords": tensor(1, SOUND, 2, dtype=torch.float32),
        "return_dict": False,
    }


def block_inputs(num_blocks: int, batch_size: int = 1) -> int:
    return num_blocks * batch_size * (TOKENS * 4096 + SOUND * 2048) * 2


@pytest.mark.quick_cases(1)
@pytest.mark.usefixtures("fused_attention")
@pytest.mark.parametrize("batch_size", [1, 2])
def test_at_full_width_a_block_costs_its_inputs(batch_size):
    (between, most), (later, most_later) = (held(full_width(n), full_inputs(batch_size)) for n in (2, 4))
    assert later - between == block_inputs(2, batch_size)
    assert most_later - most == block_inputs(2, batch_size)


@pytest.mark.slow
def test_a_step_of_the_whole_model_fits_beside_its_weights():
    """What the 48 blocks hold between the passes: 1.6 GB of inputs, and 0.6 GB that does not depend on their number."""
    between, _ = held(full_width(48), full_inputs(), backward=False)
    assert block_inputs(48) == 1_602_945_024
    assert 0 < between - block_inputs(48) < 0.6e9
