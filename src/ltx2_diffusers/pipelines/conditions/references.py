"""Reference videos of IC-LoRAs.

Shapes: F frames, H and W rows and columns of pixels of a reference, T its tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...checks import check_at_least_one, check_unit
from ...conditioning.attention_strength import pixel_mask_to_tokens
from ...conditioning.items.appended import VideoConditionByReferenceLatent
from ...conditioning.shapes import VideoLatentShape
from ...conditioning.streams import Streams
from ...media.frames import Frames, check_frames, read_frames
from ...media.preprocess import fit_cover, normalize_pixels, subsampled_frames
from ..plan import GenerationPlan


@dataclass(frozen=True)
class LTX2ReferenceCondition:
    """A reference video that an IC-LoRA translates into the generated one.

    Args:
        frames: As in [`~ltx2_diffusers.pipelines.conditions.pictures.LTX2VideoCondition`], but floats lie in [0, 1]. A clip is
            cut to the length of the video and to 8 k + 1 frames.
        strength: 1 shows it exactly, 0 ignores it.
        downscale_factor: Size of the video over that of the reference, default what the active LoRAs were trained
            with (1 if they do not say).
        temporal_scale_factor: Frames of the video per frame of the reference, with the same default.
        attention_strength: How far video and reference see each other, 0 to 1; default `None` (fully).
        attention_mask: Where they see each other: pixels `[1, 1, F, H, W]` in [0, 1] of any height and width and as
            many frames as the reference keeps, multiplied by `attention_strength`; default `None` (everywhere).
    """

    frames: Frames
    strength: float = 1.0
    downscale_factor: int | None = None
    temporal_scale_factor: int | None = None
    attention_strength: float | None = None
    attention_mask: torch.Tensor | None = None

    is_reference = True

    def check(self, pipeline: Any, plan: GenerationPlan) -> None:
        """Raise `ValueError` if strengths, factors or frames are not valid."""
        pipeline._require("vae")
        check_unit(strength=self.strength)
        if self.attention_strength is not None:
            check_unit(attention_strength=self.attention_strength)
        factor, scale = self._factors(pipeline)
        if plan.height % (32 * factor) or plan.width % (32 * factor):
            raise ValueError(
                f"a reference of 1/{factor} the size cannot be encoded for a stage of {plan.height} x {plan.width} "
                f"pixels; use a height and width that are multiples of {32 * factor}"
            )
        count, _ = check_frames(self.frames, float_range=1.0)
        if self.attention_mask is not None:
            self._check_mask(_usable(len(_kept(count, plan, scale))))

    def places(self, plan: GenerationPlan) -> list[str]:
        """References stand beside the video and may be many."""
        return []

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """Encode the reference at its share of the stage's size."""
        factor, scale = self._factors(pipeline)
        pixels = read_frames(self.frames, plan.clip_frames, float_range=1.0)
        pixels = pixels[_kept(len(pixels), plan, scale)]
        pixels = pixels[: _usable(len(pixels))]
        latent = pipeline.encode_video(
            normalize_pixels(fit_cover(pixels, plan.height // factor, plan.width // factor))
        )
        item = VideoConditionByReferenceLatent(latent, factor, self.strength, scale, self._token_strength(latent))
        return Streams([item], [])

    def _factors(self, pipeline: Any) -> tuple[int, int]:
        """Downscale and temporal factor: what is given, else what the active LoRAs ask for."""
        factors = []
        trained = pipeline.reference_factors()
        for name, asked in (
            ("downscale_factor", trained.downscale),
            ("temporal_scale_factor", trained.temporal_scale),
        ):
            given = getattr(self, name)
            if given is not None:
                check_at_least_one(**{name: given})
                if asked not in (1, given):
                    raise ValueError(
                        f"the reference's `{name}` is {given}, but the active LoRA was trained with {asked}; use {asked} "
                        "or leave it out"
                    )
            factors.append(asked if given is None else given)
        return factors[0], factors[1]

    def _check_mask(self, num_frames: int) -> None:
        mask = self.attention_mask
        if not isinstance(mask, torch.Tensor) or mask.ndim != 5 or mask.shape[:2] != (1, 1):
            shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask)
            raise ValueError(f"the attention mask has to have shape [1, 1, F, H, W] but has {shape}")
        if mask.shape[2] != num_frames:
            raise ValueError(f"the attention mask has {mask.shape[2]} frames, the reference {num_frames}")
        low, high = (bound.item() for bound in mask.aminmax())
        check_unit(attention_mask=low)
        check_unit(attention_mask=high)

    def _token_strength(self, latent: torch.Tensor) -> float | torch.Tensor | None:
        strength = 1.0 if self.attention_strength is None else self.attention_strength
        if self.attention_mask is None:
            return strength
        shape = VideoLatentShape.from_torch_shape(latent.shape)
        return strength * pixel_mask_to_tokens(self.attention_mask.to(latent.device), shape)


def with_defaults(conditions: Sequence[Any], **defaults: Any) -> list[Any]:
    """The conditions, in which reference conditions take the given fields where they do not say themselves."""
    return [
        replace(c, **{name: value for name, value in defaults.items() if getattr(c, name) is None})
        if isinstance(c, LTX2ReferenceCondition)
        else c
        for c in conditions
    ]


def _kept(num_frames: int, plan: GenerationPlan, scale: int) -> list[int]:
    """Numbers of the frames that a stage and a reference with fewer frames per second keep."""
    shown = [frame for frame in plan.shown_frames if frame < num_frames]
    return [shown[i] for i in subsampled_frames(len(shown), scale)]


def _usable(num_frames: int) -> int:
    """The longest clip of 8 k + 1 frames."""
    return (num_frames - 1) // 8 * 8 + 1
