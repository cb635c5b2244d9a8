"""Modular pipelines: numbers of the other pipelines and of diffusers' modular ones, loading, exchange of parts, errors."""

import json
import logging
import pickle
import re
from functools import cache

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import ClassifierFreeGuidance, SequentialPipelineBlocks, SkipLayerGuidance
from diffusers.pipelines import ltx2 as theirs
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

import ltx2_diffusers as ours
from ltx2_diffusers import LTX2AutoBlocks, LTX2ModularPipeline, LTX2Scheduler, LTX25ModularPipeline
from ltx2_diffusers.modular.declarations import Leaf
from ltx2_diffusers.modular.text import LTX2TextEncoderStep
from tests.golden_data import EQUAL_PIPELINES
from tests.pipelines import tiny
from tests.tiny_checkpoints import tiny_checkpoint

VERSION = "2.3"
SCALES = {"guidance_scale": 3.0, "stg_scale": 1.0, "modality_scale": 3.0, "guidance_rescale": 0.7}
AUDIO_SCALES = {f"audio_{name}": value for name, value in SCALES.items()} | {"audio_guidance_scale": 7.0}
CALL = {
    "prompt": tiny.PROMPT,
    "negative_prompt": tiny.NEGATIVE,
    "height": 64,
    "width": 64,
    "num_frames": 9,
    "num_inference_steps": 2,
    "max_sequence_length": 64,
    "output_type": "latent",
    "use_cross_timestep": False,
}
# What a test exchanges is put back by it.
PICTURES = [
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)) for seed in (0, 1)
]


def loaded(pipe):
    pipe.load_components(dtype=torch.float32)
    for core in pipe._blocks.sub_blocks["denoise"].sub_blocks.values():
        core.sub_blocks["denoise"].set_progress_bar_config(disable=True)
    guide(pipe)
    return pipe


def guide(pipe, **changes):
    """The default guiders, but for a block that the tiny transformer has."""
    pipe.update_components(
        guider=pipe.guider.new(**{"spatio_temporal_guidance_blocks": [1], "stop": 1.0, **SCALES, **changes}),
        audio_guider=pipe.audio_guider.new(**{**SCALES, "guidance_scale": 7.0, **changes}),
    )


@cache
def modular():
    return loaded(LTX2ModularPipeline.from_pretrained(tiny_checkpoint(VERSION)))


@cache
def their_modular():
    return loaded(diffusers.LTX2AutoBlocks().init_pipeline(str(tiny_checkpoint(VERSION))))


def result(pipe, **changes):
    return pipe(**{**CALL, "generator": tiny.seeded(0), **changes}, output=["videos", "audio"])


def difference(one, other):
    return max((one[name].float() - other[name].float()).abs().max().item() for name in ("videos", "audio"))


def given(library, workflow):
    """What makes a call one of a workflow, in the classes of a library."""
    conditions = [
        library.LTX2VideoCondition(PICTURES[0], crf=0),
        library.LTX2VideoCondition([PICTURES[1]], index=1, crf=0),
    ]
    references = [library.LTX2ReferenceCondition([PICTURES[0]] * 9), library.LTX2ReferenceCondition([PICTURES[1]])]
    return {
        "text2video": {},
        "image2video": {"image": PICTURES[0], "image_crf": 0},
        "condition": {"conditions": conditions},
        "in_context": {
            "conditions": conditions,
            "reference_conditions": references,
            "conditioning_attention_strength": 0.0,
        },
    }[workflow]


WORKFLOWS = {
    "text2video": "LTX2Pipeline",
    "image2video": "LTX2ImageToVideoPipeline",
    "condition": "LTX2ConditionPipeline",
    "in_context": "LTX2InContextPipeline",
}


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_blocks_make_the_very_clips_of_the_pipelines(workflow):
    made = result(modular(), **given(ours, workflow))
    pipe = tiny.sibling(VERSION, getattr(ours, WORKFLOWS[workflow]))
    scales = {**SCALES, **AUDIO_SCALES, "spatio_temporal_guidance_blocks": [1]}
    other = pipe(**CALL, **given(ours, workflow), **scales, generator=tiny.seeded(0))
    assert made["videos"].equal(other.frames)
    assert made["audio"].equal(other.audio)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_numbers_of_diffusers(workflow):
    """Rescaling aside, in which tokens that are given count otherwise there."""
    rescale = {} if workflow == "text2video" else {"guidance_rescale": 0.0}
    mine, other = modular(), their_modular()
    try:
        guide(mine, **rescale)
        guide(other, **rescale)
        made, expected = (result(pipe, **given(lib, workflow)) for pipe, lib in ((mine, ours), (other, theirs)))
        assert difference(made, expected) < EQUAL_PIPELINES
    finally:
        guide(mine)
        guide(other)


def test_numbers_of_diffusers_from_given_latents():
    sizes = modular().sizes
    changes = {
        "sigmas": [0.8, 0.4],
        "noise_scale": 0.5,
        "latents": torch.randn(1, sizes.channels, 2, 2, 2, generator=tiny.seeded(3)),
        "audio_latents": torch.randn(tuple(sizes.audio_shape(1, 9 / 24)), generator=tiny.seeded(4)),
    }
    assert difference(result(modular(), **changes), result(their_modular(), **changes)) < EQUAL_PIPELINES


@pytest.mark.parametrize(
    "changes", [{"output_type": "pt"}, {"prompt": ["a", "b"], "num_videos_per_prompt": 2}], ids=str
)
def test_numbers_of_diffusers_in_other_calls(changes):
    pipe = modular()
    assert difference(result(pipe, **changes), result(their_modular(), **changes)) < EQUAL_PIPELINES


def test_any_guider_of_diffusers_takes_the_place():
    pipe = modular()
    try:
        pipe.update_components(guider=ClassifierFreeGuidance(3.0), audio_guider=ClassifierFreeGuidance(7.0))
        made = result(pipe)
    finally:
        pipe.update_components(guider=ours.LTX2Guidance(), audio_guider=ours.LTX2Guidance())
        guide(pipe)
    other = tiny.ours(VERSION)(**CALL, **tiny.CFG, generator=tiny.seeded(0))
    assert difference(made, {"videos": other.frames, "audio": other.audio}) < EQUAL_PIPELINES


def test_guiders_of_the_streams_differ_and_stop():
    """One stream guided, in the first of two steps alone: a pass more in that step only."""
    pipe, passes = modular(), []
    hook = pipe.transformer.register_forward_hook(lambda *_: passes.append(1))
    try:
        pipe.update_components(guider=ours.LTX2Guidance(3.0, stop=0.5), audio_guider=ours.LTX2Guidance())
        result(pipe)
        assert len(passes) == 3
    finally:
        hook.remove()
        guide(pipe)


def test_a_workflow_has_its_own_blocks_and_components():
    blocks = LTX2AutoBlocks().get_workflow("text2video")
    assert list(blocks.sub_blocks)[:2] == ["text_encoder.text_encoder", "text_encoder.connectors"]
    assert {"duration", "decode.video_decode"} <= blocks.sub_blocks.keys() and "num_frames" in blocks.input_names
    assert not any("condition" in name for name in blocks.sub_blocks)
    pipe = blocks.init_pipeline(str(tiny_checkpoint(VERSION)))
    assert type(pipe) is LTX2ModularPipeline
    assert not hasattr(pipe, "prompt_enhancer")
    pipe = LTX2ModularPipeline.from_pretrained(tiny_checkpoint(VERSION), workflow="image2video")
    assert [name for name in pipe.blocks.sub_blocks if name.startswith("vae_encoder")] == ["vae_encoder"]
    assert type(ours.LTX25AutoBlocks().init_pipeline()) is LTX25ModularPipeline
    assert ours.LTX25AutoBlocks().get_workflow("condition").model_name == "ltx2.5"


class Brightness(Leaf):
    """Takes the place of the decoder."""

    reads = "latents!"
    writes = "videos"

    def run(self, components, b):  # noqa: ARG002 (blocks are called alike)
        b.videos = b.latents.mean()


def test_blocks_are_exchanged():
    pipe = modular()
    blocks = pipe.blocks
    blocks.sub_blocks["decode"] = Brightness()
    other = blocks.init_pipeline(str(tiny_checkpoint(VERSION)))
    other.update_components(
        **{name: pipe.components[name] for name in other.null_component_names if name in pipe.components}
    )
    guide(other)
    other.set_progress_bar_config(disable=True)
    read = {name: value for name, value in CALL.items() if name != "output_type"}
    state = other(**read, generator=tiny.seeded(0))
    assert state.get("videos").ndim == 0
    assert state.get("batch_size") == 1


def test_a_block_runs_alone():
    """Its state goes on to other blocks."""
    pipe = modular()
    text = pipe.blocks.sub_blocks["text_encoder"].init_pipeline()
    text.update_components(**{name: getattr(pipe, name) for name in ("text_encoder", "tokenizer", "connectors")})
    state = text(prompt=["a", "b"], max_sequence_length=64)
    assert state.get("connector_prompt_embeds").shape[0] == 2
    assert state.get("connector_attention_mask").all()


def test_without_a_modular_index_nothing_is_said_of_what_is_not_there(caplog):
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        pipe = LTX2ModularPipeline.from_pretrained(tiny_checkpoint(VERSION))
        pipe.load_components(names=["scheduler", "vocoder"])
        assert pipe._component_specs["duration_head"].pretrained_model_name_or_path is None
        pipe.load_components(names=["duration_head"])
    finally:
        logger.removeHandler(caplog.handler)
    assert "Failed" not in caplog.text
    assert pipe.duration_head is None
    assert type(pipe.vocoder) is ours.LTX2VocoderWithBWE
    assert isinstance(
        LTX2ModularPipeline(pretrained_model_name_or_path=tiny_checkpoint(VERSION)).blocks, LTX2AutoBlocks
    )


def test_saved_and_loaded_in_both_libraries(tmp_path):
    pipe = LTX2AutoBlocks().init_pipeline(str(tiny_checkpoint(VERSION)))
    pipe.load_components(names=["vae", "vocoder"], dtype=torch.float32)
    pipe.update_components(scheduler=LTX2Scheduler(shift_tokens="actual"))
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "modular_model_index.json").read_text())
    assert (index["_class_name"], index["_blocks_class_name"]) == ("LTX2ModularPipeline", "LTX2AutoBlocks")
    assert index["vocoder"][:2] == ["ltx2", "LTX2VocoderWithBWE"]
    other = diffusers.ModularPipeline.from_pretrained(str(tmp_path))
    other.load_components(names=["vae"])
    assert (type(other), type(other.vae)) == (diffusers.LTX2ModularPipeline, diffusers.AutoencoderKLLTX2Video)
    again = LTX2ModularPipeline.from_pretrained(tmp_path)
    again.load_components(names=["vae", "scheduler", "vocoder"])
    assert (type(again.vae), type(again.vocoder)) == (ours.AutoencoderKLLTX2Video, ours.LTX2VocoderWithBWE)
    assert (type(again.scheduler), again.scheduler.config.shift_tokens) == (LTX2Scheduler, "actual")
    assert all(a.equal(b) for a, b in zip(again.vae.parameters(), pipe.vae.parameters()))


def settings(guider):
    return {name: value for name, value in guider.config.items() if not name.startswith("_")}


@pytest.mark.parametrize(
    ("guider", "audio_guider"),
    [
        (ours.LTX2Guidance(2.5, 0.5, stop=0.5, spatio_temporal_guidance_blocks=[1]), ClassifierFreeGuidance(6.0)),
        (
            SkipLayerGuidance(skip_layer_guidance_layers=[1], skip_layer_guidance_start=0.05),
            ours.LTX2Guidance(enabled=False),
        ),
    ],
    ids=["ours and another", "another and ours"],
)
def test_guiders_come_back_as_they_were_saved(guider, audio_guider, tmp_path):
    """Also after the folder was moved, in both libraries, and after they were exchanged again."""
    pipe = LTX2AutoBlocks().init_pipeline()
    pipe.update_components(guider=guider, audio_guider=audio_guider)
    pipe.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved").rename(tmp_path / "moved")
    again = LTX2ModularPipeline.from_pretrained(tmp_path / "moved")
    for made, saved in ((again.guider, guider), (again.audio_guider, audio_guider)):
        assert (type(made), settings(made)) == (type(saved), settings(saved))
    other = diffusers.ModularPipeline.from_pretrained(str(tmp_path / "moved"))
    other.load_components()
    assert type(other.guider).__name__ == type(guider).__name__
    assert other.audio_guider.config.guidance_scale == audio_guider.config.guidance_scale
    again.update_components(guider=ours.LTX2Guidance(1.5))
    again.save_pretrained(tmp_path / "again")
    third = LTX2AutoBlocks().init_pipeline(str(tmp_path / "again"))
    assert third.guider.config.guidance_scale == 1.5
    assert type(third.audio_guider) is type(audio_guider)


def test_what_diffusers_saved_is_loaded_in_our_classes(tmp_path):
    pipe = diffusers.LTX2AutoBlocks().init_pipeline(str(tiny_checkpoint(VERSION)))
    pipe.load_components(names=["vocoder"])
    pipe.save_pretrained(str(tmp_path), overwrite_modular_index=True)
    again = LTX2ModularPipeline.from_pretrained(tmp_path)
    again.load_components(names=["vocoder", "transformer"])
    assert type(again.vocoder) is ours.LTX2VocoderWithBWE
    assert type(again.transformer) is ours.LTX2VideoTransformer3DModel


def test_statistics_without_an_autoencoder():
    pipe = LTX2AutoBlocks().init_pipeline()
    theirs_without = diffusers.LTX2AutoBlocks().init_pipeline()
    for name in ("latents_mean", "latents_std", "audio_latents_mean", "audio_latents_std"):
        assert getattr(pipe, name).equal(getattr(theirs_without, name))
    assert (pipe.vae_scaling_factor, pipe.audio_hop_length, pipe.vae_spatial_compression_ratio) == (1.0, 160, 32)
    latents = torch.randn(1, 128, 1, 2, 2)
    assert torch.allclose(pipe.denormalized_video(pipe.normalized_video(latents, None)), latents, atol=1e-5)


WRONG = {
    "an unknown input": ({"guidance_scale": 3.0}, "`guidance_scale` is given, but no block reads it"),
    "a misspelt input": ({"promt": "a"}, "did you mean `prompt`?"),
    "a size": ({"height": 70}, "`height` has to be divisible by 32 but is 70"),
    "frames": ({"num_frames": 10}, "`num_frames` has to be 8 * k + 1 but is 10"),
    "no frames": ({"num_frames": None}, "there is no `duration_head` to predict it"),
    "a form": ({"output_type": "png"}, "`output_type` has to be"),
    "both lists": ({"sigmas": [0.5], "timesteps": [500.0]}, "either `sigmas` or `timesteps`"),
    "a place": (
        {"conditions": ours.LTX2VideoCondition(PICTURES[0], frame=4, crf=0)},
        "leave its `mode` and `frame` out",
    ),
    "a prompt": ({"prompt": 3}, "`prompt` has to be a `str`"),
    "generators": ({"generator": [tiny.seeded(0), tiny.seeded(1)]}, "got 2 generators for a batch of 1"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.filterwarnings("ignore")
def test_errors(case):
    changes, message = WRONG[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        result(modular(), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_inference_steps": 0}, "`num_inference_steps`"),
        ({"generator": 3}, "`generator`"),
        ({"decode_timestep": float("nan")}, "`decode_timestep`"),
        ({"decode_noise_scale": [0.0, 2.0]}, "`decode_noise_scale`"),
        ({"noise_scale": 2.0}, "`noise_scale`"),
        ({"sigmas": [0.5, 1.0]}, "sigmas must fall"),
        ({"min_seconds": 2.0}, "`min_seconds` is given (2.0), but `num_frames` too"),
        ({"height": "64"}, "`height` has to be a whole number but is '64'; use 64"),
        ({"attention_kwargs": {"foo": 1.0}}, "`attention_kwargs` holds ['foo']"),
        (
            {"image": PICTURES[0], "conditions": ours.LTX2VideoCondition(PICTURES[1])},
            "but `conditions` take its place",
        ),
        ({"output": 3}, "`output` has to be a `str`"),
        ({"output": "video"}, "`output` names 'video', which no block makes; use 'videos'"),
        ({"image": 3}, "`image` has to be an image"),
        ({"image": PICTURES * 2}, "`image` holds 4 pictures, but there are 1 videos"),
        ({"image": PICTURES[0], "image_crf": 99}, "`image_crf` has to be between 0"),
        ({"conditions": [1]}, "`conditions` has to hold conditions"),
        ({"conditions": ours.LTX2VideoCondition(PICTURES[0], index=7)}, "`index` 7 lies outside the clip"),
        ({"conditions": ours.LTX2VideoCondition(PICTURES[0], frame=4)}, "leave its `mode` and `frame` out"),
        ({"reference_conditions": ours.LTX2ReferenceCondition(3)}, "`frames` has to be an image"),
        ({"latents": torch.zeros(1, 2, 3)}, "`latents` has shape (1, 2, 3)"),
        ({"audio_latents": torch.zeros(1, 2, 3)}, "`audio_latents` has shape (1, 2, 3)"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_later_blocks_read_is_checked_before_the_first_one_runs(changes, message, monkeypatch):
    pipe = modular()
    monkeypatch.setattr(pipe.text_encoder, "forward", lambda *_, **__: pytest.fail("the prompt was encoded"))
    with pytest.raises(ValueError, match=re.escape(message)):
        pipe(**{**CALL, **changes})


def test_values_of_other_kinds_are_read_as_in_the_other_pipelines():
    prompts = ["a red circle", "a blue square"]
    listed = result(modular(), prompt=prompts, sigmas=[1.0, 0.5], height=32)
    other = result(modular(), prompt=tuple(prompts), sigmas=torch.tensor([1.0, 0.5]), height=torch.tensor(32))
    assert all(one.equal(two) for one, two in zip(listed.values(), other.values(), strict=True))


def test_a_length_that_is_predicted_has_to_fit_what_is_given():
    """Also where it is as short as it may be."""
    pipe = LTX25ModularPipeline.from_pretrained(tiny_checkpoint("2.5"))
    pipe.load_components(dtype=torch.float32)
    guide(pipe)
    pipe.text_encoder.forward = lambda *_, **__: pytest.fail("the prompt was encoded")
    call = CALL | {"num_frames": None, "min_seconds": 0.2, "max_seconds": 1.0}
    usual = {"min_seconds": 1.0, "max_seconds": 20.0}
    for changes, message in (
        (
            {"conditions": ours.LTX2VideoCondition(PICTURES[0], index=2)},
            "as short as 9 frames, so raise `min_seconds`",
        ),
        ({"latents": torch.zeros(1, 4, 2, 2, 2)}, "but the length of this call is given"),
        ({**usual, "latents": torch.zeros(1, 4, 2, 2, 2)}, "`num_frames` is None, but `latents` are given"),
        ({**usual, "audio_latents": torch.zeros(1, 4, 9, 2)}, "`num_frames` is None, but `audio_latents` are given"),
        ({"prompt": ["a", "b"]}, "cannot be predicted for 2 prompts"),
        ({"min_seconds": 2.0}, "`min_seconds` has to be less than"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            pipe(**call | changes)


def part(*names):
    """A pipeline of blocks in others, with the components of the whole one."""
    pipe = modular()
    blocks = pipe.blocks
    for name in names:
        blocks = blocks.sub_blocks[name]
    made = blocks.init_pipeline()
    made.update_components(**{name: pipe.components[name] for name in made.null_component_names})
    return made


def test_parts_of_a_pipeline_that_are_given_what_does_not_fit():
    latents, sound = torch.zeros(1, 8, 4), torch.zeros(1, 9, 64)
    tokens = {"audio_latents": sound, "audio_num_frames": 9, "height": 96, "width": 64, "num_frames": 9}
    with pytest.raises(
        ValueError, match=re.escape("`latents` has shape (1, 8, 4), but a video of 9 frames of 96 x 64")
    ):
        part("decode", "default")(**tokens, latents=latents)
    embeds = {f"{name}_embeds": torch.zeros(1, 64, 5) for name in ("prompt", "negative_prompt")}
    masks = {f"{name}_attention_mask": torch.ones(1, 64) for name in ("prompt", "negative_prompt")}
    with pytest.raises(ValueError, match="`prompt_embeds` has 5 values per token"):
        part("text_encoder", "connectors")(**embeds, **masks)


def test_what_no_block_makes_is_missed_before_the_first_one_runs(monkeypatch):
    pipe = modular()
    blocks = ours.LTX2ImageToVideoBlocks().init_pipeline()
    blocks.update_components(**{name: pipe.components[name] for name in blocks.null_component_names})
    guide(blocks)
    monkeypatch.setattr(pipe.text_encoder, "forward", lambda *_, **__: pytest.fail("the prompt was encoded"))
    with pytest.raises(ValueError, match="`image_latents` is not given, but LTX2Image2Video"):
        blocks(**CALL)


class Length(Leaf):
    """Says how long a clip is."""

    writes = "num_frames"

    def run(self, components, b):  # noqa: ARG002 (blocks are called alike)
        b.num_frames = 9


def test_a_block_of_ones_own_says_the_length():
    pipe = modular()
    blocks = pipe.blocks.get_workflow("text2video")
    blocks.sub_blocks["duration"] = Length()
    other = LTX2ModularPipeline(SequentialPipelineBlocks.from_blocks_dict(dict(blocks.sub_blocks)))
    other.update_components(**{name: pipe.components[name] for name in other.null_component_names})
    guide(other)
    other.set_progress_bar_config(disable=True)
    call = {name: value for name, value in CALL.items() if name != "num_frames"}
    assert other(**call, generator=tiny.seeded(0), output="videos").equal(result(pipe)["videos"])


def test_blocks_in_a_pipeline_of_diffusers_say_which_one_runs_them():
    pipe = SequentialPipelineBlocks.from_blocks_dict({"text": LTX2TextEncoderStep()}).init_pipeline()
    with pytest.raises(ValueError, match=re.escape("LTX2ModularPipeline(blocks, repository)")):
        pipe(prompt="a")


def test_an_argument_of_a_guider_that_is_misspelt_is_named():
    with pytest.raises(ValueError, match="`stg_scal` is no argument of LTX2Guidance"):
        modular().guider.new(stg_scal=0.0)


def test_a_checkpoint_of_the_other_family_is_refused():
    with pytest.raises(ValueError, match="load it with LTXVideoPipeline"):
        LTX2ModularPipeline.from_pretrained(ours.packaged_checkpoint("ltx-video-tiny"))


def test_a_pipeline_that_ran_is_pickled():
    pipe = modular()
    made = result(pipe)
    assert difference(result(pickle.loads(pickle.dumps(pipe))), made) == 0.0


def test_missing_components_and_blocks_are_named_before_anything_runs():
    pipe = LTX2ModularPipeline.from_pretrained(tiny_checkpoint(VERSION))
    with pytest.raises(ValueError, match="text_encoder"):
        result(pipe)
    other = modular()
    try:
        other.update_components(guider=other.guider.new(spatio_temporal_guidance_blocks=[28]))
        with pytest.raises(ValueError, match=re.escape("guider.new(spatio_temporal_guidance_blocks=[1])")):
            result(other)
    finally:
        guide(other)


def test_adapters(tmp_path):
    """Of the same methods as those of the other pipelines, on the same components."""
    pipe = LTX2ModularPipeline.from_pretrained(tiny_checkpoint(VERSION))
    pipe.load_components(names=["transformer", "connectors"], dtype=torch.float32)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "one")
    pipe.save_lora_weights(
        tmp_path, transformer_lora_layers=get_peft_model_state_dict(pipe.transformer, adapter_name="one")
    )
    pipe.delete_adapters("one")
    own = {"transformer": pipe.transformer, "connectors": pipe.connectors}
    parts = {name: part for name, part in modular().components.items() if part is not None and name not in own}
    whole = LTX2AutoBlocks().init_pipeline()
    whole.update_components(**{name: part for name, part in (parts | own).items() if "guider" not in name})
    whole.set_progress_bar_config(disable=True)
    guide(whole)
    plain = result(whole, num_inference_steps=2)
    whole.load_lora_weights(tmp_path, adapter_name="two")
    assert whole.get_active_adapters() == ["two"]
    adapted = result(whole)
    assert difference(adapted, plain) > 1e-4
    whole.set_adapters("two", 0.0)
    assert difference(result(whole), plain) < EQUAL_PIPELINES
    whole.unload_lora_weights()
    assert difference(result(whole), plain) == 0


@pytest.mark.gpu
def test_on_a_gpu():
    """The same clip, but for the rounding of its kernels."""
    pipe = loaded(LTX2ModularPipeline.from_pretrained(tiny_checkpoint(VERSION))).to("cuda")
    made = result(pipe)
    assert made["videos"].device.type == "cuda"
    expected = result(modular())
    assert difference({name: part.cpu() for name, part in made.items()}, expected) < 1e-2


def test_a_repository_of_ltx_25():
    """Its diffusion decoder lies beside its index; the clip is as long as its duration head says."""
    pipe = LTX25ModularPipeline.from_pretrained(tiny_checkpoint("2.5"))
    pipe.load_components(dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.update_components(guider=ours.LTX2Guidance(3.0), audio_guider=ours.LTX2Guidance(7.0))
    assert type(pipe.blocks) is ours.LTX25AutoBlocks
    assert type(pipe.diffusion_decoder) is ours.LTX2VideoDiffusionDecoderModel
    call = {name: value for name, value in CALL.items() if name not in ("num_frames", "output_type")}
    bounds = {"min_seconds": 0.2, "max_seconds": 0.5}
    state = pipe(**call, **bounds, sigmas=[1.0, 0.4], output_type="pt", generator=tiny.seeded(0))
    other = tiny.load("2.5")
    output = other(
        **call,
        **bounds,
        **tiny.CFG,
        sigmas=[1.0, 0.4],
        output_type="pt",
        sampler="euler",
        decoder="diffusion",
        generator=tiny.seeded(0),
    )
    assert state.get("num_frames") == output.info["num_frames"] == len(output.frames[0])
    assert (
        difference(
            {name: state.get(name) for name in ("videos", "audio")},
            {"videos": output.frames, "audio": output.audio[..., : state.get("audio").shape[-1]]},
        )
        < EQUAL_PIPELINES
    )
