"""Which pipeline serves what an application asks for: pure decisions, no model is touched."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, prod
from typing import Any

from ..checkpoints.class_names import FAMILIES
from ..checks import check_at_least_one, check_choice, check_num_frames, check_positive, check_unit
from ..conditioning.shapes import VIDEO_SCALE_FACTORS
from ..declared import settle
from ..pipelines.conditions.pictures import LTX2ReferenceCondition, LTX2VideoCondition
from .chunks import Chunk, plan_chunks

# Fields of a request that are no argument of a call; all others are, under the same name.
_NO_ARGUMENTS = ("timeline", "enhance_prompt", "seed", "device_type", "auto_length")


@dataclass(frozen=True)
class TimelineItem:
    """A picture or clip on the timeline of an application.

    Args:
        type: `"image"` or `"video"`.
        path: File name.
        frame_index: Frame of the video where it goes, from 0; negative ones count from the end. The place of a clip is
            not read: an IC-LoRA derives the whole video from it.
        strength: 1 shows it exactly, 0 ignores it.
    """

    type: str
    path: str | os.PathLike
    frame_index: int = 0
    strength: float = 1.0

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class ApplicationDefaults:
    """What a request takes where it does not say; values of the application that the rules come from.

    Args:
        width, height: Size in pixels.
        size_multiple: Sizes are rounded to the nearest multiple of this many pixels.
        num_frames: Frames.
        frame_rate: Frames per second.
        num_inference_steps: Denoising steps.
        guidance_scale: Classifier-free guidance of the video in one call.
        chained_guidance_scale: The same for the parts of a long video.
        enhance_prompt: Whether a language model rewrites the prompt.
        max_pixels: Most pixels of a frame by device type; larger sizes shrink with their aspect kept.
        tiled_devices: Device types on which the video autoencoder works in tiles.
        chunk_frames: Most frames made at once, the length that the models were trained for.
        overlap_frames: Frames that a part of a long video takes over from the one before.
    """

    width: int = 768
    height: int = 512
    size_multiple: int = 64
    num_frames: int = 121
    frame_rate: float = 25.0
    num_inference_steps: int = 40
    guidance_scale: float = 2.0
    chained_guidance_scale: float = 3.0
    enhance_prompt: bool = True
    max_pixels: dict[str, int] = field(default_factory=lambda: {"mps": 1280 * 768})
    tiled_devices: tuple[str, ...] = ("mps",)
    chunk_frames: int = 121
    overlap_frames: int = 25


APPLICATION_DEFAULTS = ApplicationDefaults()


@dataclass(frozen=True)
class GenerationRequest:
    """What an application asks for; `None` takes the application's default.

    Args:
        prompt, negative_prompt: Texts.
        timeline: Pictures and clips.
        width, height: Size in pixels.
        num_frames: Frames, 8 k + 1; 1 asks for a picture.
        frame_rate: Frames per second.
        num_inference_steps: Denoising steps. A distilled checkpoint keeps its own unless told.
        guidance_scale: Classifier-free guidance of the video. A distilled checkpoint keeps its own unless told.
        enhance_prompt: Whether a language model rewrites the prompt.
        seed: Seed of the noise, default random.
        device_type: Where the call will run, such as `"cuda"` or `"mps"`.
        auto_length: Whether the clip is as long as the duration head of the checkpoint predicts, up to the length of one call,
            in place of `num_frames`.
    """

    prompt: str
    negative_prompt: str | None = None
    timeline: Sequence[TimelineItem] = ()
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    frame_rate: float | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    enhance_prompt: bool | None = None
    seed: int | None = None
    device_type: str = "cuda"
    auto_length: bool = False

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True, kw_only=True)
class CompleteRequest(GenerationRequest):
    """A request with its defaults filled in."""

    width: int
    height: int
    num_frames: int
    frame_rate: float
    enhance_prompt: bool


@dataclass(frozen=True)
class Selection:
    """What serves a request.

    Args:
        rule: `"image"`, `"in_context"`, `"keyframes"`, `"chained"` or `"two_stage"`; `"ltx_video"` for a checkpoint of that family.
        pipeline_name: Public name of the pipeline class.
        arguments: Arguments of its call, but for the generator.
        opening: Arguments of an [`LTX2TwoStagePipeline`] call that makes the first part of a chained video, if
            pictures are to be seen in it; its latents are then what `arguments` go on from. Else `None`.
        request: The request with its defaults filled in, its sizes rounded and its places counted from the start.
        chunks: Parts of a long video, else empty.
        tile_video: Whether the video autoencoder is to work in tiles.
        notes: What was changed or could not be taken from the request, in words.
    """

    rule: str
    pipeline_name: str
    arguments: dict[str, Any]
    request: CompleteRequest
    opening: dict[str, Any] | None = None
    chunks: tuple[Chunk, ...] = ()
    tile_video: bool = False
    notes: tuple[str, ...] = ()

    @property
    def pipeline_class(self) -> Any:
        """The pipeline class, imported when it is asked for."""
        import ltx2_diffusers

        return getattr(ltx2_diffusers, self.pipeline_name)


def select_pipeline(
    request: GenerationRequest,
    kind: str = "dev",
    defaults: ApplicationDefaults = APPLICATION_DEFAULTS,
    family: str = "ltx2",
) -> Selection:
    """Choose the pipeline for a request, and the arguments of its call.

    The first rule that fits decides: one frame is a picture; any clip asks for an IC-LoRA with all clips and pictures;
    pictures at the first and the last frame ask for interpolation; what is longer than one call makes is chained; all
    else runs in two stages. A checkpoint of LTX-Video has one pipeline, which shows pictures and clips at their frames.

    Args:
        request: What is asked for.
        kind: `"dev"` or `"distilled"`, the kind of the checkpoint; see the pipelines' `preset`.
        defaults: What the request takes where it does not say.
        family: `"ltx2"` (default) or `"ltx_video"`, the family of the checkpoint.

    Raises:
        ValueError: If a value of the request is out of range.
    """
    check_choice("family", family, FAMILIES)
    if family != FAMILIES[0]:
        return _of_ltx_video(request, defaults)
    check_choice("kind", kind, ("dev", "distilled"))
    complete, notes = _completed(request, defaults)
    rule, pipeline_name = _rule(complete, defaults)
    guidance = defaults.chained_guidance_scale if rule == "chained" else defaults.guidance_scale
    reference = {"num_inference_steps": defaults.num_inference_steps, "guidance_scale": guidance}
    arguments = _shared_arguments(complete, reference if kind == "dev" else {})
    if rule == "in_context":
        notes += [
            f"the place of {os.fspath(item.path)!r} (frame {item.frame_index}) is not read; an IC-LoRA follows a clip "
            "from the first frame on"
            for item in _items(complete, "video")
            if item.frame_index
        ]
    tiled = complete.device_type in defaults.tiled_devices
    selection = Selection(rule, pipeline_name, arguments, complete, tile_video=tiled, notes=tuple(notes))
    if rule == "chained":
        return _chained(selection, defaults)
    return replace(selection, arguments=arguments | _timeline_arguments(rule, complete))


def _of_ltx_video(request: GenerationRequest, defaults: ApplicationDefaults) -> Selection:
    """The selection for a checkpoint of LTX-Video, whose preset says what the request leaves open of sampling."""
    from ..families.ltx_video.conditions import LTXVideoCondition

    complete, notes = _completed(request, replace(defaults, size_multiple=1), frame_stride=1)
    if request.enhance_prompt:
        notes.append("the prompt stays as it is; the text encoder of LTX-Video writes none")
    # What a request leaves open is `None`, and the preset says it.
    arguments = {name: value for name, value in _shared_arguments(complete, {}).items() if value is not None}
    del arguments["enable_prompt_enhancement"]
    shown: Any = [
        {i.type: os.fspath(i.path), "frame_index": i.frame_index, "strength": i.strength} for i in complete.timeline
    ]
    arguments["conditions"] = [LTXVideoCondition(**one) for one in shown]
    return Selection("ltx_video", "LTXVideoPipeline", arguments, complete, notes=tuple(notes))


def _chained(selection: Selection, defaults: ApplicationDefaults) -> Selection:
    """The selection with the parts of the video, the first of which shows the pictures that lie in it.

    Later pictures would hold up the motion that the parts hand over, and are left out.
    """
    chunks = plan_chunks(selection.request.num_frames, defaults.chunk_frames, defaults.overlap_frames)
    length = chunks[0].num_frames
    shown = [item for item in selection.request.timeline if item.frame_index < length]
    late = [
        f"{os.fspath(item.path)!r} (frame {item.frame_index}) is not shown; of a video made in parts, the pictures of "
        f"the first {length} frames are"
        for item in selection.request.timeline
        if item.frame_index >= length
    ]
    shared = {**selection.arguments, "num_frames": length}
    opening = {**shared, "conditions": [_picture(item) for item in shown]} if shown else None
    arguments = {**shared, "num_segments": len(chunks) - bool(shown), "overlap_frames": defaults.overlap_frames}
    arguments["two_stage"] = True
    return replace(selection, arguments=arguments, opening=opening, chunks=chunks, notes=(*selection.notes, *late))


def _rule(request: CompleteRequest, defaults: ApplicationDefaults) -> tuple[str, str]:
    if request.num_frames == 1:
        return "image", "LTX2TwoStagePipeline"
    if _items(request, "video"):
        return "in_context", "LTX2InContextPipeline"
    if {0, -1 if request.auto_length else request.num_frames - 1} <= {item.frame_index for item in request.timeline}:
        return "keyframes", "LTX2KeyframeInterpolationPipeline"
    if request.num_frames > defaults.chunk_frames and not request.auto_length:
        return "chained", "LTX2ExtendPipeline"
    return "two_stage", "LTX2TwoStagePipeline"


def _completed(
    request: GenerationRequest, defaults: ApplicationDefaults, frame_stride: int = VIDEO_SCALE_FACTORS.time
) -> tuple[CompleteRequest, list[str]]:
    """The request with every value set and checked, and notes on what was changed."""
    if not isinstance(request.prompt, str):
        raise ValueError(f"`prompt` has to be a text but is {request.prompt!r}")
    if request.auto_length and request.num_frames is not None:
        raise ValueError(f"`auto_length` is True, but `num_frames` is {request.num_frames}; leave one of them out")
    names = CompleteRequest.__annotations__
    filled = {name: getattr(defaults, name) for name in names if getattr(request, name) is None}
    complete = CompleteRequest(**{**vars(request), **filled})
    check_at_least_one(width=complete.width, height=complete.height)
    check_num_frames(complete.num_frames, frame_stride)
    check_positive(frame_rate=complete.frame_rate)
    if complete.num_inference_steps is not None:
        check_at_least_one(num_inference_steps=complete.num_inference_steps)
    width, height, notes = _rounded_size(complete, defaults)
    if request.auto_length:
        complete = replace(complete, num_frames=defaults.chunk_frames)
    timeline = tuple(_placed(item, complete) for item in complete.timeline)
    return replace(complete, width=width, height=height, timeline=timeline), notes


def _rounded_size(request: CompleteRequest, defaults: ApplicationDefaults) -> tuple[int, int, list[str]]:
    limit, multiple = defaults.max_pixels.get(request.device_type, inf), defaults.size_multiple
    size = request.width, request.height
    scale = min(1.0, (limit / prod(size)) ** 0.5)
    # To the nearest multiple, or down if that is too large.
    for rounding in (0.5, 0):
        width, height = (max(1, int(side * scale / multiple + rounding)) * multiple for side in size)
        if width * height <= limit:
            break
    notes = [f"the size {size[0]} x {size[1]} became {width} x {height}"] if (width, height) != size else []
    return width, height, notes


def _placed(item: TimelineItem, request: CompleteRequest) -> TimelineItem:
    num_frames = request.num_frames
    check_choice("type", item.type, ("image", "video"))
    check_unit(strength=item.strength)
    if not -num_frames <= item.frame_index < num_frames:
        raise ValueError(
            f"`frame_index` {item.frame_index} of {os.fspath(item.path)!r} lies outside the video; use {-num_frames} "
            f"to {num_frames - 1}"
        )
    # Places that count from an end which is not known stay as they are.
    return item if request.auto_length else replace(item, frame_index=item.frame_index % num_frames)


def _shared_arguments(request: CompleteRequest, usual: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that all pipelines take; `usual` are those of a request that does not say."""
    shared = {name: value for name, value in vars(request).items() if name not in _NO_ARGUMENTS}
    shared |= {name: value for name, value in usual.items() if shared[name] is None}
    if request.auto_length:
        shared |= {"num_frames": None, "max_seconds": request.num_frames / request.frame_rate}
    return shared | {"enable_prompt_enhancement": request.enhance_prompt}


def _timeline_arguments(rule: str, request: CompleteRequest) -> dict[str, Any]:
    """Pictures and clips as the pipeline of a rule takes them."""
    if rule == "in_context":
        clips = [LTX2ReferenceCondition(os.fspath(item.path), item.strength) for item in _items(request, "video")]
        return {"reference_conditions": clips, "conditions": [_picture(item) for item in _items(request, "image")]}
    if rule == "keyframes":
        items = sorted(request.timeline, key=lambda item: item.frame_index)
        return {
            "images": [os.fspath(item.path) for item in items],
            "frame_indices": [item.frame_index for item in items],
            "strengths": [item.strength for item in items],
        }
    pictures = {"conditions": [_picture(item) for item in request.timeline]}
    # One frame lasts too short for a sound.
    return {**pictures, "generate_audio": False} if rule == "image" else pictures


def _items(request: GenerationRequest, kind: str) -> list[TimelineItem]:
    return [item for item in request.timeline if item.type == kind]


def _picture(item: TimelineItem) -> LTX2VideoCondition:
    return LTX2VideoCondition(os.fspath(item.path), strength=item.strength, frame=item.frame_index)
