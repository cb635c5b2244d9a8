"""The language model computes what is needed and no more; prompts can be rewritten by it."""

import pytest
import torch

from ltx2_diffusers import LTX2Pipeline
from tests.golden_data import EQUAL_MODELS
from tests.pipelines.tiny import CFG, EXPLICIT, NEGATIVE, NO_GUIDANCE, PROMPT, load, max_difference, ours, seeded
from tests.pipelines.watching import no_forward

CALL = {**EXPLICIT, **CFG, "prompt": PROMPT, "negative_prompt": NEGATIVE}


def recorded(module: torch.nn.Module, run) -> list[dict]:
    """Keyword arguments of a module's calls during `run()`, and the shapes of its positional ones under `args`."""
    calls = []
    hook = module.register_forward_pre_hook(
        lambda _module, args, kwargs: calls.append({**kwargs, "args": [tuple(arg.shape) for arg in args]}),
        with_kwargs=True,
    )
    try:
        run()
    finally:
        hook.remove()
    return calls


def test_both_prompts_share_one_call_without_padding():
    calls = recorded(ours().text_encoder, lambda: ours()(**CALL))
    assert len(calls) == 1
    lengths = [len(ours().tokenizer(text).input_ids) for text in (PROMPT, NEGATIVE)]
    assert calls[0]["input_ids"].shape == (2, max(lengths))
    assert calls[0]["attention_mask"].sum(1).tolist() == lengths


def test_given_states_need_their_mask():
    embeds, *_ = ours().encode_prompt(PROMPT, None, False, max_sequence_length=16)
    with pytest.raises(ValueError, match="`prompt_attention_mask`"):
        ours().encode_prompt(None, prompt_embeds=embeds)


def test_given_states_are_returned_as_long_as_they_are():
    names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    states = dict(zip(names, ours().encode_prompt(PROMPT, NEGATIVE, max_sequence_length=48)))
    for pipe in (ours(), LTX2Pipeline(**dict.fromkeys(ours().components) | {"scheduler": ours().scheduler})):
        for guided in (True, False):
            again = pipe.encode_prompt(None, **states, do_classifier_free_guidance=guided)
            assert all(torch.equal(one, other) for one, other in zip(again, states.values()))
    # A text beside them takes their length, so that both can be handed on.
    given = {name: states[name] for name in names[:2]}
    mixed = ours().encode_prompt(None, NEGATIVE, **given)
    torch.testing.assert_close(mixed[2], states["negative_prompt_embeds"], atol=EQUAL_MODELS, rtol=0)


def test_the_text_models_alone_encode():
    parts = {name: getattr(ours(), name) for name in ("text_encoder", "tokenizer", "scheduler")}
    pipe = LTX2Pipeline(**dict.fromkeys(ours().components) | parts)
    for one, other in zip(pipe.encode_prompt(PROMPT, NEGATIVE), ours().encode_prompt(PROMPT, NEGATIVE)):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="needs the components"):
        pipe(**CALL)
    with pytest.raises(ValueError, match="`scale_factor` has to be one of 8 but is 4"):
        pipe.encode_prompt(PROMPT, scale_factor=4)


def test_the_negative_prompt_is_not_encoded_without_its_pass():
    calls = recorded(ours().text_encoder, lambda: ours()(**CALL | NO_GUIDANCE))
    assert [len(call["input_ids"]) for call in calls] == [1]


def test_the_vocabulary_projection_sees_no_position():
    calls = recorded(ours().text_encoder.lm_head, lambda: ours()(**CALL))
    assert all(0 in call["args"][0] for call in calls)


def test_given_embeddings_leave_the_language_model_alone():
    embeds, mask, negative, negative_mask = ours().encode_prompt(PROMPT, NEGATIVE, max_sequence_length=64)
    given = {
        "prompt_embeds": embeds,
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": negative,
        "negative_prompt_attention_mask": negative_mask,
    }
    outputs = []
    call = {**EXPLICIT, **CFG, **given}
    assert recorded(ours().text_encoder, lambda: outputs.append(ours()(**call, generator=seeded(1)))) == []
    assert max_difference(outputs[0], ours()(**CALL, generator=seeded(1))) == 0


def test_connectors_run_once_for_both_prompts():
    assert len(recorded(ours().connectors, lambda: ours()(**CALL))) == 1


@pytest.mark.parametrize("length", [16, 64, 1024])
def test_states_of_a_token_do_not_depend_on_the_padding(length):
    embeds, mask, *_ = ours().encode_prompt(["Waves.", PROMPT], None, False, max_sequence_length=length)
    assert embeds.shape[:2] == mask.shape == (2, length)
    alone, alone_mask, *_ = ours().encode_prompt("Waves.", None, False, max_sequence_length=64)
    torch.testing.assert_close(embeds[0][mask[0] == 1], alone[0][alone_mask[0] == 1], atol=EQUAL_MODELS, rtol=0)


def test_a_long_prompt_is_cut():
    _, mask, *_ = ours().encode_prompt("wind " * 200, None, False, max_sequence_length=32)
    assert mask.tolist() == [[1] * 32]


def test_the_text_encoder_decides_the_data_type():
    embeds, *_ = ours().encode_prompt(PROMPT, None, False, max_sequence_length=16, dtype=torch.bfloat16)
    assert embeds.dtype == torch.bfloat16


# --- prompt enhancement ---

ENHANCED = {**CALL, "enable_prompt_enhancement": True, "prompt_max_new_tokens": 8}


def test_an_enhanced_prompt_is_returned_and_used():
    state = torch.get_rng_state()
    output = ours()(**ENHANCED, generator=seeded(1))
    assert torch.equal(torch.get_rng_state(), state)
    (text,) = output.info["enhanced_prompt"]
    plain = ours()(**CALL | {"prompt": text}, generator=seeded(1))
    assert "enhanced_prompt" not in plain.info
    assert max_difference(output, plain) == 0


def test_enhancement_is_seeded():
    first, second, third = (ours().enhance_prompt(PROMPT, max_new_tokens=16, seed=seed) for seed in (1, 1, 2))
    assert first == second
    assert first != third
    generator = seeded(2)
    assert ours().enhance_prompt(PROMPT, max_new_tokens=16, generator=generator) == third
    assert torch.equal(generator.get_state(), seeded(2).get_state())


def test_enhancement_keeps_one_text_per_prompt():
    texts = ours().enhance_prompt([PROMPT, "Waves."], max_new_tokens=4)
    assert len(texts) == 2
    assert all(not text or text[0].isalpha() for text in texts)


def test_instructions_and_settings_reach_the_language_model():
    kwargs = {"max_new_tokens": 8, "generation_kwargs": {"do_sample": False}}
    calls = recorded(ours().text_encoder, lambda: ours().enhance_prompt(PROMPT, "Answer in rhyme.", **kwargs))
    tokens = calls[0]["input_ids"]
    assert tokens.shape[1] % 8 == 0
    text = ours().tokenizer.decode(tokens[0], skip_special_tokens=True)
    assert "rhyme" in text
    assert len(calls) <= 8


def test_a_dedicated_enhancer_replaces_the_text_encoder():
    pipe = LTX2Pipeline(**ours().components | {"prompt_enhancer": load().text_encoder})
    assert recorded(pipe.text_encoder, lambda: pipe.enhance_prompt(PROMPT, max_new_tokens=2)) == []


def test_a_tokenizer_without_chat_template_is_refused():
    pipe = load(processor=None)
    pipe.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        pipe(**ENHANCED)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt"),
        ({"max_sequence_length": 0}, "max_sequence_length"),
        ({"num_videos_per_prompt": 0}, "num_videos_per_prompt"),
        ({"num_videos_per_prompt": 10**9}, "num_videos_per_prompt"),
        ({"dtype": torch.int32}, "dtype"),
        ({"device": "nope"}, "device"),
        (
            {"prompt_embeds": torch.full((1, 16, 96), float("nan")), "prompt_attention_mask": torch.ones(1, 16)},
            "finite",
        ),
        ({"prompt_embeds": torch.zeros(1, 16, 96), "prompt_attention_mask": torch.ones(1, 16).cfloat()}, "mask"),
    ],
)
def test_texts_are_checked_before_the_encoder_runs(wrong, name):
    with no_forward(ours()), pytest.raises(ValueError, match=name):
        ours().encode_prompt(**{"prompt": PROMPT, "max_sequence_length": 16, **wrong})


def test_a_text_beside_its_states_is_not_read():
    embeds, mask, *_ = ours().encode_prompt(PROMPT, max_sequence_length=16)
    again, *_ = ours().encode_prompt("another", prompt_embeds=embeds, prompt_attention_mask=mask)
    assert torch.equal(again, embeds)
