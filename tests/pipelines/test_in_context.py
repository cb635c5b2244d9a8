"""`LTX2InContextPipeline` computes what diffusers' pipeline of that name computes, and follows its LoRA's metadata."""

import inspect

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import LTX2InContextPipeline as DiffusersOriginal
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition as DiffusersCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition as DiffusersReference

from ltx2_diffusers.media.reading import read_video
from ltx2_diffusers.pipelines.conditions.pictures import LTX2ReferenceCondition, LTX2VideoCondition
from ltx2_diffusers.pipelines.recipes.in_context import LTX2InContextPipeline
from tests.golden_data import EQUAL_MODELS, EQUAL_PIPELINES
from tests.media.clips import write_timed
from tests.pipelines.tiny import (
    ALL_GUIDANCE,
    CFG,
    EXPLICIT,
    NO_GUIDANCE,
    PROMPT,
    load,
    max_difference,
    seeded,
    sibling,
    with_token_sigmas,
)

# The one known difference: diffusers takes the whole stream's noise level for tokens that are partly held.
DiffusersPipeline = with_token_sigmas(DiffusersOriginal)
BASE = {**EXPLICIT, **NO_GUIDANCE, "height": 64, "width": 64, "prompt": PROMPT}


def clip(seed: int, frames: int = 9, size: int = 64) -> list[PIL.Image.Image]:
    """Noise in the size that the reference is encoded in, where both libraries' resizing changes nothing."""
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)
    return [PIL.Image.fromarray(frame) for frame in pixels]


CLIP = clip(0)
FLOATS = np.stack([np.array(frame) for frame in CLIP]).astype(np.float32) / 255
PICTURE = clip(1, 1)[0]
BOTH = (LTX2ReferenceCondition, LTX2VideoCondition), (DiffusersReference, DiffusersCondition)
LEFT_HALF = torch.cat([torch.ones(1, 1, 9, 64, 32), torch.zeros(1, 1, 9, 64, 32)], dim=-1)


def ours(name: str = "2.0") -> LTX2InContextPipeline:
    return sibling(name, LTX2InContextPipeline)


def generate(*references, **kwargs):
    return ours()(reference_conditions=list(references), **BASE | kwargs, generator=seeded(0))


def compare(references, conditions=(), name: str = "2.0", **kwargs) -> float:
    outputs = [
        sibling(name, pipeline)(
            reference_conditions=[reference(*r) for r in references],
            conditions=[condition(*c) for c in conditions],
            **BASE | kwargs,
            generator=seeded(1),
        )
        for pipeline, (reference, condition) in zip((LTX2InContextPipeline, DiffusersPipeline), BOTH)
    ]
    return max_difference(*outputs)


# --- parity with diffusers ---


@pytest.mark.parametrize(
    ("references", "conditions"),
    [
        ([(CLIP,)], []),
        ([(CLIP, 0.6)], []),
        ([(CLIP,), (clip(2), 0.5)], []),
        ([(CLIP,)], [(PICTURE, 0, 1.0), (PICTURE, 1, 0.7)]),
        ([], [(PICTURE, 1, 1.0)]),
        ([], []),
        ([(FLOATS,)], []),
        ([(torch.from_numpy(FLOATS).movedim(-1, 1),)], []),
        ([(CLIP[0],)], []),
        ([(clip(3, 17),)], []),
    ],
    ids=["one", "weak", "two", "and keyframes", "only keyframes", "none", "array", "tensor", "picture", "longer"],
)
def test_same_latents_as_diffusers(references, conditions):
    assert compare(references, conditions) <= EQUAL_PIPELINES


@pytest.mark.parametrize("name", ["2.0", "2.3"])
@pytest.mark.parametrize("guidance", [CFG, ALL_GUIDANCE], ids=["cfg", "all guidance"])
def test_same_guided_latents_as_diffusers(name, guidance):
    if name == "2.0":
        guidance = {**guidance, "stg_scale": 0.0, "audio_stg_scale": 0.0}
    masked = {"conditioning_attention_mask": LEFT_HALF}
    assert compare([(CLIP,)], [(PICTURE, 1, 1.0)], name, **guidance, **masked) <= EQUAL_PIPELINES


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(
    "arguments",
    [
        {"conditioning_attention_strength": 0.0},
        {"conditioning_attention_mask": LEFT_HALF},
        {"conditioning_attention_mask": LEFT_HALF, "conditioning_attention_strength": 0.0},
        {"frame_rate": 30.0, "motion_speed": 0.5},
        {"use_cross_timestep": True},
        {"prompt": [PROMPT, "Waves."]},
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_arguments_mean_what_they_mean_in_diffusers(arguments):
    assert compare([(CLIP,), (clip(2), 0.5)], [(PICTURE, 1, 1.0)], **arguments) <= EQUAL_PIPELINES


def test_a_reference_of_half_the_size():
    assert compare([(clip(4, size=32),)], reference_downscale_factor=2) <= EQUAL_PIPELINES


def test_same_arguments_in_the_same_order():
    def names(pipeline):
        return list(inspect.signature(pipeline.__call__).parameters)

    assert names(LTX2InContextPipeline)[: len(names(DiffusersOriginal))] == names(DiffusersOriginal)


# --- behaviour ---


def test_references_are_never_decoded():
    assert generate(LTX2ReferenceCondition(CLIP), output_type="np").frames.shape == (1, 9, 64, 64, 3)


def test_attention_strength_goes_gradually_from_none_to_full():
    outputs = [
        generate(LTX2ReferenceCondition(CLIP), conditioning_attention_strength=s).frames
        for s in (0.0, 0.5, 0.999, 1.0)
    ]
    steps = [(output - outputs[-1]).abs().mean().item() for output in outputs]
    assert steps[0] > steps[1] > steps[2] > 0


def test_attention_strength_1_is_no_mask():
    plain = generate(LTX2ReferenceCondition(CLIP)).frames
    everywhere = torch.ones(1, 1, 9, 64, 64)
    masked = generate(LTX2ReferenceCondition(CLIP), conditioning_attention_mask=everywhere).frames
    torch.testing.assert_close(masked, plain, atol=EQUAL_MODELS, rtol=0)


def test_a_reference_may_say_itself_what_the_call_says_for_all():
    said = generate(LTX2ReferenceCondition(CLIP, attention_strength=0.0), conditioning_attention_strength=1.0).frames
    assert torch.equal(said, generate(LTX2ReferenceCondition(CLIP), conditioning_attention_strength=0.0).frames)
    half = generate(LTX2ReferenceCondition(CLIP, downscale_factor=2)).frames
    assert torch.equal(half, generate(LTX2ReferenceCondition(CLIP), reference_downscale_factor=2).frames)


def test_a_reference_with_fewer_frames_per_second():
    slow = generate(LTX2ReferenceCondition(clip(5, 17), temporal_scale_factor=2), num_frames=17)
    assert slow.frames.shape[2] == 3
    assert not torch.equal(slow.frames, generate(LTX2ReferenceCondition(clip(5, 17)), num_frames=17).frames)


# --- the LoRA's metadata ---


def test_a_reference_from_a_file_keeps_its_speed(tmp_path):
    path = write_timed(tmp_path / "clip.mp4", [i / 60 for i in range(30)])
    by_time, one_by_one = (read_video(path, 9, frame_rate=rate).numpy() for rate in (24, None))
    seen = [generate(LTX2ReferenceCondition(frames)).frames for frames in (path, by_time, one_by_one)]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    with pytest.warns(UserWarning, match="times its speed"):
        assert torch.equal(generate(LTX2ReferenceCondition(path, frame_rate="source")).frames, seen[2])


def with_lora(folder, **metadata: str) -> LTX2InContextPipeline:
    """A pipeline with a LoRA whose file says how its references are scaled."""
    pipe = load("2.0", LTX2InContextPipeline)
    name = "transformer_blocks.0.attn1.to_q"
    layer = pipe.transformer.get_submodule(name)
    factors = {
        f"{name}.lora_A.weight": torch.randn(2, layer.in_features, generator=seeded(0)),
        f"{name}.lora_B.weight": torch.randn(layer.out_features, 2, generator=seeded(1)),
    }
    pipe.save_lora_weights(folder, transformer_lora_layers=factors, metadata=metadata)
    pipe.load_lora_weights(folder, adapter_name="ic")
    return pipe


def test_the_scale_of_references_is_read_from_the_lora(tmp_path):
    pipe = with_lora(tmp_path, reference_downscale_factor="2")
    reference = LTX2ReferenceCondition(CLIP)
    calls = [
        pipe(reference_conditions=reference, **BASE, **given, generator=seeded(0)).frames
        for given in ({}, {"reference_downscale_factor": 2})
    ]
    assert torch.equal(*calls)
    pipe.disable_lora()
    pipe.delete_adapters("ic")
    full = pipe(reference_conditions=reference, **BASE, generator=seeded(0)).frames
    assert torch.equal(full, generate(reference).frames)
    assert not torch.equal(full, calls[0])


def test_a_scale_that_contradicts_the_lora_is_refused(tmp_path):
    pipe = with_lora(tmp_path, reference_downscale_factor="2")
    with pytest.raises(ValueError, match="`downscale_factor` is 1, but the active LoRA was trained with 2"):
        pipe(reference_conditions=LTX2ReferenceCondition(CLIP), **BASE, reference_downscale_factor=1)


# --- wrong input ---


@pytest.mark.parametrize(
    ("reference", "arguments", "message"),
    [
        (LTX2ReferenceCondition(CLIP), {"reference_downscale_factor": 3}, "multiples of 96"),
        (LTX2ReferenceCondition(CLIP), {"reference_downscale_factor": 4}, "multiples of 128"),
        (LTX2ReferenceCondition(CLIP), {"reference_downscale_factor": 0}, "downscale_factor` .* at least 1"),
        (LTX2ReferenceCondition(CLIP), {"reference_downscale_factor": 1.5}, "downscale_factor` .* whole number"),
        (LTX2ReferenceCondition(CLIP, temporal_scale_factor=0), {}, "`temporal_scale_factor`"),
        (LTX2ReferenceCondition(CLIP, strength=-0.1), {}, "`strength` has to be between 0 and 1"),
        (LTX2ReferenceCondition(CLIP), {"conditioning_attention_strength": 2.0}, "attention_strength`"),
        (LTX2ReferenceCondition(CLIP), {"conditioning_attention_mask": torch.ones(9, 64, 64)}, r"\[1, 1, F, H, W\]"),
        (
            LTX2ReferenceCondition(CLIP),
            {"conditioning_attention_mask": LEFT_HALF[:, :, :5]},
            "5 frames, the reference 9",
        ),
        (LTX2ReferenceCondition(CLIP), {"conditioning_attention_mask": LEFT_HALF.cfloat()}, "has to hold numbers"),
        (LTX2ReferenceCondition(CLIP), {"conditioning_attention_mask": LEFT_HALF * 2}, "attention_mask` .* is 2.0"),
        (LTX2ReferenceCondition(FLOATS * 255), {}, "between 0 and 1"),
        (LTX2ReferenceCondition("nowhere.mp4"), {}, r"nowhere\.mp4"),
        (LTX2ReferenceCondition(None), {}, "has to be an image"),
        (CLIP, {}, "`reference_conditions` has to hold conditions"),
    ],
)
def test_wrong_references_are_named_before_any_computation(reference, arguments, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        generate(reference, **arguments)
