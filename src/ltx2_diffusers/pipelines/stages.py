"""From what a call says about its sampling to its list of stages: one, or a guided one at half size and a refining one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..conditioning.streams import Streams
from ..guidance.presets import NEUTRAL
from ..guidance.scales import call_scales
from .arguments import BOTH, Sampling, Stage
from .generation import LTX2GenerationPipeline

DISTILLED_ADAPTER = "distilled"
"""Name under which a refining stage looks for the distilled LoRA of a dev checkpoint."""
UPSAMPLER = "latent_upsampler"
_NONE = Streams(False, False)


def stage_list(
    pipeline: LTX2GenerationPipeline,
    sampling: Sampling,
    held: Streams = _NONE,
    streams: Streams = BOTH,
    scales: Streams | None = None,
) -> list[Stage]:
    """The stages of a call.

    Args:
        pipeline: The pipeline.
        sampling: What the call says.
        held: Which streams are given as a whole; they take no guidance.
        streams: Which streams are generated.
        scales: Guidance scales of the first stage, default those of the call.
    """
    if sampling.stages is not None:
        return _checked(sampling.stages)
    if scales is None:
        scales = call_scales(pipeline.preset, sampling.scales, sampling.guidance_options)
    first = _guided_stage(sampling, Streams(*(NEUTRAL if given else s for given, s in zip(held, scales))))
    if not sampling.two_stage:
        return [first]
    adapters = stage_adapters(pipeline, sampling.stage_1_adapters, sampling.stage_2_adapters)
    first = replace(first, spatial_scale=0.5 if streams.video else 1.0, adapters=adapters[0])
    makes_video = streams.video and not held.video
    return [first, refining_stage(pipeline, sampling, adapters[1], UPSAMPLER if makes_video else None)]


def _guided_stage(sampling: Sampling, scales: Streams) -> Stage:
    return Stage(
        num_inference_steps=sampling.num_inference_steps,
        sigmas=sampling.sigmas,
        timesteps=sampling.timesteps,
        scales=scales,
        stg_blocks=sampling.stg_blocks,
        guidance_options=sampling.guidance_options,
        sampler=sampling.sampler,
        noise_scale=sampling.noise_scale,
    )


def refining_stage(
    pipeline: LTX2GenerationPipeline,
    sampling: Sampling,
    adapters: Mapping[str, float] | None,
    upsampler: str | None,
) -> Stage:
    """The second stage of the reference recipes: few fixed noise levels, no guidance, no reference videos."""
    options = sampling.guidance_options
    return Stage(
        sigmas=sampling.stage_2_sigmas or pipeline.preset.stage_2_sigmas,
        # CFG++ follows a negative prediction, which a run without guidance does not make.
        sampler=None if sampling.sampler == "euler_cfg_pp" else sampling.sampler,
        upsampler=upsampler,
        adapters=adapters,
        guidance_options=options and options.refining(),
        transformer="stage_2_transformer" if pipeline.has("stage_2_transformer") else "transformer",
        references=False,
    )


def stage_adapters(
    pipeline: LTX2GenerationPipeline, stage_1: Mapping[str, float] | None, stage_2: Mapping[str, float] | None
) -> tuple[dict[str, float] | None, dict[str, float] | None]:
    """LoRA strengths that each stage adds to the active adapters, and a check that there is something to refine with.

    A guided run refines with the adapter "distilled", which its first stage runs without.

    Raises:
        ValueError: If the refining stage of a dev checkpoint has neither such an adapter nor another choice.
    """
    separate = pipeline.has("stage_2_transformer")
    if separate and stage_2:
        raise ValueError(
            f"`stage_2_adapters` {dict(stage_2)} belong to `transformer`, but the second stage runs `stage_2_transformer`; "
            "pass stage_2_adapters={}, or build the pipeline with stage_2_transformer=None"
        )
    if stage_2 is None:
        stage_2 = {} if separate or pipeline.preset.kind == "distilled" else {DISTILLED_ADAPTER: 1.0}
        if stage_2 and DISTILLED_ADAPTER not in pipeline.lora_metadata:
            raise ValueError(
                "the second stage of a dev checkpoint needs its distilled LoRA: load it with load_lora_weights(..., "
                f'adapter_name="{DISTILLED_ADAPTER}"), or pass stage_2_adapters={{}} to refine with the same weights'
            )
    own = {DISTILLED_ADAPTER: 0.0} if DISTILLED_ADAPTER in stage_2 and pipeline.preset.kind == "dev" else {}
    return own | dict(stage_1 or {}) or None, dict(stage_2) or None


def _checked(stages: Any) -> list[Stage]:
    stages = list(stages)
    if not stages or not all(isinstance(stage, Stage) for stage in stages):
        raise ValueError(f"`stages` has to be a list of at least one Stage but is {stages!r}")
    for stage in stages:
        for name in ("spatial_scale", "temporal_scale"):
            if not 0 < getattr(stage, name) <= 1:
                raise ValueError(
                    f"`{name}` of a stage has to lie in (0, 1] but is {getattr(stage, name)}; use 0.5 or 1.0"
                )
    last = stages[-1]
    if (last.spatial_scale, last.temporal_scale) != (1.0, 1.0):
        raise ValueError(
            f"the last of `stages` has the scales (space, time) ({last.spatial_scale}, {last.temporal_scale}), but it makes "
            "the finished clip; give it 1.0 for both, and the stages before it smaller ones"
        )
    return stages
