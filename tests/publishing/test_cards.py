"""Model cards beside what is saved: what machines and people read, and whose card stays."""

import ast
import os
import re
import shutil

import diffusers
import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import ltx2_diffusers
from ltx2_diffusers import LTX2LatentUpsamplePipeline, LTX2Pipeline, LTX2TwoStagePipeline, packaged_checkpoint
from ltx2_diffusers.checkpoints.convert import convert_to_diffusers, convert_to_original
from ltx2_diffusers.publishing import CALLS, Origin, origin
from ltx2_diffusers.publishing.card import Card, is_renewable
from tests.models.test_saving import small_model
from tests.tiny_checkpoints import tiny_checkpoint

TINY = tiny_checkpoint("2.0")
LAYER = "transformer_blocks.0.attn1.to_q"
# Of those that the Hub knows.
TASKS = {"text-to-video", "image-to-video", "video-to-video", "text-to-audio"}
RELATIONS = {"adapter", "finetune", "merge", "quantized"}


def scripts(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def checked(path):
    """A card whose metadata the Hub takes, as far as that can be said without it."""
    content = path.read_text(encoding="utf-8")
    card = ModelCard(content)
    data = card.data.to_dict()
    assert data == yaml.safe_load(content.split("---\n")[1])
    assert data["library_name"] == "diffusers"
    assert data.get("pipeline_tag") in {*TASKS, None}
    assert {"ltx-2", "ltx2-diffusers"} <= set(data["tags"])
    assert len(data["tags"]) == len(set(data["tags"]))
    assert data.get("base_model_relation") in {*RELATIONS, None}
    assert data.get("base_model_relation") is None or re.fullmatch(r"[\w.-]+/[\w.-]+", data["base_model"])
    assert data.get("license_link", "https://").startswith("https://")
    for script in scripts(card.text):
        ast.parse(script)
    assert is_renewable(content)
    return card


@pytest.fixture(scope="module")
def pipeline():
    return LTX2Pipeline.from_pretrained(TINY)


@pytest.fixture
def factors(pipeline):
    linear = pipeline.transformer.get_submodule(LAYER)
    down, up = torch.ones(2, linear.in_features), torch.ones(linear.out_features, 2)
    return {f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}


def test_a_saved_pipeline_has_a_card_and_its_components_have_none(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "mine")
    assert [path.parent.name for path in tmp_path.rglob("README.md")] == ["mine"]
    card = checked(tmp_path / "mine" / "README.md")
    assert card.data.pipeline_tag == "text-to-video"
    # Nobody knows what the licence is.
    assert card.data.license is card.data.base_model is None
    assert "not recorded" in card.text
    assert str(tmp_path) not in str(card)
    assert "| Steps | 40 |" in card.text
    assert "768 x 512 pixels, 121 frames" in card.text
    assert f"With diffusers {diffusers.__version__}:" in card.text
    assert isinstance(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "mine"), diffusers.LTX2Pipeline)


def test_a_model_saved_alone_has_no_card(tmp_path):
    small_model().save_pretrained(tmp_path)
    assert not (tmp_path / "README.md").exists()


def test_a_recipe_that_diffusers_lacks_says_what_is_done_there(pipeline, tmp_path):
    LTX2TwoStagePipeline.from_pipe(pipeline).save_pretrained(tmp_path)
    ours, theirs = scripts(checked(tmp_path / "README.md").text)
    # Without an upsampler there is one stage.
    assert "two_stage=False" in ours
    assert "LTX2TwoStagePipeline" not in theirs
    assert "num_inference_steps=40" in theirs


def test_a_pipeline_that_does_not_denoise_shows_no_settings(pipeline, tmp_path):
    LTX2LatentUpsamplePipeline(pipeline.vae, small_model()).save_pretrained(tmp_path)
    card = checked(tmp_path / "README.md")
    assert card.data.pipeline_tag == "video-to-video"
    assert "## Settings" not in card.text


def test_every_pipeline_is_shown():
    assert set(CALLS) == {
        name for name in ltx2_diffusers.__all__ if re.fullmatch(r"LTX2(?!.*Modular).*Pipeline.*", name)
    } - {
        *("LTX2PipelineOutput", "LTX2DFRPipelineOutput", "LTX2HDRPipelineOutput"),
        # Its card is that of its decoder.
        "LTX2VideoDiffusionDecodePipeline",
    }
    for name, call in CALLS.items():
        assert (call.theirs is not None) == hasattr(diffusers, name)


def test_what_weights_come_from(tmp_path):
    assert origin(None) == Origin()
    assert origin(packaged_checkpoint("ltx2-mini")) == Origin("ltx2-mini", None, {"license": "apache-2.0"})
    known = origin("/models/ltx-2-19b-dev.safetensors")
    assert (known.name, known.base_model) == ("Lightricks/LTX-2", "Lightricks/LTX-2")
    assert known.licence == {"license": "other", "license_link": "https://huggingface.co/Lightricks/LTX-2"}
    assert origin("/cache/models--owner--name/snapshots/0123/").base_model == "owner/name"
    assert origin("owner/model").base_model == "owner/model"
    # A local folder tells by its own card.
    fine_tune = tmp_path / "my-base"
    fine_tune.mkdir()
    assert origin(fine_tune) == Origin("my-base")
    (fine_tune / "README.md").write_text("---\nlicense: mit\nbase_model: Lightricks/LTX-2\n---\n")
    assert origin(fine_tune) == Origin("my-base", "Lightricks/LTX-2", {"license": "mit"})
    for damaged in ("---\nlicense: [\n---\n", "---\n- a\n---\n"):
        (fine_tune / "README.md").write_text(damaged)
        assert origin(fine_tune) == Origin("my-base")


def test_a_hub_model_tells_its_licence_from_the_cache_alone(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--owner--model" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    (snapshot / "README.md").write_text("---\nlicense: other\nlicense_name: theirs\nlicense_link: LICENSE.txt\n---\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    licence = origin("owner/model").licence
    assert licence["license_name"] == "theirs"
    assert licence["license_link"] == "https://huggingface.co/owner/model/blob/main/LICENSE.txt"


def save_lora(folder, factors, **said):
    LTX2Pipeline.save_lora_weights(folder, factors, **said)


def test_the_card_of_a_lora(factors, tmp_path):
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["attn1.to_q"]}
    save_lora(
        tmp_path / "style",
        factors,
        transformer_lora_adapter_metadata=settings,
        metadata={"reference_downscale_factor": "2"},
        base_model="Lightricks/LTX-2",
        trigger="SKS",
    )
    card = checked(tmp_path / "style" / "README.md")
    assert (card.data.base_model, card.data.get("base_model_relation")) == ("Lightricks/LTX-2", "adapter")
    assert (card.data.license, card.data.get("instance_prompt")) == ("other", "SKS")
    assert {"lora", "template:sd-lora", "ic-lora"} <= set(card.data.tags)
    for row in ("Rank | 2", "Alpha | 4", "Layers | `attn1.to_q`", "Size of the reference | 1/2 of the clip's sides"):
        assert f"| {row} |" in card.text.replace("transformer.", "")
    ours, theirs = scripts(card.text)
    assert all(
        'load_lora_weights("style", weight_name="pytorch_lora_weights.safetensors")' in s for s in (ours, theirs)
    )
    assert "reference_downscale_factor=2" in theirs


def test_a_lora_of_unknown_base_says_so_and_claims_no_licence(factors, tmp_path):
    save_lora(tmp_path, factors)
    card = checked(tmp_path / "README.md")
    assert card.data.license is card.data.base_model is card.data.get("base_model_relation") is None
    assert "stands for the model that it was trained on" in card.text


def test_loras_share_a_folder_and_its_card(factors, tmp_path):
    for name in ("b", "a"):
        save_lora(tmp_path, factors, weight_name=f"{name}.safetensors")
    (tmp_path / "no_lora.safetensors").write_bytes(b"damaged")
    save_lora(tmp_path, factors, weight_name="c.safetensors", format="kohya_dotted")
    text = checked(tmp_path / "README.md").text
    assert text.partition("## Other LoRAs")[2].count("| rank 2, alpha 2 |") == 2
    assert "diffusers does not read this layout" in text
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"{n}.safetensors" for n in ("a", "b", "c", "no_lora")),
        "README.md",
    }
    for name in ("a", "b", "c"):
        assert len(LTX2Pipeline.lora_state_dict(tmp_path, weight_name=f"{name}.safetensors")) == 2


def test_a_lora_beside_a_pipeline_leaves_its_card(pipeline, factors, tmp_path):
    pipeline.save_pretrained(tmp_path)
    before = (tmp_path / "README.md").read_bytes()
    save_lora(tmp_path, factors)
    assert (tmp_path / "README.md").read_bytes() == before
    assert LTX2Pipeline.from_pretrained(tmp_path).transformer is not None


def test_a_save_function_takes_no_facts_of_a_card(factors, tmp_path):
    with pytest.raises(ValueError, match="`trigger`"):
        save_lora(tmp_path, factors, save_function=print, trigger="SKS")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """An original file of one component, and of a whole model."""
    folder = tmp_path_factory.mktemp("original")
    small_model().save_pretrained(folder / "upsampler")
    convert_to_original(folder / "upsampler", folder / "upsampler.safetensors")
    convert_to_original(TINY, folder / "ltx-2-19b-distilled.safetensors")
    return folder


def test_the_card_of_a_converted_pipeline(original, tmp_path):
    convert_to_diffusers(original / "ltx-2-19b-distilled.safetensors", tmp_path / "a", text_encoder=TINY)
    card = checked(tmp_path / "a" / "README.md")
    assert (card.data.base_model, card.data.license) == ("Lightricks/LTX-2", "other")
    assert "LTX-2.0 distilled" in card.text
    assert "sigmas=[1.0, " in card.text
    assert "text_encoder=" not in card.text
    convert_to_diffusers(original / "ltx-2-19b-distilled.safetensors", tmp_path / "b")
    assert "text_encoder=encoder, tokenizer=tokenizer" in checked(tmp_path / "b" / "README.md").text


def test_the_card_of_a_converted_component_loads_it_in_both_libraries(original, tmp_path, monkeypatch):
    convert_to_diffusers(original / "upsampler.safetensors", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    text = checked(tmp_path / "mine" / "README.md").text
    loaded = {}
    for script in scripts(text):
        exec(script, loaded)
        assert isinstance(loaded["model"], torch.nn.Module)
    assert not type(loaded["model"]).__module__.startswith("ltx2_diffusers")


def savers(pipeline, factors, original):
    return {
        "pipeline": pipeline.save_pretrained,
        "lora": lambda folder: save_lora(folder, factors),
        "conversion": lambda folder: convert_to_diffusers(original / "upsampler.safetensors", folder),
    }


@pytest.mark.parametrize("kind", ["pipeline", "lora", "conversion"])
def test_a_card_that_somebody_wrote_or_edited_stays(kind, pipeline, factors, original, tmp_path):
    save = savers(pipeline, factors, original)[kind]
    save(tmp_path)
    path = tmp_path / "README.md"
    ours = path.read_bytes()
    link = tmp_path / "elsewhere.md"
    link.write_bytes(ours)
    edited = (
        b"My own.\n",
        b"",
        ours.replace(b"# ", b"# My ", 1),
        ours.replace(b"language: en\n", b"language: en\nlicense: mit\n"),
        ours + b"More.\n",
        b"\xff\xfe",
    )
    for content in edited:
        path.write_bytes(content)
        save(tmp_path)
        assert path.read_bytes() == content
    path.unlink()
    path.symlink_to(link)
    save(tmp_path)
    assert path.is_symlink()
    path.unlink()
    path.mkdir()
    save(tmp_path)
    assert path.is_dir()


@pytest.mark.parametrize("kind", ["pipeline", "lora", "conversion"])
def test_a_card_of_ours_is_renewed_also_with_other_ends_of_lines(kind, pipeline, factors, original, tmp_path):
    save = savers(pipeline, factors, original)[kind]
    save(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    path = tmp_path / "new" / "README.md"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    save(tmp_path / "new")
    assert "# new" in checked(path).text
    assert not list(tmp_path.rglob(".ltx2-*"))


def test_a_card_is_finished_with_an_interrupted_save_when_a_lora_is_loaded(factors, tmp_path, monkeypatch):
    """In the current directory, files are moved one by one."""
    monkeypatch.chdir(tmp_path)
    save_lora(".", factors)
    move, moved = os.replace, []

    def interrupted(source, target):
        moved.extend([target] if ".ltx2-complete-" in os.fspath(source) else [])
        if len(moved) > 1:
            raise KeyboardInterrupt
        move(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ltx2_diffusers.atomic.os.replace", interrupted)
        save_lora(".", {name: 2 * tensor for name, tensor in factors.items()}, trigger="SKS")
    loaded = LTX2Pipeline.lora_state_dict(tmp_path)
    assert all((tensor == 2).all() for tensor in loaded.values())
    assert "SKS" in checked(tmp_path / "README.md").text
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "pytorch_lora_weights.safetensors"}


def test_names_that_need_care_stand_in_scripts(factors, tmp_path):
    folder = tmp_path / 'my "LoRA" | 😀\n```'
    save_lora(folder, factors, trigger="a `b`\n| c")
    assert "## Settings" in checked(folder / "README.md").text


def test_somebodys_card_gets_the_metadata_that_it_lacks():
    card = Card("x", [], origin("Lightricks/LTX-2"), ["lora"], "adapter")
    completed = ModelCard(card.completing("---\nlicense: mit\ntags:\n- mine\n- lora\n---\nMy text.\n"))
    assert completed.text == "My text.\n"
    assert (completed.data.license, completed.data.get("license_link")) == ("mit", None)
    assert completed.data.tags == ["mine", "lora", "ltx-2", "ltx-video", "ltx2-diffusers"]
    assert completed.data.base_model == "Lightricks/LTX-2"
    assert card.completing(str(completed)) == str(completed)
    assert card.completing("---\ntags: [\n---\n") == "---\ntags: [\n---\n"
