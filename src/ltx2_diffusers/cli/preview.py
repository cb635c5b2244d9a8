"""A contact sheet of the clip as it is being made.

Shapes: B clips, C channels, F latent frames, h and w latent rows and columns.
"""

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

_FRAMES, _ACROSS = 6, 3
_WIDTH, _GAP, _CAPTION = 256, 4, 16


class ContactSheet:
    """A step callback that draws what the network takes the finished video to be.

    A few latent frames, spread over the clip, are decoded by the video VAE as if each were the first of its clip: true
    colours at little cost, with less detail in motion than the finished clip has.

    Args:
        path: Picture to write; it is replaced whole.
        every: Steps from one picture to the next; the last step of a stage always makes one. Default 5.
    """

    inputs = ("denoised",)

    def __init__(self, path: Path, every: int = 5) -> None:
        self.path = path
        self.every = every

    def __call__(self, pipeline: Any, step: int, _timestep: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Write a picture if it is time for one."""
        last = step + 1 == pipeline.num_timesteps
        if (step + 1) % self.every == 0 or last:
            frames = self._frames(pipeline, tensors["denoised"][:1])
            self._write(frames, f"step {step + 1} of {pipeline.num_timesteps}, {frames.shape[2]} x {frames.shape[1]}")
        return {}

    def _frames(self, pipeline: Any, latents: Any) -> Any:
        """Bytes `[K, H, W, 3]` of some frames of normalised latents `[1, C, F, h, w]`."""
        from ..pipelines.arguments import Delivery
        from ..pipelines.engine import decode_video

        count = latents.shape[2]
        shown = min(_FRAMES, count)
        places = [round(index * (count - 1) / max(1, shown - 1)) for index in range(shown)]
        singles = latents[0, :, places].movedim(1, 0)[:, :, None].to(pipeline.transformer.dtype)
        frames: Any = decode_video(pipeline, singles, Delivery(output_type="uint8"))
        return frames[:, 0]

    def _write(self, frames: Any, caption: str) -> None:
        import PIL.Image
        import PIL.ImageDraw

        from ..atomic import complete_file

        rows, columns = frames.shape[1:3]
        width = min(_WIDTH, columns)
        height = max(1, round(rows * width / columns))
        across, down = min(_ACROSS, len(frames)), ceil(len(frames) / _ACROSS)
        size = (across * (width + _GAP) + _GAP, down * (height + _GAP) + _GAP + _CAPTION)
        sheet = PIL.Image.new("RGB", size, "black")
        for index, frame in enumerate(frames):
            picture = PIL.Image.fromarray(frame.numpy()).resize((width, height))
            place = (_GAP + index % across * (width + _GAP), _GAP + index // across * (height + _GAP))
            sheet.paste(picture, place)
        PIL.ImageDraw.Draw(sheet).text((_GAP, size[1] - _CAPTION), caption, fill="white")
        with complete_file(self.path) as partial:
            sheet.save(partial)
