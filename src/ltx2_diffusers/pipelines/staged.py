"""The base of the recipes that may run in several stages: the components which further stages need."""

from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..models.audio_vae import AutoencoderKLLTX2Audio
from ..models.connectors import LTX2TextConnectors
from ..models.latent_upsampler import LTX2LatentUpsamplerModel
from ..models.transformer import LTX2AVTransformer3DModel
from ..models.video_vae import AutoencoderKLLTX2Video
from ..models.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from ..schedulers.scheduling_ltx2 import LTX2Scheduler
from .generation import LTX2GenerationPipeline


class LTX2StagedPipeline(LTX2GenerationPipeline):
    """A pipeline whose calls may run the denoising loop more than once.

    Takes the components of [`LTX2Pipeline`] and the following. A `FlowMatchEulerDiscreteScheduler` is turned into the
    `LTX2Scheduler` of the same config, because the noise levels of a refining stage are fixed and must not be shifted.

    Args:
        latent_upsampler: Doubles height and width between two stages; needed by calls with two stages.
        temporal_upsampler: Doubles the frame rate; needed by stages that name it.
        stage_2_transformer: Transformer of the refining stage, in place of a distilled LoRA on `transformer`.
    """

    model_cpu_offload_seq = (
        "prompt_enhancer->text_encoder->connectors->transformer->latent_upsampler->temporal_upsampler"
        "->stage_2_transformer->vae->audio_vae->vocoder"
    )
    _optional_components = [  # noqa: RUF012 (diffusers reads a list)
        *LTX2GenerationPipeline._optional_components,
        "latent_upsampler",
        "temporal_upsampler",
        "stage_2_transformer",
    ]

    def __init__(
        self,
        scheduler: LTX2Scheduler | FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKLLTX2Video,
        audio_vae: AutoencoderKLLTX2Audio,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        connectors: LTX2TextConnectors,
        transformer: LTX2AVTransformer3DModel,
        vocoder: LTX2Vocoder | LTX2VocoderWithBWE,
        latent_upsampler: LTX2LatentUpsamplerModel | None = None,
        temporal_upsampler: LTX2LatentUpsamplerModel | None = None,
        stage_2_transformer: LTX2AVTransformer3DModel | None = None,
        processor: ProcessorMixin | None = None,
        prompt_enhancer: PreTrainedModel | None = None,
    ) -> None:
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            scheduler = LTX2Scheduler.from_config(dict(scheduler.config))
        super().__init__(
            scheduler,
            vae,
            audio_vae,
            text_encoder,
            tokenizer,
            connectors,
            transformer,
            vocoder,
            processor=processor,
            prompt_enhancer=prompt_enhancer,
        )
        self.register_modules(
            latent_upsampler=latent_upsampler,
            temporal_upsampler=temporal_upsampler,
            stage_2_transformer=stage_2_transformer,
        )
