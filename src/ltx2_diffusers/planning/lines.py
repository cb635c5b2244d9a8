"""Memory of stages for a clip of any size: lines through what is counted at three sizes, once for a checkpoint.

What a stage holds grows with the latents of the video, or of a frame of it, and with those of the sound.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..sampling.denoiser import NeededPasses, PassLayout
from . import stages
from .needs import Clips, Counts, Needs, finished_bytes, of_frames
from .parts import DIFFUSION
from .plan import ClipWish
from .policy import DENOISER
from .stages import Reading

if TYPE_CHECKING:
    from ..pipelines.plan import ClipPlan

SIZES = ((256, 384, 25), (1024, 1536, 25), (256, 384, 481))
"""Height, width and frames of what is counted: of the second one the pictures are larger, the third one is longer."""
# Latent frames beyond which the memory of a decoder that streams does not grow.
_STREAMED = 6
# Frames, rows and columns of latents: of a tile of the diffusion decoder, and of clips that it is counted with. Of fewer
# frames, attention would not hold as many as it does of most clips.
_TILE = (10, 24, 24)
_DIFFUSED = ((6, 8, 12), (3, 16, 24), (12, 8, 12))
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


def _of_latents(clip: "ClipPlan", frames: int, height: int, width: int) -> "ClipPlan":
    return replace(clip, video=clip.video._replace(frames=frames, height=height, width=width))


def _measures(clip: "ClipPlan") -> list[int]:
    """What the memory of the diffusion decoder grows with: nothing, latents of the clip, and of a frame."""
    return [1, _latents(clip, False), _latents(clip, True)]


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
        self._with_tiles = with_tiles
        self._diffused = self._of_diffusion() if DIFFUSION in counts.parts.configs else np.zeros(3)
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
        found.append(((DIFFUSION,), self._diffusing(clip)) if wish.decoder == "diffusion" else (("vae",), decoding))
        return [Peak(uses, wish.num_videos * size) for uses, size in found]

    def _diffusing(self, clip: "ClipPlan") -> int:
        """Bytes of the diffusion decoder; in tiles, what the first stages make of the whole clip waits beside one of them."""
        sizes = clip.video.frames, clip.video.height, clip.video.width
        tile = _of_latents(clip, *map(min, sizes, _TILE))
        if not self._with_tiles or tile == clip:
            return int(self._diffused @ _measures(clip))
        config, dtype = self._counts.parts.configs[DIFFUSION], self._counts.parts.dtype
        spread = prod(map(prod, config["decoder_upsample_strides"][:3])) * config["decoder_stage_channels"][3]
        waiting = _latents(clip, False) * spread * dtype.itemsize
        return int(self._diffused @ _measures(tile) + waiting + finished_bytes(clip, dtype))

    def _of_diffusion(self) -> np.ndarray:
        """Bytes of the diffusion decoder for each of the measures of a clip."""
        clips = [_of_latents(self._clips[0], *sizes) for sizes in _DIFFUSED]
        # Blocks run one after another in the same memory.
        models = {DIFFUSION: self._counts.model(DIFFUSION, 1)}
        runs = (stages.decoding_by_diffusion(models, clip, "whole") for clip in clips)
        peaks = [self._counts.count(run, DIFFUSION, clip).peak for run, clip in zip(runs, clips)]
        return np.linalg.solve([_measures(clip) for clip in clips], peaks)

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
    return of_frames(clip, min(_STREAMED, clip.video.frames))
