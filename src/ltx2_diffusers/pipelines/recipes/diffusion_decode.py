"""Decoding video latents by the diffusion decoder.

Shapes: B videos of the batch, C channels, F latent frames, h and w latent rows and columns, T frames, H and W rows and
columns of pixels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput

from ... import checks, publishing
from ...models import video_vae
from ..decoding import decoded
from ..generation import DiffusionDecoder
from . import Decoded, Generators, LTX2PipelineBase, takes

OUTPUT_TYPES = ("pil", "np", "pt", "uint8")


@dataclass
class LTX2VideoDecodeOutput(BaseOutput):
    """A decoded video.

    Args:
        frames: Its form follows the call's `output_type`: `"pil"` a list of lists of images, `"np"` an array
            `[B, T, H, W, 3]` in [0, 1], `"pt"` a tensor `[B, T, 3, H, W]` in [0, 1], `"uint8"` a byte tensor
            `[B, T, H, W, 3]`.
    """

    frames: Decoded


@dataclass(frozen=True)
class DecodeArguments:
    """What the call takes.

    Args:
        latents: Latents `[B, C, F, h, w]`.
        generator: Source of the decoder's noise, or one per video.
        output_type: `"pil"`, `"np"`, `"pt"` or `"uint8"`; see [`LTX2VideoDecodeOutput`].
        return_dict: Whether to return an [`LTX2VideoDecodeOutput`] instead of the tuple `(frames,)`.
        denormalize: Whether `latents` are normalised. Those that a pipeline returns with `output_type="latent"` are not: give
            `False` for them, since nothing can tell.
        num_inference_steps: Steps of the decoder, at least 1. Default those it was trained for, 1 in published models.
    """

    latents: torch.Tensor
    generator: Generators = None
    output_type: str = "pil"
    return_dict: bool = True
    denormalize: bool = True
    num_inference_steps: int | None = None


class LTX2VideoDiffusionDecodePipeline(LTX2PipelineBase):
    """Decodes video latents by the diffusion decoder of LTX-2.5.

    Takes the components and call arguments of diffusers' pipeline of the same name. Large clips take less memory in tiles:
    `pipe.diffusion_decoder.enable_tiling()`.

    Args:
        diffusion_decoder: The decoder.
        scheduler: Part of diffusers' pipeline, read by neither.
        vae: Video autoencoder whose statistics denormalise; default the decoder's own.
    """

    model_cpu_offload_seq = "diffusion_decoder"
    _optional_components = ["scheduler", "vae"]  # noqa: RUF012 (diffusers reads a list)

    diffusion_decoder: DiffusionDecoder

    def __init__(
        self,
        diffusion_decoder: DiffusionDecoder,
        scheduler: Any = None,
        vae: video_vae.AutoencoderKLLTX2Video | None = None,
    ) -> None:
        super().__init__()
        self._register(diffusion_decoder=diffusion_decoder, scheduler=scheduler, vae=vae)

    def _card(self, name: str) -> publishing.Card:
        """The card of the decoder: the pipeline adds nothing to it."""
        made = publishing.origin(self.config.get("_name_or_path"))
        return publishing.component_card(name, {"diffusion_decoder": "LTX2VideoDiffusionDecoderModel"}, made)

    @takes(DecodeArguments)
    @torch.no_grad()
    def __call__(self, call: DecodeArguments) -> LTX2VideoDecodeOutput | tuple:
        """Decode latents.

        Returns:
            [`LTX2VideoDecodeOutput`], or the tuple `(frames,)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range.
        """
        self.require("diffusion_decoder")
        decoder, device = self.diffusion_decoder, torch.device(self._execution_device)
        checks.check_choice("output_type", call.output_type, OUTPUT_TYPES)
        checks.check_float_tensors(latents=call.latents)
        checks.check_generator(call.generator, len(call.latents), device)
        decoder.check_decoding(call.latents, call.num_inference_steps)
        latents = call.latents.to(device)
        if call.denormalize:
            latents = (self.vae if self.has("vae") else decoder).denormalize_latents(latents)
        how = (call.generator, call.num_inference_steps)
        frames = decoded(self, latents, how, call.output_type, component="diffusion_decoder")
        self.maybe_free_model_hooks()
        return LTX2VideoDecodeOutput(frames=frames) if call.return_dict else (frames,)
