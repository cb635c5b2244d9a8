"""From a call and the preset of its checkpoint to the stages of the engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from ...adapters.strengths import StageStrengths
from ...conditioning import Streams
from ...guidance import NEUTRAL
from ...pipelines.arguments import Generators, Stage
from ...sampling import Sampler
from .guidance import pass_guiders
from .networks import LTXVideoNetwork
from .presets import LTXVideoPreset, PassSettings
from .schedules import pass_levels

UPSAMPLER = "latent_upsampler"
SECOND = "stage_2_transformer"
NewSampler = Callable[[Generators], Sampler]
Settings = TypeVar("Settings", PassSettings, LTXVideoPreset)
Network = tuple[str, int, StageStrengths | None]
"""What a pass runs: a transformer by its component's name, its blocks, and the LoRA strengths that the pass adds."""


@dataclass(frozen=True)
class Passes:
    """The passes of a call.

    Args:
        preset: Settings of the checkpoint and the call.
        settings: Each pass's settings, in their order.
        sides: Height and width of the first pass.
        scale: Size of the last pass over that of the first, 1 or 2.
        latent_frames: Latent frames F.
        ratio: Pixels a side of a latent.
    """

    preset: LTXVideoPreset
    settings: Sequence[PassSettings]
    sides: tuple[int, int]
    scale: int
    latent_frames: int
    ratio: int

    @property
    def last_sides(self) -> tuple[int, int]:
        """Height and width of the last pass."""
        return self.sides[0] * self.scale, self.sides[1] * self.scale

    def enlarges(self, index: int) -> bool:
        """Whether a pass is at the second scale."""
        return self.scale == 2 and index == len(self.settings) - 1

    def levels(self, index: int) -> list[float]:
        """Noise levels of a pass."""
        scale = self.scale if self.enlarges(index) else 1
        tokens = self.latent_frames * self.sides[0] * self.sides[1] * scale**2 // self.ratio**2
        return pass_levels(self.settings[index], self.preset.schedule, tokens).tolist()


def first_sides(height: int, width: int, factor: float, ratio: int) -> tuple[int, int]:
    """Size of the first of two scales: a share of the asked one, rounded down to whole latents; the second is twice that."""
    sides = [int(side * factor) // ratio * ratio for side in (height, width)]
    if not all(sides):
        least = next(n * ratio for n in range(1, 100) if int(n * ratio * factor) >= ratio)
        raise ValueError(
            f"`height` and `width` ({height}, {width}) leave nothing to a first pass at {factor:.3g} of the size; use at least "
            f"{least}, or multi_scale=False"
        )
    return sides[0], sides[1]


def chosen_passes(
    preset: LTXVideoPreset, given: Sequence[PassSettings | None], multi_scale: bool
) -> list[PassSettings]:
    """The passes of a call, in their order: those that it gives, or else the preset's.

    Args:
        preset: Settings of the checkpoint.
        given: First, continued and second pass of the call.
        multi_scale: Whether there is a second scale.
    """
    first, continued, second = (
        own if one is None else one
        for one, own in zip(given, (preset.first_pass, preset.continued_pass, preset.second_pass))
    )
    if not multi_scale:
        if given[2] is not None:
            raise ValueError("`second_pass` is given with multi_scale=False; leave one of them out")
        return [one if given[0] is not None else alone(one, preset) for one in (first, continued) if one is not None]
    if second is None:
        raise ValueError(f"`multi_scale` is True, but {preset.name} has no second pass; give `second_pass`")
    return [one for one in (first, continued, second) if one is not None]


def alone(settings: PassSettings, preset: LTXVideoPreset) -> PassSettings:
    """A first pass that no second one refines: with the steps that are left to that one otherwise."""
    allowed = preset.allowed_inference_steps
    if settings.timesteps is not None and allowed and settings.timesteps == allowed[: len(settings.timesteps)]:
        return replace(settings, timesteps=allowed)
    return replace(settings, skip_final_inference_steps=0)


def with_arguments(settings: Settings, said: dict[str, Any]) -> Settings:
    """Settings, of a pass or a checkpoint, with what a call says instead; a list of levels and a number of steps take each other's place."""
    said = {name: value for name, value in said.items() if value is not None}
    if "timesteps" in said or "num_inference_steps" in said:
        free = {"timesteps": None, "num_inference_steps": None}
        said = free | {"skip_initial_inference_steps": 0, "skip_final_inference_steps": 0} | said
    return replace(settings, **said)


def stages(
    passes: Passes, networks: Sequence[Network], levels: Sequence[list[float]], rescale: float, new_sampler: NewSampler
) -> list[Stage]:
    """The stages of the passes.

    Args:
        passes: The passes.
        networks: What each pass runs.
        levels: Noise levels of each pass.
        rescale: `guidance_rescale` of the first pass.
        new_sampler: Makes the sampler of a pass, see [`Stage`].
    """
    preset, made = passes.preset, list[Stage]()
    for index, (settings, (transformer, num_layers, adapters)) in enumerate(zip(passes.settings, networks)):
        enlarges = passes.enlarges(index)
        guiders = partial(pass_guiders, settings, preset.stg_mode, num_layers, 0.0 if index else rescale)
        video: Any = guiders().video
        stage = Stage(
            spatial_scale=1.0 if passes.scale == 1 or enlarges else 0.5,
            # As timesteps, which no scheduler shifts once more.
            timesteps=[level * 1000 for level in levels[index]],
            end_sigma=settings.end_timestep,
            goes_on=index > 0 and passes.settings[index - 1].end_timestep > 0,
            scales=Streams(video.at_sigma(levels[index][0]).params, NEUTRAL),
            guiders=guiders,
            network=partial(LTXVideoNetwork, stg_mode=preset.stg_mode),
            new_sampler=new_sampler,
            sampler="stochastic" if preset.stochastic_sampling else "euler",
            upsampler=UPSAMPLER if enlarges else None,
            adain_factor=preset.adain_factor if enlarges else 0.0,
            adapters=adapters or None,
            transformer=transformer,
            references=not enlarges,
        )
        made.append(stage)
    return made
