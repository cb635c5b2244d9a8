"""From the arguments of a recipe to its list of stages: one, or a guided one at half size and a refining one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..conditioning.streams import Streams
from ..guidance.presets import StreamScales
from ..guidance.scales import resolve_scales, with_bins
from .arguments import Stage
from .call_arguments import guided_stage
from .conditions.pictures import WholeVideoCondition
from .conditions.sounds import AudioCondition

DISTILLED_ADAPTER = "distilled"
"""Name under which a refining stage looks for the distilled LoRA of a dev checkpoint."""
UPSAMPLER = "latent_upsampler"
_BOTH = Streams(True, True)


def stage_list(
    pipeline: Any,
    call: Mapping[str, Any],
    conditions: Sequence[Any] = (),
    streams: Streams = _BOTH,
    scales: Streams | None = None,
) -> list[Stage]:
    """Stages of a call, by its arguments `stages`, `two_stage` and those that belong to them.

    Args:
        pipeline: The pipeline; its preset gives what the call leaves open.
        call: Arguments of the call.
        conditions: What the streams are held to. A stream that is given as a whole takes no guidance.
        streams: Which streams are generated.
        scales: Guidance scales of the first stage, default those of the call.
    """
    if call.get("stages") is not None:
        return _checked(call["stages"])
    frozen = frozen_streams(conditions)
    first = guided_stage(call, pipeline.preset, **({} if scales is None else {"scales": scales}))
    first = replace(first, scales=Streams(*(StreamScales() if f else s for f, s in zip(frozen, first.scales))))
    if not call.get("two_stage", True):
        return [first]
    adapters = stage_adapters(pipeline, call.get("stage_1_adapters"), call.get("stage_2_adapters"))
    makes_video = streams.video and not frozen.video
    first = replace(first, spatial_scale=0.5 if streams.video else 1.0, adapters=adapters[0])
    return [first, refining_stage(pipeline, call, adapters[1], UPSAMPLER if makes_video else None)]


def refining_stage(
    pipeline: Any, call: Mapping[str, Any], adapters: Mapping[str, float] | None, upsampler: str | None
) -> Stage:
    """The second stage of the reference recipes: few fixed noise levels, no guidance, no reference videos."""
    sampler, options = call.get("sampler") or "euler", call.get("guidance_options")
    return Stage(
        sigmas=call.get("stage_2_sigmas") or pipeline.preset.stage_2_sigmas,
        # CFG++ follows a negative prediction, which a run without guidance does not make.
        sampler="euler" if sampler == "euler_cfg_pp" else sampler,
        upsampler=upsampler,
        adapters=adapters,
        guidance_options=options and options.refining(),
        transformer="transformer" if pipeline._component("stage_2_transformer") is None else "stage_2_transformer",
        references=False,
    )


def stage_adapters(
    pipeline: Any, stage_1: Mapping[str, float] | None, stage_2: Mapping[str, float] | None
) -> tuple[dict[str, float] | None, dict[str, float] | None]:
    """LoRA strengths that each stage adds to the active adapters, and a check that there is something to refine with.

    A guided run refines with the adapter "distilled", which its first stage runs without.

    Raises:
        ValueError: If the refining stage of a dev checkpoint has neither such an adapter nor another choice.
    """
    separate = pipeline._component("stage_2_transformer") is not None
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


def frozen_streams(conditions: Sequence[Any]) -> Streams:
    """Which streams are given as a whole and kept exactly."""
    frozen = [type(c) for c in conditions if getattr(c, "noise_scale", None) == 0.0]
    return Streams(WholeVideoCondition in frozen, AudioCondition in frozen)


def sound_scales(pipeline: Any, call: Mapping[str, Any]) -> Streams:
    """Guidance of a call that makes only sound: its plain arguments belong to the audio, with the audio's presets."""
    names = ("guidance_scale", "stg_scale", "guidance_rescale", "modality_scale")
    preset = replace(pipeline.preset, video=pipeline.preset.audio)
    given = [call.get(name) for name in names]
    scales = resolve_scales(preset, given, [None] * len(names))
    scales = with_bins(scales, call.get("guidance_options"), Streams((), given))
    return Streams(StreamScales(), scales.audio)


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
