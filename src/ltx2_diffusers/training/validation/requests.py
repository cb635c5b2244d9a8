"""From the settings of validation to calls of pipelines, checked before training begins.

Shapes: F frames, H and W rows and columns of pixels, F', h and w latent frames, rows and columns, C channels, N samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from ...conditioning import Streams
from ...data.masks import video_mask
from ...media.frames import as_image, read_frames
from ...pipelines.conditions import (
    AudioCondition,
    Condition,
    FirstFrameCondition,
    LTX2AudioReferenceCondition,
    LTX2ReferenceCondition,
    LTX2VideoCondition,
    Waveform,
    check_conflicts,
)
from ...pipelines.conditions.sounds import read_waveform
from ...pipelines.conditions.source import RetakeCondition
from ...pipelines.generation import LTX2GenerationPipeline
from ...pipelines.plan import ClipPlan, Size, check_decodable_size, plan_clip
from ...pipelines.recipes.audio_to_video import LTX2AudioToVideoPipeline
from ...pipelines.recipes.condition import LTX2ConditionPipeline
from ...pipelines.recipes.image_to_video import LTX2ImageToVideoPipeline
from ...pipelines.recipes.in_context import LTX2InContextPipeline
from ...pipelines.recipes.text_to_audio import LTX2TextToAudioPipeline
from ...pipelines.recipes.text_to_video import LTX2Pipeline
from ...pipelines.recipes.two_stage import LTX2TwoStagePipeline
from ...pipelines.recipes.video_to_audio import LTX2VideoToAudioPipeline
from ...schedulers.levels import noise_levels
from ..config import Guidance, SampleConfig, ValidationConfig


@dataclass(frozen=True)
class SampleCall:
    """A call of a pipeline that makes one sample.

    Args:
        prompt: Its prompt.
        seed: Its seed.
        pipeline: Class of the pipeline.
        arguments: Arguments of the call beside text, seed and output type.
        reference: Clip that is shown left of the result, if one is.
        plan: Sizes of the clip.
    """

    prompt: str
    seed: int
    pipeline: type[LTX2GenerationPipeline]
    arguments: dict[str, Any]
    reference: Path | None
    plan: ClipPlan


@dataclass(frozen=True)
class _Wish:
    """A sample as the settings ask for it, with the sizes that follow."""

    sample: SampleConfig
    plan: ClipPlan
    streams: Streams[bool]
    conditions: list[Condition] = field(default_factory=list)
    references: list[Condition] = field(default_factory=list)


def sample_calls(section: ValidationConfig, pipeline: LTX2Pipeline, generation: str) -> list[SampleCall]:
    """The calls that make all samples, in their order; nothing is computed.

    Args:
        section: The settings.
        pipeline: Holds the networks, which say what sizes they take.
        generation: Generation of the model, `"2.0"` or a later one, which says what guidance means that is not given.

    Raises:
        ValueError: Naming the sample, if it cannot be made: a file that cannot be read or is too short, a size that does not
            fit, or a combination that no pipeline makes.
    """
    blocks_given = "stg_blocks" in section.model_fields_set
    guidance = section.guidance(generation)
    blocks = _perturbed_blocks(guidance, blocks_given, pipeline.transformer.config.num_layers)
    calls = []
    for number, sample in enumerate(section.all_samples(), start=1):
        try:
            one = _call(section, sample, pipeline, guidance, blocks)
        except ValueError as error:
            raise ValueError(f"validation sample {number}: {error}") from error
        seeds = [one.seed + index for index in range(section.videos_per_prompt)]
        calls += [SampleCall(one.prompt, seed, one.pipeline, one.arguments, one.reference, one.plan) for seed in seeds]
    return calls


def _perturbed_blocks(guidance: Guidance, given: bool, num_layers: int) -> list[int] | None:
    """Blocks that spatio-temporal guidance perturbs; `None` for the preset's, at the same depth of a shallower model."""
    if guidance.stg_blocks is None:
        return list(range(num_layers))
    if wrong := [block for block in guidance.stg_blocks if block >= num_layers and given]:
        raise ValueError(
            f"validation.stg_blocks has the block {wrong[0]}, but the transformer has blocks 0 to {num_layers - 1}; use "
            f"[{num_layers - 1}], or leave it out"
        )
    return guidance.stg_blocks if given else None


def _call(
    section: ValidationConfig,
    sample: SampleConfig,
    pipeline: LTX2Pipeline,
    guidance: Guidance,
    blocks: list[int] | None,
) -> SampleCall:
    width, height, num_frames = sample.video_dims or section.video_dims
    size = Size(height, width, num_frames, section.frame_rate)
    plan = plan_clip(pipeline.sizes, 1, size, [(1.0, 1.0)])
    steps = section.inference_steps
    noise_levels(pipeline.scheduler, plan.num_video_tokens, steps, default_steps=steps)
    wish = _Wish(sample, plan, Streams(section.generate_video, section.generate_audio))
    kinds = {condition.type for condition in sample.conditions}
    make = _sound_of_video if "video_to_audio" in kinds else _video if section.generate_video else _sound
    kind, given = make(wish, pipeline)
    arguments = {**_scales(kind, guidance, blocks), **given, "num_inference_steps": steps}
    shown = [c.video for c in sample.conditions if c.type == "reference" and c.include_in_output]
    if len(shown) > 1 or None in shown:
        raise ValueError("include_in_output shows one reference video; set it in one condition with a video")
    seed = section.seed if sample.seed is None else sample.seed
    return SampleCall(sample.prompt, seed, kind, arguments, shown[0] if shown else None, plan)


def _scales(kind: type, guidance: Guidance, blocks: list[int] | None) -> dict[str, Any]:
    """Guidance arguments of a call, all of them, so that no preset of the checkpoint stands in for one."""
    video = (guidance.video_cfg, guidance.video_stg, guidance.video_modality, guidance.rescale)
    audio = (guidance.audio_cfg, guidance.audio_stg, guidance.audio_modality, guidance.rescale)
    names = ("guidance_scale", "stg_scale", "modality_scale", "guidance_rescale")
    perturbed = {"spatio_temporal_guidance_blocks": blocks}
    if kind is LTX2TextToAudioPipeline:
        # Without a video there is nothing to isolate the sound from.
        return {n: value for n, value in zip(names, audio) if n != "modality_scale"} | perturbed
    if kind is LTX2VideoToAudioPipeline:
        return dict(zip(names, audio)) | perturbed
    scales = dict(zip(names, video)) | perturbed
    if kind in (LTX2AudioToVideoPipeline, LTX2TwoStagePipeline):
        # No sound is made.
        return scales
    return scales | {f"audio_{name}": value for name, value in zip(names, audio)}


Made = tuple[type[LTX2GenerationPipeline], dict[str, Any]]


def _sizes(plan: ClipPlan) -> dict[str, Any]:
    return {"height": plan.height, "width": plan.width, "num_frames": plan.num_frames, "frame_rate": plan.frame_rate}


def _sound(wish: _Wish, pipeline: LTX2Pipeline) -> Made:
    """Sound from text alone."""
    pipeline.require("audio_vae", "vocoder")
    if wish.sample.conditions:
        raise ValueError(
            f"it has the condition {wish.sample.conditions[0].type}, but generate_video is false, and sound alone is made "
            "from text only; set generate_video to true"
        )
    return LTX2TextToAudioPipeline, {"duration_s": wish.plan.duration_s}


def _sound_of_video(wish: _Wish, pipeline: LTX2Pipeline) -> Made:
    """Sound of a given video."""
    pipeline.require("vae", "audio_vae", "vocoder")
    given: list[Any] = sorted(wish.sample.conditions, key=lambda condition: condition.type != "video_to_audio")
    frozen, *others = given
    if not wish.streams.audio:
        raise ValueError("video_to_audio makes sound, but generate_audio is false; set it to true")
    if others:
        raise ValueError(f"no pipeline makes sound of a video with the condition {others[0].type} too; leave it out")
    plan = wish.plan
    count = len(read_frames(frozen.video, plan.num_frames, frame_rate=plan.frame_rate))
    return LTX2VideoToAudioPipeline, {"video": str(frozen.video), **_sizes(plan), "num_frames": count}


def _video(wish: _Wish, pipeline: LTX2Pipeline) -> Made:
    """Video, with sound, without, or to a given sound."""
    pipeline.require("vae")
    plan, streams = wish.plan, wish.streams
    minimum = pipeline.vae.min_latent_side * pipeline.vae_spatial_compression_ratio
    check_decodable_size(plan.height, plan.width, minimum)
    sound, first = None, None
    for condition in wish.sample.conditions:
        if condition.type == "audio_to_video":
            sound = condition.audio
        elif condition.type == "reference" and condition.video is not None:
            wish.references.append(_reference(condition))
        elif len(wish.sample.conditions) == 1 and condition.type == "first_frame":
            first = as_image(read_frames(condition.image_or_video, 1)[0])
        else:
            wish.conditions.append(_CONDITIONS[condition.type](condition, plan))
    _check(wish, pipeline, first, sound)
    given: dict[str, Any] = {"conditions": wish.conditions or None, "reference_conditions": wish.references or None}
    given = {name: value for name, value in given.items() if value is not None} | _sizes(plan)
    given |= {} if first is None else {"image": first}
    if sound is not None:
        return LTX2AudioToVideoPipeline, given | {"audio": str(sound), "audio_fit": "pad", "two_stage": False}
    if not streams.audio:
        return LTX2TwoStagePipeline, given | {"generate_audio": False, "two_stage": False}
    pipeline.require("audio_vae", "vocoder")
    if wish.references:
        return LTX2InContextPipeline, given
    if wish.conditions:
        return LTX2ConditionPipeline, given
    return (LTX2Pipeline if first is None else LTX2ImageToVideoPipeline), given


def _check(wish: _Wish, pipeline: LTX2Pipeline, first: Any, sound: Path | None) -> None:
    """Open all conditions and check them against the clip and each other."""
    conditions = [*wish.conditions, *wish.references]
    conditions += [] if first is None else [FirstFrameCondition(first)]
    conditions += [] if sound is None else [AudioCondition(str(sound), fit="pad")]
    hears = [c for c in wish.conditions if c.stream == "audio" or (isinstance(c, RetakeCondition) and c.audio)]
    if hears and not wish.streams.audio:
        raise ValueError("it has a condition on the sound, but generate_audio is false; set it to true")
    opened = [condition.opened(pipeline, wish.plan) for condition in conditions]
    for one in opened:
        one.check(wish.plan)
    check_conflicts(opened)


def _reference(condition: Any) -> Condition:
    factors = (condition.downscale_factor, condition.temporal_scale_factor)
    return LTX2ReferenceCondition(str(condition.video), 1.0, *factors)


def _reference_sound(condition: Any, plan: ClipPlan) -> Condition:
    del plan
    return LTX2AudioReferenceCondition(str(condition.audio))


def _first_frame(condition: Any, plan: ClipPlan) -> Condition:
    del plan
    return LTX2VideoCondition(as_image(read_frames(condition.image_or_video, 1)[0]))


def _prefix(condition: Any, plan: ClipPlan) -> Condition:
    """How the clip begins."""
    if condition.audio is not None:
        sound, count = _stretch_of_sound(condition, plan)
        # Between the end of the last latent that is given and that of the first one that is made.
        ends = plan.tools.audio.positions()[0, 0, :, 1]
        return RetakeCondition(ends[count - 1 : count + 1].mean().item(), plan.duration_s, audio=sound)
    frames = _frames(condition, plan, offset=1)
    return LTX2VideoCondition(frames.movedim(-1, 1), mode="replace")


def _suffix(condition: Any, plan: ClipPlan) -> Condition:
    """How the clip ends, as training sees it: encoded as part of a whole clip."""
    if condition.audio is not None:
        sound, count = _stretch_of_sound(condition, plan)
        starts = plan.tools.audio.positions()[0, 0, :, 0]
        free = len(starts) - count
        return RetakeCondition(0.0, starts[free - 1 : free + 1].mean().item(), audio=sound)
    frames = _frames(condition, plan, offset=0)
    free = plan.num_frames - len(frames)
    whole = torch.cat([frames[:1].expand(free, -1, -1, -1), frames])
    # Half a frame less, so that rounding cannot free the first latent frame of the suffix.
    return RetakeCondition(0.0, (free - 0.5) / plan.frame_rate, whole)


def _frames(condition: Any, plan: ClipPlan, offset: int) -> torch.Tensor:
    """Frames `[F, H, W, 3]` of a prefix (`offset` 1) or suffix (0), in whole latent frames: 8 k + `offset` of them."""
    ratio, most = plan.sizes.temporal_ratio, plan.num_frames - 1
    clip = read_frames(condition.video, most if offset else None, frame_rate=plan.frame_rate)
    wished = condition.num_frames
    if condition.duration is not None:
        wished = round(condition.duration * plan.frame_rate)
    count = min(len(clip), most) if wished is None else wished
    whole = (count - offset) // ratio * ratio + offset
    if condition.num_frames is not None and whole != count:
        raise ValueError(
            f"{condition.type}.num_frames has to be {ratio} k{' + 1' if offset else ''} but is {count}; use "
            f"{whole or ratio}"
        )
    if not 0 < whole <= most:
        raise ValueError(
            f"its {condition.type} has {whole} frames of the clip's {plan.num_frames}; leave some to be made"
        )
    if whole > len(clip):
        raise ValueError(f"{str(condition.video)!r} has {len(clip)} frames, but its {condition.type} needs {whole}")
    return clip[:whole] if offset else clip[-whole:]


def _stretch_of_sound(condition: Any, plan: ClipPlan) -> tuple[Waveform, int]:
    """A sound as long as the clip, silent outside of its prefix or suffix, and the audio latents that this is."""
    sound = read_waveform(str(condition.audio))
    length_s = sound.duration_s if condition.duration is None else condition.duration
    if condition.num_frames is not None:
        length_s = condition.num_frames / plan.frame_rate
    if length_s > sound.duration_s + 0.04:
        raise ValueError(
            f"{str(condition.audio)!r} lasts {sound.duration_s:.3f} s, but {length_s:.3f} s are asked for"
        )
    count = round(length_s * plan.audio.frames / plan.duration_s)
    if not 0 < count < plan.audio.frames:
        raise ValueError(
            f"its {condition.type} lasts {length_s:.3f} s of {plan.duration_s:.3f} s; leave some to be made"
        )
    whole, part = (round(seconds * sound.rate) for seconds in (plan.duration_s, length_s))
    samples = sound.samples[..., :part] if condition.type == "prefix" else sound.samples[..., -part:]
    silence = max(whole - samples.shape[-1], 0)
    sides = (0, silence) if condition.type == "prefix" else (silence, 0)
    return Waveform(functional.pad(samples, sides), sound.rate), count


def _whole_clip(condition: Any, plan: ClipPlan) -> torch.Tensor:
    clip = read_frames(condition.video, plan.num_frames, frame_rate=plan.frame_rate)
    if len(clip) < plan.num_frames:
        raise ValueError(
            f"{str(condition.video)!r} has {len(clip)} frames at {plan.frame_rate:g} per second, but the sample "
            f"{plan.num_frames}; use video_dims with at most {plan.sizes.whole_frames(len(clip))} frames"
        )
    return clip


def _spatial_crop(condition: Any, plan: ClipPlan) -> Condition:
    """A rectangle of every frame that is given, of whole latents as in training."""
    ratio = plan.sizes.spatial_ratio
    y1, x1, y2, x2 = (edge // ratio * ratio for edge in condition.spatial_region)
    kept = torch.zeros(plan.height, plan.width)
    kept[y1:y2, x1:x2] = 1
    if not kept.any() or kept.all():
        raise ValueError(
            f"spatial_region {list(condition.spatial_region)} holds {'every' if kept.all() else 'no'} latent of a clip of "
            f"{plan.height} x {plan.width} pixels; a latent stands for {ratio} x {ratio}"
        )
    return RetakeCondition(0.0, plan.duration_s, _whole_clip(condition, plan), region=1 - kept)


def _mask(condition: Any, plan: ClipPlan) -> Condition:
    """What a mask marks is given, on the latents that it marks in training."""
    if condition.audio is not None:
        raise ValueError(
            "no pipeline holds a sound to a mask of its own; use prefix or suffix for the sound, or mask a video"
        )
    pixels = read_frames(condition.mask, plan.num_frames, frame_rate=plan.frame_rate).movedim(-1, 1).float() / 255
    pixels = functional.interpolate(pixels, size=(plan.height, plan.width), mode="bilinear", antialias=True)
    sizes = plan.sizes
    kept = video_mask(pixels, plan.video.frames, sizes.spatial_ratio, sizes.temporal_ratio)
    if not kept.any() or kept.all():
        what = "everything" if kept.all() else "nothing"
        raise ValueError(f"the mask {str(condition.mask)!r} marks {what} as given; leave some to be made")
    free = 1 - kept.repeat_interleave(sizes.spatial_ratio, 1).repeat_interleave(sizes.spatial_ratio, 2)
    region = torch.cat([free[:1], free[1:].repeat_interleave(sizes.temporal_ratio, 0)])
    return RetakeCondition(0.0, plan.duration_s, _whole_clip(condition, plan), region=region)


_CONDITIONS = {
    "first_frame": _first_frame,
    "prefix": _prefix,
    "suffix": _suffix,
    "spatial_crop": _spatial_crop,
    "mask": _mask,
    "reference": _reference_sound,
}


def same_number_of_forwards(calls: Sequence[SampleCall]) -> bool:
    """Whether all samples run the transformer equally often, as processes must that share its weights."""
    return len({(one.pipeline, bool(one.arguments.get("conditions"))) for one in calls}) <= 1
