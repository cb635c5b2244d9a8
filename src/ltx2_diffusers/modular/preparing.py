"""Blocks from sizes, given latents and noise to the tokens that the denoising begins with.

Shapes: see `resources/modular/blocks.yaml`.
"""

# diffusers declares what blocks have more narrowly than it reads it.
# mypy: disable-error-code="assignment, misc, override"

import copy
from dataclasses import replace
from typing import Any

import torch

from .. import checks, conditioning
from ..conditioning import LatentState, Streams
from ..conditioning.attention_strength import extend_attention_mask
from ..conditioning.items.base import append_tokens
from ..pipelines.arguments import Start
from ..pipelines.conditions import LTX2ReferenceCondition
from ..pipelines.engine import first_latents, noised
from ..pipelines.plan import ClipPlan
from ..schedulers.levels import follow_levels, noise_levels
from .declarations import Conditional, Leaf
from .encoding import clip_of, given_as, videos_of


def _plan(components: Any, b: Any, **latents: Any) -> ClipPlan:
    """Sizes of all videos."""
    batch, device = videos_of(b), components._execution_device
    checks.check_generator(getattr(b, "generator", None), batch, torch.device(device))
    checks.check_float_tensors(**latents)
    return clip_of(components, b, batch, **latents)


class LTX2SetTimestepsStep(Leaf):
    """Chooses the noise levels."""

    def run(self, components: Any, b: Any) -> None:
        # Video tokens, by which some schedules shift; where there are conditions, theirs count.
        count = b.latents.shape[1] if hasattr(b, "latents") else clip_of(components, b).num_video_tokens
        wished = (b.num_inference_steps, b.sigmas, b.timesteps)
        levels = noise_levels(components.scheduler, count, *wished, default_steps=30)
        for scheduler in (components.scheduler, audio := copy.deepcopy(components.scheduler)):
            follow_levels(scheduler, levels, components._execution_device)
        b.timesteps, b.num_inference_steps, b.audio_scheduler = audio.timesteps, len(levels) - 1, audio


class LTX2ConditionSetTimestepsStep(LTX2SetTimestepsStep):
    """Chooses the noise levels, for all tokens that there are."""


class LTX2PrepareLatentsStep(Leaf):
    """Draws the noise that the video begins with, or lays it over given latents."""

    packed_noise = False

    def opened(self, components: Any, b: Any) -> ClipPlan:
        return _plan(components, b, latents=b.latents)

    def noise_scale(self, b: Any) -> float:  # noqa: ARG002 (other blocks read the noise levels)
        """What is laid over latents where a call does not say."""
        return 0.0

    def held(self, b: Any, state: LatentState, plan: ClipPlan) -> LatentState:  # noqa: ARG002 (there is nothing)
        """The tokens, held to what is given."""
        return state

    def run(self, components: Any, b: Any) -> None:
        plan, start = self.opened(components, b), Start(b.generator, b.latents, packed_noise=self.packed_noise)
        b.noise_scale = self.noise_scale(b) if b.noise_scale is None else b.noise_scale
        given = first_latents(components, start, plan).video
        state = plan.tools.video.create_initial_state(components._execution_device, initial_latent=given)
        states, is_given = Streams(self.held(b, state, plan), None), Streams(given is not None, False)
        state = noised(start, states, plan.tools, is_given, b.noise_scale).video
        count = b.base_token_count = plan.tools.video.num_tokens
        b.latents, b.clean_latents = state.latent, state.clean_latent
        b.conditioning_mask, b.appended_coords = 1 - state.denoise_mask, state.positions[:, :, count:]


class LTX2Image2VideoPrepareLatentsStep(Leaf):
    """Puts the pictures in the place of the first frame."""

    def opened(self, components: Any, b: Any) -> ClipPlan:
        plan, given = _plan(components, b), b.image_latents
        if given is not None and (not len(given) or plan.batch_size % len(given)):
            raise ValueError(
                f"`image` holds {len(given)} pictures, but there are {plan.batch_size} videos; give one, or one each"
            )
        return plan

    def run(self, components: Any, b: Any) -> None:
        plan, image = self.opened(components, b), b.image_latents.to(b.latents)
        tools = plan.tools.video
        noise = tools.patchifier.unpatchify(b.latents, plan.video)
        state = tools.create_initial_state(b.latents.device, initial_latent=noise)
        item = conditioning.VideoConditionByLatentIndex(image.repeat_interleave(plan.batch_size // len(image), 0))
        state = item.apply_to(state, tools)
        b.latents, b.conditioning_mask = state.latent, 1 - state.denoise_mask.squeeze(-1)


class LTX2ConditionPrepareLatentsStep(LTX2PrepareLatentsStep):
    """Lays noise over the video and over the pictures and clips that it shows, as far as they are not kept."""

    packed_noise = True

    def noise_scale(self, b: Any) -> float:
        return 1.0 if b.sigmas is None else float(b.sigmas[0])

    def held(self, b: Any, state: LatentState, plan: ClipPlan) -> LatentState:
        for latent, strength, index in zip(b.condition_latents, b.condition_strengths, b.condition_indices):
            if index == 0:
                item: Any = conditioning.VideoConditionByLatentIndex(latent, strength)
            else:
                frame = (index - 1) * plan.sizes.temporal_ratio + 1
                item = conditioning.VideoConditionByKeyframeIndex(latent, frame, strength)
            state = item.apply_to(state, plan.tools.video)
        return state


class LTX2InContextPrepareLatentsStep(LTX2ConditionPrepareLatentsStep):
    """The same with reference videos behind them."""

    def held(self, b: Any, state: LatentState, plan: ClipPlan) -> LatentState:
        state = super().held(b, state, plan)
        before = state.num_tokens
        if b.reference_latents is not None:
            counts = b.reference_token_counts
            parts = (b.reference_latents.split(counts, 1), b.reference_coords.split(counts, 2))
            given = given_as(LTX2ReferenceCondition, "reference_conditions", b.reference_conditions)
            for condition, tokens, coords in zip(given, *parts):
                tokens = tokens.to(state.latent).expand(plan.batch_size, -1, -1)
                state = append_tokens(state, plan.tools.video, tokens, coords, condition.strength)
        b.num_ref_tokens = state.num_tokens - before
        return state


class LTX2BuildVideoSelfAttentionMaskStep(Leaf):
    """Says how far the video and each reference see each other."""

    def run(self, components: Any, b: Any) -> None:  # noqa: ARG002 (blocks are called alike)
        batch, known, _ = b.latents.shape
        known, mask = known - b.num_ref_tokens, None
        for seen in b.reference_cross_mask.to(b.latents).split(b.reference_token_counts, 1):
            count = seen.shape[1]
            mask = extend_attention_mask(mask, b.base_token_count, known, count, seen.expand(batch, -1))
            known += count
        b.video_self_attention_mask = mask


class LTX2AutoBuildVideoSelfAttentionMaskStep(Conditional):
    """Says how far the video and its references see each other, if they do not do so fully."""

    def select_block(self, reference_conditions: Any = None, **seen: Any) -> Any:
        if not reference_conditions:
            return None
        # To choose the blocks of a workflow, inputs that are given are only known to be there.
        references = None if reference_conditions is True else reference_conditions
        given = given_as(LTX2ReferenceCondition, "reference_conditions", references)
        strengths = (seen.get("conditioning_attention_strength"), *(one.attention_strength for one in given))
        masks = (seen.get("conditioning_attention_mask"), *(one.attention_mask for one in given))
        is_full = all(strength in (None, 1) for strength in strengths) and all(mask is None for mask in masks)
        return None if is_full else "attention_mask"


class LTX2PrepareAudioLatentsStep(Leaf):
    """Draws the noise that the sound begins with, or lays it over given latents."""

    packed_noise = False

    def opened(self, components: Any, b: Any) -> ClipPlan:
        b.height = b.width = components.sizes.spatial_ratio
        return _plan(components, b, audio_latents=b.audio_latents)

    def run(self, components: Any, b: Any) -> None:
        plan, start = self.opened(components, b), Start(b.generator, None, b.audio_latents, self.packed_noise)
        given = first_latents(components, start, plan).audio
        state = plan.tools.audio.create_initial_state(components._execution_device, initial_latent=given)
        states, is_given = Streams(None, state), Streams(False, given is not None)
        made: Any = noised(start, states, plan.tools, is_given, b.noise_scale or 0.0).audio
        b.audio_latents, b.audio_num_frames = made.latent, plan.audio.frames


class LTX2ConditionPrepareAudioLatentsStep(LTX2PrepareAudioLatentsStep):
    """The same; noise is drawn for the sequence of tokens."""

    packed_noise = True


class LTX2PrepareCoordsStep(Leaf):
    """Says where each token lies, in seconds and pixels."""

    def run(self, components: Any, b: Any) -> None:
        plan, device = _plan(components, b), components._execution_device
        plan = replace(plan, audio=plan.audio._replace(frames=b.audio_num_frames))
        b.video_coords, b.audio_coords = (tools.positions(device) for tools in plan.tools)
        if hasattr(b, "appended_coords"):
            b.video_coords = torch.cat([b.video_coords, b.appended_coords.to(b.video_coords)], dim=2)


class LTX2ConditionPrepareCoordsStep(LTX2PrepareCoordsStep):
    """The same, with the tokens behind those of the video."""
