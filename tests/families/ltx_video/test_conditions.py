"""Pictures and clips at their places, against the golden vectors, and what is refused."""

import numpy as np
import pytest
import torch

from ltx2_diffusers import conditioning
from ltx2_diffusers.conditioning import VideoLatentShape
from ltx2_diffusers.families.ltx_video.conditions import (
    FrameCondition,
    LTXVideoCondition,
    Preparation,
    ReferenceCondition,
    without_free_edges,
)
from ltx2_diffusers.pipelines.plan import Size, plan_clip
from tests.families.ltx_video.runs import recorded_noise, tiny_pipeline
from tests.golden_data import load_tensors

GOLDEN = load_tensors("ltx_video/conditioning.safetensors")
FPS = 25.0
CASES = {
    "none": [],
    "image0": [("img", 0, 1.0)],
    "image0_half": [("img", 0, 0.5)],
    "clip9_0": [("clip9", 0, 0.9)],
    "image17": [("img", 17, 0.8)],
    "clip9_16": [("clip9", 16, 1.0)],
    "clip17_8": [("clip17", 8, 0.7)],
    "mix": [("clip9", 0, 1.0), ("img", 40, 0.95), ("img", 24, 0.5)],
}


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


def plan(pipeline, height=32, width=64, num_frames=41):
    return plan_clip(pipeline.sizes, 1, Size(height, width, num_frames, FPS), [(1.0, 1.0)])


def opened(pipeline, given, sizes=None, is_reference=False):
    sizes = sizes or plan(pipeline)
    kind = ReferenceCondition if is_reference else FrameCondition
    condition = kind(given, Preparation((sizes.height, sizes.width)))
    one = condition.opened(pipeline, sizes)
    one.check(sizes)
    return one


def held(conditions, sizes):
    """The state that conditions make of the initial noise."""
    tools = sizes.tools.video
    state = tools.create_initial_state(initial_latent=GOLDEN["init_noise"])
    with torch.no_grad():
        for one in conditions:
            for item in one.items(sizes).video:
                state = item.apply_to(state, tools)
    return state


@pytest.mark.parametrize("name", CASES)
def test_a_condition_makes_the_tokens_of_the_original(name, pipeline, monkeypatch):
    sizes = plan(pipeline)
    frames = [(GOLDEN[f"{key}_u8"][0].movedim(1, 0), start, by) for key, start, by in CASES[name]]
    given = [LTXVideoCondition(video=clip, frame_index=start, strength=by) for clip, start, by in frames]
    noises = [GOLDEN[key] for key in sorted(GOLDEN) if key.startswith(f"{name}/noise")]
    with recorded_noise(monkeypatch, noises) as left:
        state = held([opened(pipeline, one) for one in given], sizes)
    assert not left
    expected, extra = GOLDEN[f"{name}/latents"], state.num_appended
    assert extra == GOLDEN.get(f"{name}/extra", torch.zeros(1)).item()
    torch.testing.assert_close(state.latent.roll(extra, 1), expected, rtol=0, atol=1e-5)
    pixels = state.positions[..., 0].roll(extra, 2)
    pixels[:, 0] *= FPS
    assert torch.equal(pixels.round().int(), GOLDEN[f"{name}/pixel_coords"])
    if f"{name}/mask" in GOLDEN:
        mask = (1 - state.denoise_mask[..., 0]).roll(extra, 1)
        torch.testing.assert_close(mask, GOLDEN[f"{name}/mask"], rtol=0, atol=1e-7)


@pytest.mark.parametrize(("tag", "corner"), [("centre", (1, 1)), ("corner", (0, 0)), ("right", (2, 1))])
def test_a_smaller_picture_loses_the_sides_that_touch_no_edge(tag, corner):
    cut, place = without_free_edges(GOLDEN["position/latents"], corner, VideoLatentShape(1, 8, 2, 5, 6))
    assert torch.equal(cut, GOLDEN[f"position/{tag}/cut"])
    assert list(place) == GOLDEN[f"position/{tag}/xy"].tolist()


@pytest.mark.parametrize("position", [(32, 32), "centre"])
def test_a_placed_picture_holds_only_its_place(pipeline, position):
    sizes = plan(pipeline, 160, 192, 9)
    picture = torch.zeros(1, 3, 96, 128, dtype=torch.uint8)
    one = opened(pipeline, LTXVideoCondition(video=picture, position=position), sizes)
    tools = sizes.tools.video
    state = tools.create_initial_state()
    with torch.no_grad():
        (item,) = one.items(sizes).video
    mask = tools.unpatchify(item.apply_to(state, tools)).denoise_mask[0, 0, 0]
    assert (mask == 0).nonzero().tolist() == [[2, 2], [2, 3]]


def test_a_reference_has_the_times_of_the_video(pipeline):
    sizes, clip = plan(pipeline, num_frames=17), GOLDEN["clip17_u8"][0].movedim(1, 0)
    one = opened(pipeline, LTXVideoCondition(video=clip), sizes, is_reference=True)
    tools = sizes.tools.video
    with torch.no_grad():
        (item,) = one.items(sizes).video
    state = item.apply_to(tools.create_initial_state(), tools)
    assert state.num_appended == tools.num_tokens
    assert torch.equal(state.positions[:, :, tools.num_tokens :], state.positions[:, :, : tools.num_tokens])
    assert not state.denoise_mask[:, tools.num_tokens :].any()


def test_a_clip_is_cut_to_the_video(pipeline):
    """The original's rule of trimming."""
    clip = torch.zeros(30, 3, 32, 64, dtype=torch.uint8)
    one = opened(pipeline, LTXVideoCondition(video=clip, frame_index=24))
    assert one.pixels.shape[2] == 17


CLIP = torch.zeros(9, 3, 32, 64, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (LTXVideoCondition(), "either `image` or `video`"),
        (LTXVideoCondition(CLIP[0], CLIP), "either `image` or `video`"),
        (LTXVideoCondition(CLIP[0], frame_index=200), "`frame_index` has to be from 0 to 40 .*use 40"),
        (LTXVideoCondition(CLIP[0], frame_index=-1), "use 0"),
        (LTXVideoCondition(video=CLIP, frame_index=5), "`frame_index` of a clip is 5, no multiple of 8; use 8"),
        (LTXVideoCondition(CLIP[0], strength=1.5), "`strength`.*use 1"),
        (LTXVideoCondition(CLIP[0], position=(0, 0), frame_index=8), "`position` is given at `frame_index` 8"),
        (
            LTXVideoCondition(video=CLIP, frame_index=36),
            "`frame_index` of a clip is 36, no multiple of 8; use 32 or 40",
        ),
        (LTXVideoCondition(CLIP[0, :, :, :32], position=(0, 0)), "nothing is left .* larger picture"),
        (LTXVideoCondition(CLIP[0], position=(32, 0)), "`position`"),
        (LTXVideoCondition(CLIP[0], position=(1, 0)), "`position`"),
    ],
)
def test_what_has_no_place_is_refused_before_anything_is_encoded(given, message, pipeline):
    with pytest.raises(ValueError, match=message):
        opened(pipeline, given)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frame_index": 1.5}, "`frame_index` has to be a whole number but is 1.5; use 2"),
        ({"strength": "high"}, "`strength` has to be a finite number but is 'high'"),
        ({"strength": None}, "`strength` has to be a finite number but is None"),
        ({"position": "left"}, "`position` .* is 'left'; use"),
        ({"position": (0, 0, 0)}, "`position` .*; use"),
        ({"position": (0.0, 32.0)}, "`position` has to be"),
    ],
)
def test_a_condition_holds_what_its_fields_declare(wrong, message):
    with pytest.raises(ValueError, match=message):
        LTXVideoCondition(CLIP[0], **wrong)


def test_several_pictures_are_no_picture():
    with pytest.raises(ValueError, match="`image` of a condition is one picture but has 2; use `video`"):
        LTXVideoCondition([CLIP[0], CLIP[0]])


def test_a_place_may_be_a_list_and_a_frame_a_number_of_any_library(pipeline):
    given = LTXVideoCondition(CLIP[0], frame_index=np.int64(0), position=[0, 0])
    one = opened(pipeline, given)
    assert (type(given.frame_index), one._corner(plan(pipeline))) == (int, [0, 0])


def test_a_placed_picture_needs_a_video_that_is_made_at_once(pipeline):
    sizes = plan(pipeline, 64, 128, 9)
    condition = FrameCondition(LTXVideoCondition(CLIP[0], position=(0, 0)), Preparation((64, 96)))
    with pytest.raises(ValueError, match="multi_scale=False"):
        condition.opened(pipeline, sizes).check(sizes)


def test_noise_of_a_batch_is_that_of_each_of_its_videos(pipeline):
    sizes = plan_clip(pipeline.sizes, 2, Size(32, 64, 41, FPS), [(1.0, 1.0)])
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    given = LTXVideoCondition(CLIP[0], frame_index=8, strength=0.5)
    both = FrameCondition(given, Preparation((32, 64), generator=seeds)).opened(pipeline, sizes)
    alone = Preparation((32, 64), generator=[torch.Generator().manual_seed(2)])
    second = FrameCondition(given, alone).opened(pipeline, plan(pipeline))
    with torch.no_grad():
        together, single = both.items(sizes).video[0].latent, second.items(plan(pipeline)).video[0].latent
    assert torch.equal(together[1:], single)
    assert isinstance(both.items(sizes), conditioning.Streams)
