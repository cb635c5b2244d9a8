"""Video with sound from text, held to pictures and clips."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...schedulers.sigmas import check_sigmas
from ..conditions import Condition, Conditions, as_conditions
from . import Arguments, LTX2GenerationPipeline, Result, Scheduler, extends, run, stage_list, takes


@dataclass(frozen=True)
class _Conditions:
    """What comes first.

    Args:
        conditions: One or several [`LTX2VideoCondition`] (pictures and clips at any place), or other conditions of
            this package; no two may claim the same place.
    """

    conditions: Conditions = None


@dataclass(frozen=True)
class ConditionArguments(Arguments, _Conditions):
    """What the call takes beside the arguments of [`LTX2Pipeline`].

    Args:
        noise_scale: Noise that the video, and given `audio_latents`, start with, 0 to 1. Default the first noise
            level: the first of `sigmas` or `timesteps`, else 1.0.
        latents: Video latents to start from, as in [`LTX2Pipeline`]. At the default `noise_scale` of 1.0 nothing of them
            is left, so give `sigmas` or `noise_scale` with them.
    """

    noise_scale: float | None = None


class LTX2ConditionPipeline(LTX2GenerationPipeline):
    """Generates a video with sound that shows given pictures and clips at given places.

    Takes the components and call arguments of diffusers' pipeline of the same name.

    Args:
        audio_scheduler: Part of diffusers' pipelines. Both streams share the noise levels here, so it may only repeat
            `scheduler`.
        scheduler, vae, audio_vae, text_encoder, tokenizer, connectors, transformer, vocoder, processor, prompt_enhancer:
            See [`LTX2GenerationPipeline`].
    """

    _optional_components = ["audio_scheduler", *LTX2GenerationPipeline._optional_components]  # noqa: RUF012

    audio_scheduler: Scheduler

    @extends(LTX2GenerationPipeline)
    def __init__(self, *, audio_scheduler: Scheduler | None = None, **components: Any) -> None:
        super().__init__(**components)
        self.register_modules(audio_scheduler=audio_scheduler)

    @takes(ConditionArguments)
    def __call__(self, call: ConditionArguments) -> Result:
        """Generate videos with sound that are held to conditions.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        return run_conditioned(self, call, as_conditions("conditions", call.conditions))


def run_conditioned(
    pipeline: LTX2ConditionPipeline, call: Arguments, conditions: Sequence[Condition], **streams: Any
) -> Result:
    """Generate in one stage; noise is drawn for the whole sequence, appended conditions included.

    Args:
        pipeline, call, conditions: What is asked for.
        streams: `streams` and `idle_audio` of the request.
    """
    _check_audio_scheduler(pipeline)
    if call.noise_scale is None and call.sigmas is not None:
        # diffusers starts from the level as given, even where the scheduler shifts it.
        call = replace(call, noise_scale=float(check_sigmas(call.sigmas)[0]))
    return run(pipeline, *call.request(stage_list(pipeline, call.sampling), conditions, **streams, packed_noise=True))


def _check_audio_scheduler(pipeline: LTX2ConditionPipeline) -> None:
    """Two schedulers that walk down different noise levels cannot share a loop."""
    if not pipeline.has("audio_scheduler"):
        return
    video, audio = (
        {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
        for scheduler in (pipeline.scheduler, pipeline.audio_scheduler)
    )
    different = sorted(name for name in video.keys() | audio.keys() if video.get(name) != audio.get(name))
    if different:
        raise ValueError(
            f"`audio_scheduler` differs from `scheduler` in {different}, but both streams take the same noise levels; "
            "set pipe.audio_scheduler = None or give both the same configuration"
        )
