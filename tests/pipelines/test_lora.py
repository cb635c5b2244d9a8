"""LoRA adapters on a pipeline: golden outputs, both libraries' files, switching that leaves no trace, clear errors."""

import logging
import warnings

import pytest
import torch
from diffusers import LTX2Pipeline as DiffusersLTX2Pipeline
from diffusers import LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors as DiffusersConnectors
from peft import get_peft_model_state_dict

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.checkpoints.lora_keys import LORA_FORMATS
from ltx2_diffusers.models.connectors import LTX2TextConnectors
from ltx2_diffusers.models.transformer import LTX2AVTransformer3DModel
from ltx2_diffusers.pipelines.adapters import adapter_layers, switched_adapters, unchanged_adapters
from tests.checkpoints.tiny import V20, expected_folder
from tests.golden_data import GOLDEN_DIR, golden_cases, load_metadata, load_tensors
from tests.pipelines.tiny import EXPLICIT, NO_GUIDANCE, PROMPT, seeded

LORAS = GOLDEN_DIR / "checkpoint" / "lora"
ORIGINAL, SECOND, WIDE = (LORAS / f"{name}.safetensors" for name in ("original", "second_fp32_rank2", "wide_original"))
VECTORS = load_tensors("checkpoint/lora/expected/forward_fp32.safetensors")
FUSED = golden_cases("checkpoint/lora/expected", "fused_*.safetensors")
OUTPUTS = ("sample", "audio_sample", "connectors.video", "connectors.audio")
Q = "transformer_blocks.0.attn1.to_q"


def build(dtype: torch.dtype = torch.float32, **components) -> LTX2Pipeline:
    """A pipeline with the models that LoRAs change and nothing else."""
    models = {
        "transformer": LTX2AVTransformer3DModel.from_single_file(V20).to(dtype),
        "connectors": LTX2TextConnectors.from_single_file(V20).to(dtype),
    }
    rest = dict.fromkeys(("scheduler", "vae", "audio_vae", "text_encoder", "tokenizer", "vocoder"))
    return LTX2Pipeline(**{**rest, **models, **components})


def in_diffusers(pipe: LTX2Pipeline) -> DiffusersLTX2Pipeline:
    """The same weights in diffusers' pipeline."""
    transformer = LTX2VideoTransformer3DModel.from_config(dict(pipe.transformer.config))
    connectors = DiffusersConnectors.from_config(dict(pipe.connectors.config))
    transformer.load_state_dict(pipe.transformer.state_dict())
    connectors.load_state_dict(pipe.connectors.state_dict())
    rest = dict.fromkeys(("scheduler", "vae", "audio_vae", "text_encoder", "tokenizer", "vocoder"))
    return DiffusersLTX2Pipeline(**rest, transformer=transformer.eval(), connectors=connectors.eval())


@torch.no_grad()
def outputs(pipe, **kwargs) -> dict[str, torch.Tensor]:
    """Results of the golden inputs, by their golden names."""
    inputs = {
        component: {
            key.removeprefix(f"input.{component}."): tensor
            for key, tensor in VECTORS.items()
            if key.startswith(f"input.{component}.")
        }
        for component in ("transformer", "connectors")
    }
    velocities = pipe.transformer(**inputs["transformer"], **kwargs)
    video, audio, _ = pipe.connectors(**inputs["connectors"])
    return dict(zip(OUTPUTS, (velocities.sample, velocities.audio_sample, video, audio)))


def assert_golden(found: dict[str, torch.Tensor], name: str) -> None:
    expected = {key: VECTORS[f"expected.{name}.{key}"] for key in OUTPUTS if f"expected.{name}.{key}" in VECTORS}
    assert expected
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-5, rtol=0)


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def settings(pipe: LTX2Pipeline) -> list[tuple]:
    """All that says which adapters act how strongly."""
    return [
        (list(layer.active_adapters), layer.disable_adapters, dict(layer.scaling), [p.requires_grad for p in layer.parameters()])
        for layer in adapter_layers(pipe)
    ]


@pytest.fixture
def pipe() -> LTX2Pipeline:
    return build()


# --- the reference's numbers ---


@pytest.mark.parametrize("layout", LORA_FORMATS)
def test_every_layout_gives_the_golden_outputs(pipe, layout):
    pipe.load_lora_weights(LORAS / f"{layout}.safetensors")
    assert_golden(outputs(pipe), "1.0")
    assert pipe.get_active_adapters() == ["default_0"]


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
    assert_golden({key: found[key] for key in OUTPUTS[:2]} | dict(found), "wide_full")
    for key in OUTPUTS[:2]:
        torch.testing.assert_close(found[key], VECTORS[f"expected.wide.{key}"], atol=1e-5, rtol=0)
    pipe.set_adapters([])
    assert_equal(outputs(pipe), base)
    pipe.unload_lora_weights()
    assert_equal(outputs(pipe), base)
    assert adapter_layers(pipe) == []


def test_the_text_projection_alone_is_what_diffusers_applies(pipe):
    tensors = {key: tensor for key, tensor in load_tensors(WIDE).items() if "_connector." not in key}
    pipe.load_lora_weights(tensors)
    assert_golden(outputs(pipe), "wide")


@pytest.mark.parametrize("path", FUSED, ids=lambda path: path.stem)
def test_fused_weights_are_the_golden_ones(path):
    pipe = build(torch.bfloat16)
    names = {"original": ORIGINAL, "second": SECOND}
    strengths = {
        name.removesuffix("_fp32_rank2").removesuffix(".safetensors"): float(strength)
        for name, strength in (item.split("=") for item in load_metadata(path)["strengths"].split(","))
    }
    for name in strengths:
        pipe.load_lora_weights(names[name], adapter_name=name)
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
        torch.testing.assert_close(found.float(), expected.float(), atol=4e-3, rtol=0)


def test_fusing_equals_the_adapter_and_unfusing_takes_it_back(pipe):
    base = outputs(pipe)
    pipe.load_lora_weights(WIDE)
    active = outputs(pipe)
    pipe.fuse_lora(components=["transformer", "connectors"])
    fused = outputs(pipe)
    for key in OUTPUTS:
        torch.testing.assert_close(fused[key], active[key], atol=2e-5, rtol=0)
    pipe.unfuse_lora(components=["transformer", "connectors"])
    pipe.set_adapters([])
    unfused = outputs(pipe)
    for key in OUTPUTS:
        torch.testing.assert_close(unfused[key], base[key], atol=2e-5, rtol=0)


# --- diffusers' pipeline and files ---


@pytest.mark.parametrize("path", [LORAS / "diffusers.safetensors", ORIGINAL], ids=lambda path: path.stem)
def test_the_same_file_does_the_same_in_diffusers(pipe, path):
    reference = in_diffusers(pipe)
    for one in (pipe, reference):
        one.load_lora_weights(str(path), adapter_name="style")
        one.set_adapters("style", {"transformer": 0.7})
    ours, theirs = outputs(pipe), outputs(reference)
    for key in OUTPUTS:
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-5, rtol=0)


def trained(pipe, alpha: int = 3) -> dict:
    """An adapter with other alpha than rank, as a trainer would hand it to `save_lora_weights`."""
    tensors = load_tensors(LORAS / "bare.safetensors")
    prefixed = {f"transformer.{key}": tensor for key, tensor in tensors.items()}
    modules = sorted({key.split(".lora_")[0] for key in tensors})
    config = {"transformer.r": 4, "transformer.lora_alpha": alpha, "transformer.target_modules": modules}
    LTX2Pipeline.load_lora_into_transformer(prefixed, pipe.transformer, "trained", metadata=config)
    return {
        "transformer_lora_layers": get_peft_model_state_dict(pipe.transformer, adapter_name="trained"),
        "transformer_lora_adapter_metadata": pipe.transformer.peft_config["trained"].to_dict(),
    }


@pytest.mark.parametrize("saver, layout", [(DiffusersLTX2Pipeline, None), (LTX2Pipeline, "diffusers"), (LTX2Pipeline, "original")])
def test_saved_adapters_load_in_both_libraries(pipe, tmp_path, saver, layout):
    arguments = trained(pipe)
    expected = outputs(pipe)
    assert not torch.equal(expected["sample"], VECTORS["expected.1.0.sample"])
    extra = {} if layout is None else {"format": layout, "metadata": {"reference_downscale_factor": "2"}}
    saver.save_lora_weights(tmp_path, **arguments, **extra)
    fresh = build()
    for one in (fresh, in_diffusers(fresh)):
        one.load_lora_weights(str(tmp_path))
        for key, tensor in outputs(one).items():
            torch.testing.assert_close(tensor, expected[key], atol=1e-5, rtol=0)
    if layout:
        assert fresh.lora_metadata["default_0"].reference_downscale_factor == 2


def test_connector_adapters_are_saved_too(pipe, tmp_path):
    pipe.load_lora_weights(WIDE)
    expected = outputs(pipe)
    parts = {
        f"{name}_lora_layers": get_peft_model_state_dict(getattr(pipe, name), adapter_name="default_0")
        for name in ("transformer", "connectors")
    }
    for layout in ("diffusers", "original", "kohya_underscored"):
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
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_lora_weights.bin"]
    pipe.load_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="give transformer_lora_layers"):
        pipe.save_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="must be a folder"):
        pipe.save_lora_weights(tmp_path / "pytorch_lora_weights.bin", layers)
    with pytest.raises(ValueError, match="safe_serialization=True"):
        pipe.save_lora_weights(tmp_path, layers, safe_serialization=False, metadata={"a": "b"})


def test_a_read_state_dict_carries_alpha_once():
    path = LORAS / "kohya_dotted.safetensors"
    folded = LTX2Pipeline.lora_state_dict(path)
    plain, config = LTX2Pipeline.lora_state_dict(path, return_lora_metadata=True)
    assert config["transformer.lora_alpha"] == 2.0 and config["transformer.r"] == 4
    for arguments in ((folded, None), (plain, config)):
        pipe = build()
        pipe.load_lora_into_transformer(arguments[0], pipe.transformer, metadata=arguments[1])
        assert_golden(outputs(pipe), "1.0")


# --- strength of one call ---


def test_attention_kwargs_scale_a_call():
    folder = expected_folder(V20)
    full = LTX2Pipeline.from_single_file(
        V20, text_encoder=folder / "text_encoder", tokenizer=None, torch_dtype=torch.float32
    ) if (folder / "text_encoder" / "tokenizer.json").exists() else None
    assert full is None
