"""Whole networks with fused steps: the numbers of plain ones, whatever stands around their modules."""

import pytest
import torch
from accelerate import cpu_offload

from ltx2_diffusers.kernels import fusing
from ltx2_diffusers.kernels.fusing import fusion
from ltx2_diffusers.models.negative_text import NagWeights, NegativeText
from ltx2_diffusers.models.text_cache import TextCache
from tests.models.transformer_tools import (
    LAYOUTS,
    VIDEO_TOKENS,
    max_difference,
    per_token,
    tiny_inputs,
    tiny_transformer,
)

CALLS = {
    "text to video": lambda _: {},
    "image to video": lambda inputs: {"timestep": per_token(inputs["timestep"], VIDEO_TOKENS, (0.0, 1.0, 0.5))},
    "a level for each token": lambda inputs: {
        "timestep": inputs["timestep"][:, None] * torch.linspace(0.1, 1, VIDEO_TOKENS)
    },
    "perturbed": lambda _: {"spatio_temporal_guidance_blocks": [1]},
    "perturbed in one sample": lambda _: {
        "spatio_temporal_guidance_blocks": [1],
        "perturbation_mask": torch.tensor([0.0, 1.0]),
    },
    "isolated": lambda _: {"isolate_modalities": True},
    "gates of the other stream": lambda _: {"cross_timestep_mode": "gate"},
    "frozen sound": lambda _: {"audio_enabled": False},
    "away from a text": lambda inputs: {
        "negative_text": NegativeText(
            inputs["encoder_hidden_states"] / 3, inputs["audio_encoder_hidden_states"] / 2, NagWeights(4.0)
        )
    },
}


@pytest.fixture
def compilations(monkeypatch):
    """Compiles nothing, and lists what would be."""
    found = []

    def compile(function, options):
        assert options["emulate_precision_casts"]
        found.append(function.__name__.rpartition("_")[0])
        return function

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(fusing, "_compiled", {})
    return found


def both(model, **arguments) -> float:
    """Difference between a plain and a fused forward pass."""
    inputs = tiny_inputs(model, 2) | arguments
    with torch.no_grad():
        plain = model(**inputs)
        with fusion(True):
            return max_difference(model(**inputs), plain)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.quick_cases(12)
def test_steps_meet_the_same_numbers(layout, call, compilations):
    model = tiny_transformer(layout)
    # Rows of modulation are evaluated for other numbers of levels, which rounds products differently.
    assert both(model, **CALLS[call](tiny_inputs(model, 2))) <= 2e-5
    assert {"add_norm_modulate", "norm_rotate", "add"} <= set(compilations)


def test_text_keys_are_kept(compilations):
    model = tiny_transformer("2.0")
    inputs = tiny_inputs(model, 2)
    with torch.no_grad(), fusion(True):
        cache = TextCache()
        first = model(**inputs, text_cache=cache)
        assert max_difference(model(**inputs, text_cache=cache), first) == 0
    assert compilations


def test_training_runs_steps_as_they_are_written(compilations):
    model = tiny_transformer("2.3").train()
    inputs = tiny_inputs(model) | {"timestep": per_token(torch.tensor([500.0]), VIDEO_TOKENS, (0.0, 1.0))}
    gradients = []
    for mode in (False, True):
        model.zero_grad()
        with fusion(mode):
            sum(output.square().sum() for output in model(**inputs)).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(*pair) for pair in zip(*gradients)) and not compilations


def test_norms_with_weights(compilations):
    assert both(tiny_transformer("2.3", norm_elementwise_affine=True)) == 0 and compilations


def test_weights_that_come_when_a_module_is_called(compilations):
    """Accelerate's offloading of single modules: until a norm is called, its weight is nowhere."""
    model = tiny_transformer("2.0", norm_elementwise_affine=True)
    with torch.no_grad():
        expected = model(**tiny_inputs(model))
        cpu_offload(model, execution_device="cpu")
        assert model.transformer_blocks[0].attn1.norm_q.weight.is_meta
        with fusion(True):
            assert max_difference(model(**tiny_inputs(model)), expected) == 0
    # Of the steps with norms there is none left to fuse.
    assert "add_norm_modulate" not in compilations and "norm_rotate" not in compilations


def test_layers_cast_one_by_one(compilations):
    model = tiny_transformer("2.0", norm_elementwise_affine=True)
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert both(model) == 0 and "add_norm_modulate" in compilations


def test_group_offloading_by_block(compilations):
    model = tiny_transformer("2.0", norm_elementwise_affine=True)
    model.enable_group_offload(torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    assert both(model) == 0 and "add_norm_modulate" in compilations


def test_group_offloading_by_layer(compilations):
    model = tiny_transformer("2.0", norm_elementwise_affine=True)
    model.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    assert both(model) == 0 and compilations


def test_lora_on_every_projection(compilations):
    from peft import LoraConfig

    model = tiny_transformer("2.0")
    model.add_adapter(
        LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0", "proj"], init_lora_weights=False)
    )
    assert both(model) == 0 and "norm_rotate" in compilations


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("call", ["text to video", "image to video"])
def test_compiled_steps(layout, call):
    model = tiny_transformer(layout)
    assert both(model, **CALLS[call](tiny_inputs(model, 2))) <= 2e-5


@pytest.mark.slow
def test_compiled_decoding():
    from ltx2_diffusers import AutoencoderKLLTX2Video, packaged_checkpoint

    vae = AutoencoderKLLTX2Video.from_pretrained(packaged_checkpoint("ltx2-mini"), subfolder="vae")
    latents = torch.randn(1, vae.config.latent_channels, 3, 4, 4)
    with torch.no_grad():
        plain = vae.decode(latents).sample
        with fusion(True):
            torch.testing.assert_close(vae.decode(latents).sample, plain, rtol=0, atol=1e-4 * float(plain.abs().max()))
