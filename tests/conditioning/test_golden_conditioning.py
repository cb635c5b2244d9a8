"""States, noised states and masks agree with the reference, item by item."""

import re

import pytest
import torch

from ltx2_diffusers.conditioning import (
    AudioLatentShape,
    AudioLatentTools,
    AudioPatchifier,
    ConditionOutsideRegion,
    GaussianNoiser,
    LatentState,
    VideoConditionByKeyframeIndex,
    VideoConditionByLatentIndex,
    VideoConditionByReferenceLatent,
    pixel_mask_to_tokens,
)
from ltx2_diffusers.models.tensor_memo import TensorMemo
from ltx2_diffusers.models.transformer_stream import StreamRequest, self_mask_bias

from ..golden_data import assert_within, load_tensors
from .tiny import SHAPE, video_tools

# What the reference has beyond our items: a region that is held in part, and keyframes made along with the clip.
LEFT_OUT = {"mask_cond_s0.6", "keyframe_slots"}
OLD = load_tensors("sampling/conditioning.safetensors")
NEW = load_tensors("sampling/conditioning_newest.safetensors")
FIELDS = {
    "latent": "latent",
    "clean": "clean_latent",
    "mask": "denoise_mask",
    "positions": "positions",
    "attention_mask": "attention_mask",
    "keyframes_mask": "keyframes_mask",
}
REFERENCES = {
    "reference_s1": {},
    "reference_small_x2_s0.8": {"downscale_factor": 2, "strength": 0.8},
    "reference_attn0.5": {"attention_strength": 0.5},
    "reference_small_x2_temporal4": {"downscale_factor": 2, "strength": 0.8, "temporal_scale_factor": 4},
    "reference_temporal2": {"temporal_scale_factor": 2},
}


def build(name: str, golden: dict[str, torch.Tensor], wide: bool) -> list:
    """The condition items that a golden state's name describes; `s0.7` in it is a strength."""
    given = {key.removeprefix("in/"): value for key, value in golden.items() if key.startswith("in/")}
    found = re.search(r"_s([\d.]+)", name)
    strength = float(found[1]) if found else 1.0
    image, image2, clip, small = given["image"], given["image2"], given["clip2"], given["ref_small"]
    if name.startswith("latent_index"):
        frame = int(name[12])
        return [VideoConditionByLatentIndex(clip if "clip2" in name else image, strength, frame)]
    if name == "two_latent_indices":
        return [VideoConditionByLatentIndex(image, 1.0, 0), VideoConditionByLatentIndex(image2, 0.8, 2)]
    if name.startswith("keyframe"):
        frames = clip if "clip2" in name or "span" in name else image
        return [VideoConditionByKeyframeIndex(frames, int(re.search(r"\d+", name)[0]), strength, wide_span=wide)]
    if name.startswith("reference"):
        return [VideoConditionByReferenceLatent(small if "small" in name else given["ref"], **REFERENCES[name])]
    if name.startswith("mask_cond"):
        return [ConditionOutsideRegion(given["initial_latent"], 0.0, 1.0, 1 - given["region_mask"])]
    first = VideoConditionByLatentIndex(image, 1.0, 0)
    if name == "combo":
        keyframe = VideoConditionByKeyframeIndex(image2, 8, 0.95, wide_span=wide)
        return [first, keyframe, VideoConditionByReferenceLatent(small, downscale_factor=2)]
    if name == "combo_attention":
        return [
            first,
            VideoConditionByKeyframeIndex(image2, 8, 1.0),
            VideoConditionByReferenceLatent(given["ref"], attention_strength=given["per_token_attention"]),
            VideoConditionByReferenceLatent(small, downscale_factor=2, attention_strength=0.25),
            VideoConditionByKeyframeIndex(image, 16, 0.9),
        ]
    assert name in ("empty", "from_initial")
    return []


def make_state(name: str, golden: dict[str, torch.Tensor], newest: bool) -> LatentState:
    tools = video_tools(fill_latent=not newest)
    starts = "from_initial" in name or name == "combo"
    state = tools.create_initial_state(initial_latent=golden["in/initial_latent"] if starts else None)
    for item in build(name, golden, wide=not newest):
        state = item.apply_to(state, tools)
    return state


def names(golden: dict[str, torch.Tensor]) -> list[str]:
    found = {key.removesuffix("/positions") for key in golden if key.endswith("/positions") and "clear" not in key}
    return sorted(found - LEFT_OUT)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert_within(actual, expected, "sampling")


@pytest.mark.parametrize("name", names(OLD))
def test_state_after_items(name: str):
    check(make_state(name, OLD, newest=False), OLD, name)


@pytest.mark.parametrize("name", names(NEW))
def test_state_after_items_newest(name: str):
    check(make_state(name, NEW, newest=True), NEW, name)


def check(state: LatentState, golden: dict[str, torch.Tensor], name: str) -> None:
    for key, field in FIELDS.items():
        expected = golden.get(f"{name}/{key}")
        if expected is None:
            assert getattr(state, field) is None
        else:
            close(getattr(state, field), expected)


def test_attention_strengths_become_logarithms_in_the_transformer():
    state = make_state("combo_attention", NEW, newest=True)
    request = StreamRequest("video", state.latent, None, None, None, None, self_mask=state.attention_mask)
    close(self_mask_bias(request, torch.float32, TensorMemo()), NEW["combo_attention/log_bias_f32"])


def test_appended_tokens_are_cleared():
    tools = video_tools()
    state = tools.clear_conditioning(make_state("combo", OLD, newest=False))
    check(state, OLD, "combo_cleared")
    close(tools.unpatchify(state).latent, OLD["combo_unpatchified/latent"])


@pytest.mark.parametrize("key", sorted(key for key in OLD if key.startswith("noised/")))
def test_noised_state(key: str):
    name, scale = key.removeprefix("noised/").split("_scale")
    noise = OLD["noise" if name == "combo" else "noise78"]
    state = GaussianNoiser()(make_state(name, OLD, newest=False), float(scale), noise)
    close(state.latent, OLD[key])


@pytest.mark.parametrize("key", sorted(key for key in NEW if key.startswith("noised/")))
def test_noised_state_newest(key: str):
    tools = video_tools(fill_latent=False)
    state = tools.create_initial_state(initial_latent=NEW["in/initial_latent"])
    state = VideoConditionByLatentIndex(NEW["in/image"], 0.7, 0).apply_to(state, tools)
    state = VideoConditionByKeyframeIndex(NEW["in/image2"], 8, 0.9).apply_to(state, tools)
    state = GaussianNoiser(blend="clean")(state, float(key.split("_scale")[1]), NEW["noise79"])
    close(state.latent, NEW[key])


@pytest.mark.parametrize("key", sorted(key for key in NEW if key.startswith("temporal_region/")))
def test_temporal_region(key: str):
    _, span, stream = key.split("/")
    if stream == "video_mask":
        tools = video_tools(target_shape=SHAPE._replace(frames=9))
    else:
        tools = AudioLatentTools(AudioPatchifier(), AudioLatentShape(1, 8, 70, 16))
    source = torch.zeros(tools.target_shape.to_torch_shape())
    region = ConditionOutsideRegion(source, *map(float, span.split("_")))
    close(region.apply_to(tools.create_initial_state(), tools).denoise_mask, NEW[key])


@pytest.mark.parametrize("key", ["latent_f3_h3_w2", "latent_f5_h6_w4"])
def test_pixel_mask_to_tokens(key: str):
    golden = load_tensors("sampling/reference_prep_newest.safetensors")
    frames, height, width = (int(part[1:]) for part in key.split("_")[1:])
    shape = SHAPE._replace(frames=frames, height=height, width=width)
    close(pixel_mask_to_tokens(golden["mask_video/in"], shape), golden[f"mask_video/{key}"])
