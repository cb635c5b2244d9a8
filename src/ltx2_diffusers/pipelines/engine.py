"""The way of every generation: check, read the text, run the stages, hand over.

A recipe says what it wants in a [`~ltx2_diffusers.pipelines.arguments.Request`] and never writes a loop of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from diffusers.utils.torch_utils import randn_tensor

from .. import checks, declared
from ..adapters import active
from ..adapters.strengths import StageStrengths
from ..conditioning import GaussianNoiser, LatentState, LatentTools, on_streams
from ..conditioning.dfr_layout import check_tiles, trim_canvas, video_tile_plan
from ..conditioning.streams import States, Streams, Tensors
from ..guidance import NEUTRAL, MultiModalGuiderParams
from ..guidance.scales import UNGUIDED, Guiders, always_negative, build_guiders, check_options, cross_timestep_mode
from ..media import files, waveforms
from ..media.writing import ClipFile
from ..models import latent_filters
from ..models.duration_head import SECONDS, frames_within
from ..prompts import Contexts, Prompts, ReadPrompts
from ..sampling import GuidedDenoiser, Sampler, denoise, get_sampler, with_latents
from ..sampling.ranks import agreed
from ..sampling.samplers import BesideNoise
from ..sampling.tiles import TiledTransformer, check_uncached
from ..schedulers.levels import check_sigmas, noise_levels
from .arguments import BOTH, Callback, Delivery, Request, Sampling, Scales, Stage, Start
from .base import LTX2PipelineBase
from .conditions import Opened, SourceClip, Waveform, check_conflicts, check_heard, held_streams
from .conditions.condition import Items
from .decoding import decoded, original_frames
from .generation import LTX2GenerationPipeline
from .output import Decoded, Info, LTX2PipelineOutput, Result, announce_encoding
from .plan import ClipPlan, check_decodable_size, check_speed, frame_stride, plan_clip

DECODERS = {"vae": "vae", "diffusion": "diffusion_decoder"}
"""What the argument `decoder` of calls may be, and the component that it stands for."""
OUTPUT_TYPES = LTX2PipelineOutput.forms
UPSAMPLER = "latent_upsampler"
_NONE = Streams(False, False)
_REPLACEABLE = ("latents", "audio_latents")


@dataclass(frozen=True)
class StepCallback:
    """A caller's function to run after each step, as in all diffusers pipelines.

    Args:
        pipeline: What the function sees as its first argument.
        function: Called as `function(pipeline, step, timestep, tensors)`; may return replacements in a dict.
        names: Tensors it wants to see.
        constants: Tensors that do not change during the call, by name.
    """

    pipeline: LTX2GenerationPipeline
    function: Callback | None
    names: Sequence[str]
    constants: dict[str, torch.Tensor | None]

    def __call__(
        self, step: int, timestep: torch.Tensor, states: States, prediction: Tensors, tools: LatentTools
    ) -> States:
        """Show the new states and the prediction they come from to the function; return the states to go on with."""
        if self.function is None:
            return states
        latents = (None if state is None else state.latent for state in states)
        known = {**self.constants, **dict(zip(_REPLACEABLE, latents))}
        if "denoised" in self.names:
            known["denoised"] = None if prediction.video is None else _target(prediction.video, tools)
        returned = self.function(self.pipeline, step, timestep, {name: known[name] for name in self.names})
        returned = {} if returned is None else returned
        if not isinstance(returned, dict):
            raise ValueError(
                f"`callback_on_step_end` has to return a dict or None but returned {declared.shown(returned)}"
            )
        ignored = [name for name in returned if name not in _REPLACEABLE and returned[name] is not known.get(name)]
        if ignored:
            raise ValueError(f"the step callback returned {ignored}; only {list(_REPLACEABLE)} can be replaced")
        replaced = (_replaced(name, returned.get(name, known[name]), known[name]) for name in _REPLACEABLE)
        return with_latents(states, Streams(*replaced))


def _replaced(name: str, new: Any, old: torch.Tensor | None) -> torch.Tensor | None:
    """Latents that a step callback returns in place of others, as the loop goes on with them."""
    if new is old or old is None:
        return old
    if not isinstance(new, torch.Tensor) or not new.is_floating_point() or new.shape != old.shape:
        raise ValueError(
            f"`callback_on_step_end` returned {declared.shown(new)} for `{name}`; return a floating-point tensor {tuple(old.shape)}"
        )
    return new.to(old)


@dataclass(frozen=True)
class StageRun:
    """A stage that is checked and ready to run.

    Args:
        stage: What the call asks for.
        plan: Its sizes.
        sigmas: Its noise levels.
        guiders: Guider of each stream, `None` for an absent one.
        sampler: Its sampler.
        conditions: What the streams are held to.
        cross_timestep: Whose noise level modulates the exchange between the streams.
    """

    stage: Stage
    plan: ClipPlan
    sigmas: torch.Tensor
    guiders: Guiders
    sampler: Sampler
    conditions: Sequence[Opened]
    cross_timestep: str


class Originals(NamedTuple):
    """What is handed over as it was given, of each stream."""

    video: SourceClip | None = None
    audio: Waveform | None = None

    @property
    def paths(self) -> list[str | None]:
        """The files that they are from."""
        return [None if original is None else original.path for original in self]


class Prepared(NamedTuple):
    """A request in which everything is checked: its stages, and all its conditions."""

    runs: list[StageRun]
    conditions: list[Opened]

    @property
    def originals(self) -> Originals:
        """What is handed over as it was given."""
        found = [condition.original for condition in self.conditions]
        video = next((original for original in found if isinstance(original, SourceClip)), None)
        return Originals(video, next((original for original in found if isinstance(original, Waveform)), None))


class Generated(NamedTuple):
    """What was generated.

    Args:
        latents: Normalised latents.
        plan: Their sizes, after an interrupt those of the stage that was running.
        info: How they were made.
        keyframes: Normalised latents `[B, C, K, h, w]` of frames made beside the video, `None` without any.
        keyframe_positions: Pixel frame of each.
    """

    latents: Tensors
    plan: ClipPlan
    info: Info
    keyframes: torch.Tensor | None = None
    keyframe_positions: Sequence[int] = ()


Maker = Callable[[LTX2GenerationPipeline, Request, Sequence[StageRun], ReadPrompts], Generated]
"""What makes a clip of checked stages and their text."""


def stage_list(
    pipeline: LTX2GenerationPipeline, sampling: Sampling, held: Streams[bool] = _NONE, streams: Streams[bool] = BOTH
) -> list[Stage]:
    """The stages of a call.

    Args:
        pipeline: The pipeline.
        sampling: What the call says.
        held: Which streams are given as a whole; they take no guidance.
        streams: Which streams are generated.
    """
    if sampling.stages is not None:
        check_unread("`stages` are given, which say so themselves", sampling.stage_arguments)
        return _checked(sampling.stages)
    guided = Streams(*(here and not given for here, given in zip(streams, held)))
    check_unread("this call makes no such guidance", sampling.unguided(guided))
    if not sampling.two_stage:
        check_unread("this call has one stage (two_stage=False)", sampling.second_stage_arguments)
    scales = Streams(*(NEUTRAL if given else s for given, s in zip(held, sampling.scales(pipeline.preset))))
    first = replace(sampling.first, scales=scales)
    if not sampling.two_stage:
        return [replace(first, adapters=sampling.stage_1_adapters or None)]
    adapters = stage_adapters(pipeline, sampling.stage_1_adapters, sampling.stage_2_adapters)
    first = replace(first, spatial_scale=0.5 if streams.video else 1.0, adapters=adapters[0])
    makes_video = streams.video and not held.video
    return [first, refining_stage(pipeline, sampling, adapters[1], UPSAMPLER if makes_video else None)]


def check_unread(why: str, given: Mapping[str, Any]) -> None:
    """Refuse what a call says and does not read."""
    if given:
        name, value = next(iter(given.items()))
        raise ValueError(f"`{name}` is given ({declared.shown(value)}), but {why}; leave one of them out")


def check_said(why: str, call: Any, *names: str) -> None:
    """Refuse arguments of a call that are not read and have another value than their default."""
    values = {name: getattr(call, name) for name in names}
    defaults = {field.name: field.default for field in fields(call)}
    # A tensor, which is compared element by element, has no default but `None`.
    check_unread(why, {n: v for n, v in values.items() if isinstance(v, torch.Tensor) or v != defaults[n]})


def refining_stage(
    pipeline: LTX2GenerationPipeline, sampling: Sampling, adapters: StageStrengths | None, upsampler: str | None
) -> Stage:
    """The second stage of the reference recipes: few fixed noise levels, no guidance, no reference videos."""
    options = sampling.first.guidance_options
    if sampling.stage_2_sigmas is not None:
        check_sigmas(sampling.stage_2_sigmas, "stage_2_sigmas")
    return Stage(
        sigmas=pipeline.preset.stage_2_sigmas if sampling.stage_2_sigmas is None else sampling.stage_2_sigmas,
        # CFG++ follows a negative prediction, which a run without guidance does not make.
        sampler=None if sampling.first.sampler == "euler_cfg_pp" else sampling.first.sampler,
        upsampler=upsampler,
        adapters=adapters,
        guidance_options=options and options.refining(),
        transformer="stage_2_transformer" if pipeline.has("stage_2_transformer") else "transformer",
        references=False,
    )


def stage_adapters(
    pipeline: LTX2GenerationPipeline, stage_1: StageStrengths | None, stage_2: StageStrengths | None
) -> tuple[StageStrengths | None, StageStrengths | None]:
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
        stage_2 = {} if separate or pipeline.preset.kind == "distilled" else {active.DISTILLED_ADAPTER: 1.0}
        if stage_2 and active.DISTILLED_ADAPTER not in pipeline.lora_metadata:
            raise ValueError(
                "the second stage of a dev checkpoint needs its distilled LoRA: load it with load_lora_weights(..., "
                f'adapter_name="{active.DISTILLED_ADAPTER}"), or pass stage_2_adapters={{}} to refine with the same weights, or two_stage=False'
            )
    own = (
        {active.DISTILLED_ADAPTER: 0.0}
        if active.DISTILLED_ADAPTER in stage_2 and pipeline.preset.kind == "dev"
        else {}
    )
    return own | dict(stage_1 or {}) or None, dict(stage_2) or None


def _checked(stages: Sequence[Stage]) -> list[Stage]:
    stages = list(stages)
    if not stages or not all(isinstance(stage, Stage) for stage in stages):
        raise ValueError(f"`stages` has to be a list of at least one Stage but is {stages!r}")
    for stage in stages:
        scales = UNGUIDED if stage.scales is None else stage.scales
        if not isinstance(scales, tuple | list) or [type(one) for one in scales] != [MultiModalGuiderParams] * 2:
            raise ValueError(f"`scales` of a stage has to be a pair of MultiModalGuiderParams but is {scales!r}")
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


@torch.no_grad()
def run(pipeline: LTX2GenerationPipeline, prompts: Prompts, request: Request, make: Maker | None = None) -> Result:
    """Check everything, generate and hand over.

    Args:
        pipeline: The pipeline.
        prompts, request: The call.
        make: Takes the place of [`generate`] for what is more than stages in a row.
    """
    reader, watched = pipeline.prompt_reader, request.delivery.wanted
    with_negative = reads_negative(pipeline, request)
    shows_picture = any(condition.shows_picture for condition in request.conditions)
    batch_size = reader.check(prompts, with_negative, shows_picture, watched)
    is_predicted = awaits_length(pipeline, request, batch_size // prompts.num_videos_per_prompt)
    # Adapters belong to models that other threads may use too; each stage changes their strengths.
    with active.held_adapters(pipeline, if_loaded=True):
        prepared = (prepare_any_length if is_predicted else prepare)(pipeline, request, batch_size)
        if request.delivery.output_type != "latent":
            announce_encoding(prepared.originals.paths, request.delivery.save_path)
        pictures = (c.picture for c in prepared.conditions) if prompts.enhancement.enabled else ()
        picture = next((picture for picture in pictures if picture is not None), None)
        texts = reader.read(prompts, with_negative, request.start.generator, picture, watched)
        if is_predicted:
            request = of_length(request, predicted_frames(pipeline, request, texts.contexts))
            prepared = prepare(pipeline, request, batch_size, prepared.conditions)
        pipeline.release("text_encoder", "connectors", "duration_head")
        made = (make or generate)(pipeline, request, prepared.runs, texts)
    if is_predicted:
        made.info["num_frames"] = request.size.num_frames
    return deliver(pipeline, made, request.delivery, prepared.originals)


def awaits_length(pipeline: LTX2GenerationPipeline, request: Request, num_prompts: int) -> bool:
    """Whether the length of the clip is predicted from its text.

    Raises:
        ValueError: If it is, and there are several texts or a given sound; or if bounds are given and it is not.
    """
    size, start = request.size, request.start
    given = (size.num_frames, start.latents, *(one for one in request.conditions if one.sets_length))
    is_given = any(one is not None for one in given)
    if is_given or size.seconds is None or not pipeline.has("duration_head"):
        why = "the length of this call is given" if is_given else "this pipeline has no duration head"
        said = zip(("min_seconds", "max_seconds"), size.seconds or SECONDS, SECONDS)
        check_unread(why, {name: value for name, value, usual in said if value != usual})
        return False
    if num_prompts > 1:
        raise ValueError(
            f"`num_frames` is None, but a length cannot be predicted for {num_prompts} prompts at once; give `num_frames`, or one "
            "prompt a call"
        )
    if start.audio_latents is not None:
        raise ValueError("`num_frames` is None, but `audio_latents` are given, which have a length; give `num_frames`")
    return True


def of_length(request: Request, num_frames: int) -> Request:
    """The request for a clip of so many frames."""
    return replace(request, size=replace(request.size, num_frames=num_frames))


def prepare_any_length(pipeline: LTX2GenerationPipeline, request: Request, batch_size: int) -> Prepared:
    """The request for the longest clip that may be predicted, which has to be possible for the shortest one, too."""
    check_speed(1, request.size)
    rate, stride, bounds = request.size.frame_rate, _frame_stride(pipeline, request), request.size.seconds or SECONDS
    shortest, longest = (frames_within(seconds, rate, stride, *bounds) for seconds in bounds)
    prepared = prepare(pipeline, of_length(request, longest), batch_size)
    with shortened(shortest):
        prepare(pipeline, of_length(request, shortest), batch_size, prepared.conditions)
    return prepared


@contextmanager
def shortened(num_frames: int) -> Iterator[None]:
    """Say of what is wrong with a clip that only the shortest one that may be predicted is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"{error}; the predicted length may be as short as {num_frames} frames, so raise `min_seconds`, or give `num_frames`"
        ) from None


def predicted_frames(pipeline: LTX2GenerationPipeline, request: Request, contexts: Contexts) -> int:
    """The number of frames that the duration head predicts for the first positive text."""
    context, (low, high) = contexts[0], request.size.seconds or SECONDS
    num_frames = pipeline.duration_head.predict_num_frames(
        context.video[:1],
        context.audio[:1],
        frame_rate=request.size.frame_rate,
        temporal_compression_ratio=_frame_stride(pipeline, request),
        min_seconds=low,
        max_seconds=high,
    )
    return agreed(num_frames, context.video.device) if pipeline.is_parallel else num_frames


def _frame_stride(pipeline: LTX2GenerationPipeline, request: Request) -> int:
    return frame_stride(pipeline.sizes, [(stage.spatial_scale, stage.temporal_scale) for stage in request.stages])


def prepare(
    pipeline: LTX2GenerationPipeline, request: Request, batch_size: int, opened: Sequence[Opened] | None = None
) -> Prepared:
    """Find everything that can be wrong with a call but its text, before any computation.

    Args:
        pipeline: The pipeline.
        request: The call.
        batch_size: Videos of the batch.
        opened: Its conditions, if they were opened before for a clip of another length.
    """
    start, delivery = request.start, request.delivery
    _check_values(request, batch_size, pipeline)
    scales = [(stage.spatial_scale, stage.temporal_scale) for stage in request.stages]
    plan = plan_clip(pipeline.sizes, batch_size, request.size, scales, start.latents, start.audio_latents)
    held = held_streams(request.conditions)
    if request.streams.video and not held.video and delivery.output_type != "latent":
        _check_decoding(pipeline, delivery.decoder, plan)
    elif delivery.decoder != "vae":
        check_unread("this call decodes no video", {"decoder": delivery.decoder})
    check_heard(request.conditions, request.streams)
    runs = [_prepared_stage(pipeline, request, plan, held, index) for index in range(len(request.stages))]
    if opened is None:
        conditions = [condition.opened(pipeline, plan) for condition in request.conditions]
    else:
        conditions = [condition.refitted(plan) for condition in opened]
    pairs = list(zip(conditions, request.conditions))
    for index, one in enumerate(runs):
        taking_part = [condition for condition, given in pairs if one.stage.references or not given.is_reference]
        with active.added_adapters(pipeline, one.stage.adapters or {}):
            for condition in taking_part:
                condition.check(one.plan)
        runs[index] = replace(one, conditions=taking_part)
    check_conflicts(conditions)
    return Prepared(runs, conditions)


def _check_decoding(pipeline: LTX2GenerationPipeline, decoder: str, plan: ClipPlan) -> None:
    """The decoder has to be there, and to take latents of the size of the clip."""
    checks.check_choice("decoder", decoder, tuple(DECODERS))
    vae = pipeline.codec
    if decoder == "vae":
        check_decodable_size(plan.height, plan.width, vae.min_latent_side * pipeline.vae_spatial_compression_ratio)
        vae.check_decoding()
        return
    if not pipeline.has("diffusion_decoder"):
        raise ValueError(
            '`decoder` is "diffusion", but this pipeline has no `diffusion_decoder`; load one by '
            "LTX2VideoDiffusionDecoderModel.from_pretrained() or from_single_file() and give it to the pipeline under that name, "
            "or leave `decoder` out"
        )
    network = pipeline.diffusion_decoder
    for name in ("spatial_compression_ratio", "temporal_compression_ratio"):
        if getattr(network, name) != getattr(vae, name):
            raise ValueError(
                f"`diffusion_decoder` has a {name} of {getattr(network, name)}, but that of `vae` is {getattr(vae, name)}; load the "
                "decoder of the same checkpoint"
            )
    network.check_decoding(torch.empty(tuple(plan.video), device="meta"))


def reads_negative(pipeline: LTX2GenerationPipeline, request: Request) -> bool:
    """Whether the negative prompt is read by any pass."""
    pipeline.require(*_components(request))
    guiders = (g for stage in request.stages for g in stage_guiders(pipeline, stage, request.present) if g is not None)
    options = (stage.guidance_options for stage in request.stages)
    # Building the guiders has refused what are no options.
    return any(g.do_unconditional_generation() for g in guiders) or any(o is not None and o.nag for o in options)


def generate(
    pipeline: LTX2GenerationPipeline, request: Request, runs: Sequence[StageRun], texts: ReadPrompts
) -> Generated:
    """Run the stages one after the other."""
    pipeline.reset(UNGUIDED, request.attention_kwargs)
    callback = StepCallback(pipeline, request.delivery.callback, request.delivery.callback_inputs, texts.embeds)
    latents = first_latents(pipeline, request.start, runs[0].plan)
    sounds, sigmas, forwards, passes, keyframes = [], [], [], [], None
    for index, one in enumerate(runs):
        if index:
            latents = _enlarged(pipeline, latents, one)
        # Also without adapters of its own: the transformer scales active ones by `attention_kwargs`, and scaling
        # back leaves other strengths.
        with active.added_adapters(pipeline, one.stage.adapters or {}):
            states, levels, made = run_stage(pipeline, one, texts.contexts, latents, request.start, callback)
        latents = on_streams(lambda state, tool: _target(state.latent, tool), states, one.plan.tools)
        keyframes = _slots(states, one.plan.tools)
        sounds.append(latents.audio)
        sigmas.append(levels.tolist())
        forwards.append(pipeline._forwards_per_step)
        passes.append(made)
        if pipeline._interrupt:
            break
    sound = None if request.idle_audio else sounds[-1 if pipeline._interrupt else request.audio_stage]
    latents = latents._replace(audio=sound)
    sigmas += [one.sigmas.tolist() for one in runs[len(sigmas) :]]
    single = len(runs) == 1
    info = {
        "preset": f"{pipeline.preset.version} {pipeline.preset.kind}",
        "sigmas": sigmas[0] if single else sigmas,
        "sampler": runs[0].stage.sampler if single else [one.stage.sampler for one in runs],
        "forwards_per_step": forwards[0] if single else forwards,
        "passes": passes[0] if single else passes,
        **({} if texts.enhanced is None else {"enhanced_prompt": texts.enhanced}),
    }
    return Generated(latents, runs[len(forwards) - 1].plan, info, keyframes)


def first_latents(pipeline: LTX2GenerationPipeline, start: Start, plan: ClipPlan) -> Tensors:
    """The caller's latents, normalised and unpacked; `None` where a stream starts from noise."""
    video, audio = start.latents, start.audio_latents
    if start.clip is not None:
        pixels = torch.nn.functional.interpolate(
            start.clip[0].movedim(1, 0), (plan.height, plan.width), mode="bilinear"
        )
        return Streams(pipeline.encode_video(pixels.movedim(0, 1)[None]).expand(plan.video), None)
    if audio is not None:
        audio = audio.to(pipeline._execution_device, torch.float32)
        audio = audio if audio.ndim == 4 else plan.tools.audio.patchifier.unpatchify(audio, plan.audio)
        audio = pipeline.audio_vae.normalize_latents(audio)
    return Streams(None if video is None else pipeline.normalized_video(video, plan), audio)


def run_stage(
    pipeline: LTX2GenerationPipeline,
    run: StageRun,
    contexts: Contexts,
    latents: Tensors,
    start: Start,
    callback: StepCallback,
) -> tuple[States, torch.Tensor, dict[str, Any]]:
    """Latents in; denoised states, the noise levels of the way and what became of the passes out.

    Latents are normalised and unpacked, `None` for an absent stream.
    """
    stage, device = run.stage, contexts[0].video.device
    how: dict[str, Any] = {"fill_latent": start.blend == "latent" and not stage.goes_on}
    tools = Streams(*(replace(tool, **how) for tool in run.plan.tools))
    given = Streams(*(latent is not None for latent in latents))
    states: States = on_streams(
        lambda _, tool, latent: tool.create_initial_state(device, initial_latent=latent), run.guiders, tools, latents
    )
    if start.noise_first and not stage.goes_on:
        states = noised(start, states, tools, given, run.sigmas[0].item())
    for condition in run.conditions:
        states = _held_to(condition.items(run.plan), tools, states)
    pipeline.release("vae", "audio_vae")
    sigmas = run.sigmas
    if states.video is not None and states.video.num_tokens != run.plan.num_video_tokens:
        # Some schedules shift by the length of the sequence, which appended conditions make longer.
        sigmas = _levels(pipeline, stage, states.video.num_tokens)
    if not (start.noise_first or stage.goes_on):
        noise_scale = sigmas[0].item() if stage.noise_scale is None else stage.noise_scale
        states = noised(start, states, tools, given, noise_scale)
    nag = None if stage.guidance_options is None else stage.guidance_options.nag
    network, texts = getattr(pipeline, stage.transformer), _read_by(states, contexts)
    network = network if stage.network is None else stage.network(network)
    if stage.tiles is not None and states.video is not None:
        network = TiledTransformer(network, video_tile_plan(stage.tiles, states.video.positions, run.plan.video[2:]))
    settings, layout = pipeline.attention_kwargs, pipeline.pass_layout
    denoiser = GuidedDenoiser(network, *texts, run.guiders, run.cross_timestep, settings, nag, layout)
    timesteps = sigmas[:-1] * 1000
    pipeline._num_timesteps = len(timesteps)
    pipeline._forwards_per_step = denoiser.forwards_per_prediction * run.sampler.predictions_per_step
    denoiser.num_predictions = len(timesteps) * run.sampler.predictions_per_step
    pipeline._scales = Streams(*(stage.scales or UNGUIDED))
    with pipeline.progress_bar(total=len(timesteps)) as progress:

        def on_step(step: int, new_states: States, prediction: Tensors) -> States:
            before = pipeline._scales
            new_states = callback(step, timesteps[step], new_states, prediction, tools.video)
            if pipeline._scales != before:
                _follow_scales(pipeline, run, denoiser, before)
            progress.update()
            pipeline._current_timestep = timesteps[min(step + 1, len(timesteps) - 1)]
            return new_states

        pipeline._current_timestep = timesteps[0]
        try:
            states = denoise(denoiser, states, sigmas, run.sampler, on_step, lambda: pipeline._interrupt)
        finally:
            pipeline._current_timestep = None
            pipeline.release(stage.transformer)
    return states, sigmas, denoiser.passes


def _follow_scales(pipeline: LTX2GenerationPipeline, run: StageRun, denoiser: GuidedDenoiser, before: Scales) -> None:
    """Guide the steps to come by scales that a step callback has set."""
    guiders = denoiser.changed_guiders(before, pipeline._scales, run.stage.guidance_options)
    _check_negative_is_made(run.stage.sampler, guiders, run.sigmas)
    denoiser.guide_by(guiders)
    forwards = denoiser.forwards_per_prediction * run.sampler.predictions_per_step
    pipeline._forwards_per_step = max(pipeline._forwards_per_step, forwards)


def _check_negative_is_made(sampler: str | None, guiders: Guiders, sigmas: torch.Tensor) -> None:
    """CFG++ needs the pass with the negative prompt in every step."""
    if sampler == "euler_cfg_pp" and not always_negative(guiders, sigmas[:-1].tolist()):
        raise ValueError(
            'the sampler "euler_cfg_pp" follows the negative prediction, which this run does not make in every step; give '
            "a guidance scale other than 1, or another sampler"
        )


def stage_guiders(pipeline: LTX2GenerationPipeline, stage: Stage, streams: Streams[bool]) -> Guiders:
    """A fresh guider for each stream of a stage, `None` for an absent one."""
    if stage.guiders is not None:
        return stage.guiders()
    scales = Streams(*(s if here else None for s, here in zip(stage.scales or UNGUIDED, streams)))
    num_layers = pipeline.transformer.config.num_layers
    return build_guiders(scales, stage.stg_blocks, pipeline.preset, num_layers, stage.guidance_options)


def _prepared_stage(
    pipeline: LTX2GenerationPipeline, request: Request, plan: ClipPlan, held: Streams[bool], index: int
) -> StageRun:
    """A stage before its conditions are known."""
    stage, preset = request.stages[index], pipeline.preset
    _check_seams(request, index)
    pipeline.require(stage.transformer, *([stage.upsampler] if stage.upsampler else []))
    _check_roles(pipeline, stage)
    active.check_adapters_loaded(pipeline, stage.adapters or {})
    if stage.adapters and stage.transformer != "transformer":
        raise ValueError(
            f"the adapters {dict(stage.adapters)} of a stage belong to `transformer`, but it runs `{stage.transformer}`; leave "
            "them out"
        )
    plan = replace(plan.at_scale(stage.spatial_scale, stage.temporal_scale), stage=index, goes_on=stage.goes_on)
    _check_upsampler(pipeline, request, index)
    if stage.network is not None:
        # What wraps a network says what it cannot do.
        stage.network(getattr(pipeline, stage.transformer))
    if stage.tiles is not None:
        check_tiles(stage.tiles, plan.video[2:])
        check_uncached(getattr(pipeline, stage.transformer))
    check_options(stage.guidance_options, Streams(*(here and not given for here, given in zip(request.streams, held))))
    guiders = stage_guiders(pipeline, stage, request.present)
    sigmas = _levels(pipeline, stage, plan.num_video_tokens)
    name = ("euler" if index else preset.sampler) if stage.sampler is None else stage.sampler
    _check_negative_is_made(name, guiders, sigmas)
    cross_timestep = cross_timestep_mode(request.use_cross_timestep, preset)
    generator = request.start.generator
    sampler = get_sampler(name, generator) if stage.new_sampler is None else stage.new_sampler(generator)
    sampler = BesideNoise(sampler) if request.idle_audio else sampler
    return StageRun(replace(stage, sampler=name), plan, sigmas, guiders, sampler, (), cross_timestep)


def _check_values(request: Request, batch_size: int, pipeline: LTX2GenerationPipeline) -> None:
    start, delivery, watchable = request.start, request.delivery, pipeline._callback_tensor_inputs
    checks.check_generator(start.generator, batch_size, torch.device(pipeline._execution_device))
    if start.generator is None and pipeline.is_parallel:
        raise ValueError(
            "`generator` is not given, but processes that share a call need equal noise; give one of the same seed in each"
        )
    checks.check_attention_kwargs(request.attention_kwargs)
    checks.check_choice("output_type", delivery.output_type, pipeline.output_class.forms)
    unknown = [name for name in delivery.callback_inputs if name not in watchable]
    if unknown:
        raise ValueError(f"`callback_on_step_end_tensor_inputs` has to be in {list(watchable)} but contains {unknown}")
    checks.check_float_tensors(latents=start.latents, audio_latents=start.audio_latents)
    kind = pipeline.output_class.file_type
    check_save_path(delivery.save_path, delivery.output_type, batch_size, request.streams.video, kind)
    count = len(request.stages)
    if request.audio_stage not in range(-count, count):
        raise ValueError(
            f"`audio_stage` is {request.audio_stage}, but there are {count} stages; use {-count} to {count - 1}"
        )
    if not any(stage.references for stage in request.stages) and any(c.is_reference for c in request.conditions):
        raise ValueError("a reference is given, but no stage takes references; set `references=True` in one of them")
    for stage in request.stages:
        checks.check_unit(noise_scale=stage.noise_scale)
    for name in ("decode_timestep", "decode_noise_scale"):
        check_noise_levels(name, getattr(delivery, name), batch_size)


def check_save_path(
    path: Any, output_type: str, batch_size: int = 1, makes_video: bool = True, file_type: type[ClipFile] = ClipFile
) -> None:
    """A file to be written must be of the right kind, and one that can be written.

    Raises:
        ValueError: If the name has another suffix, or the call hands over latents or makes no video for a `ClipFile`.
        OSError: If a file cannot be written; the message names it.
    """
    if path is None:
        return
    if output_type == "latent":
        raise ValueError('`save_path` is given, but output_type="latent" makes no frames; leave one of them out')
    kind = (file_type.suffixes, "the video of `save_path`") if makes_video else ((".wav",), "the sound of `save_path`")
    if isinstance(path, ClipFile) and not makes_video:
        raise ValueError(
            "`save_path` says how frames are written, but this call makes sound alone; give the name of a file"
        )
    files.check_suffix(path, *kind)
    (file_type if makes_video else ClipFile).of(path).check(batch_size)


def check_noise_levels(name: str, value: float | list[float] | None, batch_size: int) -> None:
    """The decoder's noise levels: one for all videos or one each, from 0 to 1."""
    checks.check_per_video(name, value, batch_size)
    for level in value if isinstance(value, list) else [value]:
        checks.check_unit(**{name: level})


def _check_roles(pipeline: LTX2GenerationPipeline, stage: Stage) -> None:
    """The components that a stage names must be of the kind that it takes them for."""
    kinds = (("transformer", stage.transformer, "num_layers"), ("upsampler", stage.upsampler, "spatial_upsample"))
    for role, name, key in kinds:
        if name is not None and key not in getattr(getattr(pipeline, name), "config", ()):
            raise ValueError(f"`{role}` of a stage is {name!r}, which is no {role}; name a component that is one")


def _check_seams(request: Request, index: int) -> None:
    """What a stage leaves noisy, the next one goes on with, and nothing else."""
    stages = request.stages
    stage, before, after = stages[index], stages[index - 1] if index else None, [*stages[index + 1 :]][:1]
    checks.check_unit(adain_factor=stage.adain_factor)
    if stage.end_sigma and not (after and after[0].goes_on):
        raise ValueError(
            f"a stage ends at the noise level {stage.end_sigma}, but no stage goes on with it; use end_sigma=0.0, or "
            "goes_on=True in the next one"
        )
    if stage.end_sigma and request.streams.audio and stage is stages[request.audio_stage]:
        raise ValueError(
            f"`audio_stage` is {request.audio_stage}, a stage whose sound is still noisy where it ends; use {index + 1}"
        )
    if stage.goes_on and (before is None or not before.end_sigma or stage.upsampler):
        raise ValueError(
            "a stage goes on with noise, but none is left to it (the stage before has `end_sigma` 0.0, or there is none, or "
            "latents are enlarged between them); use goes_on=False"
        )
    if stage.goes_on and request.conditions and not request.start.noise_first:
        raise ValueError(
            "a stage that goes on with noise (goes_on=True) cannot be held to conditions; leave them out, or use goes_on=False"
        )


def _check_upsampler(pipeline: LTX2GenerationPipeline, request: Request, index: int) -> None:
    """The upsampler must enlarge exactly from the stage before to this one."""
    stage, before = request.stages[index], request.stages[index - 1] if index else None
    scales = [(s.spatial_scale, s.temporal_scale) for s in (before or stage, stage)]
    if stage.upsampler is None:
        # A video that is given as a whole is encoded anew in every stage.
        if scales[0] != scales[1] and not held_streams(request.conditions).video:
            raise ValueError(
                f"a stage goes from the scales (space, time) {scales[0]} to {scales[1]} without an upsampler; name one, such "
                'as "latent_upsampler", or keep the scales'
            )
        return
    if before is None or not request.streams.video:
        what = "the first stage" if before is None else "a call without video"
        raise ValueError(f"{what} has nothing to enlarge; leave its upsampler {stage.upsampler!r} out")
    config = getattr(pipeline, stage.upsampler).config
    spatial = 1.0
    if config.spatial_upsample:
        rational = config.get("use_rational_resampler") and not config.temporal_upsample
        spatial = config.rational_spatial_scale if rational else 2.0
    offered = (spatial, 2.0 if config.temporal_upsample else 1.0)
    needed = tuple(after / before for before, after in zip(*scales))
    if offered != needed:
        raise ValueError(
            f"`{stage.upsampler}` enlarges (space, time) by {offered}, but the stages need {needed}; load another "
            "upsampler or change the scales of the stages"
        )


def _levels(pipeline: LTX2GenerationPipeline, stage: Stage, num_tokens: int) -> torch.Tensor:
    """Noise levels of a stage with so many video tokens."""
    scheduler, preset = pipeline.scheduler, pipeline.preset
    wished = (stage.num_inference_steps, stage.sigmas, stage.timesteps)
    default_steps, default_sigmas = preset.num_inference_steps, preset.sigmas
    levels = noise_levels(scheduler, num_tokens, *wished, default_steps=default_steps, default_sigmas=default_sigmas)
    if not 0 <= stage.end_sigma < levels[-2].item():
        raise ValueError(
            f"`end_sigma` of a stage is {stage.end_sigma}, which is not below its last noise level {levels[-2].item():g}; use 0.0"
        )
    return torch.cat([levels[:-1], levels.new_tensor([stage.end_sigma])])


def _enlarged(pipeline: LTX2GenerationPipeline, latents: Tensors, run: StageRun) -> Tensors:
    """The video of the stage before at the size of this one; the upsampler works on un-normalised latents."""
    video, name = latents.video, run.stage.upsampler
    if video is None or name is None:
        fits = video is None or tuple(video.shape) == run.plan.video
        # Another size without an upsampler is only allowed for a video that is given anew in every stage.
        return latents if fits else latents._replace(video=None)
    larger = enlarged(pipeline, video, name)
    if run.stage.adain_factor:
        larger = latent_filters.adain_filter_latent(larger, video, run.stage.adain_factor)
    return latents._replace(video=larger)


def enlarged(pipeline: LTX2GenerationPipeline, video: torch.Tensor, name: str) -> torch.Tensor:
    """Normalised latents that a component of the pipeline has enlarged."""
    upsampler = getattr(pipeline, name)
    video = upsampler(pipeline.codec.denormalize_latents(video).to(upsampler.dtype))
    pipeline.release(name)
    return pipeline.codec.normalize_latents(video.float())


def _components(request: Request) -> list[str]:
    """Components that a request needs whatever its stages and its text do."""
    names = ["transformer"]
    for stream, decoders in zip(request.streams, (["vae"], ["audio_vae", "vocoder"])):
        if stream:
            names += decoders[:1] if request.delivery.output_type == "latent" else decoders
    return names


def _held_to(given: Items, tools: Streams[LatentTools], states: States) -> States:
    """The states with what a condition puts on each stream."""
    results = []
    for items, state, tool in zip(given, states, tools):
        if state is not None:
            for item in items:
                state = item.apply_to(state, tool)
        results.append(state)
    return Streams(*results)


def noised(
    start: Start, states: States, tools: Streams[LatentTools], given: Streams[bool], noise_scale: float
) -> States:
    """Put noise on the states, video first."""
    noiser = GaussianNoiser(start.generator, start.blend)

    def with_noise(state: LatentState, tool: LatentTools, is_given: bool) -> LatentState:
        if state.frozen:
            return state
        noise = None
        is_video = tool is tools.video
        if start.framed_noise:
            shape = tool.target_shape._replace(frames=state.num_tokens // tool.tokens_per_frame)
            noise = tool.patchifier.patchify(noiser.draw(shape, state.latent.device))
            return noiser(state, noise_scale if is_given else 1.0, noise)
        if not start.packed_noise and (not is_given or (is_video and start.own_shape_renoise)):
            # diffusers draws a fresh target in its own shape; appended tokens come after it.
            noise = tool.patchifier.patchify(noiser.draw(tool.target_shape, state.latent.device))
            extra = state.latent[:, tool.num_tokens :]
            if extra.shape[1]:
                noise = torch.cat([noise, noiser.draw(extra.shape, extra.device)], dim=1)
        scaled = is_given or (is_video and start.packed_noise and not start.noise_first)
        return noiser(state, noise_scale if scaled else 1.0, noise)

    return on_streams(with_noise, states, tools, given)


def _read_by(states: States, contexts: Contexts) -> Contexts:
    """What the streams read: one that is given as a whole takes no guidance, so it never reads the negative prompt."""
    positive, negative = contexts
    if negative is None:
        return contexts
    held = Streams(*(state is not None and state.frozen for state in states))
    read = {name: getattr(positive if is_held else negative, name) for name, is_held in zip(held._fields, held)}
    return positive, replace(negative, **read)


def _target(tokens: torch.Tensor, tools: LatentTools) -> torch.Tensor:
    """The unpacked target among the tokens of a state, without appended ones."""
    return tools.patchifier.unpatchify(tokens[:, : tools.num_tokens], tools.target_shape)


def _slots(states: States, tools: Streams[LatentTools]) -> torch.Tensor | None:
    """The unpacked frames that slots have made: what is marked among the tokens behind the video's own."""
    tool, video = tools.video, states.video
    if video is None or video.keyframes_mask is None:
        return None
    appended = video.latent[:, tool.num_tokens :][:, video.keyframes_mask[0, tool.num_tokens :, 0] > 0]
    shape = tool.target_shape._replace(frames=appended.shape[1] // tool.tokens_per_frame)
    return tool.patchifier.unpatchify(appended, shape) if shape.frames else None


def deliver(pipeline: LTX2GenerationPipeline, made: Generated, delivery: Delivery, originals: Originals) -> Result:
    """Decode finished latents, into a file if one is named, free offloaded models and wrap up."""
    kept = originals if delivery.output_type != "latent" else Originals()
    # The sound comes first: a file wants it beside the first frames, and offloaded models run one after the other.
    audio, rate = _delivered_audio(pipeline, made, delivery, kept)
    info = {**made.info, "output_type": delivery.output_type}
    if delivery.save_path is not None:
        delivery = replace(delivery, output_type=pipeline.output_class.written_form)
    frames = _delivered_video(pipeline, made, delivery, kept.video)
    frame_rate = None if frames is None else made.plan.frame_rate
    beside: dict[str, Any] = {}
    if made.keyframes is not None and delivery.output_type == "latent":
        # Beside latents alone, as nothing goes on from frames.
        stills, positions = pipeline.returned_latents(made.keyframes), [*made.keyframe_positions]
        beside = {"keyframes": stills, "keyframe_positions": positions}
    output = pipeline.output_class(frames, audio, frame_rate, rate, info, *originals.paths, **beside)
    if delivery.save_path is not None:
        output = output.moved_to(delivery.save_path)
    pipeline.maybe_free_model_hooks()
    return output if delivery.return_dict else tuple(getattr(output, name) for name in output.returned)


def _delivered_video(
    pipeline: LTX2GenerationPipeline, made: Generated, delivery: Delivery, original: SourceClip | None
) -> Decoded | None:
    if original is not None:
        if original.path is not None and delivery.output_type == "uint8" and made.plan.batch_size == 1:
            # Nobody else has what was read of a file, so that it need not be copied.
            return original.pixels[None]
        return original_frames(pipeline, original.pixels, made.plan.batch_size, delivery.output_type)
    latents = made.latents.video
    if latents is None:
        return None
    if delivery.output_type == "latent":
        return decode_video(pipeline, latents, delivery)
    # Latents are handed over as exact and as long as they are; decoding starts in the transformer's type, as in diffusers.
    latents = trim_canvas(latents, made.plan.clip_frames, made.plan.sizes.temporal_ratio)
    return decode_video(pipeline, latents.to(pipeline.transformer.dtype), delivery, delivery.file)


def _delivered_audio(
    pipeline: LTX2GenerationPipeline, made: Generated, delivery: Delivery, originals: Originals
) -> tuple[torch.Tensor | None, int | None]:
    """Waveform and its rate."""
    plan, sound = made.plan, originals.audio
    if delivery.file is not None and not delivery.file.sound:
        return None, None
    if sound is not None:
        samples = waveforms.fit_audio(sound.samples, plan.duration_s, sound.rate)
        return samples.expand(plan.batch_size, -1, -1), sound.rate
    if made.latents.audio is None:
        return None, None
    audio = decode_audio(pipeline, made.latents.audio, delivery.output_type)
    pipeline.release("audio_vae", "vocoder")
    rate = pipeline.vocoder.config.output_sampling_rate if pipeline.has("vocoder") else None
    if originals.video is not None and rate is not None:
        # A given video may be shorter than the clip that the network saw, which needs 8 k + 1 frames.
        audio = audio[..., : round(originals.video.duration_s * rate)]
    elif (plan.audio.frames == 1 or plan.kept_frames) and rate is not None and delivery.output_type != "latent":
        # One latent is the least that the network makes, also for a clip that is shorter; others end before the padding.
        audio = audio[..., : max(round(plan.duration_s * rate), 1)]
    return audio, rate


def decode_video(
    pipeline: LTX2GenerationPipeline, latents: torch.Tensor, delivery: Delivery, file: ClipFile | None = None
) -> Decoded:
    """Turn normalised video latents `[B, C, F, h, w]` into frames of the wished type; see [`decoded`]."""
    if delivery.output_type == "latent":
        return pipeline.returned_latents(latents)
    if delivery.decoder == "diffusion":
        how: tuple = (delivery.generator,)
    else:
        latents, timestep = with_decoder_noise(pipeline, latents, delivery)
        how = (timestep,)
    if delivery.tone_map:
        latents = latent_filters.tone_map_latents(latents, delivery.tone_map)
    latents = pipeline.codec.denormalize_latents(latents)
    return decoded(pipeline, latents, how, delivery.output_type, file, DECODERS[delivery.decoder], delivery.fit)


def with_decoder_noise(
    pipeline: LTX2PipelineBase, latents: torch.Tensor, delivery: Delivery
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Latents and timestep as a decoder with timestep conditioning wants them; unchanged and `None` without."""
    if not pipeline.vae.config.timestep_conditioning:
        return latents, None
    timestep = _per_sample(delivery.decode_timestep, latents)
    scale = timestep if delivery.decode_noise_scale is None else _per_sample(delivery.decode_noise_scale, latents)
    scale = scale.view(-1, 1, 1, 1, 1)
    noise = randn_tensor(latents.shape, delivery.generator, latents.device, latents.dtype)
    return (1 - scale) * latents + scale * noise, timestep


def decode_audio(pipeline: LTX2GenerationPipeline, latents: torch.Tensor, output_type: str) -> torch.Tensor:
    """Turn normalised audio latents `[B, C, L, M]` into a waveform `[B, channels, samples]`, or un-normalised latents."""
    latents = pipeline.audio_vae.denormalize_latents(latents)
    if output_type == "latent":
        return latents
    spectrogram = pipeline.audio_vae.decode(latents.to(pipeline.audio_vae.dtype), return_dict=False)[0]
    audio = pipeline.vocoder(spectrogram)
    remedy = "decode in float32: pipe.audio_vae.to(torch.float32) and pipe.vocoder.to(torch.float32)"
    checks.check_finite("the decoded sound", audio, remedy)
    return audio


def _per_sample(value: float | list[float], latents: torch.Tensor) -> torch.Tensor:
    values = value if isinstance(value, list) else [value]
    return torch.tensor(values, device=latents.device, dtype=latents.dtype).expand(len(latents))
