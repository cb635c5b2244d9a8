"""Sizes of a generation, and latents on their way in and out of it.

Shapes: B batch, C channels, F latent frames, h and w latent rows and columns, L audio latents, M latent mel bins.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction

import torch

from ..checks import check_num_frames, check_positive, check_size
from ..conditioning.patchifiers import AudioPatchifier, VideoLatentPatchifier
from ..conditioning.shapes import AudioLatentShape, VideoLatentShape
from ..conditioning.streams import Streams
from ..conditioning.tools import AudioLatentTools, VideoLatentTools
from .arguments import Request, Stage
from .conditions.pictures import WholeVideoCondition
from .plan import DEFAULT_SIZE, GenerationPlan, Size, check_latents, inferred_size


class LatentStage:
    """Planning and latents of a pipeline; needs `transformer`, `vae`, `audio_vae` and their derived sizes."""

    def _plan(
        self,
        batch_size: int,
        size: Size,
        latents: torch.Tensor | None,
        audio_latents: torch.Tensor | None,
        stages: Sequence[Stage],
    ) -> GenerationPlan:
        """Check the wished size and work out the latent shapes of both streams in the finished clip."""
        spatial, temporal = self.vae_spatial_compression_ratio, self.vae_temporal_compression_ratio
        wished = (size.height, size.width, size.num_frames)
        height, width, num_frames = inferred_size(latents, wished, DEFAULT_SIZE, spatial, temporal)
        # A stage at half the size needs the finished sides to be multiples of twice the stride.
        check_size(height, width, spatial * _common_denominator(stage.spatial_scale for stage in stages))
        check_num_frames(num_frames, temporal * _common_denominator(stage.temporal_scale for stage in stages))
        check_positive(frame_rate=size.frame_rate, motion_speed=size.motion_speed)
        channels = self.transformer.config.in_channels
        frames = (num_frames - 1) // temporal + 1
        video = VideoLatentShape(batch_size, channels, frames, height // spatial, width // spatial)
        audio = self._audio_shape(batch_size, num_frames / size.frame_rate)
        if audio_latents is not None and audio_latents.ndim == 4:
            audio = audio._replace(frames=audio_latents.shape[2])
        plan = GenerationPlan(num_frames, height, width, size.frame_rate, size.motion_speed, video, audio)
        first = self._stage_plan(plan, stages[0])
        for name, given, tools in zip(("latents", "audio_latents"), (latents, audio_latents), self._tools(first)):
            shape = tools.target_shape
            check_latents(name, given, shape, tools.patchifier.patchify(torch.empty(shape, device="meta")).shape)
        return plan

    def _stage_plan(self, plan: GenerationPlan, stage: Stage) -> GenerationPlan:
        """The sizes of a stage; its sound is as long as that of the finished clip."""
        if stage.spatial_scale == stage.temporal_scale == 1:
            return plan
        frames = round((plan.video.frames - 1) * stage.temporal_scale) + 1
        height, width = (round(side * stage.spatial_scale) for side in (plan.height, plan.width))
        ratio = self.vae_spatial_compression_ratio
        return replace(
            plan,
            num_frames=(frames - 1) * self.vae_temporal_compression_ratio + 1,
            height=height,
            width=width,
            frame_rate=plan.frame_rate * stage.temporal_scale,
            temporal_scale=stage.temporal_scale,
            video=plan.video._replace(frames=frames, height=height // ratio, width=width // ratio),
        )

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

    def _tools(self, plan: GenerationPlan) -> Streams:
        """Tools that make, pack and unpack the states of both streams."""
        patchifier = VideoLatentPatchifier(self.transformer_spatial_patch_size)
        marks_keyframes = self.transformer.config.use_keyframes_abs_pos_embedding
        return Streams(
            VideoLatentTools(patchifier, plan.video, plan.position_frame_rate, mark_keyframes=marks_keyframes),
            AudioLatentTools(AudioPatchifier(), plan.audio),
        )

    def _given_latents(self, request: Request, plan: GenerationPlan) -> Streams:
        """The caller's latents, normalised and unpacked; `None` where a stream starts from noise."""
        tools = self._tools(self._stage_plan(plan, request.stages[0]))
        device = self._execution_device
        video, audio = request.start.latents, request.start.audio_latents
        if video is not None:
            video = video.to(device, torch.float32)
            if video.ndim == 5:
                video = self.vae.normalize_latents(video)
            else:
                video = tools.video.patchifier.unpatchify(video, tools.video.target_shape)
        if audio is not None:
            audio = audio.to(device, torch.float32)
            audio = audio if audio.ndim == 4 else tools.audio.patchifier.unpatchify(audio, plan.audio)
            audio = self.audio_vae.normalize_latents(audio)
        return Streams(video, audio)

    def encode_video(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised float32 latents `[B, C, F, h, w]` of pixels `[B, 3, frames, H, W]` in [-1, 1]."""
        self._require("vae")
        pixels = pixels.to(self._execution_device, self.vae.dtype)
        return self.vae.normalize_latents(self.vae.encode(pixels).latent_dist.mode().float())

    def encode_audio(self, waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
        """Normalised float32 latents `[B, C, L, M]` of a waveform `[B, channels, samples]` in [-1, 1]."""
        self._require("audio_vae")
        latents = self.audio_vae.encode_waveform(waveform.to(self._execution_device), sampling_rate)
        return self.audio_vae.normalize_latents(latents.float())

    def _check_upsampler(self, request: Request, index: int) -> None:
        """The upsampler must enlarge exactly from the stage before to this one."""
        stage, before = request.stages[index], request.stages[index - 1] if index else None
        if stage.upsampler is None:
            if before is not None and not any(isinstance(c, WholeVideoCondition) for c in request.conditions):
                _check_same_size(stage, before)
            return
        if before is None or not request.streams.video:
            what = "the first stage" if before is None else "a call without video"
            raise ValueError(f"{what} has nothing to enlarge; leave its upsampler {stage.upsampler!r} out")
        config = getattr(self, stage.upsampler).config
        spatial = 1.0
        if config.spatial_upsample:
            rational = config.use_rational_resampler and not config.temporal_upsample
            spatial = config.rational_spatial_scale if rational else 2.0
        offered = (spatial, 2.0 if config.temporal_upsample else 1.0)
        needed = (stage.spatial_scale / before.spatial_scale, stage.temporal_scale / before.temporal_scale)
        if offered != needed:
            raise ValueError(
                f"`{stage.upsampler}` enlarges (space, time) by {offered}, but the stages need {needed}; load another "
                "upsampler or change the scales of the stages"
            )


def _common_denominator(scales: Iterable[float]) -> int:
    """The smallest number of which every scale gives a whole share."""
    return math.lcm(*(Fraction(scale).limit_denominator(64).denominator for scale in scales))


def _check_same_size(stage: Stage, before: Stage) -> None:
    sizes = [(s.spatial_scale, s.temporal_scale) for s in (before, stage)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"a stage goes from the scales (space, time) {sizes[0]} to {sizes[1]} without an upsampler; name one, such as "
            '"latent_upsampler", or keep the scales'
        )
