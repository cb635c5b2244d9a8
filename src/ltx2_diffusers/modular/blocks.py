"""The blocks of whole pipelines, put together.

Blocks may be exchanged and put in: `blocks.sub_blocks["decode"] = MyDecoder()`.
"""

# diffusers declares what blocks have more narrowly than it reads it.
# ruff: noqa: RUF012
# mypy: disable-error-code="assignment, misc, override"

from typing import Any

from . import decoding, denoising, encoding, preparing, text
from .declarations import Conditional, Sequential

_PROMPT = {"prompt_enhancer": text.LTX2AutoPromptEnhancerStep, "text_encoder": text.LTX2TextConditioningStep}
_TEXT = {**_PROMPT, "duration": text.LTX2AutoDurationStep}
_NOISE = {
    "input": text.LTX2TextInputStep,
    "set_timesteps": preparing.LTX2SetTimestepsStep,
    "prepare_latents": preparing.LTX2PrepareLatentsStep,
}
_SOUND = {
    "prepare_audio_latents": preparing.LTX2PrepareAudioLatentsStep,
    "prepare_coords": preparing.LTX2PrepareCoordsStep,
}
_HELD = {
    "set_timesteps": preparing.LTX2ConditionSetTimestepsStep,
    "prepare_audio_latents": preparing.LTX2ConditionPrepareAudioLatentsStep,
    "prepare_coords": preparing.LTX2ConditionPrepareCoordsStep,
    "denoise": denoising.LTX2ConditionDenoiseStep,
}


class LTX2CoreDenoiseStep(Sequential):
    """Makes a video of text: noise levels, noise, positions, denoising."""

    parts = {**_NOISE, **_SOUND, "denoise": denoising.LTX2DenoiseStep}


class LTX2Image2VideoCoreDenoiseStep(Sequential):
    """The same with a picture in the place of the first frame."""

    parts = {
        **_NOISE,
        "prepare_i2v_latents": preparing.LTX2Image2VideoPrepareLatentsStep,
        **_SOUND,
        "denoise": denoising.LTX2Image2VideoDenoiseStep,
    }


class LTX2ConditionCoreDenoiseStep(Sequential):
    """Makes a video that is held to conditions; noise levels follow from all tokens."""

    parts = {"input": text.LTX2TextInputStep, "prepare_latents": preparing.LTX2ConditionPrepareLatentsStep, **_HELD}


class LTX2InContextCoreDenoiseStep(Sequential):
    """The same with reference videos."""

    parts = {
        "input": text.LTX2TextInputStep,
        "prepare_latents": preparing.LTX2InContextPrepareLatentsStep,
        "attention_mask": preparing.LTX2AutoBuildVideoSelfAttentionMaskStep,
        **_HELD,
    }


class LTX2AutoCoreDenoiseStep(Conditional):
    """Makes a video as its inputs say: with references, with conditions, with a first frame, or of text alone."""

    parts = {
        "in_context": LTX2InContextCoreDenoiseStep,
        "condition": LTX2ConditionCoreDenoiseStep,
        "image2video": LTX2Image2VideoCoreDenoiseStep,
        "text2video": LTX2CoreDenoiseStep,
    }
    block_trigger_inputs = ["reference_conditions", "condition_latents", "image_latents"]
    default_block_name = "text2video"

    def select_block(
        self, reference_conditions: Any = None, condition_latents: Any = None, image_latents: Any = None
    ) -> str:
        if reference_conditions:
            return "in_context"
        if condition_latents is not None:
            return "condition"
        return "text2video" if image_latents is None else "image2video"


class LTX2Blocks(Sequential):
    """Text to video with sound."""

    parts = {**_TEXT, "denoise": LTX2CoreDenoiseStep, "decode": decoding.LTX2DecoderStep}


class LTX2ImageToVideoBlocks(Sequential):
    """Image to video with sound."""

    parts = {
        **_TEXT,
        "vae_encoder": encoding.LTX2AutoVaeEncoderStep,
        "denoise": LTX2Image2VideoCoreDenoiseStep,
        "decode": decoding.LTX2DecoderStep,
    }


class LTX2ConditionBlocks(Sequential):
    """Video with sound that shows pictures and clips at some place."""

    parts = {
        **_TEXT,
        "condition_encoder": encoding.LTX2ConditionEncoderStep,
        "denoise": LTX2ConditionCoreDenoiseStep,
        "decode": decoding.LTX2ConditionDecoderStep,
    }


class LTX2InContextBlocks(Sequential):
    """Video with sound that an IC-LoRA derives from reference videos."""

    parts = {
        **_PROMPT,
        "condition_encoder": encoding.LTX2ConditionEncoderStep,
        "reference_encoder": encoding.LTX2AutoReferenceEncoderStep,
        "denoise": LTX2InContextCoreDenoiseStep,
        "decode": decoding.LTX2ConditionDecoderStep,
    }


class LTX2AutoBlocks(Sequential):
    """Video with sound, as its inputs say: of text, with a first frame, with conditions, or with references.

    `get_workflow` gives the blocks of one of these alone: `"text2video"`, `"image2video"`, `"condition"`, `"in_context"`.
    """

    parts = {
        **_TEXT,
        "vae_encoder": encoding.LTX2AutoVaeEncoderStep,
        "condition_encoder": encoding.LTX2AutoConditionEncoderStep,
        "reference_encoder": encoding.LTX2AutoReferenceEncoderStep,
        "denoise": LTX2AutoCoreDenoiseStep,
        "decode": decoding.LTX2AutoDecoderStep,
    }
    _workflow_map: Any = {
        "text2video": {"prompt": True},
        "image2video": {"image": True, "prompt": True},
        "condition": {"conditions": True, "prompt": True},
        # Its checkpoints have no duration head.
        "in_context": {"reference_conditions": True, "num_frames": True, "prompt": True},
    }


class LTX25AutoBlocks(LTX2AutoBlocks):
    """The same, decoded by the diffusion decoder of LTX-2.5."""

    model_name: Any = "ltx2.5"
    parts = {**LTX2AutoBlocks.parts, "decode": decoding.LTX25AutoDecoderStep}
