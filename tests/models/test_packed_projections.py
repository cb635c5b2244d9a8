"""Packed projections: the numbers of separate ones, whatever happens to the layers, under the same names."""

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig

from ltx2_diffusers.models.attention import LTX2Attention
from ltx2_diffusers.models.transformer import LTX2AVTransformer3DModel
from tests.models.transformer_tools import max_difference, tiny_inputs, tiny_transformer

CLOSE = 1e-5


@torch.no_grad()
def output(model: LTX2AVTransformer3DModel) -> tuple:
    return model(**tiny_inputs(model))


@pytest.fixture
def models():
    """A packed model and one that is not."""
    packed, plain = tiny_transformer("2.3"), tiny_transformer("2.3")
    packed.fuse_qkv_projections()
    return packed, plain


def test_one_product_and_the_same_names(models, tmp_path):
    packed, plain = models
    assert max_difference(output(packed), output(plain)) <= CLOSE
    attention = packed.transformer_blocks[0].attn1
    with torch.no_grad():
        assert attention._runs_packed() and packed.transformer_blocks[0].attn2._runs_packed()
    # Nothing is stored twice, and nothing new in files.
    assert attention.to_q.weight.data_ptr() == attention.to_qkv.weight.data_ptr()
    assert packed.state_dict().keys() == plain.state_dict().keys()
    packed.save_pretrained(tmp_path)
    loaded = LTX2AVTransformer3DModel.from_pretrained(tmp_path)
    assert max_difference(output(loaded), output(plain)) <= CLOSE


def test_weights_that_are_loaded_moved_or_changed_are_read(models):
    packed, plain = models
    other = tiny_transformer("2.3", seed=5)
    packed.load_state_dict(other.state_dict())
    assert max_difference(output(packed), output(other)) <= CLOSE
    packed.load_state_dict(plain.state_dict(), assign=True)
    assert max_difference(output(packed), output(plain)) <= CLOSE
    packed.unfuse_qkv_projections()
    packed.fuse_qkv_projections()
    packed.double()
    attention = packed.transformer_blocks[0].attn1
    with torch.no_grad():
        assert attention._runs_packed() and attention.to_qkv.weight.dtype == torch.float64
    packed.float()
    assert max_difference(output(packed), output(plain)) <= CLOSE


def test_adapters_loaded_later_act(models):
    packed, plain = models
    config = LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    for model in models:
        torch.manual_seed(0)
        model.add_adapter(config)
    assert max_difference(output(packed), output(plain)) <= CLOSE
    assert max_difference(output(packed), output(tiny_transformer("2.3"))) > 1e-3


def test_gradients_reach_the_layers(models):
    for model in models:
        sum(result.square().sum() for result in model(**tiny_inputs(model))).backward()
    packed, plain = (model.transformer_blocks[0].attn1.to_q.weight.grad for model in models)
    torch.testing.assert_close(packed, plain)


def test_modules_that_are_offloaded_later(models):
    packed, plain = models
    packed.enable_group_offload(torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    assert max_difference(output(packed), output(plain)) <= CLOSE


@pytest.mark.parametrize(
    "prepare",
    [
        lambda model: model.add_adapter(LoraConfig(r=2, target_modules=["to_k"])),
        lambda model: cpu_offload(model, execution_device="cpu"),
        lambda model: model.to("meta"),
    ],
)
def test_what_cannot_be_packed_is_refused(prepare):
    model = tiny_transformer("2.0")
    prepare(model)
    with pytest.raises(ValueError, match=r"to_\w is a \w+ on \w+ that is quantised, adapted, or offloaded"):
        model.fuse_qkv_projections()
    assert not any(m.fused_projections for m in model.modules() if isinstance(m, LTX2Attention))
