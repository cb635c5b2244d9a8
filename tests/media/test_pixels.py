import numpy as np
import PIL.Image
import pytest
import torch

from ltx2_diffusers.media.pixels import byte_frames, decoded_frames, to_uint8

from .clips import gradient_clip


def test_bytes_are_rounded_half_to_even_and_clamped():
    halves = torch.tensor([0.5, 1.5, 2.5, 254.5]) / 255
    assert (halves * 255).tolist() == [0.5, 1.5, 2.5, 254.5]
    assert to_uint8(halves).tolist() == [0, 2, 2, 254]
    assert to_uint8(torch.tensor([-0.1, 0.0, 1.0, 1.7])).tolist() == [0, 0, 255, 255]


def test_bytes_pass_through_and_half_precision_is_widened_first():
    pixels = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    assert to_uint8(pixels) is pixels
    values = (torch.arange(256) / 255).to(torch.bfloat16)
    assert torch.equal(to_uint8(values), (values.float() * 255).round().to(torch.uint8))


def test_integers_other_than_bytes_are_refused():
    with pytest.raises(ValueError, match=r"torch\.int64.*uint8"):
        to_uint8(torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(value):
    clip = gradient_clip(3)
    clip[1, 0, 2, 3] = value
    decoded = clip.transpose(0, 1)
    for convert in (
        to_uint8,
        lambda pixels: list(byte_frames(pixels)),
        lambda pixels: list(byte_frames(pixels.numpy())),
    ):
        with pytest.raises(ValueError, match="not finite"):
            convert(clip)
    with pytest.raises(ValueError, match="not finite"):
        list(decoded_frames(decoded))


def test_input_is_never_changed():
    clip = gradient_clip(3)
    copy = clip.clone()
    list(byte_frames(clip))
    decoded = clip.transpose(0, 1)
    list(decoded_frames(decoded))
    assert torch.equal(clip, copy)


def test_every_form_of_a_clip_gives_the_same_bytes():
    clip = gradient_clip(5)
    expected = (clip * 255).round().to(torch.uint8).movedim(1, -1).numpy()
    images = [PIL.Image.fromarray(frame) for frame in expected]
    forms = {
        "channels first": clip,
        "channels last": clip.movedim(1, -1),
        "array": clip.movedim(1, -1).numpy(),
        "bytes": torch.from_numpy(expected),
        "byte array": expected,
        "images": images,
        "chunks": [clip[:2], clip[2:].movedim(1, -1)],
        "generator": (chunk for chunk in clip.split(3)),
        "decoded": decoded_frames((clip * 2 - 1).transpose(0, 1)),
    }
    for name, frames in forms.items():
        difference = np.concatenate(list(byte_frames(frames))).astype(int) - expected
        assert np.abs(difference).max() <= (1 if name == "decoded" else 0), name


def test_decoded_clip_rounds_as_the_two_step_conversion():
    video = torch.randn(3, 4, 32, 32)
    expected = to_uint8((video * 0.5 + 0.5).clamp(0, 1)).movedim(0, -1)
    assert torch.equal(torch.cat(list(decoded_frames(video))), expected)


def test_large_clips_come_in_pieces():
    pieces = list(byte_frames(torch.zeros(6, 3, 256, 384)))
    assert len(pieces) > 1
    assert sum(len(piece) for piece in pieces) == 6


@pytest.mark.parametrize(
    "frames", [torch.zeros(1, 3, 4, 8, 8), torch.zeros(4, 8, 8), torch.zeros(4, 4, 8, 8), 7, "clip"]
)
def test_wrong_frames_are_refused(frames):
    with pytest.raises(ValueError, match="frames must"):
        list(byte_frames(frames))


def test_decoded_clip_needs_one_item_of_the_batch():
    with pytest.raises(ValueError, match=r"\[3, F, H, W\]"):
        next(decoded_frames(torch.zeros(1, 3, 4, 8, 8)))
