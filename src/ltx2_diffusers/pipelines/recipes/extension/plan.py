"""What an extension is to be: its segments, how they lie in time, and what it goes on from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import NamedTuple

import torch

from .... import checks, conditioning
from ...conditions import Sound, SourceClip, read_source
from .. import DEFAULT_SIZE, Frames, ModelSizes, Size, StagedArguments, Streams, Texts

MAX_SEGMENTS = 1000


@dataclass(frozen=True)
class _Clip(Texts):
    """What comes first.

    Args:
        prompt: Text for all segments, or a list with one text per segment, in the order in which they are made.
        video: Clip to extend: the name of a file, or frames as in
            [`~ltx2_diffusers.pipelines.conditions.pictures.LTX2VideoCondition`]. Only its overlap is encoded, and its own
            frames are part of the result untouched. Without `video` and `latents` the first segment is made from text alone.
        audio: Sound of `video`, a waveform `[C, N]` or `[B, C, N]` in [-1, 1] or a file name; default that of the file.
        sampling_rate: Samples per second of a waveform.
    """

    video: Frames | None = None
    audio: Sound | None = None
    sampling_rate: int | None = None
    latents: torch.Tensor | None = None
    audio_latents: torch.Tensor | None = None
    num_segments: int | None = None
    overlap_frames: int = 25
    direction: str = "forward"
    drift_control: float = 0.0
    save_path: str | PathLike | None = None
    generate_audio: bool | None = None
    two_stage: bool = False


@dataclass(frozen=True)
class ExtendArguments(StagedArguments, _Clip):
    """What the call takes.

    Args:
        prompt: Text for all segments, or a list with one text per segment, in the order in which they are made.
        negative_prompt: Text to steer away from, one for all segments. Default the empty text.
        latents, audio_latents: Clip to extend as un-normalised latents `[1, C, F, h, w]` and `[1, C, L, M]`, which a call
            with `output_type="latent"` returns.
        num_segments: Segments to make; default one, or one per prompt.
        overlap_frames: Pixel frames that a segment shares with its neighbour, 8 k + 1. K = k + 1 latent frames are handed
            over, and each segment adds `num_frames - overlap_frames` frames. Default 25.
        direction: `"forward"` (default) goes on at the end, `"backward"` at the start.
        drift_control: How far mean and spread of the latent channels of what a segment adds are moved to those of the given
            latents (of `video`, its overlap), or of the first segment, 0 (default, not at all) to 1. It keeps long clips
            from drifting in colour and contrast, and changes what the model made.
        save_path: File to write while segments are made, ending in `.mp4` or `.mov`; the output then holds no frames and
            no sound but `info["path"]`, and the frames of one segment at a time are in memory, of a decoder that streams fewer;
            a [`ClipFile`] says how it is written. Backwards, the latents of
            all segments are kept until the first one in time is there.
        generate_audio: Whether the clip has sound; default as the given clip, or yes.
        height, width: Size in pixels; default the given clip's, which has to be valid.
        num_frames: Pixel frames of a segment, overlap included. Default 121.
        frame_rate: Frames per second; default the file's, the average one if it varies, or 24.0. Frames of a file of another
            rate are left out or repeated by their times.
        two_stage: Whether each segment starts at half the size and is refined at full size; default `False`.
        generator: Source of noise, drawn on its device, the CPU by default.
    """

    prompt: str | list[str] = field()
    negative_prompt: str | None = None
    frame_rate: float | None = None
    num_videos_per_prompt: int = field(init=False, default=1)
    generator: torch.Generator | None = None
    latents: torch.Tensor | None = None
    audio_latents: torch.Tensor | None = None
    prompt_embeds: None = field(init=False, default=None)
    prompt_attention_mask: None = field(init=False, default=None)
    negative_prompt_embeds: None = field(init=False, default=None)
    negative_prompt_attention_mask: None = field(init=False, default=None)
    two_stage: bool = False


@dataclass(frozen=True)
class Timeline:
    """How segments lie on the time of the whole clip.

    The sound is counted from the start of the whole clip, so that rounding to audio latents does not add up.

    Args:
        segment_frames: Pixel frames of a segment, those it shares with its neighbour included.
        overlap: Latent frames K that are shared.
        audio_at: From pixel frames to audio latents as long.
        backwards: Whether segments come before what is there.
    """

    segment_frames: int
    overlap: int
    audio_at: Callable[[int], int]
    backwards: bool = False

    @property
    def new_frames(self) -> int:
        """Pixel frames that a segment adds."""
        return self.segment_frames - conditioning.carried_pixel_frames(self.overlap)

    def carried_audio(self, num_frames: int) -> int:
        """Audio latents that the segment after `num_frames` pixel frames shares with what is there."""
        new = self.audio_at(num_frames + self.new_frames) - self.audio_at(num_frames)
        return self.audio_at(self.segment_frames) - new

    def edge(self, latents: torch.Tensor, count: int) -> torch.Tensor:
        """The `count` latents `[1, C, count, ...]` next to where the clip goes on."""
        return latents[:, :, :count] if self.backwards else latents[:, :, latents.shape[2] - count :]


class ClipLatents(NamedTuple):
    """Latents of a clip, `[1, C, F, h, w]` and, unless it is silent, `[1, C, L, M]`."""

    video: torch.Tensor
    audio: torch.Tensor | None


@dataclass(frozen=True)
class Extension:
    """A checked extension.

    Args:
        prompts: One text per segment.
        size: Size of a segment.
        sides: Its height and width.
        timeline: How segments lie in time.
        source: Clip or un-normalised latents to go on from, or `None`.
        num_frames: Pixel frames of the source.
        streams: Which streams are generated.
        drift_control: How far the statistics of new video latents are moved to those of the first ones, 0 to 1.
    """

    prompts: list[str]
    size: Size
    sides: tuple[int, int]
    timeline: Timeline
    source: SourceClip | ClipLatents | None
    num_frames: int
    streams: Streams[bool]
    drift_control: float


def plan_extension(sizes: ModelSizes, call: ExtendArguments) -> Extension:
    """Check the arguments that only an extension has, and work out its sizes."""
    checks.check_choice("direction", call.direction, ("forward", "backward"))
    checks.check_unit(drift_control=call.drift_control)
    checks.check_at_least_one(num_segments=1 if call.num_segments is None else call.num_segments)
    checks.check_most(MAX_SEGMENTS, num_segments=call.num_segments)
    prompts = _segment_prompts(call.prompt, call.num_segments)
    segment_frames = DEFAULT_SIZE[2] if call.num_frames is None else call.num_frames
    check_overlap(call.overlap_frames, segment_frames, sizes.temporal_ratio)
    source, num_frames, rate = _source(sizes, call)
    if source is not None and num_frames < call.overlap_frames:
        raise ValueError(
            f"`overlap_frames` is {call.overlap_frames}, but the clip has {num_frames} frames; use a smaller overlap"
        )
    has_sound = call.generate_audio is not False
    if source is not None:
        has_sound = source.audio is not None
        if call.generate_audio not in (None, has_sound):
            raise ValueError(
                f"`generate_audio` is {call.generate_audio}, but the clip has {'sound' if has_sound else 'no sound'} to go on "
                "from; leave it out, or give the clip with the sound it should have"
            )
    timeline = Timeline(
        segment_frames,
        (call.overlap_frames - 1) // sizes.temporal_ratio + 1,
        lambda frames: sizes.audio_shape(1, frames / rate).frames,
        call.direction == "backward",
    )
    if has_sound:
        first = num_frames or timeline.segment_frames
        for index in range(len(prompts) - (0 if num_frames else 1)):
            check_carried_audio(timeline, first + index * timeline.new_frames, rate)
    sides = _sides(sizes, (call.height, call.width), source)
    size = Size(*sides, segment_frames, rate, call.motion_speed)
    streams = Streams(True, has_sound)
    return Extension(prompts, size, sides, timeline, source, num_frames, streams, call.drift_control)


def _segment_prompts(prompt: str | Sequence[str] | None, count: int | None) -> list[str]:
    texts = [prompt] * (1 if count is None else count) if isinstance(prompt, str) else list(prompt or [])
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`prompt` has to be a text, or a list of one text per segment, but is {prompt!r}")
    if count is not None and count != len(texts):
        raise ValueError(f"`num_segments` is {count}, but `prompt` has {len(texts)} texts; leave one of them out")
    return texts


def check_overlap(overlap: int, segment_frames: int, ratio: int) -> None:
    """Segments of so many frames must be able to share `overlap` of them and add some."""
    checks.check_num_frames(segment_frames, ratio)
    if segment_frames <= 2 * ratio:
        raise ValueError(
            f"`num_frames` is {segment_frames}, too few to share {ratio + 1} frames and add {ratio}; use {2 * ratio + 1}"
        )
    whole = isinstance(overlap, int)
    if not whole or (overlap - 1) % ratio or not ratio < overlap < segment_frames:
        nearest = min(max((overlap - 1) // ratio, 1), (segment_frames - 1) // ratio - 1) if whole else 1
        raise ValueError(
            f"`overlap_frames` has to be {ratio} k + 1, at least {ratio + 1} and less than `num_frames` {segment_frames}, but "
            f"is {overlap!r}; use {nearest * ratio + 1}"
        )


def _source(sizes: ModelSizes, call: ExtendArguments) -> tuple[SourceClip | ClipLatents | None, int, float]:
    """What is given to go on from, its pixel frames and its frame rate."""
    checks.check_positive(frame_rate=call.frame_rate)
    if call.video is not None and call.latents is not None:
        raise ValueError("give either `video` or `latents`, not both")
    if call.video is not None:
        if call.output_type == "latent":
            raise ValueError(
                '`video` is given, but output_type="latent" needs the clip as `latents`; give them, or choose another output type'
            )
        clip = read_source(call.video, call.frame_rate, call.audio, call.sampling_rate)
        return clip, clip.num_frames, clip.frame_rate
    rate = 24.0 if call.frame_rate is None else call.frame_rate
    if call.audio is not None or (call.latents is None and call.audio_latents is not None):
        raise ValueError("`audio` belongs to `video`, and `audio_latents` to `latents`; give both of a pair")
    if call.latents is None:
        return None, 0, rate
    _check_latents(sizes, call.latents, call.audio_latents, rate)
    return ClipLatents(call.latents, call.audio_latents), sizes.pixel_frames(call.latents.shape[2]), rate


def _check_latents(sizes: ModelSizes, latents: torch.Tensor, audio: torch.Tensor | None, rate: float) -> None:
    checks.check_float_tensors(latents=latents, audio_latents=audio)
    if latents.ndim != 5 or latents.shape[:2] != (1, sizes.channels):
        raise ValueError(
            f"`latents` has to be un-normalised [1, {sizes.channels}, F, h, w] but has shape {tuple(latents.shape)}"
        )
    if audio is None:
        return
    num_frames = sizes.pixel_frames(latents.shape[2])
    expected = sizes.audio_shape(1, num_frames / rate)
    if (*audio.shape[:2], expected.frames, *audio.shape[3:]) != expected or abs(audio.shape[2] - expected.frames) > 1:
        raise ValueError(
            f"`audio_latents` has to be un-normalised {tuple(expected)} for {num_frames} frames at {rate:g} per second but "
            f"has shape {tuple(audio.shape)}"
        )


def _sides(
    sizes: ModelSizes, wished: tuple[int | None, int | None], source: SourceClip | ClipLatents | None
) -> tuple[int, int]:
    if not isinstance(source, ClipLatents):
        own = DEFAULT_SIZE[:2] if source is None else source.pixels.shape[1:3]
        height, width = (side if given is None else given for given, side in zip(wished, own))
        return height, width
    height, width = (side * sizes.spatial_ratio for side in source.video.shape[3:])
    if any(side not in (None, given) for side, given in zip(wished, (height, width))):
        raise ValueError(
            f"`height` and `width` are {wished}, but `latents` are those of {(height, width)} pixels; leave them out"
        )
    return height, width


def check_carried_audio(timeline: Timeline, num_frames: int, rate: float) -> None:
    """A segment that goes on after `num_frames` pixel frames must share some of their sound and add some."""
    segment, shared = timeline.audio_at(timeline.segment_frames), timeline.carried_audio(num_frames)
    if not 0 < shared < segment:
        raise ValueError(
            f"at `frame_rate` {rate:g}, `num_frames` and `overlap_frames` leave a segment of {segment} audio latents (40 "
            f"ms each) {shared} to share; use more frames for both, or generate_audio=False"
        )
