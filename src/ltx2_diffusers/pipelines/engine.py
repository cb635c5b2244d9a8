"""The way of every generation: check, encode the text, run the stages, decode.

A recipe says what it wants in a [`~ltx2_diffusers.pipelines.arguments.Request`] and never writes a loop of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..adapters.active import added_adapters, check_adapters_loaded
from ..checks import check_at_least_one, check_choice, check_float_tensors, check_unit
from ..conditioning.noiser import GaussianNoiser
from ..conditioning.state import LatentState
from ..conditioning.streams import Streams, TextContext, on_streams
from ..conditioning.tools import LatentTools
from ..guidance.presets import StreamScales
from ..guidance.scales import always_negative, build_guiders, check_options, cross_timestep_mode
from ..prompts.encoding import check_enhancement, check_prompts, check_text_width
from ..prompts.reading import ReadPrompts, read_prompts
from ..sampling.contract import Sampler
from ..sampling.samplers import get_sampler
from .arguments import Request, Stage, check_callback_inputs, check_generator, check_per_video
from .conditions.condition import check_conflicts, check_heard
from .decoding import OUTPUT_TYPES
from .output import LTX2PipelineOutput
from .plan import GenerationPlan, check_decodable_size
from .stages import frozen_streams


@dataclass(frozen=True)
class StageRun:
    """A stage that is checked and ready to run: its sizes, noise levels, guiders and sampler."""

    stage: Stage
    plan: GenerationPlan
    sigmas: torch.Tensor
    guiders: Streams
    sampler: Sampler


class GenerationEngine:
    """Runs a request; a mixin of the pipelines beside the stages it calls."""

    @torch.no_grad()
    def _generate(self, request: Request) -> LTX2PipelineOutput | tuple:
        """Check everything, generate and decode."""
        latents, plan, info = self._generate_latents(request)
        return self._finish(latents, plan, request.delivery, info, request.start.generator)

    @torch.no_grad()
    def _generate_latents(
        self, request: Request, read: ReadPrompts | None = None
    ) -> tuple[Streams, GenerationPlan, dict[str, Any]]:
        """Check everything, then generate: normalised latents, the sizes, and how they were made.

        `read` are the request's prompts if they have been read already.
        """
        plan, runs = self._prepare_runs(request)
        delivery = request.delivery
        self._begin(runs[0].stage.scales or Streams(StreamScales(), StreamScales()), request.attention_kwargs)
        read = read_prompts(self, request, self._uses_negative(runs)) if read is None else read
        callback = self._callback(delivery.callback, delivery.callback_inputs, read.states)
        latents = self._given_latents(request, plan)
        audio_results = []
        forwards = []
        for index, run in enumerate(runs):
            if index:
                latents = self._between_stages(latents, run)
            # Also without adapters of its own: the transformer scales active ones by `attention_kwargs`, and scaling
            # back leaves other strengths.
            with added_adapters(self, run.stage.adapters or {}):
                latents, sigmas = self._run_stage(request, run, read.contexts, latents, callback)
            runs[index] = replace(run, sigmas=sigmas)
            audio_results.append(latents.audio)
            forwards.append(self._forwards_per_step)
            if self._interrupt:
                break
        latents = latents._replace(audio=audio_results[request.audio_stage if not self._interrupt else -1])
        # After an interrupt the result has the size of the stage that was running.
        return latents, runs[len(forwards) - 1].plan, self._info(runs, forwards, read.enhanced)

    def _prepare_runs(self, request: Request) -> tuple[GenerationPlan, list[StageRun]]:
        """Everything that can be wrong with a call is found here, before any computation."""
        prompts, start, delivery = request.prompts, request.start, request.delivery
        self._require(*_components(request))
        batch_size = check_prompts(prompts.prompt, prompts.negative_prompt, *prompts.embeds)
        check_at_least_one(
            num_videos_per_prompt=prompts.num_videos_per_prompt, max_sequence_length=prompts.max_sequence_length
        )
        batch_size *= prompts.num_videos_per_prompt
        check_enhancement(prompts.enhancement.enabled, prompts.prompt, prompts.enhancement.system_prompt)
        check_generator(start.generator, batch_size)
        check_choice("output_type", delivery.output_type, OUTPUT_TYPES)
        check_callback_inputs(delivery.callback_inputs, self._callback_tensor_inputs)
        self._check_values(request, batch_size)
        plan = self._plan(batch_size, request.size, start.latents, start.audio_latents, request.stages)
        decodes_video = request.streams.video and delivery.originals.video is None
        if decodes_video and delivery.output_type != "latent":
            minimum = self.vae.min_latent_side * self.vae_spatial_compression_ratio
            check_decodable_size(plan.height, plan.width, minimum)
        runs = [self._prepare_run(request, plan, index) for index in range(len(request.stages))]
        self._check_text_components(prompts, delivery, self._uses_negative(runs))
        check_heard(request.conditions, request.streams)
        for run in runs:
            with added_adapters(self, run.stage.adapters or {}):
                for condition in _taking_part(request, run.stage):
                    condition.check(self, run.plan)
        check_conflicts(request.conditions, plan)
        return plan, runs

    def _check_values(self, request: Request, batch_size: int) -> None:
        start, delivery, embeds = request.start, request.delivery, request.prompts.embeds
        if self.connectors is not None:
            width = self.connectors.config.caption_channels * self.connectors.config.text_proj_in_factor
            check_text_width(width, prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1])
        check_float_tensors(latents=start.latents, audio_latents=start.audio_latents)
        count = len(request.stages)
        if request.audio_stage not in range(-count, count):
            raise ValueError(
                f"`audio_stage` is {request.audio_stage}, but there are {count} stages; use {-count} to {count - 1}"
            )
        if not any(stage.references for stage in request.stages) and any(c.is_reference for c in request.conditions):
            raise ValueError(
                "a reference is given, but no stage takes references; set `references=True` in one of them"
            )
        for stage in request.stages:
            check_unit(noise_scale=stage.noise_scale)
        for name in ("decode_timestep", "decode_noise_scale"):
            check_per_video(name, getattr(delivery, name), batch_size)

    def _prepare_run(self, request: Request, plan: GenerationPlan, index: int) -> StageRun:
        stage = request.stages[index]
        self._require(stage.transformer, *([stage.upsampler] if stage.upsampler else []))
        check_adapters_loaded(self, stage.adapters or {})
        plan = replace(self._stage_plan(plan, stage), stage=index)
        self._check_upsampler(request, index)
        scales = stage.scales or Streams(StreamScales(), StreamScales())
        scales = Streams(*(s if here else None for s, here in zip(scales, request.streams)))
        options, num_layers = stage.guidance_options, self.transformer.config.num_layers
        frozen = frozen_streams(request.conditions)
        check_options(options, Streams(*(here and not given for here, given in zip(request.streams, frozen))))
        guiders = build_guiders(scales, stage.stg_blocks, self.preset, num_layers, options)
        sigmas = self._stage_sigmas(stage, plan.num_video_tokens)
        if stage.sampler == "euler_cfg_pp" and not always_negative(guiders, sigmas[:-1].tolist()):
            raise ValueError(
                'the sampler "euler_cfg_pp" follows the negative prediction, which this run does not make in every step; give '
                "a guidance scale other than 1, or another sampler"
            )
        return StageRun(
            stage,
            plan,
            sigmas,
            guiders,
            get_sampler(stage.sampler, request.start.generator),
        )

    def _run_stage(
        self,
        request: Request,
        run: StageRun,
        contexts: tuple[TextContext, TextContext | None],
        latents: Streams,
        callback: Any,
    ) -> tuple[Streams, torch.Tensor]:
        """Latents in, denoised latents and the noise levels of the way out.

        Latents are normalised and unpacked, `None` for an absent stream.
        """
        tools = self._tools(run.plan)
        states = self._initial_states(request, tools, latents)
        for condition in _taking_part(request, run.stage):
            states = _apply(condition.items(self, run.plan), states, tools)
        sigmas = run.sigmas
        if states.video is not None and states.video.num_tokens != run.plan.num_video_tokens:
            # Some schedules shift by the length of the sequence, which appended conditions make longer.
            sigmas = self._stage_sigmas(run.stage, states.video.num_tokens)
        noise_scale = sigmas[0].item() if run.stage.noise_scale is None else run.stage.noise_scale
        given = Streams(*(latent is not None for latent in latents))
        states = self._noised(request, states, tools, given, noise_scale)
        mode = cross_timestep_mode(request.use_cross_timestep, self.preset)
        states = self._denoise(
            states,
            sigmas,
            _read_texts(contexts, states),
            run.guiders,
            transformer=getattr(self, run.stage.transformer),
            cross_timestep=mode,
            sampler=run.sampler,
            nag=run.stage.guidance_options and run.stage.guidance_options.nag,
            callback=replace(callback, target=lambda tokens: _target(tokens, tools.video)),
        )
        return on_streams(lambda state, tool: _target(state.latent, tool), states, tools), sigmas

    def _stage_sigmas(self, stage: Stage, num_tokens: int) -> torch.Tensor:
        """Noise levels of a stage with so many video tokens."""
        return self._sigmas(num_tokens, stage.num_inference_steps, stage.sigmas, stage.timesteps)

    def _initial_states(self, request: Request, tools: Streams, latents: Streams) -> Streams:
        """States without noise: given latents, or nothing yet."""
        return Streams(
            *(
                tool.create_initial_state(self._execution_device, initial_latent=latent) if here else None
                for tool, latent, here in zip(tools, latents, request.streams)
            )
        )

    def _noised(
        self, request: Request, states: Streams, tools: Streams, given: Streams, noise_scale: float
    ) -> Streams:
        """Put noise on the states, video first."""
        start = request.start
        noiser = GaussianNoiser(start.generator)

        def noised(state: LatentState, tool: LatentTools, is_given: bool) -> LatentState:
            if state.frozen:
                return state
            noise = None
            is_video = tool is tools.video
            if not start.packed_noise and (not is_given or (is_video and start.own_shape_renoise)):
                # diffusers draws a fresh target in its own shape; appended tokens come after it.
                noise = tool.patchifier.patchify(noiser.draw(tool.target_shape, state.latent.device))
                extra = state.latent[:, tool.num_tokens :]
                if extra.shape[1]:
                    noise = torch.cat([noise, noiser.draw(extra.shape, extra.device)], dim=1)
            scaled = is_given or (is_video and start.packed_noise)
            return noiser(state, noise_scale if scaled else 1.0, noise)

        return on_streams(noised, states, tools, given)

    def _between_stages(self, latents: Streams, run: StageRun) -> Streams:
        """Enlarge the video of the stage before; the upsampler works on un-normalised latents."""
        if run.stage.upsampler is None:
            fits = latents.video is None or latents.video.shape == run.plan.video
            # Another size without an upsampler is only allowed for a video that is given anew in every stage.
            return latents if fits else latents._replace(video=None)
        upsampler = getattr(self, run.stage.upsampler)
        video = self.vae.denormalize_latents(latents.video).to(upsampler.dtype)
        return latents._replace(video=self.vae.normalize_latents(upsampler(video).float()))

    @staticmethod
    def _uses_negative(runs: Sequence[StageRun]) -> bool:
        """Whether the negative prompt is read by any pass."""
        options = (run.stage.guidance_options for run in runs)
        guiders = (guider for run in runs for guider in run.guiders if guider is not None)
        return any(o is not None and o.nag is not None for o in options) or any(
            guider.do_unconditional_generation() for guider in guiders
        )


def _components(request: Request) -> list[str]:
    """Components that a request needs whatever its stages and its text do."""
    names = ["transformer"]
    for stream, decoders in zip(request.streams, (["vae"], ["audio_vae", "vocoder"])):
        if stream:
            names += decoders[:1] if request.delivery.output_type == "latent" else decoders
    return names


def _taking_part(request: Request, stage: Stage) -> list[Any]:
    """The conditions of a stage."""
    return [condition for condition in request.conditions if stage.references or not condition.is_reference]


def _read_texts(
    contexts: tuple[TextContext, TextContext | None], states: Streams
) -> tuple[TextContext, TextContext | None]:
    """What the streams read: one that is given as a whole takes no guidance, so it never reads the negative prompt."""
    positive, negative = contexts
    if negative is None:
        return contexts
    held = Streams(*(state is not None and state.frozen for state in states))
    return positive, TextContext(
        positive.video if held.video else negative.video, positive.audio if held.audio else negative.audio
    )


def _apply(items: Streams, states: Streams, tools: Streams) -> Streams:
    """Apply the condition items of each stream to its state."""
    results = []
    for stream_items, state, tool in zip(items, states, tools):
        for item in stream_items if state is not None else ():
            state = item.apply_to(state, tool)
        results.append(state)
    return Streams(*results)


def _target(tokens: torch.Tensor, tools: LatentTools) -> torch.Tensor:
    """The unpacked target among the tokens of a state, without appended ones."""
    return tools.patchifier.unpatchify(tokens[:, : tools.num_tokens], tools.target_shape)
