"""A language model writes the prompt of each further part of a long video."""

import pytest
import torch

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.application.director import DIRECTOR_SYSTEM_PROMPT, PromptDirector
from tests.pipelines.tiny import PROMPT, ours


def director(num_chunks: int = 3, **kwargs) -> PromptDirector:
    return PromptDirector(ours(), PROMPT, num_chunks, max_new_tokens=12, **kwargs)


def test_the_first_part_is_the_idea_itself():
    assert director()(0) == director(1)(0) == PROMPT


def test_prompts_are_seeded_and_leave_the_global_random_state():
    state = torch.get_rng_state()
    first = [director()(index, "Before.") for index in (1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert [director()(index, "Before.") for index in (1, 2)] == first
    assert first[0] != first[1]
    assert director(seed=11)(1, "Before.") != first[0]
    assert all(text[0].isalpha() for text in first)


def test_the_language_model_is_told_idea_last_prompt_and_place():
    seen = []
    hook = ours().text_encoder.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    for index in (1, 2):
        PromptDirector(ours(), PROMPT, 3, max_new_tokens=1)(index, "The fox is resting.")
    hook.remove()
    texts = [ours().tokenizer.decode(ids[0], skip_special_tokens=True) for ids in seen]
    for index, text in enumerate(texts, start=1):
        for part in (DIRECTOR_SYSTEM_PROMPT[:60], PROMPT, "The fox is resting.", f"part {index + 1} of 3"):
            assert part in text
    assert ["It is the last one." in text for text in texts] == [False, True]


def test_the_language_model_is_told_what_each_part_is_to_show():
    shown = ["A fox.", "It drinks.", "It sleeps."]
    assert director(parts=shown)(0) == "A fox."
    seen = []
    hook = ours().text_encoder.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    PromptDirector(ours(), PROMPT, 3, max_new_tokens=1, parts=shown)(2, "The fox is drinking.")
    hook.remove()
    text = ours().tokenizer.decode(seen[0][0], skip_special_tokens=True)
    assert "what part 3 is to show: It sleeps." in text
    assert PROMPT in text and "A fox." not in text


def test_without_an_answer_the_last_prompt_goes_on():
    encoder = ours().text_encoder
    words = range(encoder.config.text_config.vocab_size)
    silent = {"do_sample": False, "bad_words_ids": [[i] for i in words if i != encoder.generation_config.eos_token_id]}
    assert director(generation_kwargs=silent)(1, "Before.") == "Before."


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: director(0), r"`num_chunks` .* 0"),
        (lambda: PromptDirector(ours(), " ", 2), "`prompt` has to be the idea"),
        (lambda: PromptDirector(ours(), PROMPT, 2, max_new_tokens=0), r"`max_new_tokens` .* 0"),
        (lambda: director(parts=["A fox."]), "`parts` has 1 texts for 3 parts"),
        (lambda: director()(3, "Before."), "`index` 3 .* use 0 to 2"),
        (lambda: director()(1), "needs the prompt of the part before"),
        (
            lambda: PromptDirector(LTX2Pipeline(**ours().components | {"text_encoder": None}), PROMPT, 2),
            "needs a language model",
        ),
    ],
)
def test_wrong_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
