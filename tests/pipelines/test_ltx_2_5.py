"""LTX-2.5 as it is published: repositories in diffusers' layout, original files one per component, Gemma 4 as text encoder."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTX2Pipeline as DiffusersPipeline
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Gemma4Config, Gemma4ForConditionalGeneration

from ltx2_diffusers import LTX2ConditionPipeline, LTX2Pipeline, LTX2TwoStagePipeline, plan_memory
from ltx2_diffusers.checkpoints.convert import convert_to_diffusers, convert_to_original, differences
from ltx2_diffusers.checkpoints.original import OriginalCheckpoint
from ltx2_diffusers.checkpoints.several_files import component_files
from ltx2_diffusers.checkpoints.text_file import load_text_file
from ltx2_diffusers.cli.main import main
from ltx2_diffusers.prompts import Prompts
from tests.golden_data import EQUAL_PIPELINES, load_metadata
from tests.pipelines.tiny import NO_GUIDANCE, PROMPT, load, max_difference, ours, seeded
from tests.tiny_checkpoints import tiny_checkpoint
from tests.tiny_checkpoints.newest import GEMMA_VERSION, build_newest

CALL: dict[str, Any] = {
    "prompt": PROMPT,
    "height": 64,
    "width": 64,
    "max_sequence_length": 64,
    "output_type": "latent",
}
CALL |= {"min_seconds": 0.3, "max_seconds": 0.8, "sigmas": [1.0, 0.5]}
FILES = ("audio_vae", "diffusion_decoder", "duration_head", "transformer", "vae")


@cache
def newest() -> LTX2Pipeline:
    return load("2.5")


def clip(pipe: Any) -> Any:
    return pipe(**CALL, generator=seeded(0))


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """The original files."""
    folder = tmp_path_factory.mktemp("originals") / "ltx-2.5"
    convert_to_original(tiny_checkpoint("2.5"), folder, per_component=True)
    (folder / "transformer.safetensors").rename(folder / "tiny-distilled-transformer.safetensors")
    return folder


# --- repositories ---


def test_a_repository_is_recognised_whole():
    pipe = newest()
    assert (pipe.preset.version, pipe.preset.kind, pipe.image_crf) == ("2.5", "distilled", 18)
    assert type(pipe.text_encoder).__name__ == "Gemma4UnifiedForConditionalGeneration"
    output = clip(pipe)
    assert output.info["num_frames"] == (output.frames.shape[2] - 1) * 8 + 1
    staged = LTX2TwoStagePipeline.from_pretrained(tiny_checkpoint("2.5"), torch_dtype=torch.float32)
    assert staged.has("duration_head") and staged.has("latent_upsampler")


@torch.no_grad()
def test_as_diffusers_which_encodes_without_bos_and_marks_no_tokens():
    theirs, pipe = load("2.5", DiffusersPipeline), load("2.5")
    pipe.scheduler = theirs.scheduler
    # diffusers' pipeline does not tell the transformer that the first latent frame stands for one picture.
    for one in (theirs, pipe):
        one.transformer.keyframes_abs_pos_embedding.zero_()
    call = CALL | NO_GUIDANCE | {"use_cross_timestep": False, "sampler": "euler"}
    pipe.begins_with_bos = False
    output = pipe(**call, generator=seeded(0))
    del call["sampler"]
    expected = theirs(**call, generator=seeded(0))
    assert max_difference(output, expected) <= EQUAL_PIPELINES
    pipe.begins_with_bos = None
    assert pipe(**call, sampler="euler", generator=seeded(0)).info["num_frames"] > output.info["num_frames"]


def test_saved_and_loaded(tmp_path):
    newest().save_pretrained(tmp_path)
    assert max_difference(clip(load(tmp_path)), clip(newest())) <= EQUAL_PIPELINES
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["duration_head"] == ["ltx2", "LTX2DurationHead"]


def test_the_full_transformer_takes_the_place_of_the_distilled_one():
    full = type(newest().transformer).from_pretrained(tiny_checkpoint("2.5"), subfolder="transformer_full")
    pipe = LTX2Pipeline.from_pipe(newest(), transformer=full)
    pipe.set_progress_bar_config(disable=True)
    assert max_difference(clip(pipe), clip(newest())) > 1e-3


def test_info_lists_everything(capsys, originals):
    for place, layout in ((tiny_checkpoint("2.5"), "diffusers"), (originals, "original")):
        assert main(["info", "--json", str(place)]) == 0
        summary = json.loads(capsys.readouterr().out)
        assert (summary["layout"], summary["version"][:3], summary["kind"]) == (layout, "2.5", "distilled")
        parts = summary["components"]
        assert parts["duration_head"]["class"] == "LTX2DurationHead" and parts["duration_head"]["tensors"] == 19
        assert parts["diffusion_decoder"]["class"] == "LTX2VideoDiffusionDecoderModel"
        assert layout == "original" or {"transformer_full", "latent_upsampler", "temporal_upsampler"} < parts.keys()


def test_a_plan_counts_the_head():
    plan = plan_memory(
        tiny_checkpoint("2.5"), 8.0, 8.0, height=64, width=64, num_frames=9, device="cpu", dtype=torch.float32
    )
    size = sum(parameter.numel() for parameter in newest().duration_head.parameters()) * 4
    assert plan.parts["duration_head"].total == size
    pipe = LTX2Pipeline.from_plan(plan, "cpu")
    pipe.set_progress_bar_config(disable=True)
    assert max_difference(clip(pipe), clip(newest())) <= EQUAL_PIPELINES


# --- original files ---


def loaded(files: Any, **changes: Any) -> LTX2Pipeline:
    given = {"text_encoder": tiny_checkpoint("2.5"), "torch_dtype": torch.float32}
    pipe = LTX2Pipeline.from_single_file(files, **given | changes)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_file_for_each_component(originals):
    assert {path.stem for path in originals.iterdir()} == {"tiny-distilled-transformer", *FILES} - {"transformer"}
    for name in ("vae", "diffusion_decoder"):
        bare = load_file(originals / f"{name}.safetensors")
        assert all(name.startswith(("encoder.", "decoder.", "per_channel_statistics.")) for name in bare)
    metadata = load_metadata(originals / "tiny-distilled-transformer.safetensors")
    assert json.loads(metadata["gemma_source_checkpoint"]) == {"gemma_version": GEMMA_VERSION}


@pytest.mark.parametrize("kind", ["folder", "list", "dictionary"])
def test_they_load_as_one(originals, kind):
    found = {name: paths[0] for name, paths in component_files(originals).items()}
    given: Any = {"folder": originals, "list": sorted(originals.iterdir(), reverse=True), "dictionary": found}[kind]
    assert max_difference(clip(loaded(given)), clip(newest())) <= EQUAL_PIPELINES


@pytest.mark.slow
def test_connectors_may_be_in_two_files(originals, tmp_path):
    """As published: their projections are in the file of the text encoder."""
    folder = Path(shutil.copytree(originals, tmp_path / "split"))
    path = folder / "tiny-distilled-transformer.safetensors"
    tensors, metadata = load_file(path), load_metadata(path)
    apart = {name: tensors.pop(name) for name in list(tensors) if name.startswith("text_embedding_projection.")}
    assert len(apart) == 4
    save_file(tensors, path, metadata)
    save_file(apart, folder / "gemma.safetensors")
    assert max_difference(clip(loaded(folder)), clip(newest())) <= EQUAL_PIPELINES
    assert differences(folder, tiny_checkpoint("2.5")) == []


def test_converted_to_the_same_folder_again(originals, tmp_path):
    convert_to_diffusers(originals, tmp_path / "again", text_encoder=tiny_checkpoint("2.5"))
    assert differences(originals, tmp_path / "again") == []
    assert max_difference(clip(load(tmp_path / "again")), clip(newest())) <= EQUAL_PIPELINES


@pytest.mark.slow
def test_the_command_converts_both_ways(originals, tmp_path, capsys):
    text = ["--text-encoder", str(tiny_checkpoint("2.5"))]
    assert main(["convert", str(originals), str(tmp_path / "folder"), "--check", "--quiet", *text]) == 0
    assert capsys.readouterr().out.strip() == "equal"
    again = ["convert", str(tmp_path / "folder"), str(tmp_path / "files"), "--per-component", "--check", "--quiet"]
    assert main(again) == 0
    assert main(["convert", str(tmp_path / "folder"), str(tmp_path / "one.safetensors"), "--per-component"]) != 0
    assert "a folder with a file for each component is written" in capsys.readouterr().err


def test_one_file_holds_all_but_one_of_the_decoders(tmp_path):
    with pytest.raises(ValueError, match="`diffusion_decoder` to a file of its own"):
        convert_to_original(tiny_checkpoint("2.5"), tmp_path / "whole-distilled.safetensors")
    folder = shutil.copytree(
        tiny_checkpoint("2.5"), tmp_path / "one", ignore=shutil.ignore_patterns("diffusion_decoder")
    )
    convert_to_original(folder, tmp_path / "whole-distilled.safetensors")
    assert "duration_head" in OriginalCheckpoint(tmp_path / "whole-distilled.safetensors").components()
    assert max_difference(clip(loaded(tmp_path / "whole-distilled.safetensors")), clip(newest())) <= EQUAL_PIPELINES


def test_errors_name_the_files(originals, tmp_path):
    files = {name: paths[0] for name, paths in component_files(originals).items()}
    with pytest.raises(ValueError, match=r"transformer\.safetensors'.* also needs vae; give the files that hold them"):
        loaded([files["transformer"], files["audio_vae"]])
    with pytest.raises(ValueError, match=r"`vae` is '.*audio_vae\.safetensors', which holds audio_vae, vocoder"):
        loaded(files | {"vae": files["audio_vae"]})
    shutil.copy(files["vae"], tmp_path / "copy.safetensors")
    with pytest.raises(ValueError, match=r"vae is in '.*vae\.safetensors' and in '.*copy\.safetensors'"):
        loaded([*originals.iterdir(), tmp_path / "copy.safetensors"])
    save_file({"x": torch.zeros(1)}, tmp_path / "note.safetensors")
    with pytest.raises(ValueError, match=r"note\.safetensors' holds no component"):
        loaded([*originals.iterdir(), tmp_path / "note.safetensors"])
    (tmp_path / "doubled").mkdir()
    with pytest.raises(ValueError, match="holds no safetensors files"):
        loaded(tmp_path / "doubled")
    names = load_file(files["transformer"])
    projections = {name: tensor for name, tensor in names.items() if name.startswith("text_embedding_projection.")}
    save_file(projections, tmp_path / "doubled" / "again.safetensors")
    with pytest.raises(ValueError, match=r"safetensors' holds .*_aggregate_embed\.bias once more"):
        loaded([*originals.iterdir(), tmp_path / "doubled" / "again.safetensors"])


def test_another_text_encoder_than_the_checkpoint_s_is_refused(originals, tmp_path):
    folder = Path(shutil.copytree(tiny_checkpoint("2.5") / "text_encoder", tmp_path / "gemma" / "text_encoder"))
    shutil.copytree(tiny_checkpoint("2.5") / "tokenizer", tmp_path / "gemma" / "tokenizer")
    config = json.loads((folder / "config.json").read_text()) | {"gemma_version": "gemma4-other"}
    (folder / "config.json").write_text(json.dumps(config))
    message = f"trained with the text encoder '{GEMMA_VERSION}', but `text_encoder` is 'gemma4-other'"
    with pytest.raises(ValueError, match=message):
        loaded(originals, text_encoder=tmp_path / "gemma")
    with pytest.raises(ValueError, match=message):
        convert_to_diffusers(originals, tmp_path / "out", text_encoder=tmp_path / "gemma")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def text_file(originals, tmp_path_factory) -> Path:
    """Gemma 4 in flattened names with what sees and hears, its tokenizer as bytes, and the projections, as published."""
    folder, source = tmp_path_factory.mktemp("text"), tiny_checkpoint("2.5")
    tensors = load_file(source / "text_encoder" / "model.safetensors")
    tensors = {name.replace("model.language_model.", "model."): tensor for name, tensor in tensors.items()}
    tensors |= {"vision_model.x": torch.zeros(1), "audio_projector.x": torch.zeros(1)}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        data = torch.frombuffer(bytearray((source / "tokenizer" / name).read_bytes()), dtype=torch.uint8)
        tensors["tokenizer_json" if name == "tokenizer.json" else f"hf_asset__{name}"] = data
    whole = load_file(originals / "tiny-distilled-transformer.safetensors")
    tensors |= {name: tensor for name, tensor in whole.items() if name.startswith("text_embedding_projection.")}
    config = (source / "text_encoder" / "config.json").read_text()
    save_file(tensors, folder / "gemma4.safetensors", {"gemma_config": config})
    return folder / "gemma4.safetensors"


def test_the_text_encoder_loads_from_its_original_file(originals, text_file):
    assert max_difference(clip(loaded(originals, text_encoder=text_file)), clip(newest())) <= EQUAL_PIPELINES


def test_the_published_files_become_a_folder(originals, text_file, tmp_path):
    """The projections are in the file of the text encoder alone."""
    files = Path(shutil.copytree(originals, tmp_path / "files"))
    path = files / "tiny-distilled-transformer.safetensors"
    tensors, metadata = load_file(path), load_metadata(path)
    save_file({n: t for n, t in tensors.items() if not n.startswith("text_embedding_projection.")}, path, metadata)
    shutil.copy(text_file, files)
    convert_to_diffusers(files, tmp_path / "folder", text_encoder=files / text_file.name)
    assert differences(files, tmp_path / "folder") == []
    assert max_difference(clip(load(tmp_path / "folder")), clip(newest())) <= EQUAL_PIPELINES


def test_a_damaged_file_of_a_text_encoder_is_refused(text_file, tmp_path):
    tensors, metadata = load_file(text_file), load_metadata(text_file)
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "gemma4.safetensors", metadata)
    with pytest.raises(
        ValueError, match=r"gemma4\.safetensors' lacks 1 tensors of the text encoder, such as .*norm\.weight"
    ):
        load_text_file(tmp_path / "gemma4.safetensors")
    save_file(
        {n: t for n, t in load_file(text_file).items() if n != "tokenizer_json"}, tmp_path / "b.safetensors", metadata
    )
    with pytest.raises(ValueError, match="has no tensor tokenizer_json"):
        load_text_file(tmp_path / "b.safetensors")


# --- texts ---


@pytest.mark.parametrize("version", ["2.0", "2.5"])
def test_bos_stands_once_in_front(version):
    pipe = load("2.5") if version == "2.5" else ours()
    encoder, bos = pipe._text_encoder(), pipe.tokenizer.bos_token_id
    ids, mask = encoder.tokens(["A dog runs.", ""], 64)
    assert (ids == bos).sum(1).tolist() == [1, 1]
    assert [int(row[kept == 1][0]) for row, kept in zip(ids, mask)] == [bos, bos]
    cut, _ = encoder.tokens(["A dog runs along the beach."], 4)
    assert cut.shape == (1, 4) and cut[0, 0] == bos
    plain = pipe.tokenizer("A dog runs along the beach.", add_special_tokens=False).input_ids
    assert cut[0, 1:].tolist() == plain[:3]


def test_a_setting_leaves_bos_out(tmp_path):
    pipe = LTX2Pipeline.from_pipe(newest())
    pipe.set_progress_bar_config(disable=True)
    pipe.begins_with_bos = False
    ids, _ = pipe._text_encoder().tokens(["A dog runs."], 64)
    assert pipe.tokenizer.bos_token_id not in ids
    assert LTX2ConditionPipeline.from_pipe(pipe).begins_with_bos is False
    pipe.enable_prompt_cache(tmp_path)
    entries = []
    for setting in (False, None, False):
        pipe.begins_with_bos = setting
        pipe.prompt_reader.read(Prompts(PROMPT, max_sequence_length=64), False)
        entries.append(len(list(tmp_path.glob("*/*.safetensors"))))
    assert entries == [1, 2, 2]


def test_the_encoder_cannot_rewrite_prompts():
    with pytest.raises(ValueError, match="load an instruction-tuned Gemma 4 as `prompt_enhancer`"):
        newest()(**CALL, enable_prompt_enhancement=True)


def test_a_separate_model_rewrites_each_prompt_by_itself():
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint("2.0") / "tokenizer")
    text = newest().text_encoder.config.text_config.to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    sizes = {name: text[name] for name in (*names, "num_key_value_heads", "layer_types", "max_position_embeddings")}
    sizes |= {"global_head_dim": sizes["head_dim"], "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 8}
    config = Gemma4Config(text_config=sizes)
    config.vision_config = config.audio_config = None
    torch.manual_seed(0)
    enhancer, asked = Gemma4ForConditionalGeneration(config).eval(), []
    pipe = LTX2Pipeline(**newest().components | {"prompt_enhancer": enhancer, "tokenizer": tokenizer})
    generate = enhancer.generate
    enhancer.generate = lambda **given: asked.append(given) or generate(**given)
    texts = pipe.enhance_prompt(["a dog", "a cat"], max_new_tokens=4)
    assert len(texts) == len(asked) == 2
    assert asked[0]["do_sample"] is False and asked[0]["no_repeat_ngram_size"] == 5
    conversation = tokenizer.decode(asked[1]["input_ids"][0], skip_special_tokens=True)
    from ltx2_diffusers.prompts.diffusers_texts import LTX2_5_T2V_DEFAULT_SYSTEM_PROMPT

    assert LTX2_5_T2V_DEFAULT_SYSTEM_PROMPT.strip()[:60] in conversation and "user prompt: a cat" in conversation
    assert asked[0]["input_ids"].shape[1] % 8 == 0


def test_the_tiny_repository_is_equal_each_time(tmp_path):
    first = tiny_checkpoint("2.5")
    build_newest(tmp_path / "again", tiny_checkpoint("2.3"))
    files = {path.relative_to(first) for path in first.rglob("*.safetensors")}
    assert files == {path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.safetensors")}
    assert all((first / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)
