"""What a call says and does not read is refused before anything runs."""

import pytest
import torch

from ltx2_diffusers import (
    LTX2DistilledPipeline,
    LTX2ImageToVideoPipeline,
    LTX2InContextPipeline,
    LTX2LatentUpsamplePipeline,
    LTX2RetakePipeline,
    LTX2TwoStagePipeline,
    LTX2VideoCondition,
)
from ltx2_diffusers.pipelines.arguments import Stage
from tests.pipelines.recipes import CALL, CLIP, PICTURE, RATE, SOUND, no_computation, recipe, staged

TWO = LTX2TwoStagePipeline
ONE_STAGE = CALL | {"two_stage": False}
RETAKE = {name: value for name, value in CALL.items() if name not in ("height", "width", "num_frames")}
RETAKE |= {"video": CLIP, "start_s": 0.2, "end_s": 0.5}
DISTILLED = {name: value for name, value in ONE_STAGE.items() if name != "num_inference_steps"}
LATENTS = torch.zeros(1, 128, 2, 2, 2)
LENGTH = {"latents": LATENTS, "output_type": "latent"}


@pytest.mark.parametrize(
    ("pipeline_class", "call", "said", "message"),
    [
        (
            TWO,
            ONE_STAGE,
            {"stage_2_sigmas": [0.5]},
            r"`stage_2_sigmas` is given \(\[0\.5\]\), but this call has one stage",
        ),
        (TWO, ONE_STAGE, {"stage_2_adapters": {"nope": 1.0}}, r"`stage_2_adapters` .* one stage"),
        (TWO, ONE_STAGE, {"stage_2_adapters": {}}, r"`stage_2_adapters` .* one stage"),
        (LTX2RetakePipeline, RETAKE, {"stage_2_adapters": {"nope": 1.0}}, r"`stage_2_adapters` .* one stage"),
        (TWO, ONE_STAGE, {"stage_1_adapters": {"nope": 1.0}}, r"no LoRA adapter 'nope' .* `stage_1_adapters`"),
        (LTX2RetakePipeline, RETAKE, {"stage_1_adapters": {"nope": 1.0}}, "no LoRA adapter 'nope'"),
        (LTX2DistilledPipeline, DISTILLED, {"stage_2_sigmas": [0.5]}, r"`stage_2_sigmas` .* one stage"),
        (TWO, CALL, {"stages": [Stage()], "sigmas": [1.0]}, r"`sigmas` .* `stages` are given"),
        (
            TWO,
            CALL,
            {"stages": [Stage()], "stage_1_adapters": {"x": 1.0}},
            r"`stage_1_adapters` .* `stages` are given",
        ),
        (TWO, CALL | {"stage_2_adapters": {}}, {"stage_2_sigmas": []}, "stage_2_sigmas must hold at least one"),
        (TWO, CALL, {"stages": [Stage()], "sampler": "euler"}, r"`sampler` .* `stages` are given"),
        (TWO, CALL, {"stages": [Stage()], "guidance_scale": 3.0}, r"`guidance_scale` .* `stages` are given"),
        (
            TWO,
            CALL,
            {"stages": [Stage(transformer="vae")]},
            "`transformer` of a stage is 'vae', which is no transformer",
        ),
        (TWO, CALL, {"stages": [Stage(upsampler="vae")]}, "`upsampler` of a stage is 'vae', which is no upsampler"),
        (TWO, ONE_STAGE, {"generate_audio": False, "audio_guidance_scale": 5.0}, r"`audio_guidance_scale` .* no such"),
        (LTX2RetakePipeline, RETAKE, {"height": 0}, "`height` has to be divisible by 32 but is 0"),
        (LTX2RetakePipeline, RETAKE, {"num_frames": float("nan")}, "`num_frames` has to be a whole number but is nan"),
        (TWO, ONE_STAGE, {"sampling_rate": RATE}, "`sampling_rate` is given .* there is no `audio`"),
        (TWO, ONE_STAGE, {"audio_fit": "pad"}, "`audio_fit` is given .* there is no `audio`"),
        (TWO, ONE_STAGE, {"audio_cond_noise_scale": 0.5}, "`audio_cond_noise_scale` is given .* there is no `audio`"),
        (TWO, ONE_STAGE, {"audio": "sound.wav", "sampling_rate": RATE}, "`sampling_rate` is 24000, .* is a file"),
        (
            TWO,
            ONE_STAGE,
            {"audio": SOUND * float("nan"), "sampling_rate": RATE},
            "`audio` holds values that are not finite",
        ),
        (LTX2InContextPipeline, CALL, {"conditioning_attention_strength": 0.5}, "there are no `reference_conditions`"),
        (LTX2InContextPipeline, CALL, {"conditioning_attention_strength": 2.0}, "`conditioning_attention_strength`"),
        (
            LTX2ImageToVideoPipeline,
            CALL,
            {"latents": LATENTS, "image_crf": 0},
            "`image_crf` is 0, but `image` is None",
        ),
        (TWO, ONE_STAGE, {"image": torch.zeros(3, 4, 5, 6)}, "`image` has to hold RGB frames"),
        (
            LTX2RetakePipeline,
            RETAKE,
            {"region": torch.full((64, 64), float("nan"))},
            "`region` has to be between 0 and 1",
        ),
        (
            TWO,
            ONE_STAGE,
            {"conditions": LTX2VideoCondition(PICTURE, strength=float("nan"))},
            "`strength` .* but is nan",
        ),
        (TWO, ONE_STAGE, {"conditions": LTX2VideoCondition(PICTURE, index="1")}, "`index` .* but is '1'; use 1"),
    ],
)
def test_calls(pipeline_class, call, said, message):
    pipe = recipe(pipeline_class)
    with no_computation(pipe), pytest.raises(ValueError, match=message):
        pipe(**{**call, **said})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            {**LENGTH, "num_frames": 17},
            r"`num_frames` is 17, which says nothing true of `latents` \(1, 128, 2, 2, 2\)",
        ),
        ({**LENGTH, "height": 96}, "`height` is 96"),
        ({**LENGTH, "spatial_patch_size": 2}, "`spatial_patch_size` is 2"),
        ({**LENGTH, "decode_timestep": {}}, "`decode_timestep` has to be a finite number or a list of finite numbers"),
        ({**LENGTH, "latents": LATENTS * float("nan")}, "`latents` holds values that are not finite"),
        ({"video": CLIP[:9], "latents_normalized": True}, "`latents_normalized` is True, but `video` is given"),
        (
            {"video": CLIP[:9], "height": 64, "width": 64, "num_frames": 17},
            "`num_frames` is 17, but `video` has 9 frames",
        ),
    ],
)
def test_enlarging(call, message):
    pipe = LTX2LatentUpsamplePipeline(staged().vae, staged().latent_upsampler)
    with no_computation(pipe), pytest.raises(ValueError, match=message):
        pipe(**call)


def test_what_is_true_of_latents_may_be_said():
    """As diffusers takes it."""
    pipe = LTX2LatentUpsamplePipeline(staged().vae, staged().latent_upsampler)
    sizes = {"height": 64, "width": 64, "num_frames": 9}
    assert torch.equal(pipe(**LENGTH, **sizes).frames, pipe(**LENGTH).frames)


def test_neutral_scales_of_a_stream_without_guidance_may_be_said():
    pipe = recipe(TWO)
    output = pipe(**ONE_STAGE, guidance_scale=1.0, generate_audio=False, audio_guidance_scale=1.0)
    assert output.audio is None
