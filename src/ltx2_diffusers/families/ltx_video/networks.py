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

from .guidance import SKIP_MODES

TIMESTEP_SCALE = 1000.0


# What a forward leaves out: a mode of `SKIP_MODES`, and a mask `[L, B]` of the blocks that stay (1). Of the thread that makes a
# perturbed pass; others may use the same network meanwhile.
_SKIPPED: ContextVar[tuple[str, torch.Tensor] | None] = ContextVar("skipped", default=None)
_PASSED_ON = ("hidden_states", "encoder_hidden_states", "encoder_attention_mask", "timestep", "attention_kwargs")


class LTXVideoNetwork(torch.nn.Module):
    """A transformer of LTX-Video, with what the denoiser asks of a transformer.

    Args:
        transformer: The `LTXVideoTransformer3DModel`, which is used as it is.
        stg_mode: What perturbed passes do to blocks, one of `SKIP_MODES`.
    """

    def __init__(self, transformer: Any, stg_mode: str = "attention_values") -> None:
        super().__init__()
        self.transformer, self.mode = transformer, SKIP_MODES[stg_mode]
        layers = transformer.config.num_layers
        self.config = SimpleNamespace(num_layers=layers, timestep_scale_multiplier=TIMESTEP_SCALE)
        self.dtype, self.hf_quantizer = transformer.dtype, getattr(transformer, "hf_quantizer", None)
        self.is_cache_enabled = transformer.is_cache_enabled
        self.cache_context, self._reset_stateful_cache = transformer.cache_context, transformer._reset_stateful_cache

    def new_step_cache(self, num_predictions: int | None) -> None:
        """Nothing: what caches between steps are hooks of diffusers."""

    def forward(
        self,
        *,
        video_coords: torch.Tensor,
        perturbation_keep_masks: torch.Tensor | list[torch.Tensor | None] | None = None,
        **given: Any,
    ) -> Any:
        """Velocities of a pass as `(video, None)`, or a list of them for a list of passes.

        Args:
            video_coords: Seconds, pixel rows and columns where tokens begin and end, `[B, 3, T, 2]`.
            perturbation_keep_masks: For each pass what it keeps, `[4, L, B]`; `None` keeps all.
            given: What the transformer takes itself: noisy tokens `hidden_states` `[B, T, C]`, the text
                `encoder_hidden_states` `[B, S, W]` and its `encoder_attention_mask` `[B, S]`, the noise level times 1000 as
                `timestep`, `[B]`, or `[B, T, 1]` with one for each token, and `attention_kwargs`. What is of the other
                stream, and of versions that modulate by more, is left out.
        """
        taken = {name: given.get(name) for name in _PASSED_ON}
        # The network reads one position per token, its first frame and upper left corner.
        call = partial(self.transformer, **taken, video_coords=video_coords[..., 0], return_dict=False)
        if not isinstance(perturbation_keep_masks, list):
            return self._passed(call, perturbation_keep_masks)
        return [self._passed(call, mask) for mask in perturbation_keep_masks]

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
            module = block if self.mode == "transformer_block" else block.attn1
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
    if skipped is None or (skipped[0] == "transformer_block") != hasattr(module, "attn1"):
        return None
    mode, keep = skipped
    kept = keep[index].to(output.device, torch.bool)[:, None, None]
    states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    if mode != "transformer_block":
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
        self.vae = vae

    @property
    def use_slicing(self) -> bool:
        """Whether a batch is decoded clip by clip."""
        return self.vae.use_slicing

    def check_decoding(self) -> None:
        """Nothing can contradict: what splits a clip is the network's own."""

    def streams(self, latents: torch.Tensor) -> bool:  # noqa: ARG002
        """Whether frames come piece by piece: the network makes a clip as a whole."""
        return False

    def decode(self, latents: torch.Tensor, timestep: torch.Tensor | None, return_dict: bool = False) -> Any:
        """See `AutoencoderKLLTXVideo`; where its decoder draws noise (0.9.1), the same for all clips of a shape."""
        with torch.random.fork_rng([latents.device] if latents.is_cuda else [], self._draws):
            if self._draws:
                torch.manual_seed(0)
            return self.vae.decode(latents, timestep, return_dict=return_dict)

    @property
    def _draws(self) -> bool:
        """Whether the decoder draws noise, which no caller can give it a source for."""
        return any(self.vae.config.decoder_inject_noise)

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
