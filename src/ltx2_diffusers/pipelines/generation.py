"""The base of all pipelines that generate from text: components, text and decoding stages, and the ends of a call."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..adapters.mixin import LTX2LoraMixin
from ..conditioning.streams import Streams, TextContext
from ..media.waveforms import fit_audio
from ..models.audio_vae import AutoencoderKLLTX2Audio
from ..models.connectors import LTX2TextConnectors
from ..models.transformer import LTX2AVTransformer3DModel
from ..models.video_vae import AutoencoderKLLTX2Video
from ..models.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from ..prompts.encoding import TextStage, TextStates
from ..prompts.enhancement import PromptEnhancer
from ..prompts.reading import PromptCaching
from ..schedulers.scheduling_ltx2 import LTX2Scheduler
from .arguments import Delivery
from .base import LTX2PipelineBase
from .decoding import DecodeStage
from .denoising import DenoiseStage, StepCallback
from .engine import GenerationEngine, StageRun
from .latent_stage import LatentStage
from .output import LTX2PipelineOutput
from .plan import GenerationPlan


class LTX2GenerationPipeline(
    LTX2LoraMixin,
    LTX2PipelineBase,
    PromptEnhancer,
    PromptCaching,
    TextStage,
    LatentStage,
    DenoiseStage,
    DecodeStage,
    GenerationEngine,
):
    """A pipeline with the components of an LTX-2 checkpoint.

    Args:
        scheduler: Noise schedule. `LTX2Scheduler` follows the reference; `FlowMatchEulerDiscreteScheduler` gives
            diffusers' numbers.
        vae: Video autoencoder.
        audio_vae: Autoencoder of the mel spectrogram.
        text_encoder: Gemma language model, all of whose hidden states are used.
        tokenizer: Its tokenizer.
        connectors: From language-model states to the contexts of the two streams.
        transformer: The denoising network.
        vocoder: From mel spectrogram to waveform.
        processor: Multimodal processor of the text encoder, needed for prompt enhancement only.
        prompt_enhancer: Separate language model for prompt enhancement.
    """

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
        processor: ProcessorMixin | None = None,
        prompt_enhancer: PreTrainedModel | None = None,
    ) -> None:
        super().__init__()
        self._register(
            vae=vae,
            audio_vae=audio_vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            connectors=connectors,
            transformer=transformer,
            vocoder=vocoder,
            scheduler=scheduler,
            processor=processor,
            prompt_enhancer=prompt_enhancer,
        )
        self._begin(Streams(None, None), None)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | os.PathLike,
        *,
        text_encoder: PreTrainedModel | str | os.PathLike,
        tokenizer: PreTrainedTokenizerBase | None = None,
        torch_dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> "LTX2GenerationPipeline":
        """Load a pipeline from an original Lightricks checkpoint file, which holds everything but the text encoder.

        Args:
            pretrained_model_link_or_path: The safetensors file, or a Hub link to it.
            text_encoder: The Gemma model, or a folder or Hub id that holds it (and, unless given, its tokenizer).
            tokenizer: The tokenizer of the text encoder.
            torch_dtype: Data type of all components, default that of the file.
            kwargs: Components to use in place of the file's (`vae=`, `scheduler=`, ...), and options of
                [`~ltx2_diffusers.checkpoints.pipeline_file.load_pipeline_components`].
        """
        from ..checkpoints.pipeline_file import load_pipeline_components

        components = load_pipeline_components(
            cls,
            pretrained_model_link_or_path,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            torch_dtype=torch_dtype,
            **kwargs,
        )
        return cls(**components)

    def _begin(self, scales: Streams, attention_kwargs: dict[str, Any] | None) -> None:
        """Reset what the pipeline shows about the running call."""
        self._scales = scales
        self._attention_kwargs = attention_kwargs
        self._interrupt = False
        self._current_timestep = None
        self._num_timesteps = 0
        self._forwards_per_step = 0

    def _callback(
        self,
        function: Callable[..., dict[str, Any] | None] | None,
        names: Sequence[str],
        texts: tuple[TextStates, TextStates | None],
    ) -> StepCallback:
        """The caller's step function with the text states it may ask for, padded as `encode_prompt` returns them."""
        constants = {
            name: None if states is None else states.padded(self.tokenizer_max_length).hidden.flatten(2)
            for name, states in zip(("prompt_embeds", "negative_prompt_embeds"), texts)
            if function is not None and name in names
        }
        return StepCallback(function, names, constants)

    def _encode(
        self, states: tuple[TextStates, TextStates | None], num_videos_per_prompt: int, length: int
    ) -> tuple[TextContext, TextContext | None]:
        """Contexts of the positive and negative prompts from their language-model states, both in one batch."""
        present = [part for part in states if part is not None]
        width = max(part.mask.shape[1] for part in present)
        padded = [part.padded(width) for part in present]
        batch = TextStates(torch.cat([p.hidden for p in padded]), torch.cat([p.mask for p in padded]))
        contexts = self._contexts(batch, max(length, width)).split([len(part.mask) for part in present])
        contexts = [context.repeat(num_videos_per_prompt) for context in contexts]
        return contexts[0], contexts[1] if len(contexts) == 2 else None

    def _finish(
        self,
        latents: Streams,
        plan: GenerationPlan,
        delivery: Delivery,
        info: dict[str, Any],
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> LTX2PipelineOutput | tuple:
        """Decode finished latents, free offloaded models and wrap up."""
        frames = audio = rate = None
        originals = delivery.originals if delivery.output_type != "latent" else Streams(None, None)
        if originals.video is not None:
            frames = self._original_video(originals.video, plan.batch_size, delivery.output_type)
        elif latents.video is not None:
            # Latents are handed over as exact as they are; decoding starts in the transformer's type, as in diffusers.
            dtype = latents.video.dtype if delivery.output_type == "latent" else self.transformer.dtype
            frames = self._decode_video(latents.video.to(dtype), delivery, generator)
        if originals.audio is not None:
            waveform, rate = originals.audio
            audio = fit_audio(waveform, plan.duration_s, rate).expand(plan.batch_size, -1, -1)
        elif latents.audio is not None:
            audio = self._decode_audio(self.audio_vae.denormalize_latents(latents.audio), delivery.output_type)
            rate = self.vocoder.config.output_sampling_rate if self.vocoder is not None else None
            if originals.video is not None:
                # A given video may be shorter than the clip that the network saw, which needs 8 k + 1 frames.
                audio = audio[..., : round(len(originals.video) / plan.frame_rate * rate)]
        self.maybe_free_model_hooks()
        if not delivery.return_dict:
            return frames, audio
        frame_rate = None if frames is None else plan.frame_rate
        return LTX2PipelineOutput(
            frames, audio, frame_rate, rate, {**info, "output_type": delivery.output_type}, *delivery.sources
        )

    def _info(self, runs: Sequence[StageRun], forwards: list[int], enhanced: list[str] | None) -> dict[str, Any]:
        """How the result was made; one entry per stage where a recipe has several."""
        preset = self.preset
        sigmas = [run.sigmas.tolist() for run in runs]
        return {
            "preset": f"{preset.version} {preset.kind}",
            "sigmas": sigmas[0] if len(sigmas) == 1 else sigmas,
            "forwards_per_step": forwards[0] if len(runs) == 1 else forwards,
            **({} if enhanced is None else {"enhanced_prompt": enhanced}),
        }

    @property
    def guidance_scale(self) -> float:
        """Classifier-free guidance scale of the video in the running or last call."""
        return self._scales.video.cfg

    @property
    def stg_scale(self) -> float:
        """Spatio-temporal guidance scale of the video."""
        return self._scales.video.stg

    @property
    def modality_scale(self) -> float:
        """Modality guidance scale of the video."""
        return self._scales.video.modality

    @property
    def guidance_rescale(self) -> float:
        """Guidance rescale factor of the video."""
        return self._scales.video.rescale

    @property
    def audio_guidance_scale(self) -> float:
        """Classifier-free guidance scale of the audio."""
        return self._scales.audio.cfg

    @property
    def audio_stg_scale(self) -> float:
        """Spatio-temporal guidance scale of the audio."""
        return self._scales.audio.stg

    @property
    def audio_modality_scale(self) -> float:
        """Modality guidance scale of the audio."""
        return self._scales.audio.modality

    @property
    def audio_guidance_rescale(self) -> float:
        """Guidance rescale factor of the audio."""
        return self._scales.audio.rescale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the call makes a pass with the negative prompt."""
        return any(scales is not None and scales.cfg != 1.0 for scales in self._scales)

    @property
    def do_spatio_temporal_guidance(self) -> bool:
        """Whether the call makes a perturbed pass."""
        return any(scales is not None and scales.stg != 0.0 for scales in self._scales)

    @property
    def do_modality_isolation_guidance(self) -> bool:
        """Whether the call makes a pass without exchange between the streams."""
        return any(scales is not None and scales.modality != 1.0 for scales in self._scales)
