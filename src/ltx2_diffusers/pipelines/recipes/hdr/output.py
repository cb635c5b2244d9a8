"""What an HDR call returns, and how it becomes a file."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ....media.hdr.writing import HDRFile, write_hdr
from ....media.writing import ClipFile
from .. import LTX2PipelineOutput


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
    file_type: ClassVar[type[ClipFile]] = HDRFile

    def _write(self, path: ClipFile, index: int, encoder_options: dict[str, Any]) -> None:
        if self.frames is not None and self.frame_rate is not None:
            write_hdr(path, self.frames[index], self.frame_rate, **encoder_options)  # type: ignore[arg-type]  # no images
