"""From a storyboard to a clip: segment by segment, each kept when it is finished."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from ...adapters.active import added_adapters, held_adapters
from ...atomic import check_folder_writable, check_writable
from ...conditioning.streams import Streams
from ...guidance import GuidanceOptions
from ...media.files import check_suffix
from ...media.muxing import join_clips
from ...media.writing import VIDEO_SUFFIXES
from ...pipelines.arguments import Callback
from ...pipelines.conditions import Condition, Waveform
from ...pipelines.conditions.pictures import LTX2VideoCondition
from ...pipelines.conditions.sounds import AudioCondition
from ...pipelines.engine import prepare, reads_negative, stage_list
from ...pipelines.output import LTX2PipelineOutput
from ...pipelines.recipes.extension import segments as parts
from ...pipelines.recipes.extension.pipeline import LTX2ExtendPipeline
from ...pipelines.recipes.extension.plan import ClipLatents, Timeline, check_carried_audio
from ..director import PromptDirector
from ..generate import as_pipeline
from .board import Problems, Storyboard
from .finished import FinishedSegments, content_name
from .plan import PlannedSegment, plan_storyboard
from .track import Track


@dataclass(frozen=True)
class StoryboardProgress:
    """How far the making of a storyboard has come.

    Args:
        segment: The segment that is being made, or is finished, from 1.
        num_segments: How many there are.
        step: The step that is done, from 1; `num_steps` of the last stage when the segment is finished. 0 when the director
            has written its prompt, before any segment is made.
        num_steps: Steps of the stage.
        path: The file of the segment once it is finished; `None` before.
        shots: How many shots are finished.
    """

    segment: int
    num_segments: int
    step: int
    num_steps: int
    path: Path | None = None
    shots: int = 0


@torch.no_grad()
def make_storyboard(
    board: Storyboard,
    pipeline: Any,
    path: str | os.PathLike,
    *,
    identity: Mapping[str, Any] | None = None,
    remake: bool = False,
    keep_segments: bool = False,
    shot_folder: str | os.PathLike | None = None,
    on_progress: Callable[[StoryboardProgress], None] | None = None,
    callback_on_step_end: Callback | None = None,
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
) -> LTX2PipelineOutput:
    """Make a clip of several shots and write it to a file.

    Every segment takes over the last latents of the one before, as in [`LTX2ExtendPipeline`]; one at a time is in memory. A
    finished one is kept in the folder `PATH.segments` until the clip is there. Called again after a kill or an error, it goes
    on behind the last of them; the clip has the frames and samples that it would have had without an interruption.

    Args:
        board: What the clip is to show.
        pipeline: A pipeline with the components of [`LTX2ExtendPipeline`], on its device, with the adapters that shots name.
        path: File ending in `.mp4` or `.mov`. It appears when it is complete.
        identity: Further facts that the segments depend on and that this call cannot see, such as a name for the weights;
            text and numbers by name. Default none.
        remake: Whether finished segments that were made for another storyboard, and those behind them, are made anew.
            Default `False`: they are an error.
        keep_segments: Whether the folder with the segments stays when the clip is complete. Default `False`.
        shot_folder: Folder for a clip of each shot, with its sound, that is there as soon as the shot is finished, and stays:
            `shot_0001.mp4` and so on. Default none.
        on_progress: Called after each step and each prompt of the director, and with its file when a segment is finished. What it raises ends the call;
            what is finished stays.
        callback_on_step_end, callback_on_step_end_tensor_inputs: As in every pipeline. Setting `pipeline._interrupt = True` ends
            the series without the segment in progress: the clip is made of the finished ones, which stay.

    Returns:
        [`LTX2PipelineOutput`] without frames and sound; its `info` has `path`, `segments`, `num_frames` and `prompts`, one per
        segment.

    Raises:
        ValueError: Before any computation, if the storyboard contradicts itself or the pipeline, or finished segments are of
            another one; all that is wrong with a storyboard is named, a line each.
        OSError: If a file is missing or cannot be written.
        RuntimeError: If it was interrupted before a segment was finished.
    """
    board.check()
    path = check_suffix(path, VIDEO_SUFFIXES, "a storyboard's clip")
    check_writable(path)
    finished = FinishedSegments(path)
    check_folder_writable(finished.folder)
    finished.read()
    watched = _Watched(on_progress, callback_on_step_end, callback_on_step_end_tensor_inputs)
    shots = None if shot_folder is None else Path(shot_folder)
    making = _Making(board, as_pipeline(LTX2ExtendPipeline, pipeline), plan_storyboard(board), watched, shots)
    making.check()
    finished.begin(making.asked(identity or {}), remake)
    if board.director:
        making.planned = _directed(making, finished)
    finished.take_up(making.segments_asked(), remake)
    making.keep_shots(finished, begin=True)
    making.make(finished)
    output = making.joined(finished, path)
    if len(finished) == len(making.planned) and not keep_segments:
        finished.remove()
    return output


@dataclass
class _Watched:
    """Whoever follows the making, step by step.

    Args:
        on_progress, callback, names: See [`make_storyboard`].
        segment, num_segments: Which segment is being made, and of how many.
        shots: How many shots are finished.
    """

    on_progress: Callable[[StoryboardProgress], None] | None
    callback: Callback | None
    names: Sequence[str]
    segment: int = 0
    num_segments: int = 0
    shots: int = 0

    @property
    def function(self) -> Callback | None:
        """What a call takes."""
        return None if self.on_progress is None and self.callback is None else self

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any] | None:
        """After a step."""
        self.tell(step + 1, pipeline.num_timesteps)
        return None if self.callback is None else self.callback(pipeline, step, timestep, tensors)

    def tell(self, step: int, num_steps: int, path: Path | None = None) -> None:
        """Say how far it has come."""
        if self.on_progress is not None:
            place = self.segment, self.num_segments
            self.on_progress(StoryboardProgress(*place, step, num_steps, path, self.shots))


class _Making:
    """A storyboard on its way to a clip.

    Args:
        board: The storyboard.
        pipeline: What makes its segments.
        planned: The segments.
        watched: Who follows.
        shot_folder: See [`make_storyboard`].
    """

    def __init__(
        self,
        board: Storyboard,
        pipeline: LTX2ExtendPipeline,
        planned: list[PlannedSegment],
        watched: _Watched,
        shot_folder: Path | None,
    ) -> None:
        self.board, self.pipeline, self.planned, self.watched = board, pipeline, planned, watched
        self.shot_folder = shot_folder
        self.places: list[list[int]] = [[] for _ in board.shots]
        """Of each shot, which segments it is made of."""
        for place, one in enumerate(planned):
            self.places[one.shot].append(place)
        watched.num_segments = len(planned)
        self.num_frames = planned[-1].end
        self.track = None if board.audio is None else Track(board, self.num_frames)

    def check(self) -> None:
        """Find what the pipeline cannot do, before it is asked to."""
        self.pipeline.require("transformer")
        if self.board.director:
            self.pipeline.chat_model.check()
        problems = Problems()
        for one in self.planned:
            problems.tried(f"shot {one.shot + 1}: ", self._check_segment, one)
        problems.raise_any()

    def _check_segment(self, one: PlannedSegment) -> None:
        pipeline, adapters = self.pipeline, self.board.shots[one.shot].adapters
        loaded = list(pipeline.lora_metadata)
        if missing := [name for name in adapters if name not in loaded]:
            raise ValueError(f"`adapters` names {missing[0]!r}, but loaded are {loaded}; load it, or leave it out")
        with held_adapters(pipeline, if_loaded=True), added_adapters(pipeline, adapters):
            silence = None if self.track is None else self.track.silence(one.num_frames)
            wanted = self._wanted(one, silence)
            watched = wanted.request.delivery.wanted
            with_negative = reads_negative(pipeline, wanted.request)
            pipeline.prompt_reader.check(wanted.prompts, with_negative, watched=watched)
            prepare(pipeline, wanted.request, batch_size=1)
        if one.shared and self.board.generate_audio and self.track is None:
            check_carried_audio(wanted.timeline, one.first_new, self.board.frame_rate)

    def _wanted(self, one: PlannedSegment, sound: Waveform | None) -> parts.Wanted:
        """A segment as the pipeline takes it."""
        board, sizes = self.board, self.pipeline.sizes
        call = board.call(
            prompt=one.prompt,
            negative_prompt=one.negative_prompt,
            num_frames=one.num_frames,
            generator=torch.Generator("cpu").manual_seed(one.seed),
            output_type="uint8",
            callback_on_step_end=self.watched.function,
            callback_on_step_end_tensor_inputs=self.watched.names,
        )
        streams = Streams(True, board.generate_audio)
        stages = stage_list(self.pipeline, call.sampling, Streams(False, sound is not None), streams)
        conditions: list[Condition] = [
            LTX2VideoCondition(k.image, frame=frame, strength=k.strength, crf=k.crf, mode=k.mode)
            for frame, k in one.keyframes
        ]
        conditions += [] if sound is None else [AudioCondition(sound)]
        prompts, request = call.request(stages, conditions, streams=streams)
        timeline = Timeline(
            one.num_frames,
            (board.overlap_frames - 1) // sizes.temporal_ratio + 1,
            lambda frames: sizes.audio_shape(1, frames / board.frame_rate).frames,
        )
        return parts.Wanted(prompts, request, timeline, board.shots[one.shot].adapters)

    def asked(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """What holds for all segments, in plain values."""
        board = self.board
        names = ("height", "width", "overlap_frames", "frame_rate", "drift_control", "generate_audio")
        call = board.call()
        settings = {name: getattr(call, name) for name in board.settings}
        settings |= {n: asdict(v) for n, v in settings.items() if isinstance(v, GuidanceOptions)}
        sound = None if self.track is None else [content_name(self.track.path), board.audio_start_s, board.audio_fit]
        question = None
        if board.director:
            question = [board.prompt, board.director_tokens, board.seed, [one.prompt for one in self.planned]]
        values = {name: getattr(board, name) for name in names}
        return {**values, **settings, "audio": sound, "director": question, "identity": dict(identity)}

    def segments_asked(self) -> list[dict[str, Any]]:
        """What each segment is to be, in plain values."""
        names = ("prompt", "negative_prompt", "seed", "start", "num_frames", "shared")
        return [
            {name: getattr(one, name) for name in names}
            | {"adapters": dict(self.board.shots[one.shot].adapters)}
            | {"keyframes": [[f, k.strength, k.crf, k.mode, _picture_name(k.image)] for f, k in one.keyframes]}
            for one in self.planned
        ]

    def make(self, finished: FinishedSegments) -> None:
        """Make the segments that are not finished."""
        pipeline, board, first = self.pipeline, self.board, len(finished)
        carried = None
        if first:
            device = pipeline._execution_device
            video, audio = finished.latents(first - 1)
            latents = ClipLatents(video.to(device), None if audio is None else audio.to(device))
            carried = parts.Carried(latents, self.planned[first - 1].end, finished.latents(0).video.to(device))
        wanted: list[parts.Wanted] = []
        made = parts.generate_segments(pipeline, self._each(first, wanted), carried, board.drift_control)
        asked = self.segments_asked()
        for segment in made:
            # Of an interrupted segment that is the first one there is what was made of it, which is not what was asked for.
            if pipeline._interrupt:
                break
            index = len(finished)
            frames, sound = parts.decode_segment(pipeline, segment, wanted[-1].request.delivery)
            samples = None if sound is None else sound[0].float()
            heard = samples if self.track is None else self.track.window(self.planned[index])
            rates = (board.frame_rate, self.sampling_rate)
            path = finished.add(asked[index], segment.info, rates, frames[0], segment.latents, samples, heard)
            # Otherwise it would live on while the next one is made.
            del segment, frames, sound, samples, heard
            self.keep_shots(finished)
            self.watched.tell(pipeline.num_timesteps, pipeline.num_timesteps, path)
        pipeline.maybe_free_model_hooks()
        if not len(finished):
            raise RuntimeError("the storyboard was interrupted before a segment was finished; nothing is left of it")

    def _each(self, first: int, made: list[parts.Wanted]) -> Iterator[parts.Wanted]:
        """The segments from one on, each when it is its turn; `made` holds the one that is being made."""
        for number, one in enumerate(self.planned[first:], start=first + 1):
            self.watched.segment = number
            sound = None if self.track is None else self.track.shown(one)
            made[:] = [self._wanted(one, sound)]
            yield made[0]

    @property
    def sampling_rate(self) -> int | None:
        """Samples per second of the clip."""
        if self.track is not None:
            return self.track.rate
        return self.pipeline.vocoder.config.output_sampling_rate if self.board.generate_audio else None

    def keep_shots(self, finished: FinishedSegments, begin: bool = False) -> None:
        """Write the shots that are finished, and note how many they are.

        Args:
            finished: The finished segments.
            begin: Whether nothing is made yet: files of other shots are an earlier storyboard's, and go.
        """
        for number, places in enumerate(self.places, start=1):
            path = None if self.shot_folder is None else self.shot_folder / f"shot_{number:04d}.mp4"
            if places[-1] < len(finished):
                self.watched.shots = number
                if path is not None and not path.exists():
                    join_clips([finished.clips[place] for place in places], path, **self._sound(finished, places))
            elif path is not None and begin:
                path.unlink(missing_ok=True)

    def _sound(self, finished: FinishedSegments, places: Sequence[int]) -> dict[str, Any]:
        """What is heard with some of the finished segments, for `join_clips`."""
        if self.sampling_rate is None:
            return {}
        windows = (self.planned[place] for place in places)
        pieces = finished.samples(places) if self.track is None else map(self.track.window, windows)
        return {"sound": pieces, "sampling_rate": self.sampling_rate}

    def joined(self, finished: FinishedSegments, path: Path) -> LTX2PipelineOutput:
        """Put the finished segments together."""
        planned, rate = self.planned[: len(finished)], self.sampling_rate
        sound = self._sound(finished, range(len(planned)))
        if self.track is not None and self.track.is_copied(path.suffix.lower()):
            sound = {"audio_source": self.track.path}
        join_clips(finished.clips, path, **sound)
        info = finished.infos[0] | {
            "output_type": "uint8",
            "segments": len(finished),
            "num_frames": planned[-1].end,
            "prompts": [one.prompt for one in planned],
            "path": str(path),
        }
        return LTX2PipelineOutput(None, None, self.board.frame_rate, rate, info)


def _directed(making: _Making, finished: FinishedSegments) -> list[PlannedSegment]:
    """The segments with prompts that a language model has written, or wrote when it was asked the same."""
    board, pipeline, planned = making.board, making.pipeline, making.planned
    texts = finished.prompts
    if texts is None:
        tokens = board.director_tokens
        told = [one.prompt for one in planned]
        texts = pipeline.enhance_prompt(told[0], seed=board.seed, max_new_tokens=tokens)
        director = PromptDirector(
            pipeline, board.prompt or "", len(told), seed=board.seed, max_new_tokens=tokens, parts=told
        )
        for index in range(1, len(told)):
            making.watched.segment = index
            making.watched.tell(0, 0)
            texts.append(director(index, texts[-1]))
        finished.keep_prompts(texts)
    return [replace(one, prompt=text) for one, text in zip(planned, texts)]


def _picture_name(image: Any) -> str:
    """Name of a picture's content."""
    if isinstance(image, PIL.Image.Image):
        return sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()
    return content_name(image)
