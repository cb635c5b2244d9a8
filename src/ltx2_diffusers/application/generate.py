"""From an application's request to the finished clip: select, build the pipeline, call it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..checkpoints.class_names import FAMILIES
from ..media.waveforms import fit_audio
from ..pipelines.output import LTX2PipelineOutput
from ..pipelines.recipes.two_stage import LTX2TwoStagePipeline
from .director import PromptDirector
from .selection import APPLICATION_DEFAULTS, ApplicationDefaults, GenerationRequest, Selection, select_pipeline

_ENHANCEMENT = ("system_prompt", "prompt_max_new_tokens", "prompt_enhancement_kwargs", "prompt_enhancement_seed")


def generate(
    request: GenerationRequest,
    pipeline: Any,
    *,
    image_generator: Callable[[GenerationRequest], Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    defaults: ApplicationDefaults = APPLICATION_DEFAULTS,
    **overrides: Any,
) -> Any:
    """Serve a request with the pipeline that [`select_pipeline`] chooses.

    In a video of several parts a language model writes the prompt of each part, if prompts are to be enhanced. The
    parts make up to 7 frames each more than asked for; these are cut off, but not from latents nor from a file that
    the call writes itself.

    Args:
        request: What is asked for.
        pipeline: A pipeline on whose components the chosen one is built, best an [`LTX2TwoStagePipeline`], which has
            those of all others, or an [`LTXVideoPipeline`]. Its device and the kind of its checkpoint count, not `request.device_type`.
        image_generator: Makes the picture of a request with one frame, as `image_generator(request)` with all defaults
            filled in. Default this package's own two-stage pipeline, with one frame.
        on_progress: Called as `on_progress(step, total)` after each step of a run; what it raises ends the call.
        defaults: What the request takes where it does not say.
        overrides: Further arguments of the call; they go before those that were selected.

    Returns:
        [`LTX2PipelineOutput`] with the selection's `rule` and `notes` in its `info`, or what the image generator
        returned.

    Raises:
        ValueError: Before any computation, if the request is out of range or contradicts the pipeline.
    """
    if overrides.get("return_dict") is False:
        raise ValueError("`return_dict` has to be True; a request is answered with an LTX2PipelineOutput")
    request = replace(request, device_type=torch.device(pipeline._execution_device).type)
    family = getattr(pipeline, "family", FAMILIES[0])
    selection = select_pipeline(request, pipeline.preset.kind, defaults, family)
    if selection.rule == "image" and image_generator is not None:
        return image_generator(selection.request)
    if selection.tile_video and not pipeline.vae.use_streaming:
        pipeline.vae.enable_tiling()
    common: dict[str, Any] = {}
    if request.seed is not None:
        common["generator"] = torch.Generator().manual_seed(request.seed)
    if on_progress is not None:
        common["callback_on_step_end"] = step_callback(on_progress)
    common |= overrides
    if selection.chunks:
        output = _in_parts(selection, pipeline, common)
    else:
        output = as_pipeline(selection.pipeline_class, pipeline)(**{**selection.arguments, **common})
    return _noted(output, rule=selection.rule, notes=list(selection.notes))


def step_callback(on_progress: Callable[[int, int], None]) -> Callable[..., dict[str, Any]]:
    """A `callback_on_step_end` that calls `on_progress(step, total)`, steps from 1; what it raises ends the call."""

    def on_step_end(pipeline: Any, step: int, _timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
        on_progress(step + 1, pipeline.num_timesteps)
        return {}

    return on_step_end


def _in_parts(selection: Selection, pipeline: Any, common: dict[str, Any]) -> LTX2PipelineOutput:
    """The clip made part by part, cut to the length that was asked for."""
    arguments = {**selection.arguments, **common}
    facts: dict[str, Any] = {}
    prompts: list[str] = []
    if selection.opening is not None:
        first = as_pipeline(LTX2TwoStagePipeline, pipeline)(**{**selection.opening, **common, "output_type": "latent"})
        prompts = first.info.get("enhanced_prompt", [])
        arguments |= {"latents": first.frames, "audio_latents": first.audio}
    if arguments.pop("enable_prompt_enhancement"):
        texts = _directed(selection, pipeline, arguments, prompts)
        arguments |= {"prompt": texts[len(texts) - arguments["num_segments"] :]}
        facts["enhanced_prompt"] = texts
        # The prompts are written; nothing of this is read any more.
        arguments = {name: value for name, value in arguments.items() if name not in _ENHANCEMENT}
    output = as_pipeline(selection.pipeline_class, pipeline)(**arguments)
    return _cut(_noted(output, **facts), selection.request.num_frames)


def _directed(selection: Selection, pipeline: Any, call: dict[str, Any], first: list[str]) -> list[str]:
    """One prompt per part: the first one enhanced, each further one going on from the one before."""
    settings: dict[str, Any] = {
        "max_new_tokens": call.get("prompt_max_new_tokens"),
        "generation_kwargs": call.get("prompt_enhancement_kwargs"),
    }
    generator = call.get("generator")
    seed = call.get("prompt_enhancement_seed", 10) if generator is None else generator.initial_seed()
    prompts = list(first) or pipeline.enhance_prompt(selection.request.prompt, seed=seed, **settings)
    director = PromptDirector(pipeline, selection.request.prompt, len(selection.chunks), seed=seed, **settings)
    for index in range(1, len(selection.chunks)):
        prompts.append(director(index, prompts[-1]))
    return prompts


def _cut(output: LTX2PipelineOutput, num_frames: int) -> LTX2PipelineOutput:
    """The output without the frames beyond the wished ones; latents and files stay as they are."""
    frames, audio = output.frames, output.audio
    if frames is None or (output.info or {})["output_type"] == "latent":
        return output
    frames = [clip[:num_frames] for clip in frames] if isinstance(frames, list) else frames[:, :num_frames]
    if audio is not None and output.frame_rate is not None and output.sampling_rate is not None:
        audio = fit_audio(audio, num_frames / output.frame_rate, output.sampling_rate)
    return _noted(replace(output, frames=frames, audio=audio), num_frames=num_frames)


def _noted(output: LTX2PipelineOutput, **facts: Any) -> LTX2PipelineOutput:
    return replace(output, info={**(output.info or {}), **facts})


def as_pipeline(pipeline_class: Any, pipeline: Any) -> Any:
    """The pipeline as one of a class, with the same components."""
    return pipeline if type(pipeline) is pipeline_class else pipeline_class.from_pipe(pipeline)
