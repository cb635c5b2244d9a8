"""Tiny transformers and inputs that the transformer tests share."""

from typing import Any

import torch

from ltx2_diffusers.models.rope import RotarySpec, RotaryTables, rotary_frequencies
from ltx2_diffusers.models.transformer import LTX2AVTransformer3DModel
from tests.golden_data import assert_within

TINY = {
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "audio_in_channels": 6,
    "audio_out_channels": 6,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
    "caption_channels": 12,
    "num_layers": 3,
}
NEWER = {
    **TINY,
    "rope_type": "split",
    "cross_attn_mod": True,
    "audio_cross_attn_mod": True,
    "gated_attn": True,
    "audio_gated_attn": True,
    "use_prompt_embeddings": False,
    "perturbed_attn": True,
}
LAYOUTS = {
    "2.0": {**TINY, "rope_type": "split"},
    "2.0 interleaved": {**TINY, "rope_type": "interleaved", "rope_double_precision": False},
    "2.3": NEWER,
    "2.5": {**NEWER, "ff_bias": False, "use_keyframes_abs_pos_embedding": True},
}
FRAMES, HEIGHT, WIDTH = 3, 2, 2
VIDEO_TOKENS, AUDIO_TOKENS, TEXT_TOKENS = FRAMES * HEIGHT * WIDTH, 5, 6


def tiny_transformer(layout: str = "2.0", seed: int = 0, **overrides: Any) -> LTX2AVTransformer3DModel:
    """A small model whose every parameter is random, so that nothing is hidden by a zero or a one."""
    model = LTX2AVTransformer3DModel(**{**LAYOUTS[layout], **overrides}).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            width = parameter.shape[-1]
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / width**0.5)
    return model


def tiny_inputs(model: LTX2AVTransformer3DModel, batch_size: int = 1, seed: int = 1) -> dict[str, Any]:
    """Arguments of a forward pass; noise levels differ between samples and streams."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    projected = config.use_prompt_embeddings

    def noise(tokens: int, channels: int) -> torch.Tensor:
        return torch.randn(batch_size, tokens, channels, generator=generator)

    sigma = torch.linspace(700.0, 400.0, batch_size)
    return {
        "hidden_states": noise(VIDEO_TOKENS, config.in_channels),
        "audio_hidden_states": noise(AUDIO_TOKENS, config.audio_in_channels),
        "encoder_hidden_states": noise(
            TEXT_TOKENS, config.caption_channels if projected else config.cross_attention_dim
        ),
        "audio_encoder_hidden_states": noise(
            TEXT_TOKENS, config.caption_channels if projected else config.audio_cross_attention_dim
        ),
        "timestep": sigma,
        "audio_timestep": sigma - 100.0,
        "sigma": sigma,
        "audio_sigma": sigma - 100.0,
        "video_coords": model.rope.prepare_video_coords(batch_size, FRAMES, HEIGHT, WIDTH, "cpu", fps=25.0),
        "audio_coords": model.audio_rope.prepare_audio_coords(batch_size, AUDIO_TOKENS, "cpu"),
        "return_dict": False,
    }


def per_token(timestep: torch.Tensor, num_tokens: int, values: tuple[float, ...]) -> torch.Tensor:
    """`[B]` timesteps spread over tokens, multiplied by `values` in equal runs."""
    factors = torch.tensor(values).repeat_interleave(-(-num_tokens // len(values)))[:num_tokens]
    return timestep[:, None] * factors


def max_difference(outputs: tuple, expected: tuple) -> float:
    """Largest absolute difference over both streams."""
    return max(float((a - b).abs().max()) for a, b in zip(outputs, expected))


def assert_same_rotation(tables: RotaryTables, expected: RotaryTables, spec: RotarySpec) -> None:
    """Two pairs of cosines and sines turn by equal angles, as exactly as the grid of their frequencies is known."""
    if spec.double_precision:
        for table, recorded in zip(tables, expected):
            assert_within(table, recorded, "rotary table")
        return
    (cos, sin), (recorded_cos, recorded_sin) = (
        [table[..., ::2] if spec.rope_type == "interleaved" else table.transpose(1, 2).flatten(2) for table in pair]
        for pair in (tables, expected)
    )
    turn = torch.atan2(sin * recorded_cos - cos * recorded_sin, cos * recorded_cos + sin * recorded_sin)
    axes = len(spec.max_positions)
    frequencies = rotary_frequencies(spec.dim // (2 * axes), spec.theta).repeat_interleave(axes)
    unused = spec.dim // 2 - len(frequencies)
    turn_per_frequency = turn / torch.nn.functional.pad(frequencies, (unused, 0), value=1.0)
    assert_within(turn_per_frequency, torch.zeros_like(turn), "rotary angle of a float32 grid")
