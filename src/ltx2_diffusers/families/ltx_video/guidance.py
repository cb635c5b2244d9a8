"""Guidance of a pass, whose terms are those of velocities and may change with the noise level."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...checks import MAX_SCALE, check_choice, check_from_zero, check_most, check_unit
from ...conditioning import Streams
from ...declared import settled
from ...guidance import MultiModalGuider, MultiModalGuiderParams
from ...guidance.guiders import BinnedGuider, CFGGuider, CFGStarRescalingGuider
from ...guidance.scales import Guiders
from .presets import PassSettings

_MODES = ("attention_values", "attention_skip", "residual", "transformer_block")
SKIP_MODES = dict(zip((*_MODES, "stg_av", "stg_as", "stg_r", "stg_t"), _MODES * 2))
"""What spatio-temporal guidance does to blocks, by all names of it."""
LOOKUPS = ("floor", "ceil")


def pass_guiders(settings: PassSettings, stg_mode: str, num_layers: int, guidance_rescale: float = 0.0) -> Guiders:
    """A fresh guider of the video for a pass.

    Args:
        settings: Scales and blocks, each one value or one for each of `guidance_timesteps`.
        stg_mode: One of `SKIP_MODES`.
        num_layers: Blocks of the transformer.
        guidance_rescale: Share in which predictions with classifier-free guidance take the deviation of those without, as
            diffusers counts it: 0 (default) is none. `rescaling_scale` acts with spatio-temporal guidance alone.

    Raises:
        ValueError: If lists have no `guidance_timesteps`, or not their length, or a value is out of range.
    """
    settings = settled(settings)
    check_choice("stg_mode", stg_mode, tuple(SKIP_MODES))
    check_choice("guidance_lookup", settings.guidance_lookup, LOOKUPS)
    check_unit(guidance_rescale=guidance_rescale)
    bounds = settings.guidance_timesteps
    count = 1 if bounds is None else len(bounds)
    if bounds is not None and (not count or sorted(set(bounds), reverse=True) != list(bounds)):
        raise ValueError(f"`guidance_timesteps` have to fall but are {list(bounds)}; sort them, and name each once")
    for bound in bounds or ():
        check_unit(guidance_timesteps=bound)
    names = ("guidance_scale", "stg_scale", "rescaling_scale")
    scales = [_listed(name, getattr(settings, name), bounds, count) for name in names]
    blocks = settings.skip_block_list or ()
    is_nested = any(isinstance(one, Sequence) for one in blocks)
    nested: list[Any] = _listed("skip_block_list", blocks, bounds, count) if is_nested else [blocks] * count
    if not blocks and max(scales[1]) > 0:
        raise ValueError("`stg_scale` is on, but `skip_block_list` names no blocks; name some, or use stg_scale=0.0")
    if SKIP_MODES[stg_mode] == "residual":
        # It drops a connection that these models do not have, so that the perturbed pass would equal the other one.
        nested = [()] * count
    shared: Any = {"star": settings.cfg_star_rescale, "guidance_rescale": guidance_rescale}
    guiders = [_guider(*values, **shared) for values in zip(*scales, nested)]
    used = [block for guider in guiders if guider.params.stg_scale for block in guider.params.stg_blocks or ()]
    if wrong := [block for block in used if not 0 <= block < num_layers]:
        last = num_layers - 1
        raise ValueError(f"`skip_block_list` contains {wrong}, but there are blocks 0 to {last}; use {last}")
    if bounds is None:
        return Streams(guiders[0], None)
    # Noise levels are compared in the precision in which they are used.
    by_level = {float(np.float32(bound)): guider for bound, guider in zip(bounds, guiders)}
    return Streams(BinnedGuider(by_level, from_below=settings.guidance_lookup == "floor"), None)


def _listed(name: str, values: Any, bounds: Sequence[float] | None, count: int) -> list[Any]:
    if not isinstance(values, Sequence):
        return [values] * count
    if bounds is None:
        raise ValueError(f"`{name}` is a list, which needs `guidance_timesteps` as long; give them, or a number")
    if len(values) != count:
        raise ValueError(f"`{name}` has {len(values)} values for {count} `guidance_timesteps`; give one each")
    return list(values)


def _guider(
    cfg: float, stg: float, rescale: float, blocks: Sequence[int], star: bool, guidance_rescale: float
) -> MultiModalGuider:
    check_most(MAX_SCALE, guidance_scale=cfg, stg_scale=stg)
    check_from_zero(stg_scale=stg)
    if cfg < 1:
        raise ValueError(f"`guidance_scale` has to be at least 1, which is none, but is {cfg}; use 1")
    check_unit(rescaling_scale=rescale)
    # Without blocks the perturbed pass would equal the other one; a rescale of 1 is none here, and 0 changes nothing.
    stg = stg if blocks else 0.0
    share = rescale if stg and rescale != 1 else 0.0
    if share and guidance_rescale:
        raise ValueError(f"`guidance_rescale` {guidance_rescale} and `rescaling_scale` {rescale} both act; use one")
    share = share or (guidance_rescale if cfg > 1 else 0.0)
    params = MultiModalGuiderParams(cfg_scale=cfg, stg_scale=stg, stg_blocks=tuple(blocks), rescale_scale=share)
    return MultiModalGuider(params, CFGStarRescalingGuider(cfg) if star else CFGGuider(cfg), on_velocities=True)
