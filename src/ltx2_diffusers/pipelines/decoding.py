"""From denoised latents to frames and samples.

Shapes: B batch, C channels, F latent frames, h and w latent rows and columns, L audio latents, M latent mel bins.
"""

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..media.pixels import decoded_frames
from ..media.preprocess import normalize_pixels
from .arguments import Delivery

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
        latents, timestep = self._decoder_noise(latents, delivery, generator)
        return self._decoded(self.vae.denormalize_latents(latents), timestep, output_type)

    def _decoder_noise(
        self,
        latents: torch.Tensor,
        delivery: Delivery,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Latents and timestep as a decoder with timestep conditioning wants them; unchanged and `None` without."""
        if not self.vae.config.timestep_conditioning:
            return latents, None
        timestep = _per_sample(delivery.decode_timestep, latents)
        scale = timestep if delivery.decode_noise_scale is None else _per_sample(delivery.decode_noise_scale, latents)
        scale = scale.view(-1, 1, 1, 1, 1)
        noise = randn_tensor(latents.shape, generator, latents.device, latents.dtype)
        return (1 - scale) * latents + scale * noise, timestep

    def _decoded(self, latents: torch.Tensor, timestep: torch.Tensor | None, output_type: str) -> Any:
        """Turn un-normalised video latents into frames."""
        video = self.vae.decode(latents.to(self.vae.dtype), timestep, return_dict=False)[0]
        return self._video_as(video, output_type)

    def _video_as(self, video: torch.Tensor, output_type: str) -> Any:
        """Pixels `[B, 3, F, H, W]` in [-1, 1] in the wished type."""
        if output_type == "uint8":
            return torch.stack([torch.cat(list(decoded_frames(item))) for item in video])
        return self.video_processor.postprocess_video(video, output_type=output_type)

    def _original_video(self, pixels: torch.Tensor, batch_size: int, output_type: str) -> Any:
        """Given pixels `[F, H, W, 3]` in [0, 255] in the wished type, one clip for the whole batch."""
        return self._video_as(
            normalize_pixels(pixels.movedim(-1, 0).float()).expand(batch_size, -1, -1, -1, -1), output_type
        )

    def _decode_audio(self, latents: torch.Tensor, output_type: str) -> torch.Tensor:
        """Turn un-normalised audio latents `[B, C, L, M]` into a waveform `[B, channels, samples]`."""
        if output_type == "latent":
            return latents
        spectrogram = self.audio_vae.decode(latents.to(self.audio_vae.dtype), return_dict=False)[0]
        return self.vocoder(spectrogram)


def _per_sample(value: float | list[float], latents: torch.Tensor) -> torch.Tensor:
    values = value if isinstance(value, list) else [value]
    return torch.tensor(values, device=latents.device, dtype=latents.dtype).expand(len(latents))
