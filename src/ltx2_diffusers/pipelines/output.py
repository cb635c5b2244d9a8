"""What a pipeline call returns, and how it becomes a file."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput


@dataclass
class LTX2PipelineOutput(BaseOutput):
    """Generated video and audio.

    Args:
        frames: Video of a batch `B` with `F` frames; its form follows the call's `output_type`: `"pil"` a list of
            lists of images, `"np"` an array `[B, F, H, W, 3]` in [0, 1], `"pt"` a tensor `[B, F, 3, H, W]` in [0, 1],
            `"uint8"` a byte tensor `[B, F, H, W, 3]`, `"latent"` un-normalised latents `[B, C, F', H', W']`. `None` if
            the call generated no video.
        audio: Waveform `[B, channels, samples]` in [-1, 1], or un-normalised latents `[B, C, L, M]` with
            `output_type="latent"`. `None` if the call generated no audio.
        frame_rate: Frames per second.
        sampling_rate: Samples per second of `audio`.
        info: How the result was made: `preset` (version and kind), `sigmas`, `forwards_per_step`, and what a recipe
            adds to it.
    """

    frames: list[list[PIL.Image.Image]] | np.ndarray | torch.Tensor | None = None
    audio: torch.Tensor | None = None
    frame_rate: float | None = None
    sampling_rate: int | None = None
    info: dict[str, Any] | None = None

    def save(self, path: str | os.PathLike, **encoder_options: Any) -> list[str]:
        """Write each item of the batch to an MP4 file (or, without video, a WAV file) and return the paths.

        A batch of one is written to `path`; item `i` of a larger batch to `<stem>-<i><suffix>`. Frames are converted
        to bytes on the device that holds them, a few at a time. The sound is cut or padded with silence to the
        duration of the video, from which it differs by less than one audio latent (40 ms).

        Args:
            path: File name. Missing folders are created; a file appears under its name only when complete.
            encoder_options: Passed to [`~ltx2_diffusers.media.writing.write_video`], for example `crf` or `preset`.

        Raises:
            ValueError: If the output holds latents instead of frames and samples.
        """
        from ..media.writing import write_audio, write_video

        batch_size = len(self.frames if self.frames is not None else self.audio)
        stem, suffix = os.path.splitext(os.fspath(path))
        paths = [os.fspath(path)] if batch_size == 1 else [f"{stem}-{i}{suffix}" for i in range(batch_size)]
        self._check_decoded()
        for index, item_path in enumerate(paths):
            audio = None if self.audio is None else self.audio[index]
            if self.frames is None:
                write_audio(item_path, audio, self.sampling_rate)
            else:
                frames = self.frames[index]
                audio = None if audio is None else fit_audio(audio, len(frames) / self.frame_rate, self.sampling_rate)
                write_video(
                    item_path,
                    frames,
                    frame_rate=self.frame_rate,
                    audio=audio,
                    sampling_rate=self.sampling_rate,
                    **encoder_options,
                )
        return paths

    def _check_decoded(self) -> None:
        is_tensor = isinstance(self.frames, torch.Tensor)
        if (is_tensor and 3 not in (self.frames.shape[2], self.frames.shape[-1])) or (
            self.audio is not None and self.audio.ndim != 3
        ):
            raise ValueError(
                'the output holds latents, which cannot be written to a media file; call the pipeline with output_type="pil", '
                '"np", "pt" or "uint8"'
            )


def fit_audio(audio: torch.Tensor, duration_s: float, sampling_rate: int) -> torch.Tensor:
    """Cut a waveform `[channels, samples]` to `duration_s` seconds, or pad it with silence."""
    samples = round(duration_s * sampling_rate)
    if audio.shape[-1] >= samples:
        return audio[..., :samples]
    return torch.nn.functional.pad(audio, (0, samples - audio.shape[-1]))
