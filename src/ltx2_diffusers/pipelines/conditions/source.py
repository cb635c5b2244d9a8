"""Given clips, read once: kept as a whole and handed over untouched, or kept outside a stretch that is made anew.

Shapes: F frames, H and W rows and columns of pixels, h and w latent rows and columns.
"""

import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import PIL.Image
import torch

from ...checks import check_at_least_one, check_unit
from ...conditioning import ConditionByWholeLatent, ConditionOutsideRegion, tokens_in_time
from ...media import frames, preprocess
from ...models.audio_vae import conform_latent_length
from ..plan import ClipPlan
from .condition import Condition, Items, Opened, SourceClip, Streams, Studio, Waveform, video_item
from .sounds import AudioCondition, Sound, read_waveform

Mask = torch.Tensor | np.ndarray | PIL.Image.Image


def read_source(
    video: frames.Frames,
    frame_rate: float | None = None,
    audio: Sound | None = None,
    sampling_rate: int | None = None,
    num_frames: int | None = None,
    with_audio: bool = True,
) -> SourceClip:
    """Read a clip with its sound.

    Args:
        video: Frames as in [`~ltx2_diffusers.pipelines.conditions.pictures.LTX2VideoCondition`], or the name of a video file.
        frame_rate: Frames per second; that of the file, or 24.0 for frames. A file of another rate, or of a rate that
            varies, is brought to it by the times of its frames.
        audio: Waveform or file name; default the sound of the video file.
        sampling_rate: Samples per second of a waveform.
        num_frames: Frames to use from the start; default all.
        with_audio: Whether the sound is read, too; one that is replaced may be damaged or empty.
    """
    if num_frames is not None:
        check_at_least_one(num_frames=num_frames)
    rate, read_at, info = frames.source_rate(video, frame_rate)
    path = os.fspath(video) if frames.is_video_file(video) else None
    # One frame more tells whether these are all.
    limit = None if num_frames is None else num_frames + 1
    pixels = frames.read_frames(video, limit, name="video", frame_rate=read_at)
    if num_frames is not None and len(pixels) < num_frames:
        raise ValueError(f"`num_frames` is {num_frames}, but the video has {len(pixels)} frames; use {len(pixels)}")
    if with_audio and audio is None and info is not None and info.sampling_rate is not None:
        audio = path
    sound = None if audio is None else read_waveform(audio, sampling_rate)
    if info is None or (num_frames is not None and len(pixels) > num_frames):
        return SourceClip(pixels[:num_frames], rate, sound, None)
    return SourceClip(pixels, rate, sound, path, None if read_at is None else info.duration_s)


@dataclass(frozen=True)
class WholeVideoCondition(Condition):
    """A video that is given as a whole and handed over untouched, for which only sound is made.

    Args:
        clip: The video. Its last frame is repeated to the end of the clip that is generated.
    """

    clip: SourceClip
    stream = "video"

    @property
    def holds(self) -> bool:
        """Always."""
        return True

    def opened(self, studio: Studio, plan: ClipPlan) -> "OpenedVideo":
        """The video is read already."""
        return OpenedVideo(studio, self.clip)


@dataclass(frozen=True)
class OpenedVideo(Opened):
    """A whole video.

    Args:
        studio: Encodes it.
        original: The video as it was given.
    """

    studio: Studio
    original: SourceClip

    @property
    def places(self) -> list[str]:
        """The whole video."""
        return ["the video stream"]

    def items(self, plan: ClipPlan) -> Items:
        """Encode the video at the stage's size, its last frame repeated to the end of the clip."""
        last = self.original.num_frames - 1
        shown = [min(frame, last) for frame in plan.shown_frames]
        pixels = preprocess.fitted_frames(self.original.pixels, shown, plan.height, plan.width)
        return video_item(ConditionByWholeLatent(self.studio.encode_video(pixels)))


@dataclass(frozen=True)
class RetakeCondition(Condition):
    """Keeps a clip outside a stretch of time.

    Args:
        start_s, end_s: The stretch that is made anew, in seconds.
        pixels: Frames `[F, H, W, 3]` in [0, 255] of the clip; `None` leaves the video alone.
        audio: Its sound; `None` leaves the audio alone.
        region: Where the pictures are made anew during the stretch, a mask in [0, 1] `[H, W]` or one per frame
            `[F, H, W]`, or an image; any size. A latent that holds any pixel of it is made anew. Default everywhere.
    """

    start_s: float
    end_s: float
    pixels: torch.Tensor | None = None
    audio: Waveform | None = None
    region: Mask | None = None

    def opened(self, studio: Studio, plan: ClipPlan) -> "OpenedRetake":
        """Check that the stretch lies within the clip."""
        if not 0 <= self.start_s < self.end_s:
            raise ValueError(f"`start_s` {self.start_s} and `end_s` {self.end_s} have to be 0 <= start_s < end_s")
        if self.start_s >= plan.duration_s:
            raise ValueError(
                f"`start_s` {self.start_s} lies behind the end of the clip; its {plan.clip_frames} frames (`num_frames`) last "
                f"{plan.duration_s:.3f} s"
            )
        # One audio latent (40 ms) of slack: a file rounds its duration to frames.
        if self.end_s > plan.duration_s + 0.04:
            raise ValueError(
                f"`end_s` {self.end_s} lies behind the end of the clip; its {plan.clip_frames} frames (`num_frames`) last "
                f"{plan.duration_s:.3f} s, use at most that"
            )
        return OpenedRetake(studio, plan, self)


@dataclass(frozen=True)
class OpenedRetake(Opened):
    """A clip that is kept outside a stretch.

    Args:
        studio: Encodes it.
        clip: Sizes of the finished clip.
        given: The condition, whose clip is read already.
    """

    studio: Studio
    clip: ClipPlan
    given: RetakeCondition

    @property
    def places(self) -> list[str]:
        """The streams that are kept in part."""
        given = (("the video stream", self.given.pixels), ("the audio stream", self.given.audio))
        return [stream for stream, value in given if value is not None]

    def check(self, plan: ClipPlan) -> None:
        """Raise `ValueError` if the region does not fit a stage, or leaves nothing of it to make anew."""
        if self.given.pixels is None or self.given.region is None:
            return
        tools = plan.tools.video
        marked = tools.patchifier.patchify(_region_mask(self.given.region, plan)[None].float())
        if not (marked * tokens_in_time(*self._video_stretch, tools, marked.device)).any():
            raise ValueError(
                "`region` is empty during the stretch, so that nothing would be made anew; mark at least one pixel by 1"
            )

    def items(self, plan: ClipPlan) -> Items:
        """Encode the clip at the stage's size."""
        video, audio = [], []
        if self.given.pixels is not None:
            shown = plan.shown_frames
            pixels = preprocess.fitted_frames(self.given.pixels, shown, plan.height, plan.width)
            region = None if self.given.region is None else _region_mask(self.given.region, plan).float()
            video = [ConditionOutsideRegion(self.studio.encode_video(pixels), *self._video_stretch, region)]
        if self._audio_latent is not None:
            # The last latent may end before the video does, and stands for the rest.
            last_s = plan.tools.audio.positions()[0, 0, -1].mean().item()
            start_s = min(self.given.start_s, last_s)
            audio = [ConditionOutsideRegion(self._audio_latent, start_s, self.given.end_s)]
        return Streams(video, audio)

    @property
    def _video_stretch(self) -> tuple[float, float]:
        """The stretch in the seconds in which the video's positions are counted."""
        return self.given.start_s * self.clip.motion_speed, self.given.end_s * self.clip.motion_speed

    @cached_property
    def _audio_latent(self) -> torch.Tensor | None:
        sound = self.given.audio
        if sound is None:
            return None
        samples = sound.samples[..., : round(self.clip.duration_s * sound.rate)]
        return conform_latent_length(self.studio.encode_audio(samples, sound.rate), self.clip.audio.frames)


def _region_mask(region: Mask, plan: ClipPlan) -> torch.Tensor:
    """The region as a mask of latents `[1, F', h, w]`."""
    mask = torch.as_tensor(np.array(region.convert("L")) / 255 if isinstance(region, PIL.Image.Image) else region)
    if mask.is_meta or mask.is_complex() or not mask.numel():
        raise ValueError(f"`region` has to hold numbers but is {mask.dtype} {tuple(mask.shape)} on {mask.device}")
    for bound in mask.float().aminmax() if mask.is_floating_point() else ():
        check_unit(region=bound.item())
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or len(mask) not in (1, plan.clip_frames):
        raise ValueError(
            f"`region` has to be a mask [H, W] or [{plan.clip_frames}, H, W] but has shape {tuple(mask.shape)}"
        )
    if mask.shape[1] < plan.video.height or mask.shape[2] < plan.video.width:
        raise ValueError(
            f"`region` has {mask.shape[1]} x {mask.shape[2]} pixels, too few for {plan.video.height} x "
            f"{plan.video.width} latents; give it the size of the video"
        )
    marked = torch.nn.functional.adaptive_max_pool2d((mask > 0.5).float(), plan.video[3:])
    if len(marked) == 1:
        return marked.bool().expand(plan.video.frames, -1, -1)[None]
    # A frame of a stage at a lower rate stands for those before it that the stage leaves out, too.
    between = marked.tensor_split([frame + 1 for frame in plan.shown_frames[:-1]])
    marked = torch.stack([part.amax(0) for part in between])
    # The first latent frame holds one pixel frame, every other as many as the rest shares out evenly.
    later = marked[1:].unflatten(0, (plan.video.frames - 1, -1)).amax(1)
    return torch.cat([marked[:1], later]).bool()[None]


def retake_conditions(
    source: SourceClip, start_s: float, end_s: float, region: Mask | None, video: bool, audio: bool | None
) -> list[Condition]:
    """Conditions that keep a clip, each stream outside the stretch if it is made anew in it, or else as a whole.

    Args:
        source: The clip.
        start_s, end_s, region: See [`RetakeCondition`].
        video, audio: Whether pictures and sound are made anew; `None` makes the sound anew if there is one.
    """
    has_sound = source.audio is not None
    audio = has_sound if audio is None else audio
    if audio and not has_sound:
        raise ValueError(
            "`regenerate_audio` is True, but the clip has no sound to keep around the stretch; pass `audio`, or make sound "
            "for the whole clip with LTX2VideoToAudioPipeline"
        )
    if not (video or audio):
        raise ValueError("`regenerate_video` and `regenerate_audio` are both False; set at least one to True")
    if region is not None and not video:
        raise ValueError("`region` marks pictures, but `regenerate_video` is False; leave one of them out")
    made = (source.pixels if video else None, source.audio if audio else None)
    conditions: list[Condition] = [RetakeCondition(start_s, end_s, *made, region)]
    if not video:
        conditions.append(WholeVideoCondition(source))
    if source.audio is not None and not audio:
        conditions.append(AudioCondition(source.audio, fit="pad"))
    return conditions
