"""LoRA files for pipelines: every layout, exact alphas, metadata, and errors that name the file."""

import json

import pytest
import torch
from safetensors.torch import save_file

from ltx2_diffusers.adapters.file import LORA_WEIGHT_NAME, find_lora_file, load_lora, lora_for_saving
from ltx2_diffusers.adapters.keys import LORA_FORMATS
from tests.golden_data import load_tensors
from tests.golden_loras import ORIGINAL, WIDE, lora_file

from .tiny import CLASSES, V20

Q, K = "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_k"


def factors(rank: int = 4, path: str = Q, width: int = 32, dtype: torch.dtype = torch.float32) -> dict:
    generator = torch.Generator().manual_seed(rank)
    down, up = (torch.randn(shape, generator=generator).to(dtype) for shape in ((rank, width), (width, rank)))
    return {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}


@pytest.fixture(scope="module")
def models():
    names = {"transformer": "LTX2AVTransformer3DModel", "connectors": "LTX2TextConnectors"}
    return {component: CLASSES[name].from_single_file(V20) for component, name in names.items()}


@pytest.mark.parametrize("layout", LORA_FORMATS)
def test_every_layout_gives_the_same_factors(layout, models):
    lora = load_lora(lora_file(layout), models)
    expected = load_tensors(lora_file("diffusers"))
    found = lora.state_dict("transformer", fold_alpha=True)
    assert {f"transformer.{key}" for key in found} == set(expected)
    assert all(torch.equal(found[key.removeprefix("transformer.")], expected[key]) for key in expected)
    halved = layout in ("original_with_alpha", "kohya_dotted", "kohya_underscored")
    assert set(lora.network_alphas("transformer").values()) == {2.0 if halved else 4}
    assert lora.components == ("transformer",) and lora.metadata.rank == 4


def test_alpha_stays_exact_in_half_precision():
    tensors = factors(3, dtype=torch.bfloat16) | {f"{Q}.alpha": torch.tensor(0.7)}
    lora = load_lora(tensors)
    config = lora.adapter_config("transformer")
    assert config["lora_alpha"] == pytest.approx(0.7) and config["r"] == 3
    assert torch.equal(lora.state_dict("transformer")[f"{Q}.lora_B.weight"], tensors[f"{Q}.lora_B.weight"])
    folded = lora.state_dict("transformer", fold_alpha=True)[f"{Q}.lora_B.weight"]
    scale = float(torch.tensor(0.7)) / 3
    assert torch.equal(folded, (tensors[f"{Q}.lora_B.weight"].float() * scale).bfloat16())


def test_ranks_and_alphas_may_differ_per_module():
    mixed = factors(4) | factors(2, K) | factors(4, "transformer_blocks.1.attn1.to_k")
    mixed |= {f"{Q}.alpha": torch.tensor(1.0)}
    assert load_lora(mixed).adapter_config("transformer") == {
        "r": 4,
        "lora_alpha": 1.0,
        "rank_pattern": {f"^{K}": 2},
        "alpha_pattern": {f"^{K}": 2, "^transformer_blocks.1.attn1.to_k": 4},
        "target_modules": [Q, K, "transformer_blocks.1.attn1.to_k"],
    }


def test_settings_name_modules_as_diffusers_writes_them():
    tensors, header = lora_for_saving(
        {"transformer": factors()}, {"transformer": {"lora_alpha": 4, "alpha_pattern": {f"^{Q}": 1}}}, "original", {}
    )
    assert header == {"format": "pt"}
    assert torch.equal(tensors[f"diffusion_model.{Q}.lora_B.weight"], factors()[f"{Q}.lora_B.weight"] / 4)


def test_only_the_header_is_read_at_first(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file(factors(), path)
    lora = load_lora(path)
    path.unlink()
    assert lora.modules("transformer") == [Q]
    with pytest.raises(FileNotFoundError):
        lora.state_dict("transformer")


@pytest.mark.parametrize("text, value", [("2", 2), ("4.0", 4)])
def test_reference_factors_come_from_the_metadata(tmp_path, text, value):
    path = tmp_path / "lora.safetensors"
    save_file(factors(), path, {"reference_downscale_factor": text, "reference_temporal_scale_factor": text})
    metadata = load_lora(path).metadata
    assert (metadata.reference_downscale_factor, metadata.reference_temporal_scale_factor) == (value, value)


def test_factors_default_to_one():
    metadata = load_lora(factors()).metadata
    assert (metadata.reference_downscale_factor, metadata.reference_temporal_scale_factor) == (1, 1)


def test_the_whole_lora_must_fit_the_models(models, tmp_path):
    path = tmp_path / "foreign.safetensors"
    gate = factors(4, "diffusion_model.transformer_blocks.0.attn1.to_gate_logits")
    save_file(gate | factors(4, f"diffusion_model.{Q}"), path)
    with pytest.raises(ValueError, match=r"foreign\.safetensors.*2 of 4.*to_gate_logits.*nearest.*attn1\.to"):
        load_lora(path, models)
    save_file(factors(4, "diffusion_model.double_blocks.0.img_attn.qkv"), path)
    with pytest.raises(ValueError, match=r"foreign\.safetensors.*none of the 2 tensors.*nearest"):
        load_lora(path, models)
    save_file(factors(4, width=64), path)
    with pytest.raises(ValueError, match=r"foreign\.safetensors.*attn1\.to_q.*\[64, 64\].*\[32, 32\]"):
        load_lora(path, models)
    with pytest.raises(ValueError, match=r"the given LoRA state dict.*no tensors"):
        load_lora({}, models)


def test_a_missing_model_takes_any_lora(models):
    lora = load_lora(WIDE, {**models, "connectors": None})
    assert set(lora.components) == {"transformer", "connectors"}
    assert lora.only(["connectors"]).components == ("connectors",)


def test_files_are_found_in_folders(tmp_path):
    for name in ("one.safetensors", "two.safetensors", "sub/three.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_file(factors(), tmp_path / name)
    with pytest.raises(
        ValueError, match=r"several LoRA files \(one\.safetensors, two\.safetensors\); pass weight_name"
    ):
        find_lora_file(tmp_path)
    assert find_lora_file(tmp_path, weight_name="two.safetensors").name == "two.safetensors"
    assert find_lora_file(tmp_path, subfolder="sub").name == "three.safetensors"
    save_file(factors(), tmp_path / LORA_WEIGHT_NAME)
    assert find_lora_file(str(tmp_path)).name == LORA_WEIGHT_NAME
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no LoRA file"):
        find_lora_file(tmp_path / "empty")


def test_absent_files_are_named():
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_lora("/nowhere/lora.safetensors")
    with pytest.raises(ValueError, match=r"'someone/lora'; offline.*weight_name"):
        load_lora("someone/lora", local_files_only=True)
    with pytest.raises(TypeError, match="wheight_name"):
        load_lora(ORIGINAL, wheight_name="a.safetensors")
    with pytest.raises(ValueError, match=r"weight_name.*state dict"):
        load_lora(factors(), weight_name="a.safetensors")


def test_pickles_are_read_as_tensors_only(tmp_path):
    path = tmp_path / "lora.bin"
    torch.save(factors(), path)
    assert load_lora(tmp_path).modules("transformer") == [Q]
    with pytest.raises(ValueError, match=r"lora\.bin.*use_safetensors"):
        load_lora(path, use_safetensors=True)
    torch.save({"state_dict": factors()}, path)
    with pytest.raises(ValueError, match=r"lora\.bin.*something else"):
        load_lora(path)


@pytest.mark.parametrize("layout", LORA_FORMATS)
def test_saved_layouts_read_back(layout):
    config = {"lora_alpha": 2, "r": 4, "target_modules": {Q}}
    layers = {"transformer": factors(), "connectors": factors(2, "text_proj_in")}
    tensors, header = lora_for_saving(layers, {"transformer": config, "connectors": None}, layout, {"note": "x"})
    assert header["note"] == "x" and header["format"] == "pt"
    if layout == "diffusers":
        assert json.loads(header["lora_adapter_metadata"])["transformer.target_modules"] == [Q]
        assert set(tensors) == {f"{component}.{key}" for component, part in layers.items() for key in part}
        return
    lora = load_lora(tensors)
    up = lora.state_dict("transformer", fold_alpha=True)[f"{Q}.lora_B.weight"]
    assert torch.equal(up, factors()[f"{Q}.lora_B.weight"] / 2)
    assert torch.equal(
        lora.state_dict("connectors")["text_proj_in.lora_A.weight"], layers["connectors"]["text_proj_in.lora_A.weight"]
    )


def test_saving_refuses_what_could_not_be_loaded():
    with pytest.raises(ValueError, match="format must be one of"):
        lora_for_saving({"transformer": factors()}, {"transformer": None}, "comfy", {})
    with pytest.raises(ValueError, match="none of the 2 tensors"):
        lora_for_saving({"transformer": factors(4, "single_blocks.0.linear1")}, {"transformer": None}, "diffusers", {})
