"""Shapes, latent states and the condition items that change them."""

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
    "AudioLatentShape",
    "AudioLatentTools",
    "AudioPatchifier",
    "GaussianNoiser",
    "LatentState",
    "LatentTools",
    "Modality",
    "SpatioTemporalScaleFactors",
    "TokenSpan",
    "VideoLatentPatchifier",
    "VideoLatentShape",
    "VideoLatentTools",
    "VideoPixelShape",
    "seconds_to_frames",
    "snap_frames",
]
