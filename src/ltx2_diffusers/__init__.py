"""LTX-2 video and audio generation for Hugging Face diffusers.

Every public name is imported on first use, so that `import ltx2_diffusers` touches no device, file or network.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> module that defines it. Nothing is promised to users outside this table and the lists `__all__` of the
# building blocks: `conditioning`, `guidance` and `sampling`.
_PUBLIC = {
    "LTX2AVTransformer3DModel": ".models.transformer",
    "AutoencoderKLLTX2Video": ".models.video_vae",
    "AutoencoderKLLTX2Audio": ".models.audio_vae",
    "LTX2Vocoder": ".models.vocoder",
    "LTX2VocoderWithBWE": ".models.vocoder",
    "LTX2TextConnectors": ".models.connectors",
    "LTX2LatentUpsamplerModel": ".models.latent_upsampler",
    "LTX2Scheduler": ".schedulers.scheduling_ltx2",
    "LTX2Pipeline": ".pipelines.recipes.text_to_video",
    "LTX2ModalityModel": ".models.modality_front",
    "TextCache": ".models.text_cache",
    "AudioVisualModelOutput": ".models.transformer",
    "TilingConfig": ".models.video_vae_tiling_config",
    "SpatialTilingConfig": ".models.video_vae_tiling_config",
    "TemporalTilingConfig": ".models.video_vae_tiling_config",
    "packaged_checkpoint": ".checkpoints.packaged",
    "LTX2PipelineOutput": ".pipelines.output",
    "LTX2ImageToVideoPipeline": ".pipelines.recipes.image_to_video",
    "LTX2ConditionPipeline": ".pipelines.recipes.condition",
    "LTX2InContextPipeline": ".pipelines.recipes.in_context",
    "LTX2LatentUpsamplePipeline": ".pipelines.recipes.latent_upsample",
    "LTX2VideoCondition": ".pipelines.conditions.pictures",
    "LTX2ReferenceCondition": ".pipelines.conditions.pictures",
    "LTX2AudioReferenceCondition": ".pipelines.conditions.sounds",
    "LTX2TwoStagePipeline": ".pipelines.recipes.two_stage",
    "LTX2DistilledPipeline": ".pipelines.recipes.distilled",
    "LTX2KeyframeInterpolationPipeline": ".pipelines.recipes.keyframe_interpolation",
    "LTX2AudioToVideoPipeline": ".pipelines.recipes.audio_to_video",
    "LTX2VideoToAudioPipeline": ".pipelines.recipes.video_to_audio",
    "LTX2TextToAudioPipeline": ".pipelines.recipes.text_to_audio",
    "LTX2RetakePipeline": ".pipelines.recipes.retake",
    "LTX2ExtendPipeline": ".pipelines.recipes.extension.pipeline",
    "select_pipeline": ".application.selection",
    "GenerationRequest": ".application.selection",
    "TimelineItem": ".application.selection",
    "Selection": ".application.selection",
    "ApplicationDefaults": ".application.selection",
    "generate": ".application.generate",
    "Stage": ".pipelines.arguments",
    "GuidanceOptions": ".guidance.options",
    "MultiModalGuiderParams": ".guidance.guiders",
    "PromptDirector": ".application.director",
    "PromptCache": ".prompts.cache",
}

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
