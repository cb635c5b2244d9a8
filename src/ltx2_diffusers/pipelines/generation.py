"""The base of all pipelines that generate from text: components, text and decoding stages, and the ends of a call."""

import inspect
import os
from dataclasses import replace
from typing import Any, Self

import PIL.Image
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from .. import checks, declared
from .. import prompts as texts
from ..adapters.mixin import LTX2LoraMixin
from ..checkpoints import fingerprint, origin
from ..checkpoints.several_files import Files
from ..checkpoints.versions import model_kind, model_version
from ..conditioning import Streams
from ..guidance import NEUTRAL, Preset, preset
from ..media.waveforms import fit_audio
from ..memory.placement import OnDemandModel, Placement
from ..memory.streaming import streamer_of
from ..models import audio_vae, connectors, duration_head, latent_upsampler, mel, transformer, video_vae, vocoder
from ..models.context_parallel import token_parallel_config
from ..models.diffusion_decoder import LTX2VideoDiffusionDecoderModel as DiffusionDecoder
from ..planning.plan import MemoryPlan
from ..sampling import PassLayout
from ..schedulers.levels import Scheduler, unshifted
from .arguments import Generators, Scales
from .base import LTX2PipelineBase, PipelineFacts, extends
from .plan import ClipPlan, ModelSizes

AudioVAE = audio_vae.AutoencoderKLLTX2Audio
Connectors = connectors.LTX2TextConnectors
DurationHead = duration_head.LTX2DurationHead
Transformer = transformer.LTX2AVTransformer3DModel
Upsampler = latent_upsampler.LTX2LatentUpsamplerModel
Vocoder = vocoder.LTX2Vocoder | vocoder.LTX2VocoderWithBWE


def _scale(stream: str, name: str, meaning: str) -> property:
    """A guidance scale of the running stage, or of the last one."""
    return property(lambda pipeline: getattr(getattr(pipeline._scales, stream), name), doc=meaning)


def _changing(stream: str, name: str) -> property:
    """The same for step callbacks, which may set it: the steps that follow are guided by the new value."""

    def change(pipeline: "LTX2GenerationPipeline", value: float) -> None:
        changed = replace(getattr(pipeline._scales, stream), **{name: value})
        pipeline._scales = pipeline._scales._replace(**{stream: changed})

    return _scale(stream, name, "As without the underscore.").setter(change)


def _makes(name: str, meaning: str) -> property:
    """Whether a scale of any stream is not neutral, so that the call makes its pass."""
    return property(
        lambda pipeline: any(getattr(s, name) != getattr(NEUTRAL, name) for s in pipeline._scales), doc=meaning
    )


class LTX2GenerationPipeline(LTX2LoraMixin, LTX2PipelineBase):
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
        duration_head: Predicts from the text how long a clip should be, for calls that do not say.
        diffusion_decoder: Makes frames of latents in calls with `decoder="diffusion"`; the `vae` still encodes, and has the
            statistics of the latents.
    """

    kind: str | None = None
    """Kind of checkpoint whose reference settings hold; default what the scheduler says."""
    marks_keyframes: bool = True
    """Whether a transformer that asks for it is told which tokens stand for a single frame."""
    audio_vae: AudioVAE
    text_encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    connectors: Connectors
    transformer: Transformer
    vocoder: Vocoder
    scheduler: Scheduler
    processor: ProcessorMixin
    prompt_enhancer: PreTrainedModel
    duration_head: DurationHead
    diffusion_decoder: DiffusionDecoder
    pass_layout: PassLayout = PassLayout(batched="auto")
    """How the passes of a guided step are made: as one batch where that is faster, which is on cards and for few tokens."""
    begins_with_bos: bool | None = None
    """Whether prompts begin with `<bos>` also where the tokenizer does not put it there. Default `None`: with Gemma 4, whose
    tokenizer does not, though LTX-2.5 was trained with it. `False` leaves tokens as they are made, as in diffusers."""
    memory_plan: MemoryPlan | None = None
    """The plan that the pipeline was loaded by, if it was."""
    _prompt_cache: texts.PromptCache | None = None
    _forwards_per_step: int

    def __init__(
        self,
        scheduler: Scheduler,
        vae: video_vae.AutoencoderKLLTX2Video,
        audio_vae: AudioVAE,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        connectors: Connectors,
        transformer: Transformer,
        vocoder: Vocoder,
        processor: ProcessorMixin | None = None,
        prompt_enhancer: PreTrainedModel | None = None,
        duration_head: DurationHead | None = None,
        diffusion_decoder: DiffusionDecoder | None = None,
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
            duration_head=duration_head,
            diffusion_decoder=diffusion_decoder,
        )
        self.reset(Streams(NEUTRAL, NEUTRAL), None)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: Files,
        *,
        text_encoder: PreTrainedModel | str | os.PathLike | None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        torch_dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a pipeline from an original Lightricks checkpoint, which holds everything but the text encoder.

        Args:
            pretrained_model_link_or_path: The safetensors file, or a Hub link to it. Of a checkpoint with a file for each
                component, such as LTX-2.5: a list of them, a dictionary by component, or a folder with these and no others of
                their kind. Files are told by what they hold, not by their names.
            text_encoder: The Gemma model, or a folder, Hub id or original file that holds it (and, unless given, its tokenizer). `None`
                for a pipeline that is given precomputed states, or only encodes and decodes.
            tokenizer: The tokenizer of the text encoder.
            torch_dtype: Data type of all components, default that of the file.
            kwargs: Components to use in place of the file's (`vae=`, `scheduler=`, ...), `block_streaming` and
                `text_encoder_residency` as in `from_pretrained`, and options of
                [`~ltx2_diffusers.checkpoints.pipeline_file.load_pipeline_components`].
        """
        from ..checkpoints.pipeline_file import load_pipeline_components

        path, options = pretrained_model_link_or_path, {"tokenizer": tokenizer, "torch_dtype": torch_dtype, **kwargs}
        placement = Placement.taken_from(options, ["text_encoder"])
        text_encoder, own = placement.from_file(path, text_encoder, options)
        on_demand = text_encoder if isinstance(text_encoder, OnDemandModel) else None
        options["text_encoder"] = text_encoder if on_demand is None else None
        pipeline = cls(**load_pipeline_components(cls, path, **{**options, **own}))
        pipeline._text_encoder_on_demand = on_demand
        if isinstance(path, (str, os.PathLike)):
            pipeline.register_to_config(_name_or_path=os.fspath(path))
        return pipeline

    @classmethod
    def from_plan(cls, plan: MemoryPlan, device: torch.device | str | None = None, **components: Any) -> Self:
        """Load a pipeline exactly as a plan of memory says.

        Args:
            plan: Made by [`plan_memory`] or `plan_memory()` of a pipeline.
            device: Where to compute, default the accelerator, or the CPU without one. There everything is loaded and released
                as planned, too.
            components: Components to use in place of those of the checkpoint, which stay where they are.

        Raises:
            ValueError: If there are no weights where the plan has them, or it is for two stages and this pipeline has one.
        """
        from ..planning.loading import load_planned

        return load_planned(cls, plan, device, **components)

    def plan_memory(self, vram_gb: float, ram_gb: float | None = None, **wish: Any) -> MemoryPlan:
        """The fastest way to run this pipeline's checkpoint within a device's memory, for `from_plan`.

        Weights are counted as the checkpoint has them; the pipeline stays as it is.

        Args:
            vram_gb, ram_gb: Memory of the device and host memory in GiB.
            wish: Further arguments of [`plan_memory`]; `dtype` is that of the transformer by default.

        Raises:
            ValueError: If no plan fits, with the nearest that do; or if the pipeline was not loaded from a folder or file.
        """
        from .planned import plan_memory

        source = self.config.get("_name_or_path")
        if not source:
            raise ValueError(
                "this pipeline was not loaded from a folder or file; plan with the function plan_memory(checkpoint, ...)"
            )
        if self.transformer is not None:
            wish.setdefault("dtype", self.transformer.dtype)
        text = (
            origin.origin_of(self.text_encoder).path if os.path.isfile(source) and self.has("text_encoder") else None
        )
        return plan_memory(source, vram_gb, ram_gb, **{"text_encoder": text, **wish})

    def enable_parallelism(self, what: str = "tokens") -> None:
        """Share the work of every call among the processes that torchrun has started, each with a device of its own.

        `torch.distributed.init_process_group()` has to have been called, and every process has to make the same calls, with
        generators of the same seeds; all of them return the same result. The tiles of a video VAE with tiling are shared, too;
        those of a diffusion decoder, which draw noise, are not.

        Args:
            what: `"tokens"` (default) splits the video's tokens in every pass, which needs a fast connection; `"passes"` gives
                each process some passes of a guided step, which says little to the others but helps up to four processes
                and no further than there are passes.

        Raises:
            ValueError: If there are no such processes, or this pipeline cannot share its work among so many.
        """
        checks.check_choice("what", what, ("tokens", "passes"))
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            raise ValueError(
                "enable_parallelism() shares work among processes, but there is no group of them; start the program by torchrun, "
                "and call torch.distributed.init_process_group() first"
            )
        count, group = distributed.get_world_size(), distributed.group.WORLD
        if count == 1:
            return
        networks = [getattr(self, name) for name in ("transformer", "stage_2_transformer") if self.has(name)]
        if any(network._parallel_config is not None for network in networks):
            raise ValueError(
                "the tokens of this pipeline are shared among processes already; load it anew to change that"
            )
        if what == "passes":
            self.pass_layout = replace(self.pass_layout, batched=False, group=group)
        else:
            configs = [token_parallel_config(network, count) for network in networks]
            for network, config in zip(networks, configs):
                network.enable_parallelism(config=config)
            self.pass_layout = replace(self.pass_layout, group=None)
        if self.has("vae"):
            self.vae.share_tiles(group)

    @property
    def is_parallel(self) -> bool:
        """Whether calls share their work among processes."""
        return self.pass_layout.group is not None or self.transformer._parallel_config is not None

    def _card_facts(self) -> PipelineFacts:
        facts, texts_read = super()._card_facts(), self.has("text_encoder") and self.has("tokenizer")
        if not (self.has("transformer") and self.has("scheduler")):
            return replace(facts, has_text_encoder=texts_read)
        layers = self.transformer.config.num_layers
        return replace(facts, preset=self.preset, num_layers=layers, has_text_encoder=texts_read)

    def reset(self, scales: Scales, attention_kwargs: dict[str, Any] | None) -> None:
        """Show what a call begins with; called by the engine."""
        self._scales = Streams(*scales)
        self._attention_kwargs = attention_kwargs
        self._interrupt = False
        self._current_timestep = None
        self._num_timesteps = 0
        self._forwards_per_step = 0

    @property
    def preset(self) -> Preset:
        """Reference settings of the loaded checkpoint, by its version and kind."""
        self.require("transformer", "scheduler")
        return preset(model_version(self.transformer.config), self.kind or model_kind(self.scheduler.config))

    @property
    def image_crf(self) -> int:
        """H.264 quality of the round trip that conditioning pictures take by default."""
        return self.preset.image_crf

    @property
    def sizes(self) -> ModelSizes:
        """What the networks make of pixels, frames and seconds; a missing component leaves the published values."""
        network = self.transformer.config if self.has("transformer") else None
        audio = self.audio_vae.config if self.has("audio_vae") else None
        mel_bins = (64 if audio is None else audio.mel_bins) // self.audio_vae_mel_compression_ratio
        audio_channels = 8 if network is None else network.audio_in_channels // mel_bins
        return ModelSizes(
            self.vae_spatial_compression_ratio,
            self.vae_temporal_compression_ratio,
            128 if network is None else network.in_channels,
            self.transformer_spatial_patch_size,
            network is not None and self.marks_keyframes and network.use_keyframes_abs_pos_embedding,
            audio_channels if audio is None else audio.latent_channels,
            mel_bins,
            self.audio_sampling_rate,
            self.audio_hop_length,
            self.audio_vae_temporal_compression_ratio,
        )

    def encode_video(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised float32 latents `[B, C, F, h, w]` of pixels `[B, 3, frames, H, W]` in [-1, 1]."""
        self.require("vae")
        pixels = pixels.to(self._execution_device, self.vae.dtype)
        return self.vae.normalize_latents(self.vae.encode(pixels).latent_dist.mode().float())

    def encode_audio(self, waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
        """Normalised float32 latents `[B, C, L, M]` of a waveform `[B, channels, samples]` in [-1, 1]."""
        self.require("audio_vae")
        own_rate = self.audio_vae.config.sample_rate
        if waveform.shape[-1] * own_rate <= mel.N_FFT // 2 * sampling_rate:
            # The spectrogram reflects the ends, for which it needs more than half a window.
            waveform = fit_audio(waveform, mel.N_FFT / own_rate, sampling_rate)
        latents = self.audio_vae.encode_waveform(waveform.to(self._execution_device), sampling_rate)
        return self.audio_vae.normalize_latents(latents.float())

    def normalized_video(self, latents: torch.Tensor, plan: ClipPlan) -> torch.Tensor:
        """Normalised float32 latents `[B, C, F, h, w]` of un-normalised ones, or of packed and normalised ones."""
        latents = latents.to(self._execution_device, torch.float32)
        if latents.ndim == 5:
            return self.vae.normalize_latents(latents)
        return plan.tools.video.patchifier.unpatchify(latents, plan.video)

    def returned_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """What a call hands over as latents: un-normalised ones of normalised ones `[B, C, F, h, w]`."""
        return self.vae.denormalize_latents(latents)

    @declared.takes_declared
    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        max_sequence_length: int = 1024,
        scale_factor: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Encode prompts into language-model states that can be passed to the pipeline as `prompt_embeds`.

        Needs `text_encoder` and `tokenizer` only; a pipeline without these two takes the results.

        Args:
            prompt: Text or texts. Not needed with `prompt_embeds`.
            negative_prompt: Text or texts to steer away from; `None` means the empty text.
            do_classifier_free_guidance: Whether to encode the negative prompt too.
            num_videos_per_prompt: Each prompt's result is repeated this often, one after the other.
            prompt_embeds, negative_prompt_embeds: States `[B, T, C * L]` from an earlier call, returned repeated.
            prompt_attention_mask, negative_prompt_attention_mask: Their masks `[B, T]`.
            max_sequence_length: Padded length `T` in tokens; longer prompts are cut.
            scale_factor: Part of diffusers' method, where nothing reads it; only its default 8 is taken.
            device: Where to compute; default the pipeline's device.
            dtype: Type of the states; default the text encoder's.

        Returns:
            `(prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask)`; the last
            two are `None` without guidance, unless they are given. Positions in front of a prompt hold zeros: nothing
            reads them.
        """
        checks.check_choice("scale_factor", scale_factor, (8,))
        embeds = (prompt_embeds, negative_prompt_embeds)
        masks = (prompt_attention_mask, negative_prompt_attention_mask)
        prompts = texts.Prompts(prompt, negative_prompt, embeds, masks, num_videos_per_prompt, max_sequence_length)
        with_negative = do_classifier_free_guidance or negative_prompt_embeds is not None
        encoder = self._text_encoder(None if device is None else checks.as_device(device))
        encoded = texts.encode_prompt(encoder, prompts, with_negative, dtype)
        prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask = encoded
        # diffusers' tests read from this line which arguments of a call take the results.
        return prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask

    @declared.takes_declared
    def enhance_prompt(
        self,
        prompt: str | list[str],
        system_prompt: str | None = None,
        max_new_tokens: int | None = None,
        seed: int = 10,
        generator: Generators = None,
        generation_kwargs: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        image: PIL.Image.Image | None = None,
    ) -> list[str]:
        """Rewrite prompts; the same prompt and seed give the same text, and the global random state stays untouched.

        Args:
            prompt: Text or texts.
            system_prompt: Instructions to the language model, default this package's for text or for an image, and those of
                diffusers for a dedicated `prompt_enhancer`.
            max_new_tokens: Length of the answer, default 512 (600 with a dedicated `prompt_enhancer`).
            seed: Seed of the sampling; a `generator` given replaces it by its own initial seed.
            generator: See `seed`; of a list the first one counts.
            generation_kwargs: Replaces the sampling settings (temperature 0.7, or greedy for a dedicated model).
            device: Where to compute, default the pipeline's device.
            image: First frame of the video, which the text is to continue. Needs the component `processor`.

        Returns:
            One rewritten text per prompt; the prompt itself where the language model gave no answer.
        """
        if max_new_tokens is not None:
            checks.check_at_least_one(max_new_tokens=max_new_tokens)
        checks.check_seed("seed", seed)
        wish = texts.Enhancement(True, system_prompt, max_new_tokens, generation_kwargs, seed)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        return texts.enhance(
            self.chat_model, prompts, wish, checks.as_device(device or self._execution_device), generator, image
        )

    @declared.takes_declared
    def enable_prompt_cache(self, folder: str | os.PathLike, max_bytes: int | str | None = None) -> None:
        """Keep the text contexts of prompts in a folder, and take them from there when they are asked for again.

        A call whose prompts are all present runs neither text encoder nor connectors; the pipeline may then be built
        with `text_encoder=None, tokenizer=None, connectors=None`. Entries are told apart by text, tokenizer, text
        encoder, connectors with their active adapters, `max_sequence_length` and data type. With a cache each prompt
        is encoded alone, so that a call gives the same result whether its prompts were present or not. Calls with
        `prompt_embeds`, or with a callback that asks for them, pass the cache by.

        Args:
            folder: Where the entries lie. They hold the prompts as readable text.
            max_bytes: Most bytes in the folder, a number or like `"2GB"`; the least recently used entries are removed.
                Default no limit.
        """
        self._prompt_cache = texts.PromptCache(folder, max_bytes)

    def disable_prompt_cache(self) -> None:
        """Encode every prompt anew again; the folder stays as it is."""
        self._prompt_cache = None

    @property
    def prompt_cache(self) -> texts.PromptCache | None:
        """The cache in use."""
        return self._prompt_cache

    def enable_text_encoder_release(self) -> None:
        """Release the text encoder now, and load it only while it reads prompts that the prompt cache does not have.

        It is loaded to the pipeline's device, from the folder that it came from. The component `text_encoder` is None then.

        Raises:
            ValueError: If there is no text encoder, or its weights are not those of a folder on this machine.
        """
        if self._released is not None:
            return
        self.require("text_encoder")
        model, files = self.text_encoder, origin.origin_of(self.text_encoder)
        streamer = streamer_of(model)
        how: dict[str, Any] = (
            {} if streamer is None else {"streamed": streamer.source, "num_on_device": streamer.num_on_device}
        )
        on_demand = OnDemandModel(files.path, model.dtype, files.variant, **how)
        if on_demand.fingerprint() != fingerprint.model_fingerprint(model):
            raise ValueError(
                f"the text encoder is not what lies in {str(files.path)!r}, as after training or a quantisation; save it, and "
                "load it from there"
            )
        self._text_encoder_on_demand = on_demand
        self.register_modules(text_encoder=None)

    def disable_text_encoder_release(self) -> None:
        """Load the text encoder to the pipeline's device, to stay."""
        on_demand = self._released
        if on_demand is not None:
            with on_demand.session():
                self.register_modules(text_encoder=on_demand.kept(self._execution_device))
        self._text_encoder_on_demand = None

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save the pipeline as diffusers does; a text encoder that is on demand is loaded for it.

        Args:
            save_directory: Folder to save to.
            args, kwargs: Those of diffusers' method.
        """
        on_demand = self._released
        if on_demand is None:
            return super().save_pretrained(save_directory, *args, **kwargs)
        with on_demand.session():
            self.register_modules(text_encoder=on_demand.model(torch.device("cpu")))
            try:
                super().save_pretrained(save_directory, *args, **kwargs)
            finally:
                self.register_modules(text_encoder=None)

    @property
    def _on_demand(self) -> dict[str, Any]:
        on_demand = self._released
        return {} if on_demand is None else {"text_encoder": on_demand}

    @property
    def _released(self) -> OnDemandModel | None:
        """What stands for the text encoder while there is none; one that somebody has put there since is used instead."""
        return self._text_encoder_on_demand if self.text_encoder is None else None

    @property
    def _language_model(self) -> Any:
        """The text encoder, or what stands for it while it is not loaded."""
        return self.text_encoder if self._released is None else self._released

    @property
    def chat_model(self) -> texts.ChatModel:
        """The language model that writes prompts: the dedicated enhancer if there is one, else the text encoder."""
        if self.has("prompt_enhancer"):
            return texts.ChatModel(self.prompt_enhancer, self.tokenizer, self.processor, texts.DEDICATED_ENHANCER)
        return texts.ChatModel(self._language_model, self.tokenizer, self.processor, texts.OWN_ENCODER)

    @property
    def prompt_reader(self) -> texts.PromptReader:
        """Reads prompts with the components that are loaded."""
        dtype = None if self.transformer is None else self.transformer.dtype
        return texts.PromptReader(self._text_encoder(), self.chat_model, self._prompt_cache, dtype)

    def _text_encoder(self, device: torch.device | None = None) -> texts.TextEncoder:
        device = device or self._execution_device
        return texts.TextEncoder(self.tokenizer, self._language_model, self.connectors, device, self.begins_with_bos)

    # Of the running stage, or of the last one.
    guidance_scale = _scale("video", "cfg_scale", "Classifier-free guidance scale of the video.")
    stg_scale = _scale("video", "stg_scale", "Spatio-temporal guidance scale of the video.")
    modality_scale = _scale("video", "modality_scale", "Modality guidance scale of the video.")
    guidance_rescale = _scale("video", "rescale_scale", "Guidance rescale factor of the video.")
    audio_guidance_scale = _scale("audio", "cfg_scale", "Classifier-free guidance scale of the audio.")
    audio_stg_scale = _scale("audio", "stg_scale", "Spatio-temporal guidance scale of the audio.")
    audio_modality_scale = _scale("audio", "modality_scale", "Modality guidance scale of the audio.")
    audio_guidance_rescale = _scale("audio", "rescale_scale", "Guidance rescale factor of the audio.")

    # What callbacks written for diffusers set.
    _guidance_scale = _changing("video", "cfg_scale")
    _stg_scale = _changing("video", "stg_scale")
    _modality_scale = _changing("video", "modality_scale")
    _guidance_rescale = _changing("video", "rescale_scale")
    _audio_guidance_scale = _changing("audio", "cfg_scale")
    _audio_stg_scale = _changing("audio", "stg_scale")
    _audio_modality_scale = _changing("audio", "modality_scale")
    _audio_guidance_rescale = _changing("audio", "rescale_scale")

    do_classifier_free_guidance = _makes("cfg_scale", "Whether the call makes a pass with the negative prompt.")
    do_spatio_temporal_guidance = _makes("stg_scale", "Whether the call makes a perturbed pass.")
    do_modality_isolation_guidance = _makes("modality_scale", "Whether the streams are kept apart in a pass.")


class LTX2StagedPipeline(LTX2GenerationPipeline):
    """A pipeline whose calls may run the denoising loop more than once.

    Takes the components of [`LTX2Pipeline`] and the following. A `FlowMatchEulerDiscreteScheduler` is turned into the
    `LTX2Scheduler` of the same config, because the noise levels of a refining stage are fixed and must not be shifted.

    Args:
        latent_upsampler: Doubles height and width between two stages; needed by calls with two stages.
        temporal_upsampler: Doubles the frame rate; needed by stages that name it.
        stage_2_transformer: Transformer of the refining stage, in place of a distilled LoRA on `transformer`.
    """

    model_cpu_offload_seq: Any = (
        "prompt_enhancer->text_encoder->connectors->duration_head->transformer->latent_upsampler->temporal_upsampler"
        "->stage_2_transformer->vae->audio_vae->vocoder->diffusion_decoder"
    )
    _optional_components = [  # noqa: RUF012 (diffusers reads a list)
        *LTX2GenerationPipeline._optional_components,
        "latent_upsampler",
        "temporal_upsampler",
        "stage_2_transformer",
    ]
    latent_upsampler: Upsampler
    temporal_upsampler: Upsampler
    stage_2_transformer: Transformer

    @extends(LTX2GenerationPipeline)
    def __init__(
        self,
        *,
        latent_upsampler: Upsampler | None = None,
        temporal_upsampler: Upsampler | None = None,
        stage_2_transformer: Transformer | None = None,
        **components: Any,
    ) -> None:
        super().__init__(**{**components, "scheduler": unshifted(components["scheduler"])})
        self.register_modules(
            latent_upsampler=latent_upsampler,
            temporal_upsampler=temporal_upsampler,
            stage_2_transformer=stage_2_transformer,
        )

    def _card_facts(self) -> PipelineFacts:
        facts, stages = super()._card_facts(), inspect.signature(self.__call__).parameters.get("two_stage")
        if stages is None or not stages.default or facts.preset is None:
            return facts
        if not self.has("latent_upsampler"):
            return replace(facts, extra=["two_stage=False"])
        refines = facts.preset.kind == "distilled" or self.has("stage_2_transformer")
        return facts if refines else replace(facts, extra=["stage_2_adapters={}"])
