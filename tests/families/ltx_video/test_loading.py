"""Files and folders of LTX-Video: names and configurations of every layout, what a file says beside its weights, what is refused."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, DiffusionPipeline, LTXConditionPipeline, LTXVideoTransformer3DModel
from safetensors.torch import save_file

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.checkpoints import config_ltx_video, keys
from ltx2_diffusers.checkpoints.fit import complete_config
from ltx2_diffusers.checkpoints.original import OriginalCheckpoint
from ltx2_diffusers.checkpoints.packaged import packaged_checkpoint
from ltx2_diffusers.checkpoints.safetensors_io import Entry
from ltx2_diffusers.checkpoints.single_file import load_component
from ltx2_diffusers.families.ltx_video.loading import load_part, settled_preset
from ltx2_diffusers.families.ltx_video.pipeline import LTXVideoPipeline
from ltx2_diffusers.families.ltx_video.presets import ScheduleSettings
from tests.golden_data import golden_file, load_json, load_metadata, load_tensors

FOLDER = "ltx_video/checkpoints"
TABLES = load_json(f"{FOLDER}/key_table.json")
CLASSES = {"transformer": LTXVideoTransformer3DModel, "vae": AutoencoderKLLTXVideo}


def original(layout):
    return golden_file(f"{FOLDER}/{layout}/model.safetensors")


def section(layout, name):
    return json.loads(load_metadata(f"{FOLDER}/{layout}/model.safetensors")["config"])[name]


def shapes(layout_or_size):
    """Tensors without values, as far as the choice of a configuration reads them."""

    def entry(*shape):
        return Entry(torch.bfloat16, shape, lambda: torch.zeros(shape))

    if layout_or_size in ("2b", "13b"):
        layers, width = {"2b": (28, 2048), "13b": (48, 4096)}[layout_or_size]
        names = {f"transformer_blocks.{index}.attn1.to_q.weight": entry(width, width) for index in range(layers)}
        return {**names, "proj_in.weight": entry(width, 128), "caption_projection.linear_1.weight": entry(width, 4096)}
    return {name: entry(1) for name in TABLES[f"vae {layout_or_size}"].values() if name is not None}


@pytest.fixture(scope="module")
def tiny():
    pipe = LTXVideoPipeline.from_pretrained(packaged_checkpoint("ltx-video-tiny"), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("table", TABLES)
def test_every_name_of_every_layout_is_known(table):
    component, expected = table.split()[0], TABLES[table]
    local = keys.component_keys(component, expected)
    assert set(expected) - set(local) == {name for name, new in expected.items() if new is None}
    renamed = keys.rename(component, local.values(), to="diffusers")
    assert {name: renamed[own] for name, own in local.items()} == {n: new for n, new in expected.items() if new}


@pytest.mark.parametrize("layout", ["v090", "v095"])
@pytest.mark.parametrize("component", CLASSES)
def test_sections_become_the_configurations_of_diffusers_classes(layout, component):
    cls, checkpoint = CLASSES[component], OriginalCheckpoint(original(layout))
    found = complete_config(cls, checkpoint.config(component, "ltx_video"))
    expected = complete_config(cls, load_json(f"{FOLDER}/{layout}/{component}_config.json"))
    # One file leaves these to the class, which computes the same.
    ratios = {"spatial_compression_ratio": 32, "temporal_compression_ratio": 8} if component == "vae" else {}
    as_lists = [{n: list(v) if isinstance(v, tuple) else v for n, v in c.items()} for c in (found, expected | ratios)]
    assert as_lists[0] == as_lists[1]


@pytest.mark.parametrize(
    ("layout", "tolerance"), [("v095", 1e-4), ("v090", 3e-4)], ids=["with a timestep", "without a timestep"]
)
def test_autoencoders_of_files_compute_the_originals_numbers(layout, tolerance):
    recorded, vae = load_tensors("ltx_video/models.safetensors"), load_part("vae", original(layout), torch.float32)
    pixels = recorded["video_u8"].float() / 127.5 - 1
    timestep = torch.tensor([0.05]) if layout == "v095" else None
    with torch.no_grad():
        mode = vae.encode(pixels).latent_dist.mode()
        decoded = vae.decode(recorded[f"{layout}/mode"], timestep, return_dict=False)[0]
    decoded = decoded if layout == "v095" else decoded[..., 3::8, 3::8]
    torch.testing.assert_close(mode, recorded[f"{layout}/mode"], rtol=0, atol=1e-4)
    torch.testing.assert_close(decoded, recorded[f"{layout}/decoded"], rtol=0, atol=tolerance)


def test_an_upscaler_of_a_file_computes_the_originals_numbers():
    recorded = load_tensors("ltx_video/models.safetensors")
    upsampler = load_part("latent_upsampler", golden_file(f"{FOLDER}/upscaler/model.safetensors"), torch.float32)
    with torch.no_grad():
        found = upsampler(recorded["upscaler/latents"])
    torch.testing.assert_close(found, recorded["upscaler/out"], rtol=0, atol=1e-4)


def test_an_autoencoder_of_0_9_1_loads_strictly_and_computes_the_same():
    """Its encoder is that of 0.9.0, its decoder that of 0.9.5, into which noise is drawn."""
    fields = section("v090", "vae") | {"timestep_conditioning": True, "decoder_base_channels": 4}
    fields["encoder_blocks"] = section("v090", "vae")["encoder_blocks"]
    up = ["compress_all", {"residual": True, "multiplier": 2}]
    groups = [["res_x", {"num_layers": count, "inject_noise": count == 1}] for count in (1, 1, 1, 2)]
    fields["decoder_blocks"] = [groups[0], up, groups[1], up, groups[2], up, groups[3]]
    torch.manual_seed(0)
    config = config_ltx_video.vae_to_diffusers(fields)
    vae = AutoencoderKLLTXVideo.from_config(config)
    assert config["decoder_inject_noise"] == [True, True, True, False]
    weights = vae.state_dict()
    file = {old: weights[new] for old, new in TABLES["vae v091"].items() if new is not None}
    assert len(file) == len(weights)
    loaded = load_component(AutoencoderKLLTXVideo, file, original_config={"vae": fields})
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (
            "v090",
            {
                "block_out_channels": [128, 256, 512, 512],
                "layers_per_block": [4, 3, 3, 3, 4],
                "spatio_temporal_scaling": [True, True, True, False],
                "decoder_block_out_channels": [128, 256, 512, 512],
                "decoder_layers_per_block": [4, 3, 3, 3, 4],
                "upsample_factor": [1, 1, 1, 1],
                "timestep_conditioning": False,
            },
        ),
        (
            "v091",
            {
                "block_out_channels": [128, 256, 512, 512],
                "decoder_block_out_channels": [256, 512, 1024],
                "decoder_layers_per_block": [5, 6, 7, 8],
                "decoder_inject_noise": [True, True, True, False],
                "upsample_residual": [True, True, True],
                "timestep_conditioning": True,
            },
        ),
        (
            "v095",
            {
                "block_out_channels": [128, 256, 512, 1024, 2048],
                "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
                "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
                "layers_per_block": [4, 6, 6, 2, 2],
                "decoder_layers_per_block": [5, 5, 5, 5],
                "decoder_inject_noise": [False] * 4,
                "timestep_conditioning": True,
            },
        ),
    ],
)
def test_files_without_metadata_are_the_published_autoencoders(layout, expected):
    config = config_ltx_video.to_diffusers("vae", {}, shapes(layout))
    assert {name: config[name] for name in expected} == expected
    assert (config["spatial_compression_ratio"], config["temporal_compression_ratio"]) == (32, 8)
    assert config_ltx_video.vae_layout(config) == layout


@pytest.mark.parametrize(("size", "numbers"), [("2b", (28, 64, 2048)), ("13b", (48, 128, 4096))])
def test_files_without_metadata_are_the_published_transformers(size, numbers):
    config = config_ltx_video.to_diffusers("transformer", {}, shapes(size))
    assert tuple(config[n] for n in ("num_layers", "attention_head_dim", "cross_attention_dim")) == numbers
    assert (config["num_attention_heads"], config["caption_channels"]) == (32, 4096)


@pytest.mark.parametrize(
    ("component", "changes", "message"),
    [
        ("transformer", {"adaptive_norm": "single_scale"}, "transformer.adaptive_norm to 'single_scale'"),
        ("transformer", {"standardization_norm": "layer_norm"}, "standardization_norm"),
        ("transformer", {"positional_embedding_max_pos": [40, 2048, 2048]}, "positional_embedding_max_pos"),
        ("transformer", {"timestep_scale_multiplier": 1}, "timestep_scale_multiplier"),
        ("transformer", {"qk_norm": None}, "qk_norm"),
        ("vae", {"spatial_padding_mode": "reflect"}, "vae.spatial_padding_mode to 'reflect'"),
        ("vae", {"decoder_blocks": [["res_x", 1], ["compress_time", {}], ["res_x", 1]]}, "'compress_time'"),
        ("vae", {"encoder_blocks": [["attn_res_x", 1], ["res_x", 1]]}, r"encoder_blocks\[0\]"),
        ("vae", {"encoder_blocks": [["res_x", 1], ["compress_all_res", {}]]}, "ends with res_x"),
    ],
)
def test_what_diffusers_networks_do_not_do_is_refused_by_name(component, changes, message):
    metadata = {component: section("v095", component) | changes}
    with pytest.raises(ValueError, match=message):
        config_ltx_video.to_diffusers(component, metadata, {})


@pytest.mark.parametrize("layout", ["v090", "v095"])
def test_what_a_file_says_goes_with_its_transformer(layout, tmp_path):
    """V2, V3: positions, schedule and allowed noise levels are those of the file, also from a saved folder."""
    pipe = LTXVideoPipeline.from_single_file(original(layout), text_encoder=None)
    allowed = section("v095", "scheduler") and json.loads(load_metadata(f"{FOLDER}/v095/model.safetensors")["config"])
    pipe.save_pretrained(tmp_path / "saved", safe_serialization=True)
    again = LTXVideoPipeline.from_pretrained(tmp_path / "saved", text_encoder=None, tokenizer=None)
    assert again.settings == pipe.settings
    if layout == "v095":
        assert pipe.settings.causal_temporal_positioning
        assert pipe.settings.name == "ltxv-2b-0.9.8-distilled"
        assert pipe.settings.schedule == ScheduleSettings("LinearQuadratic")
        assert pipe.settings.allowed_inference_steps == tuple(allowed["allowed_inference_steps"])
    else:
        assert not pipe.settings.causal_temporal_positioning
        assert pipe.settings.name == "ltxv-2b-0.9"
        assert pipe.settings.schedule == ScheduleSettings("Uniform", "SD3", target_shift_terminal=0.1)
        assert pipe.scheduler.config.use_dynamic_shifting
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == ("LTXConditionPipeline" if layout == "v095" else "LTXPipeline")


def test_a_folder_without_such_facts_is_known_by_its_networks_and_its_name(tiny):
    """As the published ones are, which diffusers wrote."""
    transformer = LTXVideoTransformer3DModel.from_config(
        {k: v for k, v in tiny.transformer.config.items() if k[0] != "_"}
    )
    dev = settled_preset(transformer.config, tiny.vae.config, name="Lightricks/LTX-Video-0.9.5")
    assert (dev.name, dev.causal_temporal_positioning, dev.allowed_inference_steps) == ("ltxv-2b-0.9.5", True, None)
    early = load_part("vae", original("v090"))
    assert settled_preset(transformer.config, early.config).causal_temporal_positioning is False
    scheduler = type(tiny.scheduler).from_config(tiny.scheduler.config, stochastic_sampling=True)
    assert settled_preset(transformer.config, tiny.vae.config, scheduler.config).name == "ltxv-2b-0.9.6-distilled"
    assert settled_preset(transformer.config, tiny.vae.config, preset="ltxv-13b-0.9.7-dev").size == "13b"


def test_the_packaged_checkpoint_loads_here_and_in_diffusers(tiny):
    theirs = DiffusionPipeline.from_pretrained(packaged_checkpoint("ltx-video-tiny"), dtype=torch.float32)
    assert isinstance(theirs, LTXConditionPipeline)
    for name in ("transformer", "vae", "text_encoder"):
        ours, other = (getattr(pipe, name).state_dict() for pipe in (tiny, theirs))
        assert all(torch.equal(ours[key], other[key]) for key in ours | other)
    folder = packaged_checkpoint("ltx-video-tiny")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 3_000_000


def test_parts_may_be_given_by_name(tiny):
    """The upscaler of one file, and a second transformer of another one, which keeps what its own file says."""
    folder = packaged_checkpoint("ltx-video-tiny")
    pipe = LTXVideoPipeline.from_pretrained(
        folder,
        latent_upsampler=golden_file(f"{FOLDER}/upscaler/model.safetensors"),
        stage_2_transformer=original("v090"),
    )
    assert torch.equal(pipe.latent_upsampler.final_conv.weight.float(), tiny.latent_upsampler.final_conv.weight)
    assert pipe.stage_2_transformer.config.num_layers == 1
    assert pipe.stage_2_transformer.config["_ltx_video"]["causal_temporal_positioning"] is False
    by_folder = LTXVideoPipeline.from_single_file(
        original("v095"), text_encoder=folder, latent_upsampler=folder, stage_2_transformer="ltx-video-tiny"
    )
    assert by_folder.stage_2_transformer.config.num_layers == 3
    assert by_folder.tokenizer.vocab_size == tiny.tokenizer.vocab_size


def test_a_settings_name_may_be_given(tmp_path):
    pipe = LTXVideoPipeline.from_pretrained(packaged_checkpoint("ltx-video-tiny"), preset="ltxv-2b-0.9.6-distilled")
    pipe.save_pretrained(tmp_path / "saved")
    again = LTXVideoPipeline.from_pretrained(tmp_path / "saved")
    assert again.settings.stochastic_sampling and again.settings == pipe.settings
    with pytest.raises(ValueError, match=r"ltxv-2b-0\.9\.6-dev"):
        LTXVideoPipeline.from_pretrained(packaged_checkpoint("ltx-video-tiny"), preset="0.9.6")


def test_float8_files_are_refused_with_the_way_that_works(tmp_path):
    tensors = load_tensors(f"{FOLDER}/v095/model.safetensors")
    name = "model.diffusion_model.transformer_blocks.0.attn1.to_q.weight"
    file = tmp_path / "ltxv-2b-0.9.8-distilled-fp8.safetensors"
    save_file(
        {**tensors, name: tensors[name].to(torch.float8_e4m3fn)},
        file,
        load_metadata(f"{FOLDER}/v095/model.safetensors"),
    )
    with pytest.raises(ValueError, match="bfloat16 file"):
        LTXVideoPipeline.from_single_file(file, text_encoder=None)
    small = LTXVideoPipeline.from_single_file(original("v095"), text_encoder=None, quantization_config="fp8_cast")
    assert small.transformer.transformer_blocks[0].attn1.to_q.weight.dtype == torch.float8_e4m3fn


def test_files_and_pipelines_of_the_other_family_are_told_apart():
    with pytest.raises(ValueError, match=r"LTXVideoPipeline\.from_single_file"):
        LTX2Pipeline.from_single_file(original("v095"), text_encoder=None)
    ltx2 = golden_file("checkpoint/ltx-2-tiny-dev.safetensors")
    with pytest.raises(ValueError, match=r"LTX2Pipeline\.from_single_file"):
        LTXVideoPipeline.from_single_file(ltx2, text_encoder=None)
    for pipeline, folder in ((LTX2Pipeline, "ltx-video-tiny"), (LTXVideoPipeline, "ltx2-mini")):
        with pytest.raises(ValueError, match=r"load it with LTX\w+\.from_pretrained"):
            pipeline.from_pretrained(packaged_checkpoint(folder))
    bare = {name: torch.zeros(1) for name in TABLES["transformer"]}
    assert OriginalCheckpoint(bare).family == "ltx_video"
    assert OriginalCheckpoint(load_tensors("checkpoint/ltx-2-tiny-dev.safetensors")).family == "ltx2"


def test_a_file_whose_tensors_are_not_those_of_its_configuration_is_refused():
    tensors = load_tensors(f"{FOLDER}/v095/model.safetensors")
    del tensors["model.diffusion_model.transformer_blocks.1.ff.net.2.bias"]
    with pytest.raises(ValueError, match=r"transformer_blocks\.1\.ff\.net\.2\.bias"):
        load_component(
            LTXVideoTransformer3DModel, tensors, original_config={"transformer": section("v095", "transformer")}
        )


def test_streamed_blocks_are_refused_with_another_way():
    with pytest.raises(ValueError, match="enable_group_offload"):
        LTXVideoPipeline.from_single_file(original("v095"), text_encoder=None, block_streaming="disk")
    with pytest.raises(ValueError, match="block_streaming"):
        LTXVideoPipeline.from_pretrained(Path(packaged_checkpoint("ltx-video-tiny")), block_streaming="disk")
