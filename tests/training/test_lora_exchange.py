"""What is trained here has the same effect in this package's pipelines and in diffusers', and the other way round."""

import pytest
import torch
from diffusers import LTX2Pipeline as DiffusersLTX2Pipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.adapters.keys import LORA_FORMATS
from ltx2_diffusers.training.trained.models import load_adapter, lora_arguments
from tests.pipelines.tiny import load
from tests.tiny_checkpoints import tiny_checkpoint
from tests.training.tiny import config, loaded, train, velocities

# Two programs compute the same sums in another order.
CLOSE = 1e-5
BASES = ("2.0", "2.3")
KINDS = {
    "alpha above rank": {"alpha": 10},
    "alpha below rank": {"alpha": 1},
    "connectors": {"target_modules": ["av", "connectors"], "alpha": 6},
    "feed-forward": {"target_modules": "ic_lora", "alpha": 2},
    "DoRA": {"use_dora": True, "alpha": 7},
    "rank-stabilised": {"use_rslora": True, "alpha": 3},
    "biases": {"lora_bias": True, "alpha": 7},
    "gaussian": {"init_lora_weights": "gaussian"},
}


def without_decoders(name: str, kind: type = LTX2Pipeline):
    absent = dict.fromkeys(("vae", "audio_vae", "vocoder", "text_encoder", "tokenizer"))
    return load(name, kind, **absent) if kind is LTX2Pipeline else load(name, kind)


@torch.no_grad()
def output(pipeline) -> list[torch.Tensor]:
    return velocities(pipeline.transformer, pipeline.connectors)


def largest(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def in_float32(models) -> None:
    """All weights, to compare to the last digits."""
    for model in (models.transformer, models.connectors):
        torch.nn.Module.to(model, torch.float32)


def trained(lora: dict, base: str = "2.0"):
    settings = config(lora, model={"model_path": str(tiny_checkpoint(base))})
    models = loaded(settings)
    losses = train(models, settings)
    assert losses[1] < losses[0]
    in_float32(models)
    return models


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("lora", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("base", BASES)
def test_a_trained_lora_does_the_same_everywhere(lora, base, tmp_path):
    models = trained(lora, base)
    LTX2Pipeline.save_lora_weights(tmp_path, **lora_arguments(models))
    expected = output(models.pipeline)
    for kind in (LTX2Pipeline, DiffusersLTX2Pipeline):
        pipeline = without_decoders(base, kind)
        plain = output(pipeline)
        pipeline.load_lora_weights(str(tmp_path))
        found = output(pipeline)
        assert largest(found, expected) < CLOSE, kind
        assert largest(found, plain) > 100 * CLOSE


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("lora", KINDS.values(), ids=KINDS)
def test_training_goes_on_from_what_was_saved(lora, tmp_path):
    models = trained(lora)
    LTX2Pipeline.save_lora_weights(tmp_path, **lora_arguments(models))
    again = loaded(config(lora, model={"load_checkpoint": tmp_path}))
    for old, new in zip(models.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", LORA_FORMATS)
@pytest.mark.quick_cases(2)
def test_every_layout_can_be_started_from(layout, tmp_path):
    """Also into an adapter with another alpha."""
    models = trained({"alpha": 10, "target_modules": ["av", "connectors"]})
    LTX2Pipeline.save_lora_weights(
        tmp_path, **lora_arguments(models), format=layout, weight_name="lora_step_2.safetensors"
    )
    settings = config({"alpha": 3, "target_modules": ["av", "connectors"]}, model={"load_checkpoint": tmp_path})
    again = loaded(settings)
    in_float32(again)
    assert largest(output(again.pipeline), output(models.pipeline)) < CLOSE
    assert all(p.requires_grad and p.dtype == torch.float32 for p in again.parameters())


@pytest.mark.parametrize("alpha", [4, 10])
def test_a_lora_of_diffusers_does_the_same_here(alpha, tmp_path):
    theirs = without_decoders("2.0", DiffusersLTX2Pipeline)
    torch.manual_seed(1)
    theirs.transformer.add_adapter(
        LoraConfig(r=4, lora_alpha=alpha, target_modules=["to_k", "to_q", "to_v", "to_out.0"])
    )
    for name, parameter in theirs.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    DiffusersLTX2Pipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(theirs.transformer),
        **_collate_lora_metadata({"transformer": theirs.transformer}),
    )
    expected, pipeline = output(theirs), without_decoders("2.0")
    plain = output(pipeline)
    pipeline.load_lora_weights(tmp_path)
    assert largest(output(pipeline), expected) < CLOSE < largest(expected, plain) / 100
    models = loaded(config({"alpha": 5}))
    load_adapter(models, tmp_path)
    in_float32(models)
    assert largest(output(models.pipeline), expected) < CLOSE
