"""Blocks from denoised tokens to videos and sound."""

# diffusers declares what blocks have more narrowly than it reads it.
# mypy: disable-error-code="assignment, misc, override"

from typing import Any

import torch

from ..conditioning import AudioLatentShape, AudioPatchifier
from ..pipelines.arguments import Delivery
from ..pipelines.decoding import decoded
from ..pipelines.engine import check_noise_levels, decode_audio, decode_video
from ..pipelines.plan import ClipPlan, check_decodable_size
from .declarations import Auto, Leaf, Sequential
from .encoding import clip_of, videos_of


class LTX2TrimConditionTokensStep(Leaf):
    """Takes the tokens of conditions away."""

    def run(self, components: Any, b: Any) -> None:  # noqa: ARG002 (blocks are called alike)
        b.latents = b.latents[:, : b.base_token_count]


class LTX2VaeDecoderStep(Leaf):
    """Decodes the videos, or hands over their un-normalised latents."""

    def opened(self, components: Any, b: Any) -> ClipPlan:
        plan = clip_of(components, b, videos_of(b) if b.latents is None else len(b.latents))
        count = plan.tools.video.num_tokens
        if b.latents is not None and b.latents.shape[1] != count:
            raise ValueError(
                f"`latents` has shape {tuple(b.latents.shape)}, but a video of {plan.num_frames} frames of {plan.height} x "
                f"{plan.width} pixels has {count} tokens [B, tokens, D]; give its `height`, `width` and `num_frames`"
            )
        for name in ("decode_timestep", "decode_noise_scale"):
            check_noise_levels(name, getattr(b, name, None), plan.batch_size)
        if b.output_type != "latent":
            self.check_network(components, plan)
        return plan

    def check_network(self, components: Any, plan: ClipPlan) -> None:
        """Find whether the decoder takes latents of these sizes."""
        check_decodable_size(plan.height, plan.width, components.vae.min_latent_side * plan.sizes.spatial_ratio)
        components.vae.check_decoding()

    def run(self, components: Any, b: Any) -> None:
        plan, patch = self.opened(components, b), components.sizes.patch_size
        # The number of channels is the transformer's, which need not be loaded.
        shape = plan.video._replace(channels=b.latents.shape[-1] // patch**2)
        latents = plan.tools.video.patchifier.unpatchify(b.latents, shape)
        is_decoded = b.output_type != "latent"
        b.videos = self.frames(components, b, latents) if is_decoded else components.denormalized_video(latents)

    def frames(self, components: Any, b: Any, latents: torch.Tensor) -> Any:
        """What normalised latents `[B, C, F, h, w]` show."""
        levels = (b.decode_timestep, b.decode_noise_scale, b.generator)
        return decode_video(components, latents.to(b.dtype), Delivery(b.output_type, True, None, (), *levels))


class LTX2DiffusionVaeDecoderStep(LTX2VaeDecoderStep):
    """Decodes the videos with the diffusion decoder of LTX-2.5, which draws noise, or hands over their latents."""

    def check_network(self, components: Any, plan: ClipPlan) -> None:
        network = components.diffusion_decoder
        shape = plan.video._replace(channels=network.config.latent_channels)
        network.check_decoding(torch.empty(tuple(shape), device="meta"))

    def frames(self, components: Any, b: Any, latents: torch.Tensor) -> Any:
        latents = components.denormalized_video(latents.to(b.dtype))
        return decoded(components, latents, (b.generator,), b.output_type, component="diffusion_decoder")


class LTX2AudioDecoderStep(Leaf):
    """Decodes the sound, or hands over its un-normalised latents."""

    def run(self, components: Any, b: Any) -> None:
        sizes = components.sizes
        shape = AudioLatentShape(len(b.audio_latents), sizes.audio_channels, b.audio_num_frames, sizes.audio_mel_bins)
        b.audio = decode_audio(components, AudioPatchifier().unpatchify(b.audio_latents, shape), b.output_type)


class LTX2DecoderStep(Sequential):
    """Decodes videos and sound."""


class LTX2ConditionDecoderStep(Sequential):
    """The same without the tokens of conditions."""


class LTX2AutoDecoderStep(Auto):
    """Decodes videos and sound, without the tokens of conditions if there are any."""


class LTX25DecoderStep(Sequential):
    """Decodes videos with the diffusion decoder, and their sound."""


class LTX25ConditionDecoderStep(Sequential):
    """The same without the tokens of conditions."""


class LTX25AutoDecoderStep(Auto):
    """The same, without the tokens of conditions if there are any."""
