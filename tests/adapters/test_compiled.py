"""Adapters in models that `torch.compile` wraps: as a whole, in place, by repeated blocks, and block by block."""

from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model_state_dict

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.adapters.active import adapter_layers
from tests.adapters.tiny import Q, assert_equal, build, largest, lora, outputs

K = "transformer_blocks.1.attn2.to_k"
TENSORS = lora() | lora(K) | lora("text_proj_in", 0, (8, 24), "connectors.")
SECOND = lora(seed=1) | lora("text_proj_in", 1, (8, 24), "connectors.")
ROUNDING = 5e-6
ABSENT = dict.fromkeys(("scheduler", "vae", "audio_vae", "text_encoder", "tokenizer", "vocoder"))


def whole(pipe: LTX2Pipeline) -> None:
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    pipe.connectors = torch.compile(pipe.connectors, backend="eager")


def in_place(pipe: LTX2Pipeline) -> None:
    pipe.transformer.compile(backend="eager")


def repeated(pipe: LTX2Pipeline) -> None:
    pipe.transformer.compile_repeated_blocks(backend="eager")


def by_block(pipe: LTX2Pipeline) -> None:
    blocks = pipe.transformer.transformer_blocks
    for index, block in enumerate(blocks):
        blocks[index] = torch.compile(block, backend="eager")


WAYS = [whole, in_place, repeated, by_block]


@pytest.fixture(autouse=True)
def untraced(request):
    """The wrappers without the tracing, which takes long and is not what is tested, except where a test says so."""
    if "traced" in request.fixturenames:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def traced():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def life(pipe: LTX2Pipeline, compiled: Callable[[], None], before_loading: bool) -> list[dict[str, torch.Tensor]]:
    """What a pipeline computes in all states of two adapters."""
    if before_loading:
        compiled()
    pipe.load_lora_weights(dict(TENSORS), adapter_name="a")
    if not before_loading:
        compiled()
    results = [outputs(pipe)]
    pipe.load_lora_weights(dict(SECOND), adapter_name="b")
    results.append(outputs(pipe))
    pipe.set_adapters(["a", "b"], [0.5, {"transformer": {"attn1": 0.3}, "connectors": 0.8}])
    results.append(outputs(pipe))
    pipe.load_lora_weights({key: tensor * 2 for key, tensor in SECOND.items()}, adapter_name="b", hotswap=True)
    results.append(outputs(pipe))
    pipe.disable_lora()
    results.append(outputs(pipe))
    pipe.enable_lora()
    assert pipe.get_list_adapters() == {"transformer": ["a", "b"], "connectors": ["a", "b"]}
    pipe.delete_adapters("b")
    pipe.set_adapters("a", 0.5)
    pipe.fuse_lora()
    results.append(outputs(pipe))
    pipe.unfuse_lora()
    results.append(outputs(pipe))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert adapter_layers(pipe) == []
    return [*results, outputs(pipe)]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("before_loading", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_compiled_models_take_adapters_as_plain_ones_do(way, before_loading):
    pipe = build()
    expected = life(build(), lambda: None, before_loading)
    for one, other in zip(life(pipe, lambda: way(pipe), before_loading), expected):
        assert_equal(one, other)


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_what_was_traced_before_is_not_used_afterwards():
    pipe, plain = build(), build()
    base = outputs(pipe)
    whole(pipe)
    assert largest(outputs(pipe), base) < ROUNDING
    for one in (pipe, plain):
        one.load_lora_weights(dict(TENSORS))
    assert largest(outputs(pipe), outputs(plain)) < ROUNDING
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert largest(outputs(pipe), outputs(plain)) < ROUNDING


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_adapters_of_compiled_models_are_saved_under_plain_names(way, layout, tmp_path):
    pipe = build()
    way(pipe)
    pipe.load_lora_weights(dict(TENSORS), adapter_name="a")
    parts = {
        f"{name}_lora_layers": get_peft_model_state_dict(getattr(pipe, name), adapter_name="a")
        for name in ("transformer", "connectors")
    }
    pipe.save_lora_weights(tmp_path, **parts, format=layout)
    again = build()
    again.load_lora_weights(tmp_path)
    assert_equal(outputs(again), outputs(pipe))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.quick_cases(2)
def test_a_misfit_names_the_plain_module(way):
    pipe = build()
    way(pipe)
    wrong = {key: torch.ones(32, 5) if key.endswith("lora_B.weight") else tensor for key, tensor in lora().items()}
    with pytest.raises(ValueError, match=rf"factors of {Q} do not fit together"):
        pipe.load_lora_weights(wrong)
    assert adapter_layers(pipe) == []


@pytest.mark.parametrize("way", [whole, in_place, repeated])
def test_a_compiled_pipeline_with_fused_adapters_is_saved(way, tmp_path):
    pipe = build()
    way(pipe)
    pipe.load_lora_weights(dict(TENSORS))
    expected = outputs(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "saved")
    again = LTX2Pipeline.from_pretrained(tmp_path / "saved", dtype=torch.float32, **ABSENT)
    assert largest(outputs(again), expected) < ROUNDING


def test_blocks_that_are_compiled_one_by_one_are_not_saved_under_names_nobody_loads(tmp_path):
    pipe = build()
    by_block(pipe)
    with pytest.raises(ValueError, match=r"'transformer_blocks\.0' is compiled on its own.*compile_repeated_blocks"):
        pipe.transformer.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
