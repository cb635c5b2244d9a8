"""What condition items promise beyond the reference's numbers."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from ltx2_diffusers.conditioning import (
    AudioConditionByLatentIndex,
    AudioConditionByReferenceLatent,
    AudioLatentShape,
    AudioLatentTools,
    AudioPatchifier,
    ConditionByInitialLatent,
    ConditionByWholeLatent,
    ConditionItem,
    ConditionOutsideRegion,
    VideoConditionByKeyframeIndex,
    VideoConditionByLatentIndex,
    VideoConditionByReferenceLatent,
    VideoKeyframeSlots,
    pixel_mask_to_tokens,
)

from .tiny import SHAPE, randn, video_tools

AUDIO = AudioLatentTools(AudioPatchifier(), AudioLatentShape(1, 2, 5, 4))
TENSORS = ("latent", "denoise_mask", "positions", "clean_latent", "attention_mask", "keyframes_mask")


def frames(count: int, batch: int = 1) -> torch.Tensor:
    return randn(batch, 4, count, 2, 3)


def test_state_is_frozen_and_items_leave_it_alone():
    tools = video_tools()
    state = tools.create_initial_state()
    before = replace(state, **{name: getattr(state, name).clone() for name in TENSORS[:4]})
    VideoConditionByLatentIndex(frames(1)).apply_to(state, tools)
    for name in TENSORS[:4]:
        assert torch.equal(getattr(state, name), getattr(before, name))
    with pytest.raises(FrozenInstanceError):
        state.latent = before.latent


def test_rows_of_a_batch_equal_single_runs():
    single = video_tools(mark_keyframes=True)
    tools = replace(single, target_shape=SHAPE._replace(batch=2))
    shared, both = frames(1), frames(2, batch=2)
    weights = torch.rand(2, 12, generator=torch.Generator().manual_seed(1))

    def condition(tools, clip, weight):
        state = tools.create_initial_state()
        for item in (
            VideoConditionByLatentIndex(shared, 0.9),
            VideoConditionByReferenceLatent(clip, attention_strength=weight),
            VideoConditionByKeyframeIndex(shared, 2),
        ):
            state = item.apply_to(state, tools)
        return state

    together = condition(tools, both, weights)
    for row in range(2):
        alone = condition(single, both[row : row + 1], weights[row])
        for name in TENSORS:
            assert torch.equal(getattr(together, name)[row : row + 1], getattr(alone, name)), name


def test_carried_audio_is_placed_at_the_start():
    carried = randn(1, 2, 2, 4)
    state = AudioConditionByLatentIndex(carried).apply_to(AUDIO.create_initial_state(), AUDIO)
    assert state.denoise_mask.flatten().tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(AUDIO.unpatchify(state).latent[:, :, :2], carried)


def test_reference_audio_is_appended():
    reference = randn(1, 2, 7, 4)
    state = AudioConditionByReferenceLatent(reference).apply_to(AUDIO.create_initial_state(), AUDIO)
    assert state.num_tokens == 12
    assert torch.equal(state.positions[:, :, 5:10], state.positions[:, :, :5])
    moved = torch.zeros(1, 1, 7, 2)
    state = AudioConditionByReferenceLatent(reference, moved).apply_to(AUDIO.create_initial_state(), AUDIO)
    assert torch.equal(state.positions[:, :, 5:], moved)


def test_frozen_stream_leaves_nothing_to_denoise():
    tools = video_tools(fill_latent=False)
    clip = frames(3)
    state = ConditionByWholeLatent(clip).apply_to(tools.create_initial_state(), tools)
    assert state.frozen and not state.denoise_mask.any()
    assert torch.equal(tools.unpatchify(state).latent, clip)


def test_keyframe_spans_one_frame_unless_wide():
    def span(wide: bool) -> list[float]:
        tools = video_tools(fps=1.0)
        item = VideoConditionByKeyframeIndex(frames(1), 8, wide_span=wide)
        return item.apply_to(tools.create_initial_state(), tools).positions[0, 0, -1].tolist()

    assert span(wide=False) == [8.0, 9.0]
    assert span(wide=True) == [8.0, 16.0]


def test_only_the_first_latent_frame_is_marked_as_a_keyframe():
    tools = video_tools(mark_keyframes=True)
    state = VideoConditionByKeyframeIndex(frames(1), 4).apply_to(tools.create_initial_state(), tools)
    assert state.keyframes_mask.flatten().tolist() == [1] * 6 + [0] * 12 + [0] * 6
    assert tools.clear_conditioning(state).keyframes_mask.flatten().tolist() == [1] * 6 + [0] * 12


def test_full_attention_needs_no_mask():
    tools = video_tools()
    state = VideoConditionByReferenceLatent(frames(1), attention_strength=1.0).apply_to(
        tools.create_initial_state(), tools
    )
    assert state.attention_mask is None


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (VideoConditionByLatentIndex(frames(2), 1.0, 2), r"latent_idx must lie in \[0, 1\].*got 2; use 1"),
        (VideoConditionByLatentIndex(frames(4)), "latent must have at most 3 frames, got 4"),
        (VideoConditionByLatentIndex(frames(1), 1.2), r"strength must lie in \[0, 1\], got 1.2"),
        (VideoConditionByLatentIndex(frames(1, batch=3)), "latent must have batch 1 as the target has, got 3"),
        (VideoConditionByLatentIndex(frames(1)[..., :2]), "latent must have width 3 as the target has, got 2"),
        (VideoConditionByLatentIndex(frames(1)[0]), "5 axes"),
        (VideoConditionByKeyframeIndex(frames(1)[:, :3], 8), "keyframes must have channels 4"),
        (VideoConditionByKeyframeIndex(frames(1), 17), r"frame_idx must lie in \[0, 16\], got 17; use 16"),
        (VideoConditionByKeyframeIndex(frames(1), -1), "got -1; use 0"),
        (VideoConditionByReferenceLatent(frames(1), downscale_factor=0), "downscale_factor must be at least 1"),
        (
            VideoConditionByReferenceLatent(frames(1), attention_strength=2.0),
            r"attention_strength must lie in \[0, 1\]",
        ),
        (VideoConditionByReferenceLatent(frames(1), attention_strength=torch.ones(5)), r"or have shape \[6\]"),
        (ConditionOutsideRegion(frames(3), 0.0, 1.0, torch.ones(1, 3, 2, 2)), "region must have width 3"),
        (ConditionByWholeLatent(frames(2)), "latent must have frames 3"),
        (ConditionByWholeLatent(frames(3), -0.1), r"noise_scale must lie in \[0, 1\], got -0.1"),
        (ConditionOutsideRegion(frames(3), 0.4, 0.4), "0 <= start < end, got 0.4 and 0.4"),
        (ConditionOutsideRegion(frames(3), 0.8, 1.0), "before the clip's end at 0.708333 s, got 0.8"),
    ],
)
def test_wrong_conditions_are_refused(item: ConditionItem, message: str):
    tools = video_tools()
    with pytest.raises(ValueError, match=message):
        item.apply_to(tools.create_initial_state(), tools)


def test_more_wrong_conditions_are_refused():
    with pytest.raises(ValueError, match=r"shape \[B, 1, 2, 2\], got \[1, 1, 3, 2\]"):
        item = AudioConditionByReferenceLatent(randn(1, 2, 2, 4), torch.zeros(1, 1, 3, 2))
        item.apply_to(AUDIO.create_initial_state(), AUDIO)
    with pytest.raises(ValueError, match="mask has 8 frames, which do not divide into 3 latent frames; use 17 frames"):
        pixel_mask_to_tokens(torch.ones(1, 1, 8, 64, 96), SHAPE)


def test_slots_are_free_marked_and_one_frame_long():
    tools = video_tools(mark_keyframes=True)
    seeds = frames(2)
    state = VideoKeyframeSlots([8, 16], seeds).apply_to(tools.create_initial_state(), tools)
    count = tools.num_tokens
    assert torch.equal(state.latent[:, count:], tools.patchifier.patchify(seeds))
    assert state.denoise_mask.min() == 1 and state.keyframes_mask[:, count:].min() == 1
    assert not state.clean_latent[:, count:].any()
    times = state.positions[0, 0, count:] * tools.fps
    torch.testing.assert_close(times.unique(dim=0), torch.tensor([[8.0, 9.0], [16.0, 17.0]]))
    empty = VideoKeyframeSlots([8]).apply_to(tools.create_initial_state(), tools)
    assert not empty.latent[:, count:].any()


def test_slots_need_marks_and_their_own_frames():
    plain, marking = video_tools(), video_tools(mark_keyframes=True)
    with pytest.raises(ValueError, match="mark_keyframes=True"):
        VideoKeyframeSlots([8]).apply_to(plain.create_initial_state(), plain)
    with pytest.raises(ValueError, match="frames 1 as the target has, got 2"):
        VideoKeyframeSlots([8], frames(2)).apply_to(marking.create_initial_state(), marking)
    with pytest.raises(ValueError, match="frame_idx must lie in"):
        VideoKeyframeSlots([99]).apply_to(marking.create_initial_state(), marking)


def test_a_stream_is_kept_as_it_begins():
    sound = randn(1, 2, 5, 4)
    state = ConditionByInitialLatent().apply_to(AUDIO.create_initial_state(initial_latent=sound), AUDIO)
    assert state.frozen and not state.denoise_mask.any()
    assert torch.equal(state.clean_latent, state.latent) and torch.equal(AUDIO.unpatchify(state).latent, sound)
