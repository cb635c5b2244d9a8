"""The blocks of whole pipelines, put together.

Blocks may be exchanged and put in: `blocks.sub_blocks["decode"] = MyDecoder()`.
"""

# diffusers declares what blocks have more narrowly than it reads it: no lists, and methods without arguments.
# ruff: noqa: RUF012
# mypy: disable-error-code="assignment, misc, override"

from typing import Any

from . import decoding, denoising, encoding, preparing, text
from .declarations import Conditional, Sequential

_TEXT = [text.LTX2AutoPromptEnhancerStep, text.LTX2TextConditioningStep, text.LTX2AutoDurationStep]
_TEXT_NAMES = ["prompt_enhancer", "text_encoder", "duration"]


class LTX2CoreDenoiseStep(Sequential):
    """Makes a video of text: noise levels, noise, positions, denoising."""

    block_classes = [
        text.LTX2TextInputStep,
        preparing.LTX2SetTimestepsStep,
        preparing.LTX2PrepareLatentsStep,
        preparing.LTX2PrepareAudioLatentsStep,
        preparing.LTX2PrepareCoordsStep,
        denoising.LTX2DenoiseStep,
    ]
    block_names = ["input", "set_timesteps", "prepare_latents", "prepare_audio_latents", "prepare_coords", "denoise"]


class LTX2Image2VideoCoreDenoiseStep(Sequential):
    """The same with a picture in the place of the first frame."""

    block_classes = [
        *LTX2CoreDenoiseStep.block_classes[:3],
        preparing.LTX2Image2VideoPrepareLatentsStep,
        *LTX2CoreDenoiseStep.block_classes[3:5],
        denoising.LTX2Image2VideoDenoiseStep,
    ]
    block_names = [*LTX2CoreDenoiseStep.block_names[:3], "prepare_i2v_latents", *LTX2CoreDenoiseStep.block_names[3:]]


class LTX2ConditionCoreDenoiseStep(Sequential):
    """Makes a video that is held to conditions; noise levels follow from all tokens."""

    block_classes = [
        text.LTX2TextInputStep,
        preparing.LTX2ConditionPrepareLatentsStep,
        preparing.LTX2ConditionSetTimestepsStep,
        preparing.LTX2ConditionPrepareAudioLatentsStep,
        preparing.LTX2ConditionPrepareCoordsStep,
        denoising.LTX2ConditionDenoiseStep,
    ]
    block_names = ["input", "prepare_latents", "set_timesteps", "prepare_audio_latents", "prepare_coords", "denoise"]


class LTX2InContextCoreDenoiseStep(Sequential):
    """The same with reference videos."""

    block_classes = [
        text.LTX2TextInputStep,
        preparing.LTX2InContextPrepareLatentsStep,
        preparing.LTX2AutoBuildVideoSelfAttentionMaskStep,
        *LTX2ConditionCoreDenoiseStep.block_classes[2:],
    ]
    block_names = ["input", "prepare_latents", "attention_mask", *LTX2ConditionCoreDenoiseStep.block_names[2:]]


class LTX2AutoCoreDenoiseStep(Conditional):
    """Makes a video as its inputs say: with references, with conditions, with a first frame, or of text alone."""

    block_classes = [
        LTX2InContextCoreDenoiseStep,
        LTX2ConditionCoreDenoiseStep,
        LTX2Image2VideoCoreDenoiseStep,
        LTX2CoreDenoiseStep,
    ]
    block_names = ["in_context", "condition", "image2video", "text2video"]
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

    block_classes = [*_TEXT, LTX2CoreDenoiseStep, decoding.LTX2DecoderStep]
    block_names = [*_TEXT_NAMES, "denoise", "decode"]


class LTX2ImageToVideoBlocks(Sequential):
    """Image to video with sound."""

    block_classes = [*_TEXT, encoding.LTX2AutoVaeEncoderStep, LTX2Image2VideoCoreDenoiseStep, decoding.LTX2DecoderStep]
    block_names = [*_TEXT_NAMES, "vae_encoder", "denoise", "decode"]


class LTX2ConditionBlocks(Sequential):
    """Video with sound that shows pictures and clips at some place."""

    block_classes = [
        *_TEXT,
        encoding.LTX2ConditionEncoderStep,
        LTX2ConditionCoreDenoiseStep,
        decoding.LTX2ConditionDecoderStep,
    ]
    block_names = [*_TEXT_NAMES, "condition_encoder", "denoise", "decode"]


class LTX2InContextBlocks(Sequential):
    """Video with sound that an IC-LoRA derives from reference videos."""

    block_classes = [
        *_TEXT[:2],
        encoding.LTX2ConditionEncoderStep,
        encoding.LTX2AutoReferenceEncoderStep,
        LTX2InContextCoreDenoiseStep,
        decoding.LTX2ConditionDecoderStep,
    ]
    block_names = [*_TEXT_NAMES[:2], "condition_encoder", "reference_encoder", "denoise", "decode"]


class LTX2AutoBlocks(Sequential):
    """Video with sound, as its inputs say: of text, with a first frame, with conditions, or with references.

    `get_workflow` gives the blocks of one of these alone: `"text2video"`, `"image2video"`, `"condition"`, `"in_context"`.
    """

    block_classes = [
        *_TEXT,
        encoding.LTX2AutoVaeEncoderStep,
        encoding.LTX2AutoConditionEncoderStep,
        encoding.LTX2AutoReferenceEncoderStep,
        LTX2AutoCoreDenoiseStep,
        decoding.LTX2AutoDecoderStep,
    ]
    block_names = [*_TEXT_NAMES, "vae_encoder", "condition_encoder", "reference_encoder", "denoise", "decode"]
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
    block_classes = [*LTX2AutoBlocks.block_classes[:-1], decoding.LTX25AutoDecoderStep]
