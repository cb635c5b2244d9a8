"""Prompts are rewritten by the pipeline's own language model, from text alone or from a picture."""

import random

import numpy as np
import PIL.Image
import pytest
import torch

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.pipelines.recipes.image_to_video import LTX2ImageToVideoPipeline
from ltx2_diffusers.prompts.chat import ChatModel, clean_response, seeded_sampling, shrunk
from ltx2_diffusers.prompts.enhancement import IMAGE_SYSTEM_PROMPT, TEXT_SYSTEM_PROMPT
from tests.pipelines.tiny import EXPLICIT, NO_GUIDANCE, PROMPT, max_difference, ours, seeded
from tests.pipelines.tiny import load as load_pipeline

CALL = {**EXPLICIT, **NO_GUIDANCE, "height": 32, "width": 32, "num_frames": 1, "prompt": PROMPT}
GREEDY = {"do_sample": False}
PICTURE = PIL.Image.effect_noise((64, 48), 60).convert("RGB")


def with_parts(pipeline_class: type = LTX2Pipeline, **components) -> LTX2Pipeline:
    pipe = pipeline_class(**{**ours().components, **components})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def first_call(pipe: LTX2Pipeline, *args, **kwargs) -> dict:
    """Arguments of the language model's first call while a prompt is rewritten."""
    calls = []
    hook = pipe.text_encoder.register_forward_pre_hook(lambda _m, _a, kw: calls.append(kw), with_kwargs=True)
    try:
        pipe.enhance_prompt(*args, max_new_tokens=1, **kwargs)
    finally:
        hook.remove()
    return calls[0]


# --- the conversation ---


@pytest.mark.parametrize("with_processor", [True, False])
def test_the_conversation_about_a_text(with_processor):
    pipe = with_parts() if with_processor else with_parts(processor=None)
    tokens = first_call(pipe, PROMPT)["input_ids"][0]
    assert len(tokens) % 8 == 0
    tokenizer = pipe.tokenizer
    assert (tokens == tokenizer.bos_token_id).sum() == 1
    begin = int((tokens == tokenizer.bos_token_id).nonzero())
    # What fills the sequence up stands in front, so that the answer follows the question.
    assert (tokens[:begin] == tokenizer.pad_token_id).all()
    messages = [
        {"role": "system", "content": TEXT_SYSTEM_PROMPT},
        {"role": "user", "content": f"user prompt: {PROMPT}"},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokens[begin:].tolist() == tokenizer(rendered, add_special_tokens=False).input_ids


def test_the_conversation_about_a_picture():
    call = first_call(ours(), PROMPT, image=PICTURE)
    tokens = call["input_ids"][0]
    assert len(tokens) % 8 == 0 and (tokens == ours().tokenizer.bos_token_id).sum() == 1
    text = ours().tokenizer.decode(tokens, skip_special_tokens=True)
    assert f"User Raw Input Prompt: {PROMPT}." in text
    assert "first frame" in text
    assert int(call["token_type_ids"].sum()) == ours().processor.image_seq_length


@pytest.mark.parametrize(
    ("size", "expected"), [((1792, 896), (896, 448)), ((100, 300), (298, 896)), ((2000, 1), (896, 1))]
)
def test_pictures_are_shrunk_with_their_aspect(size, expected):
    assert shrunk(PIL.Image.new("RGB", size)).size == expected


def test_the_picture_matters():
    kwargs = {"max_new_tokens": 12, "generation_kwargs": GREEDY, "system_prompt": "Look."}
    others = [PICTURE, PIL.Image.new("L", (64, 48), 255), PIL.Image.new("RGB", (64, 48))]
    assert len({ours().enhance_prompt(PROMPT, image=image, **kwargs)[0] for image in others}) > 1


def test_a_template_of_the_processor_is_used_where_the_tokenizer_has_none():
    pipe = load_pipeline()
    expected = pipe.enhance_prompt(PROMPT, max_new_tokens=6)
    assert pipe.processor.chat_template is not None
    pipe.processor.tokenizer.chat_template = None
    assert pipe.enhance_prompt(PROMPT, max_new_tokens=6) == expected


# --- seeds ---


def test_no_global_random_state_changes():
    states = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    ours().enhance_prompt(PROMPT, max_new_tokens=4)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1] and random.getstate() == states[2]


def test_the_random_state_comes_back_after_an_interrupt():
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt), seeded_sampling(3, torch.device("cpu")):
        torch.rand(4)
        raise KeyboardInterrupt
    assert torch.equal(torch.get_rng_state(), state)


def test_the_global_random_state_does_not_matter():
    torch.manual_seed(1)
    first = ours().enhance_prompt(PROMPT, max_new_tokens=12)
    torch.manual_seed(2)
    assert ours().enhance_prompt(PROMPT, max_new_tokens=12) == first


def test_a_text_does_not_depend_on_its_place_in_the_batch():
    together = ours().enhance_prompt(["Waves.", PROMPT], max_new_tokens=12)
    assert together == [ours().enhance_prompt(text, max_new_tokens=12)[0] for text in ("Waves.", PROMPT)]


@pytest.mark.gpu
def test_the_random_state_of_a_gpu_comes_back():
    device = torch.device("cuda")
    state = torch.cuda.get_rng_state()
    with seeded_sampling(3, device):
        first = torch.rand(4, device=device)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    with seeded_sampling(3, device):
        assert torch.equal(torch.rand(4, device=device), first)


# --- answers ---


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Plain text.", "Plain text."),
        ("  *- “A ‘quoted’ line” — with\u00a0dashes – and 5′ − 3", "A 'quoted' line\" - with dashes - and 5' - 3"),
        ("1. Été", "Été"),
        ("123 …", "123 …"),
        ("", ""),
    ],
)
def test_answers_become_plain_and_begin_with_a_letter(answer, expected):
    assert clean_response(answer) == expected


def test_a_prompt_without_answer_is_used_as_it_is():
    pipe = with_parts()
    end = pipe.text_encoder.generation_config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    chat = ChatModel(pipe.text_encoder, pipe.tokenizer, pipe.processor)
    blocked = {
        "do_sample": False,
        "bad_words_ids": [[i] for i in range(pipe.text_encoder.config.text_config.vocab_size) if i != end],
    }
    assert chat.answer("Say.", PROMPT, seed=1, device=torch.device("cpu"), generation_kwargs=blocked) == ""
    assert pipe.enhance_prompt(PROMPT, generation_kwargs=blocked) == [PROMPT]


def test_the_rewritten_text_is_returned_and_used():
    output = ours()(**CALL, enable_prompt_enhancement=True, prompt_max_new_tokens=6, generator=seeded(4))
    (text,) = output.info["enhanced_prompt"]
    # A given generator's seed is the seed of the text, and its stream of noise is not touched.
    assert text == ours().enhance_prompt(PROMPT, max_new_tokens=6, seed=4)[0]
    assert max_difference(output, ours()(**CALL | {"prompt": text}, generator=seeded(4))) == 0


def test_image_to_video_shows_the_picture_to_the_language_model():
    pipe = with_parts(LTX2ImageToVideoPipeline)
    kwargs = {**CALL, "image": PICTURE, "image_crf": 0, "prompt_max_new_tokens": 6, "generator": seeded(4)}
    output = pipe(**kwargs, enable_prompt_enhancement=True)
    assert output.info["enhanced_prompt"] == pipe.enhance_prompt(PROMPT, max_new_tokens=6, seed=4, image=PICTURE)
    with pytest.raises(ValueError, match="needs the component `processor`"):
        with_parts(LTX2ImageToVideoPipeline, processor=None)(**kwargs, enable_prompt_enhancement=True)


# --- errors, all before any computation ---


def test_a_language_model_that_cannot_write_is_refused():
    pipe = with_parts(text_encoder=ours().text_encoder.model)
    with pytest.raises(ValueError, match="cannot write text"):
        pipe(**CALL, enable_prompt_enhancement=True)


def test_a_wrong_length_is_refused():
    with pytest.raises(ValueError, match=r"`prompt_max_new_tokens` .* 0"):
        ours()(**CALL, enable_prompt_enhancement=True, prompt_max_new_tokens=0)
    with pytest.raises(ValueError, match=r"`max_new_tokens` .* -1"):
        ours().enhance_prompt(PROMPT, max_new_tokens=-1)


def test_offloaded_language_models_write_the_same():
    pipe = load_pipeline()
    pipe.enable_model_cpu_offload(device="cpu")
    moved = []
    hook = pipe.text_encoder._hf_hook
    before, hook.pre_forward = hook.pre_forward, lambda *a, **k: moved.append(a[0]) or before(*a, **k)
    kwargs = {"max_new_tokens": 4, "image": PICTURE}
    assert pipe.enhance_prompt(PROMPT, **kwargs) == ours().enhance_prompt(PROMPT, **kwargs)
    # The vision tower runs ahead of the model's own forward, so the model must come to the device before it.
    assert moved[0] is pipe.text_encoder and len(moved) == 5


@pytest.mark.parametrize("text", [TEXT_SYSTEM_PROMPT, IMAGE_SYSTEM_PROMPT])
def test_instructions_are_plain_paragraphs_that_forbid_questions(text):
    assert text == text.strip() and "Never ask back" in text and "English paragraph" in text
