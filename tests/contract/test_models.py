"""What diffusers' users do with a single network: one check, run on the classes of both libraries.

Shapes: B batch, C channels, F latent frames, h and w latent rows and columns, L audio latents, M mel bins, T text positions.
"""

import inspect
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from diffusers.models.modeling_utils import ModelMixin
from peft import LoraConfig

from tests.contract.both import LIBRARIES, MODELS, both, model, named, new_model, pipeline, run, seeded

EQUAL = 1e-5
each = pytest.mark.parametrize("part", MODELS)
# With a switch for recomputing activations in the backward pass.
CHECKPOINTING = ("transformer", "vae")
AUTOENCODERS = ("vae", "audio_vae")
# Its attention is compiled for GPUs and has none on a CPU.
NO_GRADIENTS = [("diffusers", "diffusion_decoder")]


def inputs(part: str) -> dict[str, Any]:
    """Arguments of a forward of a model, by name; what it draws is the same every time."""
    return _tensors_of(part) | ({"generator": seeded()} if part == "diffusion_decoder" else {})


@cache
def _tensors_of(part: str) -> dict[str, Any]:
    noise = {size: torch.randn(*size, generator=seeded(len(size))) for size in SIZES[part].values()}
    given: dict[str, Any] = {argument: noise[size] for argument, size in SIZES[part].items()}
    if part == "transformer":
        given |= {"timestep": torch.tensor([500.0, 250.0]), "sigma": torch.tensor([500.0, 250.0])}
        given |= {"num_frames": 2, "height": 2, "width": 3, "fps": 24.0, "audio_num_frames": 4}
    if part == "connectors":
        given["attention_mask"] = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1]])
    return given


SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "transformer": {
        "hidden_states": (2, 12, 4),
        "audio_hidden_states": (2, 4, 4),
        "encoder_hidden_states": (2, 8, 32),
        "audio_encoder_hidden_states": (2, 8, 32),
    },
    "connectors": {"text_encoder_hidden_states": (2, 8, 96)},
    "vae": {"sample": (2, 3, 5, 16, 16)},
    "audio_vae": {"sample": (2, 2, 5, 8)},
    "vocoder": {"hidden_states": (2, 2, 5, 8)},
    "diffusion_decoder": {"z": (2, 4, 3, 3, 8)},
    "latent_upsampler": {"hidden_states": (2, 4, 3, 4, 4)},
    "duration_head": {"video_tokens": (2, 7, 32), "audio_tokens": (2, 5, 32)},
}


def tensors(output: Any) -> list[torch.Tensor]:
    """The tensors of numbers, not of masks, in whatever a forward returns."""
    parts = output.to_tuple() if hasattr(output, "to_tuple") else output
    parts = (parts,) if isinstance(parts, torch.Tensor) else parts
    return [part for part in parts if part is not None and part.is_floating_point()]


def ran(network: ModelMixin, part: str, **changes: Any) -> list[torch.Tensor]:
    """Tensors of a forward without gradients."""
    with torch.no_grad():
        return tensors(network(**inputs(part) | changes))


def difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Largest absolute difference of two lists of tensors."""
    assert [t.shape for t in one] == [t.shape for t in other]
    return max((a.float() - b.float()).abs().max().item() for a, b in zip(one, other))


@each
def test_the_same_numbers_as_diffusers(part):
    assert difference(*(ran(model(library, part), part) for library in LIBRARIES)) <= EQUAL


@each
def test_the_same_weights_and_configuration_as_diffusers(part):
    theirs, ours = (model(library, part) for library in LIBRARIES)
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in theirs.state_dict().items()
    }
    assert settings(ours.config) == settings(theirs.config)
    assert ours.num_parameters() == theirs.num_parameters()


def settings(config: Any) -> dict[str, Any]:
    """What a configuration says of the network."""
    return {key: listed(value) for key, value in config.items() if not key.startswith("_")}


def listed(value: Any) -> Any:
    """A value of a configuration with its tuples as lists, as in a file."""
    return [listed(item) for item in value] if isinstance(value, list | tuple) else value


@each
def test_the_arguments_begin_in_the_order_of_diffusers(part):
    classes = [type(model(library, part)) for library in LIBRARIES]
    for method in ("__init__", "forward", "encode", "decode"):
        if hasattr(classes[0], method):
            theirs, ours = (inspect.signature(getattr(one, method)).parameters for one in classes)
            assert list(ours)[: len(theirs)] == list(theirs)
            assert {n: listed(p.default) for n, p in theirs.items()} == {n: listed(ours[n].default) for n in theirs}


@each
@both
def test_a_model_repeats_itself(library, part):
    network = model(library, part)
    assert difference(ran(network, part), ran(network, part)) == 0
    if "return_dict" in inspect.signature(network.forward).parameters:
        with torch.no_grad():
            as_tuple = network.forward(**inputs(part), return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert difference(tensors(as_tuple), ran(network, part)) == 0


@each
@both
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickled"])
@pytest.mark.quick_cases(22)
def test_a_saved_model_is_the_same(library, part, variant, safe, tmp_path):
    network = model(library, part)
    network.save_pretrained(tmp_path, variant=variant, safe_serialization=safe)
    again = type(network).from_pretrained(tmp_path, variant=variant, use_safetensors=safe)
    assert not again.training
    assert settings(again.config) == settings(network.config)
    assert difference(ran(again, part), ran(network, part)) <= EQUAL
    assert (f".{variant}." in " ".join(file.name for file in tmp_path.iterdir())) == (variant is not None)
    with pytest.raises(OSError):
        type(network).from_pretrained(tmp_path, variant="other", use_safetensors=safe)


@each
@both
def test_shards(library, part, tmp_path):
    network = model(library, part)
    size = sum(parameter.numel() * 4 for parameter in network.parameters())
    network.save_pretrained(tmp_path, max_shard_size=f"{size // 2000 or 1}KB")
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 1
    assert difference(ran(type(network).from_pretrained(tmp_path), part), ran(network, part)) <= EQUAL


@each
def test_models_travel_both_ways(part, tmp_path):
    for here, there in (LIBRARIES, LIBRARIES[::-1]):
        folder = tmp_path / here
        model(here, part).save_pretrained(folder)
        again = type(model(there, part)).from_pretrained(folder)
        assert difference(ran(again, part), ran(model(here, part), part)) <= EQUAL


@each
@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_data_type_of_a_loaded_model(library, part, dtype, tmp_path):
    network = model(library, part)
    network.save_pretrained(tmp_path)
    assert type(network).from_pretrained(tmp_path, torch_dtype=dtype).dtype == dtype
    assert new_model(library, part).to(dtype).dtype == dtype


@each
@both
def test_a_model_from_its_configuration(library, part, tmp_path):
    network = model(library, part)
    again = type(network).from_config(network.config)
    assert again.state_dict().keys() == network.state_dict().keys()
    network.save_config(tmp_path)
    config = type(network).load_config(tmp_path)
    assert settings(type(network).from_config(config).config) == settings(network.config)
    with pytest.raises((ValueError, TypeError)):
        type(network)(**{"no_such_argument": 1})


@pytest.mark.parametrize("library, part", [(o, p) for o in LIBRARIES for p in MODELS if (o, p) not in NO_GRADIENTS])
def test_a_model_learns(library, part):
    network = new_model(library, part).train()
    sum(tensor.square().mean() for tensor in tensors(network(**inputs(part)))).backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize(
    "library, part", [*((o, p) for o in LIBRARIES for p in CHECKPOINTING), ("ours", "connectors")]
)
def test_recomputed_activations_give_the_same_gradients(library, part):
    gradients = []
    for recomputes in (False, True):
        network = new_model(library, part).train()
        if recomputes:
            network.enable_gradient_checkpointing()
            assert network.is_gradient_checkpointing
        sum(tensor.square().mean() for tensor in tensors(network(**inputs(part)))).backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all((gradients[0][name] - gradients[1][name]).abs().max() < 1e-5 for name in gradients[0])


@each
@both
def test_layerwise_casting(library, part):
    network = new_model(library, part)
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert network.dtype == torch.float32
    expected = ran(model(library, part), part)
    for output, whole in zip(ran(network, part), expected):
        assert output.isfinite().all()
        assert (output - whole).abs().mean() <= 0.2 * whole.abs().mean().clamp(min=1.0)


@each
@both
def test_groups_of_layers_are_brought_one_by_one(library, part):
    network, device = new_model(library, part), torch.device("cpu")
    kind = {"offload_type": "leaf_level"}
    network.enable_group_offload(onload_device=device, offload_device=device, **kind)
    assert difference(ran(network, part), ran(model(library, part), part)) == 0


@both
def test_adapters_of_a_model(library, tmp_path):
    name = "transformer"
    network = new_model(library, name)
    plain = ran(network, name)
    network.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False), adapter_name="one")
    adapted = ran(network, name)
    assert difference(adapted, plain) > 1e-6
    network.save_lora_adapter(tmp_path, adapter_name="one")
    network.disable_adapters()
    assert difference(ran(network, name), plain) <= EQUAL
    network.enable_adapters()
    network.set_adapters(["one"], [0.5])
    assert network.active_adapters() == ["one"]
    assert difference(ran(network, name), adapted) > 1e-6
    network.delete_adapters("one")
    assert difference(ran(network, name), plain) <= EQUAL
    other = new_model(library, name)
    file = {"weight_name": "pytorch_lora_weights.safetensors", "prefix": None}
    other.load_lora_adapter(tmp_path, adapter_name="two", **file)
    assert difference(ran(other, name), adapted) <= EQUAL
    other.fuse_lora()
    assert difference(ran(other, name), adapted) <= 10 * EQUAL
    other.unfuse_lora()
    other.unload_lora()
    assert difference(ran(other, name), plain) <= 10 * EQUAL


@both
@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_attention_backends(library, backend, monkeypatch):
    # diffusers sets it for all models, and does not set it back.
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", _AttentionBackendRegistry._active_backend)
    network = new_model(library, "transformer")
    network.set_attention_backend(backend)
    assert difference(ran(network, "transformer"), ran(model(library, "transformer"), "transformer")) <= EQUAL
    network.reset_attention_backend()


@both
def test_attention_processors_can_be_put_back(library):
    network = new_model(library, "transformer")
    processors = network.attn_processors
    assert len(processors) == 12 and all(name.endswith(".processor") for name in processors)
    network.set_attn_processor(dict(processors))
    assert difference(ran(network, "transformer"), ran(model(library, "transformer"), "transformer")) == 0
    with pytest.raises(ValueError):
        network.set_attn_processor({name: processors[name] for name in list(processors)[:3]})


@pytest.mark.quick_cases(1)
@both
def test_compiled_blocks_give_the_same(library):
    network = new_model(library, "transformer")
    network.compile_repeated_blocks(fullgraph=True, backend="eager")
    assert difference(ran(network, "transformer"), ran(model(library, "transformer"), "transformer")) <= EQUAL


CACHES = {
    "first block": lambda: FirstBlockCacheConfig(threshold=0.0),
    "attention": lambda: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 950),
        spatial_attention_block_identifiers=["transformer_blocks"],
        current_timestep_callback=lambda: 500,
    ),
}


@pytest.mark.parametrize(
    ("library", "kind"), [("diffusers", "attention"), ("ours", "attention"), ("ours", "first block")]
)
def test_caches_between_steps(library, kind):
    pipe = pipeline(library, "LTX2Pipeline", new_model)
    expected = run(library, "LTX2Pipeline", pipe)
    pipe.transformer.enable_cache(CACHES[kind]())
    assert pipe.transformer.is_cache_enabled
    output = run(library, "LTX2Pipeline", pipe)
    assert output.frames.shape == expected.frames.shape and output.frames.isfinite().all()
    pipe.transformer.disable_cache()
    again = run(library, "LTX2Pipeline", pipe)
    assert (again.frames - expected.frames).abs().max() <= EQUAL


# --- autoencoders ---


@pytest.mark.parametrize("part", AUTOENCODERS)
@both
def test_encoding_and_decoding(library, part):
    network, sample = model(library, part), inputs(part)["sample"]
    with torch.no_grad():
        posterior = network.encode(sample).latent_dist
        again = network.encode(sample, return_dict=False)[0]
        assert torch.equal(posterior.mode(), again.mode())
        assert not torch.equal(posterior.sample(seeded(1)), posterior.mode())
        latents = posterior.mode()
        decoded = network.decode(latents).sample
        assert torch.equal(decoded, network.decode(latents, return_dict=False)[0])
        assert torch.equal(decoded, network(sample, sample_posterior=False).sample)
        drawn = network(sample, sample_posterior=True, generator=seeded(1)).sample
    assert decoded.shape[:2] == sample.shape[:2] and not torch.equal(drawn, decoded)


@both
def test_slices_and_tiles(library):
    network, sample = new_model(library, "vae"), inputs("vae")["sample"]
    with torch.no_grad():
        latents = network.encode(sample).latent_dist.mode()
        whole = network.decode(latents).sample
        network.enable_slicing()
        assert network.use_slicing
        assert (network.decode(latents).sample - whole).abs().max() <= EQUAL
        assert (network.encode(sample).latent_dist.mode() - latents).abs().max() <= EQUAL
        network.disable_slicing()
        network.enable_tiling()
        assert network.use_tiling
        # Smaller than a tile.
        assert (network.decode(latents).sample - whole).abs().max() <= EQUAL
        network.disable_tiling()
        assert not network.use_slicing and not network.use_tiling
        assert torch.equal(network.decode(latents).sample, whole)
        for switch in ("use_framewise_encoding", "use_framewise_decoding"):
            assert isinstance(getattr(network, switch), bool)
            setattr(network, switch, False)
        assert torch.equal(network.decode(latents).sample, whole)


@both
@pytest.mark.parametrize("part", ["vae", "audio_vae"])
def test_statistics_of_the_latents(library, part):
    network = model(library, part)
    assert network.latents_mean.shape == network.latents_std.shape == (4,)
    assert {"latents_mean", "latents_std"} <= network.state_dict().keys()


@both
def test_processors_of_the_diffusion_decoder(library):
    part = "diffusion_decoder"
    network = new_model(library, part)
    processors = network.attn_processors
    assert len(processors) == 5 and all(name.endswith(".processor") for name in processors)
    network.set_attn_processor(dict(processors))
    assert difference(ran(network, part), ran(model(library, part), part)) <= EQUAL


def test_tiles_of_the_diffusion_decoder():
    network, part = new_model("ours", "diffusion_decoder"), "diffusion_decoder"
    network.enable_tiling(tile_sample_min_width=12, tile_sample_stride_width=8)
    assert network.use_tiling
    tiled = ran(network, part)
    network.disable_tiling()
    whole = ran(network, part)
    assert tiled[0].shape == whole[0].shape and not torch.equal(tiled[0], whole[0])
    assert difference(whole, ran(model("ours", part), part)) <= EQUAL


@pytest.mark.slow
def test_tiles_are_those_of_diffusers():
    outputs = []
    for library in LIBRARIES:
        network = new_model(library, "diffusion_decoder")
        network.enable_tiling(tile_sample_min_width=12, tile_sample_stride_width=8)
        outputs.append(ran(network, "diffusion_decoder"))
    assert difference(*outputs) <= EQUAL


def test_diffusers_name_of_the_transformer_is_ours():
    assert named("ours", "LTX2VideoTransformer3DModel") is named("ours", "LTX2AVTransformer3DModel")
