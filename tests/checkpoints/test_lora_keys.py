"""LoRA files: every layout reads as the same factors, every layout can be written, other adapters are refused."""

import json
import logging

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

from ltx2_diffusers.adapters.convert import convert_lora, lora_differences
from ltx2_diffusers.adapters.keys import LORA_FORMATS, linear_shapes, lora_to_format, read_lora
from ltx2_diffusers.adapters.modules import known_modules
from ltx2_diffusers.checkpoints.safetensors_io import tensor_differences
from tests.golden_data import load_json, load_metadata, load_tensors
from tests.golden_loras import lora_file, lora_files

from .test_convert import run_script
from .tiny import CLASSES, V20

FILES = lora_files()
SAME_LORA = [path for path in FILES if path.stem in LORA_FORMATS]
Q = "transformer_blocks.0.attn1.to_q"


def lora(name: str) -> dict[str, torch.Tensor]:
    return load_tensors(lora_file(name))


def as_diffusers(tensors: dict[str, torch.Tensor], **options) -> dict[str, torch.Tensor]:
    """A LoRA of any layout under diffusers' names."""
    return {key: entry.load() for key, entry in lora_to_format(read_lora(tensors, **options), "diffusers").items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if one[key].dtype != other[key].dtype or not torch.equal(one[key], other[key])] == []


@pytest.mark.parametrize("path", SAME_LORA, ids=lambda path: path.stem)
def test_every_layout_reads_as_the_same_lora(path):
    assert_same(as_diffusers(load_tensors(path)), lora("diffusers"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("layout", LORA_FORMATS)
def test_every_layout_can_be_written_and_read_back(path, layout):
    layers = read_lora(load_tensors(path))
    written = lora_to_format(layers, layout)
    again = lora_to_format(read_lora(written), "diffusers")
    assert tensor_differences(again, lora_to_format(layers, "diffusers")) == []


@pytest.mark.parametrize("path", SAME_LORA, ids=lambda path: path.stem)
def test_written_names_are_those_of_the_layout(path):
    assert set(lora_to_format(read_lora(lora("original")), path.stem)) == set(load_tensors(path))


def test_a_wide_lora_covers_every_linear_layer_of_both_models():
    layers = read_lora(lora("wide_original"))
    models = {"transformer": "LTX2AVTransformer3DModel", "connectors": "LTX2TextConnectors"}
    loaded = {component: CLASSES[name].from_single_file(V20) for component, name in models.items()}
    shapes = {component: linear_shapes(model) for component, model in loaded.items()}
    assert set(layers) == {(component, path) for component, paths in shapes.items() for path in paths}
    # Given the models, sizes are checked as well.
    assert set(read_lora(lora("wide_original"), shapes)) == set(layers)
    shapes["transformer"][Q] = (32, 64)
    with pytest.raises(ValueError, match=r"attn1\.to_q.*\[32, 32\].*\[32, 64\]"):
        read_lora(lora("wide_original"), shapes)


@pytest.mark.parametrize("version", ["ltx-2-19b", "ltx-2.3-22b"])
def test_the_module_table_covers_the_published_models(version):
    configs = load_json(f"checkpoint/real_configs/{version}.json")["diffusers_configs"]
    known = known_modules(48, 8)
    for component, cls in (("transformer", LTX2VideoTransformer3DModel), ("connectors", LTX2TextConnectors)):
        with torch.device("meta"):
            model = cls(**configs[component])
        assert set(linear_shapes(model)) <= set(known[component])


def test_alpha_scales_the_up_factor():
    factors = {f"{Q}.lora_A.weight": torch.ones(4, 3), f"{Q}.lora_B.weight": torch.full((5, 4), 3.0)}
    read = as_diffusers(factors | {f"{Q}.alpha": torch.tensor(2.0)})
    assert torch.equal(read[f"transformer.{Q}.lora_B.weight"], torch.full((5, 4), 1.5))
    assert torch.equal(read[f"transformer.{Q}.lora_A.weight"], torch.ones(4, 3))


@pytest.mark.parametrize(
    "settings, scale",
    [
        ({"transformer.lora_alpha": 2, "transformer.r": 4}, 0.5),
        ({"transformer.lora_alpha": 2, "transformer.use_rslora": True}, 1.0),
        ({"transformer.lora_alpha": 4, "transformer.alpha_pattern": {"attn1.to_q": 1}}, 0.25),
        ({"connectors.lora_alpha": 2}, 1.0),
    ],
)
def test_settings_in_the_metadata_are_honoured(settings, scale):
    factors = {f"transformer.{Q}.lora_A.weight": torch.ones(4, 3), f"transformer.{Q}.lora_B.weight": torch.ones(5, 4)}
    read = as_diffusers(factors, metadata={"lora_adapter_metadata": json.dumps(settings)})
    assert torch.equal(read[f"transformer.{Q}.lora_B.weight"], torch.full((5, 4), scale))


@pytest.mark.parametrize(
    "prefix, a, b",
    [
        ("base_model.model.", "lora_A.default.weight", "lora_B.default.weight"),
        ("model.diffusion_model.", "lora.down.weight", "lora.up.weight"),
        ("base_model.model.transformer.", "lora_A.weight", "lora_B.weight"),
    ],
)
def test_further_spellings(prefix, a, b):
    factors = {f"{prefix}{Q}.{a}": torch.ones(4, 3), f"{prefix}{Q}.{b}": torch.ones(5, 4)}
    assert set(read_lora(factors)) == {("transformer", Q)}


@pytest.mark.parametrize(
    "key, place",
    [
        ("text_embedding_projection.video_aggregate_embed", ("connectors", "video_text_proj_in")),
        (
            "diffusion_model.audio_embeddings_connector.transformer_1d_blocks.1.attn1.to_q",
            ("connectors", "audio_connector.transformer_blocks.1.attn1.to_q"),
        ),
        ("connectors.text_proj_in", ("connectors", "text_proj_in")),
        ("lora_unet_adaln_single_linear", ("transformer", "time_embed.linear")),
        ("lora_unet_time_embed_linear", ("transformer", "time_embed.linear")),
        ("diffusion_model.patchify_proj", ("transformer", "proj_in")),
    ],
)
def test_modules_find_their_component_and_name(key, place):
    factors = {f"{key}.lora_down.weight": torch.ones(4, 3), f"{key}.lora_up.weight": torch.ones(5, 4)}
    assert set(read_lora(factors)) == {place}


@pytest.mark.parametrize(
    "ending, kind",
    [
        ("diff", "full weight difference"),
        ("diff_b", "full weight difference"),
        ("lokr_w1", "LoKr"),
        ("hada_w1_a", "LoHa"),
    ],
)
def test_other_adapters_are_refused_by_kind(ending, kind):
    with pytest.raises(ValueError, match=kind):
        read_lora(lora("original") | {f"diffusion_model.{Q}.{ending}": torch.ones(1)})


def test_foreign_loras_are_refused_and_stray_keys_are_reported(caplog, monkeypatch):
    foreign = {f"diffusion_model.double_blocks.{i}.lora_A.weight": torch.ones(4, 3) for i in range(5)}
    with pytest.raises(ValueError, match=r"none of the 5 tensors.*double_blocks\.0.*understood are"):
        read_lora(foreign)
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        assert len(read_lora(lora("original") | foreign)) == 112
    assert "5 of 229" in caplog.text


def test_half_a_lora_is_refused():
    tensors = lora("original")
    del tensors[f"diffusion_model.{Q}.lora_B.weight"]
    with pytest.raises(ValueError, match=rf"no up factor for {Q}"):
        read_lora(tensors)
    tensors[f"diffusion_model.{Q}.lora_B.weight"] = torch.ones(32, 3)
    with pytest.raises(ValueError, match="do not fit together"):
        read_lora(tensors)
    twice = lora("original") | {f"transformer.{Q}.lora_A.weight": torch.ones(4, 32)}
    with pytest.raises(ValueError, match="twice"):
        read_lora(twice)


def test_files_convert_with_their_metadata(tmp_path):
    source = next(path for path in FILES if path.stem == "original")
    convert_lora(source, tmp_path / "out", "diffusers")
    assert_same(load_tensors(tmp_path / "out"), lora("diffusers"))
    assert load_metadata(tmp_path / "out") == {"format": "pt", "reference_downscale_factor": "2"}
    convert_lora(source, tmp_path / "cast", "kohya_dotted", dtype=torch.float32)
    assert lora_differences(source, tmp_path / "cast", torch.float32) == []
    assert len(lora_differences(source, tmp_path / "cast")) == 224
    with pytest.raises(ValueError, match="format must be one of"):
        convert_lora(source, tmp_path / "no", "comfy")


def test_the_script_says_equal(tmp_path, monkeypatch, capsys):
    source = next(path for path in FILES if path.stem == "kohya_underscored")
    assert run_script(monkeypatch, "convert_lora.py", source, tmp_path / "out", "--format", "original", "--check") == 0
    assert capsys.readouterr().out == "equal\n"
    assert run_script(monkeypatch, "convert_lora.py", V20, tmp_path / "no") == 2
    assert "none of the" in capsys.readouterr().err
