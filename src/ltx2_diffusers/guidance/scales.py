"""From the guidance arguments of a call to the guiders of the two streams."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch

from ..checks import check_scales, check_unit
from ..conditioning.streams import Streams, on_streams
from .guiders import BinnedGuider, MultiModalGuider, MultiModalGuiderParams, StatefulAPGGuider, params_at_sigma
from .options import GuidanceOptions, completed_bins
from .presets import NEUTRAL, Preset

PRESET = "preset"
"""Value of an audio guidance argument that asks for the preset of the checkpoint."""

AudioScale = float | str | None
Scales = Streams[MultiModalGuiderParams]
UNGUIDED = Streams(NEUTRAL, NEUTRAL)
Guiders = Streams[MultiModalGuider | BinnedGuider | None]
# Arguments of a call that scales come from, those of the audio with its prefix.
SCALE_ARGUMENTS = {
    "cfg_scale": "guidance_scale",
    "stg_scale": "stg_scale",
    "rescale_scale": "guidance_rescale",
    "modality_scale": "modality_scale",
}
# Before the names of options that belong to a stream.
_PREFIXES = Streams("", "audio_")


@dataclass(frozen=True)
class GivenScales:
    """Guidance scales of a stream as a call gives them.

    `None` means the preset's for the video and the video's for the audio, [`PRESET`] the preset's for the audio.
    """

    cfg_scale: AudioScale = None
    stg_scale: AudioScale = None
    rescale_scale: AudioScale = None
    modality_scale: AudioScale = None

    @property
    def has_number(self) -> bool:
        """Whether any of them is given."""
        return any(scale not in (None, PRESET) for scale in vars(self).values())


def call_scales(preset: Preset, given: Streams[GivenScales], options: GuidanceOptions | None) -> Scales:
    """Guidance scales of both streams as [`MultiModalGuiderParams`].

    Args:
        preset: Reference values of the checkpoint.
        given: [`GivenScales`] per stream.
        options: Options of the call.
    """
    return _with_bins(_resolved(preset, *given), given, options)


def sound_scales(preset: Preset, given: GivenScales, options: GuidanceOptions | None) -> Scales:
    """Guidance scales of a call that makes only sound: its plain arguments belong to the audio, with the audio's preset."""
    scales = _resolved(replace(preset, video=preset.audio), given, GivenScales())
    return Streams(NEUTRAL, _with_bins(scales, Streams(GivenScales(), given), options).audio)


def _with_bins(scales: Scales, given: Streams[GivenScales], options: GuidanceOptions | None) -> Scales:
    """Scales in which streams with bins have those of the highest noise level, with which a call begins."""
    if not _are_options(options):
        return scales
    results = []
    for stream, prefix, arguments in zip(scales, _PREFIXES, given):
        bins = options.of_stream(prefix)[1]
        if bins is not None and arguments.has_number:
            raise ValueError(
                f"`{prefix}bins` of `guidance_options` take the place of the guidance arguments of the stream, but "
                f"{list(vars(arguments).values())} are given too; leave one of them out"
            )
        results.append(stream if bins is None else params_at_sigma(bins, 1.0))
    return Streams(*results)


def _resolved(preset: Preset, video: GivenScales, audio: GivenScales) -> Scales:
    # A lone guidance_scale=1.0 is how users switch guidance off; other terms stay only if asked for.
    switched_off = video == GivenScales(1.0) and not audio.has_number
    video_default, audio_default = UNGUIDED if switched_off else (preset.video, preset.audio)
    video_scales = _filled(video, "", video_default)
    return Streams(video_scales, _filled(audio, "audio_", video_scales, audio_default))


def _filled(
    given: GivenScales, prefix: str, unsaid: MultiModalGuiderParams, preset: MultiModalGuiderParams | None = None
) -> MultiModalGuiderParams:
    """The scales of a stream: those of `unsaid` where `None` is given, and of `preset` where [`PRESET`] is."""
    values: dict[str, Any] = {}
    for name, scale in vars(given).items():
        source = unsaid if scale is None else preset if scale == PRESET else None
        values[name] = scale if source is None else getattr(source, name)
        argument = f"{prefix}{SCALE_ARGUMENTS[name]}"
        if isinstance(values[name], str):
            raise ValueError(f"`{argument}` is {scale!r}; give a number, None or, for audio, {PRESET!r}")
        check = check_unit if name == "rescale_scale" else check_scales
        check(**{argument: values[name]})
    return MultiModalGuiderParams(**values)


def build_guiders(
    scales: Streams[MultiModalGuiderParams | None],
    stg_blocks: Sequence[int] | None,
    preset: Preset,
    num_layers: int,
    options: GuidanceOptions | None = None,
) -> Guiders:
    """A fresh guider per stream; a guider keeps state, so that every run needs its own.

    Args:
        scales: [`MultiModalGuiderParams`] per stream, `None` for an absent stream.
        stg_blocks: Blocks perturbed by spatio-temporal guidance where the scales name none; `None` takes the preset's.
        preset: Reference values of the checkpoint.
        num_layers: Blocks of the transformer.
        options: Skipped steps, the formula of classifier-free guidance, and scales by noise level, which take the place
            of `scales`.
    """
    options = options if _are_options(options) else GuidanceOptions()
    blocks = preset.stg_blocks(num_layers) if stg_blocks is None else list(stg_blocks)
    is_alone = None in scales
    guiders = on_streams(lambda s, prefix: _guider(s, blocks, options, prefix, is_alone), scales, _PREFIXES)
    _check_stg_blocks(guiders, preset, num_layers)
    if options.cfg_method != "cfg" and not any(g is not None and g.do_unconditional_generation() for g in guiders):
        raise ValueError(
            f"`cfg_method` is {options.cfg_method!r}, but this call makes no classifier-free guidance; give a guidance scale "
            'other than 1, or leave it "cfg"'
        )
    parts = [part for guider in guiders if guider is not None for part in guider.parts()]
    if options.guidance_interval is not None and not any(part.is_guided for part in parts):
        raise ValueError(
            f"`guidance_interval` is {options.guidance_interval}, but this call is not guided at all; give a guidance scale "
            "that is not neutral, or leave it out"
        )
    return guiders


def _guider(
    scales: MultiModalGuiderParams, blocks: list[int], options: GuidanceOptions, prefix: str, is_alone: bool
) -> MultiModalGuider | BinnedGuider:
    (skip_step, bins), interval = options.of_stream(prefix), options.guidance_interval
    params = completed_bins({1.0: scales} if bins is None else bins, blocks, skip_step, is_alone, interval)
    guiders = {bound: MultiModalGuider(p, options.cfg_guider(p.cfg_scale)) for bound, p in params.items()}
    return guiders[1.0] if bins is None else BinnedGuider(guiders)


def changed_guiders(guiders: Guiders, before: Scales, scales: Scales, options: GuidanceOptions | None) -> Guiders:
    """The guiders of a run in the middle of it, at scales that somebody has changed.

    Perturbed blocks, skipped steps, the formula and its momentum stay as they are.

    Args:
        guiders: Those of the steps so far.
        before: The scales which they follow.
        scales: Those of the steps to come.
        options: Options of the run.
    """
    changed = []
    for guider, old, new, name in zip(guiders, before, scales, guiders._fields):
        if old == new:
            changed.append(guider)
            continue
        if not isinstance(guider, MultiModalGuider):
            why = f"makes no {name}" if guider is None else f"takes the scales of its {name} from `guidance_options`"
            raise ValueError(
                f"a step callback has changed a guidance scale of the {name}, but this call {why}; leave it as it is"
            )
        # Without the other stream there is nothing to isolate this one from.
        modality_scale = 1.0 if None in guiders else new.modality_scale
        kept = replace(
            guider.params, cfg_scale=new.cfg_scale, stg_scale=new.stg_scale, rescale_scale=new.rescale_scale
        )
        formula = (options or GuidanceOptions()).cfg_guider(new.cfg_scale)
        if isinstance(formula, StatefulAPGGuider) and isinstance(guider.cfg_guider, StatefulAPGGuider):
            formula.continue_from(guider.cfg_guider)
        changed.append(MultiModalGuider(replace(kept, modality_scale=modality_scale), formula, guider.on_velocities))
    return Streams(*changed)


def _check_stg_blocks(guiders: Guiders, preset: Preset, num_layers: int) -> None:
    for guider in (guider for stream in guiders if stream is not None for guider in stream.parts()):
        blocks = guider.params.stg_blocks
        if guider.do_perturbed_generation() and blocks is not None and not len(blocks):
            raise ValueError(
                "spatio-temporal guidance is on but `spatio_temporal_guidance_blocks` is empty; name at least one block "
                f"(this checkpoint's is {preset.stg_blocks(num_layers)}) or set `stg_scale` and `audio_stg_scale` to 0"
            )
        if wrong := [block for block in blocks or () if not 0 <= block < num_layers]:
            raise ValueError(
                f"`spatio_temporal_guidance_blocks` contains {wrong}, but the transformer has blocks 0 to {num_layers - 1}"
            )


def check_negative_is_read(
    negative_prompt: str | list[str] | None, negative_prompt_embeds: torch.Tensor | None, options: Any
) -> None:
    """Refuse the negative prompt of a call without guidance that would read it."""
    texts = {"negative_prompt": negative_prompt, "negative_prompt_embeds": negative_prompt_embeds}
    given = [name for name, value in texts.items() if value is not None]
    if given and (not isinstance(options, GuidanceOptions) or not options.reads_negative):
        raise ValueError(
            f"`{given[0]}` is given, but a distilled model runs without classifier-free guidance and would not read it; "
            "switch on normalized attention guidance, guidance_options=GuidanceOptions(nag_scale=5.0), or leave it out"
        )


def always_negative(guiders: Guiders, sigmas: Sequence[float]) -> bool:
    """Whether the pass with the negative prompt is made at every noise level."""
    present = [guider for guider in guiders if guider is not None]
    return all(any(g.at_sigma(sigma).do_unconditional_generation() for g in present) for sigma in sigmas)


def check_options(options: GuidanceOptions | None, guided: Streams[bool]) -> None:
    """Refuse options of a stream that takes no guidance, because it is absent or given as a whole.

    Args:
        options: Options of a stage.
        guided: Whether each stream is generated.
    """
    if not _are_options(options):
        return
    for name, prefix, is_guided in zip(guided._fields, _PREFIXES, guided):
        skip_step, bins = options.of_stream(prefix)
        if not is_guided and (skip_step or bins is not None):
            raise ValueError(
                f"`{prefix}skip_step` or `{prefix}bins` of `guidance_options` is given, but this call generates no {name}; "
                "leave it out"
            )


def _are_options(options: GuidanceOptions | None) -> TypeGuard[GuidanceOptions]:
    """Whether options are given; `ValueError` for anything else."""
    if options is not None and not isinstance(options, GuidanceOptions):
        raise ValueError(f"`guidance_options` has to be a GuidanceOptions but is {options!r}")
    return options is not None


def cross_timestep_mode(use_cross_timestep: bool | None, preset: Preset) -> str:
    """Whose noise level modulates the exchange between the streams; `None` follows the preset."""
    if use_cross_timestep is None:
        return preset.cross_timestep
    return "other" if use_cross_timestep else "own"
