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
from .guidance import GuidanceOptions as GuidanceOptions
from .guidance import MultiModalGuiderParams as MultiModalGuiderParams
from .guidance.component import LTX2Guidance as LTX2Guidance
from .guidance.presets import DEFAULT_IMAGE_CRF as DEFAULT_IMAGE_CRF
from .guidance.presets import LTX2_5_IMAGE_CRF as LTX2_5_IMAGE_CRF
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
from .modular.blocks import LTX2AutoBlocks as LTX2AutoBlocks
from .modular.blocks import LTX2Blocks as LTX2Blocks
from .modular.blocks import LTX2ConditionBlocks as LTX2ConditionBlocks
from .modular.blocks import LTX2ImageToVideoBlocks as LTX2ImageToVideoBlocks
from .modular.blocks import LTX2InContextBlocks as LTX2InContextBlocks
from .modular.blocks import LTX25AutoBlocks as LTX25AutoBlocks
from .modular.pipeline import LTX2ModularPipeline as LTX2ModularPipeline
from .modular.pipeline import LTX25ModularPipeline as LTX25ModularPipeline
from .pipelines.arguments import Stage as Stage
from .pipelines.compilation import CompiledPart as CompiledPart
from .pipelines.conditions import LTX2AudioReferenceCondition as LTX2AudioReferenceCondition
from .pipelines.conditions import LTX2ReferenceCondition as LTX2ReferenceCondition
from .pipelines.conditions import LTX2VideoCondition as LTX2VideoCondition
from .pipelines.output import LTX2PipelineOutput as LTX2PipelineOutput
from .pipelines.output import encode_video as encode_video
from .pipelines.planned import plan_memory as plan_memory
from .pipelines.recipes.audio_to_video import LTX2AudioToVideoPipeline as LTX2AudioToVideoPipeline
from .pipelines.recipes.condition import LTX2ConditionPipeline as LTX2ConditionPipeline
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
from .prompts.diffusers_texts import DEFAULT_NEGATIVE_PROMPT as DEFAULT_NEGATIVE_PROMPT
from .prompts.diffusers_texts import I2V_DEFAULT_SYSTEM_PROMPT as I2V_DEFAULT_SYSTEM_PROMPT
from .prompts.diffusers_texts import LTX2_5_I2V_DEFAULT_SYSTEM_PROMPT as LTX2_5_I2V_DEFAULT_SYSTEM_PROMPT
from .prompts.diffusers_texts import LTX2_5_T2V_DEFAULT_SYSTEM_PROMPT as LTX2_5_T2V_DEFAULT_SYSTEM_PROMPT
from .prompts.diffusers_texts import T2V_DEFAULT_SYSTEM_PROMPT as T2V_DEFAULT_SYSTEM_PROMPT
from .quantization.calibration import calibrate as calibrate
from .quantization.calibration import write_calibration as write_calibration
from .quantization.configs import FP8CastConfig as FP8CastConfig
from .quantization.configs import FP8ScaledMMConfig as FP8ScaledMMConfig
from .quantization.configs import QuantizationPolicy as QuantizationPolicy
from .schedulers.scheduling_ltx2 import LTX2Scheduler as LTX2Scheduler
from .schedulers.sigmas import DISTILLED_SIGMA_VALUES as DISTILLED_SIGMA_VALUES
from .schedulers.sigmas import STAGE_2_DISTILLED_SIGMA_VALUES as STAGE_2_DISTILLED_SIGMA_VALUES
from .schedulers.sigmas import TEMPORAL_ROUND_DISTILLED_SIGMA_VALUES as TEMPORAL_ROUND_DISTILLED_SIGMA_VALUES

__version__: str
__all__: list[str]
