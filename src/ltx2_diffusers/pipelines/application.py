"""From an application's request to the finished clip: select, build the pipeline, call it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .selection import (
    APPLICATION_DEFAULTS,
    ApplicationDefaults,
    GenerationRequest,
    Selection,
    select_pipeline,
    step_callback,
)

ImageGenerator = Callable[[GenerationRequest], Any]
ChainedGenerator = Callable[[Selection, Any], Any]


def generate(
    request: GenerationRequest,
    pipeline: Any,
    *,
    image_generator: ImageGenerator | None = None,
    chained_generator: ChainedGenerator | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    defaults: ApplicationDefaults = APPLICATION_DEFAULTS,
    **overrides: Any,
) -> Any:
    """Serve a request with the pipeline that [`select_pipeline`] chooses.

    Args:
        request: What is asked for.
        pipeline: A pipeline on whose components the chosen one is built, best an [`LTX2TwoStagePipeline`], which has those
            of all others. Its device and the kind of its checkpoint count, not `request.device_type`.
        image_generator: Makes the picture of a request with one frame, as `image_generator(request)` with all defaults
            filled in. Default this package's own two-stage pipeline, with one frame.
        chained_generator: Makes a video in parts, as `chained_generator(selection, pipeline)`. Needed by requests that
            are longer than one call makes.
        on_progress: Called as `on_progress(step, total)` after each step of a run; what it raises ends the call.
        defaults: What the request takes where it does not say.
        overrides: Further arguments of the call; they go before those that were selected.

    Returns:
        The output of the pipeline, with the selection's `rule` and `notes` in its `info`, or what the generator returned.

    Raises:
        ValueError: Before any computation, if the request is out of range or nothing here can serve it.
    """
    request = replace(request, device_type=torch.device(pipeline._execution_device).type)
    selection = select_pipeline(request, pipeline.preset.kind, defaults)
    if selection.rule == "image" and image_generator is not None:
        return image_generator(selection.request)
    if selection.chunks:
        if chained_generator is None:
            raise ValueError(
                f"`num_frames` {selection.request.num_frames} is more than one call makes; use {defaults.chunk_frames} or "
                "less, or pass a `chained_generator`"
            )
        return chained_generator(selection, pipeline)
    output = _call(selection, pipeline, on_progress, overrides)
    if isinstance(output, tuple):
        return output
    return replace(output, info={**output.info, "rule": selection.rule, "notes": list(selection.notes)})


def _call(
    selection: Selection, pipeline: Any, on_progress: Callable[[int, int], None] | None, overrides: dict[str, Any]
) -> Any:
    chosen = selection.pipeline_class
    if type(pipeline) is not chosen:
        pipeline = chosen.from_pipe(pipeline)
    if selection.tile_video:
        pipeline.vae.enable_tiling()
    arguments = dict(selection.arguments)
    if selection.request.seed is not None:
        arguments["generator"] = torch.Generator().manual_seed(selection.request.seed)
    if on_progress is not None:
        arguments["callback_on_step_end"] = step_callback(on_progress)
    return pipeline(**{**arguments, **overrides})
