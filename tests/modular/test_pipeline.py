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
from diffusers import ClassifierFreeGuidance
from diffusers.pipelines import ltx2 as theirs
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

import ltx2_diffusers as ours
from ltx2_diffusers import LTX2AutoBlocks, LTX2ModularPipeline, LTX2Scheduler, LTX25ModularPipeline
from ltx2_diffusers.modular.declarations import Leaf
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
        guider=pipe.guider.new(**{"spatio_temporal_guidance_blocks": [1], **SCALES, **changes}),
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
        ({"output": "video"}, "`output` names 'video', which no block makes; use 'videos'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_later_blocks_read_is_checked_before_the_first_one_runs(changes, message, monkeypatch):
    pipe = modular()
    monkeypatch.setattr(pipe.text_encoder, "forward", lambda *_, **__: pytest.fail("the prompt was encoded"))
    with pytest.raises(ValueError, match=re.escape(message)):
        pipe(**{**CALL, **changes})


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
