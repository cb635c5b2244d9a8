"""`LTX2Pipeline` computes what diffusers' pipeline of that name computes, and what was recorded from it."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLLTX2Video as DiffusersVideoVAE
from diffusers import FlowMatchEulerDiscreteScheduler

from ltx2_diffusers import AutoencoderKLLTX2Video, LTX2Pipeline
from tests.golden_data import (
    EQUAL_MODELS,
    EQUAL_PIPELINES,
    GOLDEN_DIR,
    assert_within,
    golden_cases,
    load_metadata,
    load_tensors,
    plant_error,
)
from tests.pipelines.tiny import (
    ALL_GUIDANCE,
    CFG,
    EXPLICIT,
    NEGATIVE,
    NO_GUIDANCE,
    PROMPT,
    load,
    max_difference,
    ours,
    seeded,
    theirs,
)
from tests.pipelines.watching import calls_of

VERSIONS = ("2.0", "2.3")


def compare(name: str, seeds: tuple[int, ...], **kwargs) -> float:
    """Largest difference of the two pipelines for equal arguments and equal seeds."""
    kwargs = {**EXPLICIT, **kwargs}
    if kwargs.get("prompt", PROMPT) is not None:
        kwargs.setdefault("prompt", PROMPT)
    return max_difference(
        ours(name)(**kwargs, generator=seeded(*seeds)), theirs(name)(**kwargs, generator=seeded(*seeds))
    )


# --- recorded outputs ---


def recorded_pipeline(name: str) -> LTX2Pipeline:
    folder = GOLDEN_DIR / "checkpoint" / "expected_diffusers" / name
    return LTX2Pipeline.from_single_file(
        GOLDEN_DIR / "checkpoint" / f"{name}.safetensors",
        text_encoder=folder,
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler"),
        dtype=torch.float32,
    )


def assert_recorded_outputs(pipe: LTX2Pipeline, case: Path) -> None:
    pipe.set_progress_bar_config(disable=True)
    expected = load_tensors(case)
    call = json.loads(load_metadata(case)["call"])
    # Recorded with diffusers' defaults; its STG pass perturbed block 28 of 2 blocks, which changes nothing.
    call |= {
        "stg_scale": 0.0,
        "audio_stg_scale": 0.0,
        "modality_scale": 3.0,
        "guidance_rescale": 0.7,
        "audio_guidance_scale": 7.0,
        "audio_modality_scale": 3.0,
        "audio_guidance_rescale": 0.7,
        "use_cross_timestep": False,
    }
    generator_seed = call.pop("generator_seed")
    latents = pipe(**call, output_type="latent", generator=seeded(generator_seed))
    assert_within(latents.frames, expected["expected.video_latents"], "pipeline")
    assert_within(latents.audio, expected["expected.audio_latents"], "pipeline")
    output = pipe(**call, output_type="np", generator=seeded(generator_seed))
    pixels = torch.as_tensor(output.frames)[:, :, ::4, ::4]
    assert_within(pixels, expected["expected.frames_every_4th_pixel"], "pipeline")
    sound = "pipeline, 2.3 sound" if "2.3" in case.stem else "pipeline"
    assert_within(output.audio, expected["expected.audio"], sound)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("case", golden_cases("checkpoint/outputs", "*_pipeline.safetensors"), ids=lambda c: c.stem)
@pytest.mark.parametrize("source", ["single file", "folder"])
def test_recorded_pipeline_call(case: Path, source: str, tmp_path):
    pipe = recorded_pipeline(case.stem.removesuffix("_pipeline"))
    if source == "folder":
        pipe.save_pretrained(tmp_path)
        pipe = load(tmp_path)
    assert_recorded_outputs(pipe, case)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("version", "component", "matrix"),
    [
        ("2", "transformer", "transformer_blocks.0.audio_ff.net.2"),
        ("2", "vae", "decoder.conv_in.conv"),
        ("2", "vocoder", "conv_in"),
        ("2.3", "transformer", "transformer_blocks.0.ff.net.2"),
        ("2.3", "vocoder", "vocoder.conv_in"),
    ],
)
def test_recorded_calls_notice_an_error_in_one_matrix(version, component, matrix):
    pipe = recorded_pipeline(f"ltx-{version}-tiny-dev")
    plant_error(getattr(pipe, component).get_submodule(matrix).weight)
    with pytest.raises(AssertionError, match=r"pipeline.*differs by"):
        assert_recorded_outputs(
            pipe, GOLDEN_DIR / "checkpoint/outputs" / f"ltx-{version}-tiny-dev_pipeline.safetensors"
        )


# --- parity with diffusers ---


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("guidance", [NO_GUIDANCE, CFG], ids=["unguided", "cfg"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_same_latents_as_diffusers(name, guidance, batch_size):
    prompts = [PROMPT, "Waves."][:batch_size]
    negative = [NEGATIVE, "noise, hum"][:batch_size]
    assert compare(name, (1,), prompt=prompts, negative_prompt=negative, **guidance) <= EQUAL_PIPELINES


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("output_type", ["np", "pt"])
def test_same_frames_and_sound_as_diffusers(name, output_type):
    assert compare(name, (2,), negative_prompt=NEGATIVE, **CFG | {"output_type": output_type}) <= EQUAL_PIPELINES


def test_same_images_as_diffusers():
    kwargs = {**EXPLICIT, **CFG, "output_type": "pil", "prompt": PROMPT}
    actual, expected = (pipe(**kwargs, generator=seeded(2)).frames for pipe in (ours(), theirs()))
    images = [torch.tensor(list(zip(*map(list, (a.tobytes(), e.tobytes()))))) for a, e in zip(actual[0], expected[0])]
    # A value at the edge between two bytes may fall to either side.
    assert all((pair[:, 0] - pair[:, 1]).abs().max() <= 1 for pair in images)


def test_all_guidance_terms_of_2_3():
    assert compare("2.3", (3,), negative_prompt=NEGATIVE, **ALL_GUIDANCE) <= EQUAL_PIPELINES


@pytest.mark.parametrize(
    "term",
    [
        {"guidance_scale": 4.0},
        {"audio_guidance_scale": 4.0},
        # diffusers perturbs both streams if either asks for it, and reads an audio scale of 0.0 as the video's.
        {"stg_scale": 1.5, "audio_stg_scale": 0.5, "spatio_temporal_guidance_blocks": [0]},
        {"audio_stg_scale": 1.5, "stg_scale": 0.5, "spatio_temporal_guidance_blocks": [0, 1]},
        {"modality_scale": 2.0},
        {"audio_modality_scale": 2.0, "audio_guidance_rescale": 0.5},
    ],
    ids=lambda term: next(iter(term)),
)
def test_each_guidance_term_alone(term):
    assert compare("2.3", (4,), **NO_GUIDANCE | term) <= EQUAL_PIPELINES


@pytest.mark.parametrize(
    "arguments",
    [
        # With several prompts diffusers gives the copies other prompts' attention masks.
        {"num_videos_per_prompt": 2},
        {"frame_rate": 30.0, "num_frames": 17},
        {"frame_rate": 23.976},
        {"motion_speed": 0.5},
        {"use_cross_timestep": True},
        {"sigmas": [1.0, 0.6, 0.3]},
        {"height": 32, "width": 32, "num_frames": 1},
        {"prompt": ""},
        {"prompt": "  surrounded by blanks \n"},
        {"prompt": "word " * 100},
        {"negative_prompt": None},
        {"attention_kwargs": {}},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_arguments_mean_what_they_mean_in_diffusers(arguments):
    assert compare("2.0", (5,), **CFG | arguments) <= EQUAL_PIPELINES


@pytest.mark.parametrize("per_prompt", [1, 2])
def test_one_generator_per_video(per_prompt):
    prompts = [PROMPT, "Waves."][: 2 // per_prompt]
    assert compare("2.0", (6, 7), prompt=prompts, num_videos_per_prompt=per_prompt, **CFG) <= EQUAL_PIPELINES


@pytest.mark.parametrize("noise_scale", [0.0, 0.4])
@pytest.mark.parametrize("packed", [False, True])
def test_given_latents(packed, noise_scale):
    video = torch.randn(1, ours().transformer.config.in_channels, 2, 2, 3, generator=seeded(8))
    audio = theirs()(**EXPLICIT, **NO_GUIDANCE, prompt=PROMPT, generator=seeded(9)).audio
    if packed:
        video, audio = video.flatten(2).transpose(1, 2), audio.transpose(1, 2).flatten(2)
    given = {"latents": video, "audio_latents": audio, "noise_scale": noise_scale}
    assert compare("2.0", (10,), **CFG, **given) <= EQUAL_PIPELINES


@pytest.mark.parametrize("encoder", [ours, theirs], ids=["ours", "diffusers"])
@pytest.mark.parametrize("flat", [True, False], ids=["flat", "stacked"])
def test_precomputed_embeddings_of_either_library(encoder, flat):
    embeds, mask, negative, negative_mask = encoder().encode_prompt(
        [PROMPT, "Waves."], [NEGATIVE, ""], max_sequence_length=64, device=torch.device("cpu")
    )
    if not flat:
        states = ours().connectors.config.text_proj_in_factor
        embeds, negative = (value.unflatten(2, (-1, states)) for value in (embeds, negative))
    given = {
        "prompt": None,
        "prompt_embeds": embeds,
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": negative,
        "negative_prompt_attention_mask": negative_mask,
    }
    assert compare("2.0", (11,), **CFG, **given) <= EQUAL_PIPELINES


def given_embeddings(length: int, prompts=PROMPT, negative=NEGATIVE) -> dict[str, torch.Tensor | None]:
    embeds = ours().encode_prompt(prompts, negative, max_sequence_length=length)
    names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    return {"prompt": None, **dict(zip(names, embeds))}


@pytest.mark.parametrize("guidance", [CFG, ALL_GUIDANCE, NO_GUIDANCE], ids=["cfg", "all", "none"])
def test_given_embeddings_keep_their_length(guidance):
    call = {**guidance, **given_embeddings(32), "max_sequence_length": 1024}
    with calls_of(ours("2.0").connectors) as connected:
        # diffusers perturbs nothing on 2.0 weights.
        assert compare("2.0", (11,), **call | {"stg_scale": 0.0, "audio_stg_scale": 0.0}) <= EQUAL_PIPELINES
    assert len(connected) == 1


def test_given_embeddings_are_filled_up_to_whole_sets_of_registers():
    call = {**EXPLICIT, **CFG}
    odd = ours()(**call | given_embeddings(20), generator=seeded(11))
    assert max_difference(odd, ours()(**call | given_embeddings(32), generator=seeded(11))) <= EQUAL_PIPELINES


def test_a_text_beside_given_embeddings_takes_their_length():
    embeds = given_embeddings(32)
    texts = {"negative_prompt_embeds": None, "negative_prompt_attention_mask": None, "negative_prompt": NEGATIVE}
    call = {**EXPLICIT, **CFG, **embeds}
    mixed = ours()(**call | texts, generator=seeded(11))
    assert max_difference(mixed, ours()(**call, generator=seeded(11))) <= EQUAL_PIPELINES


def test_encoded_prompts_agree_where_the_mask_is_set():
    arguments = {"prompt": [PROMPT, "Waves."], "negative_prompt": NEGATIVE}
    actual = ours().encode_prompt(**arguments, max_sequence_length=64)
    expected = theirs().encode_prompt(**arguments, max_sequence_length=64, device=torch.device("cpu"))
    for index in (0, 2):
        assert torch.equal(actual[index + 1].bool(), expected[index + 1].bool())
        valid = expected[index + 1].bool()
        torch.testing.assert_close(actual[index][valid], expected[index][valid], atol=EQUAL_MODELS, rtol=0)
        assert not actual[index][~valid].any()


def test_encoded_prompts_are_repeated_one_by_one():
    single = ours().encode_prompt([PROMPT, "Waves."], max_sequence_length=64)
    repeated = ours().encode_prompt([PROMPT, "Waves."], max_sequence_length=64, num_videos_per_prompt=2)
    for one, many in zip(single, repeated):
        assert torch.equal(many, one[[0, 0, 1, 1]])


def test_a_decoder_with_timestep_conditioning(tmp_path):
    config = {**ours().vae.config, "timestep_conditioning": True, "decoder_inject_noise": [False] * 4}
    torch.manual_seed(0)
    vae = DiffusersVideoVAE.from_config(config).eval()
    vae.save_pretrained(tmp_path)
    mine = load(vae=AutoencoderKLLTX2Video.from_pretrained(tmp_path))
    reference = load(pipeline_class=type(theirs()), vae=vae)
    for arguments in ({"decode_timestep": 0.05}, {"decode_timestep": [0.05], "decode_noise_scale": 0.1}):
        kwargs = {**EXPLICIT, **NO_GUIDANCE, **arguments, "output_type": "np", "prompt": PROMPT}
        actual, expected = mine(**kwargs, generator=seeded(12)), reference(**kwargs, generator=seeded(12))
        assert max_difference(actual, expected) <= EQUAL_PIPELINES
