"""A prompt once encoded needs no text encoder again, and gives the same video as when it was encoded."""

import os
from pathlib import Path

import pytest
import torch
from diffusers.utils import logging
from peft import LoraConfig

from ltx2_diffusers import LTX2Pipeline, packaged_checkpoint
from ltx2_diffusers.checkpoints.fingerprint import model_fingerprint, tokenizer_fingerprint
from ltx2_diffusers.conditioning.streams import TextContext
from ltx2_diffusers.prompts.cache import EncodedBy, PromptCache, PromptKey
from tests.golden_data import EQUAL_MODELS, EQUAL_PIPELINES
from tests.pipelines.tiny import CFG, EXPLICIT, NEGATIVE, NO_GUIDANCE, PROMPT, load, max_difference, ours, seeded
from tests.pipelines.watching import encoded_texts

SMALL = {"height": 32, "width": 32, "num_frames": 1}
CALL = {**EXPLICIT, **CFG, **SMALL, "prompt": PROMPT, "negative_prompt": NEGATIVE}
TEXT_PARTS = ("text_encoder", "tokenizer", "connectors")
BY = EncodedBy("encoder", "connectors", "torch.float32")
KEY = PromptKey(PROMPT, 64)
logger = logging.get_logger("ltx2_diffusers")


def sharing(folder: Path, name: str = "2.0", **components) -> LTX2Pipeline:
    """A pipeline with the components of the shared one and a cache."""
    pipe = LTX2Pipeline(**{**ours(name).components, **components})
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_prompt_cache(folder)
    return pipe


def without_text_parts(folder: Path, *kept: str, **components) -> LTX2Pipeline:
    absent = {name: None for name in TEXT_PARTS if name not in kept}
    return sharing(folder, **{**absent, "processor": None, **components})


def run(pipe: LTX2Pipeline, **changes):
    return pipe(**CALL | changes, generator=seeded(1))


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def context(value: float = 1.0, positions: int = 4) -> TextContext:
    return TextContext(torch.full((1, positions, 8), value), torch.full((1, positions, 4), -value))


@pytest.fixture
def warnings(caplog):
    """Warnings of the package."""
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


# --- calls ---


@pytest.mark.parametrize("name", ["2.0", "2.3"])
def test_hit_miss_and_encoderless_pipeline_agree_to_the_bit(name, tmp_path):
    pipe = sharing(tmp_path, name)
    missed = run(pipe)
    assert len(entries(tmp_path)) == 2
    assert max_difference(missed, run(pipe)) == 0
    light = LTX2Pipeline(**{**pipe.components, **dict.fromkeys(TEXT_PARTS), "processor": None})
    light.enable_prompt_cache(tmp_path)
    assert max_difference(missed, run(light)) == 0
    assert max_difference(missed, run(ours(name))) <= EQUAL_PIPELINES


def test_an_encoderless_pipeline_is_loaded_from_the_folder(tmp_path):
    expected = run(sharing(tmp_path))
    pipe = load(**dict.fromkeys((*TEXT_PARTS, "processor")))
    pipe.enable_prompt_cache(tmp_path)
    assert pipe.text_encoder is None and max_difference(run(pipe), expected) == 0


def test_a_pipeline_without_tokenizer_need_not_know_its_limit(tmp_path):
    """Of the miniature's tokenizer, which takes fewer positions than there are by default."""
    call = SMALL | {"prompt": "a red circle", "guidance_scale": 1.0, "num_inference_steps": 2, "output_type": "latent"}
    found = []
    for absent in ((), TEXT_PARTS):
        pipe = LTX2Pipeline.from_pretrained(packaged_checkpoint("ltx2-mini"), **dict.fromkeys(absent))
        pipe.enable_prompt_cache(tmp_path)
        found.append(pipe(**call, generator=seeded(1)))
    assert max_difference(*found) == 0


def test_a_prompt_is_the_same_in_any_company(tmp_path):
    batch = sharing(tmp_path)(
        **CALL | {"prompt": [PROMPT, "Waves.", f" {PROMPT} "]}, num_videos_per_prompt=2, generator=seeded(*range(6))
    )
    assert len(entries(tmp_path)) == 3
    pipe = without_text_parts(tmp_path)
    for row, prompt in enumerate((PROMPT, PROMPT, "Waves.", "Waves.", PROMPT, PROMPT)):
        single = pipe(**CALL | {"prompt": prompt}, generator=seeded(row))
        torch.testing.assert_close(batch.frames[row : row + 1], single.frames, atol=EQUAL_MODELS, rtol=0)


def test_only_what_is_missing_is_encoded(tmp_path, monkeypatch):
    pipe = sharing(tmp_path)
    texts = encoded_texts(monkeypatch)
    run(pipe)
    run(pipe, prompt=[PROMPT, "Waves."])
    assert texts == [PROMPT, NEGATIVE, "Waves."]


def test_without_guidance_the_negative_prompt_is_not_needed(tmp_path):
    run(sharing(tmp_path), **NO_GUIDANCE)
    assert len(entries(tmp_path)) == 1
    pipe = without_text_parts(tmp_path)
    run(pipe, **NO_GUIDANCE)
    with pytest.raises(ValueError, match=r"'blurry' is not in the prompt cache .*\['text_encoder'"):
        run(pipe)


def test_a_missing_prompt_is_named_before_any_computation(tmp_path):
    run(sharing(tmp_path))
    ran = []
    hook = ours().transformer.register_forward_pre_hook(lambda *_: ran.append(True))
    for kept in ((), ("connectors",), ("tokenizer",)):
        with pytest.raises(ValueError, match=r"'Another\.' is not in the prompt cache"):
            run(without_text_parts(tmp_path, *kept), prompt="Another.")
    with pytest.raises(ValueError, match="is not in the prompt cache"):
        run(without_text_parts(tmp_path), max_sequence_length=32)
    hook.remove()
    assert ran == []


def test_an_encoderless_pipeline_without_cache_names_what_is_missing(tmp_path):
    pipe = without_text_parts(tmp_path)
    with pytest.raises(ValueError, match="has no entries that fit"):
        run(pipe)
    pipe.disable_prompt_cache()
    assert pipe.prompt_cache is None
    with pytest.raises(ValueError, match="text_encoder"):
        run(pipe)


def test_enhancement_needs_its_language_model(tmp_path):
    run(sharing(tmp_path))
    with pytest.raises(ValueError, match="needs a language model"):
        run(without_text_parts(tmp_path), enable_prompt_enhancement=True)


def test_embeddings_pass_the_cache_by(tmp_path):
    pipe = sharing(tmp_path)
    seen = {}
    names = ["prompt_embeds", "negative_prompt_embeds"]
    shown = run(
        pipe,
        callback_on_step_end=lambda _pipe, _step, _timestep, tensors: seen.update(tensors),
        callback_on_step_end_tensor_inputs=names,
    )
    assert all(seen[name] is not None for name in names)
    embeds = dict(
        zip(("prompt_embeds", "prompt_attention_mask"), ours().encode_prompt(PROMPT, max_sequence_length=64))
    )
    run(pipe, prompt=None, **embeds)
    assert entries(tmp_path) == []
    assert max_difference(shown, run(ours())) == 0


# --- what contexts are told apart by ---


def test_contexts_of_two_checkpoints_stay_apart(tmp_path):
    run(sharing(tmp_path))
    run(sharing(tmp_path, "2.3"))
    assert len(entries(tmp_path)) == 4
    with pytest.raises(ValueError, match="entries of 2 different models"):
        run(without_text_parts(tmp_path))
    run(without_text_parts(tmp_path, "connectors"))


def test_the_data_type_decides_between_contexts(tmp_path):
    expected = run(sharing(tmp_path))
    half = load()
    half.to(dtype=torch.bfloat16)
    half.enable_prompt_cache(tmp_path)
    run(half)
    assert len(entries(tmp_path)) == 4
    assert max_difference(run(without_text_parts(tmp_path)), expected) == 0


def test_lora_on_the_connectors_changes_the_key(tmp_path):
    connectors = load().connectors
    pipe = sharing(tmp_path, connectors=connectors)
    before = model_fingerprint(connectors)
    plain = run(pipe)
    connectors.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "style")
    adapted = model_fingerprint(connectors)
    changed = run(pipe)
    assert len(entries(tmp_path)) == 4 and max_difference(plain, changed) > 0
    connectors.set_adapters(["style"], [0.5])
    assert len({before, adapted, model_fingerprint(connectors)}) == 3
    connectors.disable_adapters()
    assert model_fingerprint(connectors) == before
    connectors.enable_adapters()
    connectors.set_adapters(["style"], [1.0])
    connectors.fuse_lora()
    assert model_fingerprint(connectors) not in (before, adapted)
    connectors.unfuse_lora()
    connectors.delete_adapters("style")
    connectors.unload_lora()
    assert len(entries(tmp_path)) == 4


def test_the_fingerprint_follows_the_weights_and_not_the_place(tmp_path):
    connectors = load().connectors
    before = model_fingerprint(connectors)
    connectors.save_pretrained(tmp_path)
    assert model_fingerprint(type(connectors).from_pretrained(tmp_path)) == before
    with torch.no_grad():
        connectors.video_connector.learnable_registers[-1, -1] += 1e-3
    assert model_fingerprint(connectors) != before
    encoders = [ours(name).text_encoder for name in ("2.0", "2.3")]
    assert model_fingerprint(encoders[0]) == model_fingerprint(load().text_encoder)
    assert model_fingerprint(load().text_encoder.half()) != model_fingerprint(encoders[0])


def test_offloaded_weights_have_the_same_fingerprint():
    from accelerate import cpu_offload

    model = load().connectors
    before = model_fingerprint(model)
    cpu_offload(model, torch.device("cpu"), offload_buffers=True)
    assert any(parameter.is_meta for parameter in model.parameters())
    assert model_fingerprint(model) == before


def test_another_tokenizer_has_another_fingerprint():
    tokenizer = load().tokenizer
    before = tokenizer_fingerprint(tokenizer)
    assert before == tokenizer_fingerprint(ours().tokenizer)
    tokenizer.add_tokens(["quick"])
    assert tokenizer_fingerprint(tokenizer) != before


# --- the folder ---


def test_stored_contexts_come_back_as_they_were(tmp_path):
    cache = PromptCache(tmp_path)
    stored = TextContext(torch.randn(1, 4, 8).bfloat16(), torch.randn(1, 4, 4).bfloat16())
    assert cache.load(BY, KEY) is None
    cache.store(BY, KEY, stored)
    loaded = cache.load(BY, KEY)
    for name in ("video", "audio"):
        assert torch.equal(getattr(loaded, name), getattr(stored, name))
        assert getattr(loaded, name).dtype == torch.bfloat16
    for by, key in (
        (EncodedBy("other", "connectors", "torch.float32"), KEY),
        (EncodedBy("encoder", "other", "torch.float32"), KEY),
        (EncodedBy("encoder", "connectors", "torch.float16"), KEY),
        (BY, PromptKey("Waves.", 64)),
        (BY, PromptKey(PROMPT, 128)),
    ):
        assert cache.load(by, key) is None
    assert [path.name for path in tmp_path.rglob("*.partial")] == []


@pytest.mark.parametrize("damage", ["cut off", "empty", "one bit", "other prompt", "text"])
def test_damaged_entries_are_noticed_and_computed_again(damage, tmp_path, warnings):
    pipe = sharing(tmp_path)
    expected = run(pipe)
    path, other = entries(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "cut off":
        content = content[:-7]
    elif damage == "one bit":
        content[-5] ^= 1
    else:
        content = {"empty": b"", "text": b"<html>", "other prompt": other.read_bytes()}[damage]
    path.write_bytes(content)
    assert max_difference(run(pipe), expected) == 0
    assert sum("is damaged and is not used" in record.message for record in warnings.records) == 1
    warnings.clear()
    assert max_difference(run(pipe), expected) == 0
    assert not warnings.records


def test_a_damaged_entry_cannot_serve_an_encoderless_pipeline(tmp_path):
    run(sharing(tmp_path))
    for path in entries(tmp_path):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is not in the prompt cache"):
        run(without_text_parts(tmp_path))


def test_a_lost_record_of_the_models_is_written_anew(tmp_path):
    cache = PromptCache(tmp_path)
    unknown = EncodedBy(None, None, BY.dtype)
    cache.store(BY, KEY, context())
    assert cache.resolve(unknown) == BY
    (record,) = tmp_path.glob("*/*.json")
    record.write_text("{")
    with pytest.raises(ValueError, match="no entries that fit"):
        cache.resolve(unknown)
    cache.store(BY, KEY, context())
    assert cache.resolve(unknown) == BY


def test_the_least_recently_used_entries_go_first(tmp_path):
    cache = PromptCache(tmp_path)
    cache.store(BY, KEY, context())
    size = entries(tmp_path)[0].stat().st_size
    cache = PromptCache(tmp_path, max_bytes=2 * size + size // 2)
    second, third = (PromptKey(text, 64) for text in (PROMPT[::-1], PROMPT.upper()))
    cache.store(BY, second, context())
    assert cache.load(BY, KEY) is not None
    cache.store(BY, third, context())
    assert [cache.load(BY, key) is not None for key in (KEY, second, third)] == [True, False, True]


def test_a_limit_below_one_entry_keeps_nothing_but_computes(tmp_path):
    pipe = sharing(tmp_path)
    pipe.enable_prompt_cache(tmp_path, max_bytes=1)
    first = run(pipe)
    assert entries(tmp_path) == []
    assert max_difference(first, run(pipe)) == 0


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, warnings):
    (tmp_path / "file").write_text("")
    cache = PromptCache(tmp_path / "file" / "cache")
    cache.store(BY, KEY, context())
    assert "could not be stored" in warnings.text


@pytest.mark.parametrize("limit", [0, -1, "2 apples"])
def test_a_wrong_limit_is_refused(limit, tmp_path):
    with pytest.raises(ValueError, match="max_bytes"):
        PromptCache(tmp_path, limit)


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ValueError, match=f"{os.fspath(path)}.* is a file"):
        ours().enable_prompt_cache(path)
    assert ours().prompt_cache is None
