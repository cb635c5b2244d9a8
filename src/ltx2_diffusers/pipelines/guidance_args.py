"""From guidance arguments of a call to the guiders of the two streams."""

from collections.abc import Sequence

from ..checkpoints.presets import Preset, StreamScales
from ..guidance.guiders import MultiModalGuider, MultiModalGuiderParams
from ..sampling.denoiser import Streams
from .checks import check_blocks

PRESET = "preset"
"""Value of an audio guidance argument that asks for the preset of the checkpoint."""

AudioScale = float | str | None


def resolve_scales(preset: Preset, video: Sequence[float | None], audio: Sequence[AudioScale]) -> Streams:
    """Guidance scales of both streams as `StreamScales`.

    Args:
        preset: Reference values of the checkpoint.
        video: `guidance_scale`, `stg_scale`, `guidance_rescale`, `modality_scale`; `None` takes the preset's.
        audio: Their audio twins; `"preset"` takes the preset's, `None` the video stream's value.
    """
    # A lone guidance_scale=1.0 is how users switch guidance off; other terms stay only if asked for.
    switched_off = (
        video[0] == 1.0 and all(v is None for v in video[1:]) and all(a is None or a == PRESET for a in audio)
    )
    defaults = Streams(StreamScales(), StreamScales()) if switched_off else Streams(preset.video, preset.audio)
    video_scales = [default if v is None else v for v, default in zip(video, _values(defaults.video))]
    audio_scales = [
        default if a == PRESET else same if a is None else a
        for a, same, default in zip(audio, video_scales, _values(defaults.audio))
    ]
    wrong = [value for value in (*video_scales, *audio_scales) if isinstance(value, str)]
    if wrong:
        raise ValueError(f"a guidance argument is {wrong[0]!r}; give a number, None or, for audio, {PRESET!r}")
    return Streams(StreamScales(*video_scales), StreamScales(*audio_scales))


def _values(scales: StreamScales) -> tuple[float, float, float, float]:
    return scales.cfg, scales.stg, scales.rescale, scales.modality


def build_guiders(scales: Streams, stg_blocks: Sequence[int] | None, preset: Preset, num_layers: int) -> Streams:
    """A fresh guider per stream; a guider keeps state, so that every run needs its own.

    Args:
        scales: `StreamScales` per stream, `None` for an absent stream.
        stg_blocks: Blocks perturbed by spatio-temporal guidance; `None` takes the preset's.
        preset: Reference values of the checkpoint.
        num_layers: Blocks of the transformer.
    """
    blocks = preset.stg_blocks(num_layers) if stg_blocks is None else list(stg_blocks)
    if not blocks and any(stream is not None and stream.stg for stream in scales):
        raise ValueError(
            "spatio-temporal guidance is on but `spatio_temporal_guidance_blocks` is empty; name at least one block "
            f"(this checkpoint's is {preset.stg_blocks(num_layers)}) or set `stg_scale` and `audio_stg_scale` to 0"
        )
    check_blocks("spatio_temporal_guidance_blocks", blocks, num_layers)
    return Streams(
        *(
            None
            if stream is None
            else MultiModalGuider(
                MultiModalGuiderParams(
                    cfg_scale=stream.cfg,
                    stg_scale=stream.stg,
                    stg_blocks=blocks,
                    rescale_scale=stream.rescale,
                    modality_scale=stream.modality,
                )
            )
            for stream in scales
        )
    )


def cross_timestep_mode(use_cross_timestep: bool | None, preset: Preset) -> str:
    """Whose noise level modulates the exchange between the streams; `None` follows the preset."""
    if use_cross_timestep is None:
        return preset.cross_timestep
    return "other" if use_cross_timestep else "own"
