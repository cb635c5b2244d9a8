"""Context parallelism: several ranks give what one gives, at any length."""

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.models._modeling_parallel import ContextParallelInput

from ltx2_diffusers.models.context_parallel import token_parallel_config
from ltx2_diffusers.models.transformer import LTX2AVTransformer3DModel
from tests.golden_data import EQUAL_MODELS
from tests.models.transformer_tools import (
    LAYOUTS,
    TEXT_TOKENS,
    VIDEO_TOKENS,
    max_difference,
    per_token,
    tiny_inputs,
    tiny_transformer,
)
from tests.ranks import lines_of_ranks

FOUR_HEADS = {
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "audio_num_attention_heads": 4,
    "audio_attention_head_dim": 4,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_the_plan_splits_exactly_what_is_as_long_as_the_video(layout):
    model = tiny_transformer(layout)
    inputs = tiny_inputs(model)
    split = {}
    for name, plan in model._cp_plan.items():
        module = model.get_submodule(name)
        for index, spec in plan.items():
            assert isinstance(spec, ContextParallelInput) and spec.split_output

            def record(_, __, output, name=name, index=index, spec=spec):
                tensor = output[index] if isinstance(output, tuple) else output
                assert tensor.ndim == spec.expected_dims
                split[name, index] = tensor.shape[spec.split_dim]

            module.register_forward_hook(record)
    model(**inputs)
    # One timestep for all tokens needs no index.
    tables = {(name, index) for name in ("rope", "cross_attn_rope") for index in (0, 1)}
    assert split == dict.fromkeys({("split_tokens", 0), *tables}, VIDEO_TOKENS)


def cases(inputs: dict) -> dict[str, dict]:
    text_mask = torch.ones(2, TEXT_TOKENS)
    text_mask[0, 3:] = 0
    generator = torch.Generator().manual_seed(0)
    tokens = inputs["hidden_states"].shape[1]
    self_mask = (torch.rand(2, tokens, tokens, generator=generator) > 0.2).float()
    return {
        "plain": {},
        "per token": {"timestep": per_token(inputs["timestep"], tokens, (0, 1, 1))},
        "masks": {"encoder_attention_mask": text_mask, "video_self_attention_mask": self_mask},
        "perturbed": {"spatio_temporal_guidance_blocks": [1], "perturbation_mask": torch.tensor([0.0, 1.0])},
    }


@torch.no_grad()
def differences(num_ranks: int, height: int, layouts: list[str]) -> list[str]:
    """How far this rank's results with others are from its own alone."""
    lines = []
    for layout in layouts:
        model = tiny_transformer(layout, **FOUR_HEADS)
        inputs = resized(model, height)
        arguments = {name: {**inputs, **changes} for name, changes in cases(inputs).items()}
        expected = {name: model(**changed) for name, changed in arguments.items()}
        model.enable_parallelism(config=token_parallel_config(model, num_ranks))
        for name, changed in arguments.items():
            lines.append(f"{max_difference(model(**changed), expected[name])} {layout}, {name}")
        model.enable_cache(FirstBlockCacheConfig(threshold=1e9))
        memory = model.new_step_cache()
        for _ in range(2):
            cached = model(**inputs, step_cache=memory)
        lines.append(f"{max_difference(cached, expected['plain'])} {layout}, cached {memory.skipped}")
    return lines


def resized(model: LTX2AVTransformer3DModel, height: int) -> dict:
    """Inputs of three latent frames of so many rows and one column, two samples."""
    inputs = tiny_inputs(model, 2)
    tokens = 3 * height
    generator = torch.Generator().manual_seed(5)
    inputs["hidden_states"] = torch.randn(2, tokens, model.config.in_channels, generator=generator)
    inputs["video_coords"] = model.rope.prepare_video_coords(2, 3, height, 1, "cpu", fps=25.0)
    return inputs


# 15 video tokens divide into parts of 8 and 7, and into 4, 4, 4 and 3.
@pytest.mark.parametrize(
    ("num_ranks", "height", "layouts"),
    [
        pytest.param(2, 4, ["2.3"], id="two ranks, even"),
        pytest.param(2, 5, list(LAYOUTS), marks=pytest.mark.slow, id="two ranks, uneven"),
        pytest.param(4, 5, list(LAYOUTS), marks=pytest.mark.slow, id="four ranks, uneven"),
    ],
)
def test_ranks_give_what_one_gives(tmp_path, num_ranks, height, layouts):
    for lines in lines_of_ranks(differences, num_ranks, tmp_path, num_ranks, height, layouts):
        assert len(lines) == 5 * len(layouts) and all(line.endswith("[True]") for line in lines[4::5])
        assert all(float(line.split()[0]) <= EQUAL_MODELS for line in lines), lines


@pytest.mark.parametrize(("num_ranks", "nearest"), [(3, 2), (8, 4)])
def test_heads_that_do_not_spread_are_refused(num_ranks, nearest):
    model = tiny_transformer("2.3", **FOUR_HEADS)
    assert token_parallel_config(model, 4).ulysses_degree == 4
    with pytest.raises(ValueError, match=f"{num_ranks} ranks cannot share the 4 attention heads of .*; use {nearest}"):
        token_parallel_config(model, num_ranks)


def test_without_processes_nothing_is_shared():
    model = tiny_transformer("2.3")
    with pytest.raises(RuntimeError, match=r"needs torch\.distributed; start the program by torchrun"):
        model.enable_parallelism(config=token_parallel_config(model, 2))
    assert model._parallel_config is None
