"""From noisy states to guided predictions of the clean ones: which passes a step needs, and what becomes of them.

Shapes: B batch, T tokens of a stream, S text tokens, D features of a token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..conditioning.state import LatentState
from ..guidance.guiders import MultiModalGuider
from ..guidance.perturbations import stg_perturbations


class Streams(NamedTuple):
    """One value per stream; `None` for a stream that is absent."""

    video: Any
    audio: Any


@dataclass(frozen=True)
class TextContext:
    """What the two streams attend to: `video` `[B, S, Wv]` and `audio` `[B, S, Wa]`."""

    video: torch.Tensor
    audio: torch.Tensor

    def repeat(self, times: int) -> "TextContext":
        """Each prompt's context `times` times in a row."""
        return TextContext(self.video.repeat_interleave(times, 0), self.audio.repeat_interleave(times, 0))

    def split(self, sizes: list[int]) -> list["TextContext"]:
        """The batch cut into parts of the given sizes."""
        return [TextContext(*pair) for pair in zip(self.video.split(sizes), self.audio.split(sizes))]

    def stack(self, other: "TextContext") -> "TextContext":
        """This batch followed by the other one."""
        return TextContext(torch.cat([self.video, other.video]), torch.cat([self.audio, other.audio]))


class GuidedDenoiser:
    """Predicts clean tokens from noisy ones, combining as few transformer passes as the guidance needs.

    A term whose weight is neutral for both streams costs no pass. The negative and the positive prompt share one
    batched pass; the perturbed and the isolated pass follow it. One object serves one run: it remembers the last
    prediction for guiders that skip steps.

    Args:
        transformer: The network; called with sigma * 1000 as timestep, returns velocities.
        positive: Contexts of the prompts.
        negative: Contexts of the negative prompts; needed if a guider uses them.
        guiders: Guider of each stream, `None` for an absent stream.
        cross_timestep: Whose noise level modulates the exchange between the streams: `"own"`, `"other"` or `"gate"`.
        attention_kwargs: Passed to the transformer.
    """

    def __init__(
        self,
        transformer: torch.nn.Module,
        positive: TextContext,
        negative: TextContext | None,
        guiders: Streams,
        cross_timestep: str = "own",
        attention_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.transformer = transformer
        self.positive = positive
        self.guiders = guiders
        self.cross_timestep = cross_timestep
        self.attention_kwargs = attention_kwargs
        present: list[MultiModalGuider] = [guider for guider in guiders if guider is not None]
        self.uses_negative = any(guider.do_unconditional_generation() for guider in present)
        self.uses_perturbed = any(guider.do_perturbed_generation() for guider in present)
        # Without the other stream there is nothing to isolate a stream from.
        self.uses_isolated = len(present) == 2 and any(guider.do_isolated_modality_generation() for guider in present)
        if self.uses_negative and negative is None:
            raise ValueError("classifier-free guidance needs a negative context; encode the negative prompt too")
        self.stacked = negative.stack(positive) if self.uses_negative else None
        self.previous = Streams(None, None)
        self.negative = Streams(None, None)
        # What depends on a tensor that stays the same object through a run: (the tensor, the result) by its id.
        self._uniform: dict[int, tuple[torch.Tensor, bool]] = {}
        self._doubled: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def forwards_per_step(self) -> int:
        """Predictions that the transformer makes in a step that skips nothing."""
        return 1 + self.uses_negative + self.uses_perturbed + self.uses_isolated

    @torch.no_grad()
    def __call__(self, states: Streams, sigma: torch.Tensor, step: int) -> Streams:
        """Guided float32 predictions of the clean tokens `[B, T, D]`, not yet blended with given ones.

        Args:
            states: `LatentState` of each stream.
            sigma: Noise level, a float32 scalar tensor.
            step: Index of the step, which decides what guiders skip.
        """
        skipped = Streams(
            *(
                before is not None and guider.should_skip_step(step)
                for guider, before in zip(self.guiders, self.previous)
            )
        )
        running = [i for i, state in enumerate(states) if state is not None and not skipped[i]]
        if running:
            passes = self._passes(states, sigma, skipped)
            predictions = list(self.previous)
            for i in running:
                predictions[i] = self.guiders[i].calculate(*(None if p is None else p[i] for p in passes))
            self.previous = Streams(*predictions)
        return self.previous

    def _passes(self, states: Streams, sigma: torch.Tensor, skipped: Streams) -> list[Streams | None]:
        """Predictions of the conditional, negative, perturbed and isolated pass; `None` for one that is not needed."""
        inputs = self._inputs(states, sigma, skipped)
        positive = _context_inputs(self.positive)
        negative = perturbed = isolated = None
        if self.uses_negative:
            doubled = {
                # The transformer recognises coordinates by their identity and keeps its rotary tables.
                name: _remembered(self._doubled, value, _doubled) if name.endswith("_coords") else _doubled(value)
                for name, value in inputs.items()
            }
            velocities = self._forward("cond_uncond", {**doubled, **_context_inputs(self.stacked)})
            halves = zip(*((None, None) if v is None else v.chunk(2) for v in velocities))
            negative, conditional = (_to_clean(states, Streams(*half), sigma) for half in halves)
            self.negative = negative
        else:
            conditional = _to_clean(states, self._forward("cond", {**inputs, **positive}), sigma)
        if self.uses_perturbed:
            masks = self._keep_masks(states)
            velocities = self._forward("perturbed", {**inputs, **positive, "perturbation_keep_masks": masks})
            perturbed = _to_clean(states, velocities, sigma)
        if self.uses_isolated:
            velocities = self._forward("isolated", {**inputs, **positive, "isolate_modalities": True})
            isolated = _to_clean(states, velocities, sigma)
        return [conditional, negative, perturbed, isolated]

    def _forward(self, name: str, inputs: dict[str, Any]) -> Streams:
        # Caching hooks keep the passes of a step apart by this name.
        with self.transformer.cache_context(name):
            return Streams(
                *self.transformer(
                    **inputs,
                    cross_timestep_mode=self.cross_timestep,
                    attention_kwargs=self.attention_kwargs,
                    return_dict=False,
                )
            )

    def _inputs(self, states: Streams, sigma: torch.Tensor, skipped: Streams) -> dict[str, Any]:
        """Arguments of the transformer which all passes share."""
        inputs: dict[str, Any] = dict.fromkeys(("hidden_states", "audio_hidden_states", "timestep"))
        for prefix, key, state, skip in zip(("", "audio_"), ("video", "audio"), states, skipped):
            if state is None:
                continue
            timestep = sigma.to(state.latent.device) * self.transformer.config.timestep_scale_multiplier
            batch = timestep.expand(state.latent.shape[0])
            inputs[f"{prefix}hidden_states"] = state.latent.to(self.positive.video.dtype)
            # A stream that is denoised everywhere has one noise level per sample instead of one per token.
            inputs[f"{prefix}timestep"] = batch if self._is_uniform(state) else timestep * state.denoise_mask
            inputs[f"{prefix}sigma"] = torch.zeros_like(batch) if state.frozen else batch
            inputs[f"{key}_coords"] = state.positions
            inputs[f"{key}_enabled"] = not skip
        video = states.video
        if video is not None:
            inputs["video_self_attention_mask"] = video.attention_mask
            inputs["video_keyframes_mask"] = video.keyframes_mask
        return inputs

    def _is_uniform(self, state: LatentState) -> bool:
        """Whether every token is denoised fully; the mask stays the same object through a run, so it is read once."""
        return _remembered(self._uniform, state.denoise_mask, lambda mask: bool((mask == 1).all()))

    def _keep_masks(self, states: Streams) -> torch.Tensor:
        """Which attention the perturbed pass keeps, `[4, blocks, B]`; on the CPU, where the transformer reads it."""
        blocks = (
            guider.params.stg_blocks if guider is not None and guider.do_perturbed_generation() else ()
            for guider in self.guiders
        )
        batch_size = next(state for state in states if state is not None).latent.shape[0]
        return stg_perturbations(batch_size, *blocks).keep_masks(self.transformer.config.num_layers)


def _context_inputs(context: TextContext) -> dict[str, torch.Tensor]:
    return {"encoder_hidden_states": context.video, "audio_encoder_hidden_states": context.audio}


def _remembered(store: dict[int, tuple[torch.Tensor, Any]], key: torch.Tensor, compute: Callable) -> Any:
    known = store.get(id(key))
    if known is None or known[0] is not key:
        known = store[id(key)] = (key, compute(key))
    return known[1]


def _doubled(value: Any) -> Any:
    return torch.cat([value, value]) if isinstance(value, torch.Tensor) else value


def _to_clean(states: Streams, velocities: Streams, sigma: torch.Tensor) -> Streams:
    """Clean tokens from velocities, in float32 and at each token's own noise level."""
    return Streams(
        *(
            None
            if state is None
            else state.latent.float() - sigma.to(state.latent.device) * state.denoise_mask * velocity.float()
            for state, velocity in zip(states, velocities)
        )
    )
