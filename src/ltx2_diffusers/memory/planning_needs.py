"""From a checkpoint and a wished clip to numbers: bytes of weights, and what every stage holds and computes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..sampling.denoiser import NeededPasses, PassLayout
from . import planning_stages as stages
from .counting import Counted, counted
from .planning import ClipWish
from .planning_parts import ModelParts, num_bytes
from .planning_policy import DENOISER, LANGUAGE_MODEL, StageNeed, Variant, Weights
from .planning_stages import Denoising, Reading
from .streaming import block_list

if TYPE_CHECKING:
    from ..pipelines.plan import ClipPlan

# Two lengths of a shorter transformer, from which the whole one follows: all blocks are alike.
_DEPTHS = (3, 4)
# A clip in tiles takes no more memory for being longer; it is counted at this length.
_TILED_FRAMES = 3


@dataclass(frozen=True)
class Clips:
    """Sizes of what is made.

    Args:
        clip: The finished clip.
        first: That of the first stage.
    """

    clip: "ClipPlan"
    first: "ClipPlan"


class Needs:
    """What a generation needs, counted when it is asked for and once.

    Args:
        parts: The checkpoint.
        wish: The generation.
        clips: Its sizes.
        kind: Kind of the device, `"cuda"` or `"cpu"`.
        put: Stores a transformer without values in one of these ways.
    """

    def __init__(
        self,
        parts: ModelParts,
        wish: ClipWish,
        clips: Clips,
        kind: str,
        put: Callable[[nn.Module, str | None], nn.Module],
    ) -> None:
        self.parts, self.wish, self.clips, self.kind, self._put = parts, wish, clips, kind, put
        self._transformers: dict[tuple[str | None, int], nn.Module] = {}
        self._counted: dict[tuple, Any] = {}

    @cached_property
    def models(self) -> Mapping[str, nn.Module]:
        """All components but the transformer, on the meta device."""
        names = [name for name in self.parts.components if name != DENOISER]
        if not self.wish.two_stage:
            names = [name for name in names if name != "latent_upsampler"]
        return {name: self.parts.model(name) for name in names}

    @cached_property
    def depth(self) -> int:
        """Blocks of the transformer."""
        return int(self.parts.configs[DENOISER].get("num_layers", 48))

    def transformer(self, storage: str | None, depth: int) -> nn.Module:
        """A transformer of so many blocks, stored in some way."""
        key = storage, depth
        if key not in self._transformers:
            self._transformers[key] = self._put(self.parts.model(DENOISER, depth), storage)
        return self._transformers[key]

    def weights(self, storage: str | None) -> dict[str, Weights]:
        """Bytes of all components."""
        found = {name: _weights(model) for name, model in self.models.items()}
        if self.depth <= _DEPTHS[1]:
            found[DENOISER] = _weights(self.transformer(storage, self.depth), True)
        else:
            small, large = (num_bytes(self.transformer(storage, depth)) for depth in _DEPTHS)
            block = _weights(self.transformer(storage, _DEPTHS[1]), True).block
            found[DENOISER] = Weights(small + (self.depth - _DEPTHS[0]) * (large - small), self.depth, block)
        return {name: found[name] for name in self.parts.components if name in found}

    def _count(self, name: str, run: stages.Run, *key: Any) -> Counted:
        if (name, *key) not in self._counted:
            self._counted[name, *key] = counted(run, self.kind)
        return self._counted[name, *key]

    @property
    def passes(self) -> NeededPasses:
        """The passes of the first stage beside the conditional one."""
        if not self.wish.guided:
            return NeededPasses(False, False, False)
        scales = self.parts.preset.video, self.parts.preset.audio
        return NeededPasses(
            any(one.cfg_scale != 1 for one in scales),
            any(one.stg_scale != 0 for one in scales),
            any(one.modality_scale != 1 for one in scales),
        )

    def stages(self, storage: str | None, layout: PassLayout, decoding: str) -> list[StageNeed]:
        """The stages in order."""
        reading = Reading((2 if self.passes.negative else 1) * self.wish.num_videos, self.wish.prompt_tokens)
        text = self._count("text", stages.reading_text(self.models, reading))
        linked = self._count("connectors", stages.connecting(self.models, reading))
        first, clip, image = self.clips.first, self.clips.clip, self.wish.image
        needs = [
            StageNeed("text encoding", (LANGUAGE_MODEL,), text.peak, text.operations),
            StageNeed("text connectors", ("connectors",), linked.peak, linked.operations),
        ]
        if image:
            encoded = self._count("image", stages.encoding_image(self.models, clip))
            needs.append(StageNeed("image encoding", ("vae",), encoded.peak, encoded.operations))
        needs.append(self._denoising("stage 1", first, storage, layout, self.passes, self.wish.steps[0]))
        if self.wish.two_stage:
            enlarged = self._count("upsampling", stages.upsampling(self.models, first))
            needs.append(StageNeed("upsampling", ("latent_upsampler",), enlarged.peak, enlarged.operations))
            alone = NeededPasses(False, False, False)
            needs.append(self._denoising("stage 2", clip, storage, layout, alone, self.wish.steps[1]))
        sound = self._count("sound", stages.decoding_audio(self.models, clip))
        needs.append(StageNeed("sound decoding", ("audio_vae", "vocoder"), sound.peak, sound.operations))
        frames = self._decoding(decoding)
        needs.append(StageNeed("video decoding", ("vae",), frames.peak, frames.operations))
        return needs

    def _decoding(self, how: str) -> Counted:
        clip = self.clips.clip
        if how == "whole" or clip.video.frames <= _TILED_FRAMES:
            return self._count("video", stages.decoding_video(self.models, clip, how), how)
        # The peak of a part does not grow with the clip; what it computes does.
        longest = min(clip.video.frames, 2 * _TILED_FRAMES)
        short, long = (
            self._count("video", stages.decoding_video(self.models, _of_frames(clip, frames), how), how, frames)
            for frames in (_TILED_FRAMES, longest)
        )
        more = (long.operations - short.operations) / max(longest - _TILED_FRAMES, 1)
        joined = _pixel_bytes(clip, self.parts.dtype) if how == "tiled" else 0
        return Counted(long.peak + joined, int(short.operations + more * (clip.video.frames - _TILED_FRAMES)))

    def _denoising(
        self, name: str, clip: "ClipPlan", storage: str | None, layout: PassLayout, passes: NeededPasses, steps: int
    ) -> StageNeed:
        preset = self.parts.preset
        is_alone = not any(passes)
        layout = replace(layout, batched=layout.batched and not is_alone)
        scales = None if is_alone else (preset.video, preset.audio)
        wish = Denoising(preset, scales, self.wish.image, self.wish.positions, layout)
        depths = (self.depth,) if self.depth <= _DEPTHS[1] else _DEPTHS
        runs = [
            self._count(
                name,
                stages.denoising({DENOISER: self.transformer(storage, depth)}, clip, wish),
                storage,
                layout,
                depth,
            )
            for depth in depths
        ]
        plain = self._plain_operations(name, clip, storage)
        if len(runs) == 1:
            peak = runs[0].peak
        else:
            peak = runs[0].peak + (self.depth - _DEPTHS[0]) * (runs[1].peak - runs[0].peak)
        operations, attention = _pass_operations(plain, passes, layout, preset.stg_blocks(self.depth), self.depth)
        traversals = 1 if layout.batched else 1 + passes.negative
        return StageNeed(name, (DENOISER,), peak, operations, attention, steps, traversals)

    def _plain_operations(self, name: str, clip: "ClipPlan", storage: str | None) -> tuple[float, float, float]:
        """Operations of one pass: beside the blocks, of one block, and the share of attention in it."""
        wish = Denoising(self.parts.preset, None, self.wish.image, self.wish.positions)
        shallow, deep = (
            self._count(
                name, stages.denoising({DENOISER: self.transformer(storage, depth)}, clip, wish), storage, "plain", depth
            )
            for depth in ((1, 2) if self.depth > 1 else (1, 1))
        )
        block = deep.operations - shallow.operations or shallow.operations
        attention = deep.attention - shallow.attention or shallow.attention
        return max(shallow.operations - block, 0), block, attention


def _pass_operations(
    plain: tuple[float, float, float], passes: NeededPasses, layout: PassLayout, perturbed: Sequence[int], depth: int
) -> tuple[float, float]:
    """Operations of all passes of a step, and those of them that are attention."""
    rest, block, attention = plain
    count = 1 + sum(passes)
    blocks = count * depth
    if passes.perturbed and not layout.batched:
        # Blocks before the first perturbed one are those of the conditional pass.
        blocks -= perturbed[0]
    return count * rest + blocks * block, blocks * attention


def _weights(model: nn.Module, is_transformer: bool = False) -> Weights:
    """Bytes of a model and of the blocks that it can be streamed by."""
    total = num_bytes(model)
    if not is_transformer and not hasattr(getattr(model, "config", None), "get_text_config"):
        return Weights(total)
    blocks = model.get_submodule(block_list(model))
    return Weights(total, len(blocks), max(num_bytes(block) for block in blocks))


def _of_frames(clip: "ClipPlan", frames: int) -> "ClipPlan":
    """The same clip with so many latent frames."""
    return replace(clip, video=clip.video._replace(frames=frames), num_frames=clip.sizes.pixel_frames(frames))


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
                is_fast = storage == "fp8_scaled_mm" or (storage is None and bool(needs.parts.scaled.get(DENOISER)))
                found.append(
                    Variant(
                        storage, decoding, layout.batched, layout.keeps_text, weights, parts, output, is_fast
                    )
                )
    return found

