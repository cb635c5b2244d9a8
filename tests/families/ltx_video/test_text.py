"""Texts of LTX-Video: T5 with its mask, padded to a fixed length, encoded once."""

import pytest
import torch
from diffusers import LTXConditionPipeline

from ltx2_diffusers.checkpoints.packaged import packaged_checkpoint
from ltx2_diffusers.families.ltx_video.pipeline import LTXVideoPipeline
from ltx2_diffusers.prompts import Prompts

TEXTS = ["A red circle bounces on a blue background. ", "a dog"]


@pytest.fixture(scope="module")
def pipe():
    made = LTXVideoPipeline.from_pretrained(packaged_checkpoint("ltx-video-tiny"))
    made.text_encoder.float()
    return made


@torch.no_grad()
def test_texts_are_encoded_as_by_the_pipeline_of_diffusers_that_passes_the_mask(pipe):
    """V10."""
    theirs = LTXConditionPipeline.from_pretrained(packaged_checkpoint("ltx-video-tiny"))
    theirs.text_encoder.float()
    ours, other = (made.encode_prompt(TEXTS, "blurry", max_sequence_length=256) for made in (pipe, theirs))
    for name, own, expected in zip(("embeds", "mask") * 2, ours, other):
        torch.testing.assert_close(own.float(), expected.float(), rtol=0, atol=1e-6, msg=name)


def test_padding_does_not_change_what_is_read(pipe):
    short, long = (pipe.encode_prompt(TEXTS[1], max_sequence_length=length) for length in (16, 256))
    count = int(short[1].sum())
    assert (short[0].shape[1], long[0].shape[1], int(long[1].sum())) == (16, 256, count)
    torch.testing.assert_close(short[0][:, :count], long[0][:, :count], rtol=0, atol=1e-6)


def test_states_and_masks_are_repeated_item_by_item(pipe):
    once, thrice = (pipe.encode_prompt(TEXTS, num_videos_per_prompt=count) for count in (1, 3))
    for alone, repeated in zip(once, thrice):
        assert torch.equal(repeated, alone.repeat_interleave(3, 0))


def test_longer_texts_are_cut_with_a_warning(pipe, caplog):
    with caplog.at_level("WARNING"):
        states, mask, *_ = pipe.encode_prompt(" ".join(TEXTS * 9), max_sequence_length=20)
    assert states.shape[1] == int(mask.sum()) == 20
    assert "cut to 20 tokens" in caplog.text


def test_a_text_encoder_in_float16_is_refused(pipe):
    """Its values overflow there."""
    half = LTXVideoPipeline.from_pipe(pipe, text_encoder=type(pipe.text_encoder)(pipe.text_encoder.config).half())
    with pytest.raises(ValueError, match=r"torch\.bfloat16"):
        half.encode_prompt(TEXTS)
    with pytest.raises(ValueError, match=r"torch\.bfloat16"):
        half(prompt=TEXTS, height=64, width=64, num_frames=9)


def test_given_states_of_another_width_are_refused(pipe):
    states, mask = torch.zeros(1, 8, 13), torch.ones(1, 8)
    with pytest.raises(ValueError, match="13 values per token"):
        pipe(prompt_embeds=states, prompt_attention_mask=mask, height=64, width=64, num_frames=9)


def test_a_prompt_once_encoded_needs_no_text_encoder_again(pipe, tmp_path):
    reading = Prompts(TEXTS, "blurry", max_sequence_length=256)
    pipe.enable_prompt_cache(tmp_path)
    first = pipe.prompt_reader.read(reading, True).contexts
    without = LTXVideoPipeline(**{**pipe.components, "text_encoder": None, "tokenizer": None})
    without.enable_prompt_cache(tmp_path)
    assert without.prompt_reader.check(reading, True) == 2
    for known, found in zip(first, without.prompt_reader.read(reading, True).contexts):
        assert torch.equal(known.video, found.video) and torch.equal(known.mask, found.mask)
    with pytest.raises(ValueError, match="cannot be encoded"):
        without.prompt_reader.check(Prompts("a cat", max_sequence_length=256), False)
    pipe.disable_prompt_cache()


def test_the_text_encoder_may_be_loaded_on_demand(pipe):
    folder = packaged_checkpoint("ltx-video-tiny")
    made = LTXVideoPipeline.from_pretrained(folder, text_encoder_residency="on_demand", dtype=torch.float32)
    assert made.text_encoder is None
    states = made.encode_prompt(TEXTS)[0]
    assert made.text_encoder is None
    torch.testing.assert_close(states, pipe.encode_prompt(TEXTS)[0], rtol=0, atol=1e-6)
