"""Model cards: what the Hub reads of them, what people read, and a script that runs as it stands."""

import re

import numpy as np
import PIL.Image
import pytest
import torch
from huggingface_hub import ModelCard

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.media.writing import write_audio, write_video
from ltx2_diffusers.publishing import Origin, origin
from ltx2_diffusers.training.config import STRATEGY_SECTIONS, TrainingConfig
from ltx2_diffusers.training.model_card import CardFacts, CardSample, card_facts, model_card
from tests.tiny_checkpoints import tiny_checkpoint

SAMPLES = [
    CardSample(f"prompt {i} | with a <bar>", f"samples/sample_{i}.mp4", f"samples/sample_{i}.gif") for i in range(5)
]
CALL = {"width": 64, "height": 64, "num_frames": 17, "frame_rate": 24.0, "num_inference_steps": 2}


def facts(**said):
    given = {"repo_id": "user/my-lora", "origin": origin("Lightricks/LTX-2"), "is_lora": True}
    given["strategy"] = "text_to_video"
    return CardFacts(**{**given, "settings": {"Rank": 8}, "call": CALL, **said})


def config(tmp_path, **sections):
    given = {"model": {"model_path": "Lightricks/LTX-2"}, "data": {"preprocessed_data_root": str(tmp_path)}}
    return TrainingConfig.model_validate({**given, "lora": {"rank": 8, "alpha": 4}, **sections})


def test_the_hub_reads_what_the_lora_is(tmp_path):
    model_card(facts(samples=SAMPLES, trigger="SKSCAT")).save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.base_model == "Lightricks/LTX-2"
    assert data.get("base_model_relation") == "adapter"
    assert data.license == "other"
    assert data.library_name == "diffusers"
    assert data.pipeline_tag == "text-to-video"
    assert data.get("instance_prompt") == "SKSCAT"
    assert {"ltx-2", "ltx-video", "text-to-video", "audio-video"} <= set(data.tags)
    assert {"lora", "diffusers-training", "template:sd-lora"} <= set(data.tags)
    first = {"text": "prompt 0 | with a <bar>", "output": {"url": "samples/sample_0.gif"}}
    assert data.get("widget")[0] == first
    assert len(data.get("widget")) == 5


@pytest.mark.parametrize(
    ("strategy", "tags", "task"),
    [
        ("image_to_video", {"image-to-video"}, "text-to-video"),
        ("video_to_video", {"in-context", "video-to-video"}, "video-to-video"),
        ("text_to_audio", {"text-to-audio"}, "text-to-audio"),
    ],
)
def test_tags_follow_the_strategy(strategy, tags, task):
    data = model_card(facts(strategy=strategy)).data
    assert tags <= set(data.tags)
    assert data.pipeline_tag == task


def test_a_base_model_that_is_not_on_the_hub_is_no_metadata_and_shows_no_path(tmp_path):
    (tmp_path / "my-base").mkdir()
    card = model_card(facts(origin=origin(str(tmp_path / "my-base"))))
    assert "`my-base`" in card.text
    assert card.data.base_model is None
    assert str(tmp_path) not in str(card)


def test_samples_stand_at_most_four_in_a_row_with_their_prompts():
    text = model_card(facts(samples=SAMPLES)).text
    rows = [line for line in text.splitlines() if "<img" in line]
    assert [row.count("<img") for row in rows] == [4, 1]
    # The bar of a prompt must not end a cell.
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [5, 5]
    assert 'href="samples/sample_4.mp4"' in rows[1]
    assert r"<details><summary>prompt</summary>prompt 4 \| with a &lt;bar&gt;</details>" in rows[1]


def test_settings_are_those_of_the_run(tmp_path):
    said = config(
        tmp_path,
        optimization={"steps": 7, "learning_rate": 1e-4},
        training_strategy={"name": "audio_to_video"},
        validation={"video_dims": [64, 64, 9], "frame_rate": 24.0, "inference_steps": 3},
    )
    made = card_facts(said, "user/x", trigger="SKS")
    assert made.settings["Rank"] == 8
    assert made.settings["Steps"] == 7
    assert (made.strategy, made.is_lora, made.trigger, made.origin.base_model) == (
        "audio_to_video",
        True,
        "SKS",
        "Lightricks/LTX-2",
    )
    assert made.call == {"width": 64, "height": 64, "num_frames": 9, "frame_rate": 24.0, "num_inference_steps": 3}
    text = model_card(made).text
    assert "| Learning rate | 0.0001 |" in text
    assert "[training_config.yaml](training_config.yaml)" in text
    assert "inherit its licence" in text


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """A folder with a LoRA, and what scripts read beside it."""
    folder = tmp_path_factory.mktemp("lora")
    linear = LTX2Pipeline.from_pretrained(tiny_checkpoint("2.0")).transformer.transformer_blocks[0].attn1.to_q
    down, up = torch.ones(2, linear.in_features), torch.ones(linear.out_features, 2)
    module = "transformer_blocks.0.attn1.to_q"
    LTX2Pipeline.save_lora_weights(folder, {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up})
    pixels = torch.randint(0, 256, (33, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sound = torch.zeros(2, 24000 * 2)
    for name in ("clip.mp4", "reference.mp4"):
        write_video(folder / name, pixels, 24.0, sound + 0.01, 24000)
    for name in ("sound.wav", "reference.wav"):
        write_audio(folder / name, sound + 0.01, 24000)
    PIL.Image.fromarray(pixels[0].numpy()).save(folder / "first_frame.png")
    PIL.Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(folder / "mask.png")
    return folder


def script(card):
    return re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1]


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("strategy", [*STRATEGY_SECTIONS, "one_of_a_users_own"])
def test_the_script_runs_as_it_stands(lora, monkeypatch, strategy):
    monkeypatch.chdir(lora)
    made = facts(repo_id=str(lora), origin=Origin(str(tiny_checkpoint("2.0"))), strategy=strategy, trigger="SKS")
    exec(script(model_card(made)), {})
    (written,) = lora.glob("sample.*")
    assert written.stat().st_size > 0
    assert written.suffix == (".wav" if strategy == "text_to_audio" else ".mp4")
    written.unlink()


@pytest.mark.usefixtures("tiny_is_packaged")
def test_the_script_of_a_whole_transformer_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    LTX2Pipeline.from_pretrained(tiny_checkpoint("2.0")).transformer.save_pretrained(tmp_path / "transformer")
    exec(script(model_card(facts(repo_id=str(tmp_path), origin=Origin("ltx2-mini"), is_lora=False))), {})
    assert (tmp_path / "sample.mp4").is_file()
