"""Stage plans of the video VAE, read from its configuration and checked for contradictions.

Encoder lists are in execution order. Decoder lists are stored output side first and reversed here, except
`upsample_type`, which already is in execution order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DOWN_BLOCK_TYPES = ("LTX2VideoDownBlock3D",) * 4
DOWNSAMPLE_TYPES = ("spatial", "temporal", "spatiotemporal", "spatiotemporal")
UPSAMPLE_TYPES = ("spatiotemporal",) * 3

# (time, height, width) factors of each resampling type.
STRIDES = {"spatial": (1, 2, 2), "temporal": (2, 1, 1), "spatiotemporal": (2, 2, 2)}
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class DownStage:
    """Residual blocks at `in_channels`, then (unless `resample` is None) the downsampler to `out_channels`."""

    in_channels: int
    out_channels: int
    num_layers: int
    resample: str | None


@dataclass(frozen=True)
class UpStage:
    """The upsampler from `in_channels` (unless `resample` is None), then residual blocks at `out_channels`."""

    in_channels: int
    out_channels: int
    num_layers: int
    resample: str | None
    residual: bool
    factor: int
    inject_noise: bool


def _expand(value: Any, count: int) -> tuple:
    """One value for all stages, or the list itself."""
    return (value,) * count if isinstance(value, (bool, int)) else tuple(value)


def _check_length(name: str, value: Sequence, owner: str, count: int, extra: int = 0) -> tuple:
    if len(value) != count + extra:
        rule = f"{count + extra} ({count} entries of `{owner}` plus one for the mid block)" if extra else str(count)
        raise ValueError(
            f"`{name}` has {len(value)} entries but `{owner}` has {count}; `{name}` must have {rule} entries."
        )
    return tuple(value)


def _type_list(name: str, value: Sequence[str], default: tuple[str, ...], owner: str, count: int) -> tuple[str, ...]:
    # A shorter model that leaves this argument at its four- or three-stage default means the first entries.
    if tuple(value) == default and len(default) > count:
        return default[:count]
    return _check_length(name, value, owner, count)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def down_stages(
    latent_channels: int,
    block_out_channels: Sequence[int],
    down_block_types: Sequence[str],
    spatio_temporal_scaling: bool | Sequence[bool],
    layers_per_block: Sequence[int],
    downsample_type: Sequence[str],
) -> tuple[list[DownStage], int]:
    """The encoder's stages in execution order and the number of residual blocks of its mid block.

    `layers_per_block` has one entry per stage and one for the mid block; a single entry stands for all of them.
    """
    owner, count = "block_out_channels", len(block_out_channels)
    block_types = _type_list("down_block_types", down_block_types, DOWN_BLOCK_TYPES, owner, count)
    for block_type in block_types:
        _check_choice("down_block_types", block_type, DOWN_BLOCK_TYPES[:1])
    scaling = _check_length("spatio_temporal_scaling", _expand(spatio_temporal_scaling, count), owner, count)
    layers = tuple(layers_per_block) * (count + 1) if len(layers_per_block) == 1 else layers_per_block
    layers = _check_length("layers_per_block", layers, owner, count, extra=1)
    types = _type_list("downsample_type", downsample_type, DOWNSAMPLE_TYPES, owner, count)

    stages = []
    for in_channels, out_channels, num_layers, scaled, resample in zip(
        (latent_channels, *block_out_channels), block_out_channels, layers, scaling, types
    ):
        _check_choice("downsample_type", resample, (*STRIDES, "conv"))
        stage = DownStage(in_channels, out_channels, num_layers, resample if scaled else None)
        _check_down_stage(stage)
        stages.append(stage)
    return stages, layers[-1]


def _check_down_stage(stage: DownStage) -> None:
    if stage.resample in (None, "conv"):
        if stage.in_channels != stage.out_channels:
            raise ValueError(
                f"`block_out_channels` changes the width from {stage.in_channels} to {stage.out_channels} at a stage "
                f"whose downsampler is {stage.resample!r} and keeps it; use {stage.in_channels} there."
            )
        return
    patch = math.prod(STRIDES[stage.resample])
    if stage.out_channels % patch or (stage.in_channels * patch) % stage.out_channels:
        raise ValueError(
            f"`block_out_channels` asks a {stage.resample} downsampler for {stage.in_channels} -> "
            f"{stage.out_channels} channels; the result must be a multiple of {patch} and divide "
            f"{stage.in_channels * patch}."
        )


def up_stages(
    decoder_block_out_channels: Sequence[int],
    decoder_spatio_temporal_scaling: bool | Sequence[bool],
    decoder_layers_per_block: Sequence[int],
    decoder_inject_noise: bool | Sequence[bool],
    upsample_type: Sequence[str],
    upsample_residual: bool | Sequence[bool],
    upsample_factor: Sequence[int],
    timestep_conditioning: bool,
) -> tuple[list[UpStage], int, bool]:
    """The decoder's stages in execution order, and the mid block's number of residual blocks and noise flag."""
    owner, count = "decoder_block_out_channels", len(decoder_block_out_channels)

    def reversed_list(name: str, value: Any, extra: int = 0) -> tuple:
        return _check_length(name, _expand(value, count + extra), owner, count, extra)[::-1]

    scaling = reversed_list("decoder_spatio_temporal_scaling", decoder_spatio_temporal_scaling)
    residual = reversed_list("upsample_residual", upsample_residual)
    factors = reversed_list("upsample_factor", upsample_factor)
    mid_layers, *layers = reversed_list("decoder_layers_per_block", decoder_layers_per_block, extra=1)
    mid_noise, *noise = reversed_list("decoder_inject_noise", decoder_inject_noise, extra=1)
    types = _type_list("upsample_type", upsample_type, UPSAMPLE_TYPES, owner, count)
    widths = tuple(reversed(decoder_block_out_channels))

    stages = []
    hidden = widths[0]
    for i, width in enumerate(widths):
        _check_choice("upsample_type", types[i], tuple(STRIDES))
        stage = UpStage(
            in_channels=hidden,
            out_channels=width // factors[i],
            num_layers=layers[i],
            resample=types[i] if scaling[i] else None,
            residual=residual[i],
            factor=factors[i],
            inject_noise=noise[i],
        )
        _check_up_stage(stage, width, timestep_conditioning)
        stages.append(stage)
        hidden = stage.out_channels
    return stages, mid_layers, mid_noise


def _check_up_stage(stage: UpStage, width: int, timestep_conditioning: bool) -> None:
    if width % stage.factor or (stage.factor != 1 and stage.in_channels != width):
        raise ValueError(
            f"`decoder_block_out_channels` gives a stage {width} channels where the stage before leaves "
            f"{stage.in_channels} and `upsample_factor` is {stage.factor}; a stage with a factor above 1 must have "
            f"the {stage.in_channels} channels it receives, divisible by its factor."
        )
    if stage.resample is None and stage.factor != 1:
        raise ValueError(
            f"`upsample_factor` is {stage.factor} at a stage that `decoder_spatio_temporal_scaling` switches off; "
            "use 1 there."
        )
    changes_width = stage.factor == 1 and stage.in_channels != width
    if changes_width and (timestep_conditioning or stage.inject_noise):
        raise ValueError(
            f"`decoder_block_out_channels` changes the width from {stage.in_channels} to {width} between stages, "
            "which `timestep_conditioning` and `decoder_inject_noise` do not support; change the width with "
            "`upsample_factor` instead."
        )
    if stage.residual and stage.resample is not None and math.prod(STRIDES[stage.resample]) % stage.factor:
        raise ValueError(
            f"`upsample_residual` needs an `upsample_factor` that divides {math.prod(STRIDES[stage.resample])} for "
            f"a {stage.resample} upsampler, got {stage.factor}."
        )


def compression_factors(resamples: Sequence[str | None], patch_size: int) -> tuple[int, int]:
    """How many pixels per latent the stages span: (space, time)."""
    space, time = patch_size, 1
    for resample in resamples:
        # The plain strided convolution halves all three axes.
        stride = STRIDES["spatiotemporal" if resample == "conv" else resample] if resample else (1, 1, 1)
        time, space = time * stride[0], space * stride[1]
    return space, time


def compression_ratio(name: str, given: int | None, derived: int) -> int:
    """The ratio that the decoder's stages have, refusing a configured one that contradicts it."""
    if given not in (None, derived):
        raise ValueError(f"`{name}` is {given} but the decoder's stages give {derived}; use {derived} or None.")
    return derived


def check_padding_mode(name: str, mode: str) -> None:
    """Refuse a padding mode that convolutions do not know."""
    _check_choice(name, mode, PADDING_MODES)


def check_patch_size_t(patch_size_t: int) -> None:
    """Refuse patches in time."""
    if patch_size_t != 1:
        raise ValueError(f"`patch_size_t` must be 1 (patches in time are not implemented), got {patch_size_t}.")
