"""Adapters that become part of the weights: all of their parts, once, and back again."""

import logging

import pytest
import torch

from ltx2_diffusers import LTX2Pipeline
from tests.adapters.tiny import assert_equal, build, largest, lora, outputs, settings

ROUNDING = 5e-6
K = "transformer_blocks.1.attn2.to_k"


def part_of_connectors(seed: int = 0) -> dict[str, torch.Tensor]:
    return lora("text_proj_in", seed, (8, 24), "connectors.")


@pytest.fixture
def pipe() -> LTX2Pipeline:
    pipe = build()
    pipe.load_lora_weights(lora() | part_of_connectors(), adapter_name="a")
    pipe.load_lora_weights(lora(seed=1) | lora(K) | part_of_connectors(1), adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.5, -0.7])
    return pipe


def test_what_saving_advises_keeps_all_parts(pipe, tmp_path):
    expected = outputs(pipe)
    with pytest.raises(ValueError, match=r"fuse_lora\(\), then call unload_lora_weights"):
        pipe.save_pretrained(tmp_path / "saved")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "saved")
    absent = dict.fromkeys(("scheduler", "vae", "audio_vae", "text_encoder", "tokenizer", "vocoder"))
    again = LTX2Pipeline.from_pretrained(tmp_path / "saved", dtype=torch.float32, **absent)
    assert largest(outputs(again), expected) < ROUNDING


def test_fusing_and_unfusing_are_exact(pipe):
    expected = outputs(pipe)
    pipe.set_adapters([])
    base = outputs(pipe)
    weights = {key: tensor.clone() for key, tensor in pipe.transformer.state_dict().items()}
    pipe.set_adapters(["a", "b"], [0.5, -0.7])
    before = settings(pipe)
    for _ in range(2):
        pipe.fuse_lora()
        assert pipe.fused_loras == {"a", "b"} and pipe.num_fused_loras == 2
        assert largest(outputs(pipe), expected) < ROUNDING
        pipe.unfuse_lora()
        assert settings(pipe) == before and pipe.num_fused_loras == 0
        assert all(torch.equal(t, weights[key]) for key, t in pipe.transformer.state_dict().items())
    pipe.set_adapters([])
    assert largest(outputs(pipe), base) < ROUNDING


def test_components_and_adapters_can_be_chosen(pipe):
    active = outputs(pipe)
    pipe.set_adapters("a", 0.5)
    only_a = outputs(pipe)
    pipe.set_adapters([])
    pipe.fuse_lora(adapter_names="a")
    assert pipe.fused_loras == {"a"}
    assert largest(outputs(pipe), only_a) < ROUNDING
    pipe.unfuse_lora()
    pipe.set_adapters(["a", "b"], [0.5, -0.7])
    for component in ("transformer", "connectors"):
        pipe.fuse_lora(components=[component])
    assert largest(outputs(pipe), active) < ROUNDING
    pipe.unfuse_lora(components=["connectors"])
    assert pipe.fused_loras == {"a", "b"}
    pipe.unfuse_lora(components=["transformer"])
    assert pipe.fused_loras == set()


def test_the_scale_of_fusing_counts_for_what_is_fused(pipe):
    pipe.set_adapters("b", 0.3)
    expected = outputs(pipe)
    pipe.set_adapters(["a", "b"], [1.0, 0.6])
    pipe.fuse_lora(lora_scale=0.5, adapter_names=["b"])
    pipe.set_adapters([])
    assert largest(outputs(pipe), expected) < ROUNDING


def test_an_adapter_is_fused_once_and_keeps_its_strength(pipe):
    pipe.fuse_lora(adapter_names=["a"])
    fused = outputs(pipe)
    for change, message in (
        (lambda: pipe.fuse_lora(), "'a' is fused already; call unfuse_lora"),
        (lambda: pipe.set_adapters("a", 0.1), r"'a' has no effect while \['a'\] are fused"),
        (lambda: pipe.delete_adapters("a"), r"\['a'\] are fused; call unfuse_lora\(\) before deleting"),
        (lambda: pipe.fuse_lora(adapter_names=["c"]), r"`adapter_names` has \['c'\], but the loaded adapters are"),
        (lambda: pipe.fuse_lora(adapter_names=["b", "b"]), r"`adapter_names` names an adapter twice: \['b', 'b'\]"),
        (
            lambda: pipe.fuse_lora(adapter_names=[]),
            "`adapter_names` is empty; leave it out to fuse the active adapters",
        ),
        (lambda: pipe.fuse_lora(components=["vae"]), r"`components` has to name one or more of \['transformer'"),
        (lambda: pipe.fuse_lora(components=[]), r"`components` has to name one or more"),
        (lambda: pipe.unfuse_lora(components=["vae"]), r"`components` has to name one or more"),
        (lambda: pipe.fuse_lora(lora_scale=float("nan")), "`lora_scale` has to be a finite number but is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            change()
        assert_equal(outputs(pipe), fused)


def test_disabled_adapters_are_not_fused(pipe):
    pipe.disable_lora()
    with pytest.raises(ValueError, match="while they are disabled; call enable_lora"):
        pipe.fuse_lora()
    pipe.enable_lora()
    pipe.fuse_lora()


def test_a_failure_on_the_way_takes_all_back(pipe):
    layer = pipe.connectors.text_proj_in
    with torch.no_grad():
        # Finite factors whose product is not.
        for factor in (layer.lora_A["b"], layer.lora_B["b"]):
            factor.weight.fill_(1e30)
    before = settings(pipe)
    weights = {key: tensor.clone() for key, tensor in pipe.transformer.state_dict().items()}
    with pytest.raises(ValueError, match="NaNs detected"):
        pipe.fuse_lora(safe_fusing=True)
    assert settings(pipe) == before and pipe.fused_loras == set()
    assert all(torch.equal(t, weights[key]) for key, t in pipe.transformer.state_dict().items())


def test_a_part_that_is_lost_is_named(pipe, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    pipe.fuse_lora(components=["transformer"])
    pipe.unload_lora_weights()
    assert "the adapter 'a' was fused, but not into the connectors" in caplog.text


def test_a_pipeline_is_plain_again_without_its_last_adapter(pipe, tmp_path):
    pipe.delete_adapters(["a", "b"])
    pipe.save_pretrained(tmp_path / "saved")
    assert_equal(outputs(pipe), outputs(build()))
    with pytest.raises(ValueError, match=r"`adapter_names` has \['a'\], but the loaded adapters are \[\]"):
        pipe.delete_adapters("a")


def test_a_load_that_fails_half_way_leaves_plain_models():
    pipe = build()

    class Vanishing(type(pipe.connectors)):
        def load_lora_adapter(self, *_args, **_kwargs):
            raise OSError("the disk is gone")

    pipe.connectors.__class__ = Vanishing
    with pytest.raises(OSError, match="the disk is gone"):
        pipe.load_lora_weights(lora() | part_of_connectors())
    assert [name for name, _ in pipe.transformer.named_modules() if "lora" in name or "base_layer" in name] == []
    assert pipe.get_list_adapters() == {}
