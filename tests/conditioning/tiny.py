"""The size that the golden conditioning vectors were made at, and the tools for it."""

from functools import partial

import torch

from ltx2_diffusers.conditioning import VideoLatentPatchifier, VideoLatentShape, VideoLatentTools

SHAPE = VideoLatentShape(batch=1, channels=4, frames=3, height=2, width=3)
FPS = 24.0
randn = partial(torch.randn, generator=torch.Generator().manual_seed(0))


def video_tools(**changes: object) -> VideoLatentTools:
    return VideoLatentTools(**({"patchifier": VideoLatentPatchifier(), "target_shape": SHAPE, "fps": FPS} | changes))
