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


def _entries(config: Any, name: str, owner: str, extra: int = 0) -> tuple:
    """One entry of `name` for each entry of `owner`, and `extra` for the mid block; one value stands for all."""
    value, count = config[name], len(config[owner])
    if isinstance(value, (bool, int)):
        return (value,) * (count + extra)
    if len(value) != count + extra:
        rule = f"{count + extra} ({count} entries of `{owner}` plus one for the mid block)" if extra else str(count)
        raise ValueError(
            f"`{name}` has {len(value)} entries but `{owner}` has {count}; `{name}` must have {rule} entries."
        )
    return tuple(value)


def _types(config: Any, name: str, owner: str, default: tuple[str, ...], choices: Sequence[str]) -> tuple[str, ...]:
    """The kind of each stage, one of `choices`."""
    # A shorter model that leaves this argument at its four- or three-stage default means the first entries.
    shortened = tuple(config[name]) == default and len(default) > len(config[owner])
    types = default[: len(config[owner])] if shortened else _entries(config, name, owner)
    for value in types:
        _check_choice(name, value, choices)
    return types


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_config(config: Any) -> None:
    """Refuse patches in time and padding modes that convolutions do not know."""
    if config.patch_size_t != 1:
        raise ValueError(f"`patch_size_t` must be 1 (patches in time are not implemented), got {config.patch_size_t}.")
    for name in ("encoder_spatial_padding_mode", "decoder_spatial_padding_mode"):
        _check_choice(name, config[name], PADDING_MODES)


def down_stages(config: Any) -> tuple[list[DownStage], int]:
    """The encoder's stages in execution order and the number of residual blocks of its mid block.

    `layers_per_block` has one entry per stage and one for the mid block; a single entry stands for all of them.
    """
    owner, widths = "block_out_channels", config.block_out_channels
    _types(config, "down_block_types", owner, DOWN_BLOCK_TYPES, DOWN_BLOCK_TYPES[:1])
    scaling = _entries(config, "spatio_temporal_scaling", owner)
    layers = tuple(config.layers_per_block)
    layers = layers * (len(widths) + 1) if len(layers) == 1 else _entries(config, "layers_per_block", owner, extra=1)
    types = _types(config, "downsample_type", owner, DOWNSAMPLE_TYPES, (*STRIDES, "conv"))
    stages = [
        DownStage(in_channels, out_channels, num_layers, resample if scaled else None)
        for in_channels, out_channels, num_layers, resample, scaled in zip(
            (config.latent_channels, *widths), widths, layers, types, scaling
        )
    ]
    for stage in stages:
        _check_down_stage(stage)
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


def up_stages(config: Any) -> tuple[list[UpStage], int, bool]:
    """The decoder's stages in execution order, and the mid block's number of residual blocks and noise flag."""
    owner = "decoder_block_out_channels"
    widths = config.decoder_block_out_channels[::-1]
    scaling, residual, factors = (
        _entries(config, name, owner)[::-1]
        for name in ("decoder_spatio_temporal_scaling", "upsample_residual", "upsample_factor")
    )
    (mid_layers, *layers), (mid_noise, *noise) = (
        _entries(config, name, owner, extra=1)[::-1] for name in ("decoder_layers_per_block", "decoder_inject_noise")
    )
    types = _types(config, "upsample_type", owner, UPSAMPLE_TYPES, tuple(STRIDES))
    stages: list[UpStage] = []
    for i, width in enumerate(widths):
        hidden = stages[-1].out_channels if stages else width
        resample = types[i] if scaling[i] else None
        stage = UpStage(hidden, width // factors[i], layers[i], resample, residual[i], factors[i], noise[i])
        _check_up_stage(stage, width, config.timestep_conditioning)
        stages.append(stage)
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


def compression_factors(stages: Sequence[DownStage] | Sequence[UpStage], patch_size: int) -> tuple[int, int]:
    """How many pixels per latent the stages span: (space, time)."""
    space, time = patch_size, 1
    for stage in stages:
        if stage.resample is not None:
            # The plain strided convolution halves all three axes.
            stride = STRIDES["spatiotemporal" if stage.resample == "conv" else stage.resample]
            time, space = time * stride[0], space * stride[1]
    return space, time


def check_compression_ratios(config: Any, space: int, time: int) -> None:
    """Refuse configured ratios that contradict those of the decoder's stages."""
    for name, derived in (("spatial_compression_ratio", space), ("temporal_compression_ratio", time)):
        if config[name] not in (None, derived):
            raise ValueError(
                f"`{name}` is {config[name]} but the decoder's stages give {derived}; use {derived} or None."
            )
