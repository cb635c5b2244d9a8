"""Writing a clip piece by piece while it is being made.

Shapes: F frames, H and W rows and columns of pixels, C channels, N samples.
"""

import os
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from .audio_tracks import EncodedAudio
from .files import check_suffix, exact_frame_rate
from .pixels import byte_frames
from .waveforms import stereo_samples
from .writing import VIDEO_SUFFIXES, ClipFile, Frames, VideoTrack, check_encoder_options, check_frame_size


class ClipWriter:
    """An MP4 file that grows by pieces, of which only one is in memory; a context manager.

    The file appears under its name when the block ends without error; whether it can be written is tried at once. The sound is cut, or continued with silence, to
    the length of the video.

    Args:
        path: File name ending in `.mp4` or `.mov`, or a [`~ltx2_diffusers.media.writing.ClipFile`]. Missing folders are created.
        frame_rate: Frames per second; decimals stand for exact rates, 23.976 for 24000/1001.
        sampling_rate: Samples per second of the sound; `None` for a silent file.
        crf: Constant rate factor of x264, 0 (lossless) to 51; default 19.
        preset: Speed of x264; default `"veryfast"`.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        frame_rate: float | Fraction,
        sampling_rate: int | None = None,
        crf: int = 19,
        preset: str = "veryfast",
    ) -> None:
        self.path = check_suffix(path, VIDEO_SUFFIXES, "video")
        self.file = ClipFile.of(path)
        self.file.check()
        self.rate = exact_frame_rate(frame_rate)
        check_encoder_options(crf, preset)
        if sampling_rate is not None:
            EncodedAudio.check_rate(sampling_rate)
        self.sampling_rate = sampling_rate if self.file.sound else None
        self.options = {"crf": str(crf), "preset": preset}
        self._resources = ExitStack()
        self._video: VideoTrack | None = None
        self._sound: EncodedAudio | None = None

    def __enter__(self) -> "ClipWriter":
        self._container = self._resources.enter_context(self.file.opened())
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is not None:
            self._resources.__exit__(*error)
            return
        with self._resources:
            if self._video is None:
                raise ValueError(f"nothing was written to {str(self.path)!r}; a video needs at least one frame")
            seconds = self._video.flush()
            if self._sound is not None:
                self._sound.cut(round(seconds * self._sound.sampling_rate))
                self._sound.finish()

    @property
    def num_frames(self) -> int:
        """Frames written so far."""
        return 0 if self._video is None else self._video.num_frames

    def write(self, frames: Frames, audio: torch.Tensor | np.ndarray | None = None) -> None:
        """Add a piece.

        Args:
            frames: As in [`~ltx2_diffusers.media.writing.write_video`], all pieces of one size.
            audio: Waveform `[C, N]` in [-1, 1] that belongs to them; of a piece without frames it is left out.
        """
        if not self.file.sound:
            audio = None
        if audio is not None and self.sampling_rate is None:
            raise ValueError(
                "audio is given, but the file was opened without `sampling_rate`; give it, or leave audio out"
            )
        for index, chunk in enumerate(chunk for chunk in byte_frames(frames) if len(chunk)):
            video = self._open_tracks(chunk) if self._video is None else self._video
            if self._sound is not None and index == 0 and audio is not None and audio.shape[-1]:
                self._sound.append(stereo_samples(audio, self._sound.sampling_rate))
            seconds = video.write(chunk)
            if self._sound is not None:
                self._sound.write_until(seconds)
            self.file.report(video.num_frames)

    def _open_tracks(self, first: np.ndarray) -> VideoTrack:
        check_frame_size(first.shape[1], first.shape[2])
        self._video = VideoTrack(self._container, first.shape[1:3], self.rate, self.options)
        if self.sampling_rate is not None:
            self._sound = EncodedAudio(self._container, np.zeros((2, 0), np.float32), self.sampling_rate)
        return self._video
