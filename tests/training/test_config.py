"""The schema: what the reference's cases say, defaults, strategies, and messages that name place, value and remedy."""

from pathlib import Path

import pytest

from ltx2_diffusers.training.config import STRATEGY_SECTIONS, Guidance, StrategySection, register_strategy_section
from ltx2_diffusers.training.config_files import parse_config
from tests.golden_data import load_json

GOLDEN = load_json("training/config_cases.json")
# The newest reference trainer takes this schedule, and so do we.
DIFFERENT = [{"optimization": {"scheduler_type": "step"}}]


def merged(base, overrides, file):
    """The golden file's rule: merge, delete, and put a file that exists in the place of its mark."""
    if isinstance(overrides, list):
        return [merged(None, one, file) for one in overrides]
    if not isinstance(overrides, dict):
        return file if overrides == "<EXISTING_FILE>" else overrides
    found = dict(base) if isinstance(base, dict) else {}
    for key, value in overrides.items():
        if value == "<DELETE>":
            found.pop(key, None)
        else:
            found[key] = merged(found.get(key), value, file)
    return found


@pytest.fixture
def file(tmp_path) -> str:
    path = tmp_path / "any.safetensors"
    path.touch()
    return str(path)


def settings(**sections):
    base = {"model": {"model_path": "ltx2-mini"}, "lora": {}, "data": {"preprocessed_data_root": "clips"}}
    return merged(base, sections, "")


def problems(**sections) -> list[str]:
    with pytest.raises(ValueError) as caught:
        parse_config(settings(**sections))
    return str(caught.value).split("\n")


def sample_problem(*conditions) -> str:
    (line,) = problems(validation={"samples": [{"prompt": "waves", "conditions": list(conditions)}]})
    return line


def test_the_references_cases_are_accepted_and_rejected(file):
    base = merged({}, GOLDEN["base"], file)
    verdicts = []
    for case in GOLDEN["cases"]:
        try:
            parse_config(merged(base, case["overrides"], file))
            verdicts.append(True)
        except ValueError as error:
            assert "pydantic" not in str(error) and "For further information" not in str(error)
            verdicts.append(False)
    wrong = [case for case, verdict in zip(GOLDEN["cases"], verdicts) if case["valid"] != verdict]
    assert [case["overrides"] for case in wrong if case["binding"]] == []
    assert [case["overrides"] for case in wrong] == DIFFERENT
    assert len(verdicts) == len(GOLDEN["cases"]) > 70


@pytest.mark.parametrize("case", [c for c in GOLDEN["cases"] if not c["valid"] and c["binding"]], ids=str)
def test_errors_name_the_place(case, file):
    with pytest.raises(ValueError) as caught:
        parse_config(merged(merged({}, GOLDEN["base"], file), case["overrides"], file))
    # A rule of a section names the section; tags of strategies are no part of the place.
    place = case["where"][0].replace("text_to_video.", "").replace("video_to_video.", "")
    section = place.split(".")[0].removesuffix("_path") if place != "<root>" else ""
    assert str(caught.value).startswith(section)
    assert "\n" not in str(caught.value)


def test_defaults_are_those_of_the_reference(file):
    expected = merged({}, load_json("training/config_defaults.json"), file)
    found = parse_config(merged({}, GOLDEN["base"], file)).model_dump(mode="json")
    sections = {name: value for name, value in expected.items() if isinstance(value, dict)}
    for section, values in sections.items():
        assert {key: found[section][key] for key in values} == values
    assert {key: found[key] for key in ("seed", "output_dir")} == {"seed": 42, "output_dir": "outputs"}


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"lora": {"ranks": 4}}, "lora.ranks: unknown key; did you mean rank?"),
        ({"optimisation": {}}, "optimisation: unknown key; did you mean optimization?"),
        ({"rank": 4}, "rank: unknown key; did you mean lora.rank?"),
        (
            {"wandb": {"xyzzy": 4}},
            "wandb.xyzzy: unknown key; there are enabled, project, entity, tags, log_validation_videos",
        ),
        (
            {"training_strategy": {"reference_latents_dir": "x"}},
            "training_strategy.reference_latents_dir: unknown key; it belongs to video_to_video",
        ),
        ({"lora": {"rank": True}}, "lora.rank: has to be a number but is True"),
        ({"lora": {"rank": "many"}}, "lora.rank: has to be a whole number but is 'many'"),
        ({"optimization": {"steps": 0}}, "optimization.steps: has to be at least 1 but is 0"),
        ({"optimization": {"batch_size": 0}}, "optimization.batch_size: has to be at least 1 but is 0"),
        ({"optimization": {"learning_rate": 0}}, "optimization.learning_rate: has to be greater than 0 but is 0"),
        (
            {"optimization": {"learning_rate": float("nan")}},
            "optimization.learning_rate: has to be a finite number but is nan",
        ),
        ({"optimization": {"optimizer_params": 3}}, "optimization.optimizer_params: has to be a mapping but is 3"),
        ({"lora": 3}, "lora: has to be a mapping of keys to values but is 3"),
        ({"validation": {"prompts": "a cat"}}, "validation.prompts: has to be a list but is 'a cat'"),
        ({"validation": {"prompts": ["a", 3]}}, "validation.prompts.1: has to be a text but is 3"),
        (
            {"validation": {"video_dims": [512, 512, 49, 1]}},
            "validation.video_dims: has to have 3 entries but is [512, 512, 49, 1]",
        ),
        (
            {"lora": {"target_modules": "vidoe"}},
            "lora.target_modules: has to be a list of module names, or one of av, video, ic_lora, audio, cross_modal, "
            "video_to_audio, text, all, connectors but is 'vidoe'",
        ),
        (
            {"acceleration": {"mixed_precision_mode": "fp8"}},
            "acceleration.mixed_precision_mode: has to be one of 'no', fp16, bf16, null but is 'fp8'",
        ),
        (
            {"flow_matching": {"timestep_sampling_mode": "uniform", "timestep_sampling_params": {"std": 1}}},
            "flow_matching: uniform has no timestep_sampling_params 'std'; it has min_value, max_value",
        ),
        (
            {"training_strategy": {"name": "retake", "min_share": 0.9}},
            "training_strategy: min_share 0.9 is above max_share 0.8; exchange them",
        ),
        (
            {"training_strategy": {"name": "flexible", "video": {"is_generated": False, "latents_dir": "latents"}}},
            "training_strategy: nothing is trained; set is_generated of video or audio to true",
        ),
        (
            {"lora": {"use_dora": True, "lora_bias": True}},
            "lora: use_dora and lora_bias exclude each other; set one of them to false",
        ),
        (
            {"checkpoints": {"resume": "latest", "no_resume": True}},
            "checkpoints: resume 'latest' and no_resume exclude each other; give one of them",
        ),
        (
            {"model": {"training_mode": "full"}, "acceleration": {"quantization": "bnb-nf4"}},
            "acceleration.quantization: belongs to lora mode; full training needs null",
        ),
        (
            {"model": {"model_path": "nowhere.safetensors"}},
            "model.model_path: has to be a file or folder that exists, or a Hub id owner/name but is "
            "'nowhere.safetensors'; packaged are ltx2-mini, ltx-video-tiny",
        ),
    ],
)
def test_a_line_says_where_what_and_what_to_do(sections, line):
    assert problems(**sections) == [line]


def test_everything_wrong_is_said_at_once():
    found = problems(lora={"rank": 1, "ranks": 2}, optimization={"steps": -1}, seeds=3)
    assert [line.partition(":")[0] for line in found] == ["lora.rank", "lora.ranks", "optimization.steps", "seeds"]


def test_rules_across_sections_are_all_said():
    found = problems(training_strategy={"name": "video_to_video"}, model={"training_mode": "full"})
    assert [line.partition(":")[0] for line in found] == ["model.training_mode", "validation.reference_videos"]


def test_a_model_may_be_a_file_a_folder_a_packaged_name_or_on_the_hub(file, tmp_path, monkeypatch):
    for path in (file, str(tmp_path), "ltx2-mini", "Lightricks/LTX-2"):
        assert parse_config(settings(model={"model_path": path})).model.model_path == path
    monkeypatch.chdir(tmp_path)
    Path("owner").mkdir()
    assert problems(model={"model_path": "owner/name"})[0].startswith("model.model_path: has to be a file or folder")


def test_words_that_yaml_takes_for_truth_values_are_words():
    found = parse_config(
        settings(acceleration={"mixed_precision_mode": False}, checkpoints={"save_training_state": False})
    )
    assert (found.acceleration.mixed_precision_mode, found.checkpoints.save_training_state) == ("no", "off")


def test_weights_to_start_from_are_a_safetensors_file_or_a_folder(tmp_path):
    (tmp_path / "weights.bin").touch()
    line = f"model.load_checkpoint: has to be a .safetensors file or a folder but is '{tmp_path / 'weights.bin'}'"
    assert problems(model={"load_checkpoint": str(tmp_path / "weights.bin")}) == [line]
    assert parse_config(settings(model={"load_checkpoint": str(tmp_path)})).model.load_checkpoint == tmp_path


def test_an_output_folder_that_is_given_is_absolute():
    assert parse_config(settings(output_dir="~/runs")).output_dir == Path.home() / "runs"
    assert parse_config(settings(output_dir="runs")).output_dir == Path.cwd() / "runs"


def test_diffusers_name_for_kept_checkpoints_is_taken():
    assert parse_config(settings(checkpoints={"checkpoints_total_limit": 5})).checkpoints.keep_last_n == 5
    line = "checkpoints: keep_last_n and checkpoints_total_limit are the same; give one of them"
    assert problems(checkpoints={"checkpoints_total_limit": 5, "keep_last_n": 4}) == [line]


@pytest.mark.parametrize("name", [name for name in STRATEGY_SECTIONS if name not in ("flexible", "video_to_video")])
def test_every_strategy_needs_nothing_but_its_name(name):
    found = parse_config(settings(training_strategy={"name": name})).training_strategy
    assert (type(found), found.name) == (STRATEGY_SECTIONS[name], name)


def test_flexible_conditions_are_told_by_their_type():
    video = {
        "is_generated": True,
        "latents_dir": "latents",
        "conditions": [
            {"type": "first_frame"},
            {"type": "prefix", "temporal_boundary": 2, "probability": 0.5},
            {"type": "spatial_crop", "spatial_region": [0, 0, 64, 32]},
            {"type": "mask", "mask_dir": "video_masks"},
            {"type": "reference", "latents_dir": "reference_latents"},
        ],
    }
    section = parse_config(settings(training_strategy={"name": "flexible", "video": video})).training_strategy
    assert [one.type for one in section.video.conditions] == [one["type"] for one in video["conditions"]]
    assert [one.probability for one in section.video.conditions] == [1.0, 0.5, 1.0, 1.0, 1.0]
    assert section.audio is None


@pytest.mark.parametrize(
    ("condition", "line"),
    [
        (
            {"type": "prefix"},
            "video.conditions.0.temporal_boundary: is missing; latent frames, or audio steps, that are given",
        ),
        (
            {"type": "prefix", "temporal_boundary": 0},
            "video.conditions.0.temporal_boundary: has to be at least 1 but is 0",
        ),
        (
            {"type": "first_frame", "probabilty": 1},
            "video.conditions.0.probabilty: unknown key; did you mean probability?",
        ),
        ({"type": "sufix"}, "video.conditions.0: has to have a `type` among "),
        ({}, "video.conditions.0: has to have a `type` but is {}"),
        (
            {"type": "spatial_crop", "spatial_region": [4, 0, 4, 8]},
            "video.conditions.0.spatial_region: has to be [y1, x1, y2, x2] with 0 <= y1 < y2 and 0 <= x1 < x2 but is "
            "[4, 0, 4, 8]",
        ),
    ],
)
def test_a_wrong_condition_is_named_without_the_tags_of_the_schema(condition, line):
    video = {"is_generated": True, "latents_dir": "latents", "conditions": [condition]}
    (found,) = problems(training_strategy={"name": "flexible", "video": video})
    assert found.startswith(f"training_strategy.{line}")


def test_sound_takes_no_conditions_of_pictures():
    audio = {"is_generated": True, "latents_dir": "audio_latents", "conditions": [{"type": "first_frame"}]}
    (found,) = problems(training_strategy={"name": "flexible", "audio": audio})
    assert found.startswith("training_strategy.audio.conditions.0: has to have a `type` among 'prefix'")


@pytest.fixture
def own_strategy():
    class Section(StrategySection):
        name: str = "mine"
        strength: float = 1.0

    register_strategy_section("mine", Section)
    register_strategy_section("loose")
    yield Section
    del STRATEGY_SECTIONS["mine"], STRATEGY_SECTIONS["loose"]


def test_strategies_of_ones_own_are_taken(own_strategy):
    section = parse_config(settings(training_strategy={"name": "mine", "strength": 2})).training_strategy
    assert (type(section), section.strength) == (own_strategy, 2.0)
    line = "training_strategy.strenght: unknown key; did you mean strength?"
    assert problems(training_strategy={"name": "mine", "strenght": 2}) == [line]
    loose = parse_config(settings(training_strategy={"name": "loose", "anything": [1]})).training_strategy
    assert loose.anything == [1]


# --- validation ---


def guidance(generation: str = "2.0", **values) -> Guidance:
    return parse_config(settings(validation=values)).validation.guidance(generation)


def test_guidance_that_is_not_given_is_that_of_the_generation():
    assert guidance("2.0") == Guidance(4.0, 4.0, 1.0, 1.0, [29], 0.0, 1.0, 1.0)
    assert guidance("2.3") == Guidance(3.0, 7.0, 1.0, 1.0, [28], 0.7, 3.0, 3.0)


def test_older_keys_of_guidance_mean_both_streams():
    assert guidance("2.0", guidance_scale=2, stg_scale=0.5)[:4] == (2.0, 2.0, 0.5, 0.5)
    assert guidance("2.0", stg_scale=0.5, stg_mode="stg_v")[2:4] == (0.5, 0.0)
    assert guidance("2.0", stg_mode="stg_v")[2:4] == (1.0, 0.0)
    assert guidance("2.3", guidance_scale=2) == Guidance(2.0, 2.0, 1.0, 1.0, [28], 0.7, 3.0, 3.0)


def test_newer_keys_of_guidance_bring_the_newer_defaults():
    assert guidance("2.0", audio_cfg_scale=5) == Guidance(3.0, 5.0, 1.0, 1.0, [28], 0.7, 3.0, 3.0)
    assert guidance("2.0", video_stg_scale=0, stg_blocks=None)[2:5] == (0.0, 1.0, None)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"guidance_scale": 4, "audio_cfg_scale": 7},
            "validation: guidance_scale and audio_cfg_scale exclude each other; give one of them",
        ),
        (
            {"stg_mode": "stg_v", "video_stg_scale": 1},
            "validation: stg_mode and video_stg_scale exclude each other; give one of them",
        ),
        (
            {"prompts": ["a"], "samples": [{"prompt": "b"}]},
            "validation: samples and prompts exclude each other; write every prompt as a sample",
        ),
        (
            {"prompts": ["a"], "generate_video": False, "generate_audio": False},
            "validation: generate_video and generate_audio are both false; set one to true, or interval to null",
        ),
    ],
)
def test_settings_of_two_generations_exclude_each_other(values, line):
    assert problems(validation=values) == [line]


def test_prompts_pictures_and_references_become_samples(file):
    section = parse_config(
        settings(
            validation={
                "prompts": ["a", "b"],
                "images": [file, file],
                "reference_videos": [file, file],
                "reference_downscale_factor": 2,
                "video_dims": [512, 512, 49],
                "include_reference_in_output": True,
                "seed": 7,
            }
        )
    ).validation
    first, second = section.all_samples()
    assert (first.prompt, second.prompt, first.video_dims, first.seed) == ("a", "b", (512, 512, 49), 7)
    picture, reference = first.conditions
    assert (picture.type, picture.image_or_video) == ("first_frame", Path(file))
    assert (reference.type, reference.video, reference.downscale_factor) == ("reference", Path(file), 2)
    assert reference.include_in_output is True


def test_samples_have_sizes_and_seeds_of_their_own(file):
    samples = [
        {"prompt": "a", "video_dims": [64, 64, 9], "seed": 1},
        {"prompt": "b", "conditions": [{"type": "prefix", "video": file, "num_frames": 9}]},
    ]
    found = parse_config(settings(validation={"samples": samples})).validation.all_samples()
    assert [(one.video_dims, one.seed) for one in found] == [((64, 64, 9), 1), ((960, 544, 97), 42)]
    assert found[1].conditions[0].num_frames == 9


def test_samples_with_references_do_for_an_ic_lora(file):
    samples = [{"prompt": "a", "conditions": [{"type": "reference", "video": file}]}]
    parse_config(settings(training_strategy={"name": "video_to_video"}, validation={"samples": samples}))
    (line,) = problems(training_strategy={"name": "video_to_video"}, validation={"samples": [{"prompt": "a"}]})
    assert line.startswith("validation.reference_videos: video_to_video needs one per prompt")


def test_conditions_of_samples_do_not_contradict_each_other(file):
    whole, sound = {"type": "video_to_audio", "video": file}, {"type": "audio_to_video", "audio": file}
    place = "validation.samples.0"
    assert (
        sample_problem(whole, sound)
        == f"{place}: video_to_audio and audio_to_video exclude each other; give one of them"
    )
    assert sample_problem(whole, {"type": "first_frame", "image_or_video": file}) == (
        f"{place}: video_to_audio gives the whole video, which may have no other condition"
    )
    assert sample_problem({"type": "suffix", "video": file, "audio": file}) == (
        f"{place}.conditions.0: video and audio are both given, or neither is; give one of them"
    )
    assert sample_problem({"type": "prefix", "video": file, "num_frames": 9, "duration": 1.0}) == (
        f"{place}.conditions.0: num_frames and duration exclude each other; give one of them"
    )
    assert sample_problem({"type": "first_frame", "image_or_video": "gone.png"}) == (
        f"{place}.conditions.0.image_or_video: has to be a file or folder that exists but is 'gone.png'"
    )
    both = [whole, {"type": "prefix", "audio": file, "duration": 0.5}]
    assert (
        len(parse_config(settings(validation={"samples": [{"prompt": "a", "conditions": both}]})).validation.samples)
        == 1
    )
