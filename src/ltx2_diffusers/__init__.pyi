"""Types of the public names; the module itself imports each on first use."""

from .application.director import PromptDirector as PromptDirector
from .application.generate import generate as generate
from .application.selection import ApplicationDefaults as ApplicationDefaults
from .application.selection import GenerationRequest as GenerationRequest
from .application.selection import Selection as Selection
from .application.selection import TimelineItem as TimelineItem
from .application.selection import select_pipeline as select_pipeline
from .application.storyboard.board import Keyframe as Keyframe
from .application.storyboard.board import Shot as Shot
from .application.storyboard.board import Storyboard as Storyboard
from .application.storyboard.board import read_storyboard as read_storyboard
from .application.storyboard.making import StoryboardProgress as StoryboardProgress
from .application.storyboard.making import make_storyboard as make_storyboard
from .checkpoints.packaged import packaged_checkpoint as packaged_checkpoint
from .conditioning.dfr_layout import LTX2DFREpilogueTile as LTX2DFREpilogueTile
from .conditioning.dfr_layout import LTX2DFRTemporalTile as LTX2DFRTemporalTile
from .conditioning.dfr_layout import LTX2DFRTokenPlan as LTX2DFRTokenPlan
from .conditioning.dfr_layout import epilogue_tiles as epilogue_tiles
from .conditioning.dfr_layout import trim_canvas as trim_canvas
from .guidance import GuidanceOptions as GuidanceOptions
from .guidance import MultiModalGuiderParams as MultiModalGuiderParams
from .guidance.presets import RECOMMENDED_NEGATIVE_PROMPT as RECOMMENDED_NEGATIVE_PROMPT
from .kernels.fusing import fusion as fusion
from .kernels.fusing import set_fusion as set_fusion
from .media.writing import ClipFile as ClipFile
from .memory.loading import load_streamed as load_streamed
from .memory.loading import load_streamed_language_model as load_streamed_language_model
from .memory.streaming import stop_streaming as stop_streaming
from .memory.streaming import stream_blocks as stream_blocks
from .models.audio_vae import AutoencoderKLLTX2Audio as AutoencoderKLLTX2Audio
from .models.connectors import LTX2TextConnectors as LTX2TextConnectors
from .models.diffusion_decoder import LTX2VideoDiffusionDecoderModel as LTX2VideoDiffusionDecoderModel
from .models.duration_head import LTX2DurationHead as LTX2DurationHead
from .models.latent_upsampler import LTX2LatentUpsamplerModel as LTX2LatentUpsamplerModel
from .models.modality_front import LTX2ModalityModel as LTX2ModalityModel
from .models.neighbourhood_attention import (
    LTX2VideoVaeNeighborhoodAttnProcessor as LTX2VideoVaeNeighborhoodAttnProcessor,
)
from .models.text_cache import TextCache as TextCache
from .models.transformer import AudioVisualModelOutput as AudioVisualModelOutput
from .models.transformer import LTX2AVTransformer3DModel as LTX2AVTransformer3DModel
from .models.transformer import LTX2VideoTransformer3DModel as LTX2VideoTransformer3DModel
from .models.video_vae import AutoencoderKLLTX2Video as AutoencoderKLLTX2Video
from .models.video_vae_tiling_config import SpatialTilingConfig as SpatialTilingConfig
from .models.video_vae_tiling_config import TemporalTilingConfig as TemporalTilingConfig
from .models.video_vae_tiling_config import TilingConfig as TilingConfig
from .models.vocoder import LTX2Vocoder as LTX2Vocoder
from .models.vocoder import LTX2VocoderWithBWE as LTX2VocoderWithBWE
from .pipelines.arguments import Stage as Stage
from .pipelines.compilation import CompiledPart as CompiledPart
from .pipelines.conditions import LTX2AudioReferenceCondition as LTX2AudioReferenceCondition
from .pipelines.conditions import LTX2ReferenceCondition as LTX2ReferenceCondition
from .pipelines.conditions import LTX2VideoCondition as LTX2VideoCondition
from .pipelines.output import LTX2DFRPipelineOutput as LTX2DFRPipelineOutput
from .pipelines.output import LTX2PipelineOutput as LTX2PipelineOutput
from .pipelines.planned import plan_memory as plan_memory
from .pipelines.recipes.audio_to_video import LTX2AudioToVideoPipeline as LTX2AudioToVideoPipeline
from .pipelines.recipes.condition import LTX2ConditionPipeline as LTX2ConditionPipeline
from .pipelines.recipes.dfr.refinement import LTX2DFRTemporalRefinePipeline as LTX2DFRTemporalRefinePipeline
from .pipelines.recipes.dfr.rendering import LTX2DFRPipeline as LTX2DFRPipeline
from .pipelines.recipes.diffusion_decode import LTX2VideoDecodeOutput as LTX2VideoDecodeOutput
from .pipelines.recipes.diffusion_decode import LTX2VideoDiffusionDecodePipeline as LTX2VideoDiffusionDecodePipeline
from .pipelines.recipes.distilled import LTX2DistilledPipeline as LTX2DistilledPipeline
from .pipelines.recipes.extension.pipeline import LTX2ExtendPipeline as LTX2ExtendPipeline
from .pipelines.recipes.image_to_video import LTX2ImageToVideoPipeline as LTX2ImageToVideoPipeline
from .pipelines.recipes.in_context import LTX2InContextPipeline as LTX2InContextPipeline
from .pipelines.recipes.keyframe_interpolation import (
    LTX2KeyframeInterpolationPipeline as LTX2KeyframeInterpolationPipeline,
)
from .pipelines.recipes.latent_upsample import LTX2LatentUpsamplePipeline as LTX2LatentUpsamplePipeline
from .pipelines.recipes.retake import LTX2RetakePipeline as LTX2RetakePipeline
from .pipelines.recipes.text_to_audio import LTX2TextToAudioPipeline as LTX2TextToAudioPipeline
from .pipelines.recipes.text_to_video import LTX2Pipeline as LTX2Pipeline
from .pipelines.recipes.two_stage import LTX2TwoStagePipeline as LTX2TwoStagePipeline
from .pipelines.recipes.video_to_audio import LTX2VideoToAudioPipeline as LTX2VideoToAudioPipeline
from .planning.plan import MemoryPlan as MemoryPlan
from .prompts.cache import PromptCache as PromptCache
from .quantization.calibration import calibrate as calibrate
from .quantization.calibration import write_calibration as write_calibration
from .quantization.configs import FP8CastConfig as FP8CastConfig
from .quantization.configs import FP8ScaledMMConfig as FP8ScaledMMConfig
from .quantization.configs import QuantizationPolicy as QuantizationPolicy
from .schedulers.scheduling_ltx2 import LTX2Scheduler as LTX2Scheduler

__version__: str
__all__: list[str]
