"""Pixels on both sides of a video autoencoder that works on a signal of high dynamic range.

Shapes: B clips, F frames, H and W rows and columns of pixels.
"""

from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.video_processor import VideoProcessor

from ...checks import check_choice
from ..preprocess import padded_inside
from .curves import TRANSFORMS


class LTX2VideoHDRProcessor(VideoProcessor):
    """Brings reference videos to the size of an encoder, and what a decoder returns to linear light.

    Args:
        vae_scale_factor: Pixels a side of a latent; default 32.
        resample: Filter of the inherited methods; default `"bilinear"`.
        hdr_transform: Curve of the signal: `"logc3"` (default), ARRI LogC3 at EI 800, or `"acescct"`.

    Raises:
        ValueError: If there is no such curve.
    """

    @register_to_config
    def __init__(self, vae_scale_factor: int = 32, resample: str = "bilinear", hdr_transform: str = "logc3") -> None:
        check_choice("hdr_transform", hdr_transform, tuple(TRANSFORMS))
        super().__init__(do_resize=True, vae_scale_factor=vae_scale_factor, resample=resample)
        self._unresized = VideoProcessor(do_resize=False, vae_scale_factor=vae_scale_factor, resample=resample)

    def preprocess_reference_video_hdr(self, video: Any, height: int, width: int) -> torch.Tensor:
        """A video of standard range at the size of the encoder: scaled down to fit in, if need be, and continued by reflection.

        Args:
            video: What `preprocess_video` takes.
            height, width: Size in pixels.

        Returns:
            float32 `[B, 3, F, height, width]` in [-1, 1].
        """
        pixels = self._unresized.preprocess_video(video)
        frames = padded_inside(pixels.transpose(1, 2).flatten(0, 1), height, width)
        return frames.unflatten(0, (len(pixels), -1)).transpose(1, 2)

    def postprocess_hdr_video(self, video: torch.Tensor, output_type: str = "np") -> torch.Tensor | np.ndarray:
        """What a video decoder returns, as linear Rec.709 light.

        Args:
            video: `[B, 3, F, H, W]` in [-1, 1].
            output_type: `"np"` (default) or `"pt"`.

        Returns:
            float32 `[B, F, H, W, 3]`, in which 1.0 is diffuse white; shadows of LogC3 may lie a little below 0.

        Raises:
            ValueError: If the type is another.
        """
        check_choice("output_type", output_type, ("np", "pt"))
        signal = torch.as_tensor(self.denormalize(video.float())).permute(0, 2, 3, 4, 1)
        light = TRANSFORMS[self.config["hdr_transform"]](signal).contiguous()
        return light if output_type == "pt" else light.cpu().numpy()
