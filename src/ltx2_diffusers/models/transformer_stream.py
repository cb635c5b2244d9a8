"""One stream of the audio-video transformer outside its blocks: sizes, input projection, conditioning, output head.

Shapes: B batch, S tokens of the stream, T text tokens, D width, R distinct timesteps.
"""

from typing import Any, NamedTuple

import torch
from diffusers.models.embeddings import PixArtAlphaTextProjection
from torch import nn

from ..kernels.fusing import fuses
from ..kernels.steps import ScaleShift, TokenLayout, modulate
from .modulation import AdaLayerNormSingle, Modulation, distinct_timesteps, evaluate
from .negative_text import NegativeContext, NegativeText
from .rope import RotaryPositionEmbedding
from .tensor_memo import TensorMemo, host_can_read
from .text_cache import TextCache
from .transformer_block import StreamSizes

# A score lowered by this much has no weight; the value is diffusers' for text masks.
MASKED_SCORE = -10000.0

# How the attention between the streams is conditioned on time: see `LTX2AVTransformer3DModel.forward`.
CROSS_TIMESTEP_MODES = ("own", "other", "gate")


def stream_sizes(config: Any) -> tuple[StreamSizes, StreamSizes]:
    """Sizes of the video and the audio stream."""
    video, audio = (
        StreamSizes(
            dim=config[f"{prefix}num_attention_heads"] * config[f"{prefix}attention_head_dim"],
            heads=config[f"{prefix}num_attention_heads"],
            head_dim=config[f"{prefix}attention_head_dim"],
            context_dim=config[f"{prefix}cross_attention_dim"],
            gated_attn=config[f"{prefix}gated_attn"],
            modulates_text=config[f"{prefix}cross_attn_mod"],
            ff_bias=config[f"{prefix}ff_bias"],
        )
        for prefix in ("", "audio_")
    )
    return video, audio


def check_config(config: Any, video: StreamSizes, audio: StreamSizes) -> None:
    """Refuse configurations that contradict themselves or ask for what does not exist."""
    if config.qk_norm != "rms_norm_across_heads":
        raise NotImplementedError(f"qk_norm must be 'rms_norm_across_heads', got {config.qk_norm!r}.")
    if config.rope_type == "split" and video.heads != audio.heads:
        raise ValueError(
            f"Split rotary embeddings between the streams need equal head counts, got num_attention_heads="
            f"{video.heads} and audio_num_attention_heads={audio.heads}."
        )
    if audio.context_dim != audio.dim:
        raise ValueError(
            f"audio_cross_attention_dim is the rotary width between the streams and must equal the audio width "
            f"{audio.heads} x {audio.head_dim} = {audio.dim}, got {audio.context_dim}."
        )
    takes_stream_width = config.use_prompt_embeddings or video.modulates_text or audio.modulates_text
    if takes_stream_width and video.context_dim != video.dim:
        raise ValueError(
            f"cross_attention_dim must equal the video width {video.heads} x {video.head_dim} = {video.dim} where "
            f"text is projected or modulated, got {video.context_dim}."
        )


class StreamRequest(NamedTuple):
    """What the caller of a forward pass says about one stream that has tokens.

    Args:
        name (`str`): `"video"` or `"audio"`, for messages.
        tokens (`torch.Tensor`): `[B, S, C]` latents, S above 0.
        context (`torch.Tensor`): `[B, T, C]` text features.
        timestep (`torch.Tensor`): `[B]` or `[B, S]` in [0, 1000].
        sigma (`torch.Tensor`, *optional*): `[B]`, the noise level of the sample in [0, 1000].
        coords (`torch.Tensor`): `[B, n, S, 2]` positions.
        text_mask (`torch.Tensor`, *optional*): `[B, T]` multiplicative, or `[B, 1 or S, T]` additive.
        self_mask (`torch.Tensor`, *optional*): `[B, S, S]` multiplicative, in [0, 1].
        enabled (`bool`): Whether the stream's tokens are updated.
        keyframes_mask (`torch.Tensor`, *optional*): `[B, S, 1]`, above 0 for keyframe tokens.
        negative ([`NegativeContext`], *optional*): Text features from which the attention to the text is guided away.
    """

    name: str
    tokens: torch.Tensor
    context: torch.Tensor
    timestep: torch.Tensor
    sigma: torch.Tensor | None
    coords: torch.Tensor
    text_mask: torch.Tensor | None = None
    self_mask: torch.Tensor | None = None
    enabled: bool = True
    keyframes_mask: torch.Tensor | None = None
    negative: NegativeContext | None = None

    def timesteps(self) -> torch.Tensor:
        """`[B, 1]` or `[B, S]` float32."""
        batch_size, num_tokens = self.tokens.shape[:2]
        if self.timestep.numel() == 1:
            return self.timestep.float().reshape(1, 1).expand(batch_size, 1)
        if self.timestep.numel() not in (batch_size, batch_size * num_tokens):
            raise ValueError(
                f"The {self.name} timestep must have one value per sample ({batch_size}) or per token "
                f"({batch_size} x {num_tokens}), got the shape {tuple(self.timestep.shape)}. "
                f"Without an audio_timestep the audio takes the timestep of the video."
            )
        return self.timestep.float().reshape(batch_size, -1)

    def sample_sigma(self, purpose: str) -> torch.Tensor:
        """`[B, 1]` float32, the noise level of every sample."""
        prefix = "" if self.name == "video" else "audio_"
        if self.sigma is None:
            raise ValueError(
                f"{prefix}sigma is needed for {purpose}; pass the noise level times 1000, one per sample."
            )
        return self.sigma.float().reshape(-1, 1)


def stream_request(
    name: str,
    tokens: torch.Tensor | None,
    context: torch.Tensor | None,
    timestep: torch.Tensor | None,
    sigma: torch.Tensor | None,
    coords: torch.Tensor | None,
) -> StreamRequest | None:
    """The [`StreamRequest`] of a stream, refused where something is missing; `None` for a stream without tokens."""
    if tokens is None or tokens.shape[1] == 0:
        return None
    if context is None:
        prefix = "" if name == "video" else "audio_"
        raise ValueError(f"{name} tokens need text features; pass {prefix}encoder_hidden_states, got None.")
    if timestep is None:
        raise ValueError(f"{name} tokens need a timestep; got None.")
    if coords is None or coords.shape[2] != tokens.shape[1]:
        count = None if coords is None else coords.shape[2]
        raise ValueError(f"The {name} stream has {tokens.shape[1]} tokens, but coordinates for {count}.")
    return StreamRequest(name, tokens, context, timestep, sigma, coords)


class ModelStream:
    """One stream's view of the model: the modules outside the blocks that act on it.

    Args:
        model ([`LTX2AVTransformer3DModel`]): The model viewed.
        prefix (`str`): `""` for video, `"audio_"` for audio: what the names of its modules begin with.
    """

    def __init__(self, model: nn.Module, prefix: str) -> None:
        self.name = "audio" if prefix else "video"
        config: Any = model.config
        self.gate_factor = config.cross_attn_timestep_scale_multiplier / config.timestep_scale_multiplier
        gate = "audio_v2a" if prefix else "video_a2v"
        self.proj_in: nn.Linear = getattr(model, f"{prefix}proj_in")
        self.caption_projection: PixArtAlphaTextProjection | None = getattr(model, f"{prefix}caption_projection", None)
        self.time_embed: AdaLayerNormSingle = getattr(model, f"{prefix}time_embed")
        self.prompt_adaln: AdaLayerNormSingle | None = getattr(model, f"{prefix}prompt_adaln", None)
        self.rope: RotaryPositionEmbedding = getattr(model, f"{prefix}rope")
        self.cross_rope: RotaryPositionEmbedding = getattr(model, f"cross_attn_{prefix}rope")
        self.cross_scale_shift: AdaLayerNormSingle = getattr(model, f"av_cross_attn_{prefix or 'video_'}scale_shift")
        self.cross_gate: AdaLayerNormSingle = getattr(model, f"av_cross_attn_{gate}_gate")
        self.table: nn.Parameter = getattr(model, f"{prefix}scale_shift_table")
        self.norm_out: nn.LayerNorm = getattr(model, f"{prefix}norm_out")
        self.proj_out: nn.Linear = getattr(model, f"{prefix}proj_out")

    def cached_context(self, context: torch.Tensor, cache: TextCache | None) -> torch.Tensor:
        """Text features `[B, T, C]` as the blocks take them, from the cache or into it."""
        projected = None if cache is None else cache.context(self.name)
        if projected is None:
            projected = context if self.caption_projection is None else self.caption_projection(context)
            if cache is not None:
                cache.keep_context(self.name, projected)
        return projected

    def prompt_modulation(self, request: StreamRequest, dtype: torch.dtype) -> Modulation | None:
        """Values for the text context; `None` where no module computes them."""
        if self.prompt_adaln is None:
            return None
        sigma = request.sample_sigma("the prompt modulation of this model")
        return evaluate(self.prompt_adaln, sigma, TokenLayout(), dtype)[0]

    def cross_modulation(
        self, own: tuple[torch.Tensor, TokenLayout], other: StreamRequest, mode: str, dtype: torch.dtype
    ) -> tuple[Modulation, Modulation]:
        """Values for the attention between the streams.

        Args:
            own (`tuple[torch.Tensor, TokenLayout]`): Distinct timesteps of this stream.
            other ([`StreamRequest`]): The other stream.
            mode (`str`): One of [`CROSS_TIMESTEP_MODES`].
            dtype (`torch.dtype`): The dtype to compute in.
        """
        scale_shift_source = gate_source = own
        if mode != "own":
            purpose = f"cross_timestep_mode={mode!r}"
            gate_source = other.sample_sigma(purpose), TokenLayout()
        if mode == "other":
            scale_shift_source = gate_source
        timestep, layout = gate_source
        scale_shift = evaluate(self.cross_scale_shift, *scale_shift_source, dtype)[0]
        return scale_shift, evaluate(self.cross_gate, timestep * self.gate_factor, layout, dtype)[0]

    def head(self, x: torch.Tensor, embedded: Modulation) -> torch.Tensor:
        """Velocities `[B, S, C]` from the tokens `[B, S, D]` of the last block."""
        shift, scale = embedded.with_table(self.table)
        return self.proj_out(modulate(self.norm_out(x), ScaleShift(scale, shift, embedded.layout)))


def stream_timesteps(request: StreamRequest, split_index: nn.Module | None) -> tuple[torch.Tensor, TokenLayout]:
    """Distinct timesteps of a stream and their layout; `split_index` is given where ranks share the tokens."""
    # Fused steps look rows up, where plain ones had to write them out for every token.
    as_index = split_index is not None or fuses(request.tokens)
    distinct, layout = distinct_timesteps(request.timesteps(), as_index=as_index)
    if split_index is not None and layout.row_index is not None:
        layout = TokenLayout(row_index=split_index(layout.row_index))
    return distinct, layout


def with_negative(request: StreamRequest, negative: NegativeText | None) -> StreamRequest:
    """The request with its stream's part of a negative prompt."""
    if negative is None:
        return request
    context, batch_size = getattr(negative, request.name), request.tokens.shape[0]
    if context is None or context.shape[0] != batch_size:
        given = None if context is None else tuple(context.shape)
        raise ValueError(
            f"negative_text needs {request.name} features for {batch_size} samples, got {given}; encode one negative "
            f"prompt per sample."
        )
    return request._replace(negative=NegativeContext(context, negative.weights))


def text_mask_bias(request: StreamRequest, dtype: torch.dtype, memo: TensorMemo) -> torch.Tensor | None:
    """A text mask as additive bias `[B, 1, 1 or S, T]`, or `None` if it masks nothing.

    Whether it masks nothing is looked up once per mask, not once per call; see [`TensorMemo`].
    """
    mask, length = request.text_mask, request.context.shape[1]
    if mask is None:
        return None
    if mask.ndim not in (2, 3) or mask.shape[-1] != length:
        raise ValueError(
            f"The {request.name} text mask must be [B, {length}] or [B, 1, {length}] to fit the text, "
            f"got the shape {tuple(mask.shape)}."
        )

    def bias() -> torch.Tensor | None:
        if mask.ndim == 3:
            return None if host_can_read(mask) and not bool(mask.any()) else mask[:, None]
        if host_can_read(mask) and bool((mask == 1).all()):
            return None
        return ((1 - mask.to(dtype)) * MASKED_SCORE)[:, None, None]

    return memo.get(mask, ("text", dtype), bias)


def self_mask_bias(request: StreamRequest, dtype: torch.dtype, memo: TensorMemo) -> torch.Tensor | None:
    """A self-attention mask of strengths as additive bias `[B, 1, S, S]`, or `None` if it masks nothing.

    A strength m in (0, 1) multiplies the weight of a key, so the bias is log(m); 0 gives the lowest finite number.
    """
    mask = request.self_mask
    if mask is None:
        return None
    num_tokens = request.tokens.shape[1]
    if mask.ndim != 3 or tuple(mask.shape[1:]) != (num_tokens, num_tokens):
        raise ValueError(
            f"The {request.name} self-attention mask must be [B, {num_tokens}, {num_tokens}], "
            f"got the shape {tuple(mask.shape)}."
        )

    def bias() -> torch.Tensor | None:
        if host_can_read(mask) and bool((mask == 1).all()):
            return None
        strengths = mask.float()
        logarithms = strengths.clamp(min=torch.finfo(torch.float32).tiny).log().to(dtype)
        return torch.where(strengths > 0, logarithms, torch.finfo(dtype).min)[:, None]

    return memo.get(mask, ("self", dtype), bias)
