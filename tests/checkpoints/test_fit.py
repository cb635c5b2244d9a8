"""A configuration builds exactly the tensors beside it, by name and by shape; what does not fit is named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import ltx2_diffusers
from ltx2_diffusers import LTX2AVTransformer3DModel
from ltx2_diffusers.checkpoints import fit
from ltx2_diffusers.checkpoints.convert import convert_to_diffusers, convert_to_original, differences
from ltx2_diffusers.checkpoints.safetensors_io import Entry, SafetensorsFile, read_folder, tensor_differences
from tests.golden_data import load_metadata, load_tensors
from tests.tiny_checkpoints import tiny_checkpoint

from .tiny import V20

PREFIX = "model.diffusion_model."
Q = "transformer_blocks.0.attn1.to_q.weight"
TINY = tiny_checkpoint("2.0")
WEIGHTS = "diffusion_pytorch_model.safetensors"
COMPONENTS = {
    "transformer": "LTX2AVTransformer3DModel",
    "connectors": "LTX2TextConnectors",
    "vae": "AutoencoderKLLTX2Video",
    "audio_vae": "AutoencoderKLLTX2Audio",
    "latent_upsampler": "LTX2LatentUpsamplerModel",
    "temporal_upsampler": "LTX2LatentUpsamplerModel",
}


def original_with(path, change=len, **fields):
    """The miniature file with changed tensors, and other fields in the section of the transformer."""
    tensors, metadata = load_tensors(V20), load_metadata(V20)
    change(tensors)
    config = json.loads(metadata["config"])
    config["transformer"] |= fields
    save_file(tensors, path, {**metadata, "config": json.dumps(config)})
    return path


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tensors: tensors.pop(PREFIX + Q), f"1 missing: {Q}"),
        (
            lambda tensors: tensors.update({f"{PREFIX}transformer_blocks.0.attn1.to_qq.weight": torch.zeros(2)}),
            r"1 unexpected: transformer_blocks\.0\.attn1\.to_qq\.weight \(like transformer_blocks\.0\.attn1\.to_\w",
        ),
        (
            lambda tensors: tensors.update({f"{PREFIX}audio_proj_out.bias": torch.zeros(3)}),
            r"1 of another shape: audio_proj_out\.bias \[3\] \(the model has",
        ),
        (
            lambda tensors: tensors.update({PREFIX + Q: tensors[PREFIX + Q].to(torch.int32)}),
            rf"{Q} holds torch\.int32",
        ),
        (lambda tensors: tensors.pop("vae.per_channel_statistics.mean-of-means"), "1 missing: latents_mean"),
        (
            lambda tensors: tensors["vae.per_channel_statistics.mean-of-means"].fill_(float("nan")),
            "latents_mean.*finite",
        ),
        (
            lambda tensors: tensors["audio_vae.per_channel_statistics.std-of-means"].zero_(),
            "latents_std.*not finite and",
        ),
    ],
    ids=["lost", "foreign", "shape", "whole numbers", "statistics", "NaN", "zero"],
)
def test_conversion_checks_the_model(tmp_path, change, message):
    path = original_with(tmp_path / "x.safetensors", change)
    with pytest.raises(ValueError, match=rf"x\.safetensors.*{message}|{message}.*x\.safetensors"):
        convert_to_diffusers(path, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(
    "field, value",
    [("num_layers", value) for value in (-1, 0, None, 3, 100_000, 10**9, 1.5, "4", [4])]
    + [("num_attention_heads", value) for value in (10**9, 0, None, 3)]
    + [("attention_head_dim", 7), ("norm_eps", float("nan")), ("norm_eps", "small"), ("in_channels", 10**30)],
)
@pytest.mark.quick_cases(6)
def test_fields_that_contradict_the_tensors_are_refused_at_once(tmp_path, field, value):
    path = original_with(tmp_path / "x.safetensors", **{field: value})
    # A model of 10**9 layers would never be built, so that the test would not end.
    for use in (convert_to_diffusers, lambda path, _: LTX2AVTransformer3DModel.from_single_file(path)):
        with pytest.raises(ValueError, match=rf"x\.safetensors.*{field}|{field}.*x\.safetensors"):
            use(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_folders_of_the_package_fit(name):
    fit.check_folder(getattr(ltx2_diffusers, COMPONENTS[name]), TINY / name)


@pytest.fixture
def folder(tmp_path):
    """The transformer of the miniature, to be damaged."""
    return shutil.copytree(TINY / "transformer", tmp_path / "transformer")


def set_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    "key, value",
    [
        ("num_layers", 100_000),
        ("num_layers", 1),
        ("num_layers", -1),
        ("num_layers", "2"),
        ("num_attention_heads", 10**9),
        ("audio_in_channels", 5),
        ("norm_eps", float("inf")),
        ("norm_eps", -1.0),
        ("rope_theta", 0.0),
        ("gated_attn", "no"),
        ("vae_scale_factors", [8, 0, 32]),
        ("activation_fn", 3),
        ("_class_name", ["LTX2VideoTransformer3DModel"]),
    ],
)
def test_a_folder_is_compared_with_its_weights_before_it_is_built(folder, key, value):
    set_config(folder, **{key: value})
    with pytest.raises(ValueError, match=rf"transformer.*{key}"):
        LTX2AVTransformer3DModel.from_pretrained(folder)


def test_other_tensors_than_the_configuration_builds_are_refused(folder):
    tensors = load_file(folder / WEIGHTS)
    for change, message in (
        ({"more.weight": torch.zeros(1)}, "1 unexpected: more.weight"),
        ({"proj_out.bias": torch.zeros(5)}, "`out_channels`|another shape: proj_out.bias"),
    ):
        save_file({**tensors, **change}, folder / WEIGHTS)
        with pytest.raises(ValueError, match=message):
            LTX2AVTransformer3DModel.from_pretrained(folder)
    del tensors["proj_out.bias"]
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"1 missing: proj_out\.bias"):
        LTX2AVTransformer3DModel.from_pretrained(folder)


def test_arguments_that_replace_the_configuration_count(folder):
    set_config(folder, num_layers=7)
    count = len({name.split(".")[1] for name in load_file(folder / WEIGHTS) if name.startswith("transformer_blocks.")})
    model = LTX2AVTransformer3DModel.from_pretrained(folder, num_layers=count)
    assert len(model.transformer_blocks) == count
    with pytest.raises(ValueError, match="`num_layers` is 9"):
        LTX2AVTransformer3DModel.from_pretrained(folder, num_layers=9)


def test_what_diffusers_can_load_in_other_ways_stays_its_business(folder):
    model = LTX2AVTransformer3DModel.from_pretrained(folder)
    model.save_pretrained(folder / "fp16", variant="fp16")
    model.save_pretrained(folder / "pickled", safe_serialization=False)
    assert LTX2AVTransformer3DModel.from_pretrained(folder / "fp16", variant="fp16").num_parameters()
    assert LTX2AVTransformer3DModel.from_pretrained(folder / "pickled", use_safetensors=False).num_parameters()
    # A changed folder is looked at again.
    save_file({"a": torch.zeros(1)}, folder / "fp16" / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(ValueError, match="fp16"):
        LTX2AVTransformer3DModel.from_pretrained(folder / "fp16", variant="fp16")


def test_building_stops_where_the_tensors_end():
    """A size that no table knows cannot make building endless either."""
    config = {"num_res_blocks": 10**7}
    with pytest.raises(ValueError, match="asks for more than"):
        fit.check_fit(ltx2_diffusers.AutoencoderKLLTX2Audio, config, {"x": Entry.of(torch.zeros(1))}, "'file'")


def test_a_broken_pair_is_not_equal(tmp_path):
    """Both sides lack the same tensor, so that comparing them with each other finds nothing."""
    convert_to_diffusers(V20, tmp_path / "out")
    weights = tmp_path / "out" / "transformer" / WEIGHTS
    tensors = load_file(weights)
    del tensors[Q]
    save_file(tensors, weights)
    path = original_with(tmp_path / "x.safetensors", lambda tensors: tensors.pop(PREFIX + Q))
    assert [line for line in differences(path, tmp_path / "out") if "1 missing" in line and Q in line]


def test_a_value_that_the_folder_leaves_out_is_the_default_of_the_class(tmp_path):
    convert_to_diffusers(V20, tmp_path / "out")
    file = tmp_path / "out" / "transformer" / "config.json"
    config = json.loads(file.read_text())
    del config["rope_type"]
    file.write_text(json.dumps(config))
    found = "transformer: config rope_type is 'split' in the file, 'interleaved' in the folder"
    assert differences(V20, tmp_path / "out") == [found]


@pytest.mark.parametrize("name", ["2.0", "2.3"])
def test_packaged_miniatures_go_to_the_original_layout_and_back(tmp_path, name):
    source, original, back = tiny_checkpoint(name), tmp_path / "whole.safetensors", tmp_path / "back"
    convert_to_original(source, original)
    assert differences(original, source) == []
    convert_to_diffusers(original, back)
    for component in ("transformer", "connectors", "vae", "audio_vae", "vocoder"):
        assert tensor_differences(read_folder(source / component), read_folder(back / component)) == []
    for upsampler in ("latent_upsampler", "temporal_upsampler"):
        convert_to_original(source / upsampler, tmp_path / upsampler)
        assert differences(tmp_path / upsampler, source / upsampler) == []


@pytest.mark.parametrize(
    "extra", [{"spatial_scale": 1.0}, {"spatial_scale": 1.0, "rational_resampler": True}], ids=str
)
def test_a_temporal_upsampler_may_say_a_spatial_scale(tmp_path, extra):
    convert_to_original(TINY / "temporal_upsampler", tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    config = json.loads(file.metadata["config"]) | extra
    tensors = {name: entry.load() for name, entry in file.entries.items()}
    save_file(tensors, tmp_path / "y.safetensors", {"config": json.dumps(config)})
    model = ltx2_diffusers.LTX2LatentUpsamplerModel.from_single_file(tmp_path / "y.safetensors")
    assert model.config.temporal_upsample
    convert_to_diffusers(tmp_path / "y.safetensors", tmp_path / "out")
    again = ltx2_diffusers.LTX2LatentUpsamplerModel.from_pretrained(tmp_path / "out")
    assert again.config.rational_spatial_scale == 1.0
