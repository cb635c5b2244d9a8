"""From video latents to frames of the wished type, piece by piece where the decoder streams or the clip is given."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from .. import checks
from ..media import pixels, preprocess
from ..media.writing import ClipFile
from .base import LTX2PipelineBase
from .output import Decoded

# Values of a given clip that are converted at a time, 32 MiB as floats, so that a long one is never held as floats.
_VALUES_PER_PIECE = 2**23


class FramesToCome:
    """Frames of a clip that are decoded while they are read, which can be done once.

    Args:
        num_frames: How many there are.
        pieces: Bytes `[f, H, W, 3]`.
    """

    def __init__(self, num_frames: int, pieces: Iterator[torch.Tensor]) -> None:
        self.num_frames = num_frames
        self.pieces = pieces

    def __len__(self) -> int:
        return self.num_frames

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self.pieces

    def __getitem__(self, part: slice) -> "FramesToCome":
        """Frames in a row of these; what comes behind them is not decoded."""
        first, last, _ = part.indices(self.num_frames)
        return FramesToCome(last - first, self._between(first, last))

    def _between(self, first: int, last: int) -> Iterator[torch.Tensor]:
        start = 0
        for piece in self.pieces:
            end = start + len(piece)
            if end > first:
                yield piece[max(first - start, 0) : last - start]
            if end >= last:
                return
            start = end


def decoded(
    pipeline: LTX2PipelineBase,
    latents: torch.Tensor,
    how: tuple,
    output_type: str,
    file: ClipFile | None = None,
    component: str = "vae",
) -> Decoded:
    """Turn un-normalised video latents into frames.

    Args:
        pipeline: The pipeline, whose decoder says whether it streams.
        latents: `[B, C, F, h, w]`.
        how: What the decoder's `decode` takes beside them: the timestep that a video autoencoder may be conditioned on; of a
            diffusion decoder the source of its noise and the number of its steps.
        output_type: Form of the frames.
        file: Where the frames, bytes, are written: a single clip, if it streams, is handed over as [`FramesToCome`]. Default
            nowhere.
        component: Name of the decoder: `"vae"` (default) or `"diffusion_decoder"`.
    """
    network = getattr(pipeline, component)
    latents = latents.to(network.dtype)

    def finite(video: torch.Tensor) -> torch.Tensor:
        remedy = f"decode in float32: pipe.{component}.to(torch.float32)"
        checks.check_finite("the decoded video", video, remedy)
        return video

    # A batch that is sliced is decoded clip by clip inside `decode`, each of them streamed if need be.
    if not network.streams(latents) or (getattr(network, "use_slicing", False) and len(latents) > 1):
        return video_as(pipeline, finite(network.decode(latents, *how, return_dict=False)[0]), output_type)
    chunks, num_frames = network.decode_streamed(latents, *how), network.num_decoded_frames(latents.shape[2])
    if file is not None and len(latents) == 1:
        clip = (frames for chunk in chunks for frames in pixels.decoded_frames(finite(chunk)[0]))
        to_come: Any = [FramesToCome(num_frames, clip)]
        return to_come
    chunks = chunks if file is None else _reported(chunks, file)
    if output_type != "uint8":
        pieces = (video_as(pipeline, finite(chunk), output_type) for chunk in chunks)
        return _joined_images(pieces) if output_type == "pil" else _joined(pieces, num_frames, len(latents))
    return _joined((_bytes(finite(chunk)) for chunk in chunks), num_frames, len(latents))


def _reported(chunks: Iterable[torch.Tensor], file: ClipFile) -> Iterator[torch.Tensor]:
    """Chunks of a batch, of whose files none is begun before all of them are decoded."""
    for chunk in chunks:
        file.report(0)
        yield chunk


def _bytes(video: torch.Tensor) -> torch.Tensor:
    """Pixels `[B, 3, F, H, W]` in [-1, 1] as bytes `[B, F, H, W, 3]` on their device."""
    return torch.stack([torch.cat(list(pixels.decoded_bytes(item))) for item in video])


def video_as(pipeline: LTX2PipelineBase, video: torch.Tensor, output_type: str) -> Decoded:
    """Pixels `[B, 3, F, H, W]` in [-1, 1] in the wished type."""
    if output_type == "uint8":
        return torch.stack([torch.cat(list(pixels.decoded_frames(item))) for item in video])
    return pipeline.video_processor.postprocess_video(video, output_type=output_type)


def original_frames(pipeline: LTX2PipelineBase, given: torch.Tensor, batch_size: int, output_type: str) -> Decoded:
    """Given pixels `[F, H, W, 3]` in [0, 255] in the wished type, a few at a time, one clip for the whole batch."""
    if output_type == "uint8" and given.dtype == torch.uint8:
        return given.repeat(batch_size, 1, 1, 1, 1)
    pieces = (
        video_as(pipeline, preprocess.normalize_pixels(piece.movedim(-1, 0).float())[None], output_type)
        for piece in given.split(max(1, _VALUES_PER_PIECE // given[0].numel()))
    )
    if output_type == "pil":
        images = _joined_images(pieces)[0]
        return [images.copy() for _ in range(batch_size)]
    return _joined(pieces, len(given), batch_size)


def _joined_images(pieces: Iterable[Any]) -> Any:
    """Pieces of clips, each a list of images for every clip of the batch, as such lists of the whole clips."""
    return [[image for part in clip for image in part] for clip in zip(*pieces)]


def _joined(pieces: Iterable[Any], num_frames: int, batch_size: int) -> Decoded:
    """Pieces `[B, f, ...]` of clips, or `[1, f, ...]` of one for all, in memory that is taken once; bytes on the host."""
    frames, start, are_tensors = None, 0, True
    for piece in pieces:
        are_tensors, piece = isinstance(piece, torch.Tensor), torch.as_tensor(piece)
        if frames is None:
            frames = _room(piece, (batch_size, num_frames, *piece.shape[2:]))
        end = start + piece.shape[1]
        # Into pinned memory this goes on beside the decoding of the next piece.
        frames[:, start:end].copy_(piece, non_blocking=True)
        start = end
        if start == num_frames and piece.device.type == "cuda":
            torch.cuda.current_stream(piece.device).synchronize()
        # It would live on while the next one is made.
        del piece
    if frames is None:
        raise ValueError("there are no frames to join; a clip has at least one")
    return frames if are_tensors else frames.numpy()


def _room(piece: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Memory for a whole clip of the kind of `piece`; bytes lie on the host, pinned for a card to write to."""
    if piece.dtype != torch.uint8:
        return piece.new_empty(shape)
    return torch.empty(shape, dtype=torch.uint8, pin_memory=piece.device.type == "cuda")
