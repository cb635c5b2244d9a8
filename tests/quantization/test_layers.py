"""Which layers of the published transformers are stored in float8, by name, and how many bytes that leaves."""

import math
import re

import pytest

from ltx2_diffusers.quantization.layers import cast_layers, scaled_layers

from .files import FULL, load, published_shapes

ATTENTIONS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
PROJECTIONS = [f"{name}.{part}" for name in ATTENTIONS for part in ("to_q", "to_k", "to_v", "to_out.0")]
VIDEO_FEED_FORWARD = ["ff.net.0.proj", "ff.net.2"]
FEED_FORWARD = [*VIDEO_FEED_FORWARD, "audio_ff.net.0.proj", "audio_ff.net.2"]
GATES = [f"{name}.to_gate_logits" for name in ATTENTIONS]
MODELS = ("ltx-2-19b", "ltx-2.3-22b")
# What stays as it is, outside of blocks and in them.
OUTSIDE = {
    *("proj_in", "audio_proj_in", "proj_out", "audio_proj_out", "time_embed", "audio_time_embed"),
    *("av_cross_attn_video_scale_shift", "av_cross_attn_audio_scale_shift"),
    *("av_cross_attn_video_a2v_gate", "av_cross_attn_audio_v2a_gate", "scale_shift_table", "audio_scale_shift_table"),
}
OUTSIDE_20 = {"caption_projection", "audio_caption_projection"}
OUTSIDE_23 = {"prompt_adaln", "audio_prompt_adaln"}


def in_blocks(blocks, kinds) -> set[str]:
    return {f"transformer_blocks.{block}.{kind}" for block in blocks for kind in kinds}


def num_bytes(shapes, layers, bias_bytes=1, scales=0) -> int:
    """Bytes of a bfloat16 model with those layers in float8."""
    total = scales * 4 * len(layers)
    for name, shape in shapes.items():
        layer, _, kind = name.rpartition(".")
        width = 2 if layer not in layers else (1 if kind == "weight" else bias_bytes)
        total += math.prod(shape) * width
    return total


@pytest.mark.parametrize("model", MODELS)
def test_cast_layers_of_the_published_models(model):
    names = published_shapes(model)
    assert set(cast_layers(names)) == in_blocks(range(48), PROJECTIONS + FEED_FORWARD)
    assert set(cast_layers(names, "2.0")) == in_blocks(range(48), PROJECTIONS + VIDEO_FEED_FORWARD)


@pytest.mark.parametrize("model", MODELS)
def test_what_stays_in_high_precision(model):
    """By name: everything outside of the blocks, and in the blocks gates of heads, norms and tables."""
    names, layers = published_shapes(model), set(cast_layers(published_shapes(model)))
    kept = {name for name in names if name.rpartition(".")[0] not in layers}
    outside = {name.partition(".")[0] for name in kept if not name.startswith("transformer_blocks.")}
    is_newer = model == MODELS[1]
    assert outside == OUTSIDE | (OUTSIDE_23 if is_newer else OUTSIDE_20)
    tables = {"scale_shift_table", "audio_scale_shift_table"}
    tables |= {"video_a2v_cross_attn_scale_shift_table", "audio_a2v_cross_attn_scale_shift_table"}
    norms = {f"{name}.{norm}.weight" for name in ATTENTIONS for norm in ("norm_q", "norm_k")}
    newer = {"prompt_scale_shift_table", "audio_prompt_scale_shift_table"}
    newer |= {f"{gate}.{kind}" for gate in GATES for kind in ("weight", "bias")}
    inside = {
        re.sub(r"transformer_blocks\.\d+\.", "", name) for name in kept if name.startswith("transformer_blocks.")
    }
    assert inside == tables | norms | (newer if is_newer else set())


def test_scaled_layers_of_the_published_models():
    kinds = PROJECTIONS + FEED_FORWARD
    assert set(scaled_layers(published_shapes("ltx-2-19b"))) == in_blocks(range(1, 43), kinds)
    # 32 heads in every attention, which float8 units multiply.
    assert set(scaled_layers(published_shapes("ltx-2.3-22b"))) == in_blocks(range(1, 43), kinds + GATES)


@pytest.mark.parametrize("gates, expected", [((32, 64), True), ((2, 64), False), ((32, 60), False)])
def test_gates_are_multiplied_only_in_sizes_of_the_units(gates, expected):
    shapes = {f"transformer_blocks.{block}.attn1.to_gate_logits.weight": gates for block in range(3)}
    assert scaled_layers(shapes) == (["transformer_blocks.1.attn1.to_gate_logits"] if expected else [])


def test_bytes_of_the_published_model():
    """As the page on quantisation says."""
    shapes = published_shapes("ltx-2-19b")
    cast, cast_20, scaled = cast_layers(shapes), cast_layers(shapes, "2.0"), scaled_layers(shapes)
    found = [num_bytes(shapes, ()), num_bytes(shapes, set(cast)), num_bytes(shapes, set(cast_20))]
    found.append(num_bytes(shapes, set(scaled), bias_bytes=2, scales=2))
    assert [round(count / 1e9, 1) for count in found] == [37.8, 19.2, 20.8, 21.5]


@pytest.mark.parametrize(
    "method, chosen, sizes",
    [("fp8_cast", cast_layers, {}), ("fp8_scaled_mm", scaled_layers, {"bias_bytes": 2, "scales": 1})],
)
def test_a_model_stores_what_was_counted(method, chosen, sizes):
    shapes = {name: tuple(tensor.shape) for name, tensor in load(FULL, dtype=None).state_dict().items()}
    state = load(FULL, dtype=None, quantization_config=method).state_dict()
    stored = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert stored == num_bytes(shapes, set(chosen(shapes)), **sizes)
