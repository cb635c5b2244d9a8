"""From a request to the noisy states which the denoising loop starts from.

Shapes: B batch, C channels, F latent frames, h and w latent rows and columns, L audio latents, M latent mel bins.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..conditioning.noiser import GaussianNoiser
from ..conditioning.patchifiers import AudioPatchifier, VideoLatentPatchifier
from ..conditioning.shapes import AudioLatentShape, VideoLatentShape
from ..conditioning.state import LatentState
from ..conditioning.tools import AudioLatentTools, VideoLatentTools
from ..sampling.denoiser import Streams
from .checks import check_latents, check_num_frames, check_positive, check_size
from .plan import GenerationPlan, inferred_size


class LatentStage:
    """Planning and initial states of a pipeline; needs `transformer`, `vae`, `audio_vae` and their derived sizes."""

    def _plan(
        self,
        batch_size: int,
        size: Sequence[int | None],
        defaults: Sequence[int],
        frame_rate: float,
        motion_speed: float = 1.0,
        latents: torch.Tensor | None = None,
        audio_latents: torch.Tensor | None = None,
    ) -> GenerationPlan:
        """Check the wished `(height, width, num_frames)` and work out the latent shapes of both streams."""
        spatial, temporal = self.vae_spatial_compression_ratio, self.vae_temporal_compression_ratio
        height, width, num_frames = inferred_size(latents, size, defaults, spatial, temporal)
        check_size(height, width, spatial)
        check_num_frames(num_frames, temporal)
        check_positive(frame_rate=frame_rate, motion_speed=motion_speed)
        video = VideoLatentShape(
            batch_size,
            self.transformer.config.in_channels,
            (num_frames - 1) // temporal + 1,
            height // spatial,
            width // spatial,
        )
        audio = self._audio_shape(batch_size, num_frames / frame_rate)
        if audio_latents is not None and audio_latents.ndim == 4:
            audio = audio._replace(frames=audio_latents.shape[2])
        tools = self._tools(video, audio, frame_rate)
        for name, given, shape, tool in zip(
            ("latents", "audio_latents"), (latents, audio_latents), (video, audio), tools
        ):
            check_latents(name, given, shape, tool.patchifier.patchify(torch.empty(shape, device="meta")).shape)
        return GenerationPlan(num_frames, height, width, frame_rate, motion_speed, video, audio)

    def _audio_shape(self, batch_size: int, duration_s: float) -> AudioLatentShape:
        audio_vae = self.audio_vae
        return AudioLatentShape.from_duration(
            batch_size,
            duration_s,
            channels=8 if audio_vae is None else audio_vae.config.latent_channels,
            mel_bins=(64 if audio_vae is None else audio_vae.config.mel_bins) // self.audio_vae_mel_compression_ratio,
            sample_rate=self.audio_sampling_rate,
            hop_length=self.audio_hop_length,
            audio_latent_downsample_factor=self.audio_vae_temporal_compression_ratio,
        )

    def _tools(self, video: VideoLatentShape, audio: AudioLatentShape, position_frame_rate: float) -> Streams:
        """Tools that make, pack and unpack the states of both streams."""
        patchifier = VideoLatentPatchifier(self.transformer_spatial_patch_size)
        return Streams(
            VideoLatentTools(patchifier, video, position_frame_rate),
            AudioLatentTools(AudioPatchifier(), audio),
        )

    def _prepare_states(
        self,
        plan: GenerationPlan,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None = None,
        audio_latents: torch.Tensor | None = None,
        noise_scale: float = 0.0,
    ) -> Streams:
        """Initial float32 states: pure noise, or given latents mixed with noise by `noise_scale`.

        Noise is drawn for the video first; unpacked where a stream starts from nothing and packed over given latents,
        the order in which diffusers draws it.
        """
        noiser = GaussianNoiser(generator)
        tools = self._tools(plan.video, plan.audio, plan.position_frame_rate)
        given = Streams(
            None if latents is None else self._packed_video(latents.to(device, torch.float32), tools.video),
            None
            if audio_latents is None
            else self._packed_audio(audio_latents.to(device, torch.float32), tools.audio),
        )
        states = []
        for tool, tokens in zip(tools, given):
            state = tool.create_initial_state(device)
            if tokens is None:
                noise = tool.patchifier.patchify(noiser.draw(tool.target_shape, device))
                states.append(noiser(state, 1.0, noise))
            else:
                states.append(noiser(replace(state, latent=tokens, clean_latent=tokens), noise_scale))
        return Streams(*states)

    def _packed_video(self, latents: torch.Tensor, tools: VideoLatentTools) -> torch.Tensor:
        """Packed normalised tokens of un-normalised latents `[B, C, F, h, w]`; packed ones pass through."""
        return latents if latents.ndim == 3 else tools.patchifier.patchify(self.vae.normalize_latents(latents))

    def _packed_audio(self, latents: torch.Tensor, tools: AudioLatentTools) -> torch.Tensor:
        """Packed normalised tokens of un-normalised latents, unpacked `[B, C, L, M]` or packed `[B, L, C * M]`."""
        tokens = latents if latents.ndim == 3 else tools.patchifier.patchify(latents)
        return self.audio_vae.normalize_latents(tokens)

    def _unpacked(self, states: Streams, plan: GenerationPlan) -> Streams:
        """Latents of finished states: video normalised `[B, C, F, h, w]`, audio un-normalised `[B, C, L, M]`."""
        tools = self._tools(plan.video, plan.audio, plan.position_frame_rate)
        latents = []
        for tool, state in zip(tools, states):
            latents.append(None if state is None else _target_tokens(state, tool))
        video, audio = latents
        if video is not None:
            video = tools.video.patchifier.unpatchify(video, plan.video)
        if audio is not None:
            audio = tools.audio.patchifier.unpatchify(self.audio_vae.denormalize_latents(audio), plan.audio)
        return Streams(video, audio)


def _target_tokens(state: LatentState, tools: VideoLatentTools | AudioLatentTools) -> torch.Tensor:
    return state.latent[:, : tools.num_tokens]
