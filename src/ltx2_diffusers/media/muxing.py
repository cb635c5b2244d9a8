"""New sound for an existing video, and videos put one behind the other, without encoding their pictures again."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from av.container import OutputContainer

from .audio_tracks import CopiedAudio, EncodedAudio, NoAudio, check_audio_source
from .clock import main_video
from .copying import CopiedPackets, copy_description, copy_obstacle
from .files import check_suffix, open_media
from .waveforms import stereo_samples
from .writing import VIDEO_SUFFIXES, ClipFile


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
            appears only when complete, unless a [`~ltx2_diffusers.media.writing.ClipFile`] says otherwise.
        audio: Waveform `[C, N]` or `[N, C]` in [-1, 1], one or two channels.
        sampling_rate: Samples per second, one that AAC knows.

    Raises:
        ValueError: If the source has no video or its packets cannot be copied into such a file, the sound is not valid,
            or the file name has another suffix.
    """
    file, path = ClipFile.of(path), check_suffix(path, VIDEO_SUFFIXES, "video")
    if not file.sound:
        raise ValueError("`path` is a file without sound, and sound is all that would be new; leave `sound=False` out")
    EncodedAudio.check_rate(sampling_rate)
    samples = stereo_samples(audio, sampling_rate)
    with open_media(source) as container:
        if main_video(container) is None:
            raise ValueError(f"source {str(source)!r} has no video stream, so its sound cannot be replaced")
    if (obstacle := copy_obstacle(source, "video", path.suffix.lower())) is not None:
        raise ValueError(f"source cannot be used: {obstacle}, or write its frames anew with `write_video`")
    with file.opened() as target, CopiedPackets(target, source, "video") as pictures:
        sound = EncodedAudio(target, samples, sampling_rate)
        copy_description(pictures.source, target, pictures.zero_s)
        for count, (packet, seconds) in enumerate(pictures):
            file.report(count)
            target.mux_one(packet)
            sound.write_until(seconds)
        sound.finish()
    return path


def join_clips(
    parts: Sequence[str | os.PathLike],
    path: str | os.PathLike,
    sound: Iterable[torch.Tensor | np.ndarray] = (),
    sampling_rate: int | None = None,
    audio_source: str | os.PathLike | None = None,
) -> Path:
    """Write the video packets of several clips one behind the other, together with one sound, and return the path.

    One piece of the sound is in memory at a time; encoded as a whole, it has no seams.

    Args:
        parts: Files that were written with the same settings, as by [`~ltx2_diffusers.media.streaming.ClipWriter`]; their own
            sound is left out.
        path: File name ending in `.mp4` or `.mov`, or a [`~ltx2_diffusers.media.writing.ClipFile`]. Missing folders are created;
            the file appears only when complete, unless that says otherwise.
        sound: Pieces `[C, N]` in [-1, 1] of the sound, one for each part; they are cut, or continued with silence, to the
            length of the video. Default none.
        sampling_rate: Samples per second of the pieces; `None` without them.
        audio_source: Media file whose sound packets are copied instead, up to the end of the video.

    Raises:
        ValueError: If there are no parts, or they are of different kinds; if the sound is not valid.
    """
    file, path = ClipFile.of(path), check_suffix(path, VIDEO_SUFFIXES, "video")
    if not parts:
        raise ValueError("there are no clips to join; give at least one")
    if not file.sound:
        sound, sampling_rate, audio_source = (), None, None
    if sampling_rate is not None:
        EncodedAudio.check_rate(sampling_rate)
    if audio_source is not None:
        check_audio_source(audio_source, path.suffix.lower())
    pieces, num_frames = iter(sound), 0
    with file.opened() as target:
        pictures = CopiedPackets(target, parts[0], "video")
        with _track(target, sampling_rate, audio_source) as track:
            for index, part in enumerate(parts):
                pictures = CopiedPackets(target, part, "video", after=pictures) if index else pictures
                if pictures.num_packets < 2:
                    raise ValueError(f"{os.fspath(part)!r} has a single picture; join clips of at least two")
                piece = next(pieces, None)
                if isinstance(track, EncodedAudio) and piece is not None and piece.shape[-1]:
                    track.append(stereo_samples(piece, sampling_rate))
                with pictures:
                    for packet, seconds in pictures:
                        file.report(num_frames)
                        target.mux_one(packet)
                        track.write_until(seconds)
                        num_frames += 1
            if isinstance(track, EncodedAudio):
                track.cut(round(pictures.end_s * track.sampling_rate))
            track.write_until(pictures.end_s)
            track.finish()
    return path


def _track(target: OutputContainer, sampling_rate: int | None, source: str | os.PathLike | None) -> NoAudio:
    """The sound of a file being written: of samples that are yet to come, of another file, or none."""
    if sampling_rate is not None:
        return EncodedAudio(target, np.zeros((2, 0), np.float32), sampling_rate)
    return NoAudio() if source is None else CopiedAudio(target, source)
