"""diffusers' networks of LTX-Video as the engine calls its own.

Shapes: B batch, T tokens, S text tokens, C channels, F latent frames, h and w latent rows and columns, L blocks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from ...models.step_cache import BLOCK_CACHES
from .guidance import SKIP_MODES

TIMESTEP_SCALE = 1000.0
_WHOLE_BLOCKS = "transformer_block"

# What a forward leaves out: a mode of `SKIP_MODES`, and a mask `[L, B]` of the blocks that stay (1). Of the thread that makes a
# perturbed pass; others may use the same network meanwhile.
_SKIPPED: ContextVar[tuple[str, torch.Tensor] | None] = ContextVar("skipped", default=None)
_PASSED_ON = ("hidden_states", "encoder_hidden_states", "encoder_attention_mask", "timestep", "attention_kwargs")


class LTXVideoNetwork(torch.nn.Module):
    """A transformer of LTX-Video, with what the denoiser asks of a transformer.

    Args:
        transformer: The `LTXVideoTransformer3DModel`, which is used as it is.
        stg_mode: What perturbed passes do to blocks, one of `SKIP_MODES`.

    Raises:
        ValueError: If a cache is enabled that does not know the passes of this family apart.
    """

    def __init__(self, transformer: Any, stg_mode: str = "attention_values") -> None:
        super().__init__()
        config = getattr(transformer, "_cache_config", None)
        if config is not None and (not isinstance(config, BLOCK_CACHES) or SKIP_MODES[stg_mode] == _WHOLE_BLOCKS):
            known = " or ".join(cache.__name__ for cache in BLOCK_CACHES)
            raise ValueError(
                f"enable_cache() of a transformer of LTX-Video was given {type(config).__name__}, with stg_mode={stg_mode!r}; use "
                f"{known}, with a `stg_mode` other than {_WHOLE_BLOCKS!r}, or call its disable_cache()"
            )
        self.transformer, self.mode = transformer, SKIP_MODES[stg_mode]
        layers = transformer.config.num_layers
        self.config = SimpleNamespace(num_layers=layers, timestep_scale_multiplier=TIMESTEP_SCALE)
        self.dtype, self.hf_quantizer = transformer.dtype, getattr(transformer, "hf_quantizer", None)
        self.is_cache_enabled = transformer.is_cache_enabled
        self.cache_context, self._reset_stateful_cache = transformer.cache_context, transformer._reset_stateful_cache

    def new_step_cache(self, num_predictions: int | None) -> SimpleNamespace:  # noqa: ARG002
        """What is told of the passes of a run that read one prompt: which of them did without the blocks in the last step.

        What they cache is in hooks of diffusers, for any number of predictions.
        """
        return SimpleNamespace(index=None, skipped=[], measured=[])

    def forward(
        self,
        *,
        video_coords: torch.Tensor,
        perturbation_keep_masks: list[torch.Tensor | None],
        step_cache: SimpleNamespace | None = None,
        **given: Any,
    ) -> list[tuple[torch.Tensor, None]]:
        """Velocities of passes, `(video, None)` of each.

        Args:
            video_coords: Seconds, pixel rows and columns where tokens begin and end, `[B, 3, T, 2]`.
            perturbation_keep_masks: For each pass what it keeps, `[4, L, B]`; `None` keeps all.
            step_cache: Made by `new_step_cache`, while a cache is enabled.
            given: What the transformer takes itself: noisy tokens `hidden_states` `[B, T, C]`, the text
                `encoder_hidden_states` `[B, S, W]` and its `encoder_attention_mask` `[B, S]`, the noise level times 1000 as
                `timestep`, `[B]`, or `[B, T, 1]` with one for each token, and `attention_kwargs`. What is of the other
                stream, and of versions that modulate by more, is left out.
        """
        taken = {name: given.get(name) for name in _PASSED_ON}
        # The network reads one position per token, its first frame and upper left corner.
        call = partial(self.transformer, **taken, video_coords=video_coords[..., 0], return_dict=False)
        if step_cache is None:
            return [self._passed(call, mask) for mask in perturbation_keep_masks]
        step_cache.skipped, made = [], []
        for index, mask in enumerate(perturbation_keep_masks):
            # Hooks keep the passes of a step apart by this name.
            with self.transformer.cache_context(f"{id(step_cache)} {index}"):
                made.append(self._passed(call, mask))
                step_cache.skipped.append(not self._first_hook_state().should_compute)
        return made

    def _first_hook_state(self) -> Any:
        """What the cache's hook of the first block has decided for the blocks of the pass."""
        hooks = self.transformer.transformer_blocks[0]._diffusers_hook.hooks.values()
        return next(hook.state_manager.get_state() for hook in hooks if hasattr(hook, "state_manager"))

    def _passed(self, call: Any, keep: torch.Tensor | None) -> tuple[torch.Tensor, None]:
        if keep is None or self.mode == "residual":
            return call()[0], None
        with self._leaving_out(keep[0]):
            return call()[0], None

    @contextmanager
    def _leaving_out(self, keep: torch.Tensor) -> Iterator[None]:
        """Leave out, in the forward of this thread, blocks of samples that are 0 in a mask `[L, B]`."""
        for index in (keep.amin(dim=1) == 0).nonzero()[:, 0].tolist():
            block = self.transformer.transformer_blocks[index]
            module = block if self.mode == _WHOLE_BLOCKS else block.attn1
            # Once put there, a hook stays: it does nothing unless this thread asks for it.
            if not any(getattr(hook, "func", None) is _left_out for hook in module._forward_hooks.values()):
                module.register_forward_hook(partial(_left_out, index), with_kwargs=True)
        token = _SKIPPED.set((self.mode, keep))
        try:
            yield
        finally:
            _SKIPPED.reset(token)


def _left_out(index: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> Any:
    """What comes of a block, or of its self-attention, in place of its output `[B, T, D]`."""
    skipped = _SKIPPED.get()
    if skipped is None or (skipped[0] == _WHOLE_BLOCKS) != hasattr(module, "attn1"):
        return None
    mode, keep = skipped
    kept = keep[index].to(output.device, torch.bool)[:, None, None]
    states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    if mode != _WHOLE_BLOCKS:
        states = module.to_v(states) if mode == "attention_values" else states
        for layer in module.to_out:
            states = layer(states)
    return torch.where(kept, output, states)


class LTXVideoCodec:
    """A video autoencoder of LTX-Video, with the methods of this package's.

    Args:
        vae: The `AutoencoderKLLTXVideo`, which is used as it is.
    """

    min_latent_side = 1

    def __init__(self, vae: Any) -> None:
        self.vae, self.use_slicing = vae, vae.use_slicing

    def check_decoding(self) -> None:
        """Nothing can contradict: what splits a clip is the network's own."""

    def streams(self, latents: torch.Tensor) -> bool:  # noqa: ARG002
        """Whether frames come piece by piece: the network makes a clip as a whole."""
        return False

    def decode(self, latents: torch.Tensor, timestep: torch.Tensor | None, return_dict: bool = False) -> Any:
        """See `AutoencoderKLLTXVideo`; where its decoder draws noise (0.9.1), the same for all clips of a shape."""
        # No caller can give its decoder a source of noise.
        draws = any(self.vae.config.decoder_inject_noise)
        with torch.random.fork_rng([latents.device] if latents.is_cuda else [], draws):
            if draws:
                torch.manual_seed(0)
            return self.vae.decode(latents, timestep, return_dict=return_dict)

    def normalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents `[B, C, F, h, w]` with the mean and spread that the transformer was trained with."""
        mean, std = self._statistics(latents)
        return (latents - mean) * self.vae.config.scaling_factor / std

    def denormalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse."""
        mean, std = self._statistics(latents)
        return latents * std / self.vae.config.scaling_factor + mean

    def _statistics(self, latents: torch.Tensor) -> list[torch.Tensor]:
        return [part.view(1, -1, 1, 1, 1).to(latents) for part in (self.vae.latents_mean, self.vae.latents_std)]
