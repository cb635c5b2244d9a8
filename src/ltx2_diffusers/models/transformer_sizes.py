"""Sizes of the two streams of the audio-video transformer from its configuration, and what no configuration may say."""

from typing import Any

from .transformer_block import StreamSizes


def stream_sizes(config: Any) -> tuple[StreamSizes, StreamSizes]:
    """Sizes of the video and the audio stream."""
    return tuple(
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
