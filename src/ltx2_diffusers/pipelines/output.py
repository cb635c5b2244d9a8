"""What a pipeline call returns, and how it becomes a file."""

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput

from ..checks import check_at_least_one, check_positive
from ..media import audio_tracks, copying, files, muxing, pixels, waveforms, writing
from ..media.hdr.writing import HDRFile, write_hdr
from ..models import mel

Decoded = list[list[PIL.Image.Image]] | np.ndarray | torch.Tensor
Info = dict[str, Any]
Rate = TypeVar("Rate", int, float)


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
        info: How the result was made: `preset` (version and kind), `sigmas`, `sampler`, `forwards_per_step` (most passes of
            the transformer in a step) and `passes` (of each pass, how many `forwards` were computed, and the `skip_ratio` of
            predictions that did without), all four lists with an entry per stage if there are several, `output_type`, `path` of a call with `save_path`, and what a recipe adds to it.
        video_source: File whose pictures, all of them, `frames` are, at the file's own rate or another, and whose packets
            `save` copies; `None` where they were generated.
        audio_source: File whose sound, from its start, is `audio`, and whose packets `save` copies.
    """

    frames: Decoded | None = None
    audio: torch.Tensor | None = None
    frame_rate: float | None = None
    sampling_rate: int | None = None
    info: Info | None = None
    video_source: str | None = None
    audio_source: str | None = None
    forms: ClassVar[tuple[str, ...]] = ("pil", "np", "pt", "uint8", "latent")
    """What `output_type` may be."""
    written_form: ClassVar[str] = "uint8"
    """The form that frames have on their way into a file."""
    file_type: ClassVar[type[writing.ClipFile]] = writing.ClipFile
    """What says how a video is written."""
    returned: ClassVar[tuple[str, ...]] = ("frames", "audio")
    """What calls with `return_dict=False` return of it."""

    def save(
        self,
        path: str | os.PathLike,
        *,
        frame_rate: float | None = None,
        sampling_rate: int | None = None,
        **encoder_options: Any,
    ) -> list[str]:
        """Write each item of the batch to an MP4 file (or, without video, a WAV file) and return the paths.

        A batch of one is written to `path`; item `i` of a larger batch to `<stem>-<i><suffix>`. Frames are converted
        to bytes on the device that holds them, a few at a time. The sound is cut or padded with silence to the
        duration of the video, from which it differs by less than one audio latent (40 ms).

        Packets of `video_source` and `audio_source` are copied, with their times, where a file of this suffix can hold them;
        else the frames are encoded anew as H.264 (without the last row or column of an odd side) and the sound as AAC. The
        call has warned of it if an MP4 file cannot hold them. Pictures are also encoded anew to obey `encoder_options`.

        Args:
            path: File name. Missing folders are created; a file appears under its name only when complete. A [`ClipFile`] says
                how a video is written.
            frame_rate, sampling_rate: Rates of an output that does not say them itself, because it was not made by a call of
                this package.
            encoder_options: Passed to [`~ltx2_diffusers.media.writing.write_video`], for example `crf` or `preset`.

        Raises:
            ValueError: If the output holds latents instead of frames and samples, or nothing; if a rate is missing, or
                another one is given than that of the output; if `path` is a `ClipFile` and there are no frames.
            OSError: If a file cannot be written; the message names it, and no other file was written.
        """
        self._check_decoded()
        file = self.file_type.of(path) if self.frames is not None else writing.ClipFile.of(path)
        if self.frames is None and file is path:
            raise ValueError(
                "`path` says how frames are written, and the output holds none; give the name of a WAV file"
            )
        audio = None if self.audio is None or not file.sound else torch.as_tensor(self.audio)
        frame_rate = _rate("frame_rate", self.frames, self.frame_rate, frame_rate)
        sampling_rate = _rate("sampling_rate", audio, self.sampling_rate, sampling_rate)
        complete = replace(self, audio=audio, frame_rate=frame_rate, sampling_rate=sampling_rate)
        batch_size = max(len(part) for part in (self.frames, audio) if part is not None)
        paths = files.writable_paths(path, batch_size)
        for index, item in enumerate(file.items(batch_size)):
            complete._write(item, index, encoder_options)
        return paths

    def moved_to(self, path: str | os.PathLike) -> "LTX2PipelineOutput":
        """Save, and return the output without frames and sound; `info["path"]` names the file, or lists those of a batch."""
        paths = self.save(path)
        info = {**(self.info or {}), "path": paths[0] if len(paths) == 1 else paths}
        return replace(self, frames=None, audio=None, info=info)

    def _write(self, path: writing.ClipFile, index: int, encoder_options: dict[str, Any]) -> None:
        """Write one item; given pictures and sound are copied unless they are asked to be encoded anew."""
        audio, rate = None, 0
        if self.audio is not None:
            audio, rate = self.audio[index], _known("sampling_rate", self.sampling_rate)
        if self.frames is None:
            if audio is not None:
                writing.write_audio(path.path, audio, rate)
            return
        frames, frame_rate = self.frames[index], _known("frame_rate", self.frame_rate)
        suffix = files.check_suffix(path, writing.VIDEO_SUFFIXES, "video").suffix.lower()
        if audio is not None:
            audio = waveforms.fit_audio(audio, self._duration_s(len(frames), audio.shape[-1]), rate)
            pictures = None if encoder_options else _copied_file(self.video_source, "video", suffix)
            if pictures is not None:
                muxing.replace_audio(pictures, path, audio, rate)
                return
        sound: dict[str, Any] = {}
        if path.sound and (source := _copied_file(self.audio_source, "audio", suffix)) is not None:
            sound = {"audio_source": source}
        elif audio is not None:
            audio, rate = encodable(audio, rate)
            sound = {"audio": audio, "sampling_rate": rate}
        if self.video_source is not None:
            # A given video may have odd sides, which H.264 cannot have.
            frames = (chunk[:, : len(chunk[0]) & ~1, : len(chunk[0, 0]) & ~1] for chunk in pixels.byte_frames(frames))
        writing.write_video(path, frames, frame_rate=frame_rate, **sound, **encoder_options)

    def _duration_s(self, num_frames: int, num_samples: int) -> float:
        """Length of a file in seconds; a given one may last half a frame longer than its frames at another rate."""
        frame_rate = _known("frame_rate", self.frame_rate)
        if self.video_source is None:
            return num_frames / frame_rate
        sound_s = num_samples / _known("sampling_rate", self.sampling_rate)
        return max(num_frames / frame_rate, min(sound_s, (num_frames + 0.5) / frame_rate))

    def _check_decoded(self) -> None:
        if self.frames is None and self.audio is None:
            raise ValueError("the output holds neither frames nor audio; there is nothing to save")
        # Shapes alone cannot tell the latents of 17 frames [B, C, 3, h, w] from frames [B, F, 3, H, W].
        is_latent = (self.info or {}).get("output_type") == "latent"
        if isinstance(self.frames, torch.Tensor):
            is_latent |= 3 not in (self.frames.shape[2], self.frames.shape[-1])
        if is_latent or (self.audio is not None and self.audio.ndim != 3):
            raise ValueError(
                'the output holds latents, which cannot be written to a media file; call the pipeline with output_type="pil", '
                '"np", "pt" or "uint8"'
            )


@dataclass
class LTX2DFRPipelineOutput(LTX2PipelineOutput):
    """What a pass of DFR returns: video, audio, and the single frames beside it from which the next pass goes on.

    Args:
        frames: As in [`LTX2PipelineOutput`]; latents are those of the whole canvas, with the padding at its end.
        audio, frame_rate, sampling_rate, info, video_source, audio_source: As in [`LTX2PipelineOutput`].
        keyframes: Un-normalised latents `[B, C, K, h, w]` of the keyframes, with `output_type="latent"` alone.
        keyframe_positions: Pixel frame of each on the canvas.
    """

    keyframes: torch.Tensor | None = None
    keyframe_positions: list[int] | None = None
    returned: ClassVar[tuple[str, ...]] = ("frames", "audio", "keyframes", "keyframe_positions")


@dataclass
class LTX2HDRPipelineOutput(LTX2PipelineOutput):
    """Generated video as linear light.

    Args:
        frames: Linear Rec.709 light in which 1.0 is diffuse white, float32 `[B, F, H, W, 3]`: a tensor with the call's `output_type`
            of `"pt"`, an array with `"np"`; shadows may lie a little below 0. With `"latent"` un-normalised latents
            `[B, C, F', H', W']`.
        audio: `None`.

    [`save`] writes it as [`write_hdr`] does: an `.mp4` or `.mov` file in PQ, or a sequence of `.exr` or `.png`; an [`HDRFile`] says
    more. Its `encoder_options` are `crf` and `preset`.
    """

    forms: ClassVar[tuple[str, ...]] = ("pt", "np", "latent")
    written_form: ClassVar[str] = "pt"
    file_type: ClassVar[type[writing.ClipFile]] = HDRFile

    def _write(self, path: writing.ClipFile, index: int, encoder_options: dict[str, Any]) -> None:
        frames: Any = self.frames
        write_hdr(path, frames[index], _known("frame_rate", self.frame_rate), **encoder_options)


def _known(name: str, rate: Rate | None) -> Rate:
    if rate is None:
        raise ValueError(
            f"the output does not say its `{name}`, which a media file needs; give it, as in save(path, frame_rate=24.0, "
            "sampling_rate=24000)"
        )
    return rate


def _rate(name: str, part: Any, own: Rate | None, given: Rate | None) -> Rate | None:
    """The rate of a part of the output: its own, or the given one where it has none."""
    if part is None:
        return own
    check_positive(**{name: given})
    if own is not None and given is not None and given != own:
        raise ValueError(f"`{name}` is {given}, but the output says that it was made at {own}; leave it out")
    return _known(name, given if own is None else own)


def announce_encoding(sources: Iterable[str | None], path: str | os.PathLike | None = None) -> None:
    """Warn, before anything is computed, if given pictures or sound cannot be copied into the file to be written.

    Args:
        sources: Files of the pictures and of the sound that are handed over as they are; `None` for each that is not.
        path: The file, where the call knows it; default one that ends in `.mp4`.
    """
    file = path if isinstance(path, writing.ClipFile) else writing.ClipFile("clip.mp4" if path is None else path)
    suffix = os.path.splitext(file)[1].lower()
    for kind, source in zip(("video", "audio") if file.sound else ("video",), sources):
        if source is not None:
            copying.warn_of_encoding(source, kind, suffix)


def _copied_file(source: str | None, kind: str, suffix: str) -> str | None:
    """The file whose packets are copied; `None` if there is none, or if what was read of it is encoded anew.

    A call knows no name and speaks of MP4 files; what is true of others alone is said here.
    """
    if source is None:
        return None
    try:
        if copying.copy_obstacle(source, kind, suffix) is None:
            return source
        if suffix != ".mp4":
            copying.warn_of_encoding(source, kind, suffix)
    except (OSError, ValueError) as error:
        # What was computed is worth more than the packets of a file that is gone.
        warnings.warn(f"{source!r} cannot be read any more and is encoded anew: {error}", stacklevel=4)
    return None


Result = LTX2PipelineOutput | Any
"""What a call returns: this, or with `return_dict=False` the tuple `(frames, audio)`."""


def encodable(audio: torch.Tensor, sampling_rate: int) -> tuple[torch.Tensor, int]:
    """A waveform `[channels, samples]` and its rate as AAC takes them; given sound may have any layout and rate."""
    rate = audio_tracks.encodable_rate(sampling_rate)
    stereo = audio if audio.shape[0] <= 2 else mel.conform_to_stereo(audio[None])[0]
    return mel.resample(stereo[None], sampling_rate, rate)[0], rate


def encode_video(
    video: Any,
    fps: Rate,
    output_path: str | os.PathLike,
    audio: torch.Tensor | None = None,
    audio_sample_rate: int | None = None,
    video_chunks_number: int = 1,
) -> None:
    """Write one clip to an MP4 file, as diffusers' function of this name is called.

    Args:
        video: `[F, H, W, 3]` or `[F, 3, H, W]`, bytes or floats in [0, 1]; or images; or an iterator over such pieces.
        fps: Frames per second, also such as 23.976.
        output_path: The file, which appears when it is complete.
        audio: Waveform `[channels, N]` in [-1, 1]; default `None`, a silent file.
        audio_sample_rate: Its samples per second.
        video_chunks_number: Pieces in which a tensor is handed over; default 1.

    Raises:
        ValueError: If a shape, a rate or the name of the file is wrong.
    """
    check_at_least_one(video_chunks_number=video_chunks_number)
    frames = video.tensor_split(video_chunks_number) if isinstance(video, torch.Tensor) else video
    sound: dict[str, Any] = {}
    if audio is not None:
        audio, rate = encodable(torch.as_tensor(audio), _known("audio_sample_rate", audio_sample_rate))
        sound = {"audio": audio, "sampling_rate": rate}
    writing.write_video(output_path, frames, frame_rate=fps, **sound)
