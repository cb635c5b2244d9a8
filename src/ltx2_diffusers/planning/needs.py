"""From a checkpoint and a wished clip to numbers: bytes of weights, and what every stage holds and computes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..memory.streaming import block_list
from ..sampling.denoiser import NeededPasses, PassLayout
from . import stages
from .counting import Counted, counted
from .parts import DIFFUSION, ModelParts, num_bytes
from .plan import ClipWish
from .policy import DENOISER, LANGUAGE_MODEL, StageNeed, Variant, Weights
from .stages import Denoising, Reading, Run

if TYPE_CHECKING:
    from ..pipelines.plan import ClipPlan

# Lengths of shorter models from which the whole one follows: all blocks are alike.
_SHORT, _LONGER = 2, 3
# The first length at which all passes of a step part before the last block.
_GUIDED = 3
# Layers of a language model repeat in groups of so many.
_TEXT_SHORT, _TEXT_LONGER = 6, 7
# The peak of parts does not grow with the clip; it is counted at these lengths, in latent frames.
_PART, _PARTS = 3, 6
TILE_FRAMES = 12
"""Latent frames of the longest tile of the diffusion decoder, with copies of the last one."""
_ALONE = NeededPasses(False, False, False)


@dataclass(frozen=True)
class Clips:
    """Sizes of what is made.

    Args:
        clip: The finished clip.
        first: That of the first stage.
    """

    clip: "ClipPlan"
    first: "ClipPlan"


class Counts:
    """What is counted of a checkpoint on a kind of device, each thing once.

    Args:
        parts: The checkpoint.
        kind: Kind of the device, `"cuda"` or `"cpu"`.
        put: Stores a transformer without values in some way.
    """

    def __init__(self, parts: ModelParts, kind: str, put: Callable[[nn.Module, str | None], nn.Module]) -> None:
        self.parts, self.kind, self._put = parts, kind, put
        self._models: dict[tuple, nn.Module] = {}
        self._counted: dict[tuple, Counted] = {}

    def model(self, component: str, depth: int | None = None, storage: str | None = None) -> nn.Module:
        """A component on the meta device, with so many blocks, stored in some way."""
        key = component, depth, storage
        if key not in self._models:
            model = self.parts.model(component, depth)
            self._models[key] = self._put(model, storage) if component == DENOISER else model
        return self._models[key]

    def count(self, run: Run, *key: Any) -> Counted:
        """What a run needs that a key tells from all others."""
        if key not in self._counted:
            self._counted[key] = counted(run, self.kind)
        return self._counted[key]

    def forget(self) -> None:
        """Forget what runs need, but not the models, which take longest to make."""
        self._counted.clear()

    def weights(self, component: str, storage: str | None = None) -> Weights:
        """Bytes of a component and of its blocks."""
        if component not in (DENOISER, LANGUAGE_MODEL):
            return Weights(num_bytes(self.model(component)))
        depth = self.parts.depth(component)
        length = min(depth, _SHORT)
        short = self.model(component, length, storage)
        if storage == "fp8_scaled_mm":
            # Blocks at both ends are not stored in it.
            whole = self.model(component, None, storage)
            return Weights(num_bytes(whole), depth, max(num_bytes(block) for block in _blocks(whole)))
        block = num_bytes(_blocks(short)[0])
        return Weights(num_bytes(short) + (depth - length) * block, depth, block)


def _blocks(model: nn.Module) -> Any:
    return model.get_submodule(block_list(model))


class Needs:
    """What a generation needs.

    Args:
        counts: What is counted of the checkpoint.
        wish: The generation.
        clips: Its sizes.
    """

    def __init__(self, counts: Counts, wish: ClipWish, clips: Clips) -> None:
        self.counts, self.parts, self.wish, self.clips = counts, counts.parts, wish, clips

    @property
    def components(self) -> list[str]:
        """The components that run."""
        runs = {"latent_upsampler": self.wish.two_stage, DIFFUSION: self.wish.decoder == "diffusion"}
        return [name for name in self.parts.components if runs.get(name, True)]

    def weights(self, storage: str | None) -> dict[str, Weights]:
        """Bytes of all components."""
        return {n: self.counts.weights(n, storage if n == DENOISER else None) for n in self.components}

    @property
    def passes(self) -> NeededPasses:
        """The passes of the first stage beside the conditional one."""
        scales = self.parts.preset.video, self.parts.preset.audio
        if not self.wish.guided:
            return _ALONE
        return NeededPasses(
            any(one.cfg_scale != 1 for one in scales),
            any(one.stg_scale != 0 for one in scales),
            any(one.modality_scale != 1 for one in scales),
        )

    @property
    def _reading(self) -> Reading:
        count = (1 + self.passes.negative) * self.wish.num_videos
        return Reading(count, self.wish.prompt_tokens, self.wish.positions)

    def stages(self, storage: str | None, layout: PassLayout, decoding: str) -> list[StageNeed]:
        """The stages in order."""
        reading = _need("text encoding", (LANGUAGE_MODEL,), self._text(self._reading))
        return [reading, *self.clip_stages(storage, layout, decoding)]

    def clip_stages(self, storage: str | None, layout: PassLayout, decoding: str) -> list[StageNeed]:
        """All stages but that of the language model."""
        first, clip, steps = self.clips.first, self.clips.clip, self.wish.steps
        uses, count = self._counted(stages.connecting, ("connectors",), self._reading)
        # The small network that predicts a length reads what they make.
        needs = [_need("text connectors", (*uses, *(n for n in self.components if n == "duration_head")), count)]
        if given := max(self.wish.given_frames, int(self.wish.image)):
            kind = "image encoding" if given == 1 else "clip encoding"
            needs.append(_need(kind, *self._counted(stages.encoding_given, ("vae",), clip, given)))
        needs.append(self.denoising("stage 1", first, storage, layout, self.passes, steps[0]))
        if self.wish.two_stage:
            needs.append(_need("upsampling", *self._counted(stages.upsampling, ("latent_upsampler",), first)))
            needs.append(self.denoising("stage 2", clip, storage, layout, _ALONE, steps[1]))
        needs.append(_need("sound decoding", *self._counted(stages.decoding_audio, ("audio_vae", "vocoder"), clip)))
        decoder = DIFFUSION if self.wish.decoder == "diffusion" else "vae"
        needs.append(_need("video decoding", (decoder,), self._decoding(decoder, decoding)))
        return needs

    def _counted(self, stage: Callable[..., Run], uses: tuple[str, ...], *sizes: Any) -> tuple:
        models = {name: self.counts.model(name) for name in uses}
        return uses, self.counts.count(stage(models, *sizes), stage.__name__, *sizes)

    def _text(self, reading: Reading) -> Counted:
        """Of the language model, from shorter ones."""
        depth = self.parts.depth(LANGUAGE_MODEL)
        depths = (_TEXT_SHORT, _TEXT_LONGER) if depth > _TEXT_LONGER else (depth, depth)
        models = ({LANGUAGE_MODEL: self.counts.model(LANGUAGE_MODEL, one)} for one in depths)
        runs = (stages.reading_text(model, reading) for model in models)
        short, longer = (self.counts.count(run, "text", one, reading) for run, one in zip(runs, depths))
        return Counted(*(int(a + (depth - depths[0]) * (b - a)) for a, b in zip(short, longer)))

    def _decoding(self, decoder: str, how: str) -> Counted:
        clip = self.clips.clip
        frames, is_diffusion = clip.video.frames, decoder == DIFFUSION
        models = {decoder: self.counts.model(decoder)}
        stage = stages.decoding_by_diffusion if is_diffusion else stages.decoding_video
        if is_diffusion and how != "tiled":
            how = "whole"

        def count(length: int) -> Counted:
            return self.counts.count(stage(models, of_frames(clip, length), how), decoder, how, clip, length)

        if frames <= _PARTS or (how == "whole" and not is_diffusion):
            return count(frames)
        part, parts = count(_PART), count(_PARTS)
        more = (parts.operations - part.operations) / (_PARTS - _PART)
        # Tiles are joined on the device; of diffusion, all frames of a tile, or without tiles of the clip, lie there.
        growth = max(parts.peak - part.peak, 0) / (_PARTS - _PART) if how == "tiled" or is_diffusion else 0
        rest = growing = frames - _PARTS
        beside = 0
        if is_diffusion and how == "tiled" and frames > TILE_FRAMES:
            growing, beside = TILE_FRAMES - _PARTS, finished_bytes(clip, self.parts.dtype)
        return Counted(int(parts.peak + growth * growing + beside), int(parts.operations + more * rest))

    def denoising(
        self, name: str, clip: "ClipPlan", storage: str | None, layout: PassLayout, passes: NeededPasses, steps: int
    ) -> StageNeed:
        """A stage of the loop: with the clip of its size, how its transformer is stored, its passes and its steps."""
        preset, depth = self.parts.preset, self.parts.depth(DENOISER)
        is_alone = not any(passes)
        layout = replace(layout, batched=layout.batched and not is_alone)
        lengths = [min(one, depth) for one in (_SHORT, _LONGER)]
        plain = [self._forward(clip, storage, None, PassLayout(), one) for one in lengths]
        counted = min(depth, _GUIDED)
        scales = None if is_alone else (preset.video, preset.audio)
        made = self._forward(clip, storage, scales, layout, counted)
        # Blocks add to what is held nothing but the keys and values that are kept of the texts.
        texts = (1 + sum(passes)) if layout.batched else (1 + passes.negative)
        kept = texts * (plain[1].peak - plain[0].peak) if layout.keeps_text else 0
        block = plain[1].operations - plain[0].operations, plain[1].attention - plain[0].attention
        if lengths[0] == lengths[1]:
            block = plain[0].operations // depth, plain[0].attention // depth
        rest = max(plain[0].operations - lengths[0] * block[0], 0)
        count = 1 + sum(passes)
        # Blocks before the first perturbed one are those of the conditional pass.
        shared = preset.stg_blocks(depth)[0] if passes.perturbed and not layout.batched else 0
        blocks = count * depth - shared
        traversals = 1 if layout.batched else 1 + passes.negative
        work = count * rest + blocks * block[0], blocks * block[1]
        return StageNeed(name, (DENOISER,), made.peak + (depth - counted) * kept, *work, steps, traversals)

    def _forward(self, clip: "ClipPlan", storage: str | None, scales: Any, layout: PassLayout, depth: int) -> Counted:
        wish = Denoising(self.parts.preset, scales, self.wish.image, self.wish.positions, layout)
        run = stages.denoising({DENOISER: self.counts.model(DENOISER, depth, storage)}, clip, wish)
        return self.counts.count(run, "step", clip, storage, scales is None, self.wish.image, layout, depth)


def _need(name: str, uses: tuple[str, ...], count: Counted) -> StageNeed:
    return StageNeed(name, uses, count.peak, count.operations)


def of_frames(clip: "ClipPlan", frames: int) -> "ClipPlan":
    """The same clip with so many latent frames."""
    return replace(clip, video=clip.video._replace(frames=frames), num_frames=clip.sizes.pixel_frames(frames))


def finished_bytes(clip: "ClipPlan", dtype: torch.dtype) -> int:
    """What lies beside a tile of the diffusion decoder: finished pixels of its frames, and of half of those before."""
    return _pixel_bytes(of_frames(clip, min(clip.video.frames, TILE_FRAMES)), dtype) * 3 // 2


def _pixel_bytes(clip: "ClipPlan", dtype: torch.dtype) -> int:
    return clip.batch_size * 3 * clip.num_frames * clip.height * clip.width * dtype.itemsize


def output_bytes(clip: "ClipPlan") -> int:
    """Host memory of a result: frames as bytes, and as floats while they are made."""
    return _pixel_bytes(clip, torch.uint8) + _pixel_bytes(clip, torch.float32)


def variants(
    needs: Needs, storages: Sequence[str | None], layouts: Sequence[PassLayout], decodings: Sequence[str]
) -> list[Variant]:
    """All ways to run, without saying where weights are."""
    output = output_bytes(needs.clips.clip)
    found = []
    for storage in storages:
        weights = needs.weights(storage)
        for layout in layouts:
            for decoding in decodings:
                parts = needs.stages(storage, layout, decoding)
                is_fast = storage == "fp8_scaled_mm"
                how = storage, decoding, layout.batched is True, layout.keeps_text
                found.append(Variant(*how, weights, parts, output, is_fast))
    return found
