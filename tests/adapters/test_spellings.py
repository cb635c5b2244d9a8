"""Names of LoRA tensors: every prefix in any order, every spelling of a factor, and nothing guessed."""

import pytest
import torch

from ltx2_diffusers.adapters.keys import read_lora
from ltx2_diffusers.adapters.spellings import split_name
from tests.adapters.tiny import Q, assert_equal, build, largest, lora, outputs

SCORED = Q.replace(".", "_")
CONNECTOR = "video_connector.transformer_blocks.0.attn1.to_q"
FACTORS = (torch.ones(4, 32), torch.ones(32, 4))


def named(module: str, down: str = "lora_A.weight", up: str = "lora_B.weight") -> dict[str, torch.Tensor]:
    return dict(zip((f"{module}.{down}", f"{module}.{up}"), FACTORS))


@pytest.mark.parametrize(
    "module",
    [
        f"transformer.base_model.model.{Q}",
        f"base_model.model.transformer.{Q}",
        f"base_model.model.diffusion_model.{Q}",
        f"model.diffusion_model.base_model.model.{Q}",
        f"diffusion_model.transformer.{Q}",
        f"transformer._orig_mod.{Q}",
        f"_orig_mod.base_model.model.module.{Q}",
        f"transformer.{Q.replace('.attn1', '._orig_mod.attn1')}",
        f"lora_unet_{Q}",
        f"lora_unet_{SCORED}",
        f"lora_transformer_{Q}",
        f"lora_transformer_{SCORED}",
        f"diffusion_model.lora_unet_{SCORED}",
        f"lora_unet_diffusion_model_{SCORED}",
        f"lora_unet_transformer_{SCORED}",
        f"lycoris_{SCORED}",
    ],
)
def test_prefixes_stand_in_any_order(module):
    assert set(read_lora(named(module))) == {("transformer", Q)}


@pytest.mark.parametrize(
    "module",
    [
        f"connectors.base_model.model.{CONNECTOR}",
        f"base_model.model.connectors.{CONNECTOR}",
        f"transformer.connectors.{CONNECTOR}",
        f"connectors._orig_mod.{CONNECTOR}",
        f"lora_connectors_{CONNECTOR.replace('.', '_')}",
        "diffusion_model.video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q",
        "lora_unet_video_embeddings_connector_transformer_1d_blocks_0_attn1_to_q",
    ],
)
def test_connectors_are_told_from_the_transformer(module):
    assert set(read_lora(named(module))) == {("connectors", CONNECTOR)}


@pytest.mark.parametrize(
    "module", ["text_proj_in", "lora_unet_text_embedding_projection_aggregate_embed", "connectors.text_proj_in"]
)
def test_the_text_projection_has_many_names(module):
    assert set(read_lora(named(module))) == {("connectors", "text_proj_in")}


@pytest.mark.parametrize(
    "down, up",
    [
        ("lora_A.weight", "lora_B.weight"),
        ("lora_A.default.weight", "lora_B.default.weight"),
        ("lora_A", "lora_B"),
        ("lora_A.default", "lora_B.default"),
        ("lora.down.weight", "lora.up.weight"),
        ("lora_down.weight", "lora_up.weight"),
        ("lora_down.style.weight", "lora_up.style.weight"),
        ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    ],
)
@pytest.mark.parametrize("prefix", ["transformer.", "base_model.model.", "lora_unet_"])
def test_factors_have_many_names(prefix, down, up):
    assert set(read_lora(named(prefix + Q, down, up))) == {("transformer", Q)}


@pytest.mark.parametrize("layer, module", [("to_q", "to_q"), ("to_out", "to_out.0")])
@pytest.mark.parametrize("between", ["processor.", ""])
def test_attention_processors_held_their_loras(between, layer, module):
    block = "transformer_blocks.0.attn1"
    written = {
        f"transformer.{block}.{between}{layer}_lora.{side}.weight": f for side, f in zip(("down", "up"), FACTORS)
    }
    assert set(read_lora(written)) == {("transformer", f"{block}.{module}")}


@pytest.mark.parametrize(
    "ending, part",
    [
        ("alpha", "alpha"),
        ("lora_alpha", "alpha"),
        ("dora_scale", "magnitude"),
        ("lora_magnitude_vector", "magnitude"),
        ("lora_magnitude_vector.weight", "magnitude"),
        ("lora_magnitude_vector.default.weight", "magnitude"),
        ("lora_B.bias", "bias"),
        ("lora_up.bias", "bias"),
        ("lora_B.default.bias", "bias"),
        ("lora_A.bias", ""),
        ("weight", ""),
        ("lora_C.weight", ""),
    ],
)
def test_other_parts_of_a_lora(ending, part):
    assert split_name(f"diffusion_model.{Q}.{ending}")[1] == part


def test_no_dots_are_guessed_and_no_component_is_left():
    for wrong in ("transformer.transformer.blocks.0.attn1.to_q", f"connectors.{Q}", "lora_unet_blocks_0_attn1_to_q"):
        with pytest.raises(ValueError, match="none of the 2 tensors"):
            read_lora(named(wrong))


@pytest.mark.parametrize("block", ["99", "9" * 30])
def test_blocks_that_no_model_has_make_no_table_without_end(block):
    with pytest.raises(ValueError, match=rf"blocks\.{block}"):
        read_lora(named(Q.replace("blocks.0", f"blocks.{block}")), {"transformer": {Q: (32, 32)}})


def test_one_module_in_two_spellings_is_refused_by_both_names():
    with pytest.raises(ValueError, match=rf"twice, as 'transformer\.{Q}.*'lora_unet_{SCORED}"):
        read_lora(named(f"transformer.{Q}") | named(f"lora_unet_{SCORED}", "lora_down.weight", "lora_up.weight"))


def test_a_spelling_changes_nothing_about_the_effect():
    results = []
    for prefix in ("transformer.", "lora_unet_", "transformer.base_model.model."):
        pipe = build()
        base = outputs(pipe)
        given = lora(prefix=prefix)
        keys, copies = list(given), [tensor.clone() for tensor in given.values()]
        pipe.load_lora_weights(given, adapter_name="style")
        # The caller's dict stays his, whatever becomes of the adapter.
        pipe.load_lora_weights({key: tensor * 2 for key, tensor in lora().items()}, adapter_name="style", hotswap=True)
        assert list(given) == keys and all(torch.equal(t, c) for t, c in zip(given.values(), copies))
        results.append(outputs(pipe))
        assert largest(results[-1], base) > 0.01
    for other in results[1:]:
        assert_equal(results[0], other)
