"""`from_single_file`: every component of every file, strict, lazy, and with the numbers of the golden outputs."""

import json

import pytest
import torch
from safetensors.torch import save_file

from ltx2_diffusers.checkpoints import class_names, keys
from ltx2_diffusers.checkpoints.hub_files import local_file
from ltx2_diffusers.checkpoints.original import OriginalCheckpoint
from tests.golden_data import assert_within, golden_cases, load_json, load_tensors
from tests.golden_parts import golden_file

from .tiny import CHECKPOINTS, CLASSES, MODELS, V20, V23, expected_folder

FP8 = golden_file("checkpoint/fp8/ltx-2-tiny-dev-fp8.safetensors")
# Whole-pipeline vectors belong to the pipelines' tests.
OUTPUTS = [path for path in golden_cases("checkpoint/outputs") if not path.stem.endswith("_pipeline")]
CASES = [
    (path, component)
    for path in CHECKPOINTS
    for component in (("latent_upsampler",) if "upscaler" in path.name else class_names.PIPELINE_COMPONENTS)
]
transformer_class = CLASSES["LTX2AVTransformer3DModel"]
vae_class = CLASSES["AutoencoderKLLTX2Video"]


def class_for(path, component: str) -> type:
    config = OriginalCheckpoint(path).config(component)
    return CLASSES[class_names.class_name_for(component, config)]


def expected_weights(path, component: str) -> dict[str, torch.Tensor]:
    """Original tensors under diffusers names, by the golden table and not by our own."""
    tensors = load_tensors(path)
    if component == "latent_upsampler":
        return tensors
    table = load_json(f"checkpoint/key_maps/{path.stem}.json")
    return {place[1]: tensors[key] for key, place in table.items() if place and place[0] == component}


def assert_weights(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert [
        key for key in state if state[key].dtype != expected[key].dtype or not torch.equal(state[key], expected[key])
    ] == []


@pytest.mark.parametrize("path, component", CASES, ids=lambda value: getattr(value, "stem", value))
def test_every_component_loads_with_exact_weights_and_config(path, component):
    model = class_for(path, component).from_single_file(path)
    assert_weights(model, expected_weights(path, component))
    folder = expected_folder(path)
    config = load_json((folder / component if component != "latent_upsampler" else folder) / "config.json")
    assert {name: model.config[name] for name in config if name[0] != "_"} == {
        name: value for name, value in config.items() if name[0] != "_"
    }
    assert not model.training


def run(model: torch.nn.Module, method: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Calls a component as the golden outputs were made; results by their golden names."""
    name = type(model).__name__
    if method == "encode":
        return {"mean": model.encode(inputs["sample"]).latent_dist.mode()}
    if method == "decode":
        return {"sample": model.decode(inputs["z"]).sample}
    if name == "LTX2AVTransformer3DModel":
        return dict(zip(("sample", "audio_sample"), model(**inputs, return_dict=False)))
    if name == "LTX2TextConnectors":
        return dict(zip(("video", "audio"), model(**inputs)))
    return {"audio" if "Vocoder" in name else "latents": model(*inputs.values())}


def row_of(checkpoint: str, component: str, method: str) -> str:
    """The row of the table for one component's recorded outputs."""
    if (component, method) == ("vae", "decode"):
        return "checkpoint, video decoder"
    return "checkpoint, 2.3 vocoder" if component == "vocoder" and "2.3" in checkpoint else "checkpoint"


@pytest.mark.usefixtures("golden_sinusoid")
@pytest.mark.parametrize("outputs", OUTPUTS, ids=lambda path: path.stem)
def test_loaded_components_compute_the_golden_outputs(outputs):
    path = outputs.parent.parent / outputs.name
    tensors = load_tensors(outputs)
    calls: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        kind, *place, argument = key.split(".")
        if kind == "input":
            calls.setdefault(((place or ["latent_upsampler"])[0], place[1] if len(place) > 1 else ""), {})[
                argument
            ] = tensor
    for (component, method), inputs in calls.items():
        model = class_for(path, component).from_single_file(path, torch_dtype=torch.float32)
        with torch.no_grad():
            results = run(model, method, inputs)
        middle = "" if component == "latent_upsampler" else f"{component}.{method}.".replace("..", ".")
        for name, result in results.items():
            expected = tensors[f"expected.{middle}{name}"]
            assert_within(result, expected, row_of(path.stem, component, method), f"{component}, {name}")


def test_the_wrong_vocoder_class_is_told_the_right_one():
    with pytest.raises(ValueError, match=r"two stages.*LTX2VocoderWithBWE\.from_single_file"):
        CLASSES["LTX2Vocoder"].from_single_file(V23)
    with pytest.raises(ValueError, match=r"one stage.*LTX2Vocoder\.from_single_file"):
        CLASSES["LTX2VocoderWithBWE"].from_single_file(V20)


def test_scaled_fp8_layers_read_as_their_real_weights():
    model = transformer_class.from_single_file(FP8)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    dequantized = load_tensors("checkpoint/fp8/expected/dequantized_bf16.safetensors")
    state = model.state_dict()
    for key, expected in dequantized.items():
        assert torch.equal(state[key.removeprefix("model.diffusion_model.")], expected)
    # In float32 nothing is rounded: weight times scale, exactly.
    raw = load_tensors(FP8)
    layer = "model.diffusion_model.transformer_blocks.1.attn1.to_q"
    exact = raw[f"{layer}.weight"].float() * raw[f"{layer}.weight_scale"]
    weight = transformer_class.from_single_file(FP8, dtype=torch.float32).transformer_blocks[1].attn1.to_q.weight
    assert torch.equal(weight, exact)


def test_quantised_layers_can_be_had_as_stored():
    entries = OriginalCheckpoint(FP8).component("transformer", keep_quantized=True)
    assert entries["transformer_blocks.1.attn1.to_q.weight"].dtype == torch.float8_e4m3fn
    assert entries["transformer_blocks.1.attn1.to_q.weight_scale"].dtype == torch.float32


def test_unknown_quantisation_is_refused():
    tensors = load_tensors(V20)
    tensors["model.diffusion_model.transformer_blocks.1.attn1.to_q.pre_quant_scale"] = torch.ones(32)
    with pytest.raises(ValueError, match="pre_quant_scale"):
        transformer_class.from_single_file(tensors, config=expected_folder(V20))


def test_a_dictionary_is_neither_changed_nor_shared():
    tensors = load_tensors(V20)
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    metadata = OriginalCheckpoint(V20).metadata_config
    for component in ("transformer", "vae"):
        model = class_for(V20, component).from_single_file(tensors, original_config=metadata)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
    assert tensors.keys() == before.keys()
    assert all(torch.equal(tensors[key], before[key]) for key in before)


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model."])
def test_files_of_one_component_load_with_any_prefix(tmp_path, prefix):
    local = keys.component_keys("transformer", load_tensors(V23))
    tensors = load_tensors(V23)
    with_prefix = {prefix + name: tensors[key] for key, name in local.items()}
    save_file(with_prefix, tmp_path / "part.safetensors", OriginalCheckpoint(V23).metadata)
    model = transformer_class.from_single_file(tmp_path / "part.safetensors")
    assert_weights(model, expected_weights(V23, "transformer"))


@pytest.mark.parametrize("component", ["vae", "vocoder", "connectors"])
def test_a_file_in_diffusers_names_passes_through(tmp_path, component):
    weights = expected_weights(V23, component)
    save_file(weights, tmp_path / "file.safetensors")
    cls = class_for(V23, component)
    model = cls.from_single_file(tmp_path / "file.safetensors", config=expected_folder(V23) / component)
    assert_weights(model, weights)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "of another shape"])
def test_loading_is_strict_and_lists_the_tensors(damage):
    tensors = load_tensors(V20)
    key = "model.diffusion_model.transformer_blocks.2.attn1.to_q.weight"
    if damage == "missing":
        del tensors[key]
    elif damage == "unexpected":
        key = "model.diffusion_model.transformer_blocks.2.attn9.weight"
        tensors[key] = torch.zeros(3)
    else:
        tensors[key] = torch.zeros(7, 32)
    with pytest.raises(
        ValueError, match=rf"the given state dict.*{damage}: {key.removeprefix('model.diffusion_model.')}"
    ):
        transformer_class.from_single_file(tensors, config=expected_folder(V20))


def test_only_the_own_tensors_are_checked_and_read(tmp_path):
    tensors = {key: tensor for key, tensor in load_tensors(V20).items() if not key.startswith("vocoder.")}
    tensors["vae.per_channel_statistics.channel"] = torch.zeros(4)
    tensors["vocoder.conv_pre.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "file.safetensors", OriginalCheckpoint(V20).metadata)
    assert_weights(vae_class.from_single_file(tmp_path / "file.safetensors"), expected_weights(V20, "vae"))


@pytest.mark.parametrize("mmap_off", [False, True])
def test_dtype_and_disable_mmap(mmap_off):
    model = vae_class.from_single_file(V20, dtype=torch.float16, torch_dtype=torch.float64, disable_mmap=mmap_off)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float16}
    model = vae_class.from_single_file(V20, low_cpu_mem_usage=False, disable_mmap=mmap_off)
    assert_weights(model, expected_weights(V20, "vae"))


def test_device_and_device_map_name_one_device():
    assert vae_class.from_single_file(V20, device="cpu").device == torch.device("cpu")
    assert vae_class.from_single_file(V20, device_map={"": "cpu"}).device == torch.device("cpu")
    with pytest.raises(ValueError, match="device_map='auto'"):
        vae_class.from_single_file(V20, device_map="auto")
    with pytest.raises(ValueError, match="contradict"):
        vae_class.from_single_file(V20, device="cpu", device_map="meta")


@pytest.mark.parametrize("subfolder", [None, "transformer"])
def test_an_explicit_config_wins(tmp_path, subfolder):
    config = load_json(expected_folder(V20) / "transformer" / "config.json") | {"rope_type": "interleaved"}
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    model = transformer_class.from_single_file(V20, config=str(tmp_path), subfolder=subfolder)
    assert model.config.rope_type == "interleaved"


def test_constructor_arguments_override_the_config():
    assert transformer_class.from_single_file(V20, rope_type="interleaved").config.rope_type == "interleaved"
    with pytest.raises(TypeError, match="rope_tpye"):
        transformer_class.from_single_file(V20, rope_tpye="interleaved")


def test_original_config_may_be_a_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(OriginalCheckpoint(V20).metadata_config))
    model = vae_class.from_single_file(load_tensors(V20), original_config=tmp_path / "config.json")
    assert_weights(model, expected_weights(V20, "vae"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"quantization_config": object()}, "quantization_config"),
        ({"proxies": {"https": "proxy"}}, "HTTPS_PROXY"),
        ({"config": "folder", "original_config": {}}, "exclude each other"),
    ],
)
def test_options_that_cannot_be_honoured_raise(options, message):
    with pytest.raises(ValueError, match=message):
        vae_class.from_single_file(V20, **options)


def test_without_metadata_the_published_config_is_tried_and_shapes_are_checked(tmp_path):
    save_file(load_tensors(V20), tmp_path / "bare.safetensors")
    with pytest.raises(
        ValueError, match=r"bare\.safetensors.*`num_layers` is 48, but the weights have 4 .*original_config="
    ):
        transformer_class.from_single_file(tmp_path / "bare.safetensors")
    checkpoint = OriginalCheckpoint(tmp_path / "bare.safetensors")
    published = load_json("checkpoint/real_configs/ltx-2-19b.json")["diffusers_configs"]
    for component in ("transformer", "audio_vae", "vocoder", "vae"):
        config = checkpoint.config(component)
        assert {name: config[name] for name in published[component]} == published[component]


def test_a_file_without_the_component_says_what_it_holds():
    upscaler = next(path for path in CHECKPOINTS if "upscaler" in path.name)
    with pytest.raises(ValueError, match="holds no vae; it holds latent_upsampler"):
        vae_class.from_single_file(upscaler)
    with pytest.raises(ValueError, match="no LTX-2 component"):
        vae_class.from_single_file({"model.layers.0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="holds no tensors"):
        vae_class.from_single_file({})
    with pytest.raises(ValueError, match="of type list"):
        vae_class.from_single_file({"vae.encoder": [1]})


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", V20.read_bytes()[:100_000]])
def test_damaged_files_are_refused_by_name(tmp_path, content):
    (tmp_path / "damaged.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.safetensors"):
        vae_class.from_single_file(tmp_path / "damaged.safetensors")


def test_links_are_looked_up_in_the_hub_cache_and_missing_paths_are_named(tmp_path):
    link = "https://huggingface.co/Lightricks/LTX-2/blob/main/ltx-2-19b-dev.safetensors"
    commit = tmp_path / "models--Lightricks--LTX-2" / "snapshots" / ("0" * 40)
    commit.mkdir(parents=True)
    (commit / "ltx-2-19b-dev.safetensors").write_bytes(V20.read_bytes())
    refs = tmp_path / "models--Lightricks--LTX-2" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    for name in (link, "Lightricks/LTX-2/ltx-2-19b-dev.safetensors"):
        model = vae_class.from_single_file(name, cache_dir=tmp_path, local_files_only=True)
        assert_weights(model, expected_weights(V20, "vae"))
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        local_file("absent.safetensors")


def test_subclasses_and_foreign_classes():
    class Mine(vae_class):
        pass

    assert type(Mine.from_single_file(V20)) is Mine
    with pytest.raises(ValueError, match="Linear is no component"):
        class_names.component_of(torch.nn.Linear)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_loaded_model_saves_and_loads_again(path, tmp_path):
    model = class_for(path, "vocoder").from_single_file(path)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert_weights(again, expected_weights(path, "vocoder"))
