"""Configuration files: those of both reference trainers load, what is saved loads again, single values lie on top."""

from pathlib import Path

import pytest
import yaml

from ltx2_diffusers.training.config_files import FieldRow, config_text, fields, load_config, parse_config, save_config

EXAMPLES = sorted(Path(__file__).parents[2].joinpath("examples", "training").glob("*.yaml"))
OURS = {"model": {"model_path": "ltx2-mini"}, "lora": {}, "data": {"preprocessed_data_root": "clips"}}
OURS |= {"output_dir": "outputs/mine"}
WITHOUT_FILE = ("model.model_path=ltx2-mini", "data.preprocessed_data_root=clips")
# As the 2.0 reference trainer saves its settings: sizes as a tuple, and `no` in quotes.
SAVED_2_0 = """
model:
  model_path: MODEL
  text_encoder_path: null
  training_mode: lora
  load_checkpoint: null
lora: {rank: 32, alpha: 32, dropout: 0.0, target_modules: [to_k, to_q, to_v, to_out.0]}
training_strategy:
  name: text_to_video
  first_frame_conditioning_p: 0.5
  with_audio: true
  audio_latents_dir: audio_latents
optimization: {learning_rate: 1e-4, steps: 2000, batch_size: 1, scheduler_type: linear, scheduler_params: {}}
acceleration: {mixed_precision_mode: 'no', quantization: int8-quanto, load_text_encoder_in_8bit: true}
data: {preprocessed_data_root: clips, num_dataloader_workers: 2}
validation:
  prompts: [waves]
  negative_prompt: blurry
  video_dims: !!python/tuple
  - 576
  - 576
  - 89
  guidance_scale: 4.0
  stg_scale: 1.0
  stg_blocks: [29]
  stg_mode: stg_av
checkpoints: {interval: 250, keep_last_n: -1, precision: bfloat16}
flow_matching: {timestep_sampling_mode: shifted_logit_normal, timestep_sampling_params: {}}
hub: {push_to_hub: false, hub_model_id: null}
wandb: {enabled: false, project: ltx-2-trainer, entity: null, tags: [], log_validation_videos: true}
seed: 42
output_dir: outputs/av
"""
# As the newest one writes them.
NEWEST = """
model: {model_path: MODEL}
lora: {rank: 32, alpha: 32}
training_strategy:
  name: flexible
  video:
    is_generated: true
    latents_dir: latents
    conditions:
    - {type: first_frame, probability: 0.5}
    - {type: reference, latents_dir: reference_latents}
  audio: {is_generated: false, latents_dir: audio_latents}
optimization: {scheduler_type: step, steps: 100}
acceleration: {offload_optimizer_during_validation: true}
data: {preprocessed_data_root: clips}
validation:
  samples:
  - prompt: waves
    video_dims: [576, 576, 89]
    conditions:
    - {type: first_frame, image_or_video: FILE}
    - {type: audio_to_video, audio: FILE}
  video_cfg_scale: 3.0
  audio_cfg_scale: 7.0
  video_stg_scale: 1.0
  audio_stg_scale: 0.0
  guidance_rescale: 0.7
  video_modality_guidance_scale: 3.0
  generate_video: true
checkpoints: {no_resume: true, save_training_state: minimal}
output_dir: outputs/newest
"""


@pytest.fixture
def write(tmp_path):
    def written(text: str) -> Path:
        path = tmp_path / "settings.yaml"
        model = tmp_path / "model.safetensors"
        model.touch()
        path.write_text(text.replace("MODEL", str(model)).replace("FILE", str(model)))
        return path

    return written


def test_files_of_the_2_0_reference_load(write):
    found = load_config(write(SAVED_2_0))
    assert (found.lora.rank, found.optimization.learning_rate, found.acceleration.mixed_precision_mode) == (
        32,
        1e-4,
        "no",
    )
    assert found.validation.video_dims == (576, 576, 89)
    assert found.training_strategy.with_audio is True


def test_files_of_the_newest_reference_load(write):
    found = load_config(write(NEWEST))
    video = found.training_strategy.video
    assert [one.type for one in video.conditions] == ["first_frame", "reference"]
    assert found.validation.guidance("2.3")[:4] == (3.0, 7.0, 1.0, 0.0)
    assert found.validation.all_samples()[0].conditions[1].type == "audio_to_video"
    assert (found.optimization.scheduler_type, found.checkpoints.save_training_state) == ("step", "minimal")


@pytest.mark.parametrize("text", [SAVED_2_0, NEWEST, yaml.safe_dump(OURS)], ids=["2.0", "newest", "ours"])
def test_what_is_saved_is_plain_and_loads_as_the_same(text, write, tmp_path):
    first, copy = load_config(write(text)), tmp_path / "new" / "training_config.yaml"
    save_config(first, copy)
    assert yaml.safe_load(copy.read_text())["model"]["model_path"] == first.model.model_path
    again = load_config(copy)
    assert again.model_dump() == first.model_dump()
    for generation in ("2.0", "2.3"):
        assert again.validation.guidance(generation) == first.validation.guidance(generation)
    assert [path.name for path in copy.parent.iterdir()] == ["training_config.yaml"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_load_and_say_what_they_are(path):
    found = load_config(path)
    assert path.read_text().startswith("# ")
    assert found.output_dir == Path.cwd() / "outputs" / path.stem


def test_there_is_an_example_for_every_strategy():
    (names,) = (row.type for row in fields() if row.name == "training_strategy.name")
    assert {load_config(path).training_strategy.name for path in EXAMPLES} == set(names.split("|"))
    assert set(names.split("|")) <= {path.stem for path in EXAMPLES}


def test_examples_hold_the_values_of_the_references_presets():
    presets = {path.stem: load_config(path) for path in EXAMPLES}
    for name, rank, rate, steps in (
        ("av_lora", 32, 1e-4, 2000),
        ("av_lora_low_vram", 16, 1e-4, 2000),
        ("ic_lora", 32, 2e-4, 3000),
    ):
        found = presets[name]
        assert (found.lora.rank, found.lora.alpha, found.optimization.learning_rate) == (rank, rank, rate)
        assert (found.optimization.steps, found.optimization.batch_size, found.checkpoints.interval) == (steps, 1, 250)
        assert found.optimization.enable_gradient_checkpointing and found.wandb.project == "ltx-2-trainer"
    low = presets["av_lora_low_vram"]
    assert (low.acceleration.quantization, low.optimization.optimizer_type) == ("int8-quanto", "adamw8bit")
    assert low.validation.video_dims == (576, 576, 49)
    assert presets["ic_lora"].validation.stg_mode == "stg_v"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1\nb: 2", "line 2: is no YAML: expected ',' or ']', but got ':'"),
        ("- a\n- b", "line 1: has to hold sections such as `model:` but holds ['a', 'b']"),
        ("model: !!python/object/apply:os.system [ls]", "line 1: is no YAML: could not determine a constructor"),
        ("a: 1\na:\tb: 2", "line 2: is no YAML: "),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_line(text, line, write):
    path = write(text)
    with pytest.raises(ValueError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}, {line}")


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"there is no configuration file 'gone\.yaml'; give a YAML file"):
        load_config("gone.yaml")


def test_an_empty_file_lacks_its_sections(write):
    with pytest.raises(
        ValueError,
        match=r"model: is missing; give model\.model_path\ndata: is missing; give data\.preprocessed_data_root",
    ):
        load_config(write("# nothing yet\n"))


def test_overrides_win_and_are_read_as_yaml(write):
    path = write(SAVED_2_0)
    found = load_config(
        path,
        [
            "optimization.steps=7",
            "validation.interval=null",
            "lora.target_modules=[video, audio]",
            "optimization.scheduler_params={end_factor: 0.0}",
            "acceleration.mixed_precision_mode=no",
            "seed=3",
        ],
    )
    assert (found.optimization.steps, found.validation.interval, found.seed) == (7, None, 3)
    assert found.lora.target_modules == ["video", "audio"]
    assert found.optimization.scheduler_params == {"end_factor": 0.0}
    assert found.acceleration.mixed_precision_mode == "no"
    assert load_config(path).optimization.steps == 2000


def test_texts_in_overrides_stay_as_they_are():
    overrides = ["validation.prompts=a cat: it sleeps", "hub.hub_model_id='owner/name'", "output_dir=2024"]
    found = load_config(None, [*WITHOUT_FILE, *overrides])
    assert found.validation.prompts == ["a cat: it sleeps"]
    assert (found.hub.hub_model_id, found.output_dir.name) == ("owner/name", "2024")


def test_changes_by_place_win_over_overrides():
    found = load_config(
        None,
        [*WITHOUT_FILE, "optimization.steps=7"],
        {"optimization.steps": "9", "validation.video_dims": ["64", "96", "9"], "training_strategy.with_audio": True},
    )
    assert (found.optimization.steps, found.validation.video_dims) == (9, (64, 96, 9))
    assert found.training_strategy.with_audio is True


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("steps", "'steps' is neither an option nor section.key=value"),
        ("optimization.scheduler_params={a", "optimization.scheduler_params: '{a' is no YAML: "),
        ("optimization.stepz=3", "optimization.stepz: unknown key; did you mean steps?"),
        ("lora.rank=1", "lora.rank: has to be at least 2 but is 1"),
    ],
)
def test_wrong_overrides_are_named(override, line):
    with pytest.raises(ValueError) as caught:
        load_config(None, [*WITHOUT_FILE, override])
    assert str(caught.value).startswith(line)


def test_without_a_file_an_adapter_is_trained_unless_the_mode_is_full():
    assert load_config(None, WITHOUT_FILE).lora is not None
    assert load_config(None, [*WITHOUT_FILE, "model.training_mode=full"]).lora is None


def rows() -> dict[str, FieldRow]:
    return {row.name: row for row in fields()}


def test_the_table_has_every_key_of_the_file():
    found = parse_config(OURS).model_dump()
    places = {f"{name}.{key}" for name, part in found.items() if isinstance(part, dict) for key in part}
    places |= {name for name, part in found.items() if not isinstance(part, dict)}
    assert places <= rows().keys()
    assert len(fields()) == len(rows())


def test_every_key_is_described_in_a_sentence():
    for row in fields():
        assert row.description.endswith("."), row
        assert row.description[0].isupper() or row.key in ("name", "video_dims"), row
        assert row.type and row.default, row


@pytest.mark.parametrize(
    ("name", "kind", "default", "strategies"),
    [
        ("model.model_path", "text", "required", ()),
        ("lora.rank", "whole number", "64", ()),
        ("acceleration.mixed_precision_mode", "'no'|fp16|bf16|null", "bf16", ()),
        ("validation.video_dims", "[whole number, whole number, whole number]", "[960, 544, 97]", ()),
        ("validation.interval", "whole number|null", "100", ()),
        ("training_strategy.direction", "forward|backward", "forward", ("extension",)),
        ("training_strategy.caption_dropout_p", "number", "0.0", ()),
        ("seed", "whole number", "42", ()),
    ],
)
def test_a_row_says_type_and_default(name, kind, default, strategies):
    row = rows()[name]
    assert (row.type, row.default, row.strategies) == (kind, default, strategies)


def test_a_default_that_differs_between_strategies_is_told_for_each():
    found = rows()["training_strategy.first_frame_conditioning_p"].default
    assert found.startswith("0.1 for text_to_video, video_to_video; 1.0 for image_to_video; 0.0 for ")


def test_defaults_in_the_table_are_those_of_the_schema():
    """Each default of the table, read back, changes nothing."""
    plain = parse_config(OURS)
    for row in fields():
        if row.default == "required" or row.section in ("training_strategy", "validation") or row.key == "output_dir":
            continue
        changed = parse_config({**OURS, **({row.key: yaml.safe_load(row.default)} if not row.section else {})})
        if row.section:
            section = {**OURS.get(row.section, {}), row.key: yaml.safe_load(row.default)}
            changed = parse_config({**OURS, row.section: section})
        assert config_text(changed) == config_text(plain), row.name
