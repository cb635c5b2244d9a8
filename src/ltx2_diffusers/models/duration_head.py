"""The small network that reads from the text contexts how long a shot naturally lasts.

Shapes: B batch, S video text positions, A audio text positions, Wv and Wa widths of the two contexts, D inner width,
Q queries, H heads.
"""

# The constructor's arguments are read back from `self.config`, where `register_to_config` puts them.

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import logging
from torch import nn
from torch.nn import functional as F

from ..checks import check_at_least_one, check_from_zero, check_positive
from .loading import CheckpointMixin
from .saving import AtomicModelSaveMixin

logger = logging.get_logger(__name__)

SECONDS = (1.0, 20.0)
"""Shortest and longest clip that is predicted by default."""
# Spread of what is not the weight of a layer before training.
_INITIAL_STD = 0.02


class AttentionPooler(nn.Module):
    """Learned queries that attend to the tokens of a text, whatever its length: `[B, S + A, D]` to `[B, Q, D]`.

    Args:
        width: Inner width D, a multiple of `heads`.
        num_queries: Queries Q.
        heads: Heads H.
    """

    def __init__(self, width: int, num_queries: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"`pooler_hidden_dim` has to be divisible by `num_pooler_heads` {heads} but is {width}; use "
                f"{max(width // heads, 1) * heads}"
            )
        self.heads = heads
        self.query_tokens = nn.Parameter(torch.randn(num_queries, width) * _INITIAL_STD)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        queries = self.to_q(self.query_tokens).expand(len(tokens), -1, -1)
        states = (queries, self.to_k(tokens), self.to_v(tokens))
        heads = (state.unflatten(2, (self.heads, -1)).transpose(1, 2) for state in states)
        # Connectors put registers in the place of padding, so that there is nothing to mask.
        return self.to_out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class LTX2DurationHead(CheckpointMixin, AtomicModelSaveMixin, ModelMixin, ConfigMixin):
    """Predicts from what the connectors make of a prompt how many seconds the shot should last. Part of LTX-2.5.

    Args:
        video_cross_attention_dim: Width Wv of the video context. Default 4096.
        audio_cross_attention_dim: Width Wa of the audio context. Default 2048.
        pooler_hidden_dim: Inner width D. Default 256.
        num_queries: Queries Q. Default 1.
        num_pooler_heads: Heads H. Default 4.
        mlp_hidden_dim: Width of the last hidden layer. Default 256.
    """

    @register_to_config
    def __init__(
        self,
        video_cross_attention_dim: int = 4096,
        audio_cross_attention_dim: int = 2048,
        pooler_hidden_dim: int = 256,
        num_queries: int = 1,
        num_pooler_heads: int = 4,
        mlp_hidden_dim: int = 256,
    ) -> None:
        super().__init__()
        self.video_input_proj = nn.Linear(video_cross_attention_dim, pooler_hidden_dim)
        self.video_modality_emb = nn.Parameter(torch.randn(pooler_hidden_dim) * _INITIAL_STD)
        self.audio_input_proj = nn.Linear(audio_cross_attention_dim, pooler_hidden_dim)
        self.audio_modality_emb = nn.Parameter(torch.randn(pooler_hidden_dim) * _INITIAL_STD)
        self.attention_pooler = AttentionPooler(pooler_hidden_dim, num_queries, num_pooler_heads)
        self.mlp_hidden = nn.Linear(num_queries * pooler_hidden_dim, mlp_hidden_dim)
        self.mlp_out = nn.Linear(mlp_hidden_dim, 1)

    def forward(
        self, video_tokens: torch.Tensor | None = None, audio_tokens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Predict lengths.

        Args:
            video_tokens: Video context of the connectors, `[B, S, Wv]`.
            audio_tokens: Audio context, `[B, A, Wa]`. Either may be left out.

        Returns:
            Seconds `[B]`, in the head's data type.

        Raises:
            ValueError: If both are left out, or one has another width.
        """
        parts = []
        # Trained with the video first.
        for kind, context in (("video", video_tokens), ("audio", audio_tokens)):
            if context is None:
                continue
            project, mark = getattr(self, f"{kind}_input_proj"), getattr(self, f"{kind}_modality_emb")
            if context.ndim != 3 or context.shape[2] != project.in_features:
                raise ValueError(
                    f"`{kind}_tokens` has shape {tuple(context.shape)}; this head reads [B, T, {project.in_features}]"
                )
            parts.append(project(context.to(self.dtype)) + mark)
        if not parts:
            raise ValueError("`video_tokens` and `audio_tokens` are both None; give at least one of them")
        pooled = self.attention_pooler(torch.cat(parts, dim=1)).flatten(1)
        return self.mlp_out(F.gelu(self.mlp_hidden(pooled), approximate="tanh"))[:, 0].exp()

    @torch.no_grad()
    def predict_num_frames(
        self,
        video_tokens: torch.Tensor | None = None,
        audio_tokens: torch.Tensor | None = None,
        *,
        frame_rate: float,
        temporal_compression_ratio: int,
        min_seconds: float = 1.0,
        max_seconds: float = 20.0,
    ) -> int:
        """Predict how many frames the clip of one prompt should have; a warning says if that was out of bounds.

        Args:
            video_tokens, audio_tokens: As in `forward`, of one prompt.
            frame_rate: Frames per second.
            temporal_compression_ratio: Frames that a latent frame stands for; the result is a multiple of it and one more.
            min_seconds: Shortest clip. Default 1.0.
            max_seconds: Longest clip. Default 20.0.

        Raises:
            ValueError: If there are several prompts, the bounds leave nothing between them, or the prediction is not a number.
        """
        check_positive(frame_rate=frame_rate)
        check_at_least_one(temporal_compression_ratio=temporal_compression_ratio)
        check_seconds(min_seconds, max_seconds)
        predicted = self(video_tokens, audio_tokens)
        if predicted.numel() != 1:
            raise ValueError(
                f"lengths of {predicted.numel()} prompts are predicted, but a clip has one; give the contexts of one prompt"
            )
        seconds = predicted.item()
        if math.isnan(seconds):
            raise ValueError("the predicted length is not a number; load the duration head in float32")
        num_frames = frames_within(seconds, frame_rate, temporal_compression_ratio, min_seconds, max_seconds)
        say = logger.info if min_seconds <= seconds <= max_seconds else logger.warning
        say(
            f"the prompt is predicted to last {seconds:.2f} s; with bounds {min_seconds:g} and {max_seconds:g} s: {num_frames} frames"
        )
        return num_frames


def check_seconds(min_seconds: float, max_seconds: float) -> None:
    """The shortest length has to lie below the longest one."""
    check_from_zero(min_seconds=min_seconds)
    if not min_seconds < max_seconds:
        raise ValueError(
            f"`min_seconds` has to be less than `max_seconds` {max_seconds:g} but is {min_seconds:g}; use 1.0 and 20.0"
        )


def frames_within(
    seconds: float, frame_rate: float, stride: int, min_seconds: float = 1.0, max_seconds: float = 20.0
) -> int:
    """The number of frames, `stride` k + 1, of a clip that lasts some seconds, between bounds.

    Where the bounds hold no such number, the nearest one is taken, and a warning says so.

    Args:
        seconds: Wished length, also infinite.
        frame_rate: Frames per second.
        stride: Frames that a latent frame stands for.
        min_seconds, max_seconds: Bounds.
    """
    lowest, highest = max(1, round(min_seconds * frame_rate)), round(max_seconds * frame_rate)
    wished = max(lowest, round(min(seconds, max_seconds) * frame_rate))
    below = (wished - 1) // stride * stride + 1
    above = below + stride
    if below < lowest and above > highest:
        logger.warning(
            f"{min_seconds:g} to {max_seconds:g} s at {frame_rate:g} frames per second hold no {stride} k + 1 frames; the "
            "nearest number is taken"
        )
        return above if above - wished < wished - below else below
    return below if below >= lowest else above
