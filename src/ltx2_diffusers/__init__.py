"""Video and audio generation with LTX-2, and video with LTX-Video, for Hugging Face diffusers.

Every public name is imported on first use, so that `import ltx2_diffusers` touches no device, file or network.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Module -> public names that it defines; type checkers read `__init__.pyi`. Nothing is promised to users outside this
# table and the lists `__all__` of the building blocks: `conditioning`, `guidance` and `sampling`.
_MODULES = {
    ".models.transformer": ("LTX2AVTransformer3DModel", "LTX2VideoTransformer3DModel", "AudioVisualModelOutput"),
    ".models.video_vae": ("AutoencoderKLLTX2Video",),
    ".models.audio_vae": ("AutoencoderKLLTX2Audio",),
    ".models.vocoder": ("LTX2Vocoder", "LTX2VocoderWithBWE"),
    ".models.connectors": ("LTX2TextConnectors",),
    ".models.latent_upsampler": ("LTX2LatentUpsamplerModel",),
    ".models.diffusion_decoder": ("LTX2VideoDiffusionDecoderModel",),
    ".models.neighbourhood_attention": ("LTX2VideoVaeNeighborhoodAttnProcessor",),
    ".models.duration_head": ("LTX2DurationHead",),
    ".schedulers.scheduling_ltx2": ("LTX2Scheduler",),
    ".pipelines.recipes.text_to_video": ("LTX2Pipeline",),
    ".models.modality_front": ("LTX2ModalityModel",),
    ".models.text_cache": ("TextCache",),
    ".kernels.fusing": ("set_fusion", "fusion"),
    ".models.video_vae_tiling_config": ("TilingConfig", "SpatialTilingConfig", "TemporalTilingConfig"),
    ".checkpoints.packaged": ("packaged_checkpoint",),
    ".pipelines.output": ("LTX2PipelineOutput", "LTX2DFRPipelineOutput", "LTX2HDRPipelineOutput", "encode_video"),
    ".pipelines.recipes.dfr": ("LTX2DFRPipeline", "LTX2DFRTemporalRefinePipeline"),
    ".conditioning.dfr_layout": (
        "LTX2DFREpilogueTile",
        "LTX2DFRTemporalTile",
        "LTX2DFRTokenPlan",
        "epilogue_tiles",
        "trim_canvas",
    ),
    ".guidance.component": ("LTX2Guidance",),
    ".modular.pipeline": ("LTX2ModularPipeline", "LTX25ModularPipeline"),
    ".modular.blocks": (
        "LTX2AutoBlocks",
        "LTX25AutoBlocks",
        "LTX2Blocks",
        "LTX2ImageToVideoBlocks",
        "LTX2ConditionBlocks",
        "LTX2InContextBlocks",
    ),
    ".schedulers.sigmas": (
        "DISTILLED_SIGMA_VALUES",
        "STAGE_2_DISTILLED_SIGMA_VALUES",
        "TEMPORAL_ROUND_DISTILLED_SIGMA_VALUES",
    ),
    ".prompts.diffusers_texts": (
        "DEFAULT_NEGATIVE_PROMPT",
        "T2V_DEFAULT_SYSTEM_PROMPT",
        "I2V_DEFAULT_SYSTEM_PROMPT",
        "LTX2_5_T2V_DEFAULT_SYSTEM_PROMPT",
        "LTX2_5_I2V_DEFAULT_SYSTEM_PROMPT",
    ),
    ".media.writing": ("ClipFile",),
    ".pipelines.compilation": ("CompiledPart",),
    ".pipelines.recipes.image_to_video": ("LTX2ImageToVideoPipeline",),
    ".pipelines.recipes.condition": ("LTX2ConditionPipeline",),
    ".pipelines.recipes.in_context": ("LTX2InContextPipeline",),
    ".pipelines.recipes.hdr.to_hdr": ("LTX2HDRPipeline",),
    ".media.hdr.processor": ("LTX2VideoHDRProcessor",),
    ".media.hdr.writing": ("HDRFile", "encode_hdr_tensor_to_mp4", "write_hdr"),
    ".pipelines.recipes.latent_upsample": ("LTX2LatentUpsamplePipeline",),
    ".pipelines.recipes.diffusion_decode": ("LTX2VideoDiffusionDecodePipeline", "LTX2VideoDecodeOutput"),
    ".pipelines.conditions": (
        "LTX2VideoCondition",
        "LTX2ReferenceCondition",
        "LTX2AudioReferenceCondition",
        "LTX2HDRReferenceCondition",
    ),
    ".pipelines.recipes.two_stage": ("LTX2TwoStagePipeline",),
    ".pipelines.recipes.distilled": ("LTX2DistilledPipeline",),
    ".pipelines.recipes.keyframe_interpolation": ("LTX2KeyframeInterpolationPipeline",),
    ".pipelines.recipes.audio_to_video": ("LTX2AudioToVideoPipeline",),
    ".pipelines.recipes.video_to_audio": ("LTX2VideoToAudioPipeline",),
    ".pipelines.recipes.text_to_audio": ("LTX2TextToAudioPipeline",),
    ".pipelines.recipes.retake": ("LTX2RetakePipeline",),
    ".pipelines.recipes.extension.pipeline": ("LTX2ExtendPipeline",),
    ".families.ltx_video.pipeline": ("LTXVideoPipeline",),
    ".families.ltx_video.long": ("LTXVideoLongPipeline",),
    ".families.ltx_video.conditions": ("LTXVideoCondition",),
    ".families.ltx_video.presets": ("LTXVideoPreset", "PassSettings", "ScheduleSettings", "ltx_video_preset"),
    ".application.selection": (
        "select_pipeline",
        "GenerationRequest",
        "TimelineItem",
        "Selection",
        "ApplicationDefaults",
    ),
    ".application.generate": ("generate",),
    ".application.storyboard.board": ("Storyboard", "Shot", "Keyframe", "read_storyboard"),
    ".application.storyboard.making": ("make_storyboard", "StoryboardProgress"),
    ".pipelines.arguments": ("Stage",),
    ".guidance": ("GuidanceOptions", "MultiModalGuiderParams"),
    ".guidance.presets": ("RECOMMENDED_NEGATIVE_PROMPT", "DEFAULT_IMAGE_CRF", "LTX2_5_IMAGE_CRF"),
    ".application.director": ("PromptDirector",),
    ".prompts.cache": ("PromptCache",),
    ".quantization.configs": ("FP8CastConfig", "FP8ScaledMMConfig", "QuantizationPolicy"),
    ".quantization.calibration": ("calibrate", "write_calibration"),
    ".memory.streaming": ("stream_blocks", "stop_streaming"),
    ".memory.loading": ("load_streamed", "load_streamed_language_model"),
    ".planning.plan": ("MemoryPlan",),
    ".pipelines.planned": ("plan_memory",),
}
_PUBLIC = {name: module for module, names in _MODULES.items() for name in names}

# diffusers looks up the base classes of a foreign library as attributes of its top-level module.
_BASE_CLASSES = {
    "ModelMixin": "diffusers.models.modeling_utils",
    "SchedulerMixin": "diffusers.schedulers.scheduling_utils",
    "DiffusionPipeline": "diffusers.pipelines.pipeline_utils",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        module = import_module(_PUBLIC[name], __name__)
    elif name in _BASE_CLASSES:
        module = import_module(_BASE_CLASSES[name])
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
