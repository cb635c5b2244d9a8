"""Shapes, latent states and the condition items that change them."""

from .attention_strength import pixel_mask_to_tokens
from .carry import carried_audio_latents, carried_latent_frames, carried_pixel_frames, fit_audio_latent, resize_latent
from .items.appended import (
    AudioConditionByReferenceLatent,
    VideoConditionByKeyframeIndex,
    VideoConditionByReferenceLatent,
)
from .items.base import ConditionItem
from .items.generated_keyframes import GeneratedKeyframes, evenly_spaced_keyframes, extract_generated_keyframes
from .items.latent_index import AudioConditionByLatentIndex, VideoConditionByLatentIndex
from .items.regions import ConditionByWholeLatent, TemporalRegionMask, VideoConditionByRegionMask
from .noiser import GaussianNoiser
from .patchifiers import AudioPatchifier, VideoLatentPatchifier
from .shapes import (
    VIDEO_SCALE_FACTORS,
    AudioLatentShape,
    SpatioTemporalScaleFactors,
    VideoLatentShape,
    VideoPixelShape,
    seconds_to_frames,
    snap_frames,
)
from .state import LatentState, Modality, TokenSpan
from .tools import AudioLatentTools, LatentTools, VideoLatentTools

__all__ = [
    "VIDEO_SCALE_FACTORS",
    "AudioConditionByLatentIndex",
    "AudioConditionByReferenceLatent",
    "AudioLatentShape",
    "AudioLatentTools",
    "AudioPatchifier",
    "ConditionByWholeLatent",
    "ConditionItem",
    "GaussianNoiser",
    "GeneratedKeyframes",
    "LatentState",
    "LatentTools",
    "Modality",
    "SpatioTemporalScaleFactors",
    "TemporalRegionMask",
    "TokenSpan",
    "VideoConditionByKeyframeIndex",
    "VideoConditionByLatentIndex",
    "VideoConditionByReferenceLatent",
    "VideoConditionByRegionMask",
    "VideoLatentPatchifier",
    "VideoLatentShape",
    "VideoLatentTools",
    "VideoPixelShape",
    "carried_audio_latents",
    "carried_latent_frames",
    "carried_pixel_frames",
    "evenly_spaced_keyframes",
    "extract_generated_keyframes",
    "fit_audio_latent",
    "pixel_mask_to_tokens",
    "resize_latent",
    "seconds_to_frames",
    "snap_frames",
]
