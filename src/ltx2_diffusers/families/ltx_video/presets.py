"""Reference settings per published checkpoint of LTX-Video: what a call uses when the caller does not say.

Values are those of the original configuration files. Noise levels are in [0, 1]; lists of a pass have no final zero.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from ...checks import check_choice
from ...yaml_files import read_mapping

Scale = float | tuple[float, ...]
SkipBlocks = tuple[int, ...] | tuple[tuple[int, ...], ...]

DEFAULT_SIZE = (704, 1216, 121)
"""Height, width and frames of the original command line."""
DEFAULT_FRAME_RATE = 30.0
NEGATIVE_PROMPT = "worst quality, inconsistent motion, blurry, jittery, distorted"
"""The negative prompt of the original command line; no call takes it by itself."""
LAYOUTS = ("v090", "v091", "v095")
"""Layouts of the video autoencoder: of 0.9.0, of 0.9.1, and of 0.9.5 and later."""


@dataclass(frozen=True)
class PassSettings:
    """What one denoising pass runs with.

    Args:
        num_inference_steps: Steps whose noise levels the checkpoint's schedule gives, or `None` with `timesteps`.
        timesteps: Noise levels in (0, 1], descending, as they are, or `None`.
        guidance_scale: Classifier-free guidance; 1 is none. Here and below a tuple has one value for each of
            `guidance_timesteps`.
        stg_scale: Spatio-temporal guidance; 0 is none.
        rescaling_scale: Share in which guided predictions take the deviation of the unguided one; 1 is none.
        skip_block_list: Blocks that spatio-temporal guidance perturbs, or a tuple of them for each of
            `guidance_timesteps`.
        guidance_timesteps: Noise levels, descending, from which on the values of tuples hold.
        guidance_lookup: `"floor"`: a step takes the first of `guidance_timesteps` that is not above its noise level;
            `"ceil"`: the last that is not below.
        skip_initial_inference_steps, skip_final_inference_steps: Steps of the schedule that are left out at its ends.
        cfg_star_rescale: Whether the unconditional prediction is projected onto the conditional one.
        tone_map_compression_ratio: Compression of the latents' range before they are decoded, in [0, 1]; 0 is none.
        end_timestep: Noise level where the pass stops; above 0 its latents are still noisy, and the next pass goes on
            with them.
    """

    num_inference_steps: int | None = None
    timesteps: tuple[float, ...] | None = None
    guidance_scale: Scale = 1.0
    stg_scale: Scale = 0.0
    rescaling_scale: Scale = 1.0
    skip_block_list: SkipBlocks | None = None
    guidance_timesteps: tuple[float, ...] | None = None
    guidance_lookup: str = "floor"
    skip_initial_inference_steps: int = 0
    skip_final_inference_steps: int = 0
    cfg_star_rescale: bool = False
    tone_map_compression_ratio: float = 0.0
    end_timestep: float = 0.0

    def most(self, name: str) -> float:
        """The largest value of a scale."""
        value = getattr(self, name)
        return max(value) if isinstance(value, Sequence) else value

    @property
    def changes(self) -> bool:
        """Whether any value changes with the noise level."""
        values = (self.guidance_scale, self.stg_scale, self.rescaling_scale, *(self.skip_block_list or ()))
        return any(isinstance(value, Sequence) for value in values)


@dataclass(frozen=True)
class ScheduleSettings:
    """How the noise levels of a number of steps are spread; the `scheduler` section of original files.

    Args:
        sampler: `"Uniform"`, `"LinearQuadratic"` or `"Constant"`.
        shifting: `None`, `"SD3"` (by the number of tokens) or `"SimpleDiffusion"`.
        base_resolution: Number of tokens to which `"SimpleDiffusion"` compares.
        target_shift_terminal: Noise level to which shifted lists are stretched, in (0, 1), or `None`.
        shift: Shift of `"Constant"`.
    """

    sampler: str = "LinearQuadratic"
    shifting: str | None = None
    base_resolution: int | None = None
    target_shift_terminal: float | None = None
    shift: float | None = None


@dataclass(frozen=True)
class LTXVideoPreset:
    """Settings of one checkpoint.

    Args:
        name: As `"ltxv-13b-0.9.8-distilled"`.
        checkpoint: Name of the original file.
        first_pass: Settings of a call's only pass, or of its first.
        second_pass: Settings of the pass after the spatial upsampler, or `None` if there is none.
        continued_pass: Settings of a pass that goes on with the noisy latents of the first one, or `None`.
        transformers: Which transformer the passes run, `"dev"` or `"distilled"`, in the order first, continued,
            second; a single kind holds for all.
        downscale_factor: Size of the first pass as a share of the asked size, or `None` without a second pass.
        spatial_upscaler: Name of the original file of the spatial upsampler, or `None`.
        adain_factor: Share in which upsampled latents take the statistics of those before.
        stg_mode: What spatio-temporal guidance does to blocks: `"attention_values"`, `"attention_skip"`,
            `"residual"` or `"transformer_block"`.
        stochastic_sampling: Whether each step adds fresh noise.
        decode_timestep, decode_noise_scale: Noise level at which the autoencoder decodes, and share of noise in the
            normalised latents before, both in [0, 1]; without effect on an autoencoder without timestep.
        causal_temporal_positioning: Whether the first frame has a time of its own.
        schedule: How noise levels are spread.
        allowed_inference_steps: Noise levels for which the checkpoint was distilled, or `None`.
        image_crf: H.264 quality of the round trip that conditioning images and clips take; 0 skips it.
        image_blur: Whether they are blurred before.
        image_cond_noise_scale: Noise on tokens that conditions hold, in [0, 1].
    """

    name: str
    checkpoint: str
    first_pass: PassSettings
    second_pass: PassSettings | None = None
    continued_pass: PassSettings | None = None
    transformers: tuple[str, ...] = ("dev",)
    downscale_factor: float | None = None
    spatial_upscaler: str | None = None
    adain_factor: float = 1.0
    stg_mode: str = "attention_values"
    stochastic_sampling: bool = False
    decode_timestep: float = 0.05
    decode_noise_scale: float = 0.025
    causal_temporal_positioning: bool = True
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    allowed_inference_steps: tuple[float, ...] | None = None
    image_crf: int = 29
    image_blur: bool = True
    image_cond_noise_scale: float = 0.15

    @property
    def kind(self) -> str:
        """`"dev"` (guided), `"distilled"` (a fixed list of noise levels, no guidance) or `"mix"` (dev, then distilled)."""
        return self.transformers[0] if len(set(self.transformers)) == 1 else "mix"

    @property
    def size(self) -> str:
        """`"2b"` or `"13b"`."""
        return self.name.split("-")[1]

    @property
    def version(self) -> str:
        """As `"0.9.8"`."""
        return self.name.split("-")[2]


def frozen(value: Any) -> Any:
    """Lists as tuples, also inside of others."""
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def read_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a preset as files have them: mappings are passes, or the schedule, and lists are tuples."""
    read: dict[str, Any] = {}
    for name, value in values.items():
        kind: Any = ScheduleSettings if name == "schedule" else PassSettings
        is_part = isinstance(value, Mapping)
        read[name] = kind(**{key: frozen(one) for key, one in value.items()}) if is_part else frozen(value)
    return read


@cache
def all_presets() -> dict[str, LTXVideoPreset]:
    """The presets by their names, oldest first; their file is read once."""
    said = read_mapping(Path(__file__).parents[2] / "resources" / "configs" / "ltx-video-presets.yaml")["presets"]
    return {name: LTXVideoPreset(name, **read_settings(values)) for name, values in said.items()}


_DEPTHS = {"2b": 28, "13b": 48}


def ltx_video_preset(name: str) -> LTXVideoPreset:
    """The preset of a name, as `"ltxv-13b-0.9.8-distilled"`; `ValueError` if there is none."""
    check_choice("preset", name, tuple(all_presets()))
    return all_presets()[name]


def choose_preset(
    layout: str, num_layers: int, *, is_distilled: bool | None = None, is_stochastic: bool = False, name: str = ""
) -> LTXVideoPreset:
    """The preset of a checkpoint: what it says goes first, then its shape, and its name last.

    Args:
        layout: Layout of its video autoencoder, one of `LAYOUTS`.
        num_layers: Blocks of its transformer.
        is_distilled: Whether it says which noise levels it was distilled for, or `None` if that is not known.
        is_stochastic: Whether its scheduler adds fresh noise, as only 0.9.6 distilled does.
        name: Name of its file, folder or repository, which may tell its kind and version.

    Returns:
        A preset of its size, kind and version, or of the newest version that the name does not contradict. Blocks that a
        model of another depth than the published ones lacks are replaced by those at the same relative depth.
    """
    check_choice("layout", layout, LAYOUTS)
    size, name, presets = "13b" if num_layers >= 40 else "2b", name.lower(), all_presets()
    if layout != "v095":
        found = [presets["ltxv-2b-0.9" if layout == "v090" else "ltxv-2b-0.9.1"]]
    else:
        distilled = is_stochastic or ("distilled" in name if is_distilled is None else is_distilled)
        kind = "distilled" if distilled else "dev"
        found = [p for p in presets.values() if p.causal_temporal_positioning and (p.size, p.kind) == (size, kind)]
    said = re.search(r"0\.9\.\d", "0.9.6" if is_stochastic else name)
    preset = next((p for p in found if said and p.version == said[0]), found[-1])
    return of_depth(preset, num_layers)


def of_depth(preset: LTXVideoPreset, num_layers: int) -> LTXVideoPreset:
    """The preset with blocks at the same relative depth of a model with other layers."""

    def moved(blocks: Any) -> Any:
        if isinstance(blocks, tuple):
            return tuple(moved(block) for block in blocks)
        return None if blocks is None else min(num_layers - 1, blocks * num_layers // _DEPTHS[preset.size])

    if num_layers == _DEPTHS[preset.size]:
        return preset
    passes = {name: one for name, one in vars(preset).items() if isinstance(one, PassSettings)}
    fitted: Any = {name: replace(one, skip_block_list=moved(one.skip_block_list)) for name, one in passes.items()}
    return replace(preset, **fitted)
