"""LoRA files with values that no LoRA can have: refused by file and tensor, and nothing is touched."""

import json

import pytest
import torch
from safetensors.torch import save_file

from ltx2_diffusers.adapters.convert import convert_lora
from ltx2_diffusers.adapters.file import load_lora
from ltx2_diffusers.adapters.settings import ADAPTER_METADATA
from tests.adapters.tiny import Q, assert_equal, build, lora, outputs, settings

NAN = float("nan")
DOWN, UP = (f"transformer.{Q}.lora_{side}.weight" for side in "AB")
GOOD = lora()


def with_extra(ending: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return GOOD | {f"transformer.{Q}.{ending}": tensor}


TENSORS = {
    "integers": ({k: t.int() for k, t in GOOD.items()}, rf"{DOWN}' is of type torch\.int32"),
    "rank 0": ({DOWN: torch.ones(0, 32), UP: torch.ones(32, 0)}, rf"{DOWN}' is \[0, 32\].*r above 0"),
    "ranks that differ": (GOOD | {UP: torch.ones(32, 5)}, rf"do not fit together.*{UP}' \[32, 5\]"),
    "one dimension": (GOOD | {DOWN: torch.ones(32)}, r"do not fit together.*\[32\]"),
    "convolution": (GOOD | {DOWN: torch.ones(4, 32, 1, 1)}, r"\[4, 32, 1, 1\]"),
    "another layer": (GOOD | {DOWN: torch.ones(4, 33)}, rf"{Q} are for a layer of \[32, 33\].*\[32, 32\]"),
    "NaN down": (GOOD | {DOWN: torch.full((4, 32), NAN)}, rf"{DOWN}' holds NaN or infinite"),
    "infinite up": (GOOD | {UP: torch.full((32, 4), float("inf"))}, rf"{UP}' holds NaN or infinite"),
    "fp8 NaN": (GOOD | {UP: torch.full((32, 4), NAN).to(torch.float8_e4m3fn)}, rf"{UP}' holds NaN"),
    "alpha NaN": (with_extra("alpha", torch.tensor(NAN)), rf"{Q}\.alpha' has to be one finite number but is \[nan\]"),
    "alpha infinite": (with_extra("alpha", torch.tensor(-float("inf"))), r"alpha' has to be one finite number"),
    "two alphas": (with_extra("alpha", torch.ones(2)), r"alpha' has to be one finite number but is \[2\]"),
    "magnitude NaN": (with_extra("dora_scale", torch.full((32, 1), NAN)), "dora_scale' holds NaN"),
    "magnitude of inputs": (with_extra("dora_scale", torch.ones(1, 32)), r"\[32\] or \[32, 1\] but is \[1, 32\]"),
    "bias NaN": (with_extra("lora_B.bias", torch.full((32,), NAN)), r"lora_B\.bias' holds NaN"),
    "bias too short": (with_extra("lora_B.bias", torch.ones(3)), r"lora_B\.bias' has to be \[32\] but is \[3\]"),
    "bias of A": (with_extra("lora_A.bias", torch.ones(4)), r"1 of 3 LoRA tensors match no module.*lora_A\.bias"),
    "DoRA with bias": (
        with_extra("lora_B.bias", torch.ones(32)) | with_extra("dora_scale", torch.ones(32, 1)),
        "DoRA with biases",
    ),
    "alpha alone": ({f"transformer.{Q}.alpha": torch.ones(())}, rf"no down factor for {Q}.*{Q}\.alpha"),
    "a misspelt module": (
        GOOD | {key.replace("to_q", "to_qq"): tensor.clone() for key, tensor in GOOD.items()},
        r"2 of 4 LoRA tensors.*to_qq.*nearest to the first is transformer_blocks\.0\.attn1\.to_q",
    ),
    "a text encoder": (GOOD | {"lora_te_x.lora_down.weight": torch.ones(2, 2)}, "lora_te_x"),
    "nothing": ({}, "holds no tensors"),
    "a full difference": (with_extra("diff_b", torch.ones(32)), "full weight difference.*diff_b"),
}
SETTINGS = {
    "[1]": "has to be a JSON object but is",
    "null": "has to be a JSON object but is None",
    "[" * 100_000: "is no JSON",
    "{": "is no JSON",
    '{"transformer.lora_alpha": "x"}': r"'transformer\.lora_alpha'.*finite number but is 'x'",
    '{"transformer.lora_alpha": NaN}': "finite number but is nan",
    '{"transformer.lora_alpha": true}': "finite number but is True",
    '{"lora_alpha": 1' + "0" * 400 + "}": "'lora_alpha'.*finite number",
    '{"transformer.alpha_pattern": 5}': "numbers by module name but is 5",
    '{"transformer.alpha_pattern": {"(": 1}}': r"numbers by module name but is {'\(': 1}",
    '{"transformer.alpha_pattern": {"to_q": Infinity}}': "numbers by module name but is {'to_q': inf}",
    '{"transformer.r": 0}': "positive whole number but is 0",
    '{"transformer.use_rslora": "yes"}': "true or false but is 'yes'",
    '{"transformer.use_dora": true}': "says that the adapter of transformer is DoRA, but it has no magnitudes",
    '{"transformer.peft_type": "LOKR"}': "\"LORA\" but is 'LOKR'",
}


@pytest.fixture(scope="module")
def adapted():
    """A pipeline with an active adapter, and what it computes."""
    pipe = build()
    pipe.load_lora_weights(lora(seed=1), adapter_name="kept")
    pipe.set_adapters("kept", 0.5)
    return pipe, settings(pipe), outputs(pipe)


def refused(adapted, path, message: str) -> None:
    pipe, before, expected = adapted
    with pytest.raises(ValueError, match=rf"(?s){path.name}.*{message}"):
        pipe.load_lora_weights(path, adapter_name="new")
    assert settings(pipe) == before
    assert pipe.get_list_adapters() == {"transformer": ["kept"]}
    assert_equal(outputs(pipe), expected)


@pytest.mark.parametrize("tensors, message", TENSORS.values(), ids=TENSORS)
def test_impossible_tensors_are_refused(adapted, tmp_path, tensors, message):
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    refused(adapted, path, message)


@pytest.mark.parametrize("text, message", SETTINGS.items(), ids=[text[:45] for text in SETTINGS])
def test_impossible_settings_are_refused(adapted, tmp_path, text, message):
    path = tmp_path / "lora.safetensors"
    save_file(GOOD, path, {ADAPTER_METADATA: text})
    refused(adapted, path, message)


def test_a_damaged_part_of_one_component_keeps_the_other_untouched(adapted, tmp_path):
    path = tmp_path / "lora.safetensors"
    connectors = lora("text_proj_in", sizes=(8, 24), prefix="connectors.")
    save_file(GOOD | {key: tensor * NAN for key, tensor in connectors.items()}, path)
    refused(adapted, path, r"connectors\.text_proj_in\.lora_A\.weight' holds NaN")


@pytest.mark.parametrize(
    "name, content", [("a.bin", b""), ("a.pt", b"junk" * 9), ("a.ckpt", b"\x80\x02."), ("a.sft", b"")]
)
def test_damaged_files_are_named(adapted, tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    refused(adapted, path, "")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"a": 1}, "'a' is of type int"),
        ({1: torch.ones(2, 2)}, "but 1 is of type"),
        ({"a": None}, "'a' is of type NoneType"),
        ({DOWN: torch.ones(4, 32, device="meta"), UP: torch.ones(32, 4)}, "has no values"),
    ],
)
def test_state_dicts_hold_tensors_by_name(given, message):
    with pytest.raises(ValueError, match=rf"the given LoRA state dict.*{message}"):
        load_lora(given)


def test_fp8_factors_are_read_exactly():
    small = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in GOOD.items()}
    read = load_lora(small).state_dict("transformer")
    for key, tensor in small.items():
        assert torch.equal(read[key.removeprefix("transformer.")].float(), tensor.float())


def test_conversion_refuses_them_too(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file(GOOD | {UP: torch.full((32, 4), NAN)}, path)
    with pytest.raises(ValueError, match=rf"{UP}' holds NaN"):
        convert_lora(path, tmp_path / "out.safetensors", "original")
    assert [file.name for file in tmp_path.iterdir()] == ["lora.safetensors"]


@pytest.mark.parametrize("name", ["reference_downscale_factor", "reference_spatial_scale_factor"])
@pytest.mark.parametrize("prefix", ["", "ss_"])
def test_trainers_write_the_scale_of_references_in_many_ways(tmp_path, prefix, name):
    path = tmp_path / "lora.safetensors"
    save_file(GOOD, path, {prefix + name: "2", f"{prefix}reference_temporal_scale_factor": "3"})
    pipe = build()
    pipe.load_lora_weights(path)
    assert pipe.reference_factors() == (2, 3)


def test_what_a_trainer_did_not_set_is_not_there(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file(GOOD, path, {"ss_reference_downscale_factor": "None", "reference_downscale_factor": "2"})
    assert load_lora(path).metadata.reference_downscale_factor == 2


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "nan", "inf", "1e999", "many", "", "None"])
@pytest.mark.parametrize("name", ["reference_downscale_factor", "ss_reference_temporal_scale_factor"])
def test_impossible_scales_are_refused_by_name(tmp_path, name, text):
    if name.startswith("ss_") and text == "None":
        return
    path = tmp_path / "lora.safetensors"
    save_file(GOOD, path, {name: text})
    with pytest.raises(
        ValueError, match=rf"lora\.safetensors.*'{name}' has to be a positive whole number but is '{text}'"
    ):
        load_lora(path)


def test_two_spellings_may_not_contradict(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file(GOOD, path, {"reference_downscale_factor": "2", "ss_reference_downscale_factor": "2"})
    assert load_lora(path).metadata.reference_downscale_factor == 2
    save_file(GOOD, path, {"reference_downscale_factor": "1", "ss_reference_downscale_factor": "2"})
    with pytest.raises(ValueError, match=r"contradicts itself: {'reference_downscale_factor': 1, 'ss_reference_"):
        load_lora(path)


def test_settings_without_a_component_hold_for_the_only_one(tmp_path):
    """As models write them that save their own adapter."""
    path = tmp_path / "lora.safetensors"
    save_file(
        {key.removeprefix("transformer."): t for key, t in GOOD.items()}, path, {ADAPTER_METADATA: '{"lora_alpha": 8}'}
    )
    assert load_lora(path).adapter_config("transformer")["lora_alpha"] == 8


@pytest.mark.parametrize("rank_stabilised, alpha", [(False, 8), (True, 16)])
def test_the_folder_that_peft_writes_keeps_its_alpha(tmp_path, rank_stabilised, alpha):
    save_file(lora(prefix="base_model.model."), tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": rank_stabilised, "target_modules": ["to_q"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert load_lora(tmp_path).adapter_config("transformer")["lora_alpha"] == alpha
