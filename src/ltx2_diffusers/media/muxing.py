"""New sound for an existing video, without encoding its pictures again."""

import os
from pathlib import Path

import numpy as np
import torch
from av.container import InputContainer, OutputContainer

from ..atomic import complete_file
from .audio_tracks import EncodedAudio
from .files import check_suffix, open_media
from .waveforms import stereo_samples
from .writing import VIDEO_SUFFIXES, open_output


def replace_audio(
    source: str | os.PathLike, path: str | os.PathLike, audio: torch.Tensor | np.ndarray, sampling_rate: int
) -> Path:
    """Write the video packets of `source` unchanged, together with new sound, and return the path.

    Args:
        source: Media file with a video stream.
        path: File name ending in `.mp4` or `.mov`; may be `source` itself. Missing folders are created; the file
            appears only when complete.
        audio: Waveform `[C, N]` or `[N, C]` in [-1, 1], one or two channels.
        sampling_rate: Samples per second, one that AAC knows.

    Raises:
        ValueError: If the source has no video, the sound is not valid, or the file name has another suffix.
    """
    path = check_suffix(path, VIDEO_SUFFIXES, "video")
    EncodedAudio.check_rate(sampling_rate)
    samples = stereo_samples(audio, sampling_rate)
    with open_media(source) as source_container:
        if not source_container.streams.video:
            raise ValueError(f"source {str(source)!r} has no video stream, so its sound cannot be replaced")
        with complete_file(path) as partial, open_output(partial) as container:
            _copy_with_sound(source_container, container, samples, sampling_rate)
    return path


def _copy_with_sound(source: InputContainer, target: OutputContainer, samples: np.ndarray, rate: int) -> None:
    source_stream = source.streams.video[0]
    stream = target.add_stream_from_template(source_stream)
    sound = EncodedAudio(target, samples, rate)
    for packet in source.demux(source_stream):
        # A packet without time only marks the end of the source.
        if packet.dts is None:
            continue
        seconds = float(packet.dts * packet.time_base)
        packet.stream = stream
        target.mux_one(packet)
        sound.write_until(seconds)
    sound.finish()
