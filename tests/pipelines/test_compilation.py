"""`compile()` of pipelines: arguments, what it goes with, and whole calls."""

import os
import subprocess
import sys

import pytest
import torch

from ltx2_diffusers import LTX2TwoStagePipeline
from ltx2_diffusers.models.compiled import region_of
from ltx2_diffusers.pipelines import compilation
from tests.adapters.tiny import build, largest, lora, outputs
from tests.golden_data import EQUAL_PIPELINES
from tests.pipelines.recipes import add_lora
from tests.pipelines.tiny import ALL_GUIDANCE, EXPLICIT, NEGATIVE, PROMPT, load, max_difference, ours, seeded

CPU = torch.device("cpu")
CALL = {**EXPLICIT, **ALL_GUIDANCE, "prompt": PROMPT, "negative_prompt": NEGATIVE, "output_type": "pt"}


@pytest.fixture(autouse=True)
def forget():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def untraced():
    """Compiled pipelines without the tracing, which takes long."""
    with torch.compiler.set_stance("force_eager"):
        yield


def graphs(pipe):
    return {name: part.graphs for name, part in pipe.compiled.items()}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["2.0", "2.3"])
def test_a_whole_call_of_every_pass(layout, caplog):
    """All passes, the decoder and the vocoder; a second call, another size and another prompt make no graph."""
    pipe = load(layout)
    expected = pipe(**CALL, generator=seeded(1))
    pipe.compile(backend="eager")
    with caplog.at_level("WARNING", "ltx2_diffusers"):
        result = pipe(**CALL, generator=seeded(1))
    assert max_difference(result, expected) == 0.0
    (message,) = (record.message for record in caplog.records if record.message.startswith("compiled "))
    assert all(f"{name}: {count} graph" in message for name, count in graphs(pipe).items())
    counts = graphs(pipe)
    # Passes are plain, perturbed and isolated; of 2.0, texts are filled in, and read by plain and by isolated passes.
    assert counts["transformer"] == (4 if layout == "2.0" else 3)
    assert all(count > 0 for count in counts.values())
    assert pipe.compiled["transformer"].seconds > 0
    for change in ({}, {"height": 96, "num_frames": 17}, {"max_sequence_length": 128}):
        pipe(**{**CALL, **change}, generator=seeded(1))
        again = graphs(pipe)
        # Which kernel a convolution of few channels takes on a CPU changes at a length, and the graph with it.
        assert again.pop("vocoder") <= 2
        assert again == {name: count for name, count in counts.items() if name != "vocoder"}, change
    pipe.uncompile()
    assert pipe.compiled == {}
    assert max_difference(pipe(**CALL, generator=seeded(1)), expected) == 0.0


@pytest.mark.slow
def test_a_whole_call_by_code_of_inductor(tmp_path):
    """In a process of its own, whose code is kept for another one, which then makes none."""
    program = f"""
import sys, torch
from torch._dynamo.utils import counters
from tests.pipelines.tiny import *
call = {{**EXPLICIT, **NO_GUIDANCE, "prompt": PROMPT, "output_type": "pt"}}
pipe = load("2.3")
expected = pipe(**call, generator=seeded(1))
pipe.compile(["transformer", "vae"], cache_dir={str(tmp_path / "code")!r}, warm_up={{**call}})
graphs = pipe.compiled["transformer"].graphs
result = pipe(**call, generator=seeded(1))
assert graphs == pipe.compiled["transformer"].graphs == 1, pipe.compiled
assert (result.frames - expected.frames).abs().max() <= 1e-5 * expected.frames.abs().max()
assert max_difference(result, expected) <= {EQUAL_PIPELINES}, max_difference(result, expected)
print(counters["inductor"]["fxgraph_cache_miss"], counters["inductor"]["fxgraph_cache_hit"])
"""
    counts = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        counts.append([int(number) for number in done.stdout.split()[-2:]])
    made, found = counts
    assert made[0] > 0 and found == [0, made[0]]
    assert any((tmp_path / "code").iterdir())


@pytest.mark.slow
def test_adapters_come_go_and_change_on_compiled_blocks():
    """A graph for each set of adapters, none for their strengths, for fusing or for a set that was there before."""
    pipe, plain = build(), build()
    pipe.compile("transformer", backend="eager")
    layers = [f"transformer_blocks.{index}.attn1.to_q" for index in range(len(pipe.transformer.transformer_blocks))]
    first, second = ({k: t for path in layers for k, t in lora(path, seed).items()} for seed in (0, 1))
    steps = [
        ("none", lambda _: None, 1),
        ("load a", lambda p: p.load_lora_weights(dict(first), adapter_name="a"), 1),
        ("a weaker", lambda p: p.set_adapters("a", 0.5), 1),
        ("a stronger", lambda p: p.set_adapters("a", 0.75), 0),
        ("load b", lambda p: p.load_lora_weights(dict(second), adapter_name="b"), 1),
        ("both", lambda p: p.set_adapters(["a", "b"], [0.5, 0.7]), 1),
        ("both otherwise", lambda p: p.set_adapters(["a", "b"], [0.3, 0.2]), 0),
        ("disabled", lambda p: p.disable_lora(), 1),
        ("enabled", lambda p: p.enable_lora(), 0),
        ("fused", lambda p: p.fuse_lora(), 1),
        ("unloaded", lambda p: p.unload_lora_weights(), 0),
    ]
    for name, change, most in steps:
        for one in (pipe, plain):
            change(one)
        before = graphs(pipe)["transformer"]
        assert largest(outputs(pipe), outputs(plain)) == 0.0, name
        assert graphs(pipe)["transformer"] - before <= most, name


@pytest.mark.slow
def test_adapters_that_take_each_others_place_make_no_graph():
    pipe, plain = build(), build()
    for one in (pipe, plain):
        one.enable_lora_hotswap(target_rank=8)
    pipe.compile("transformer", backend="eager")
    for one in (pipe, plain):
        one.load_lora_weights(lora(), adapter_name="a")
    outputs(pipe)
    before = graphs(pipe)
    changes = [
        lambda p: p.load_lora_weights(lora(seed=1), adapter_name="a", hotswap=True),
        lambda p: p.set_adapters("a", 0.5),
        lambda p: p.load_lora_weights(lora(seed=2), adapter_name="a", hotswap=True),
    ]
    results = []
    for change in changes:
        for one in (pipe, plain):
            change(one)
        results.append(outputs(pipe))
        assert largest(results[-1], outputs(plain)) == 0.0
        assert graphs(pipe) == before
    assert largest(results[0], results[1]) > 1e-4


def test_hot_swapped_adapters_keep_their_strength_in_a_tensor():
    pipe = build()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights(lora(), adapter_name="a")
    layer = pipe.transformer.transformer_blocks[0].attn1.to_q
    tensor = layer.scaling["a"]
    whole = tensor.item()
    pipe.set_adapters("a", 0.5)
    assert layer.scaling["a"] is tensor and tensor.item() == pytest.approx(whole / 2)


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("order", ["compiled first", "offloaded first"])
@pytest.mark.parametrize("how", ["model", "blocks", "group"])
@pytest.mark.quick_cases(2)
def test_offloaded_components(how, order):
    def offload(pipe):
        if how == "model":
            pipe.enable_model_cpu_offload(device="cpu")
        elif how == "blocks":
            pipe.enable_block_streaming(["transformer"], device="cpu")
        else:
            pipe.enable_group_offload(
                CPU, CPU, offload_type="block_level", num_blocks_per_group=1, exclude_modules="vocoder"
            )

    if (how, order) == ("group", "offloaded first"):
        pipe = load("2.0")
        offload(pipe)
        with pytest.raises(ValueError, match=r"has hooks of .*; call compile\(\) before"):
            pipe.compile(backend="eager")
        assert pipe.compiled == {}
        return
    expected = ours("2.0")(**CALL, generator=seeded(1))
    pipe = load("2.0")
    steps = [lambda: pipe.compile(backend="eager"), lambda: offload(pipe)]
    for step in steps if order == "compiled first" else steps[::-1]:
        step()
    runs, region = [], region_of(pipe.transformer)
    compiled = region._compiled
    region._compiled = lambda *args: runs.append(1) or compiled(*args)
    assert max_difference(pipe(**CALL, generator=seeded(1)), expected) == 0.0
    assert runs
    pipe.uncompile()
    assert max_difference(pipe(**CALL, generator=seeded(1)), expected) == 0.0


@pytest.mark.usefixtures("untraced")
def test_pipelines_on_the_same_components_are_compiled_with_them(tmp_path):
    pipe = load("2.0", LTX2TwoStagePipeline)
    other = type(ours("2.0")).from_pipe(pipe)
    pipe.compile("vae", backend="eager")
    assert list(other.compiled) == ["vae"]
    add_lora(pipe, tmp_path, "style")
    pipe.compile(["transformer"], backend="eager")
    assert list(pipe.compiled) == ["transformer", "vae"]
    other.uncompile()
    assert pipe.compiled == {}
    pipe.unload_lora_weights()
    pipe.compile(backend="eager")
    pipe.save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved").compiled == {}


REFUSED = [
    ({"components": "text_encoder"}, r"`components` (has to be|must be) .*transformer"),
    ({"components": []}, "there is nothing to compile"),
    ({"mode": "fastest"}, "`?mode`? .*'fastest'"),
    ({"mode": "reduce-overhead"}, "'reduce-overhead' records CUDA graphs.*max-autotune-no-cudagraphs"),
    ({"options": {"triton.cudagraphs": True}}, "records CUDA graphs"),
    ({"mode": "default", "options": {"max_autotune": True}}, "leave one of them out"),
    ({"backend": "inductr"}, "`?backend`? .*'inductr'"),
    ({"dynamic": "yes"}, "`?dynamic`? .*'yes'"),
    ({"warm_up": {"heigth": 64}}, "`?warm_up`? .*'heigth'"),
    ({"warm_up": [64]}, "`warm_up` has to hold arguments of calls but has 64"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_wrong_arguments_leave_the_pipeline_as_it_was(arguments, message):
    pipe = ours("2.0")
    with pytest.raises(ValueError, match=message):
        pipe.compile(**arguments)
    assert pipe.compiled == {}


def test_without_a_compiler(monkeypatch):
    from torch._inductor import cpp_builder

    def missing():
        raise RuntimeError("no compiler")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(
        ValueError, match=r"needs a C\+\+ compiler \(no compiler\); install g\+\+, or pass backend='aot_eager'"
    ):
        ours("2.0").compile()
    assert ours("2.0").compiled == {}


@pytest.mark.usefixtures("untraced")
def test_a_warm_up_that_fails_leaves_the_pipeline_as_it_was():
    pipe = load("2.0")
    with pytest.raises(ValueError, match="height"):
        pipe.compile(backend="eager", warm_up={"height": 50})
    assert pipe.compiled == {}
    assert all(parameter.requires_grad for parameter in pipe.transformer.parameters())


@pytest.mark.usefixtures("untraced")
def test_warm_up_runs_calls(monkeypatch):
    calls, pipe = [], load("2.0")
    monkeypatch.setattr(type(pipe), "__call__", _recorded(type(pipe).__call__, calls))
    pipe.compile(
        backend="eager", warm_up=[{"height": 64, "width": 64, "num_frames": 9}, {"sigmas": [1.0], "height": 64}]
    )
    assert [call["height"] for call in calls] == [64, 64]
    assert (calls[0]["prompt"], calls[0]["num_inference_steps"]) == ("", 2)
    assert "num_inference_steps" not in calls[1]


def _recorded(function, calls):
    from functools import wraps

    @wraps(function)
    def call(_, **arguments):
        calls.append(arguments)

    return call


def test_offloading_that_would_put_hooks_within_is_refused():
    pipe = load("2.0")
    pipe.compile(backend="eager")
    with pytest.raises(ValueError, match=r"enable_sequential_cpu_offload\(\) puts hooks on layers"):
        pipe.enable_sequential_cpu_offload(device="cuda")
    with pytest.raises(ValueError, match="of `vocoder`; pass exclude_modules"):
        pipe.enable_group_offload(CPU, CPU, offload_type="block_level", num_blocks_per_group=1)
    with pytest.raises(ValueError, match="of `transformer`; pass offload_type"):
        pipe.enable_group_offload(CPU, CPU, offload_type="leaf_level", exclude_modules="vocoder")
    assert not any(hasattr(part, "_diffusers_hook") for part in pipe.transformer.modules())


@pytest.mark.usefixtures("untraced")
def test_code_is_kept_in_the_folder_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(compilation._CACHE_VARIABLE, "elsewhere")
    pipe = load("2.0")
    pipe.compile("vae", backend="eager", cache_dir=tmp_path / "code")
    assert os.environ[compilation._CACHE_VARIABLE] == str(tmp_path / "code") and (tmp_path / "code").is_dir()
