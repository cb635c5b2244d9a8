"""From noisy states to guided predictions of the clean ones: which passes a step needs, and what becomes of them.

Shapes: B batch, T tokens of a stream, S text tokens, D features of a token.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch

from ..checks import check_choice
from ..conditioning.state import LatentState
from ..conditioning.streams import States, Streams, Tensors, TextContext, on_streams
from ..guidance.guiders import MultiModalGuider
from ..guidance.options import GuidanceOptions
from ..guidance.perturbations import isolating_perturbations, stg_perturbations
from ..guidance.scales import Guiders, Scales, changed_guiders
from ..models.block_graphs import graphs_of
from ..models.mixed_precision import input_dtype
from ..models.negative_text import NagWeights, NegativeText
from ..models.step_cache import StepCache
from ..models.text_cache import TextCache
from ..models.transformer import LTX2AVTransformer3DModel
from .ranks import PassShare

# What is predicted before the first pass, and by a pass that is not made.
_NOTHING: Tensors = Streams(None, None)
# Passes by name, and which attention each keeps `[4, blocks, B]`; `None` keeps all.
KeepMasks = dict[str, torch.Tensor | None]


@dataclass(frozen=True)
class PassLayout:
    """How the passes of a step are made; results differ by rounding at most.

    Args:
        batched: Whether all passes are one batch, so that weights are read and kernels launched once in a step. It takes as
            much more memory beside them, and computes what passes share once for each. `"auto"`, which is what pipelines
            begin with, has it so where it is faster, see [`one_batch_is_faster`]; default `False`: one pass after another.
        keeps_text: Whether keys and values of the text are kept between steps where they do not depend on the noise
            level (2.0). Costs 1.2 GB per prompt at full size in half precision. Default `True`.
        group: Process group of `torch.distributed` whose ranks share the passes; all of them have to make the same call.
            Default `None`, every process makes all of them.
    """

    batched: bool | Literal["auto"] = False
    keeps_text: bool = True
    group: Any = None

    def __post_init__(self) -> None:
        check_choice("batched", self.batched, (True, False, "auto"))
        if self.batched is True and self.group is not None:
            raise ValueError("`batched` is True, but the ranks of `group` make passes apart; leave one of them out")


ONE_BY_ONE = PassLayout()


def launch_bound_tokens(device: torch.device, is_recorded: bool) -> int:
    """Up to how many tokens a forward pass takes the same time, because something else than computing takes longer.

    On a CUDA device that is the launching of some thousand kernels, or, with those recorded as CUDA graphs, the reading of
    the weights; numbers are those of an H100. On other devices it is none.
    """
    if device.type != "cuda":
        return 0
    return 256 if is_recorded else 2048


def one_batch_is_faster(tokens: int, passes: int, apart: float, bound: int) -> bool:
    """Whether the passes of a step are faster as one batch than one after another.

    A forward pass takes as long as its tokens, and never less than one of `bound` tokens.

    Args:
        tokens: Tokens of one pass, of both streams and all samples.
        passes: Number of passes.
        apart: What they compute one after another, in passes: blocks that several share are run once.
        bound: See [`launch_bound_tokens`].
    """
    return max(bound, passes * tokens) < apart * max(bound, tokens)


class NeededPasses(NamedTuple):
    """Which passes a step makes beside the conditional one."""

    negative: bool
    perturbed: bool
    isolated: bool


class GuidedDenoiser:
    """Predicts clean tokens from noisy ones, combining as few transformer passes as the guidance needs.

    A term whose weight is neutral for both streams costs no pass, and passes share what they have in common. One
    object serves one run: it remembers the last prediction for guiders that skip steps, and what an enabled cache of the
    transformer keeps.

    Args:
        transformer: The network; called with sigma * 1000 as timestep, returns velocities.
        positive: Contexts of the prompts.
        negative: Contexts of the negative prompts; needed if a guider or `nag` uses them.
        guiders: Guider of each stream, `None` for an absent stream.
        cross_timestep: Whose noise level modulates the exchange between the streams: `"own"`, `"other"` or `"gate"`.
        attention_kwargs: Passed to the transformer.
        nag: How strongly the negative prompts act in the attention to the text of all passes that read the prompts;
            default not at all.
        layout: How the passes are made. With `nag`, and with what caches between steps, they are never one batch; what
            caches between steps excludes ranks that share them.

    Attributes:
        num_predictions: Predictions of the run, if known before it; some caches stretch their schedule to it.
    """

    num_predictions: int | None = None

    def __init__(
        self,
        transformer: LTX2AVTransformer3DModel,
        positive: TextContext,
        negative: TextContext | None,
        guiders: Guiders,
        cross_timestep: str = "own",
        attention_kwargs: dict[str, Any] | None = None,
        nag: NagWeights | None = None,
        layout: PassLayout = ONE_BY_ONE,
    ) -> None:
        self.transformer = transformer
        # The latents follow the contexts, and both the network.
        dtype = input_dtype(transformer, positive.video.dtype)
        positive, negative = positive.to(dtype), negative and negative.to(dtype)
        self.positive = positive
        self.cross_timestep = cross_timestep
        self.attention_kwargs = attention_kwargs
        self.guide_by(guiders)
        if (self.needed.negative or nag is not None) and negative is None:
            raise ValueError(
                "classifier-free and normalized attention guidance need a negative context; encode the negative prompt too"
            )
        self.negative_context = negative
        self.layout = layout
        self._batch: _Batch | None = None
        self.positive_cache, self.negative_cache = (TextCache() if layout.keeps_text else None for _ in range(2))
        self.negative_text = None
        if nag is not None and negative is not None:
            # The pass with the negative prompt, if there is one, reads the same keys and values.
            self.negative_text = NegativeText(negative.video, negative.audio, nag, self.negative_cache)
        self.previous = self.negative = _NOTHING
        self._predictions, self._forwards, self._measured = 0, dict[str, int](), dict[str, list[float]]()
        self._memories: dict[int, StepCache | None] = {}
        self._share = None if layout.group is None else PassShare(self._names(self.needed), layout.group)
        if transformer.is_cache_enabled:
            if self._share is not None:
                raise ValueError(
                    "the passes of a step are shared among ranks, which do not know what a cache of the transformer skips on "
                    'others; call transformer.disable_cache(), or enable_parallelism("tokens")'
                )
            # Hooks of the host library keep what they cache in the network, where another run may have left something.
            transformer._reset_stateful_cache()
        self._uniform: dict[int, tuple[torch.Tensor, bool]] = {}

    def guide_by(self, guiders: Guiders) -> None:
        """Combine the passes of the steps to come by these guiders, one for each stream that is there."""
        self.guiders = guiders
        self.needed = self._needs([part for guider in guiders if guider is not None for part in guider.parts()])

    def changed_guiders(self, before: Scales, scales: Scales, options: GuidanceOptions | None) -> Guiders:
        """Guiders for the steps to come by scales that somebody has changed in the middle of the run.

        Args:
            before: Scales of the steps so far.
            scales: Scales of the steps to come.
            options: Options of the run.
        """
        guiders = changed_guiders(self.guiders, before, scales, options)
        reads_negative = any(guider is not None and guider.do_unconditional_generation() for guider in guiders)
        if reads_negative and self.negative_context is None:
            raise ValueError(
                f"a step callback has set the guidance scales (video, audio) to ({scales.video.cfg_scale}, "
                f"{scales.audio.cfg_scale}), but the call began without classifier-free guidance and has not read the "
                "negative prompt; begin with a `guidance_scale` other than 1, such as 1.01"
            )
        return guiders

    @property
    def passes(self) -> dict[str, dict[str, Any]]:
        """How often each pass was computed so far, `forwards`, and the share of predictions that did without, `skip_ratio`.

        A prediction does without a pass whose scale is neutral at its noise level, which a skipped step leaves out, or which
        an enabled cache replaces by what an earlier one computed. `mag_ratios` are what a `MagCacheConfig` that calibrates
        has measured.
        """
        return {
            name: {
                "forwards": made,
                "skip_ratio": round(1 - made / self._predictions, 4),
                **({"mag_ratios": self._measured[name]} if name in self._measured else {}),
            }
            for name, made in self._forwards.items()
        }

    @property
    def forwards_per_prediction(self) -> int:
        """Most passes of the transformer for a guided prediction."""
        return 1 + sum(self.needed)

    def _needs(self, guiders: Sequence[MultiModalGuider]) -> NeededPasses:
        return NeededPasses(
            any(guider.do_unconditional_generation() for guider in guiders),
            any(guider.do_perturbed_generation() for guider in guiders),
            # Without the other stream there is nothing to isolate a stream from.
            None not in self.guiders and any(guider.do_isolated_modality_generation() for guider in guiders),
        )

    @torch.no_grad()
    def __call__(self, states: States, sigma: torch.Tensor, step: int) -> Tensors:
        """Guided float32 predictions of the clean tokens `[B, T, D]`, not yet blended with given ones.

        Args:
            states: `LatentState` of each stream.
            sigma: Noise level, a float32 scalar tensor.
            step: Index of the step, which decides what guiders skip.
        """
        level = sigma.item()
        self._predictions += 1
        guiders = on_streams(lambda guider: guider.at_sigma(level), self.guiders)
        pairs = zip(guiders, self.previous)
        skipped = Streams(*(g is not None and before is not None and g.should_skip_step(step) for g, before in pairs))
        if any(state is not None and not skip for state, skip in zip(states, skipped)):
            passes = self._passes(states, sigma, skipped, guiders)
            streams = zip(states, guiders, skipped, self.previous, *passes)
            self.previous = Streams(
                *(
                    before if state is None or guider is None or skip else _guided(guider, state, sigma, *velocities)
                    for state, guider, skip, before, *velocities in streams
                )
            )
        return self.previous

    def _passes(
        self, states: States, sigma: torch.Tensor, skipped: Streams[bool], guiders: Streams[MultiModalGuider | None]
    ) -> list[Tensors]:
        """Velocities of the conditional, negative, perturbed and isolated pass; `None`s for one that is not needed."""
        inputs = self._inputs(states, sigma, skipped)
        # What only a skipped stream would need is not needed.
        needed = self._needs([guider for guider, skip in zip(guiders, skipped) if guider is not None and not skip])
        masks = self._keep_masks(states, guiders, needed)
        passes = self._made(masks, inputs, needed.negative)
        if needed.negative:
            # A skipped stream's tokens did not move, so that its prediction of this pass means nothing.
            clean = on_streams(partial(_clean, sigma=sigma), states, passes["negative"])
            streams = zip(self.negative, clean, skipped)
            self.negative = Streams(*(old if skip else new for old, new, skip in streams))
        return [passes.get(name, _NOTHING) for name in ("conditional", "negative", "perturbed", "isolated")]

    def _made(self, masks: KeepMasks, inputs: dict[str, Any], with_negative: bool) -> dict[str, Streams[Any]]:
        """Velocities of all passes."""
        negative = self.negative_context if with_negative else None
        is_alone = len(masks) == 1 and negative is None
        if not is_alone and self._is_one_batch(masks, inputs, negative):
            together = self._forward_together(masks, inputs, negative)
            self._count(together)
            return together
        if self._share is None or is_alone:
            return self._one_by_one(masks, inputs, negative)
        names = [*masks, *(["negative"] if negative is not None else [])]
        mine = self._share.mine(names)
        own = {name: mask for name, mask in masks.items() if name in mine}
        made = self._one_by_one(own, inputs, negative if "negative" in mine else None)
        self._count(name for name in names if name not in mine)
        return self._share.exchanged(names, made, Streams(inputs["hidden_states"], inputs["audio_hidden_states"]))

    def _is_one_batch(self, masks: KeepMasks, inputs: dict[str, Any], negative: TextContext | None) -> bool:
        """Whether several passes are made as one batch."""
        if self.negative_text or self.transformer.is_cache_enabled or self._share is not None:
            return False
        if self.layout.batched != "auto":
            return self.layout.batched
        streams = [x for x in (inputs["hidden_states"], inputs["audio_hidden_states"]) if x is not None]
        bound = launch_bound_tokens(streams[0].device, graphs_of(self.transformer) is not None)
        passes = len(masks) + (negative is not None)
        shared = sum(_shared_blocks(mask) for mask in masks.values() if mask is not None)
        apart = passes - shared / self.transformer.config.num_layers
        return one_batch_is_faster(sum(x.shape[0] * x.shape[1] for x in streams), passes, apart, bound)

    @staticmethod
    def _names(needed: NeededPasses) -> list[str]:
        """Names of the passes, those that share blocks one after the other."""
        wanted = {"perturbed": needed.perturbed, "isolated": needed.isolated, "negative": needed.negative}
        return ["conditional", *(name for name, is_needed in wanted.items() if is_needed)]

    def _one_by_one(
        self, masks: KeepMasks, inputs: dict[str, Any], negative: TextContext | None
    ) -> dict[str, Streams[Any]]:
        """Velocities of passes, one after another."""
        # The passes of the positive prompt differ in what they leave out, and share all blocks before the first such.
        shared = {**inputs, "negative_text": self.negative_text}
        texts = [(0, masks, shared, self.positive, self.positive_cache)] if masks else []
        if negative is not None:
            texts.append((1, {"negative": None}, inputs, negative, self.negative_cache))
        passes: dict[str, Streams[Any]] = {}
        for index, own_masks, own_inputs, context, text_cache in texts:
            memory = self._memory(index)
            passes |= self._forward(own_masks, own_inputs, context, text_cache, memory)
            self._count(own_masks, memory)
        return passes

    def _count(self, names: Iterable[str], memory: StepCache | None = None) -> None:
        """Note which passes were computed, and what was measured of them."""
        names = list(names)
        skipped = [False] * len(names) if memory is None else memory.skipped
        for name, skip in zip(names, skipped):
            self._forwards[name] = self._forwards.get(name, 0) + (not skip)
        for name, ratio in zip(names, () if memory is None else memory.measured):
            self._measured.setdefault(name, []).append(round(ratio, 5))

    def _memory(self, text: int) -> StepCache | None:
        """What an enabled cache keeps between steps of the passes that read a prompt, if it does not keep it itself.

        Args:
            text: 0 for the prompt, 1 for the negative one.
        """
        if not self.transformer.is_cache_enabled:
            return None
        if text not in self._memories:
            self._memories[text] = self.transformer.new_step_cache(self.num_predictions)
        memory = self._memories[text]
        if memory is not None:
            memory.index = self._predictions - 1
        return memory

    def _forward_together(
        self, masks: KeepMasks, inputs: dict[str, Any], negative: TextContext | None
    ) -> dict[str, Streams[Any]]:
        """Velocities of passes that are one batch, the samples of each in a row."""
        names = [*masks, *(["negative"] if negative is not None else [])]
        batch = self._batch
        if batch is None or batch.names != names:
            contexts = [negative if name == "negative" and negative is not None else self.positive for name in names]
            batch = self._batch = _Batch(names, contexts, TextCache() if self.layout.keeps_text else None)
        keep = [masks.get(name) for name in names]
        rows = next((mask for mask in keep if mask is not None), None)
        joined = None
        if rows is not None:
            joined = torch.cat([torch.ones_like(rows) if mask is None else mask for mask in keep], dim=-1)
        repeated = {key: batch.repeated(key, value) for key, value in inputs.items()}
        velocities = self._forward({"all": joined}, repeated, batch.context, batch.text_cache)["all"]
        size = len(self.positive.video)
        rows_of = [(None,) * len(names) if one is None else one.split(size) for one in velocities]
        return {name: Streams(*pair) for name, *pair in zip(names, *rows_of)}

    def _forward(
        self,
        masks: KeepMasks,
        inputs: dict[str, Any],
        context: TextContext,
        text_cache: TextCache | None,
        memory: StepCache | None = None,
    ) -> dict[str, Streams[Any]]:
        """Velocities of passes that read the same text."""
        call = partial(
            self.transformer,
            **inputs,
            encoder_hidden_states=context.video,
            audio_encoder_hidden_states=context.audio,
            **({} if context.mask is None else {"encoder_attention_mask": context.mask}),
            cross_timestep_mode=self.cross_timestep,
            attention_kwargs=self.attention_kwargs,
            text_cache=text_cache,
            return_dict=False,
        )
        if memory is not None or not self.transformer.is_cache_enabled:
            results = call(perturbation_keep_masks=list(masks.values()), step_cache=memory)
            return {name: Streams(*velocities) for name, velocities in zip(masks, results)}
        passes = {}
        for name, mask in masks.items():
            # Hooks that cache between steps keep the passes of a step apart by this name.
            with self.transformer.cache_context(name):
                passes[name] = Streams(*call(perturbation_keep_masks=mask))
        return passes

    def _inputs(self, states: States, sigma: torch.Tensor, skipped: Streams[bool]) -> dict[str, Any]:
        """Arguments of the transformer which all passes share."""
        inputs: dict[str, Any] = dict.fromkeys(("hidden_states", "audio_hidden_states", "timestep"))
        for prefix, key, state, skip in zip(("", "audio_"), ("video", "audio"), states, skipped):
            if state is None:
                continue
            level, scale = sigma.to(state.latent.device), self.transformer.config.timestep_scale_multiplier
            timestep = level * scale
            batch = timestep.expand(state.latent.shape[0])
            inputs[f"{prefix}hidden_states"] = state.latent.to(self.positive.video.dtype)
            # A stream that is denoised everywhere has one noise level per sample instead of one per token.
            inputs[f"{prefix}timestep"] = batch if self._is_uniform(state) else state.levels(level, scale)
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
        known = self._uniform.get(id(state.denoise_mask))
        if known is None or known[0] is not state.denoise_mask:
            known = (state.denoise_mask, bool((state.denoise_mask == 1).all()))
            self._uniform[id(state.denoise_mask)] = known
        return known[1]

    def _keep_masks(
        self, states: States, guiders: Streams[MultiModalGuider | None], needed: NeededPasses
    ) -> KeepMasks:
        """The passes of the positive prompt and which attention each keeps, `[4, blocks, B]` on the CPU."""
        batch_size = next(state for state in states if state is not None).latent.shape[0]
        num_layers = self.transformer.config.num_layers
        masks: KeepMasks = {"conditional": None}
        if needed.perturbed:
            blocks = [g.params.stg_blocks if g and g.do_perturbed_generation() else () for g in guiders]
            masks["perturbed"] = stg_perturbations(batch_size, *blocks).keep_masks(num_layers)
        if needed.isolated:
            masks["isolated"] = isolating_perturbations(batch_size).keep_masks(num_layers)
        return masks


class _Batch:
    """What the passes of a step share that are one batch: their texts, and tensors that stay the same from step to step.

    Args:
        names: Names of the passes.
        contexts: What each reads.
        text_cache: Where keys and values of the texts are kept.
    """

    def __init__(self, names: list[str], contexts: Sequence[TextContext], text_cache: TextCache | None) -> None:
        self.names, self.text_cache = names, text_cache
        self.context = TextContext.joined(contexts)
        self._known: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def repeated(self, key: str, value: Any) -> Any:
        """An argument of one pass for all of them; the same tensor for the same one, by which networks know positions."""
        if not isinstance(value, torch.Tensor):
            return value
        if key not in self._known or self._known[key][0] is not value:
            self._known[key] = (value, value.repeat(len(self.names), *(1 for _ in value.shape[1:])))
        return self._known[key][1]


def _shared_blocks(mask: torch.Tensor) -> int:
    """How many blocks `[4, blocks, B]` there are before the first one that a pass perturbs."""
    perturbs = (mask != 1).any(dim=-1).any(dim=0).tolist()
    return perturbs.index(True) if True in perturbs else len(perturbs)


def to_clean(states: States, velocities: Streams[Any], sigma: torch.Tensor) -> Tensors:
    """Clean tokens of both streams from velocities, see [`_clean`]."""
    return on_streams(partial(_clean, sigma=sigma), states, velocities)


def _clean(state: LatentState, velocity: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Clean tokens from velocities, in float32 and at each token's own noise level."""
    return state.latent.float() - state.levels(sigma.to(state.latent.device)) * velocity.float()


def _guided(
    guider: MultiModalGuider, state: LatentState, sigma: torch.Tensor, cond: torch.Tensor, *others: torch.Tensor | None
) -> torch.Tensor:
    """The guided prediction of the clean tokens of a stream from the velocities of its passes."""
    if guider.on_velocities:
        return _clean(state, guider.calculate(cond, *others), sigma)
    clean = (None if one is None else _clean(state, one, sigma) for one in others)
    return guider.calculate(_clean(state, cond, sigma), *clean)
