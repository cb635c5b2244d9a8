"""The sound of a whole clip, window by window."""

import os

import torch

from ...media.audio_tracks import EncodedAudio, can_copy_audio
from ...media.reading import probe, read_audio
from ...models.mel import conform_to_stereo
from ...pipelines.conditions import Waveform
from .board import Storyboard
from .plan import PlannedSegment

# The encoder rounds a clip of equal length up or down by a latent.
_SHORTER_S = 0.04


class Track:
    """The file whose sound a clip has: read once to know its length, and then one window at a time.

    Args:
        board: A storyboard with `audio`.
        num_frames: Frames of the whole clip.

    Raises:
        ValueError: If the file has no sound, too little of it, or sound at a rate that AAC does not know.
    """

    def __init__(self, board: Storyboard, num_frames: int) -> None:
        self.path = os.fspath(board.audio or "")
        self._frame_rate, self._start_s = board.frame_rate, board.audio_start_s
        info = probe(self.path)
        if info.sampling_rate is None:
            raise ValueError(f"`audio` {self.path!r} has no sound; leave it out")
        self.rate = info.sampling_rate
        EncodedAudio.check_rate(self.rate)
        sound = read_audio(self.path, board.audio_start_s)
        self._num_samples = 0 if sound is None else sound[0].shape[-1]
        check_length(board, num_frames, self._num_samples / self.rate)

    def shown(self, one: PlannedSegment) -> Waveform:
        """What a segment is made for, what it shares included."""
        return Waveform(self._read(one.start, one.end)[None], self.rate)

    def window(self, one: PlannedSegment) -> torch.Tensor:
        """Samples `[2, N]` that are heard with what a segment adds."""
        return self._read(one.first_new, one.end)

    def silence(self, num_frames: int) -> Waveform:
        """As much of nothing, to check with."""
        return Waveform(torch.zeros(1, 2, round(num_frames / self._frame_rate * self.rate)), self.rate)

    def is_copied(self, suffix: str) -> bool:
        """Whether the packets of the file can be copied into one of a suffix."""
        return not self._start_s and can_copy_audio(self.path, suffix)

    def _read(self, begin: int, end: int) -> torch.Tensor:
        """Samples of the frames from one to another, silence behind the end of the sound."""
        # Windows that follow each other meet at one sample.
        first, last = (round(frame / self._frame_rate * self.rate) for frame in (begin, end))
        samples = torch.zeros(2, last - first)
        if first < self._num_samples:
            offset = round(self._start_s * self.rate)
            read = read_audio(self.path, (offset + first) / self.rate, (offset + last) / self.rate)
            if read is not None:
                found = conform_to_stereo(read[0])[0, :, : last - first]
                samples[:, : found.shape[1]] = found
        return samples


def check_length(board: Storyboard, num_frames: int, given_s: float) -> None:
    """Raise `ValueError` if the sound from `audio_start_s` on, of so many seconds, is too short for a clip of so many frames."""
    wanted_s = num_frames / board.frame_rate
    if board.audio_fit == "crop" and given_s < wanted_s - _SHORTER_S:
        raise ValueError(
            f"`audio` lasts {given_s:.2f} s from `audio_start_s` {board.audio_start_s:g} on, and the shots {wanted_s:.2f} s "
            "together; use shorter shots, a longer sound, or `audio_fit: pad` (silence at the end)"
        )
