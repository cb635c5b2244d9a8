"""Blocks of the denoising: what runs in every step, and the loops.

Shapes: see `resources/modular/blocks.yaml`.
"""

# diffusers declares what blocks have more narrowly than it reads it.
# mypy: disable-error-code="assignment, misc, override"

from contextlib import ExitStack
from typing import Any

import torch

from ..conditioning import LatentState, Streams
from ..conditioning.streams import States
from ..models.mixed_precision import input_dtype
from ..sampling.denoiser import to_clean
from ..sampling.loop import FiniteWatch, blend
from .declarations import DECLARED, Loop, LoopLeaf, machinery, reads
from .encoding import clip_of

# Argument of the transformer: what holds it for the conditional, negative, perturbed and isolated pass.
GUIDER_FIELDS = {key: (name, f"negative_{name}", name, name) for key, name in DECLARED["contexts"].items()}


def states_of(b: Any) -> States:
    """The streams as the samplers see them; a first frame that is given is held to what stands there."""
    given = getattr(b, "conditioning_mask", None)
    ones = b.latents.new_ones(*b.latents.shape[:2], 1)
    mask = ones if given is None else 1 - given.reshape(ones.shape)
    clean = getattr(b, "clean_latents", None)
    video = LatentState(b.latents, mask, b.video_coords, b.latents if clean is None else clean)
    sound = b.audio_latents.new_ones(*b.audio_latents.shape[:2], 1)
    return Streams(video, LatentState(b.audio_latents, sound, b.audio_coords, b.audio_latents))


class LTX2LoopBeforeDenoiser(LoopLeaf):
    """Brings tokens to the type of the text, and says the noise level of each."""

    def run(self, components: Any, b: Any, step: int, timestep: Any) -> None:  # noqa: ARG002 (called alike)
        b.latent_model_input, b.audio_latent_model_input = b.latents.to(b.dtype), b.audio_latents.to(b.dtype)
        b.audio_timestep = b.video_timestep = timestep.to(b.latents.device).expand(len(b.latents))
        if getattr(b, "conditioning_mask", None) is not None:
            b.video_timestep = b.audio_timestep[:, None] * (1 - b.conditioning_mask.flatten(1))


class LTX2Image2VideoLoopBeforeDenoiser(LTX2LoopBeforeDenoiser):
    """The same; the tokens of a first frame that is given have none."""


class LTX2ConditionLoopBeforeDenoiser(LTX2Image2VideoLoopBeforeDenoiser):
    """The same; given tokens have as much as they are not kept."""


class LTX2LoopDenoiser(LoopLeaf):
    """Predicts the clean tokens of both streams: one run of the transformer for each pass that a guider needs.

    Any guider of diffusers can stand in the place of `guider` and `audio_guider`; passes that both need are made once.

    Args:
        guider_input_fields: Argument of the transformer to the names of what holds it in the conditional, negative, perturbed
            and isolated pass. Default the contexts of the prompts and of the negative ones.
    """

    def __init__(self, guider_input_fields: dict[str, Any] = GUIDER_FIELDS) -> None:
        if not isinstance(guider_input_fields, dict):
            raise ValueError(f"`guider_input_fields` has to be a dict but is {guider_input_fields!r}")
        self._guider_input_fields = guider_input_fields
        super().__init__()

    @property
    def inputs(self) -> list[Any]:
        """What it reads."""
        fields = self._guider_input_fields.values()
        names = dict.fromkeys(name for field in fields for name in (field if isinstance(field, tuple) else (field,)))
        return [*super().inputs, *(reads(f"{name}!") for name in names)]

    def check(self, components: Any, b: Any) -> None:  # noqa: ARG002 (no values are read)
        guiders = (components.guider, components.audio_guider)
        asks = any(getattr(one, "stg_scale", 0.0) for one in guiders if one._enabled)
        blocks = getattr(components.guider, "spatio_temporal_guidance_blocks", None)
        layers = components.transformer.config.num_layers
        if asks and not (blocks and all(0 <= block < layers for block in blocks)):
            raise ValueError(
                f"`spatio_temporal_guidance_blocks` of `guider` is {blocks}, but the transformer has the blocks 0 to {layers - 1}; "
                "use pipe.update_components(guider=pipe.guider.new(spatio_temporal_guidance_blocks="
                f"{components.preset.stg_blocks(layers)}))"
            )

    def run(self, components: Any, b: Any, step: int, timestep: Any) -> None:
        guiders, passes, asked = (components.guider, components.audio_guider), dict[str, machinery.BlockState](), []
        for guider in guiders:
            guider.set_state(step=step, num_inference_steps=b.num_inference_steps, timestep=timestep)
            batches = guider.prepare_inputs_from_block_state(b, self._guider_input_fields)
            asked.append([getattr(batch, guider._identifier_key) for batch in batches])
            passes = dict(zip(asked[-1], batches)) | passes
        sigma, states, shared = components.scheduler.sigmas[step], states_of(b), self._shared(components, b)
        made, network = {}, components.transformer
        for name, batch in passes.items():
            arguments = {argument: getattr(batch, argument) for argument in self._guider_input_fields}
            arguments = _in_type(arguments, shared["hidden_states"].dtype) | _marks(components, name)
            with ExitStack() as changed:
                # Guiders that change blocks of the transformer do so for their own passes only.
                for guider in (guider for guider, names in zip(guiders, asked) if name in names):
                    guider.prepare_models(network)
                    changed.callback(guider.cleanup_models, network)
                changed.enter_context(network.cache_context(name))
                made[name] = to_clean(states, Streams(*network(**shared, **arguments, return_dict=False)), sigma)
        streams = zip(guiders, asked, Streams._fields)
        b.noise_pred_video, b.noise_pred_audio = (_combined(*stream, made) for stream in streams)

    def _shared(self, components: Any, b: Any) -> dict[str, Any]:
        """Arguments of the transformer that are the same in all passes."""
        mask = clip_of(components, b, len(b.latents)).tools.video.keyframes_mask(b.latents.device)
        if mask is not None:
            # Tokens behind the video's own do not stand for a single frame.
            mask = torch.nn.functional.pad(mask, (0, 0, 0, b.latents.shape[1] - mask.shape[1]))
        dtype = input_dtype(components.transformer, b.latent_model_input.dtype)
        return {
            **b.denoiser_input_fields,
            "hidden_states": b.latent_model_input.to(dtype),
            "audio_hidden_states": b.audio_latent_model_input.to(dtype),
            "timestep": b.video_timestep,
            "audio_timestep": b.audio_timestep,
            "sigma": b.audio_timestep,
            "video_keyframes_mask": mask,
            "use_cross_timestep": b.use_cross_timestep,
            "attention_kwargs": b.attention_kwargs,
        }


def _marks(components: Any, name: str) -> dict[str, Any]:
    """What makes a pass different beside its text."""
    if name == "pred_cond_stg":
        return {"spatio_temporal_guidance_blocks": getattr(components.guider, "spatio_temporal_guidance_blocks", None)}
    return {"isolate_modalities": True} if name == "pred_cond_modality" else {}


def _in_type(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of a pass with floating-point ones in the type of the tokens."""
    return {
        name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def _combined(guider: Any, names: list[str], stream: str, made: dict[str, Any]) -> torch.Tensor:
    """The guided prediction of a stream, of the passes that its guider asked for."""
    predictions = [{guider._identifier_key: name, "noise_pred": getattr(made[name], stream)} for name in names]
    return guider([machinery.BlockState(**one) for one in predictions])[0]


class LTX2LoopAfterDenoiser(LoopLeaf):
    """Takes a step of both schedulers towards the prediction."""

    def run(self, components: Any, b: Any, step: int, timestep: Any) -> None:
        states: Any = states_of(b)
        schedulers = Streams(components.scheduler, b.audio_scheduler)
        predictions = blend(Streams(b.noise_pred_video, b.noise_pred_audio), states)
        moved = []
        for state, clean, scheduler in zip(states, predictions, schedulers):
            velocity = (state.latent - clean) / scheduler.sigmas[step]
            moved.append(scheduler.step(velocity, timestep, state.latent, return_dict=False)[0])
        b.latents, b.audio_latents = moved


class LTX2Image2VideoLoopAfterDenoiser(LTX2LoopAfterDenoiser):
    """The same; a first frame that is given stays."""


class LTX2ConditionLoopAfterDenoiser(LTX2LoopAfterDenoiser):
    """The same; the prediction is held to given tokens as far as they are kept."""


class LTX2DenoiseLoopWrapper(Loop):
    """Runs its blocks at every noise level.

    Raises:
        ValueError: If the latents are no longer finite.
    """

    @property
    def loop_inputs(self) -> list[Any]:
        """What the loop itself reads."""
        return [reads("timesteps!"), reads("num_inference_steps:loop!")]

    @torch.no_grad()
    def __call__(self, components: Any, state: machinery.PipelineState) -> tuple[Any, machinery.PipelineState]:
        b: Any = self.get_block_state(state)
        watch = FiniteWatch()
        with self.progress_bar(total=len(b.timesteps)) as progress:
            for step, timestep in enumerate(b.timesteps):
                components, b = self.loop_step(components, b, i=step, t=timestep)
                watch.note(states_of(b))
                progress.update()
        watch.check()
        self.set_block_state(state, b)
        return components, state


class LTX2DenoiseStep(LTX2DenoiseLoopWrapper):
    """Denoises a video made of text."""


class LTX2Image2VideoDenoiseStep(LTX2DenoiseLoopWrapper):
    """Denoises a video whose first frame is given."""


class LTX2ConditionDenoiseStep(LTX2DenoiseLoopWrapper):
    """Denoises a video that is held to conditions."""
