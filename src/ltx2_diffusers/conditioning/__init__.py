"""Shapes, latent states and the condition items that change them."""

from .attention_strength import pixel_mask_to_tokens
from .carry import carried_pixel_frames, resize_latent, stretch_audio_latent
from .dfr_layout import (
    LTX2DFREpilogueTile,
    LTX2DFRTemporalTile,
    LTX2DFRTokenPlan,
    epilogue_tiles,
    resolve_canvas,
    temporal_tile_plan,
    trim_canvas,
    video_tile_plan,
)
from .items.appended import (
    AudioConditionByReferenceLatent,
    VideoConditionByKeyframeIndex,
    VideoConditionByReferenceLatent,
    VideoKeyframeSlots,
)
from .items.base import ConditionItem
from .items.latent_index import AudioConditionByLatentIndex, VideoConditionByLatentIndex
from .items.regions import ConditionByInitialLatent, ConditionByWholeLatent, ConditionOutsideRegion, tokens_in_time
from .noiser import GaussianNoiser
from .patchifiers import AudioPatchifier, VideoLatentPatchifier
from .shapes import (
    VIDEO_SCALE_FACTORS,
    AudioLatentShape,
    SpatioTemporalScaleFactors,
    VideoLatentShape,
    VideoPixelShape,
    snap_frames,
)
from .state import LatentState, Modality
from .streams import Streams, TextContext, on_streams
from .tools import AudioLatentTools, LatentTools, VideoLatentTools

__all__ = [
    "VIDEO_SCALE_FACTORS",
    "AudioConditionByLatentIndex",
    "AudioConditionByReferenceLatent",
    "AudioLatentShape",
    "AudioLatentTools",
    "AudioPatchifier",
    "ConditionByInitialLatent",
    "ConditionByWholeLatent",
    "ConditionItem",
    "ConditionOutsideRegion",
    "GaussianNoiser",
    "LTX2DFREpilogueTile",
    "LTX2DFRTemporalTile",
    "LTX2DFRTokenPlan",
    "LatentState",
    "LatentTools",
    "Modality",
    "SpatioTemporalScaleFactors",
    "Streams",
    "TextContext",
    "VideoConditionByKeyframeIndex",
    "VideoConditionByLatentIndex",
    "VideoConditionByReferenceLatent",
    "VideoKeyframeSlots",
    "VideoLatentPatchifier",
    "VideoLatentShape",
    "VideoLatentTools",
    "VideoPixelShape",
    "carried_pixel_frames",
    "epilogue_tiles",
    "on_streams",
    "pixel_mask_to_tokens",
    "resize_latent",
    "resolve_canvas",
    "snap_frames",
    "stretch_audio_latent",
    "temporal_tile_plan",
    "tokens_in_time",
    "trim_canvas",
    "video_tile_plan",
]
