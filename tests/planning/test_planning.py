"""Plans: what fits, what is refused, and pipelines that are loaded and run as planned."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers.utils import logging

from ltx2_diffusers import (
    FP8CastConfig,
    FP8ScaledMMConfig,
    LTX2Pipeline,
    LTX2TwoStagePipeline,
    MemoryPlan,
    devices,
    packaged_checkpoint,
    plan_memory,
)
from ltx2_diffusers.devices import CONTEXT_BYTES, FRAGMENTS
from ltx2_diffusers.memory.streaming import streamer_of
from ltx2_diffusers.models.compiled import region_of
from ltx2_diffusers.planning import needs
from ltx2_diffusers.planning.counting import measured
from ltx2_diffusers.planning.parts import num_bytes, parts_of
from ltx2_diffusers.planning.policy import Budget, StageNeed, Variant, Weights, Whereabouts, chosen, forecast
from tests.golden_data import GOLDEN_DIR
from tests.pipelines.tiny import NO_GUIDANCE

logging.disable_progress_bar()

MINI = packaged_checkpoint("ltx2-mini")
CLIP = {"height": 128, "width": 128, "num_frames": 17}
KIND = {"device": "cpu", "prompt_tokens": 64, "num_inference_steps": 2}
MB = 1 / 1024


def mini_plan(megabytes, ram=500, **wish):
    return plan_memory(MINI, megabytes * MB, ram * MB, **{**CLIP, **KIND, **wish})


@pytest.fixture(scope="module")
def roomy():
    return mini_plan(500)


@pytest.fixture(scope="module")
def two_stages():
    return mini_plan(500, two_stage=True)


def call(pipe, **arguments):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    made = {"num_inference_steps": 2, "output_type": "pt", **CLIP, **arguments}
    return pipe("a red circle", generator=generator, **made)


@pytest.fixture(scope="module")
def expected():
    return call(LTX2Pipeline.from_pretrained(MINI, dtype=torch.bfloat16))


def noted(released, name, offload):
    released.append(name)
    offload()


def placed(plan, name, where, source="ram", blocks=2):
    """The plan with one component elsewhere."""
    part = replace(plan.parts[name], placement=Whereabouts(where, source, blocks if where == "streamed" else 0))
    return replace(plan, parts={**plan.parts, name: part})


def test_with_room_everything_stays_on_the_device(roomy):
    assert {part.placement.where for part in roomy.parts.values()} == {"resident"}
    assert not roomy.is_lossy and roomy.quantize is None
    assert roomy.transfer_per_step == 0
    assert roomy.peak == max(stage.peak for stage in roomy.stages)
    assert [stage.name for stage in roomy.stages] == [
        "text encoding",
        "text connectors",
        "stage 1",
        "sound decoding",
        "video decoding",
    ]


def test_a_plan_is_json_both_ways(two_stages, tmp_path):
    assert MemoryPlan.from_json(two_stages.to_json()) == two_stages
    two_stages.save(tmp_path / "plan.json")
    assert MemoryPlan.load(tmp_path / "plan.json") == two_stages
    assert json.loads(two_stages.to_json())["clip"]["steps"] == [2, 3]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("parts", "vae", "placement", "where"), "nowhere"),
        (("parts", "vae", "placement", "source"), "tape"),
        (("parts", "vae", "placement", "num_on_device"), 1.5),
        (("decoding",), "backwards"),
        (("dtype",), "int8"),
        (("quantize",), "int8"),
        (("vram_gb",), "16"),
        (("stages",), []),
        (("clip", "height"), "tall"),
    ],
)
def test_values_that_no_plan_has_are_refused(roomy, tmp_path, place, value):
    content = json.loads(roomy.to_json())
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"plan.json' holds no plan.*`{place[-1]}`|`parts` and `stages`"):
        MemoryPlan.load(file)


@pytest.mark.parametrize("text", ["[]", "{}", '{"clip": 1}', "no"])
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(ValueError, match="plan"):
        MemoryPlan.from_json(text)


def test_a_plan_shows_weights_stages_and_what_it_needs(two_stages):
    text = str(two_stages)
    for word in (*two_stages.parts, *(stage.name for stage in two_stages.stages), "two stages", "an estimate"):
        assert word in text


def test_less_memory_moves_weights_and_changes_no_result(roomy, expected):
    sizes = {part.total for part in roomy.parts.values()}
    plan = mini_plan(roomy.device_bytes / 2**20 - max(sizes) / 2**20 / 2)
    assert any(part.placement.where != "resident" for part in plan.parts.values())
    assert plan.device_bytes < roomy.device_bytes
    found = call(LTX2Pipeline.from_plan(plan, device="cpu"))
    assert torch.equal(found.frames, expected.frames) and torch.equal(found.audio, expected.audio)


@pytest.mark.parametrize("source", ["ram", "disk"])
def test_a_pipeline_is_streamed_as_planned(roomy, expected, source):
    plan = placed(placed(roomy, "transformer", "streamed", source, 1), "text_encoder", "streamed", source, 1)
    pipe = LTX2Pipeline.from_plan(plan, device="cpu")
    assert pipe.memory_plan == plan
    for name in ("transformer", "text_encoder"):
        streamer = streamer_of(getattr(pipe, name))
        assert (streamer.source, streamer.num_on_device) == (source, 1)
    assert torch.equal(call(pipe).frames, expected.frames)


def test_components_are_released_after_use(roomy, expected):
    plan = roomy
    for name in plan.parts:
        plan = placed(plan, name, "released")
    pipe = LTX2Pipeline.from_plan(plan, device="cpu")
    released = []
    for hook in pipe._waiting:
        name = next(name for name in plan.parts if getattr(pipe, name) is hook.model)
        hook.offload = partial(noted, released, name, hook.offload)
    found = call(pipe)
    assert torch.equal(found.frames, expected.frames)
    first = list(dict.fromkeys(released))
    assert first[:2] == ["text_encoder", "connectors"]
    assert first.index("transformer") < first.index("vocoder")


def test_after_the_end_of_waiting_nothing_is_sent_away(roomy, monkeypatch):
    plan = roomy
    for name in ("text_encoder", "connectors"):
        plan = placed(plan, name, "released")
    pipe = LTX2Pipeline.from_plan(plan, device="cpu")
    pipe.disable_block_streaming()
    moves = []
    monkeypatch.setattr(pipe.text_encoder, "to", lambda *args, **_: moves.append(args))
    call(pipe, height=64, width=64, num_frames=1)
    assert moves == []


def test_adapters_come_to_components_that_wait(roomy):
    plan = roomy
    for name in plan.parts:
        plan = placed(plan, name, "released")
    plain, pipe = LTX2Pipeline.from_pretrained(MINI, dtype=torch.bfloat16), LTX2Pipeline.from_plan(plan, device="cpu")
    for one in (plain, pipe):
        one.load_lora_weights(f"{MINI}/distilled_lora.safetensors", adapter_name="one")
    assert len(pipe._waiting) == len(plan.parts) and all(hook.model._hf_hook is hook.hook for hook in pipe._waiting)
    small = {"height": 64, "width": 64, "num_frames": 1}
    assert torch.equal(call(pipe, **small).frames, call(plain, **small).frames)
    with pytest.raises(ValueError, match="wait in host memory until they run already"):
        pipe.enable_sequential_cpu_offload(device="cpu")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("where", ["resident", "streamed", "released"])
def test_planned_pipelines_are_compiled_where_their_weights_are(roomy, expected, where):
    """Not traced, which takes long: that every block goes through the compiled region is what counts."""
    pipe = LTX2Pipeline.from_plan(placed(roomy, "transformer", where), device="cpu")
    with torch.compiler.set_stance("force_eager"):
        pipe.compile("transformer", backend="eager")
        region, runs = region_of(pipe.transformer), []
        compiled = region._compiled
        region._compiled = lambda *given: runs.append(1) or compiled(*given)
        assert torch.equal(call(pipe).frames, expected.frames)
    assert len(runs) >= 2 * len(pipe.transformer.transformer_blocks)
    pipe.uncompile()
    assert torch.equal(call(pipe).frames, expected.frames)


def test_decoding_and_passes_are_as_planned(roomy, expected):
    plan = replace(roomy, decoding="streamed", batched_guidance=True, keeps_text=False)
    pipe = LTX2Pipeline.from_plan(plan, device="cpu")
    assert pipe.vae.use_streaming
    assert (pipe.pass_layout.batched, pipe.pass_layout.keeps_text) == (True, False)
    difference = (call(pipe).frames.float() - expected.frames.float()).abs().max()
    assert difference < 0.05


@pytest.mark.quick_cases(0)
def test_two_stages_run_as_planned(two_stages):
    reference = LTX2TwoStagePipeline.from_pretrained(MINI, dtype=torch.bfloat16)
    plan = two_stages
    for name in ("latent_upsampler", "vae"):
        plan = placed(plan, name, "released")
    pipe = LTX2TwoStagePipeline.from_plan(plan, device="cpu")
    found, wanted = (call(one, two_stage=True, stage_2_adapters={}) for one in (pipe, reference))
    assert torch.equal(found.frames, wanted.frames)


@pytest.mark.slow
def test_a_pipeline_plans_for_its_own_checkpoint(roomy):
    pipe = LTX2Pipeline.from_pretrained(MINI, dtype=torch.bfloat16)
    plan = pipe.plan_memory(500 * MB, 500 * MB, **CLIP, **KIND)
    assert (plan.parts, plan.clip, plan.decoding) == (roomy.parts, roomy.clip, roomy.decoding)
    assert plan.peak == pytest.approx(roomy.peak, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("guided", [True, False])
def test_a_whole_call_allocates_what_is_predicted(guided):
    plan = mini_plan(500, guided=guided, dtype=torch.float32)
    pipe = LTX2Pipeline.from_plan(plan, device="cpu")
    arguments = {**CLIP, "num_inference_steps": 2, "output_type": "uint8", **({} if guided else NO_GUIDANCE)}
    pipe.set_progress_bar_config(disable=True)
    found = measured(lambda: pipe("a red circle moves " * 12, **arguments)).allocated
    predicted = max(stage.activations for stage in plan.stages)
    assert 0.7 <= found / predicted <= 1.1


@pytest.mark.slow
def test_float8_halves_the_transformer_and_is_lossy():
    plain, cast = (mini_plan(500, quantize=storage) for storage in (None, "fp8-cast"))
    assert cast.is_lossy and cast.quantize == "fp8_cast"
    assert cast.parts["transformer"].total < 0.7 * plain.parts["transformer"].total
    pipe = LTX2Pipeline.from_plan(cast, device="cpu")
    assert num_bytes(pipe.transformer) == pytest.approx(cast.parts["transformer"].total, rel=0.01)


@pytest.mark.quick_cases(0)
@pytest.mark.parametrize(
    "config", [FP8CastConfig(), FP8CastConfig(variant="2.0"), FP8ScaledMMConfig()], ids=["newest", "2.0", "scaled"]
)
def test_a_folder_in_float8_is_counted_and_loaded_as_that(tmp_path, config):
    pipe = LTX2Pipeline.from_pretrained(MINI, dtype=torch.bfloat16, quantization_config=config)
    pipe.save_pretrained(tmp_path)
    small = {"height": 64, "width": 64, "num_frames": 9}
    plan = plan_memory(tmp_path, 1, 1, **{**KIND, **small})
    assert plan.quantize == config.quant_method and not plan.is_lossy
    assert num_bytes(pipe.transformer) == pytest.approx(plan.parts["transformer"].total, rel=1e-3)
    found = LTX2Pipeline.from_plan(plan, device="cpu")
    for (name, wanted), loaded in zip(pipe.transformer.state_dict().items(), found.transformer.state_dict().values()):
        assert wanted.dtype == loaded.dtype, name
    other = "fp8_cast" if plan.quantize == "fp8_scaled_mm" else "fp8_scaled_mm"
    with pytest.raises(ValueError, match=f"`quantize` is '{other}', but .* is stored in {plan.quantize}"):
        plan_memory(tmp_path, 1, 1, quantize=other, **KIND)


def test_weights_that_no_plan_counts_are_refused(tmp_path):
    folder = shutil.copytree(MINI, tmp_path / "folder")
    config = folder / "transformer" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(
        ValueError, match=r"the transformer of .* is quantised as 'bitsandbytes', whose memory no plan"
    ):
        plan_memory(folder, 1, 1, **KIND)
    config.write_text(json.dumps(content))
    index = json.loads((folder / "model_index.json").read_text())
    index["stage_2_transformer"] = index["transformer"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="a transformer of its own for the second stage"):
        plan_memory(folder, 1, 1, two_stage=True, **KIND)


@pytest.mark.quick_cases(0)
def test_a_given_clip_is_encoded_whole():
    plan = mini_plan(500, given_frames=17)
    assert [stage.name for stage in plan.stages][2] == "clip encoding"
    assert plan.stages[2].activations > 2 * mini_plan(500, image=True).stages[2].activations


@pytest.mark.quick_cases(0)
def test_a_second_plan_counts_nothing_again(monkeypatch, roomy):
    mini_plan(500)
    monkeypatch.setattr(needs, "counted", None)
    assert mini_plan(400).parts == roomy.parts


@pytest.mark.slow
def test_an_original_file_is_planned_by_its_header():
    file = GOLDEN_DIR / "checkpoint/ltx-2-tiny-dev.safetensors"
    plan = plan_memory(file, 100, 64, height=64, width=64, num_frames=9, dtype=torch.bfloat16)
    # The language model is not in it; that of the published models is counted.
    assert plan.parts["text_encoder"].total == pytest.approx(24.4e9, rel=0.01)
    with pytest.raises(ValueError, match="text_encoder"):
        LTX2Pipeline.from_plan(plan, device="cpu")


def test_published_models_have_the_sizes_that_are_published():
    parts = parts_of("ltx-2-19b")
    sizes = {name: num_bytes(parts.model(name)) / 1e9 for name in ("connectors", "vae", "vocoder", "latent_upsampler")}
    assert sizes == pytest.approx(
        {"connectors": 2.86, "vae": 2.44, "vocoder": 0.11, "latent_upsampler": 1.0}, abs=0.01
    )


@pytest.mark.slow
def test_what_does_not_fit_is_refused_with_what_does():
    with pytest.raises(
        ValueError, match=r"needs at least .* GB of the device \(vram_gb=.*it fits .*(num_frames|at \d+ x)"
    ):
        mini_plan(17.5, num_frames=49)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"vram_gb": 0}, "`vram_gb` has to be greater than 0 but is 0"),
        ({"ram_gb": -1}, "`ram_gb` has to be greater than 0 but is -1"),
        ({"gpu": "rtx9090"}, "`gpu` is 'rtx9090', which is no known card; use one of"),
        ({"quantize": "int3"}, "`quantize` has to be one of 'fp8_cast'"),
        ({"device": "tpu"}, "`device` has to be one of 'cuda', 'cpu'"),
        ({"vram_gb": math.inf}, "`vram_gb` has to be a finite number but is inf"),
        ({"vram_gb": "16"}, "`vram_gb` has to be a finite number but is '16'; use 16"),
        ({"frame_rate": None}, "`frame_rate` has to be a finite number but is None"),
        ({"dtype": torch.float8_e4m3fn}, "`dtype` has to be one of 'bfloat16'"),
        ({"guided": "no"}, "`guided` has to be True or False but is 'no'"),
        ({"text_encoder": "gemma"}, "`text_encoder` is 'gemma', but belongs to original files"),
        ({"given_frames": 10}, "`given_frames` has to be 8 . k . 1 but is 10"),
        ({"height": 100}, "`height` has to be divisible by 32 but is 100; use 96 or 128"),
        ({"num_frames": 10}, "`num_frames` has to be 8 . k . 1 but is 10; use 9 or 17"),
        ({"num_inference_steps": 0}, "`num_inference_steps` has to be"),
        ({"two_stage": True, "height": 96}, "`height` has to be divisible by 64"),
    ],
)
def test_wrong_wishes_are_refused(wish, message):
    arguments = {"vram_gb": 1, "ram_gb": 1, **CLIP, **KIND, **wish}
    with pytest.raises(ValueError, match=message):
        plan_memory(MINI, **arguments)


def test_unknown_checkpoints_and_unloadable_plans_are_refused(two_stages):
    with pytest.raises(ValueError, match=r"there is no file or folder 'nowhere'.*ltx-2-19b"):
        plan_memory("nowhere", 24, 64)
    with pytest.raises(ValueError, match=r"use LTX2TwoStagePipeline.from_plan"):
        LTX2Pipeline.from_plan(two_stages, device="cpu")
    with pytest.raises(ValueError, match=r"`upsampler` is 'x', but ltx-2-19b is a name that stands"):
        plan_memory("ltx-2-19b", 24, 64, upsampler="x")
    with pytest.raises(ValueError, match="`text_encoder` is 'x', which is no folder of a language model"):
        plan_memory(GOLDEN_DIR / "checkpoint/ltx-2-tiny-dev.safetensors", 24, 64, text_encoder="x")
    with pytest.raises(ValueError, match=r"`plan` is of the type str.*MemoryPlan.load"):
        LTX2Pipeline.from_plan("plan.json", device="cpu")
    with pytest.raises(ValueError, match="LTX2TwoStagePipeline has no component block_streaming"):
        LTX2TwoStagePipeline.from_plan(two_stages, device="cpu", block_streaming="disk")
    with pytest.raises(ValueError, match="`quantization_config` is of fp8_cast, but the plan stores"):
        LTX2TwoStagePipeline.from_plan(two_stages, device="cpu", quantization_config="fp8_cast")
    with pytest.raises(ValueError, match="takes the upsampler from 'gone', where nothing is any more"):
        LTX2TwoStagePipeline.from_plan(replace(two_stages, upsampler="gone"), device="cpu")
    with pytest.raises(ValueError, match="no weights to load"):
        LTX2TwoStagePipeline.from_plan(replace(two_stages, checkpoint="ltx-2-19b"), device="cpu")


# The policy, on numbers.
GIB = 2**30
WEIGHTS = {"text_encoder": Weights(8 * GIB, 4, GIB), "transformer": Weights(20 * GIB, 18, GIB), "vae": Weights(GIB)}
STAGES = [
    StageNeed("text encoding", ("text_encoder",), GIB, 1e12),
    StageNeed("stage 1", ("transformer",), 2 * GIB, 1e12, repeats=10, traversals=2),
    StageNeed("video decoding", ("vae",), 4 * GIB, 1e12),
]
VARIANT = Variant(None, "whole", False, True, WEIGHTS, STAGES)


def budget(device, host=1000, is_cuda=False):
    return Budget(device * GIB, host * GIB, devices.GPUS["rtx4090"], is_cuda)


def test_the_fastest_that_fits_is_chosen():
    best, _ = chosen([VARIANT], budget(100))
    assert {p.where for p in best.placements.values()} == {"resident"}
    # 29 GiB of weights and 4 of frames do not fit; without the language model they do.
    best, _ = chosen([VARIANT], budget(32))
    assert best.placements["text_encoder"].where != "resident"
    assert best.placements["transformer"].where in ("resident", "released")


def test_blocks_stay_on_the_device_as_far_as_there_is_room():
    best, _ = chosen([VARIANT], budget(16))
    placement = best.placements["transformer"]
    assert placement.where == "streamed" and placement.source == "ram"
    assert 2 < placement.num_on_device < 18
    assert best.peak <= 16 * GIB < best.peak + GIB


def test_without_host_memory_blocks_come_from_the_disk():
    best, _ = chosen([VARIANT], budget(16, host=8))
    assert best.placements["transformer"].source == "disk"
    assert best.seconds > chosen([VARIANT], budget(16))[0].seconds


def test_copies_run_beside_the_computation():
    placements = {name: Whereabouts() for name in WEIGHTS} | {"transformer": Whereabouts("streamed", "ram", 2)}
    slow = replace(STAGES[1], operations=1e17)
    resident = forecast(replace(VARIANT, stages=[slow]), {name: Whereabouts() for name in WEIGHTS}, budget(100))
    streamed = forecast(replace(VARIANT, stages=[slow]), placements, budget(100))
    lost = devices.EXPOSED_SHARE * 10 * 2 * 18 * GIB / devices.PINNED_BYTES_PER_S
    assert streamed.seconds == pytest.approx(resident.seconds + lost)
    assert streamed.stages[0].transfer == 2 * 18 * GIB


def test_a_card_needs_more_than_its_tensors():
    assert budget(1, is_cuda=True).needed(1000) == 1000 * (1 + FRAGMENTS) + CONTEXT_BYTES
    assert budget(1).needed(1000) == 1000
