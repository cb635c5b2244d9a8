"""Memory of stages for a clip of any size: lines through what is counted at three sizes, once for a checkpoint.

What a stage holds grows with the latents of the video, or of a frame of it, and with those of the sound.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from ..sampling.denoiser import NeededPasses, PassLayout
from . import stages
from .needs import Clips, Counts, Needs
from .plan import ClipWish
from .policy import DENOISER
from .stages import Reading

if TYPE_CHECKING:
    from ..pipelines.plan import ClipPlan

SIZES = ((256, 384, 25), (1024, 1536, 25), (256, 384, 481))
"""Height, width and frames of what is counted: of the second one the pictures are larger, the third one is longer."""
# Latent frames beyond which the memory of a decoder that streams does not grow.
_STREAMED = 6
_ALONE = NeededPasses(False, False, False)


class Line(NamedTuple):
    """Bytes of a stage.

    Args:
        base: Those of no clip.
        per_latent: More for each video latent, of the clip or of a frame.
        per_sound: More for each latent of the sound.
        of_frame: Whether the latents of one frame count.
    """

    base: float
    per_latent: float
    per_sound: float
    of_frame: bool

    def at(self, clip: "ClipPlan") -> int:
        """Bytes for a clip."""
        size = self.base + self.per_latent * _latents(clip, self.of_frame) + self.per_sound * clip.audio.frames
        # A clip smaller than all that were counted.
        return max(int(size), 0)


def _latents(clip: "ClipPlan", of_frame: bool) -> int:
    return clip.video.height * clip.video.width * (1 if of_frame else clip.video.frames)


@dataclass(frozen=True)
class Peak:
    """What a stage takes.

    Args:
        uses: Components that run in it.
        activations: Bytes beside their weights.
    """

    uses: tuple[str, ...]
    activations: int


class Lines:
    """The lines of all stages of a checkpoint.

    Args:
        counts: Counts what the checkpoint needs.
        clips: One clip of each of `SIZES`.
        positions: Text positions, all of which are read.
        with_tiles: Whether videos are decoded in tiles.
    """

    def __init__(self, counts: Counts, clips: "list[ClipPlan]", positions: int, with_tiles: bool) -> None:
        self._counts, self._clips, self._positions = counts, clips, positions
        reading = Reading(2, positions, positions)
        self._reading = counts.count(stages.connecting(self._models("connectors"), reading), "connecting").peak
        self._guided = self._line(lambda clip: self._denoising(clip, guided=True))
        self._alone = self._line(lambda clip: self._denoising(clip, guided=False))
        self._picture = self._line(lambda clip: self._count(stages.encoding_given, "vae", clip, 1), of_frame=True)
        self._given = self._line(lambda clip: self._count(stages.encoding_given, "vae", clip, clip.num_frames))
        self._sound = self._line(lambda clip: self._count(stages.decoding_audio, "audio_vae vocoder", clip))
        how = "tiled_in_space" if with_tiles else "whole"
        self._whole = self._line(lambda clip: self._count(stages.decoding_video, "vae", clip, how))
        self._streamed = self._line(
            lambda clip: self._count(stages.decoding_video, "vae", _shortened(clip), "streamed"), of_frame=True
        )
        self._upsampling: Line | None = None
        if "latent_upsampler" in counts.parts.configs:
            self._upsampling = self._line(lambda clip: self._count(stages.upsampling, "latent_upsampler", clip))
        counts.forget()

    def peaks(self, wish: ClipWish, clips: Clips, streamed: bool) -> list[Peak]:
        """What each stage of a generation takes; a batch takes as often as much.

        Args:
            wish: The generation.
            clips: Its sizes, those of a single clip.
            streamed: Whether the decoder streams.
        """
        clip, first = clips.clip, clips.first
        guided = self._guided if wish.guided else self._alone
        found: list[tuple[tuple[str, ...], int]]
        found = [(("connectors",), self._reading), ((DENOISER,), guided.at(first))]
        if wish.image:
            found.append((("vae",), self._picture.at(clip)))
        if wish.given_frames:
            found.append((("vae",), self._given.at(clip)))
        if wish.two_stage and self._upsampling is not None:
            found += [(("latent_upsampler",), self._upsampling.at(first)), ((DENOISER,), self._alone.at(clip))]
        found.append((("audio_vae", "vocoder"), self._sound.at(clip)))
        # Of few frames a decoder that streams never holds as many as it can.
        decoding = min(self._whole.at(clip), self._streamed.at(clip)) if streamed else self._whole.at(clip)
        found.append((("vae",), decoding))
        return [Peak(uses, wish.num_videos * size) for uses, size in found]

    def _line(self, count: Callable[["ClipPlan"], int], of_frame: bool = False) -> Line:
        """The line through what is counted at the three sizes, of which the first two sound alike."""
        small, _, long = self._clips
        found = [count(clip) for clip in self._clips]
        latents = [_latents(clip, of_frame) for clip in self._clips]
        per_latent = (found[1] - found[0]) / (latents[1] - latents[0])
        longer = found[2] - found[0] - per_latent * (latents[2] - latents[0])
        per_sound = max(longer / (long.audio.frames - small.audio.frames), 0.0)
        base = found[0] - per_latent * latents[0] - per_sound * small.audio.frames
        return Line(base, per_latent, per_sound, of_frame)

    def _models(self, names: str) -> dict:
        return {name: self._counts.model(name) for name in names.split()}

    def _count(self, stage: Callable[..., stages.Run], names: str, *sizes: object) -> int:
        return self._counts.count(stage(self._models(names), *sizes), stage.__name__, *sizes).peak

    def _denoising(self, clip: "ClipPlan", guided: bool) -> int:
        # Where a picture is given, tokens differ in their noise, which takes more.
        wish = ClipWish(clip.height, clip.width, clip.num_frames, guided=guided, image=True, positions=self._positions)
        needs = Needs(self._counts, wish, Clips(clip, clip))
        return needs.denoising("stage", clip, None, PassLayout(), needs.passes if guided else _ALONE, 1).activations


def _shortened(clip: "ClipPlan") -> "ClipPlan":
    """A part of a clip for which a decoder that streams takes as much as for all of it."""
    frames = min(_STREAMED, clip.video.frames)
    return replace(clip, video=clip.video._replace(frames=frames), num_frames=clip.sizes.pixel_frames(frames))
