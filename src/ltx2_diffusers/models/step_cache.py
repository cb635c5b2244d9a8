"""What the blocks of the transformer added in an earlier step, used again: faster, and no longer exact.

Shapes: B batch, S tokens of a stream, D its width, L blocks.

The tokens of both streams leave the blocks as what they were plus what the blocks added. That changes little from one step
to the next, so that a step may add what an earlier one did instead of running the blocks. Every prediction of a forward
pass has its own memory: the passes of guidance never mix. [`StepCacheMixin`] takes the configurations of diffusers.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.hooks import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks.hooks import HookRegistry
from diffusers.hooks.mag_cache import nearest_interp
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastHook, PyramidAttentionBroadcastState
from diffusers.models.cache_utils import CacheMixin

Tokens = tuple[torch.Tensor, torch.Tensor]
BLOCK_CACHES = (FirstBlockCacheConfig, MagCacheConfig)
"""Caches that decide for all blocks at once; on networks of LTX-2 they do without hooks."""
# diffusers' patterns of these miss the attentions of most models with two streams, and the audio's projection.
_ATTENTIONS = [r"transformer_blocks\.\d+\.\w*attn\d?"]
_HEADS, _BLOCKS = ["proj_out", "audio_proj_out"], [r"transformer_blocks\.\d+"]


class StepCache(ABC):
    """What blocks added, for all predictions that read one prompt in one run.

    Attributes:
        lead: Blocks that run in every step, before it is decided whether the others do.
        index: Index of the prediction in its run, from 0; `None` counts the calls of each pass.
        skipped: Of each prediction of the last forward, whether it reused what the blocks added earlier.
        measured: Of each prediction of the last forward, what calibration has measured; empty without.
    """

    lead: int = 0

    def __init__(self) -> None:
        self.index: int | None = None
        self.skipped: list[bool] = []
        self.measured: list[float] = []
        self._added: dict[Hashable, Tokens] = {}

    def reused(self, keys: Sequence[Hashable], entered: Tokens, states: Sequence[Tokens]) -> list[Tokens | None]:
        """Tokens of both streams after the last block for predictions that need not be computed, `None` for others.

        Args:
            keys: What tells the predictions apart.
            entered: Tokens before the first block, the same for all predictions.
            states: Tokens of each prediction after the `lead` first blocks.
        """
        self.skipped = self._decide(keys, entered, states)
        pairs = zip(keys, states, self.skipped)
        return [_plus(state, self._added[key]) if skip else None for key, state, skip in pairs]

    def keep(self, keys: Sequence[Hashable], states: Sequence[Tokens], results: Sequence[Tokens]) -> None:
        """Remember what the blocks after the lead made of predictions that were computed."""
        for key, state, result in zip(keys, states, results):
            self._added[key] = _minus(result, state)

    @abstractmethod
    def _decide(self, keys: Sequence[Hashable], entered: Tokens, states: Sequence[Tokens]) -> list[bool]:
        """Of each prediction, whether it is reused."""


class FirstBlockCache(StepCache):
    """Reuses where the first block adds nearly what it did when the blocks ran last.

    Args:
        threshold: Change of what the first block adds, over its mean magnitude, below which all other blocks are reused;
            the largest of both streams and of all samples counts. 0 reuses nothing.
        group: Ranks that have to agree, because each has a part of the tokens.
    """

    lead = 1

    def __init__(self, threshold: float, group: Any = None) -> None:
        super().__init__()
        self.threshold, self.group = threshold, group
        self._first: dict[Hashable, Tokens] = {}

    def _decide(self, keys: Sequence[Hashable], entered: Tokens, states: Sequence[Tokens]) -> list[bool]:
        # Predictions that share the first block share what it added, too.
        added = {id(state): _minus(state, entered) for state in states}
        now = [added[id(state)] for state in states]
        known, skips = [key in self._first for key in keys], [False] * len(keys)
        if any(known) and self.threshold > 0:
            changes = torch.stack(
                [_change(self._first[key], new) for key, new in zip(keys, now) if key in self._first]
            )
            if self.group is not None:
                torch.distributed.all_reduce(changes, op=torch.distributed.ReduceOp.MAX, group=self.group)
            measured = iter(changes.tolist())
            skips = [was and next(measured) < self.threshold for was in known]
        self._first |= {key: new for key, new, skip in zip(keys, now, skips) if not skip}
        return skips


@dataclass
class _Magnitude:
    """How far a pass has gone since its blocks ran.

    Args:
        following: Index of its next prediction.
        ratio: Product of the ratios since.
        error: Sum of the distances of that product from 1.
        steps: Predictions since.
    """

    following: int = 0
    ratio: float = 1.0
    error: float = 0.0
    steps: int = 0


class MagnitudeCache(StepCache):
    """Reuses by a table of how the magnitude of what the blocks add changes from step to step.

    Args:
        config: diffusers' configuration.
        num_predictions: Predictions of the run, onto which the table is stretched; default those of the configuration.
    """

    def __init__(self, config: MagCacheConfig, num_predictions: int | None = None) -> None:
        super().__init__()
        self.config, self.length = config, num_predictions or config.num_inference_steps
        self.retained = int(config.retention_ratio * self.length + 0.5)
        self._ratios: list[float] = []
        if not config.calibrate:
            self._ratios = nearest_interp(torch.as_tensor(config.mag_ratios).float(), self.length).tolist()
        self._passes: dict[Hashable, _Magnitude] = {}

    def keep(self, keys: Sequence[Hashable], states: Sequence[Tokens], results: Sequence[Tokens]) -> None:
        """Remember what the blocks made of predictions that were computed."""
        before = {key: self._added[key] for key in keys if key in self._added}
        super().keep(keys, states, results)
        if self.config.calibrate:
            self.measured = [_growth(before[key], self._added[key]) if key in before else 1.0 for key in keys]

    def _decide(self, keys: Sequence[Hashable], entered: Tokens, states: Sequence[Tokens]) -> list[bool]:  # noqa: ARG002
        return [self._is_skipped(key) for key in keys]

    def _is_skipped(self, key: Hashable) -> bool:
        known = self._passes.setdefault(key, _Magnitude())
        if self.index is None and known.following >= self.length:
            # Whoever calls the network without a pipeline has begun a new run.
            known = self._passes[key] = _Magnitude()
            self._added.pop(key, None)
        index = known.following if self.index is None else self.index
        # Of a pass that is not made in every step, the steps without it count too.
        for step in range(max(known.following, self.retained), index + 1):
            known.ratio *= self._ratios[step] if step < len(self._ratios) else 1.0
            known.error += abs(1 - known.ratio)
            known.steps += 1
        known.following = index + 1
        config = self.config
        is_near = known.error <= config.threshold and known.steps <= config.max_skip_steps
        if index >= self.retained and key in self._added and is_near and not config.calibrate:
            return True
        known.ratio, known.error, known.steps = 1.0, 0.0, 0
        return False


class StepCacheMixin(CacheMixin):
    """diffusers' `enable_cache` for a network of two streams whose forward pass makes several predictions.

    Take it before diffusers' own mixins.
    """

    # Of a network that is called without a pipeline, which keeps its own.
    _step_caches: dict[str, StepCache]
    _context_name: str | None = None
    _pass_states: dict[tuple[int, str | None], PyramidAttentionBroadcastState]

    def enable_cache(self, config: Any) -> None:
        """Reuse in later steps what earlier ones computed: faster, and no longer exact.

        Both streams are reused, and every pass of guidance has its own memory, which lasts for one run.

        Args:
            config (`FirstBlockCacheConfig`, `MagCacheConfig`, `TaylorSeerCacheConfig` or
                `PyramidAttentionBroadcastConfig`): Of diffusers. The first two skip whole predictions: where the first block
                adds to both streams nearly what it did before, relative to `threshold` (0 skips nothing), or by a table of
                ratios, which is stretched to the length of the run. The other two skip layers; they keep their memory in
                the network, which then serves one call at a time.

        Raises:
            ValueError: If a cache is enabled already, or this one cannot work here.
        """
        if self.is_cache_enabled:
            enabled = type(self._cache_config).__name__
            raise ValueError(f"{enabled} is enabled already; call disable_cache() before another one")
        network: Any = self
        _check_config(config, len(network.transformer_blocks))
        self._step_caches, self._pass_states = {}, {}
        if isinstance(config, BLOCK_CACHES):
            self._cache_config: Any = config
            return
        taken = _all_layers(config) if isinstance(config, TaylorSeerCacheConfig) else config
        super().enable_cache(taken)

    def disable_cache(self) -> None:
        """Compute every step in full again, and forget what is kept."""
        super().disable_cache()
        self._step_caches, self._pass_states = {}, {}

    @property
    def caches_blocks(self) -> bool:
        """Whether a cache is enabled that decides for all blocks at once."""
        return isinstance(self._cache_config, BLOCK_CACHES)

    def new_step_cache(self, num_predictions: int | None = None) -> StepCache | None:
        """A fresh memory for one run and one prompt; `None` where no cache is enabled that decides for all blocks.

        Args:
            num_predictions (`int`, *optional*): Predictions of the run.
        """
        config = self._cache_config
        if isinstance(config, FirstBlockCacheConfig):
            return FirstBlockCache(config.threshold, self._token_group())
        return MagnitudeCache(config, num_predictions) if isinstance(config, MagCacheConfig) else None

    @contextmanager
    def cache_context(self, name: str, **kwargs: Any) -> Iterator[None]:
        """Keep what is cached within it apart from what is cached under other names.

        Args:
            name (`str`): Of the pass.
            kwargs: Fields of diffusers' `CacheContext`.
        """
        with super().cache_context(name, **kwargs):
            self._enter_context(name)
            try:
                yield
            finally:
                self._enter_context(None)

    def _enter_context(self, name: str | None) -> None:
        self._context_name = name
        if isinstance(self._cache_config, PyramidAttentionBroadcastConfig):
            # diffusers' hooks of this one have a single memory for all contexts.
            for hook in self._attention_hooks():
                key = (id(hook), name)
                hook.state = self._pass_states.setdefault(key, PyramidAttentionBroadcastState())

    def _attention_hooks(self) -> Iterator[PyramidAttentionBroadcastHook]:
        network: Any = self
        for registry in HookRegistry.check_if_exists_or_initialize(network)._get_child_registries():
            yield from (hook for hook in registry.hooks.values() if isinstance(hook, PyramidAttentionBroadcastHook))

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        super()._reset_stateful_cache(recurse)
        self._step_caches, self._pass_states = {}, {}

    def _usable_step_cache(self, given: StepCache | None) -> StepCache | None:
        """The memory that a call uses: the given one, or the network's own of the context; none while gradients are kept."""
        if not self.caches_blocks or torch.is_grad_enabled():
            return None
        if given is not None:
            return given
        if self._context_name is None:
            raise ValueError(
                f"{type(self._cache_config).__name__} is enabled, which has to know the pass; call the network within "
                'cache_context("conditional"), or disable_cache()'
            )
        fresh = self.new_step_cache()
        assert fresh is not None
        return self._step_caches.setdefault(self._context_name, fresh)

    def _token_group(self) -> Any:
        """Ranks among which the tokens are split."""
        parallel: Any = getattr(self, "_parallel_config", None)
        context = parallel and parallel.context_parallel_config
        return context._flattened_mesh.get_group() if context else None


def _check_config(config: Any, num_blocks: int) -> None:
    name = type(config).__name__
    known = (*BLOCK_CACHES, TaylorSeerCacheConfig, PyramidAttentionBroadcastConfig)
    if not isinstance(config, known):
        raise ValueError(
            f"`config` is {name}, which does not fit a network with video and audio and one pass after another; use "
            f"{', '.join(one.__name__ for one in known)}"
        )
    threshold = getattr(config, "threshold", 0.0)
    if not (threshold >= 0 and math.isfinite(threshold)):
        raise ValueError(f"`threshold` of {name} has to be at least 0 and finite but is {threshold}; use 0.05")
    if isinstance(config, FirstBlockCacheConfig) and num_blocks < 2:
        raise ValueError(f"{name} skips the blocks after the first, and this network has {num_blocks}; leave it out")
    if isinstance(config, MagCacheConfig):
        if not 0 <= config.retention_ratio <= 1:
            nearest = min(max(config.retention_ratio, 0.0), 1.0)
            raise ValueError(
                f"`retention_ratio` of {name} has to lie in [0, 1] but is {config.retention_ratio}; use {nearest}"
            )
        for field_name, least in (("max_skip_steps", 0), ("num_inference_steps", 1)):
            if getattr(config, field_name) < least:
                value = getattr(config, field_name)
                raise ValueError(f"`{field_name}` of {name} has to be at least {least} but is {value}; use {least}")
    if isinstance(config, TaylorSeerCacheConfig) and config.cache_interval < 1:
        raise ValueError(f"`cache_interval` of {name} has to be at least 1 but is {config.cache_interval}; use 1")


def _all_layers(config: TaylorSeerCacheConfig) -> TaylorSeerCacheConfig:
    """The same with the layers of both streams where it names none."""
    if config.use_lite_mode:
        return replace(config, use_lite_mode=False, cache_identifiers=_HEADS, skip_predict_identifiers=_BLOCKS)
    if config.cache_identifiers is None and config.skip_predict_identifiers is None:
        return replace(config, cache_identifiers=_ATTENTIONS)
    return config


def _plus(state: Tokens, added: Tokens) -> Tokens:
    return state[0] + added[0], state[1] + added[1]


def _minus(after: Tokens, before: Tokens) -> Tokens:
    return after[0] - before[0], after[1] - before[1]


def _change(before: Tokens, now: Tokens) -> torch.Tensor:
    """Largest mean change over mean magnitude, of streams that have tokens and of all samples; float32 scalar."""
    pairs = [(old, new) for old, new in zip(before, now) if new.shape[1]]
    # What was and stays zero, such as tokens that are not updated, has not changed.
    tiny = torch.finfo(torch.float32).tiny
    return torch.stack([(_magnitude(new - old) / _magnitude(old).clamp(min=tiny)).max() for old, new in pairs]).max()


def _magnitude(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.abs().mean(dim=(1, 2), dtype=torch.float32)


def _growth(before: Tokens, now: Tokens) -> float:
    """Mean ratio of the lengths of what was added to a token, of the video where there is one."""
    old, new = next((old, new) for old, new in zip(before, now) if new.shape[1])
    lengths = [torch.linalg.vector_norm(added.float(), dim=-1) for added in (new, old)]
    return (lengths[0] / (lengths[1] + 1e-8)).mean().item()
