"""The transformer against golden vectors of diffusers and of the reference implementation."""

from functools import lru_cache
from pathlib import Path

import pytest
import torch

from ltx2_diffusers.models.transformer import LTX2AVTransformer3DModel
from tests.golden_data import GOLDEN_DIR, assert_within, golden_cases, load_json, load_tensors
from tests.models.transformer_tools import assert_same_rotation

pytestmark = pytest.mark.usefixtures("golden_sinusoid")

CASES = [path.relative_to(GOLDEN_DIR) for path in golden_cases("transformer", "*/cases/*.safetensors")]
INPUTS = (
    "hidden_states",
    "audio_hidden_states",
    "encoder_hidden_states",
    "audio_encoder_hidden_states",
    "timestep",
    "audio_timestep",
    "sigma",
    "audio_sigma",
    "video_coords",
    "audio_coords",
    "encoder_attention_mask",
    "audio_encoder_attention_mask",
    "video_keyframes_mask",
)


@lru_cache(maxsize=4)
def golden_model(folder: Path) -> LTX2AVTransformer3DModel:
    model = LTX2AVTransformer3DModel.from_config(load_json(folder / "config.json")).eval()
    model.load_state_dict(load_tensors(folder / "diffusers.safetensors"))
    return model


def variants(case: Path, tensors: dict) -> dict[str, dict]:
    """Arguments of the forward passes of one case, by the pattern that names their expected outputs."""
    name, is_20 = case.stem, case.parts[1].startswith("ltx20")
    if name == "stream_switches":
        return {
            "expected_{}_without_audio": {"audio_hidden_states": None},
            "expected_{}_without_video": {"hidden_states": None},
            "expected_{}_audio_disabled": {"audio_enabled": False},
            "expected_{}_video_disabled": {"video_enabled": False},
            "expected_{}_isolated": {"isolate_modalities": True},
        }
    if name == "self_attention_mask":
        kinds = ("binary", "fractional")
        masks = {kind: tensors[f"video_self_attention_mask_{kind}"] for kind in kinds}
        found = {f"reference_{{}}_{kind}": {"video_self_attention_mask": mask} for kind, mask in masks.items()}
        return {**found, "expected_{}_binary": {"video_self_attention_mask": masks["binary"]}}
    if "perturbation_keep" in tensors:
        found = {}
        for mode in ("skip", "passthrough"):
            pattern = f"expected_{{}}_{mode}"
            if pattern.format("video") in tensors:
                found[pattern] = {"perturbation_keep_masks": tensors["perturbation_keep"], "perturbation_mode": mode}
        return found
    newest = "own" if is_20 else "gate"
    found = {
        "expected_{}": {},
        "expected_{}_cross_timestep": {"use_cross_timestep": True},
        "reference_{}": {"cross_timestep_mode": newest},
    }
    return {pattern: arguments for pattern, arguments in found.items() if pattern.format("video") in tensors}


@pytest.mark.parametrize("case", [case for case in CASES if case.stem != "t2v_intermediates"], ids=str)
@torch.no_grad()
def test_golden_case(case):
    tensors = load_tensors(case)
    inputs = {name: tensors[name] for name in INPUTS if name in tensors}
    model, checked = golden_model(case.parent.parent), set()
    for pattern, arguments in variants(case, tensors).items():
        outputs = model(**{**inputs, **arguments}, return_dict=False)
        for stream, output in zip(("video", "audio"), outputs):
            name = pattern.format(stream)
            if name in tensors:
                assert_within(output, tensors[name], "transformer", name)
                checked.add(name)
    # Fractional masks are where this model follows the reference and not diffusers.
    expected = {name for name in tensors if name.startswith(("expected_", "reference_"))}
    assert checked == expected - {"expected_video_fractional", "expected_audio_fractional"}


@pytest.mark.parametrize("case", [case for case in CASES if case.stem == "batch2_stg_mask"], ids=str)
@torch.no_grad()
def test_diffusers_stg_arguments(case):
    tensors = load_tensors(case)
    inputs = {name: tensors[name] for name in INPUTS if name in tensors}
    model = golden_model(case.parent.parent)
    mode = "passthrough" if model.config.perturbed_attn else "skip"
    outputs = model(
        **inputs,
        spatio_temporal_guidance_blocks=tensors["spatio_temporal_guidance_blocks"].tolist(),
        perturbation_mask=tensors["perturbation_mask"],
        return_dict=False,
    )
    for stream, output in zip(("video", "audio"), outputs):
        assert_within(output, tensors[f"expected_{stream}_{mode}"], "transformer")


@pytest.mark.parametrize("case", [case for case in CASES if case.stem == "t2v_intermediates"], ids=str)
@torch.no_grad()
def test_every_module_on_the_way(case):
    tensors, expected = load_tensors(case.with_stem("t2v")), load_tensors(case)
    model = golden_model(case.parent.parent)
    seen: dict[str, torch.Tensor] = {}

    def record(name: str, output: torch.Tensor | tuple) -> None:
        outputs = (
            {name: output} if isinstance(output, torch.Tensor) else {f"{name}.{i}": x for i, x in enumerate(output)}
        )
        seen.update(outputs)

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: record(name, output))
        for name, module in model.named_modules()
        if name in expected or f"{name}.0" in expected
    ]
    model(**{name: tensors[name] for name in INPUTS if name in tensors})
    for hook in hooks:
        hook.remove()
    tables = {key[:-2] for key in expected if "rope" in key}
    for name in sorted(tables):
        pairs = ((values.pop(f"{name}.0"), values.pop(f"{name}.1")) for values in (seen, expected))
        assert_same_rotation(*pairs, model.get_submodule(name).spec)
    assert len(tables) == 4
    for key, value in expected.items():
        assert_within(seen[key], value, "transformer", key)


@pytest.mark.parametrize("case", [case for case in CASES if case.stem == "t2v"], ids=str)
@torch.no_grad()
def test_positions_from_the_grid(case):
    tensors, model = load_tensors(case), golden_model(case.parent.parent)
    inputs = {name: tensors[name] for name in INPUTS if name in tensors and "coords" not in name}
    grid = {"num_frames": 3, "height": 2, "width": 3, "fps": 25.0, "audio_num_frames": 7}
    outputs = model(**inputs, **grid, return_dict=False)
    for stream, output in zip(("video", "audio"), outputs):
        assert_within(output, tensors[f"expected_{stream}"], "transformer")


@pytest.mark.parametrize("case", [case for case in CASES if case.stem == "two_sigmas_per_token"], ids=str)
@torch.no_grad()
def test_own_sinusoids_change_little(case, monkeypatch):
    monkeypatch.undo()
    tensors, model = load_tensors(case), golden_model(case.parent.parent)
    outputs = model(**{name: tensors[name] for name in INPUTS if name in tensors}, return_dict=False)
    for stream, output in zip(("video", "audio"), outputs):
        assert_within(output, tensors[f"expected_{stream}"], "transformer with its own angles")
