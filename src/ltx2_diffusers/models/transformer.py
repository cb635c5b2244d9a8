"""The audio-video diffusion transformer of LTX-2.

Shapes: B batch, S video tokens, A audio tokens, T text tokens, C channels, L blocks.

It predicts the rectified-flow velocity (noise minus clean sample) of both streams.
"""

# The constructor's arguments are read back from `self.config`, where `register_to_config` puts them.
# ruff: noqa: ARG002

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.embeddings import PixArtAlphaTextProjection
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput, apply_lora_scale
from torch import nn

from .block_graphs import graphs_of
from .context_parallel import SplitPoint, context_parallel_plan, gathered, on_processors
from .loading import CheckpointMixin
from .modulation import AdaLayerNormSingle, Modulation, evaluate
from .negative_text import NegativeText
from .perturbation import PERTURBATION_MODES, BlockPlan, block_plans, keep_masks
from .rope import AudioRotaryPositionEmbedding, RotaryPositionEmbedding, RotarySpec, VideoRotaryPositionEmbedding
from .saving import AtomicAdapterSaveMixin
from .step_cache import StepCache, StepCacheMixin
from .tensor_memo import TensorMemo
from .text_cache import TextCache
from .transformer_block import LTX2AVTransformerBlock, SharedSettings, StreamInputs, StreamSizes
from .transformer_stream import (
    CROSS_TIMESTEP_MODES,
    ModelStream,
    StreamRequest,
    check_config,
    self_mask_bias,
    stream_request,
    stream_sizes,
    stream_timesteps,
    text_mask_bias,
    with_negative,
)

# Epsilon of the norms before the output projections in every published checkpoint; it is no config key.
OUTPUT_NORM_EPS = 1e-6


@dataclass
class AudioVisualModelOutput(BaseOutput):
    """Velocities of both streams.

    Args:
        sample (`torch.Tensor`, *optional*): `[B, S, out_channels]`; `None` without a video stream.
        audio_sample (`torch.Tensor`, *optional*): `[B, A, audio_out_channels]`; `None` without an audio stream.
    """

    sample: torch.Tensor | None = None
    audio_sample: torch.Tensor | None = None


# One entry for the video and one for the audio.
Tokens = tuple[torch.Tensor, torch.Tensor]
Requests = tuple[StreamRequest | None, StreamRequest | None]
Caches = tuple[TextCache | None, TextCache | None]


class PreparedForward(NamedTuple):
    """Everything a forward pass needs before its first block; all but the last two for video and audio.

    Args:
        tokens (`tuple[torch.Tensor, torch.Tensor]`): `[B, S or A, D]`; no tokens where a stream is absent.
        contexts (`tuple[torch.Tensor, torch.Tensor]`): Text contexts as the blocks take them; no tokens where a stream
            is absent.
        inputs (`tuple[StreamInputs, StreamInputs]`): What all blocks receive.
        heads (`tuple[Modulation, Modulation]`): What the output heads receive; `None` where a stream is absent.
        variants (`list[list[BlockPlan]]`): What every block computes, for each prediction asked for.
        text_caches (`tuple[TextCache, TextCache]`): Where blocks keep keys and values of the text and of the negative
            text; `None` where they are not kept.
    """

    tokens: Tokens
    contexts: Tokens
    inputs: tuple[StreamInputs, StreamInputs]
    heads: tuple[Modulation | None, Modulation | None]
    variants: list[list[BlockPlan]]
    text_caches: Caches


class LTX2AVTransformer3DModel(
    CheckpointMixin, AtomicAdapterSaveMixin, StepCacheMixin, ModelMixin, ConfigMixin, AttentionMixin, PeftAdapterMixin
):
    """The transformer that denoises video and audio together, with text conditioning each stream.

    Configuration and state dict are those of diffusers' `LTX2VideoTransformer3DModel`.

    Args:
        in_channels, audio_in_channels (`int`, defaults to 128): Channels of a token.
        out_channels, audio_out_channels (`int`, *optional*, defaults to 128): Channels of a prediction; `None` or 0
            takes those of the input.
        patch_size, patch_size_t, audio_patch_size, audio_patch_size_t (`int`, defaults to 1): Latent rows and columns,
            and latent frames per token; used for coordinates only. `audio_patch_size` has no effect.
        num_attention_heads, attention_head_dim (`int`, defaults to 32 and 128): Of the video stream.
        audio_num_attention_heads, audio_attention_head_dim (`int`, defaults to 32 and 64): Of the audio stream and of
            the attention between the streams.
        cross_attention_dim (`int`, defaults to 4096): Width of the video's text context inside the blocks.
        audio_cross_attention_dim (`int`, defaults to 2048): Width of the audio's, and of the rotary tables between
            the streams.
        vae_scale_factors (`tuple[int, int, int]`, defaults to (8, 32, 32)): Pixel frames, rows and columns per latent.
        pos_embed_max_pos, audio_pos_embed_max_pos (`int`, defaults to 20): Length of the time axes in seconds.
        base_height, base_width (`int`, defaults to 2048): Length of the other video axes in pixels.
        gated_attn, audio_gated_attn (`bool`, defaults to `False`): Head gates in attentions of the stream's queries.
        cross_attn_mod, audio_cross_attn_mod (`bool`, defaults to `False`): Modulation and gate of the attention to the
            text; either one also modulates both text contexts.
        audio_scale_factor (`int`, defaults to 4): Mel frames per audio latent frame.
        audio_sampling_rate, audio_hop_length (`int`, defaults to 16000 and 160): Of the mel spectrogram.
        num_layers (`int`, defaults to 48): Number of blocks L.
        activation_fn (`str`, defaults to `"gelu-approximate"`): Of the feed-forward layers; `"gelu"` is the other one.
        qk_norm (`str`, defaults to `"rms_norm_across_heads"`): The only norm of queries and keys there is.
        norm_elementwise_affine (`bool`, defaults to `False`): Whether the norms of the blocks have weights.
        norm_eps (`float`, defaults to 1e-6): Epsilon of the norms of the blocks.
        caption_channels (`int`, defaults to 3840): Width of the text features before projection.
        attention_bias, attention_out_bias (`bool`, defaults to `True`): Biases of the attention projections.
        rope_theta (`float`, defaults to 10000.0): Ratio of the highest to the lowest rotary frequency.
        rope_double_precision (`bool`, defaults to `True`): Whether rotary frequencies are computed in float64.
        causal_offset (`int`, defaults to 1): Pixel frames, or mel frames, that the first latent frame stands for.
        timestep_scale_multiplier (`int`, defaults to 1000): Timestep of noise level 1.
        cross_attn_timestep_scale_multiplier (`int`, defaults to 1000): The same for gates between the streams.
        rope_type (`str`, defaults to `"interleaved"`): `"interleaved"`, or `"split"` as in all published checkpoints.
        use_prompt_embeddings (`bool`, defaults to `True`): Whether text features are projected here (2.0).
        perturbed_attn (`bool`, defaults to `False`): Whether a perturbed self-attention hands its values through (2.3)
            or is dropped (2.0), unless the call says which.
        ff_bias, audio_ff_bias (`bool`, defaults to `True`): Biases of the feed-forward layers.
        use_prompt_adaln_single (`bool`, defaults to `True`): Whether the modulation of text contexts depends on the
            noise level.
        use_keyframes_abs_pos_embedding (`bool`, defaults to `False`): Whether keyframe tokens get an embedding (2.5).
    """

    _supports_gradient_checkpointing = True
    _supports_group_offloading = True
    # `Any` because diffusers declares `None` or a list for what it reads as names, a plan and a function.
    # What is no attention or feed-forward layer is a fiftieth of the weights, and decides how exact a step is.
    _skip_layerwise_casting_patterns: Any = (
        *("norm", "proj_in", "proj_out", "time_embed", "caption_projection", "av_cross_attn", "prompt_adaln"),
        "to_gate_logits",
    )
    # The same for other libraries, some of which know layers by the last part of their names.
    _not_quantized = (
        *("proj_in", "audio_proj_in", "proj_out", "audio_proj_out", "linear", "linear_1", "linear_2"),
        "to_gate_logits",
    )
    _repeated_blocks: Any = ("LTX2AVTransformerBlock",)
    _no_split_modules: Any = ("LTX2AVTransformerBlock",)
    _cp_plan: Any = context_parallel_plan("split")
    _gradient_checkpointing_func: Any

    @register_to_config
    def __init__(
        self,
        in_channels: int = 128,
        out_channels: int | None = 128,
        patch_size: int = 1,
        patch_size_t: int = 1,
        num_attention_heads: int = 32,
        attention_head_dim: int = 128,
        cross_attention_dim: int = 4096,
        vae_scale_factors: tuple[int, int, int] = (8, 32, 32),
        pos_embed_max_pos: int = 20,
        base_height: int = 2048,
        base_width: int = 2048,
        gated_attn: bool = False,
        cross_attn_mod: bool = False,
        audio_in_channels: int = 128,
        audio_out_channels: int | None = 128,
        audio_patch_size: int = 1,
        audio_patch_size_t: int = 1,
        audio_num_attention_heads: int = 32,
        audio_attention_head_dim: int = 64,
        audio_cross_attention_dim: int = 2048,
        audio_scale_factor: int = 4,
        audio_pos_embed_max_pos: int = 20,
        audio_sampling_rate: int = 16000,
        audio_hop_length: int = 160,
        audio_gated_attn: bool = False,
        audio_cross_attn_mod: bool = False,
        num_layers: int = 48,
        activation_fn: str = "gelu-approximate",
        qk_norm: str = "rms_norm_across_heads",
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-6,
        caption_channels: int = 3840,
        attention_bias: bool = True,
        attention_out_bias: bool = True,
        rope_theta: float = 10000.0,
        rope_double_precision: bool = True,
        causal_offset: int = 1,
        timestep_scale_multiplier: int = 1000,
        cross_attn_timestep_scale_multiplier: int = 1000,
        rope_type: str = "interleaved",
        use_prompt_embeddings: bool = True,
        perturbed_attn: bool = False,
        ff_bias: bool = True,
        audio_ff_bias: bool = True,
        use_prompt_adaln_single: bool = True,
        use_keyframes_abs_pos_embedding: bool = False,
    ) -> None:
        super().__init__()
        video, audio = stream_sizes(self.config)
        check_config(self.config, video, audio)
        self._add_stream("", video, audio)
        self._add_stream("audio_", audio, video)
        self._add_position_embeddings(video, audio)
        parts = video, audio, SharedSettings(*(self.config[name] for name in SharedSettings._fields))
        self.transformer_blocks = nn.ModuleList(LTX2AVTransformerBlock(*parts) for _ in range(num_layers))
        self.split_tokens, self.split_token_index = SplitPoint(), SplitPoint()
        self._cp_plan, self._mask_memo = context_parallel_plan(rope_type), TensorMemo()
        self.gradient_checkpointing = False

    def _add_stream(self, prefix: str, sizes: StreamSizes, other: StreamSizes) -> None:
        """Add the modules of one stream outside the blocks, under the names of the checkpoints."""
        config, dim = self.config, sizes.dim
        in_channels = config[f"{prefix}in_channels"]
        out_channels = config[f"{prefix}out_channels"] or in_channels
        self.add_module(f"{prefix}proj_in", nn.Linear(in_channels, dim))
        if config.use_prompt_embeddings:
            self.add_module(f"{prefix}caption_projection", PixArtAlphaTextProjection(config.caption_channels, dim))
        self.add_module(f"{prefix}time_embed", AdaLayerNormSingle(dim, sizes.num_values))
        if (sizes.modulates_text or other.modulates_text) and config.use_prompt_adaln_single:
            self.add_module(f"{prefix}prompt_adaln", AdaLayerNormSingle(dim, 2))
        self.add_module(f"av_cross_attn_{prefix or 'video_'}scale_shift", AdaLayerNormSingle(dim, 4))
        gate = "av_cross_attn_audio_v2a_gate" if prefix else "av_cross_attn_video_a2v_gate"
        self.add_module(gate, AdaLayerNormSingle(dim, 1))
        self.register_parameter(f"{prefix}scale_shift_table", nn.Parameter(torch.randn(2, dim) / dim**0.5))
        self.add_module(f"{prefix}norm_out", nn.LayerNorm(dim, eps=OUTPUT_NORM_EPS, elementwise_affine=False))
        self.add_module(f"{prefix}proj_out", nn.Linear(dim, out_channels))

    def _add_position_embeddings(self, video: StreamSizes, audio: StreamSizes) -> None:
        config = self.config
        if config.use_keyframes_abs_pos_embedding:
            self.keyframes_abs_pos_embedding = nn.Parameter(torch.zeros(1, video.dim))
        common = config.rope_type, config.rope_theta, config.rope_double_precision
        video_axes = (config.pos_embed_max_pos, config.base_height, config.base_width)
        self.rope = VideoRotaryPositionEmbedding(
            RotarySpec(video.dim, video.heads, video_axes, *common),
            patch_size=config.patch_size,
            patch_size_t=config.patch_size_t,
            scale_factors=config.vae_scale_factors,
            causal_offset=config.causal_offset,
        )
        self.audio_rope = AudioRotaryPositionEmbedding(
            RotarySpec(audio.dim, audio.heads, (config.audio_pos_embed_max_pos,), *common),
            patch_size_t=config.audio_patch_size_t,
            scale_factor=config.audio_scale_factor,
            causal_offset=config.causal_offset,
            hop_length=config.audio_hop_length,
            sampling_rate=config.audio_sampling_rate,
        )
        # Between the streams only time is shared, on the longer of both axes.
        seconds = max(config.pos_embed_max_pos, config.audio_pos_embed_max_pos)
        spec = RotarySpec(config.audio_cross_attention_dim, audio.heads, (seconds,), *common)
        self.cross_attn_rope = RotaryPositionEmbedding(spec)
        self.cross_attn_audio_rope = RotaryPositionEmbedding(spec)

    def set_attention_backend(self, backend: str) -> None:
        """Choose the attention kernel.

        Args:
            backend (`str`): A name of diffusers' attention dispatcher, or `"auto"`, which is what a new model does:
                FlashAttention-3 where it applies, then xFormers, then PyTorch's attention.
        """
        if backend == "auto":
            self.reset_attention_backend()
        else:
            super().set_attention_backend(backend)

    def _resolve_parallel_config(self, config: Any) -> Any:
        parallel: Any = on_processors(config)
        if parallel is None:
            return super()._resolve_parallel_config(config)
        self._parallel_config = parallel
        return parallel

    def enable_cache(self, config: Any) -> None:
        """As in diffusers.

        Args:
            config: The settings of one of diffusers' caches.

        Raises:
            ValueError: If blocks are compiled and the cache would put hooks on layers within them.
        """
        super().enable_cache(config)
        compiled = self.__dict__.get("_compiled_region")
        within = (part for block in self.transformer_blocks for part in block.modules() if part is not block)
        if compiled is not None and any(hasattr(part, "_diffusers_hook") for part in within):
            self.disable_cache()
            raise ValueError(
                f"{type(config).__name__} puts hooks on layers within the blocks, which are compiled without; take "
                "FirstBlockCacheConfig or MagCacheConfig, or call uncompile() first"
            )

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor | None,
        audio_hidden_states: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor | None,
        audio_encoder_hidden_states: torch.Tensor | None,
        timestep: torch.Tensor | None,
        audio_timestep: torch.Tensor | None = None,
        sigma: torch.Tensor | None = None,
        audio_sigma: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        audio_encoder_attention_mask: torch.Tensor | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        fps: float = 24.0,
        audio_num_frames: int | None = None,
        video_coords: torch.Tensor | None = None,
        audio_coords: torch.Tensor | None = None,
        isolate_modalities: bool = False,
        spatio_temporal_guidance_blocks: list[int] | None = None,
        perturbation_mask: torch.Tensor | None = None,
        use_cross_timestep: bool = False,
        attention_kwargs: dict[str, Any] | None = None,
        video_self_attention_mask: torch.Tensor | None = None,
        video_keyframes_mask: torch.Tensor | None = None,
        return_dict: bool = True,
        *,
        video_enabled: bool = True,
        audio_enabled: bool = True,
        perturbation_keep_masks: torch.Tensor | list[torch.Tensor | None] | None = None,
        perturbation_mode: str | None = None,
        cross_timestep_mode: str | None = None,
        text_cache: TextCache | None = None,
        negative_text: NegativeText | None = None,
        step_cache: StepCache | None = None,
    ) -> AudioVisualModelOutput | tuple[torch.Tensor | None, ...] | list:
        """Predict the velocities of both streams, or of the one that is given.

        Args:
            hidden_states (`torch.Tensor`, *optional*): Video latents `[B, S, in_channels]`; `None` for audio alone.
            audio_hidden_states (`torch.Tensor`, *optional*): Audio latents `[B, A, audio_in_channels]`; `None` for
                video alone.
            encoder_hidden_states, audio_encoder_hidden_states (`torch.Tensor`): Text features of each stream,
                `[B, T, caption_channels]`, or `[B, T, cross_attention_dim]` and `[B, T, audio_cross_attention_dim]`
                without `use_prompt_embeddings`.
            timestep (`torch.Tensor`): Noise level times 1000, `[B]`, or `[B, S]` with one value per token.
            audio_timestep (`torch.Tensor`, *optional*, defaults to `timestep`): `[B]` or `[B, A]`.
            sigma (`torch.Tensor`, *optional*): Noise level of the sample times 1000, `[B]`; needed by models with
                prompt modulation and by `cross_timestep_mode` other than `"own"`.
            audio_sigma (`torch.Tensor`, *optional*, defaults to `sigma`): `[B]`.
            encoder_attention_mask, audio_encoder_attention_mask (`torch.Tensor`, *optional*): `[B, T]` of 1 (attend)
                and 0, or `[B, 1 or tokens, T]` to be added to the scores.
            num_frames, height, width (`int`, *optional*): Latent grid, needed without `video_coords`.
            fps (`float`, defaults to 24.0): Frames per second, for the same purpose.
            audio_num_frames (`int`, *optional*): Audio latent frames, needed without `audio_coords`.
            video_coords (`torch.Tensor`, *optional*): `[B, 3, S, 2]` seconds, pixel rows, pixel columns, [start, end).
                Rotary tables are kept for as long as the same tensor is passed unchanged.
            audio_coords (`torch.Tensor`, *optional*): `[B, 1, A, 2]` seconds.
            isolate_modalities (`bool`, defaults to `False`): Drop the attention between the streams.
            spatio_temporal_guidance_blocks (`list[int]`, *optional*): Blocks, from 0, whose self-attention is
                perturbed in both streams.
            perturbation_mask (`torch.Tensor`, *optional*): `[B]` or `[B, 1, 1]`: 0 for samples those blocks perturb.
            use_cross_timestep (`bool`, defaults to `False`): `True` stands for `cross_timestep_mode="other"`, `False`
                for `"own"`.
            attention_kwargs (`dict`, *optional*): `scale` sets the strength of LoRA layers; other entries are ignored.
            video_self_attention_mask (`torch.Tensor`, *optional*): `[B, S, S]` in [0, 1]; what the attention weight of
                a key is multiplied by before weights are normalised.
            video_keyframes_mask (`torch.Tensor`, *optional*): `[B, S, 1]`, above 0 for keyframe tokens; without effect
                on models without `use_keyframes_abs_pos_embedding`.
            return_dict (`bool`, defaults to `True`): Whether to return an [`AudioVisualModelOutput`] or a tuple.
            video_enabled, audio_enabled (`bool`, defaults to `True`): `False` leaves the tokens of a stream as they
                enter the blocks, still visible to the other stream; its own prediction then means nothing.
            perturbation_keep_masks (`torch.Tensor`, *optional*): `[4, L, B]`, best on the CPU: 0 perturbs the video's
                or the audio's self-attention, or drops the attention of video to audio or of audio to video, for one
                block and one sample; 1 does not. A list of masks (`None` perturbs nothing) asks for one prediction per
                mask, returned as a list; blocks up to the first that differs are computed once for all of them.
            perturbation_mode (`str`, *optional*, defaults to what `perturbed_attn` says): What a perturbed
                self-attention does: `"passthrough"` of its values, or `"skip"` of its branch.
            cross_timestep_mode (`str`, *optional*): Which noise level conditions the attention between the streams:
                a stream's `"own"` timesteps (2.0), the `"other"` stream's sigma, or own timesteps for scale and shift
                and the other stream's sigma for the `"gate"` (newest reference). Overrides `use_cross_timestep`.
            text_cache ([`TextCache`], *optional*): Keeps what depends on the prompt alone for the next call with the
                same text; without gradients only. With text modulation that depends on the noise level (2.3) nothing
                does.
            negative_text ([`NegativeText`], *optional*): A prompt to guide away from in the attention to the text of both
                streams, see [`normalized_attention_guidance`]; only that attention is computed twice.
            step_cache ([`StepCache`], *optional*): Where the predictions of a run that read one prompt keep what the blocks
                added, made by `new_step_cache`; by default that of the `cache_context` around the call. Not read unless
                `enable_cache` was called with a configuration that skips whole predictions, nor with gradients.
        """
        video_coords = self._video_coords(hidden_states, video_coords, (num_frames, height, width), fps)
        audio_coords = self._audio_coords(audio_hidden_states, audio_coords, audio_num_frames)
        audio_timestep = timestep if audio_timestep is None else audio_timestep
        audio_sigma = sigma if audio_sigma is None else audio_sigma
        video = stream_request("video", hidden_states, encoder_hidden_states, timestep, sigma, video_coords)
        audio_text = audio_encoder_hidden_states
        audio = stream_request("audio", audio_hidden_states, audio_text, audio_timestep, audio_sigma, audio_coords)
        present = video or audio
        if present is None:
            raise ValueError("Neither hidden_states nor audio_hidden_states has tokens; give at least one of them.")
        if video is not None:
            video = video._replace(text_mask=encoder_attention_mask, self_mask=video_self_attention_mask)
            video = video._replace(enabled=video_enabled, keyframes_mask=video_keyframes_mask)
            video = with_negative(video, negative_text)
        if audio is not None:
            audio = audio._replace(text_mask=audio_encoder_attention_mask, enabled=audio_enabled)
            audio = with_negative(audio, negative_text)
        _check_modes(perturbation_mode, cross_timestep_mode)
        given = perturbation_keep_masks
        masks = given if isinstance(given, (list, tuple)) else [given]
        several = masks is given
        self._check_hooks(several)
        memory = self._usable_step_cache(step_cache)
        sizes = len(self.transformer_blocks), present.tokens.shape[0]
        stg_blocks = spatio_temporal_guidance_blocks
        keeps = [keep_masks(*sizes, isolate_modalities, stg_blocks, perturbation_mask, mask) for mask in masks]
        requests = video, audio
        variants = self._variants(requests, keeps, perturbation_mode, present.tokens)
        cross_mode = cross_timestep_mode or ("other" if use_cross_timestep else "own")
        caches = self._usable_caches(text_cache, negative_text, requests)
        prepared = self._prepare(requests, variants, cross_mode, caches, present.tokens)
        if memory is None:
            states = self._run_blocks(prepared, [prepared.tokens] * len(variants), range(len(variants[0])))
        else:
            states = self._run_or_reuse(prepared, _pass_keys(prepared, keeps, requests, perturbation_mode), memory)
        velocities = [self._finish(prepared, tokens, requests) for tokens in states]
        outputs: list[AudioVisualModelOutput] | list[tuple[torch.Tensor | None, torch.Tensor | None]]
        outputs = [AudioVisualModelOutput(*streams) for streams in velocities] if return_dict else velocities
        return outputs if several else outputs[0]

    def _video_coords(
        self,
        tokens: torch.Tensor | None,
        coords: torch.Tensor | None,
        grid: tuple[int | None, int | None, int | None],
        fps: float,
    ) -> torch.Tensor | None:
        """The coordinates given, or those of the latent grid where there are tokens."""
        if coords is not None or tokens is None or tokens.shape[1] == 0:
            return coords
        frames, height, width = grid
        if frames is None or height is None or width is None:
            raise ValueError(
                f"Without video_coords, num_frames, height and width of the latent grid are needed; got {grid}."
            )
        return self.rope.prepare_video_coords(tokens.shape[0], frames, height, width, tokens.device, fps=fps)

    def _audio_coords(
        self, tokens: torch.Tensor | None, coords: torch.Tensor | None, num_frames: int | None
    ) -> torch.Tensor | None:
        """The coordinates given, or those of the latent frames where there are tokens."""
        if coords is not None or tokens is None or tokens.shape[1] == 0:
            return coords
        if num_frames is None:
            raise ValueError("Without audio_coords, audio_num_frames is needed; got None.")
        return self.audio_rope.prepare_audio_coords(tokens.shape[0], num_frames, tokens.device)

    def _check_hooks(self, several: bool) -> None:
        """Refuse calls that hooks of an enabled cache of the host library would answer wrongly."""
        if several and self.is_cache_enabled and not self.caches_blocks:
            raise ValueError(
                f"{type(self._cache_config).__name__} remembers one prediction per call, but perturbation_keep_masks asks for "
                "several; call disable_cache() or pass one mask at a time."
            )

    def _usable_caches(self, cache: TextCache | None, negative: NegativeText | None, requests: Requests) -> Caches:
        """The caches of the text and of the negative text, as far as they are given and may be used."""
        if torch.is_grad_enabled() or hasattr(self, "prompt_adaln"):
            return None, None
        if cache is not None:
            cache.check_sources(*(request and request.context for request in requests))
        if negative is None or negative.cache is None:
            return cache, None
        video, audio = requests
        negative.cache.check_sources(video and negative.video, audio and negative.audio)
        return cache, negative.cache

    def _variants(
        self, requests: Requests, keeps: list[torch.Tensor | None], perturbation_mode: str | None, tokens: torch.Tensor
    ) -> list[list[BlockPlan]]:
        """What every block computes, for each keep mask."""
        updates_video, updates_audio = (request is not None and request.enabled for request in requests)
        both = None not in requests
        base = BlockPlan(
            a2v=both and updates_video,
            v2a=both and updates_audio,
            video=updates_video,
            audio=updates_audio,
            passthrough=perturbation_mode == "passthrough" if perturbation_mode else self.config.perturbed_attn,
        )
        return block_plans(keeps, base, len(self.transformer_blocks), tokens.device, tokens.dtype)

    def _prepare(
        self, requests: Requests, variants: list[list[BlockPlan]], mode: str, caches: Caches, tokens: torch.Tensor
    ) -> PreparedForward:
        """Project the inputs and compute what all blocks share; `tokens` are those of a stream that is present."""
        cross_mode = mode if any(plan.crosses for plans in variants for plan in plans) else None
        empty = tokens.new_zeros(tokens.shape[0], 0, 1)
        streams = (self._prepare_stream(pair, cross_mode, caches, empty) for pair in (requests, requests[::-1]))
        projected, contexts, inputs, heads = zip(*streams)
        return PreparedForward(projected, contexts, inputs, heads, variants, caches)

    def _prepare_stream(
        self, pair: Requests, cross_mode: str | None, caches: Caches, empty: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, StreamInputs, Modulation | None]:
        """Tokens, text context, block inputs and head values of one stream; `cross_mode` is `None` if isolated.

        The pair is the request of this stream and that of the other one.
        """
        request, other = pair
        if request is None:
            return empty, empty, StreamInputs(), None
        is_video = request.name == "video"
        stream = ModelStream(self, "" if is_video else "audio_")
        x = stream.proj_in(request.tokens)
        if request.keyframes_mask is not None and self.config.use_keyframes_abs_pos_embedding:
            x = x + (request.keyframes_mask > 0).to(x.dtype) * self.keyframes_abs_pos_embedding.to(x.dtype)
        shares_tokens = is_video and self._parallel_config is not None
        timesteps = stream_timesteps(request, self.split_token_index if shares_tokens else None)
        modulation, head = evaluate(stream.time_embed, *timesteps, x.dtype)
        cross: tuple[Modulation | None, Modulation | None] = (None, None)
        if cross_mode is not None and other is not None:
            cross = stream.cross_modulation(timesteps, other, cross_mode, x.dtype)
        inputs = StreamInputs(
            modulation,
            *cross,
            prompt=stream.prompt_modulation(request, x.dtype),
            rotary=stream.rope(request.coords, device=x.device),
            cross_rotary=stream.cross_rope(request.coords, device=x.device),
            text_mask=text_mask_bias(request, x.dtype, self._mask_memo),
            self_mask=self_mask_bias(request, x.dtype, self._mask_memo),
        )
        if request.negative is not None:
            undesired = stream.cached_context(request.negative.context, caches[1])
            inputs = inputs._replace(negative=request.negative._replace(context=undesired))
        tokens = self.split_tokens(x) if is_video else x
        return tokens, stream.cached_context(request.context, caches[0]), inputs, head

    def _run_blocks(self, prepared: PreparedForward, states: list[Tokens], indices: range) -> list[Tokens]:
        """Tokens of both streams after some blocks, for every variant."""
        graphs = graphs_of(self)
        if graphs is None:
            return self._loop(prepared, states, indices)
        return graphs.run(self.transformer_blocks, self._loop, prepared, states, indices)

    def _loop(self, prepared: PreparedForward, states: list[Tokens], indices: range) -> list[Tokens]:
        """The same, as it is written; what variants share is computed once."""
        for index in indices:
            block, plans = self.transformer_blocks[index], [plans[index] for plans in prepared.variants]
            done: dict[tuple, Tokens] = {}
            keys = [(id(state), plan.fingerprint()) for state, plan in zip(states, plans)]
            for key, state, plan in zip(keys, states, plans):
                if key not in done:
                    done[key] = self._run_block(index, block, state, prepared, plan)
            states = [done[key] for key in keys]
        return states

    def _run_or_reuse(self, prepared: PreparedForward, keys: list[Hashable], memory: StepCache) -> list[Tokens]:
        """The same after all blocks, where those after the lead run only for variants that cannot reuse an earlier step."""
        states = self._run_blocks(prepared, [prepared.tokens] * len(keys), range(memory.lead))
        results = memory.reused(keys, prepared.tokens, states)
        missing = [index for index, result in enumerate(results) if result is None]
        if missing:
            rest = prepared._replace(variants=[prepared.variants[index] for index in missing])
            entered = [states[index] for index in missing]
            made = self._run_blocks(rest, entered, range(memory.lead, len(self.transformer_blocks)))
            memory.keep([keys[index] for index in missing], entered, made)
        computed = iter(made if missing else ())
        return [next(computed) if result is None else result for result in results]

    def _run_block(
        self, index: int, block: nn.Module, state: Tokens, prepared: PreparedForward, plan: BlockPlan
    ) -> Tokens:
        arguments = *state, *prepared.contexts, *prepared.inputs, plan
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *arguments)
        slots = (
            (None, None) if cache is None else (cache.slot("video", index), cache.slot("audio", index))
            for cache in prepared.text_caches
        )
        return block(*arguments, *slots)

    def _finish(
        self, prepared: PreparedForward, tokens: Tokens, requests: Requests
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Velocities of video and audio; `None` for an absent stream."""
        video, audio = (
            None if head is None else ModelStream(self, prefix).head(x, head)
            for prefix, x, head in zip(("", "audio_"), tokens, prepared.heads)
        )
        if requests[0] is not None and video is not None and self._parallel_config is not None:
            video = gathered(video, requests[0].tokens.shape[1], self._parallel_config)
        return video, audio


def _pass_keys(
    prepared: PreparedForward, keeps: list[torch.Tensor | None], requests: Requests, mode: str | None
) -> list[Hashable]:
    """What tells the predictions of calls apart: their sizes, which streams they update, and what they perturb."""
    enabled = tuple(request is not None and request.enabled for request in requests)
    common = (*(tuple(tokens.shape) for tokens in prepared.tokens), enabled, mode)
    return [(*common, None if keep is None else keep.numpy().tobytes()) for keep in keeps]


def _check_modes(perturbation_mode: str | None, cross_mode: str | None) -> None:
    for name, value, allowed in (
        ("perturbation_mode", perturbation_mode, PERTURBATION_MODES),
        ("cross_timestep_mode", cross_mode, CROSS_TIMESTEP_MODES),
    ):
        if value is not None and value not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")


# diffusers' name of the class.
LTX2VideoTransformer3DModel = LTX2AVTransformer3DModel
