"""Presets of LoRA targets, PEFT's rule for names, and layers that a strategy never runs."""

from functools import cache

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from ltx2_diffusers import LTX2TextConnectors, LTX2VideoTransformer3DModel
from ltx2_diffusers.adapters.keys import linear_shapes, lora_to_format, read_lora
from ltx2_diffusers.conditioning.streams import Streams
from ltx2_diffusers.training.trained.targets import PRESETS, Targets, matching_modules, resolve, unused_modules
from tests.golden_data import load_json
from tests.models.transformer_tools import tiny_inputs, tiny_transformer

GOLDEN = load_json("training/lora_format.json")
# Switches of LTX-2.3 in the transformer.
NEWER = {
    "gated_attn": True,
    "audio_gated_attn": True,
    "cross_attn_mod": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
}
SETS = {
    "av_default": "av",
    "video_attn": "video",
    "ic_lora": "ic_lora",
    "audio_attn_ff": "audio",
    "cross_modal": "cross_modal",
}


@cache
def transformer(generation: str):
    with torch.device("meta"):
        return LTX2VideoTransformer3DModel(**(NEWER if generation == "ltx2_3_22b" else {}))


@cache
def connectors():
    with torch.device("meta"):
        return LTX2TextConnectors()


@pytest.mark.parametrize("generation", ["ltx2_19b", "ltx2_3_22b"])
@pytest.mark.parametrize("name", SETS)
def test_presets_are_the_layers_of_the_reference(name, generation):
    golden, model = GOLDEN["target_module_matches"][name], transformer(generation)
    targets = resolve(SETS[name])
    assert set(targets.transformer) == set(golden["target_modules"])
    matches, shapes = matching_modules(model, targets.transformer), linear_shapes(model)
    total = sum(sum(shapes[path]) for path in matches)
    expected = golden[generation]
    assert len(matches) == expected["matched_modules"]
    assert (total, 32 * total) == (expected["sum_in_plus_out"], expected["params_rank32"])
    assert {p for p in matches if p.startswith("transformer_blocks.0.")} == set(expected["block0"])
    assert [p for p in matches if not p.startswith("transformer_blocks.")] == expected["outside_blocks"]


@pytest.mark.parametrize(
    "preset, modules, parameters",
    [("video_to_audio", 672, 113_246_208), ("text", 384, 48 * 32 * 4 * (8192 + 4096)), ("all", 1344, None)],
)
def test_other_presets_have_as_many_layers_as_counted_by_hand(preset, modules, parameters):
    model = transformer("ltx2_19b")
    matches, shapes = matching_modules(model, resolve(preset).transformer), linear_shapes(model)
    assert len(matches) == modules
    assert parameters is None or 32 * sum(sum(shapes[path]) for path in matches) == parameters


def test_gates_can_be_targets_where_there_are_any():
    names = resolve(["av", "to_gate_logits"]).transformer
    assert len(matching_modules(transformer("ltx2_3_22b"), names)) == 1440
    with pytest.raises(ValueError, match="'to_gate_logits', which is no linear layer of the LTX2AVTransformer3DModel"):
        matching_modules(transformer("ltx2_19b"), names)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "connectors"])
def test_names_mean_what_they_mean_to_peft(preset):
    model, names = transformer("ltx2_3_22b"), list(resolve(preset).transformer)
    config = LoraConfig(target_modules=names)
    by_peft = [path for path in linear_shapes(model) if check_target_module_exists(config, path)]
    assert matching_modules(model, names) == by_peft


def test_connectors_are_a_model_of_their_own():
    targets = resolve(["video", "connectors", "video_connector.transformer_blocks.0.attn1.to_k"])
    assert targets.transformer == PRESETS["video"]
    assert targets.connectors[-1] == "video_connector.transformer_blocks.0.attn1.to_k"
    matches = matching_modules(connectors(), targets.connectors)
    # Two connectors of two blocks, six layers each.
    assert len(matches) == 24
    assert all(path.startswith(("video_connector.", "audio_connector.")) for path in matches)
    assert resolve("connectors") == Targets((), targets.connectors[:-1])


@pytest.mark.parametrize(
    "wrong, meant",
    [
        ("attn1.to_kk", "attn1.to_k"),
        ("vidoe", "video"),
        ("audio_ff.net.3", "audio_ff.net.2"),
        ("ff.net.0.pro", "ff.net.0.proj"),
    ],
)
def test_a_name_of_nothing_says_what_may_have_been_meant(wrong, meant):
    with pytest.raises(ValueError, match=f"names '{wrong}', which is no linear layer .* did you mean '{meant}'"):
        matching_modules(transformer("ltx2_19b"), resolve(["video", wrong]).transformer)


def test_text_projections_cannot_be_trained():
    with pytest.raises(ValueError, match=r"'connectors\.text_proj_in', which never runs in training"):
        resolve(["connectors.text_proj_in"])
    with pytest.raises(ValueError, match="has to name presets"):
        resolve([])


def test_layers_of_an_absent_stream_never_run():
    names = matching_modules(transformer("ltx2_19b"), resolve("av").transformer)
    block = [path for path in names if path.startswith("transformer_blocks.7.")]
    assert unused_modules(names, Streams(True, True)) == []
    # As measured with the reference: without sound 16 of the 24 layers of a block get no gradient.
    assert len(unused_modules(block, Streams(True, False))) == 16
    kept = set(block) - set(unused_modules(block, Streams(False, True)))
    assert {path.split(".")[2] for path in kept} == {"audio_attn1", "audio_attn2"}
    outside = [
        "proj_in",
        "audio_proj_in",
        "av_cross_attn_video_a2v_gate.linear",
        "audio_connector.transformer_blocks.0.attn1.to_k",
    ]
    assert unused_modules(outside, Streams(True, False)) == outside[1:]
    assert unused_modules(outside, Streams(False, True)) == [outside[0], outside[2]]


@pytest.mark.parametrize("runs", [Streams(True, False), Streams(False, True)], ids=["video alone", "audio alone"])
def test_only_layers_that_run_get_a_gradient(runs):
    model = tiny_transformer(num_layers=2)
    inputs = tiny_inputs(model)
    if not runs.video:
        inputs["hidden_states"] = None
    if not runs.audio:
        inputs["audio_hidden_states"] = None
    video, audio = model(**inputs)
    (video if runs.video else audio).square().sum().backward()
    layers = matching_modules(model, resolve("all").transformer)
    without = [path for path in layers if model.get_submodule(path).weight.grad is None]
    assert unused_modules(layers, runs) == without


@pytest.mark.parametrize("pair", GOLDEN["key_mapping"], ids=lambda pair: pair["diffusers"].split(".")[-3])
def test_names_in_files_are_those_of_the_reference(pair):
    stem = pair["original"].removesuffix("A.weight")
    factors = {f"{stem}A.weight": torch.zeros(2, 4), f"{stem}B.weight": torch.zeros(4, 2)}
    layers = read_lora(factors, strict=True)
    assert pair["diffusers"] in lora_to_format(layers, "diffusers")
    assert list(lora_to_format(layers, "original")) == list(factors)


@pytest.mark.parametrize("case", GOLDEN["alpha"], ids=lambda case: f"rank {case['rank']}, alpha {case['alpha']}")
def test_alpha_is_folded_as_in_the_reference(case):
    down, up = (torch.tensor(case[name]) for name in ("lora_A", "lora_B"))
    name = "transformer.transformer_blocks.0.attn1.to_q"
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    settings = {
        "lora_adapter_metadata": f'{{"transformer.lora_alpha": {case["alpha"]}, "transformer.r": {case["rank"]}}}'
    }
    folded = list(lora_to_format(read_lora(tensors, metadata=settings), "original").values())
    torch.testing.assert_close(folded[1].load(), torch.tensor(case["lora_B_folded"]), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        folded[1].load() @ folded[0].load(), torch.tensor(case["delta_weight"]), rtol=0, atol=1e-6
    )
