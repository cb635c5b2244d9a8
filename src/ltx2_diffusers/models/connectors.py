"""Text connectors: from the hidden states of a language model to the text contexts of the two streams.

Shapes: B batch, T text positions given, P text positions returned, C width of the language model, L its hidden states,
W width of a connector (one for video, one for audio), R learnable registers.
"""

# The constructor's arguments are read back from `self.config`, where `register_to_config` puts them.
# ruff: noqa: ARG002

import math
from collections.abc import Callable

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from .attention import FeedForward, LTX2Attention
from .loading import CheckpointMixin
from .rope import RotaryPositionEmbedding, RotarySpec, RotaryTables
from .saving import AtomicAdapterSaveMixin
from .tensor_memo import host_can_read
from .video_vae_streaming import may_overwrite

# Epsilon of all normalisations here; it is no config key.
EPS = 1e-6

_STREAMS = ("video", "audio")


def normalize_over_prompt(
    hidden_states: torch.Tensor, attention_mask: torch.Tensor, scale_factor: float = 8.0
) -> torch.Tensor:
    """Centres every hidden state of a prompt and divides it by its range, both over all valid positions and channels.

    Args:
        hidden_states: language-model states `[B, T, C, L]`.
        attention_mask: True for tokens, False for padding, `[B, T]`.
        scale_factor: factor on the result. Default 8, the value of LTX-2.0.

    Returns:
        Features `[B, T, C * L]` with the state index fastest, in the input's dtype; padding is zero.
    """
    padding = ~attention_mask[:, :, None, None]
    count = attention_mask.sum(1)[:, None, None, None] * hidden_states.shape[2]
    # In half precision the sum and the range stay narrow while dividing by the float32 count widens the mean and with
    # it everything after: the precision the weights were trained with.
    mean = hidden_states.masked_fill(padding, 0.0).sum((1, 2), keepdim=True) / (count.float() + EPS)
    lowest = hidden_states.masked_fill(padding, math.inf).amin((1, 2), keepdim=True)
    highest = hidden_states.masked_fill(padding, -math.inf).amax((1, 2), keepdim=True)
    centred, extent = hidden_states - mean, highest - lowest + EPS
    if may_overwrite():
        # States of long prompts are large, and these twice as wide.
        return centred.div_(extent).mul_(scale_factor).masked_fill_(padding, 0.0).flatten(2).to(hidden_states.dtype)
    return (centred / extent * scale_factor).masked_fill(padding, 0.0).flatten(2).to(hidden_states.dtype)


def normalize_over_channels(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Divides every hidden state of a token by its root mean square over the channels.

    Args:
        hidden_states: language-model states `[B, T, C, L]`.
        attention_mask: True for tokens, False for padding, `[B, T]`.

    Returns:
        Features `[B, T, C * L]` with the state index fastest; padding is zero.
    """
    inverse_rms = torch.rsqrt(hidden_states.square().mean(2, keepdim=True) + EPS)
    normalized = (hidden_states * inverse_rms).flatten(2)
    return torch.where(attention_mask[:, :, None], normalized, torch.zeros_like(normalized))


def trim_padding(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cuts positions before the first and after the last token of the batch off `[B, T, ...]` and `[B, T]`."""
    used = attention_mask.any(0).nonzero()
    # One column must remain for the reductions over positions to be defined.
    first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
    return hidden_states[:, first : last + 1], attention_mask[:, first : last + 1]


def pad_positions(
    hidden_states: torch.Tensor, attention_mask: torch.Tensor, length: int, padding_side: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Extends `[B, T, C, L]` and `[B, T]` to `length` positions with padding on one side."""
    missing = length - attention_mask.shape[1]
    sides = (missing, 0) if padding_side == "left" else (0, missing)
    pad = nn.functional.pad
    return pad(hidden_states, (0, 0, 0, 0, *sides)), pad(attention_mask, sides)


def fill_with_registers(
    registers: torch.Tensor, features: torch.Tensor, attention_mask: torch.Tensor, length: int
) -> torch.Tensor:
    """Moves the tokens to the front, in their order, and puts registers into all positions behind them.

    Args:
        registers: the learnable registers `[R, W]`.
        features: projected states `[B, T, W]`.
        attention_mask: True for tokens, `[B, T]`.
        length: positions P of the result, a multiple of R and not below the number of tokens of any row.

    Returns:
        `[B, P, W]`; position p behind the tokens holds register p mod R.
    """
    filled = registers.to(features.dtype).repeat(length // len(registers), 1)
    order = torch.argsort(attention_mask.int(), dim=1, descending=True, stable=True)[:, :length]
    tokens = features.gather(1, order[:, :, None].expand(-1, -1, features.shape[2]))
    width = tokens.shape[1]
    is_token = torch.arange(width, device=features.device) < attention_mask.sum(1, keepdim=True)
    front = torch.where(is_token[:, :, None], tokens, filled[:width])
    return torch.cat([front, filled[width:].expand(len(features), -1, -1)], dim=1)


class ConnectorBlock(nn.Module):
    """Self-attention and feed-forward, each behind an RMSNorm without weight.

    Args:
        rope: position tables, which know width W and number of heads.
        gated_attention: whether every head has a gate.
    """

    def __init__(self, rope: RotarySpec, gated_attention: bool) -> None:
        super().__init__()
        dim, heads = rope.dim, rope.num_heads
        self.norm1 = nn.RMSNorm(dim, eps=EPS, elementwise_affine=False)
        self.attn1 = LTX2Attention(
            dim, heads, dim // heads, rope_type=rope.rope_type, apply_gated_attention=gated_attention
        )
        self.norm2 = nn.RMSNorm(dim, eps=EPS, elementwise_affine=False)
        self.ff = FeedForward(dim)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, rotary_emb: RotaryTables
    ) -> torch.Tensor:
        """`[B, P, W]` to `[B, P, W]`; the mask is additive, `[B, 1, 1, P]`, or None."""
        hidden_states = hidden_states + self.attn1(
            self.norm1(hidden_states), attention_mask=attention_mask, query_rotary_emb=rotary_emb
        )
        return hidden_states + self.ff(self.norm2(hidden_states))


class TextConnector(nn.Module):
    """The transformer over the text positions of one stream, with learnable registers in place of padding.

    Args:
        rope: position tables, which know width W and number of heads.
        num_layers: blocks.
        num_registers: registers R, or None to keep the padding, masked, in its place.
        gated_attention: whether every attention head has a gate.
    """

    learnable_registers: nn.Parameter | None
    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    def __init__(self, rope: RotarySpec, num_layers: int, num_registers: int | None, gated_attention: bool) -> None:
        super().__init__()
        # Initialised like the original, uniformly in [-1, 1).
        registers = None if num_registers is None else nn.Parameter(torch.rand(num_registers, rope.dim) * 2.0 - 1.0)
        self.register_parameter("learnable_registers", registers)
        self.rope = RotaryPositionEmbedding(rope)
        self.transformer_blocks = nn.ModuleList(ConnectorBlock(rope, gated_attention) for _ in range(num_layers))
        self.norm_out = nn.RMSNorm(rope.dim, eps=EPS, elementwise_affine=False)
        self.gradient_checkpointing = False

    def check_length(self, length: int) -> None:
        """`ValueError` if `length` positions cannot be filled with whole sets of registers."""
        count = 0 if self.learnable_registers is None else len(self.learnable_registers)
        if count and (length < 1 or length % count):
            nearest = max(round(length / count), 1) * count
            raise ValueError(
                f"The number of text positions must be a multiple of the {count} learnable registers, got {length}; "
                f"use {nearest}."
            )

    def forward(
        self, features: torch.Tensor, attention_mask: torch.Tensor, target_length: int | None = None
    ) -> torch.Tensor:
        """Turn projected states into the context of the stream.

        Args:
            features: projected states `[B, T, W]`.
            attention_mask: 1 for tokens, 0 for padding, `[B, T]`.
            target_length: positions P of the result, only with registers, at least the number of tokens. Default T.

        Returns:
            `[B, P, W]`.
        """
        mask = attention_mask.bool()
        length = features.shape[1] if target_length is None else target_length
        self.check_length(length)
        if self.learnable_registers is not None:
            # Every position holds a token or a register now, so attention needs no mask.
            hidden_states = fill_with_registers(self.learnable_registers, features, mask, length)
            additive_mask = None
        elif length != features.shape[1]:
            raise ValueError(
                f"target_length is {length}, but without learnable registers a connector keeps its "
                f"{features.shape[1]} positions; leave it out."
            )
        else:
            hidden_states = features
            additive_mask = (~mask).to(features.dtype)[:, None, None] * torch.finfo(features.dtype).min
        positions = torch.arange(length, dtype=torch.float32, device=features.device)
        rotary_emb = self.rope(positions[None, None])
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, additive_mask, rotary_emb)
            else:
                hidden_states = block(hidden_states, additive_mask, rotary_emb)
        return self.norm_out(hidden_states)


class LTX2TextConnectors(CheckpointMixin, AtomicAdapterSaveMixin, ModelMixin, PeftAdapterMixin, ConfigMixin):
    """Projects all hidden states of a language model and runs one connector per stream over them.

    Args (defaults are those of diffusers; the values of LTX-2.0 and 2.3 in brackets where they differ):
        caption_channels: width C of the language model.
        text_proj_in_factor: its hidden states L, embeddings included.
        video_connector_num_attention_heads, video_connector_attention_head_dim: video width W as heads and their
            width [2.3: 32, 128].
        video_connector_num_layers: blocks [2.3: 8].
        video_connector_num_learnable_registers: registers R, None for none.
        video_gated_attn: whether the video connector's attention heads have gates [2.3: True].
        audio_connector_num_attention_heads, audio_connector_attention_head_dim, audio_connector_num_layers,
            audio_connector_num_learnable_registers, audio_gated_attn: the same for audio [2.3: 32, 64, 8, 128, True].
        connector_rope_base_seq_len: positions that span the unit interval.
        rope_theta: ratio of the highest to the lowest frequency.
        rope_double_precision: whether frequencies are computed in float64.
        causal_temporal_positioning: kept for compatibility; has no effect in any implementation.
        rope_type: "interleaved" or "split" [both: "split"].
        per_modality_projections: False normalises over the prompt and projects once for both streams; True normalises
            over channels and projects per stream [2.3: True].
        video_hidden_dim, audio_hidden_dim: widths of the projections per stream.
        proj_bias: whether the projections have a bias [2.3: True].
    """

    _supports_gradient_checkpointing = True
    video_connector: TextConnector
    audio_connector: TextConnector
    _repeated_blocks = ["ConnectorBlock"]  # noqa: RUF012 - diffusers reads a list

    @register_to_config
    def __init__(
        self,
        caption_channels: int = 3840,
        text_proj_in_factor: int = 49,
        video_connector_num_attention_heads: int = 30,
        video_connector_attention_head_dim: int = 128,
        video_connector_num_layers: int = 2,
        video_connector_num_learnable_registers: int | None = 128,
        video_gated_attn: bool = False,
        audio_connector_num_attention_heads: int = 30,
        audio_connector_attention_head_dim: int = 128,
        audio_connector_num_layers: int = 2,
        audio_connector_num_learnable_registers: int | None = 128,
        audio_gated_attn: bool = False,
        connector_rope_base_seq_len: int = 4096,
        rope_theta: float = 10000.0,
        rope_double_precision: bool = True,
        causal_temporal_positioning: bool = False,
        rope_type: str = "interleaved",
        per_modality_projections: bool = False,
        video_hidden_dim: int = 4096,
        audio_hidden_dim: int = 2048,
        proj_bias: bool = False,
    ) -> None:
        super().__init__()
        ropes = {stream: self._rope(stream) for stream in _STREAMS}
        features = caption_channels * text_proj_in_factor
        if per_modality_projections:
            self.video_text_proj_in = nn.Linear(features, video_hidden_dim, bias=proj_bias)
            self.audio_text_proj_in = nn.Linear(features, audio_hidden_dim, bias=proj_bias)
        else:
            self.text_proj_in = nn.Linear(features, caption_channels, bias=proj_bias)
        for stream, rope in ropes.items():
            name = f"{stream}_connector"
            size = self.config[f"{name}_num_layers"], self.config[f"{name}_num_learnable_registers"]
            self.add_module(name, TextConnector(rope, *size, self.config[f"{stream}_gated_attn"]))

    def _rope(self, stream: str) -> RotarySpec:
        """The position tables of a stream's connector, whose width must be that of the stream's projection."""
        config, name = self.config, f"{stream}_connector"
        heads, head_dim = config[f"{name}_num_attention_heads"], config[f"{name}_attention_head_dim"]
        width, length = heads * head_dim, (config.connector_rope_base_seq_len,)
        key = f"{stream}_hidden_dim" if config.per_modality_projections else "caption_channels"
        if width != config[key]:
            raise ValueError(
                f"The {stream} connector has {heads} heads of {head_dim} = {width} channels, but its projection gives "
                f"{key}={config[key]}; make them equal."
            )
        return RotarySpec(width, heads, length, config.rope_type, config.rope_theta, config.rope_double_precision)

    @property
    def _connectors(self) -> tuple[TextConnector, TextConnector]:
        """Those of video and audio."""
        return self.video_connector, self.audio_connector

    @property
    def has_registers(self) -> bool:
        """Whether both connectors replace padding, so that the place of the padding does not matter."""
        return all(connector.learnable_registers is not None for connector in self._connectors)

    def fitting_length(self, positions: int) -> int:
        """The smallest number of text positions from `positions` on that whole sets of registers can fill."""
        registers = (connector.learnable_registers for connector in self._connectors)
        multiple = math.lcm(*(len(own) for own in registers if own is not None))
        return math.ceil(positions / multiple) * multiple

    @apply_forward_hook
    def extract_features(
        self, text_encoder_hidden_states: torch.Tensor, attention_mask: torch.Tensor, scale_factor: int = 8
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalise and project hidden states, position by position; the first half of `forward`.

        Args:
            text_encoder_hidden_states: states `[B, T, C, L]` or `[B, T, C * L]`.
            attention_mask: 1 for tokens, 0 for padding, `[B, T]`.
            scale_factor: factor of the normalisation over the prompt; not read with `per_modality_projections`.

        Returns:
            Inputs `[B, T, W]` of the video and of the audio connector; one tensor where they share a projection.
        """
        states, mask = self._stacked(text_encoder_hidden_states), attention_mask.bool()
        if not self.config.per_modality_projections:
            projected = self.text_proj_in(normalize_over_prompt(states, mask, scale_factor))
            return projected, projected
        normalized = normalize_over_channels(states, mask)
        # The width ratio keeps the variance of a projected token that of its stream.
        channels = self.config.caption_channels
        video = self.video_text_proj_in(normalized * math.sqrt(self.config.video_hidden_dim / channels))
        audio = self.audio_text_proj_in(normalized * math.sqrt(self.config.audio_hidden_dim / channels))
        return video, audio

    @apply_forward_hook
    def run_connectors(
        self,
        video_features: torch.Tensor,
        audio_features: torch.Tensor,
        attention_mask: torch.Tensor,
        target_length: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Turn projected states into the text contexts of both streams; the second half of `forward`.

        Args:
            video_features, audio_features: what `extract_features` returned, `[B, T, W]`. With registers, padding may be
                left out or moved: the order of the tokens is all that counts.
            attention_mask: 1 for tokens, 0 for padding, `[B, T]`.
            target_length: text positions P of the result, at least the number of tokens. Default T.

        Returns:
            As `forward`.
        """
        mask = attention_mask.bool()
        length = video_features.shape[1] if target_length is None else target_length
        self._check_positions("video_features", video_features, mask, length)
        self._check_positions("audio_features", audio_features, mask, length)
        video = self.video_connector(video_features, mask, length)
        audio = self.audio_connector(audio_features, mask, length)
        return video, audio, torch.ones(video.shape[:2], dtype=torch.int64, device=video.device)

    def forward(
        self,
        text_encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        padding_side: str = "left",
        scale_factor: int = 8,
        target_length: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Turn hidden states of a language model into the text contexts of both streams.

        Padding is never read. With registers it need not be there either: give only the tokens and say by
        `target_length` how long the contexts are to be; the result is that of the padded input.

        Args:
            text_encoder_hidden_states: states `[B, T, C, L]` or `[B, T, C * L]`.
            attention_mask: 1 for tokens, 0 for padding, `[B, T]`, anywhere in the row.
            padding_side: "left" or "right": where padding is added to reach `target_length` if a connector has no
                registers. Default "left".
            scale_factor: factor of the normalisation over the prompt; not read with `per_modality_projections`.
            target_length: text positions P of the result, at least the number of tokens. Default T.

        Returns:
            Video context `[B, P, W]`, audio context `[B, P, W]`, and a mask `[B, P]` (int64) of ones.
        """
        states, mask = self._stacked(text_encoder_hidden_states), attention_mask.bool()
        length = states.shape[1] if target_length is None else target_length
        self._check_inputs(states, mask, padding_side, length)
        if not self.has_registers:
            states, mask = pad_positions(states, mask, length, padding_side)
        elif host_can_read(mask):
            states, mask = trim_padding(states, mask)
        return self.run_connectors(*self.extract_features(states, mask, scale_factor), mask, length)

    def _stacked(self, states: torch.Tensor) -> torch.Tensor:
        channels, layers = self.config.caption_channels, self.config.text_proj_in_factor
        flat = states.ndim == 3 and states.shape[2] == channels * layers
        if not flat and tuple(states.shape[2:]) != (channels, layers):
            raise ValueError(
                f"text_encoder_hidden_states must have shape [B, T, {channels}, {layers}] or [B, T, "
                f"{channels * layers}], got {tuple(states.shape)}."
            )
        return states.unflatten(2, (channels, layers)) if flat else states

    def _check_inputs(self, states: torch.Tensor, mask: torch.Tensor, padding_side: str, length: int) -> None:
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got {padding_side!r}.")
        self._check_positions("the hidden states", states, mask, length)
        for connector in self._connectors:
            connector.check_length(length)

    def _check_positions(self, name: str, states: torch.Tensor, mask: torch.Tensor, length: int) -> None:
        if mask.shape != states.shape[:2]:
            raise ValueError(
                f"attention_mask must have shape {tuple(states.shape[:2])} like {name}, got {tuple(mask.shape)}."
            )
        if length < mask.shape[1]:
            # Shorter than the given positions is legal as long as only padding is lost.
            tokens = int(mask.sum(1).max())
            if not self.has_registers or length < tokens:
                needed = tokens if self.has_registers else mask.shape[1]
                raise ValueError(f"target_length must be at least {needed}, got {length}; use {needed} or more.")
