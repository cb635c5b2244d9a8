"""The model as the LTX-Core API calls it: one `Modality` per stream, velocities of both streams.

Shapes: B batch, S tokens of a stream, T text tokens, C channels, L blocks.
"""

from typing import Protocol

import torch
from torch import nn

from .transformer import LTX2AVTransformer3DModel


class StreamLike(Protocol):
    """What is read from a `Modality`; `sigma`, `attention_mask` and `keyframes_mask` may be missing."""

    enabled: bool
    latent: torch.Tensor
    timesteps: torch.Tensor
    positions: torch.Tensor
    context: torch.Tensor
    context_mask: torch.Tensor | None


class PerturbationsLike(Protocol):
    """What is read from a `BatchedPerturbationConfig`."""

    def keep_masks(self, num_layers: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """`[4, L, B]`: video and audio self-attention, audio to video, video to audio; 0 perturbs."""


class LTX2ModalityModel(nn.Module):
    """Calls a transformer with modalities whose timesteps are noise levels in [0, 1].

    Args:
        transformer ([`LTX2AVTransformer3DModel`]): The model to call.
        cross_timestep_mode (`str`, *optional*): Which noise level conditions the attention between the streams, see
            [`LTX2AVTransformer3DModel.forward`]. Defaults to what the reference does for the checkpoint's generation:
            `"gate"` for models with prompt modulation (2.3 and later), `"own"` for others.
    """

    def __init__(self, transformer: LTX2AVTransformer3DModel, cross_timestep_mode: str | None = None) -> None:
        super().__init__()
        self.transformer = transformer
        modulates_text = transformer.config.cross_attn_mod or transformer.config.audio_cross_attn_mod
        self.cross_timestep_mode = cross_timestep_mode or ("gate" if modulates_text else "own")

    def forward(
        self, video: StreamLike | None, audio: StreamLike | None, perturbations: PerturbationsLike | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Predict velocities.

        Args:
            video, audio (`Modality`, *optional*): Latents `[B, S, C]`, timesteps `[B, S]` or `[B, S, 1]` and `sigma`
                `[B]` as noise levels in [0, 1], positions `[B, 3 or 1, S, 2]`, context `[B, T, C]`; for video also
                `attention_mask` `[B, S, S]` and `keyframes_mask` `[B, S, 1]`. `None` leaves a stream out;
                `enabled=False` keeps its tokens visible to the other stream without updating them.
            perturbations (`BatchedPerturbationConfig`, *optional*): Branches to perturb.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Velocities `[B, S, C]` of video and audio; `None` for a stream left
            out, without meaning for one that is not enabled.
        """
        config = self.transformer.config
        for field in ("attention_mask", "keyframes_mask"):
            if getattr(audio, field, None) is not None:
                raise ValueError(f"{field} exists for video only; got one for audio, give None.")
        keep = None
        if perturbations is not None:
            keep = perturbations.keep_masks(config.num_layers, torch.device("cpu"), torch.float32)
        scale = config.timestep_scale_multiplier
        # A stream without both streams present has no attention to the other one, hence no noise level to take.
        cross_mode = self.cross_timestep_mode if video is not None and audio is not None else "own"
        return self.transformer(
            **_stream_arguments("", "encoder_", "video_", video, scale),
            **_stream_arguments("audio_", "audio_encoder_", "audio_", audio, scale),
            video_self_attention_mask=getattr(video, "attention_mask", None),
            video_keyframes_mask=getattr(video, "keyframes_mask", None),
            perturbation_keep_masks=keep,
            cross_timestep_mode=cross_mode,
            return_dict=False,
        )


def _stream_arguments(
    prefix: str, text_prefix: str, position_prefix: str, stream: StreamLike | None, scale: float
) -> dict[str, torch.Tensor | bool | None]:
    """Keyword arguments of the transformer for one stream."""
    names = {
        "latent": f"{prefix}hidden_states",
        "context": f"{text_prefix}hidden_states",
        "context_mask": f"{text_prefix}attention_mask",
        "positions": f"{position_prefix}coords",
    }
    arguments = {name: getattr(stream, field, None) for field, name in names.items()}
    for field, name in (("timesteps", "timestep"), ("sigma", "sigma")):
        value = getattr(stream, field, None)
        arguments[f"{prefix}{name}"] = None if value is None else value.float() * scale
    arguments[f"{position_prefix}enabled"] = stream is None or stream.enabled
    return arguments
