"""New sound for an existing video, without encoding its pictures again."""

import os
from pathlib import Path

import numpy as np
import torch

from ..atomic import complete_file
from .audio_tracks import EncodedAudio
from .clock import main_video
from .copying import CopiedPackets, copy_description, copy_obstacle
from .files import check_suffix, open_media
from .waveforms import stereo_samples
from .writing import VIDEO_SUFFIXES, open_output


def replace_audio(
    source: str | os.PathLike, path: str | os.PathLike, audio: torch.Tensor | np.ndarray, sampling_rate: int
) -> Path:
    """Write the video packets of `source` unchanged, together with new sound, and return the path.

    The new sound begins with the first picture that is displayed, at time 0 of the new file, and the pictures keep the
    distances of their times. Of several video streams the first one that is no cover picture is written; other streams
    (sound, subtitles, data, cover pictures) are left out. Title, time of creation and chapters stay.

    Args:
        source: Media file with a video stream.
        path: File name ending in `.mp4` or `.mov`; may be `source` itself. Missing folders are created; the file
            appears only when complete.
        audio: Waveform `[C, N]` or `[N, C]` in [-1, 1], one or two channels.
        sampling_rate: Samples per second, one that AAC knows.

    Raises:
        ValueError: If the source has no video or its packets cannot be copied into such a file, the sound is not valid,
            or the file name has another suffix.
    """
    path = check_suffix(path, VIDEO_SUFFIXES, "video")
    EncodedAudio.check_rate(sampling_rate)
    samples = stereo_samples(audio, sampling_rate)
    with open_media(source) as container:
        if main_video(container) is None:
            raise ValueError(f"source {str(source)!r} has no video stream, so its sound cannot be replaced")
    if (obstacle := copy_obstacle(source, "video", path.suffix.lower())) is not None:
        raise ValueError(f"source cannot be used: {obstacle}, or write its frames anew with `write_video`")
    with (
        complete_file(path) as partial,
        open_output(partial) as target,
        CopiedPackets(target, source, "video") as pictures,
    ):
        sound = EncodedAudio(target, samples, sampling_rate)
        copy_description(pictures.source, target, pictures.zero_s)
        for packet, seconds in pictures:
            target.mux_one(packet)
            sound.write_until(seconds)
        sound.finish()
    return path
