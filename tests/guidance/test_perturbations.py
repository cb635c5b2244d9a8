"""Keep masks say what each pass leaves out."""

import pytest
import torch

from ltx2_diffusers.guidance import (
    BatchedPerturbationConfig,
    MultiModalGuider,
    MultiModalGuiderParams,
    Perturbation,
    PerturbationConfig,
    PerturbationType,
    isolating_perturbations,
    stg_perturbations,
)

from ..golden_data import load_json

A2V = PerturbationType.SKIP_A2V_CROSS_ATTN
CALLS = load_json("sampling/guided_loop_calls.json")


def test_empty_keeps_everything():
    assert torch.equal(BatchedPerturbationConfig.empty(2).keep_masks(3), torch.ones(4, 3, 2))


def test_keep_masks_by_sample_kind_and_block():
    first = PerturbationConfig([Perturbation(A2V, [0, 2]), Perturbation(PerturbationType.SKIP_VIDEO_SELF_ATTN)])
    batched = BatchedPerturbationConfig([first, PerturbationConfig()])
    keep = batched.keep_masks(3, dtype=torch.bfloat16)
    assert keep.dtype == torch.bfloat16
    assert keep[:, :, 0].tolist() == [[0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 1, 1]]
    assert keep[:, :, 1].all()


@pytest.mark.parametrize("name", sorted(CALLS))
def test_passes_leave_out_what_the_reference_leaves_out(name: str):
    case = CALLS[name]
    video, audio = (MultiModalGuiderParams(**case[f"{stream}_params"]) for stream in ("video", "audio"))
    guiders = MultiModalGuider(video), MultiModalGuider(audio)
    expected = [BatchedPerturbationConfig.empty(1)]
    if any(guider.do_perturbed_generation() for guider in guiders):
        blocks = [g.params.stg_blocks if g.do_perturbed_generation() else () for g in guiders]
        expected.append(stg_perturbations(1, *blocks))
    if any(guider.do_isolated_modality_generation() for guider in guiders):
        expected.append(isolating_perturbations(1))
    seen = {tuple((kind, blocks and tuple(blocks)) for kind, blocks in call["perturb"]) for call in case["calls"]}
    ours = {
        tuple(sorted((p.type.name, p.blocks) for p in config.perturbations[0].perturbations)) for config in expected
    }
    assert ours == seen


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"blocks must lie in \[0, 2\], got \[3\] for SKIP_A2V_CROSS_ATTN; use 2"):
        BatchedPerturbationConfig([PerturbationConfig([Perturbation(A2V, [3])])]).keep_masks(3)
    with pytest.raises(ValueError, match=r"blocks must be indices from 0 on, got \[-1\]"):
        Perturbation(A2V, [-1])
    with pytest.raises(ValueError, match="type must be a PerturbationType"):
        Perturbation("skip_a2v_cross_attn")
