"""Fused adapters leave the weights as they were, to the bit: by a copy, from the file, and after a failure on the way."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from accelerate import cpu_offload
from peft.tuners.lora import LoraLayer

from ltx2_diffusers import LTX2Pipeline, packaged_checkpoint
from ltx2_diffusers.adapters.active import adapted_models, adapter_layers
from ltx2_diffusers.models.transformer import LTX2AVTransformer3DModel
from ltx2_diffusers.quantization.configs import FP8ScaledMMConfig
from tests.adapters.stored import SCALED_FILE, bits, changed, stored_as, velocity
from tests.adapters.test_variants import variant
from tests.adapters.tiny import Q, assert_equal, build, largest, lora, outputs, settings
from tests.checkpoints.tiny import V20
from tests.golden_loras import ORIGINAL, SECOND, WIDE

# The arithmetic of both halves is the same, and layerwise casting stores what fp8_cast does.
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in (torch.float16, "layerwise")]
KINDS = [torch.bfloat16, torch.float32, "fp8_cast", "fp8_scaled_mm", *SLOW]
K = "transformer_blocks.1.attn2.to_k"
GATE = "transformer_blocks.0.attn2.to_v"
EVERYWHERE = lora() | lora(K) | lora("text_proj_in", 0, (8, 24), "connectors.")


def loaded(kind, first=None, second=None) -> LTX2Pipeline:
    """A pipeline with two active adapters, which share a layer."""
    pipe = stored_as(kind)
    pipe.load_lora_weights(dict(EVERYWHERE) if first is None else first, adapter_name="wide")
    pipe.load_lora_weights(lora(seed=1) | lora(GATE) if second is None else second, adapter_name="second")
    pipe.set_adapters(["wide", "second"], [0.7, {"transformer": {"transformer_blocks.0": -0.5}}])
    return pipe


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_all_weights_come_back(kind):
    pipe = loaded(kind, WIDE, SECOND)
    before, strengths = bits(pipe), settings(pipe)
    for _ in range(2):
        pipe.fuse_lora()
        fused = changed(bits(pipe), before)
        assert len(fused) >= 100 and any(name.startswith("connectors.") for name in fused)
        pipe.unfuse_lora()
        assert changed(bits(pipe), before) == []
        assert settings(pipe) == strengths and pipe.fused_loras == set()


@pytest.mark.parametrize("kind", [torch.bfloat16, "fp8_cast", "fp8_scaled_mm"], ids=str)
def test_one_after_the_other_is_both_at_once(kind):
    pipe = loaded(kind)
    before = bits(pipe)
    pipe.fuse_lora()
    at_once = bits(pipe)
    pipe.unfuse_lora()
    for name in ("second", "wide"):
        pipe.fuse_lora(adapter_names=[name])
    assert changed(bits(pipe), before)
    if kind == torch.bfloat16:
        # The order of a sum in float32 is lost in the rounding of nearly all weights.
        now = bits(pipe)
        differ = sum((tensor != now[name]).sum().item() for name, tensor in at_once.items())
        assert differ < 1e-3 * sum(map(torch.numel, before.values()))
    pipe.unfuse_lora()
    assert changed(bits(pipe), before) == []


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("kind", [torch.bfloat16, "fp8_scaled_mm", torch.float32], ids=str)
@pytest.mark.parametrize("fused_before", [False, True])
@pytest.mark.parametrize("keep", [True, False])
def test_a_failure_on_the_way_changes_nothing(kind, fused_before, keep, monkeypatch):
    pipe = loaded(kind)
    if not keep:
        reread(pipe)
    if fused_before:
        pipe.fuse_lora(adapter_names=["second"], keep_originals=keep)
    before, strengths, names = bits(pipe), settings(pipe), pipe.fused_loras
    extend, seen = list.extend, []

    class Full(list):
        def extend(self, names):
            seen.append(names)
            if len(seen) == 3:
                raise MemoryError("no more memory")
            extend(self, names)

    for layer in adapter_layers(pipe):
        monkeypatch.setattr(layer, "merged_adapters", Full(layer.merged_adapters))
    with pytest.raises(MemoryError, match="no more memory"):
        pipe.fuse_lora(adapter_names=["wide"], keep_originals=keep)
    assert changed(bits(pipe), before) == []
    assert settings(pipe) == strengths and pipe.fused_loras == names


def reread(pipe: LTX2Pipeline) -> None:
    """Let a pipeline of parts know the file that they are from, as one that is loaded from a file does."""
    pipe.register_to_config(_name_or_path=str(V20))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.quick_cases(2)
def test_weights_that_are_not_kept_are_read_from_the_file(kind):
    pipe = loaded(kind)
    reread(pipe)
    before = bits(pipe)
    pipe.fuse_lora(keep_originals=False)
    assert changed(bits(pipe), before)
    pipe.unfuse_lora()
    assert changed(bits(pipe), before) == []


def test_scales_are_read_from_the_file_too():
    transformer = LTX2AVTransformer3DModel.from_single_file(
        SCALED_FILE, torch_dtype=torch.bfloat16, quantization_config=FP8ScaledMMConfig()
    )
    pipe = build(torch.bfloat16, transformer=transformer)
    pipe.register_to_config(_name_or_path=str(SCALED_FILE))
    pipe.load_lora_weights(ORIGINAL)
    before = bits(pipe)
    pipe.fuse_lora(keep_originals=False)
    assert any(name.endswith("weight_scale") for name in changed(bits(pipe), before))
    pipe.unfuse_lora()
    assert changed(bits(pipe), before) == []


def test_a_folder_is_read_as_well():
    absent = dict.fromkeys(("scheduler", "vae", "audio_vae", "text_encoder", "tokenizer", "vocoder"))
    pipe = LTX2Pipeline.from_pretrained(packaged_checkpoint("ltx2-mini"), dtype=torch.bfloat16, **absent)
    layer = pipe.transformer.get_submodule(Q)
    pipe.load_lora_weights(lora(sizes=(layer.out_features, layer.in_features)))
    before = bits(pipe)
    pipe.fuse_lora(keep_originals=False)
    assert changed(bits(pipe), before) == [f"transformer.{Q}.weight"]
    pipe.unfuse_lora()
    assert changed(bits(pipe), before) == []


def test_a_later_call_may_free_the_copy():
    pipe = loaded(torch.bfloat16)
    reread(pipe)
    before = bits(pipe)
    pipe.fuse_lora(adapter_names=["wide"])
    pipe.fuse_lora(adapter_names=["second"], keep_originals=False)
    copies = [vars(layer)["unmerge"].is_kept for layer in adapter_layers(pipe) if layer.merged]
    assert copies and copies.count(True) < len(copies)
    pipe.unfuse_lora()
    assert changed(bits(pipe), before) == []


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("lost", ["nowhere", "gone", "other weights"])
def test_weights_that_cannot_be_read_again_stay_fused(lost, tmp_path):
    pipe = loaded(torch.bfloat16)
    for model in adapted_models(pipe).values():
        # As one that was built from tensors.
        del model.__dict__["_weights_origin"]
    if lost == "gone":
        pipe.register_to_config(_name_or_path=str(tmp_path / "gone"))
    elif lost == "other weights":
        reread(pipe)
        with torch.no_grad():
            pipe.transformer.get_submodule(K).base_layer.weight.mul_(2)
    pipe.fuse_lora(keep_originals=False)
    fused = bits(pipe)
    message = {
        "nowhere": "not kept, and where they were loaded from is not known; load the model anew, or fuse with keep_originals",
        "gone": "gone' is no file or folder here; load the model anew",
        "other weights": rf"not kept, and {K}\.weight in .* is another than the adapters were fused into",
    }[lost]
    for change in (pipe.unfuse_lora, pipe.disable_lora):
        with pytest.raises(ValueError, match=message):
            change()
        assert changed(bits(pipe), fused) == [] and pipe.fused_loras == {"wide", "second"}
    pipe.unload_lora_weights()
    assert changed(bits(pipe), fused) == []


def test_disabling_takes_fused_adapters_out():
    pipe = build(torch.bfloat16)
    base = bits(pipe)
    pipe.load_lora_weights(dict(EVERYWHERE))
    pipe.fuse_lora()
    pipe.disable_lora()
    assert changed(bits(pipe), base) == [] and pipe.fused_loras == set()
    pipe.enable_lora()
    pipe.fuse_lora()
    assert changed(bits(pipe), base)


def test_the_model_itself_unfuses_to_the_bit():
    """diffusers' methods of the models, and PEFT's layers, which take adapters out that are disabled."""
    pipe = build(torch.bfloat16)
    base = bits(pipe)
    pipe.load_lora_weights(dict(EVERYWHERE))
    pipe.fuse_lora()
    for model in (pipe.transformer, pipe.connectors):
        model.unfuse_lora()
    assert changed(bits(pipe), base) == [] and pipe.fused_loras == set()
    pipe.transformer.fuse_lora()
    with pytest.raises(ValueError, match=r"the model's own fuse_lora\(\) fused \['default_0'\]; call unfuse_lora\(\)"):
        pipe.fuse_lora()
    pipe.unfuse_lora()
    pipe.fuse_lora()


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("kind", [torch.bfloat16, "fp8_cast", "fp8_scaled_mm"], ids=str)
def test_copies_know_their_own_weights(kind, copied):
    pipe = stored_as(kind)
    base = bits(pipe)
    pipe.load_lora_weights(dict(EVERYWHERE))
    pipe.fuse_lora()
    fused = bits(pipe)
    twin = copied(pipe.transformer)
    other = build(torch.bfloat16, transformer=twin, connectors=pipe.connectors)
    other.unfuse_lora(components=["transformer"])
    assert [n for n in changed(bits(other), base) if n.startswith("transformer.")] == []
    assert changed(bits(pipe), fused) == []


def test_pipelines_that_share_models_share_what_is_fused():
    pipe = build(torch.bfloat16)
    base = bits(pipe)
    pipe.load_lora_weights(dict(EVERYWHERE))
    pipe.fuse_lora()
    other = LTX2Pipeline(**pipe.components)
    assert other.fused_loras == {"default_0"}
    other.unfuse_lora()
    assert changed(bits(pipe), base) == [] and pipe.fused_loras == set()


def test_unloading_drops_the_copy():
    pipe = build(torch.bfloat16)
    pipe.load_lora_weights(dict(EVERYWHERE))
    pipe.fuse_lora()
    fused = bits(pipe)
    copies = [weakref.ref(vars(layer)["unmerge"]) for layer in adapter_layers(pipe)]
    gc.disable()
    try:
        pipe.unload_lora_weights()
        assert [ref for ref in copies if ref() is not None] == []
    finally:
        gc.enable()
    assert changed(bits(pipe), fused) == []


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("kind", ["dora", "bias"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("safe", [False, True])
def test_variants_come_back_too(kind, dtype, safe):
    pipe = build(dtype)
    pipe.load_lora_weights(variant(kind) | variant(kind, K), adapter_name="variant")
    pipe.load_lora_weights(dict(EVERYWHERE), adapter_name="plain")
    pipe.set_adapters(["plain", "variant"], 0.5)
    before, stored = bits(pipe), {n: p.data_ptr() for n, p in pipe.transformer.named_parameters()}
    for together in (True, False):
        for names in [["plain", "variant"]] if together else [["plain"], ["variant"]]:
            pipe.fuse_lora(adapter_names=names, safe_fusing=safe)
        assert f"transformer.{Q}.weight" in changed(bits(pipe), before)
        assert (f"transformer.{Q}.bias" in changed(bits(pipe), before)) == (kind == "bias")
        assert {n: p.data_ptr() for n, p in pipe.transformer.named_parameters()} == stored
        pipe.unfuse_lora()
        assert changed(bits(pipe), before) == []


def sequential(pipe: LTX2Pipeline) -> None:
    # The pipeline's own method asks for an accelerator; these are the hooks that it sets.
    for model in (pipe.transformer, pipe.connectors):
        cpu_offload(model, torch.device("cpu"))


def whole_models(pipe: LTX2Pipeline) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def groups(pipe: LTX2Pipeline) -> None:
    for model in (pipe.transformer, pipe.connectors):
        model.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("offloaded", [sequential, groups, whole_models])
@pytest.mark.parametrize("kind", [torch.float32, "fp8_scaled_mm"], ids=str)
def test_offloaded_weights_are_fused_where_they_are_kept(offloaded, kind):
    pipe, plain = stored_as(kind), stored_as(kind)
    for one in (pipe, plain):
        one.load_lora_weights(dict(EVERYWHERE))
    offloaded(pipe)
    results = []
    for change in ("fuse_lora", "unfuse_lora"):
        for one in (pipe, plain):
            getattr(one, change)()
        results.append(outputs(plain) if kind == torch.float32 else {"velocity": velocity(plain)})
        assert_equal(outputs(pipe) if kind == torch.float32 else {"velocity": velocity(pipe)}, results[-1])
    assert any(not torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())


def test_weights_on_disk_are_not_touched(tmp_path):
    pipe = build()
    pipe.load_lora_weights(dict(EVERYWHERE))
    pipe.transformer.enable_group_offload(
        torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level", offload_to_disk_path=str(tmp_path)
    )
    with pytest.raises(
        ValueError, match=r"group offloading keeps on disk.*fuse first, then call enable_group_offload"
    ):
        pipe.fuse_lora()
    assert pipe.fused_loras == set()


def test_dora_is_not_fused_where_its_lengths_are_unknown():
    pipe = build()
    pipe.load_lora_weights(variant("dora"))
    sequential(pipe)
    with pytest.raises(ValueError, match="DoRA cannot be fused into weights under sequential offloading"):
        pipe.fuse_lora()


def test_fused_weights_keep_their_place():
    """So that a tensor that something else holds, such as a pinned copy, is the one that changes."""
    pipe = build(torch.bfloat16)
    pipe.load_lora_weights(dict(EVERYWHERE))
    weight = pipe.transformer.get_submodule(Q).base_layer.weight
    place = weight.data_ptr()
    pipe.fuse_lora()
    assert (weight.data_ptr(), weight is pipe.transformer.get_submodule(Q).base_layer.weight) == (place, True)
    assert isinstance(pipe.transformer.get_submodule(Q), LoraLayer)


def test_a_fused_pipeline_computes_what_it_did_before():
    pipe = build()
    pipe.load_lora_weights(WIDE)
    expected = outputs(pipe)
    pipe.fuse_lora(keep_originals=False)
    pipe.unload_lora_weights()
    assert largest(outputs(pipe), expected) < 2e-5


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("keep", [True, False])
def test_all_weights_come_back_on_a_gpu(kind, keep):
    pipe = loaded(kind)
    reread(pipe)
    for model in (pipe.transformer, pipe.connectors):
        model.to("cuda")
    before = bits(pipe)
    pipe.fuse_lora(keep_originals=keep)
    assert changed(bits(pipe), before)
    pipe.unfuse_lora()
    assert changed(bits(pipe), before) == []


@pytest.mark.gpu
def test_groups_that_come_by_a_stream_are_fused_in_host_memory():
    pipe, plain = build(), build()
    for one in (pipe, plain):
        one.load_lora_weights(dict(EVERYWHERE))
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    for model in (pipe.transformer, pipe.connectors):
        model.enable_group_offload(cuda, cpu, offload_type="leaf_level", use_stream=True)
    for one in (pipe, plain):
        one.fuse_lora()
    assert changed(bits(pipe), bits(plain)) == []
    pipe.unfuse_lora()
    plain.unfuse_lora()
    assert changed(bits(pipe), bits(plain)) == []


# bfloat16 between the file and float8 would be a second rounding, and the scaled file is read through it.
@pytest.mark.parametrize(
    "file, config, dtype",
    [
        (V20, "fp8_cast", torch.float32),
        (V20, "fp8_scaled_mm", torch.bfloat16),
        (SCALED_FILE, "fp8_cast", torch.float32),
        (SCALED_FILE, "fp8_scaled_mm", torch.float32),
        (SCALED_FILE, None, torch.bfloat16),
    ],
)
@pytest.mark.quick_cases(2)
def test_models_that_were_loaded_on_their_own_know_their_file(file, config, dtype):
    load = LTX2AVTransformer3DModel.from_single_file
    pipe = build(dtype, transformer=load(file, torch_dtype=dtype, quantization_config=config))
    pipe.load_lora_weights(dict(EVERYWHERE))
    before = bits(pipe)
    pipe.fuse_lora(keep_originals=False)
    assert changed(bits(pipe), before)
    pipe.unfuse_lora()
    assert changed(bits(pipe), before) == []


@pytest.mark.parametrize("config", ["fp8_cast", "fp8_scaled_mm"])
def test_what_was_rounded_once_from_a_folder_is_rounded_so_again(config, tmp_path):
    transformer = LTX2AVTransformer3DModel.from_single_file(V20)
    with torch.no_grad():
        for parameter in transformer.parameters():
            # Values that two roundings lead elsewhere than one.
            parameter.mul_(1.0009765625 * 1.03)
    transformer.save_pretrained(tmp_path, variant="own")
    load = LTX2AVTransformer3DModel.from_pretrained
    quantised = load(tmp_path, torch_dtype=torch.bfloat16, quantization_config=config, variant="own")
    pipe = build(torch.bfloat16, transformer=quantised)
    pipe.load_lora_weights(WIDE, adapter_name="wide")
    before = bits(pipe)
    pipe.fuse_lora(keep_originals=False)
    pipe.unfuse_lora()
    assert changed(bits(pipe), before) == []
