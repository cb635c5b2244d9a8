"""LTX-2 video and audio generation for Hugging Face diffusers.

Every public name is imported on first use, so that `import ltx2_diffusers` touches no device, file or network.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> module that defines it. Nothing outside this table is promised to users.
_PUBLIC = {
    "LTX2AVTransformer3DModel": ".models.transformer",
    "AutoencoderKLLTX2Video": ".models.video_vae",
    "AutoencoderKLLTX2Audio": ".models.audio_vae",
    "LTX2Vocoder": ".models.vocoder",
    "LTX2VocoderWithBWE": ".models.vocoder",
    "LTX2TextConnectors": ".models.connectors",
    "LTX2LatentUpsamplerModel": ".models.latent_upsampler",
    "LTX2Scheduler": ".schedulers.scheduling_ltx2",
    "LTX2Pipeline": ".pipelines.text_to_video",
    "LTX2ModalityModel": ".models.modality_front",
    "TextCache": ".models.text_cache",
    "AudioVisualModelOutput": ".models.transformer",
    "TilingConfig": ".models.video_vae_tiling_config",
    "SpatialTilingConfig": ".models.video_vae_tiling_config",
    "TemporalTilingConfig": ".models.video_vae_tiling_config",
    "packaged_checkpoint": ".checkpoints.packaged",
    "LTX2PipelineOutput": ".pipelines.output",
    "LTX2ImageToVideoPipeline": ".pipelines.image_to_video",
    "LTX2ConditionPipeline": ".pipelines.condition",
    "LTX2InContextPipeline": ".pipelines.in_context",
    "LTX2LatentUpsamplePipeline": ".pipelines.latent_upsample",
    "LTX2VideoCondition": ".pipelines.conditions",
    "LTX2ReferenceCondition": ".pipelines.references",
    "LTX2AudioReferenceCondition": ".pipelines.audio_references",
    "LTX2TwoStagePipeline": ".pipelines.two_stage",
    "LTX2DistilledPipeline": ".pipelines.distilled",
    "LTX2KeyframeInterpolationPipeline": ".pipelines.keyframe_interpolation",
    "LTX2AudioToVideoPipeline": ".pipelines.audio_to_video",
    "LTX2VideoToAudioPipeline": ".pipelines.video_to_audio",
    "LTX2TextToAudioPipeline": ".pipelines.text_to_audio",
    "LTX2RetakePipeline": ".pipelines.retake",
    "LTX2ExtendPipeline": ".pipelines.extend",
    "select_pipeline": ".pipelines.selection",
    "GenerationRequest": ".pipelines.selection",
    "TimelineItem": ".pipelines.selection",
    "Selection": ".pipelines.selection",
    "ApplicationDefaults": ".pipelines.selection",
    "generate": ".pipelines.application",
    "Stage": ".pipelines.request",
    "GuidanceOptions": ".guidance.options",
    "MultiModalGuiderParams": ".guidance.guiders",
    "PromptDirector": ".pipelines.director",
    "PromptCache": ".pipelines.prompt_cache",
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
