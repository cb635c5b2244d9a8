"""From denoised latents to frames and samples.

Shapes: B batch, C channels, F latent frames, h and w latent rows and columns, L audio latents, M latent mel bins.
"""

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..media.pixels import decoded_frames
from .request import Delivery

OUTPUT_TYPES = ("pil", "np", "pt", "uint8", "latent")


class DecodeStage:
    """The decoding part of a pipeline; needs the components `vae`, `audio_vae`, `vocoder`, `video_processor`."""

    def _decode_video(
        self,
        latents: torch.Tensor,
        delivery: Delivery,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Any:
        """Turn normalised video latents `[B, C, F, h, w]` into frames of the wished type."""
        output_type = delivery.output_type
        if output_type == "latent":
            return self.vae.denormalize_latents(latents)
        timestep = None
        if self.vae.config.timestep_conditioning:
            timestep = _per_sample(delivery.decode_timestep, latents)
            scale = (
                timestep if delivery.decode_noise_scale is None else _per_sample(delivery.decode_noise_scale, latents)
            )
            scale = scale.view(-1, 1, 1, 1, 1)
            noise = randn_tensor(latents.shape, generator, latents.device, latents.dtype)
            latents = (1 - scale) * latents + scale * noise
        latents = self.vae.denormalize_latents(latents).to(self.vae.dtype)
        video = self.vae.decode(latents, timestep, return_dict=False)[0]
        if output_type == "uint8":
            return torch.stack([torch.cat(list(decoded_frames(item))) for item in video])
        return self.video_processor.postprocess_video(video, output_type=output_type)

    def _decode_audio(self, latents: torch.Tensor, output_type: str) -> torch.Tensor:
        """Turn un-normalised audio latents `[B, C, L, M]` into a waveform `[B, channels, samples]`."""
        if output_type == "latent":
            return latents
        spectrogram = self.audio_vae.decode(latents.to(self.audio_vae.dtype), return_dict=False)[0]
        return self.vocoder(spectrogram)


def _per_sample(value: float | list[float], latents: torch.Tensor) -> torch.Tensor:
    values = value if isinstance(value, list) else [value]
    if len(values) not in (1, len(latents)):
        raise ValueError(f"got {len(values)} decode timesteps or noise scales for a batch of {len(latents)}")
    return torch.tensor(values, device=latents.device, dtype=latents.dtype).expand(len(latents))
