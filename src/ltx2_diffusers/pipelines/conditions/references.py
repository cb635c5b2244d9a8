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
from ...media.frames import Frames, read_frames
from ...media.preprocess import fit_cover, normalize_pixels, subsampled_frames
from ..plan import ClipPlan
from .condition import Condition, Opened, Studio, video_item


@dataclass(frozen=True)
class LTX2ReferenceCondition(Condition):
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

    def opened(self, studio: Studio, plan: ClipPlan) -> "OpenedReference":
        """Check the strengths and read as many frames as the clip is long."""
        check_unit(strength=self.strength, attention_strength=self.attention_strength)
        return OpenedReference(studio, self, read_frames(self.frames, plan.clip_frames, float_range=1.0))

    def factors(self, studio: Studio) -> tuple[int, int]:
        """Downscale and temporal factor: what is given, else what the active LoRAs ask for."""
        factors = []
        trained = studio.reference_factors()
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


@dataclass(frozen=True)
class OpenedReference(Opened):
    """A reference video; it stands beside the video, and there may be many.

    Args:
        studio: Encodes it and knows the active LoRAs.
        given: The condition.
        pixels: Frames `[F, H, W, 3]` in [0, 255].
    """

    studio: Studio
    given: LTX2ReferenceCondition
    pixels: torch.Tensor

    def check(self, plan: ClipPlan) -> None:
        """Raise `ValueError` if the factors or the mask do not fit a stage."""
        factor, scale = self.given.factors(self.studio)
        multiple = plan.sizes.spatial_ratio * factor
        if plan.height % multiple or plan.width % multiple:
            raise ValueError(
                f"a reference of 1/{factor} the size cannot be encoded for a stage of {plan.height} x {plan.width} "
                f"pixels; use a height and width that are multiples of {multiple}"
            )
        if self.given.attention_mask is not None:
            _check_mask(self.given.attention_mask, len(self._kept(plan, scale)))

    def items(self, plan: ClipPlan) -> Streams:
        """Encode the reference at its share of the stage's size."""
        factor, scale = self.given.factors(self.studio)
        pixels = fit_cover(self.pixels[self._kept(plan, scale)], plan.height // factor, plan.width // factor)
        latent = self.studio.encode_video(normalize_pixels(pixels))
        strength = self._token_strength(latent)
        return video_item(VideoConditionByReferenceLatent(latent, factor, self.given.strength, scale, strength))

    def _kept(self, plan: ClipPlan, scale: int) -> list[int]:
        """The frames that a stage and a reference with fewer frames per second keep, 8 k + 1 of them."""
        shown = [frame for frame in plan.shown_frames if frame < len(self.pixels)]
        kept = [shown[i] for i in subsampled_frames(len(shown), scale)]
        return kept[: plan.sizes.whole_frames(len(kept))]

    def _token_strength(self, latent: torch.Tensor) -> float | torch.Tensor:
        strength, mask = self.given.attention_strength, self.given.attention_mask
        strength = 1.0 if strength is None else strength
        if mask is None:
            return strength
        return strength * pixel_mask_to_tokens(mask.to(latent.device), VideoLatentShape.from_torch_shape(latent.shape))


def with_defaults(conditions: Sequence[Condition], **defaults: Any) -> list[Condition]:
    """The conditions, in which reference conditions take the given fields where they do not say themselves."""
    return [
        replace(c, **{name: value for name, value in defaults.items() if getattr(c, name) is None})
        if isinstance(c, LTX2ReferenceCondition)
        else c
        for c in conditions
    ]


def _check_mask(mask: torch.Tensor, num_frames: int) -> None:
    if not isinstance(mask, torch.Tensor) or mask.ndim != 5 or mask.shape[:2] != (1, 1):
        shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask)
        raise ValueError(f"the attention mask has to have shape [1, 1, F, H, W] but has {shape}")
    if mask.shape[2] != num_frames:
        raise ValueError(f"the attention mask has {mask.shape[2]} frames, the reference {num_frames}")
    low, high = (bound.item() for bound in mask.aminmax())
    check_unit(attention_mask=low)
    check_unit(attention_mask=high)
