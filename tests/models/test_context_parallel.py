"""Context parallelism: two ranks give what one gives."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.hooks.context_parallel import apply_context_parallel
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput, ParallelConfig

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

RANKS = 2


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_the_plan_splits_exactly_what_is_as_long_as_the_video(layout):
    model = tiny_transformer(layout)
    inputs = tiny_inputs(model)
    split, gathered = {}, {}
    for name, plan in model._cp_plan.items():
        module = model.get_submodule(name)
        if isinstance(plan, ContextParallelOutput):
            module.register_forward_hook(lambda _, __, out, plan=plan: gathered.update({plan.gather_dim: out.shape}))
            continue
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
    assert gathered[1][1] == VIDEO_TOKENS


def enable_on_cpu(model: LTX2AVTransformer3DModel, rank: int) -> None:
    """What `enable_parallelism` does, which itself asks for an accelerator."""
    config = ContextParallelConfig(ulysses_degree=RANKS)
    mesh = dist.device_mesh.init_device_mesh("cpu", config.mesh_shape, mesh_dim_names=config.mesh_dim_names)
    parallel = ParallelConfig(context_parallel_config=config)
    parallel.setup(rank, RANKS, torch.device("cpu"), mesh=mesh)
    model._parallel_config = parallel
    for processor in model.attn_processors.values():
        processor._parallel_config = parallel
    apply_context_parallel(model, config, model._cp_plan)


def cases(inputs: dict) -> dict[str, dict]:
    text_mask = torch.ones(2, TEXT_TOKENS)
    text_mask[0, 3:] = 0
    generator = torch.Generator().manual_seed(0)
    self_mask = (torch.rand(2, VIDEO_TOKENS, VIDEO_TOKENS, generator=generator) > 0.2).float()
    return {
        "plain": {},
        "per token": {"timestep": per_token(inputs["timestep"], VIDEO_TOKENS, (0, 1, 1))},
        "masks": {"encoder_attention_mask": text_mask, "video_self_attention_mask": self_mask},
        "perturbed": {"spatio_temporal_guidance_blocks": [1], "perturbation_mask": torch.tensor([0.0, 1.0])},
    }


@torch.no_grad()
def run_rank(rank: int, store: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    lines = []
    for layout in LAYOUTS:
        model = tiny_transformer(layout)
        inputs = tiny_inputs(model, 2)
        arguments = {name: {**inputs, **changes} for name, changes in cases(inputs).items()}
        expected = {name: model(**changed) for name, changed in arguments.items()}
        enable_on_cpu(model, rank)
        for name, changed in arguments.items():
            lines.append(f"{max_difference(model(**changed), expected[name])} {layout}, {name}")
    Path(f"{results}.{rank}").write_text("\n".join(lines))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_give_what_one_gives(tmp_path):
    results = tmp_path / "differences"
    torch.multiprocessing.spawn(run_rank, (str(tmp_path / "store"), str(results)), nprocs=RANKS)
    for rank in range(RANKS):
        lines = results.with_suffix(f".{rank}").read_text().splitlines()
        assert len(lines) == 4 * len(LAYOUTS)
        assert all(float(line.split()[0]) <= EQUAL_MODELS for line in lines), lines
