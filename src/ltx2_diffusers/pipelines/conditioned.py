"""What the pipelines for pictures, clips and reference videos share."""

from collections.abc import Sequence
from typing import Any

from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..media.frames import first_picture
from ..models.audio_vae import AutoencoderKLLTX2Audio
from ..models.connectors import LTX2TextConnectors
from ..models.transformer import LTX2AVTransformer3DModel
from ..models.video_vae import AutoencoderKLLTX2Video
from ..models.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from ..schedulers.scheduling_ltx2 import LTX2Scheduler
from .arguments import Start
from .call_arguments import build_request, filled, guided_stage
from .conditions.condition import Condition
from .conditions.pictures import LTX2VideoCondition
from .generation import LTX2GenerationPipeline
from .output import LTX2PipelineOutput


class LTX2ConditionedPipeline(LTX2GenerationPipeline):
    """A pipeline whose noise is drawn for the whole sequence, appended conditions included.

    Args:
        audio_scheduler: Part of diffusers' pipelines. Both streams share the noise levels here, so it may only repeat
            `scheduler`.
        scheduler, vae, audio_vae, text_encoder, tokenizer, connectors, transformer, vocoder, processor, prompt_enhancer:
            See [`LTX2GenerationPipeline`].
    """

    _optional_components = ["audio_scheduler", *LTX2GenerationPipeline._optional_components]  # noqa: RUF012

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
        audio_scheduler: LTX2Scheduler | FlowMatchEulerDiscreteScheduler | None = None,
        processor: ProcessorMixin | None = None,
        prompt_enhancer: PreTrainedModel | None = None,
    ) -> None:
        components = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        del components["audio_scheduler"]
        super().__init__(**components)
        self.register_modules(audio_scheduler=audio_scheduler)

    def _generate_conditioned(
        self, call: dict[str, Any], conditions: Sequence[Condition]
    ) -> LTX2PipelineOutput | tuple:
        """Generate in one stage what the arguments of a call and its conditions ask for."""
        self._check_audio_scheduler()
        sigmas, noise_scale = call["sigmas"], call["noise_scale"]
        if noise_scale is None and sigmas is not None and len(sigmas):
            # diffusers starts from the level as given, even where the scheduler shifts it.
            noise_scale = float(sigmas[0])
        pictures = (c.frames for c in conditions if isinstance(c, LTX2VideoCondition))
        shown = next(pictures, None) if call["enable_prompt_enhancement"] else None
        call = {**call, "enhancement_image": None if shown is None else first_picture(shown)}
        stage = guided_stage(call, self.preset, noise_scale=noise_scale)
        start = filled(Start, call, packed_noise=True)
        return self._generate(build_request(call, [stage], conditions, start=start))

    def _check_audio_scheduler(self) -> None:
        """Two schedulers that walk down different noise levels cannot share a loop."""
        if self.audio_scheduler is None:
            return
        video, audio = (
            {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
            for scheduler in (self.scheduler, self.audio_scheduler)
        )
        different = sorted(name for name in video.keys() | audio.keys() if video.get(name) != audio.get(name))
        if different:
            raise ValueError(
                f"`audio_scheduler` differs from `scheduler` in {different}, but both streams take the same noise levels; "
                "set pipe.audio_scheduler = None or give both the same configuration"
            )
