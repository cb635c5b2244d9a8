"""Blocks that come from host memory when they run."""

import pytest
import torch
from peft import LoraConfig

from ltx2_diffusers.memory.slots import Slot
from ltx2_diffusers.training.trained.block_streaming import BlockStreaming
from ltx2_diffusers.training.trained.quantization import STREAMABLE, quantize_blocks
from tests.models.transformer_tools import tiny_inputs, tiny_transformer

CPU = torch.device("cpu")
# Widths that quantised layers can be packed in.
WIDE = {
    "attention_head_dim": 32,
    "cross_attention_dim": 64,
    "audio_attention_head_dim": 32,
    "audio_cross_attention_dim": 64,
}


def model(blocks: int = 5, quantization: str | None = None, adapters_in: str = ".*"):
    transformer = tiny_transformer("2.3", num_layers=blocks, **WIDE).requires_grad_(False).train()
    if quantization:
        transformer.to(torch.bfloat16)
        quantize_blocks(transformer, quantization, CPU, CPU)
    torch.manual_seed(0)
    names = r"(to_q|ff\.net\.2|to_out\.0)"
    transformer.add_adapter(LoraConfig(r=2, target_modules=rf"transformer_blocks\.{adapters_in}\.{names}"))
    for name, parameter in transformer.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) * 0.1
    transformer.enable_gradient_checkpointing()
    return transformer


def step(transformer) -> list[torch.Tensor]:
    """Both velocities and all gradients."""
    inputs = tiny_inputs(transformer, batch_size=2)
    dtype = transformer.proj_in.weight.dtype
    inputs |= {k: v.to(dtype) for k, v in inputs.items() if k.endswith("hidden_states")}
    video, audio = transformer(**inputs)
    (video.float().square().sum() + audio.float().square().sum()).backward()
    gradients = [p.grad for p in transformer.parameters() if p.requires_grad]
    transformer.zero_grad(set_to_none=True)
    return [video.detach(), audio.detach(), *gradients]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("num_on_device", [1, 2, 3, 4])
def test_losses_and_gradients_are_those_without_streaming(num_on_device):
    plain, streamed = model(), model()
    streaming = BlockStreaming(streamed, CPU, num_on_device)
    for _ in range(2):
        for one, other in zip(step(streamed), step(plain), strict=True):
            assert torch.equal(one, other)
    assert len(streaming.on_device) == min(num_on_device, 2)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", STREAMABLE)
def test_quantised_blocks_are_streamed_alike(name):
    pytest.importorskip("optimum.quanto" if "quanto" in name else "torchao")
    plain, streamed = model(3, name), model(3, name)
    BlockStreaming(streamed, CPU, 2)
    for one, other in zip(step(streamed), step(plain), strict=True):
        assert torch.equal(one, other)


def test_trained_values_stay():
    """Steps of an optimiser between passes take effect, and no pass takes them back."""
    plain, streamed = model(), model()
    BlockStreaming(streamed, CPU, 2)
    for one in (plain, streamed):
        optimizer = torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=0.01)
        for _ in range(3):
            inputs = tiny_inputs(one)
            sum(v.square().sum() for v in one(**inputs)).backward()
            optimizer.step()
            optimizer.zero_grad()
    trained = [p for p in plain.parameters() if p.requires_grad]
    for one, other in zip(trained, (p for p in streamed.parameters() if p.requires_grad), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("num_on_device, rotating", [(1, 1), (2, 2), (4, 2)])
def test_a_block_computes_on_the_device_and_few_are_there(num_on_device, rotating):
    transformer = model()
    streaming = BlockStreaming(transformer, CPU, num_on_device)
    first = max(num_on_device - 2, 0)
    slots = {id(tensor) for slot in streaming._slots for tensor in slot.tensors}
    seen, order = [], []

    def watch(index):
        def hook(block, _args):
            order.append(index)
            seen.append((index - first in streaming.on_device, len(streaming.on_device)))
            assert all(id(p) in slots for p in block.parameters() if not p.requires_grad)

        return hook

    for index, block in enumerate(transformer.transformer_blocks):
        if index >= first:
            block.register_forward_pre_hook(watch(index))
    step(transformer)
    streamed = list(range(first, 5))
    assert order == streamed + streamed[::-1]
    assert all(here for here, _ in seen)
    assert max(count for _, count in seen) == rotating
    # Memory on the device is that of the slots, however many blocks there are.
    assert len(streaming._slots) == rotating


def test_copies_are_as_few_as_can_be(monkeypatch):
    transformer, filled = model(), []
    streaming = BlockStreaming(transformer, CPU, 2)
    original = Slot.fill
    monkeypatch.setattr(Slot, "fill", lambda s, i, b: (filled.append(i), original(s, i, b)))
    step(transformer)
    # Up to the last, which stays, as does the one before it; back to the first, which stays for the next step.
    assert filled == [0, 1, 2, 3, 4, 2, 1, 0]
    step(transformer)
    assert filled[8:] == [2, 3, 4, 2, 1, 0]
    with torch.no_grad():
        filled.clear()
        for _ in range(2):
            transformer(**tiny_inputs(transformer))
    assert filled == [2, 3, 4, 0, 1, 2, 3, 4, 0]
    assert sorted(streaming.on_device) == [0, 4]


def test_adapters_may_be_on_some_blocks_only():
    plain, streamed = model(adapters_in="[13]"), model(adapters_in="[13]")
    BlockStreaming(streamed, CPU, 2)
    for one, other in zip(step(streamed), step(plain), strict=True):
        assert torch.equal(one, other)


def test_data_parallelism_leaves_host_memory_alone():
    transformer = model()
    network = torch.nn.ModuleDict({"front": transformer, "other": torch.nn.Linear(2, 2)})
    BlockStreaming(transformer, CPU, 3).leave_out_of_ddp(network)
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    streamed = {name for name in frozen if name.startswith("front.transformer_blocks.") and name.split(".")[2] != "0"}
    assert set(network._ddp_params_and_buffers_to_ignore) == streamed


def test_impossible_streaming_is_refused():
    transformer = model()
    for number, nearest in ((0, 1), (5, 4), (-1, 1)):
        with pytest.raises(ValueError, match=f"has to be from 1 to 4, .* but is {number}; use {nearest}, or 0"):
            BlockStreaming(transformer, CPU, number)
    transformer.disable_gradient_checkpointing()
    with pytest.raises(ValueError, match=r"needs `optimization\.enable_gradient_checkpointing: true`"):
        BlockStreaming(transformer, CPU, 2)
    transformer.enable_gradient_checkpointing()
    BlockStreaming(transformer, CPU, 2)
    transformer.disable_gradient_checkpointing()
    with pytest.raises(ValueError, match="block streaming needs gradient checkpointing"):
        step(transformer)
    with torch.no_grad():
        transformer(**tiny_inputs(transformer))


@pytest.mark.gpu
@pytest.mark.parametrize("quantization", [None, "torchao-int8", "int8-quanto"])
@pytest.mark.parametrize("num_on_device", [1, 2, 4])
def test_streaming_on_a_card_changes_nothing_but_memory(num_on_device, quantization):
    """Copies run beside the computation, into memory that the block before has just used."""
    cuda = torch.device("cuda")
    wide = {"num_layers": 12, "num_attention_heads": 16, "attention_head_dim": 64, "cross_attention_dim": 1024}
    wide |= {"audio_num_attention_heads": 16, "audio_cross_attention_dim": 128}
    found = []
    for streams in (False, True):
        transformer = tiny_transformer("2.3", **wide).requires_grad_(False).train().to(torch.bfloat16)
        if quantization:
            quantize_blocks(transformer, quantization, cuda, CPU)
        torch.manual_seed(0)
        transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "ff.net.2"]))
        for name, parameter in transformer.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape) * 0.1
        transformer.enable_gradient_checkpointing()
        torch.cuda.reset_peak_memory_stats()
        if streams:
            BlockStreaming(transformer, cuda, num_on_device)
        else:
            transformer.to(cuda)
        inputs = {k: v.to(cuda) if torch.is_tensor(v) else v for k, v in tiny_inputs(transformer, 2).items()}
        inputs |= {k: v.to(torch.bfloat16) for k, v in inputs.items() if k.endswith("hidden_states")}
        results = []
        for _ in range(3):
            velocities = transformer(**inputs)
            sum(v.float().square().mean() for v in velocities).backward()
            gradients = [p.grad for p in transformer.parameters() if p.requires_grad]
            results += [t.detach().float().cpu() for t in (*velocities, *gradients)]
            transformer.zero_grad(set_to_none=True)
        found.append((results, torch.cuda.max_memory_allocated()))
        del transformer, inputs, velocities, gradients
        torch.cuda.empty_cache()
    (plain, most), (streamed, least) = found
    for one, other in zip(streamed, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert least < most
