"""LoRA adapters on a pipeline: golden outputs, both libraries' files, switching that leaves no trace, clear errors."""

import logging
import warnings

import pytest
import torch
from diffusers import LTX2Pipeline as DiffusersLTX2Pipeline
from peft import get_peft_model_state_dict

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.adapters.active import adapter_layers, added_adapters, unchanged_adapters
from tests.adapters.tiny import OUTPUTS, VECTORS, Q, assert_equal, build, in_diffusers, outputs, settings
from tests.checkpoints.tiny import V20, expected_folder
from tests.golden_data import assert_within, golden_cases, load_metadata, load_tensors
from tests.golden_loras import ORIGINAL, SECOND, WIDE, lora_file
from tests.pipelines.tiny import EXPLICIT, NO_GUIDANCE, PROMPT, seeded

FUSED = golden_cases("checkpoint/lora/expected", "fused_*.safetensors")
recorded_numbers = pytest.mark.usefixtures("golden_sinusoid")


def assert_golden(found: dict[str, torch.Tensor], name: str) -> None:
    expected = {key: VECTORS[f"expected.{name}.{key}"] for key in OUTPUTS if f"expected.{name}.{key}" in VECTORS}
    assert expected
    for key, tensor in expected.items():
        assert_within(found[key], tensor, "checkpoint", f"{name}, {key}")


@pytest.fixture
def pipe() -> LTX2Pipeline:
    return build()


# --- the reference's numbers ---


# That all layouts hold the same factors is tested with the reader.
@recorded_numbers
@pytest.mark.parametrize("layout", ["original", "kohya_underscored", "peft"])
def test_a_lora_of_any_layout_gives_the_golden_outputs(pipe, layout):
    pipe.load_lora_weights(lora_file(layout))
    assert_golden(outputs(pipe), "1.0")
    assert pipe.get_active_adapters() == ["default_0"]


@recorded_numbers
def test_strengths_and_sets_give_the_golden_outputs(pipe):
    base = outputs(pipe)
    assert_golden(base, "base")
    pipe.load_lora_weights(str(ORIGINAL), adapter_name="original")
    pipe.set_adapters("original", 0.5)
    assert_golden(outputs(pipe), "0.5")
    pipe.load_lora_weights(load_tensors(SECOND), adapter_name="second")
    assert pipe.get_active_adapters() == ["second"]
    pipe.set_adapters(["original", "second"], (0.8, -0.5))
    assert_golden(outputs(pipe), "two")
    pipe.load_lora_weights(WIDE, adapter_name="wide")
    found = outputs(pipe)
    assert_golden(found, "wide_full")
    for key in OUTPUTS[:2]:
        assert_within(found[key], VECTORS[f"expected.wide.{key}"], "checkpoint")
    pipe.set_adapters([])
    assert_equal(outputs(pipe), base)
    pipe.unload_lora_weights()
    assert_equal(outputs(pipe), base)
    assert adapter_layers(pipe) == []


@recorded_numbers
def test_the_text_projection_alone_is_what_diffusers_applies(pipe):
    tensors = {key: tensor for key, tensor in load_tensors(WIDE).items() if "_connector." not in key}
    pipe.load_lora_weights(tensors)
    assert_golden(outputs(pipe), "wide")


@pytest.mark.parametrize("path", FUSED, ids=lambda path: path.stem)
def test_fused_weights_are_the_golden_ones(path):
    pipe = build(torch.bfloat16)
    strengths = {
        name: float(strength)
        for name, strength in (item.split("=") for item in load_metadata(path)["strengths"].split(", "))
    }
    for name in strengths:
        pipe.load_lora_weights(lora_file(name), adapter_name=name)
    if len(strengths) == 1:
        pipe.fuse_lora(lora_scale=strengths["original"])
    else:
        pipe.set_adapters(list(strengths), list(strengths.values()))
        pipe.fuse_lora()
    assert pipe.num_fused_loras == len(strengths)
    pipe.unload_lora_weights()
    weights = pipe.transformer.state_dict()
    for key, expected in load_tensors(path).items():
        found = weights[key.removeprefix("model.diffusion_model.")]
        assert found.dtype == expected.dtype
        assert_within(found.float(), expected.float(), "fused LoRA")


def test_fusing_equals_the_adapter_and_unfusing_takes_it_back(pipe):
    base = outputs(pipe)
    pipe.load_lora_weights(WIDE)
    active = outputs(pipe)
    pipe.fuse_lora(components=["transformer", "connectors"])
    fused = outputs(pipe)
    for key in OUTPUTS:
        assert_within(fused[key], active[key], "fused LoRA, float32")
    pipe.unfuse_lora(components=["transformer", "connectors"])
    pipe.set_adapters([])
    unfused = outputs(pipe)
    for key in OUTPUTS:
        assert_within(unfused[key], base[key], "fused LoRA, float32")


# --- diffusers' pipeline and files ---


@pytest.mark.parametrize("path", [lora_file("diffusers"), ORIGINAL], ids=lambda path: path.stem)
def test_the_same_file_does_the_same_in_diffusers(pipe, path):
    reference = in_diffusers(pipe)
    for one in (pipe, reference):
        one.load_lora_weights(str(path), adapter_name="style")
        one.set_adapters("style", {"transformer": 0.7})
    ours, theirs = outputs(pipe), outputs(reference)
    for key in OUTPUTS:
        assert_within(ours[key], theirs[key], "equal models")


def trained(pipe, alpha: int = 3) -> dict:
    """An adapter with other alpha than rank, as a trainer would hand it to `save_lora_weights`."""
    tensors, config = LTX2Pipeline.lora_state_dict(SECOND, return_lora_metadata=True)
    config["transformer.lora_alpha"] = alpha
    LTX2Pipeline.load_lora_into_transformer(tensors, pipe.transformer, "trained", metadata=config)
    return {
        "transformer_lora_layers": get_peft_model_state_dict(pipe.transformer, adapter_name="trained"),
        "transformer_lora_adapter_metadata": pipe.transformer.peft_config["trained"].to_dict(),
    }


@pytest.mark.parametrize(
    "saver, layout", [(DiffusersLTX2Pipeline, None), (LTX2Pipeline, "diffusers"), (LTX2Pipeline, "original")]
)
def test_saved_adapters_load_in_both_libraries(pipe, tmp_path, saver, layout):
    arguments = trained(pipe)
    expected = outputs(pipe)
    assert not torch.equal(expected["sample"], VECTORS["expected.base.sample"])
    extra = {} if layout is None else {"format": layout, "metadata": {"reference_downscale_factor": "2"}}
    saver.save_lora_weights(tmp_path, **arguments, **extra)
    fresh = build()
    for one in (fresh, in_diffusers(fresh)):
        one.load_lora_weights(str(tmp_path))
        for key, tensor in outputs(one).items():
            assert_within(tensor, expected[key], "equal models")
    if layout:
        assert fresh.lora_metadata["default_0"].reference_downscale_factor == 2


def test_connector_adapters_are_saved_too(pipe, tmp_path):
    pipe.load_lora_weights(WIDE)
    expected = outputs(pipe)
    parts = {
        f"{name}_lora_layers": get_peft_model_state_dict(getattr(pipe, name), adapter_name="default_0")
        for name in ("transformer", "connectors")
    }
    for layout in ("diffusers", "original"):
        pipe.save_lora_weights(tmp_path / layout, **parts, weight_name="wide.safetensors", format=layout)
        fresh = build()
        fresh.load_lora_weights(tmp_path / layout, weight_name="wide.safetensors")
        assert_equal(outputs(fresh), expected)


def test_saving_options(pipe, tmp_path):
    layers = {f"{Q}.lora_A.weight": torch.ones(2, 32), f"{Q}.lora_B.weight": torch.ones(32, 2)}
    seen = {}
    pipe.save_lora_weights(tmp_path, layers, save_function=lambda tensors, path: seen.update({path: tensors}))
    assert set(next(iter(seen.values()))) == {f"transformer.{key}" for key in layers}
    pipe.save_lora_weights(tmp_path, layers, is_main_process=False)
    assert list(tmp_path.iterdir()) == []
    pipe.save_lora_weights(tmp_path, layers, safe_serialization=False)
    assert {path.name for path in tmp_path.iterdir()} == {"pytorch_lora_weights.bin", "README.md"}
    pipe.load_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="give transformer_lora_layers"):
        pipe.save_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="must be a folder"):
        pipe.save_lora_weights(tmp_path / "pytorch_lora_weights.bin", layers)
    with pytest.raises(ValueError, match="safe_serialization=True"):
        pipe.save_lora_weights(tmp_path, layers, safe_serialization=False, metadata={"a": "b"})


@recorded_numbers
def test_a_read_state_dict_carries_alpha_once():
    path = lora_file("kohya_dotted")
    folded = LTX2Pipeline.lora_state_dict(path)
    plain, config = LTX2Pipeline.lora_state_dict(path, return_lora_metadata=True)
    assert config["transformer.lora_alpha"] == 2.0 and config["transformer.r"] == 4
    for arguments in ((folded, None), (plain, config)):
        pipe = build()
        pipe.load_lora_into_transformer(arguments[0], pipe.transformer, metadata=arguments[1])
        assert_golden(outputs(pipe), "1.0")


# --- strength of one call ---


def test_attention_kwargs_scale_the_adapters_of_a_call():
    full = LTX2Pipeline.from_single_file(V20, text_encoder=expected_folder(V20), dtype=torch.float32)
    full.set_progress_bar_config(disable=True)

    def call(scale: float | None = None) -> torch.Tensor:
        kwargs = None if scale is None else {"scale": scale}
        arguments = {**EXPLICIT, **NO_GUIDANCE, "prompt": PROMPT, "generator": seeded(1)}
        return full(**arguments, attention_kwargs=kwargs).frames

    base = call()
    full.load_lora_weights(SECOND)
    active = call()
    assert not torch.equal(active, base)
    scaled, silent = call(0.5), call(0.0)
    assert torch.equal(call(), active)
    full.set_adapters("default_0", 0.5)
    assert torch.equal(scaled, call())
    assert torch.equal(silent, base)
    full.unload_lora_weights()
    assert torch.equal(call(), base)


def test_a_scaled_pass_inside_a_guarded_block_leaves_no_trace(pipe):
    pipe.load_lora_weights(SECOND)
    pipe.set_adapters("default_0", 0.7)
    before = settings(pipe)
    for scale in (0.0, 0.3):
        with unchanged_adapters(pipe):
            outputs(pipe, attention_kwargs={"scale": scale})
        assert settings(pipe) == before


# --- switching ---


@recorded_numbers
def test_switching_restores_everything_even_after_an_exception(pipe):
    base = outputs(pipe)
    pipe.load_lora_weights(ORIGINAL, adapter_name="original")
    pipe.load_lora_weights(SECOND, adapter_name="second")
    pipe.set_adapters(["original"], [0.3])
    before, expected = settings(pipe), outputs(pipe)
    weights = {key: tensor.clone() for key, tensor in pipe.transformer.state_dict().items()}
    with added_adapters(pipe, {"original": 0.8, "second": -0.5}):
        assert_golden(outputs(pipe), "two")
        with added_adapters(pipe, {"original": 0.0, "second": 0.0}):
            assert_equal(outputs(pipe), base)
        assert_golden(outputs(pipe), "two")
    assert settings(pipe) == before
    with pytest.raises(KeyboardInterrupt), added_adapters(pipe, {"second": 1.0}):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="absent"), added_adapters(pipe, {"second": 1.0, "absent": 1.0}):
        pass
    assert settings(pipe) == before
    assert_equal(outputs(pipe), expected)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in pipe.transformer.state_dict().items())


@recorded_numbers
def test_switching_turns_disabled_adapters_on_and_off_again(pipe):
    pipe.load_lora_weights(ORIGINAL, adapter_name="original")
    pipe.disable_lora()
    before = settings(pipe)
    with added_adapters(pipe, {"original": 0.5}):
        assert_golden(outputs(pipe), "0.5")
    assert settings(pipe) == before
    assert_golden(outputs(pipe), "base")


@recorded_numbers
def test_switching_to_an_adapter_on_fused_layers_is_refused(pipe):
    pipe.load_lora_weights(ORIGINAL, adapter_name="original")
    pipe.load_lora_weights(SECOND, adapter_name="second")
    pipe.set_adapters("original")
    pipe.fuse_lora()
    refused = pytest.raises(ValueError, match=r"'second' has no effect while \['original'\] are fused")
    with refused, added_adapters(pipe, {"second": 1.0}):
        pass
    with added_adapters(pipe, {"original": 0.0}):
        # What is fused belongs to the weights.
        assert_within(outputs(pipe)["sample"], VECTORS["expected.1.0.sample"], "fused LoRA, float32")


@recorded_numbers
def test_loading_does_not_take_fused_adapters_out_of_the_weights(pipe):
    pipe.load_lora_weights(ORIGINAL)
    pipe.fuse_lora()
    with pytest.raises(ValueError, match=r"\['default_0'\] are fused; .*unload_lora_weights"):
        pipe.load_lora_weights(SECOND)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(SECOND)
    pipe.set_adapters([])
    assert_within(outputs(pipe)["sample"], VECTORS["expected.1.0.sample"], "fused LoRA, float32")


@recorded_numbers
def test_a_pipeline_without_adapters_can_be_switched_to_none(pipe):
    with added_adapters(pipe, {}):
        assert_golden(outputs(pipe), "base")


@recorded_numbers
def test_a_component_keeps_no_old_adapter_when_a_new_one_leaves_it_alone(pipe):
    pipe.load_lora_weights(WIDE, adapter_name="wide")
    pipe.load_lora_weights(ORIGINAL, adapter_name="original")
    assert pipe.get_active_adapters() == ["original"]
    assert_golden(outputs(pipe), "1.0")
    torch.testing.assert_close(outputs(pipe)["connectors.video"], VECTORS["expected.base.connectors.video"])
    pipe.delete_adapters("original")
    pipe.set_adapters("wide")
    assert_golden(outputs(pipe), "wide_full")


# --- loading: whole or not at all ---


def test_a_lora_that_does_not_fit_changes_nothing(pipe):
    wrong = load_tensors(ORIGINAL) | {
        "connectors.text_proj_in.lora_A.weight": torch.ones(2, 5),
        "connectors.text_proj_in.lora_B.weight": torch.ones(8, 2),
    }
    with pytest.raises(ValueError, match=r"text_proj_in.*\[8, 5\]"):
        pipe.load_lora_weights(wrong)
    assert adapter_layers(pipe) == [] and pipe.get_list_adapters() == {}


def test_a_failure_between_components_takes_the_adapter_back(pipe, tmp_path):
    path = tmp_path / "wide.safetensors"
    path.write_bytes(WIDE.read_bytes())
    pipe.load_lora_weights(SECOND, adapter_name="second")
    before, expected = settings(pipe), outputs(pipe)

    class Vanishing(type(pipe.connectors)):
        def load_lora_adapter(self, *_args, **_kwargs):
            raise OSError("the disk is gone")

    pipe.connectors.__class__ = Vanishing
    with pytest.raises(OSError, match="the disk is gone"):
        pipe.load_lora_weights(path, adapter_name="wide")
    assert pipe.get_list_adapters() == {"transformer": ["second"]}
    assert [entry for entry in settings(pipe) if entry[2]] == before
    assert_equal(outputs(pipe), expected)


def test_names_are_checked(pipe):
    pipe.load_lora_weights(SECOND, adapter_name="style")
    with pytest.raises(ValueError, match=r"'style' is in use.*delete_adapters"):
        pipe.load_lora_weights(SECOND, adapter_name="style")
    with pytest.raises(ValueError, match=r"'ltx-2\.3'; use 'ltx-2_3'"):
        pipe.load_lora_weights(SECOND, adapter_name="ltx-2.3")
    with pytest.raises(ValueError, match="3 values for the 1 adapters"):
        pipe.set_adapters(["style"], [1.0, 1.0, 1.0])
    # One name for both components, although the connectors had no adapter before.
    tensors = load_tensors(SECOND)
    tensors |= {key: tensor for key, tensor in load_tensors(WIDE).items() if "text_embedding_projection" in key}
    pipe.load_lora_weights(tensors)
    pipe.load_lora_weights(tensors)
    assert pipe.get_list_adapters() == {
        "transformer": ["style", "default_1", "default_2"],
        "connectors": ["default_1", "default_2"],
    }


def test_loading_says_nothing_without_cause(pipe, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.load_lora_weights(SECOND, adapter_name="a")
        pipe.load_lora_weights(SECOND, adapter_name="lora")
    assert caplog.text == ""


def test_an_absent_component_is_left_out_with_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    pipe = build(connectors=None)
    pipe.load_lora_weights(WIDE)
    assert "modules of the connectors, which the pipeline was built without" in caplog.text
    only = {key: tensor for key, tensor in load_tensors(WIDE).items() if "connector" in key}
    with pytest.raises(ValueError, match=r"only \['connectors'\], which the pipeline was built without"):
        pipe.load_lora_weights(only)


@recorded_numbers
def test_hotswapping_puts_new_factors_in_place(pipe):
    pipe.load_lora_weights(ORIGINAL, adapter_name="style")
    doubled = {key: tensor * 2 if "lora_B" in key else tensor for key, tensor in load_tensors(ORIGINAL).items()}
    pipe.load_lora_weights(doubled, adapter_name="style", hotswap=True)
    pipe.set_adapters("style", 0.5)
    assert_golden(outputs(pipe), "1.0")
    assert pipe.lora_metadata["style"].reference_downscale_factor == 1
    with pytest.raises(ValueError, match=r"name of a loaded adapter, one of \['style'\], got 'other'"):
        pipe.load_lora_weights(doubled, adapter_name="other", hotswap=True)
    with pytest.raises(ValueError, match="only the new LoRA changes the connectors"):
        pipe.load_lora_weights(WIDE, adapter_name="style", hotswap=True)
    more = {key: t for key, t in load_tensors(WIDE).items() if "connector" not in key and "projection." not in key}
    with pytest.raises(ValueError, match="which the old does not"):
        pipe.load_lora_weights(more, adapter_name="style", hotswap=True)
    assert_golden(outputs(pipe), "1.0")


# --- what adapters say about themselves ---


def test_reference_factors_are_those_of_the_active_adapters(pipe):
    pipe.load_lora_weights(ORIGINAL, adapter_name="reference")
    assert pipe.reference_factors() == (2, 1)
    pipe.load_lora_weights(SECOND, adapter_name="second")
    assert pipe.reference_factors() == (1, 1)
    assert pipe.reference_factors(["second", "reference"]) == (2, 1)
    assert pipe.lora_metadata["second"].rank == 2
    del pipe.transformer.peft_config["second"].ltx2_metadata
    assert pipe.lora_metadata["second"] is None
    pipe.delete_adapters("reference")
    assert list(pipe.lora_metadata) == ["second"]


def test_contradicting_reference_factors_are_refused(pipe, tmp_path):
    layers = {f"{Q}.lora_A.weight": torch.ones(2, 32), f"{Q}.lora_B.weight": torch.ones(32, 2)}
    for name, factor in (("two", "2"), ("four", "4")):
        pipe.save_lora_weights(tmp_path / name, layers, metadata={"reference_downscale_factor": factor})
        pipe.load_lora_weights(tmp_path / name, adapter_name=name)
    pipe.set_adapters(["two", "four"])
    with pytest.raises(ValueError, match=r"\{'two': 2, 'four': 4\}; activate one"):
        pipe.reference_factors()


def test_a_pipeline_with_adapters_is_not_saved_in_a_form_nobody_can_load(pipe, tmp_path):
    pipe.load_lora_weights(SECOND)
    with pytest.raises(ValueError, match=r"fuse_lora\(\), then call unload_lora_weights"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "transformer").is_dir()
