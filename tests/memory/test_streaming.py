"""Blocks that come from host memory or from their file when they run, and compute the same."""

import copy
import os
import pickle
import threading
from functools import cache

import pytest
import torch
from diffusers import GGUFQuantizationConfig
from peft import LoraConfig

from ltx2_diffusers import LTX2AVTransformer3DModel
from ltx2_diffusers.checkpoints.origin import origin_of
from ltx2_diffusers.checkpoints.packaged import packaged_checkpoint
from ltx2_diffusers.memory.lazy import LazyWeight
from ltx2_diffusers.memory.loading import load_streamed, load_streamed_language_model
from ltx2_diffusers.memory.slots import Slot
from ltx2_diffusers.memory.streaming import block_list, stop_streaming, stream_blocks, streamer_of
from tests.checkpoints.test_gguf_file import write as write_gguf
from tests.checkpoints.tiny import V20, V23
from tests.models.transformer_tools import tiny_inputs, tiny_transformer
from tests.tiny_checkpoints import tiny_checkpoint

CPU = torch.device("cpu")
BLOCKS = 5
LORA = LoraConfig(r=2, target_modules=["to_q", "ff.net.2"], init_lora_weights=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A transformer of five blocks in several shards."""
    folder = tmp_path_factory.mktemp("transformer")
    tiny_transformer("2.3", num_layers=BLOCKS).save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def resident(folder, dtype=torch.float32):
    return LTX2AVTransformer3DModel.from_pretrained(folder, dtype=dtype)


@cache
def reference(folder):
    """A resident one that nobody changes."""
    return resident(folder)


def adapted(transformer):
    torch.manual_seed(0)
    transformer.add_adapter(LORA)
    return transformer


@torch.no_grad()
def velocities(transformer, **changes):
    inputs = tiny_inputs(transformer, batch_size=2)
    inputs |= {k: v.to(transformer.dtype) for k, v in inputs.items() if k.endswith("hidden_states")}
    return transformer(**inputs | changes)


def assert_same(one, other, **changes):
    for actual, expected in zip(velocities(one, **changes), velocities(other, **changes), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["fp8_cast", "fp8_scaled_mm"])
def test_what_was_saved_in_eight_bits_is_streamed_so(folder, tmp_path, method, dtype):
    quantised = LTX2AVTransformer3DModel.from_pretrained(folder, dtype=dtype, quantization_config=method)
    quantised.save_pretrained(tmp_path)
    streamed = load_streamed(LTX2AVTransformer3DModel, tmp_path, dtype=dtype)
    layers = [type(model.transformer_blocks[2].attn1.to_q) for model in (streamed, quantised)]
    assert layers[0] is layers[1] and streamed.dtype == quantised.dtype == dtype
    assert_same(streamed, quantised)
    stop_streaming(streamed)
    assert_same(streamed, quantised)


@pytest.mark.quick_cases(2)
# bfloat16 is another type than that of the file.
@pytest.mark.parametrize(
    "num_on_device, dtype", [(1, torch.bfloat16), (2, torch.float32), (3, torch.bfloat16), (BLOCKS, torch.float32)]
)
@pytest.mark.parametrize("source", ["ram", "disk", "never read"])
def test_velocities_are_those_of_resident_weights(folder, source, num_on_device, dtype):
    expected = resident(folder, dtype)
    if source == "never read":
        streamed = load_streamed(LTX2AVTransformer3DModel, folder, dtype=dtype, num_on_device=num_on_device)
    else:
        streamed = resident(folder, dtype)
        stream_blocks(streamed, source, num_on_device=num_on_device)
    assert streamed.dtype == dtype
    for _ in range(2):
        assert_same(streamed, expected)
    assert streamer_of(streamed).on_device == []
    stop_streaming(streamed)
    assert streamer_of(streamed) is None
    assert_same(streamed, expected)
    assert all(torch.equal(a, b) for a, b in zip(streamed.parameters(), expected.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in streamed.parameters())


@pytest.mark.parametrize("path", [V20, V23], ids=["2.0", "2.3"])
def test_blocks_of_an_original_file(path):
    expected = LTX2AVTransformer3DModel.from_single_file(path)
    streamed = load_streamed(LTX2AVTransformer3DModel, path, num_on_device=1)
    assert_same(streamed, expected)
    again = LTX2AVTransformer3DModel.from_single_file(path, dtype=torch.float32)
    stream_blocks(again, "disk", num_on_device=1)
    assert_same(again, LTX2AVTransformer3DModel.from_single_file(path, dtype=torch.float32))


@pytest.mark.parametrize("source", ["ram", "disk"])
def test_passes_that_share_their_first_blocks(folder, source):
    """Several predictions of one call run some blocks once, and some once for each."""
    streamed = resident(folder)
    stream_blocks(streamed, source)
    keep = torch.ones(4, BLOCKS, 2)
    keep[0, 2] = 0
    pairs = (velocities(model, perturbation_keep_masks=[None, keep]) for model in (reference(folder), streamed))
    for expected, actual in zip(*pairs, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


def test_blocks_may_run_in_any_order(folder):
    streamed = resident(folder)
    stream_blocks(streamed, "disk")
    streamer, blocks = streamer_of(streamed), streamed.transformer_blocks
    expected = dict(reference(folder).named_parameters())
    with streamer.running():
        for index in (3, 0, 4, 4, 1, 0):
            streamer._entering(index, blocks[index], ())
            for name, parameter in blocks[index].named_parameters():
                assert not isinstance(parameter, LazyWeight)
                assert torch.equal(parameter, expected[f"transformer_blocks.{index}.{name}"])


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("source", ["ram", "disk"])
@pytest.mark.parametrize("first", [True, False], ids=["adapter first", "streaming first"])
def test_adapters_stay_beside_streamed_weights(folder, source, first):
    expected, streamed = adapted(resident(folder)), resident(folder)
    if first:
        adapted(streamed)
    stream_blocks(streamed, source)
    if not first:
        adapted(streamed)
    assert_same(streamed, expected)
    factors = {n: p for n, p in streamed.named_parameters() if "lora_" in n}
    assert factors and all(type(p) is torch.nn.Parameter for p in factors.values())
    for model in (expected, streamed):
        model.disable_adapters()
    assert_same(streamed, expected)


def test_fused_adapters_are_part_of_what_is_streamed_from_host_memory(folder):
    expected, streamed = adapted(resident(folder)), adapted(resident(folder))
    stream_blocks(streamed, "ram")
    assert_same(streamed, expected)
    for model in (expected, streamed):
        model.fuse_lora()
    assert_same(streamed, expected)


def test_files_are_never_changed_and_weights_in_them_not_either(folder):
    streamed = adapted(resident(folder))
    stream_blocks(streamed, "disk")
    with pytest.raises(ValueError, match=r"this weight cannot be changed: .* stream with source='ram'"):
        streamed.fuse_lora()
    with pytest.raises(ValueError, match="has other values in the file"):
        fused = adapted(resident(folder))
        fused.fuse_lora()
        stream_blocks(fused, "disk")


def test_an_error_within_a_block_leaves_a_model_that_runs(folder):
    streamed = resident(folder)
    stream_blocks(streamed, "disk")

    def stop(_block, _args):
        raise KeyboardInterrupt

    hook = streamed.transformer_blocks[2].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        velocities(streamed)
    hook.remove()
    assert streamer_of(streamed).on_device == []
    assert_same(streamed, reference(folder))


@pytest.mark.parametrize("source", ["ram", "disk"])
def test_few_blocks_have_their_weights_here(folder, source, monkeypatch):
    streamed, copied = resident(folder), []
    stream_blocks(streamed, source)
    streamer = streamer_of(streamed)
    original = Slot.copy
    monkeypatch.setattr(Slot, "copy", lambda slot, block: (copied.append(block), original(slot, block)))
    velocities(streamed)
    # Every block once, and no memory but that of two.
    assert [streamer._hosts.index(block) for block in copied] == list(range(BLOCKS))
    assert len(streamer._slots) == 2
    size = sum(p.numel() * 4 for p in streamed.transformer_blocks[0].parameters())
    assert size <= streamer._slots[0]._memory.numel() < 1.5 * size


def test_weights_in_a_file_take_no_memory(folder):
    streamed = load_streamed(LTX2AVTransformer3DModel, folder)
    for name, parameter in streamed.named_parameters():
        assert isinstance(parameter, LazyWeight) == name.startswith("transformer_blocks")
        assert isinstance(parameter, torch.nn.Parameter)
    weight = streamed.transformer_blocks[0].attn1.to_q.weight
    assert weight.untyped_storage().nbytes() <= 4096
    assert (weight.shape, weight.dtype, weight.device) == ((32, 32), torch.float32, CPU)
    assert torch.equal(weight, reference(folder).transformer_blocks[0].attn1.to_q.weight)
    with pytest.raises(ValueError, match="cannot be changed"):
        weight.data = torch.zeros(32, 32)
    with pytest.raises(ValueError, match="cannot be changed"), torch.no_grad():
        weight += 1


def test_what_is_streamed_can_be_saved(folder, tmp_path):
    for source in ("ram", "disk"):
        streamed = resident(folder)
        stream_blocks(streamed, source)
        streamed.save_pretrained(tmp_path / source)
        assert_same(resident(tmp_path / source), reference(folder))


def test_threads_wait_for_each_other(folder):
    streamed, found = resident(folder), []
    expected = velocities(streamed)
    stream_blocks(streamed, "disk")
    threads = [threading.Thread(target=lambda: found.append(velocities(streamed))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(torch.equal(a, b) for one in found for a, b in zip(one, expected, strict=True))


@pytest.mark.parametrize("source", ["ram", "disk"])
def test_moving_and_casting(folder, source):
    streamed = resident(folder)
    stream_blocks(streamed, source)
    assert streamed.to("cpu") is streamed and streamer_of(streamed).device == CPU
    with pytest.raises(ValueError, match=r"keeps its data type torch\.float32; call disable_block_streaming\(\)"):
        streamed.to(torch.bfloat16)
    assert {p.dtype for p in streamed.parameters()} == {torch.float32}
    assert_same(streamed, reference(folder))


def test_copies_are_refused(folder):
    streamed = resident(folder)
    stream_blocks(streamed)
    for way in (copy.deepcopy, pickle.dumps):
        with pytest.raises(ValueError, match="cannot be copied or pickled"):
            way(streamed)


def broken(folder, tmp_path, how):
    copied = tmp_path / "copy"
    copied.mkdir()
    for file in folder.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    streamed = resident(copied)
    file = sorted(copied.glob("*.safetensors"))[1]
    return streamed, file, lambda: file.unlink() if how == "gone" else os.utime(file, ns=(1, 1))


@pytest.mark.parametrize("how, said", [("gone", "is gone"), ("changed", "has changed since")])
def test_files_that_are_not_what_they_were(folder, tmp_path, how, said):
    streamed, file, breaks = broken(folder, tmp_path, how)
    stream_blocks(streamed, "disk")
    assert_same(streamed, reference(folder))
    breaks()
    with pytest.raises(ValueError, match=said) as error:
        velocities(streamed)
    assert file.name in str(error.value)


@pytest.mark.parametrize("how", ["gone", "changed"])
def test_files_that_were_lost_before(folder, tmp_path, how):
    transformer, _, breaks = broken(folder, tmp_path, how)
    breaks()
    with pytest.raises(ValueError, match=r"is gone|has changed since"):
        stream_blocks(transformer, "disk")
    assert streamer_of(transformer) is None
    assert_same(transformer, reference(folder))


def refused(folder, change, source="ram", **options):
    transformer = resident(folder)
    change(transformer)
    with pytest.raises(ValueError) as error:
        stream_blocks(transformer, source, **options)
    assert streamer_of(transformer) is None
    assert not any(isinstance(p, LazyWeight) for p in transformer.parameters())
    return str(error.value)


def test_contradictions(folder):
    nothing = lambda _: None  # noqa: E731
    assert "`source` has to be one of 'ram', 'disk' but is 'rom'" in refused(folder, nothing, "rom")
    assert "from 1 to 5, the number of blocks on the device, but is 6; use 5" in refused(
        folder, nothing, num_on_device=6
    )
    assert "but is True; use 2" in refused(folder, nothing, num_on_device=True)
    assert "cannot be used" in refused(folder, nothing, device="cuda:99")
    assert "is compiled" in refused(folder, lambda t: t.compile_repeated_blocks())
    assert "is compiled" in refused(folder, lambda t: t.compile())
    group = {"offload_type": "leaf_level"}
    assert "is offloaded" in refused(folder, lambda t: t.enable_group_offload(CPU, CPU, **group))
    cast = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.float32}
    assert "casts its layers one by one" in refused(folder, lambda t: t.enable_layerwise_casting(**cast))
    forget = lambda t: t.__dict__.pop("_weights_origin")  # noqa: E731
    assert "it is not known which files" in refused(folder, forget, "disk")
    train = lambda t: t.transformer_blocks[3].attn1.to_q.bias.data.add_(1)  # noqa: E731
    assert "transformer_blocks.3.attn1.to_q.bias has other values in the file" in refused(folder, train, "disk")
    cast_all = lambda t: t.to(torch.float16)  # noqa: E731
    stream_blocks(again := resident(folder))
    with pytest.raises(ValueError, match="are streamed already"):
        stream_blocks(again)
    # A cast is the file's value, rounded, and can be read from there.
    half = resident(folder)
    cast_all(half)
    stream_blocks(half, "disk")
    assert_same(half, resident(folder, torch.float16))


def test_compiling_afterwards_is_refused(folder):
    streamed = resident(folder)
    stream_blocks(streamed)
    streamed.transformer_blocks[1].compile(backend="eager")
    with pytest.raises(ValueError, match="block streaming and compiled blocks exclude each other"):
        velocities(streamed)


def test_weights_of_an_unknown_kind_are_refused(folder):
    class Packed(torch.nn.Parameter):
        pass

    def pack(transformer):
        layer = transformer.transformer_blocks[1].attn1.to_q
        layer._parameters["weight"] = Packed(layer.weight.data)

    assert "transformer_blocks.1.attn1.to_q.weight is a tests Packed, which cannot be streamed" in refused(
        folder, pack
    )


def test_models_without_blocks():
    with pytest.raises(ValueError, match="Linear has no list of blocks"):
        stream_blocks(torch.nn.Linear(2, 2))


def test_quantised_blocks_of_several_layouts_share_their_places():
    """As in files of which some blocks are in eight bits."""
    from ltx2_diffusers.training.trained.quantization import quantize_blocks

    pytest.importorskip("optimum.quanto")
    wide = {"attention_head_dim": 32, "cross_attention_dim": 64, "audio_attention_head_dim": 32}
    models = [tiny_transformer("2.3", num_layers=4, **wide, audio_cross_attention_dim=64) for _ in range(2)]
    for model in models:
        model.requires_grad_(False).to(torch.bfloat16)
        plain = model.transformer_blocks[2:]
        del model.transformer_blocks[2:]
        quantize_blocks(model, "int8-quanto", CPU, CPU)
        model.transformer_blocks.extend(plain)
    stream_blocks(models[0])
    assert len({host.layout for host in streamer_of(models[0])._hosts}) == 2
    assert_same(*models)


def test_weights_in_eight_bits_are_streamed_as_such():
    """A cast without scales, as of `fp8_cast`; the file has it in bfloat16."""
    transformer = LTX2AVTransformer3DModel.from_single_file(V20)
    layer = transformer.transformer_blocks[1].attn1.to_q
    layer.weight = torch.nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    expected = layer.weight.data.clone()
    for source in ("ram", "disk"):
        stream_blocks(transformer, source, num_on_device=1)
        assert layer.weight.dtype == torch.float8_e4m3fn
        with streamer_of(transformer).running():
            streamer_of(transformer)._entering(1, transformer.transformer_blocks[1], ())
            assert torch.equal(layer.weight.view(torch.uint8), expected.view(torch.uint8))
        stop_streaming(transformer)


@pytest.mark.parametrize("kind", ["block", "bf16"])
def test_packed_weights_of_a_gguf_file(tmp_path, kind):
    path = str(write_gguf(tmp_path / "x.gguf", kind, tables=False))
    packed = {"quantization_config": GGUFQuantizationConfig(compute_dtype=torch.float32), "dtype": torch.float32}
    packed |= {"config": str(tiny_checkpoint("2.0")), "subfolder": "transformer"}
    expected, streamed = (LTX2AVTransformer3DModel.from_single_file(path, **packed) for _ in range(2))
    stream_blocks(streamed)
    assert_same(streamed, expected)
    with pytest.raises(ValueError, match="is a GGUF file, whose weights are packed"):
        load_streamed(LTX2AVTransformer3DModel, path)


def language_model():
    from transformers import AutoModelForImageTextToText

    folder = packaged_checkpoint("ltx2-mini") / "text_encoder"
    return folder, AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)


@torch.no_grad()
def states(model):
    tokens = torch.arange(12)[None] % 7 + 3
    return model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states


@pytest.mark.parametrize("source", ["ram", "disk"])
def test_layers_of_a_language_model(source):
    folder, expected = language_model()
    if source == "ram":
        streamed = language_model()[1]
        stream_blocks(streamed, source, num_on_device=1)
    else:
        streamed = load_streamed_language_model(folder, dtype=torch.bfloat16, num_on_device=1)
        assert origin_of(streamed).path == folder
    assert block_list(streamed) == "model.language_model.layers"
    assert streamed.config.dtype == expected.config.dtype == streamed.dtype
    for one, other in zip(states(streamed), states(expected), strict=True):
        assert torch.equal(one, other)
    own, others = dict(streamed.named_buffers()), dict(expected.named_buffers())
    assert own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own)
    tokens = torch.arange(6)[None] + 3
    written = [model.generate(tokens, max_new_tokens=3, do_sample=False) for model in (streamed, expected)]
    assert torch.equal(*written)
    stop_streaming(streamed)
    for (name, one), (_, other) in zip(streamed.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(one, other), name


# A CPU has no streams, and its memory is not pinned.
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_on_device", [1, 2, 4])
@pytest.mark.parametrize("source", ["ram", "disk"])
def test_streaming_on_a_card_changes_nothing_but_memory(tmp_path, source, num_on_device, dtype):
    wide = {"num_layers": 12, "num_attention_heads": 16, "attention_head_dim": 64, "cross_attention_dim": 1024}
    wide |= {"audio_num_attention_heads": 16, "audio_cross_attention_dim": 128}
    tiny_transformer("2.3", **wide).save_pretrained(tmp_path)
    found = []
    for streams in (False, True):
        transformer = adapted(resident(tmp_path, dtype))
        torch.cuda.reset_peak_memory_stats()
        if streams:
            stream_blocks(transformer, source, "cuda", num_on_device)
            on_card = {p.device.type for p in transformer.transformer_blocks[-1].attn1.parameters()}
            assert on_card <= {"cpu", "cuda"}
        else:
            transformer.to("cuda")
        inputs = {k: v.cuda() if torch.is_tensor(v) else v for k, v in tiny_inputs(transformer, 2).items()}
        inputs |= {k: v.to(dtype) for k, v in inputs.items() if k.endswith("hidden_states")}
        with torch.no_grad():
            results = [[v.cpu() for v in transformer(**inputs)] for _ in range(4)]
        found.append((results, torch.cuda.max_memory_allocated()))
        del transformer
        torch.cuda.empty_cache()
    (plain, most), (streamed, least) = found
    for one, other in zip(streamed, plain, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert least < most


@pytest.mark.gpu
@pytest.mark.parametrize("source", ["ram", "disk"])
def test_a_streamed_model_moves_to_a_card_and_back(folder, source):
    expected, streamed = velocities(resident(folder)), resident(folder)
    stream_blocks(streamed, source)
    streamed.to("cuda")
    assert streamer_of(streamed).device.type == "cuda" and streamed.device.type == "cuda"
    inputs = {k: v.cuda() if torch.is_tensor(v) else v for k, v in tiny_inputs(streamed, 2).items()}
    with torch.no_grad():
        on_card = streamed(**inputs)
    for one, other in zip(on_card, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-4)
    streamed.to("cpu")
    assert_same(streamed, reference(folder))


@pytest.mark.gpu
@pytest.mark.parametrize("source", ["ram", "disk"])
def test_a_language_model_comes_to_the_card_and_goes(source):
    _, expected = language_model()
    _, streamed = language_model()
    if source == "disk":
        streamed = load_streamed_language_model(language_model()[0], dtype=torch.bfloat16)
    else:
        stream_blocks(streamed, source)
    streamed.to("cuda")
    before = torch.cuda.memory_allocated()
    tokens = (torch.arange(12)[None] % 7 + 3).cuda()
    expected.to("cuda")
    with torch.no_grad():
        one, other = (m(input_ids=tokens, output_hidden_states=True).hidden_states for m in (streamed, expected))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    del one, other, expected
    assert streamed.device.type == "cpu" and torch.cuda.memory_allocated() <= before + 2**20
