"""The sizes of one generation, worked out once and read by everything that follows.

Shapes: B videos of the batch, C channels, F latent frames, h latent rows, w latent columns, L audio latents, M latent mel
bins.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch

from .. import checks, conditioning
from ..conditioning import AudioLatentShape, LatentTools, Streams, VideoLatentShape
from ..guidance.presets import DEFAULT_SIZE

MAX_SPEED = 100.0
"""Fastest motion against real time; the slowest is its reciprocal."""


@dataclass(frozen=True)
class Size:
    """Wished size of the clip; `None` follows given latents or the default.

    Args:
        height, width, num_frames: Pixels and frames.
        frame_rate: Frames per second.
        motion_speed: Speed of the motion relative to real time.
        seconds: Bounds between which the length may be predicted, where nothing says it; `None` if it may not.
        in_segments: Whether the clip is padded to whole segments of DFR, and handed over without the padding.
    """

    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    frame_rate: float = 24.0
    motion_speed: float = 1.0
    seconds: tuple[float, float] | None = None
    in_segments: bool = False


@dataclass(frozen=True)
class ModelSizes:
    """What the networks of a checkpoint make of pixels, frames and seconds.

    Args:
        spatial_ratio, temporal_ratio: Pixels a side and pixel frames of a video latent.
        channels: Channels of the video latents.
        patch_size: Latents a side of a video token.
        marks_keyframes: Whether the transformer is told which tokens stand for a single frame.
        audio_channels, audio_mel_bins: Size of an audio latent.
        sample_rate: Samples per second of the mel front-end.
        hop_length: Samples between two mel frames.
        audio_ratio: Mel frames of an audio latent.
        causal: Whether positions count the first latent frame as the single frame that it holds. Default True.
        tokens_wait: See [`~ltx2_diffusers.conditioning.LatentState`]. Default False.
    """

    spatial_ratio: int
    temporal_ratio: int
    channels: int
    patch_size: int
    marks_keyframes: bool
    audio_channels: int
    audio_mel_bins: int
    sample_rate: int
    hop_length: int
    audio_ratio: int
    causal: bool = True
    tokens_wait: bool = False

    def whole_frames(self, num_frames: int) -> int:
        """The longest clip of `temporal_ratio` k + 1 frames that is not above `num_frames`."""
        return (num_frames - 1) // self.temporal_ratio * self.temporal_ratio + 1

    def pixel_frames(self, latent_frames: int) -> int:
        """Pixel frames of so many latent frames; the first one holds one."""
        return (latent_frames - 1) * self.temporal_ratio + 1

    def mel_frames(self, audio_latents: int) -> int:
        """Mel frames of so many audio latents; the first one holds one."""
        return (audio_latents - 1) * self.audio_ratio + 1

    def audio_shape(self, batch_size: int, duration_s: float) -> AudioLatentShape:
        """Shape of the audio latents that last as long, or of one for a shorter time, whose sound is cut to it."""
        latent, mel = (self.audio_channels, self.audio_mel_bins), (self.sample_rate, self.hop_length)
        shape = AudioLatentShape.from_duration(batch_size, duration_s, *latent, *mel, self.audio_ratio)
        return shape._replace(frames=max(shape.frames, 1))


@dataclass(frozen=True)
class ClipPlan:
    """Sizes of a generation, or of one of its stages.

    Args:
        sizes: What they follow from.
        num_frames: Pixel frames of the stage.
        height, width: Size of a frame in pixels.
        frame_rate: Playback rate of the stage in frames per second.
        motion_speed: Speed of the motion relative to real time; positions are laid out at
            `frame_rate / motion_speed`.
        video: Latent shape `[B, C, F, h, w]`.
        audio: Latent shape `[B, C, L, M]`.
        stage: Index of the stage that runs at these sizes.
        temporal_scale: Frame rate of the stage over that of the finished clip.
        kept_frames: Pixel frames of the finished clip, where padding follows them that is not decoded; default `None`, all.
        goes_on: Whether the stage begins with noisy latents, which conditions leave as they are.
    """

    sizes: ModelSizes
    num_frames: int
    height: int
    width: int
    frame_rate: float
    motion_speed: float
    video: VideoLatentShape
    audio: AudioLatentShape
    stage: int = 0
    temporal_scale: float = 1.0
    kept_frames: int | None = None
    goes_on: bool = False

    def at_scale(self, space: float, time: float) -> "ClipPlan":
        """The sizes of a stage that makes a share of the clip; its sound is as long as that of the finished clip."""
        if space == time == 1:
            return self
        frames = round((self.video.frames - 1) * time) + 1
        height, width = (round(side * space) for side in (self.height, self.width))
        ratio = self.sizes.spatial_ratio
        return replace(
            self,
            num_frames=self.sizes.pixel_frames(frames),
            height=height,
            width=width,
            frame_rate=self.frame_rate * time,
            temporal_scale=time,
            video=self.video._replace(frames=frames, height=height // ratio, width=width // ratio),
        )

    @property
    def tools(self) -> Streams[LatentTools]:
        """Tools that make, pack and unpack the states of both streams."""
        patchifier = conditioning.VideoLatentPatchifier(self.sizes.patch_size)
        rate = self.frame_rate / self.motion_speed
        return Streams(
            conditioning.VideoLatentTools(
                patchifier,
                self.video,
                rate,
                causal_fix=self.sizes.causal,
                fill_latent=not self.goes_on,
                mark_keyframes=self.sizes.marks_keyframes,
                tokens_wait=self.sizes.tokens_wait,
            ),
            conditioning.AudioLatentTools(conditioning.AudioPatchifier(), self.audio),
        )

    @property
    def batch_size(self) -> int:
        """Videos of the batch."""
        return self.video.batch

    @property
    def num_video_tokens(self) -> int:
        """Tokens of the clip at the patch size 1 of every released model."""
        return self.video.frames * self.video.height * self.video.width

    @property
    def shown_frames(self) -> list[int]:
        """The frame of the finished clip that each frame of the stage shows; first and last are always among them."""
        return [round(frame / self.temporal_scale) for frame in range(self.num_frames)]

    @property
    def clip_frames(self) -> int:
        """Pixel frames of the finished clip, without padding."""
        return self.shown_frames[-1] + 1 if self.kept_frames is None else self.kept_frames

    @property
    def duration_s(self) -> float:
        """Length of the finished clip in seconds; that of the audio follows it."""
        return self.clip_frames * self.temporal_scale / self.frame_rate


def plan_clip(
    sizes: ModelSizes,
    batch_size: int,
    wished: Size,
    scales: Sequence[tuple[float, float]],
    latents: torch.Tensor | None = None,
    audio_latents: torch.Tensor | None = None,
) -> ClipPlan:
    """Check the wished size and work out the latent shapes of both streams in the finished clip.

    Args:
        sizes: What the networks make of pixels, frames and seconds.
        batch_size: Videos of the batch.
        wished: Size of the clip.
        scales: Size of each stage in space and time over that of the clip.
        latents, audio_latents: Latents that the first stage starts from.
    """
    spatial, temporal = sizes.spatial_ratio, sizes.temporal_ratio
    height, width, num_frames = _inferred_size(sizes, wished, latents)
    # A stage at half the size needs the finished sides to be multiples of twice the stride.
    checks.check_size(height, width, spatial * _common_denominator(space for space, _ in scales))
    checks.check_num_frames(num_frames, frame_stride(sizes, scales))
    check_speed(num_frames, wished)
    kept = num_frames if wished.in_segments else None
    num_frames = _canvas(sizes, num_frames, latents) if wished.in_segments else num_frames
    frames = (num_frames - 1) // temporal + 1
    video = VideoLatentShape(batch_size, sizes.channels, frames, height // spatial, width // spatial)
    audio = sizes.audio_shape(batch_size, num_frames / wished.frame_rate)
    if audio_latents is not None and audio_latents.ndim == 4:
        audio = audio._replace(frames=audio_latents.shape[2])
    rates = (wished.frame_rate, wished.motion_speed)
    plan = ClipPlan(sizes, num_frames, height, width, *rates, video, audio, kept_frames=kept)
    tools = plan.at_scale(*scales[0]).tools
    _check_latents("latents", latents, tools.video)
    _check_latents("audio_latents", audio_latents, tools.audio)
    return plan


def frame_stride(sizes: ModelSizes, scales: Sequence[tuple[float, float]]) -> int:
    """The number of which the frames of a clip are a multiple and one more, for stages at some scales."""
    return sizes.temporal_ratio * _common_denominator(time for _, time in scales)


def check_speed(num_frames: int, wished: Size) -> None:
    """Frame rate and speed of motion must be such that time can be counted, and the sound of a length to be made at once."""
    rate = wished.frame_rate
    checks.check_positive(frame_rate=rate, motion_speed=wished.motion_speed)
    checks.check_most(checks.MAX_FRAME_RATE, frame_rate=rate)
    if not 1 / MAX_SPEED <= wished.motion_speed <= MAX_SPEED:
        nearest = min(max(wished.motion_speed, 1 / MAX_SPEED), MAX_SPEED)
        raise ValueError(
            f"`motion_speed` has to be from {1 / MAX_SPEED:g} to {MAX_SPEED:g} but is {wished.motion_speed}; use {nearest:g}"
        )
    if num_frames / rate > checks.MAX_SECONDS:
        raise ValueError(
            f"{num_frames} frames (`num_frames`) at a `frame_rate` of {rate:g} last {num_frames / rate:g} s, more than the "
            f"{checks.MAX_SECONDS:g} s of sound that can be made at once; use a `frame_rate` of at least "
            f"{math.ceil(num_frames / checks.MAX_SECONDS)}, or fewer frames"
        )


def _inferred_size(sizes: ModelSizes, wished: Size, latents: torch.Tensor | None) -> tuple[int, int, int]:
    """Height, width and frames of a clip: what is wished, else what latents imply, else the defaults."""
    implied: Sequence[int | None] = (None, None, None)
    if latents is not None and latents.ndim == 5:
        frames, rows, columns = latents.shape[2:]
        implied = (rows * sizes.spatial_ratio, columns * sizes.spatial_ratio, sizes.pixel_frames(frames))
    elif latents is not None and latents.ndim == 3:
        # Packed ones tell their number of frames to who knows the sides.
        sides = (
            default if side is None else side for side, default in zip((wished.height, wished.width), DEFAULT_SIZE)
        )
        grid = max(math.prod(side // sizes.spatial_ratio for side in sides), 1)
        implied = (None, None, sizes.pixel_frames(max(latents.shape[1] // grid, 1)))
    height, width, num_frames = (
        next(value for value in options if value is not None)
        for options in zip((wished.height, wished.width, wished.num_frames), implied, DEFAULT_SIZE)
    )
    return height, width, num_frames


def _canvas(sizes: ModelSizes, num_frames: int, latents: torch.Tensor | None) -> int:
    """Frames of the canvas of a pass of DFR: that of given latents, which a round has made longer, else the shortest one."""
    ratio = sizes.temporal_ratio
    canvas = conditioning.resolve_canvas(num_frames, ratio)[0]
    if latents is None or latents.ndim != 5:
        return canvas
    given = sizes.pixel_frames(latents.shape[2])
    return given if given > canvas and conditioning.resolve_canvas(given, ratio)[0] == given else canvas


def _common_denominator(scales: Iterable[float]) -> int:
    """The smallest number of which every scale gives a whole share."""
    return math.lcm(*(Fraction(scale).limit_denominator(64).denominator for scale in scales))


def _check_latents(name: str, latents: torch.Tensor | None, tools: LatentTools) -> None:
    """Given latents must have the shape of the first stage, unpacked or packed."""
    shape = tuple(tools.target_shape)
    packed = tuple(tools.patchifier.patchify(torch.empty(shape, device="meta")).shape)
    if latents is not None and tuple(latents.shape) not in (shape, packed):
        raise ValueError(f"`{name}` has shape {tuple(latents.shape)}; this call needs {shape} or {packed} (packed)")


def check_decodable_size(height: int, width: int, minimum: int) -> None:
    """A decoder that pads by reflection needs more than one latent a side."""
    for name, value in (("height", height), ("width", width)):
        if value < minimum:
            raise ValueError(
                f"`{name}` is {value}, but this checkpoint's video VAE decodes no less than {minimum} pixels a side; use "
                f"{minimum}"
            )
