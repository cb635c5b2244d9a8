"""What is trained: which streams the model makes, and what it is shown of them.

Every strategy is a role for each stream, and every role a list of rules that become condition items of generation: masks and
clean tokens. A strategy of your own is a class with the methods of [`Strategy`], made known by [`register_strategy`].

Shapes: B samples, C channels, F latent frames, h latent height, w latent width, L audio latents, M mel bins of a latent, T
tokens of the target.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar

import torch

from ... import conditioning
from ...conditioning import ConditionItem, ConditionOutsideRegion, LatentTools, Streams, VideoLatentTools
from ...pipelines.plan import ModelSizes
from .noise_levels import Draws, NoiseLevels
from .streams import Shown, TrainedStream, given_stream, trained_stream

Batch = Mapping[str, Any]
"""What a data set gives: per source its tensors and numbers by name."""

# Frames per second of latents that do not say.
_FRAME_RATE = 24.0


@dataclass(frozen=True)
class Moment:
    """What the rules of a step have in common.

    Args:
        batch: The samples.
        draws: Random numbers.
        frame_rate: Frames per second of the videos.
        duration_s: Length of the clips in seconds.
        temporal_ratio: Frames of a latent of the video, but for the first.
        stretch: Where the part that is made anew lies, as two random shares per sample `[B, 2]`.
    """

    batch: Batch
    draws: Draws
    frame_rate: float
    duration_s: float
    temporal_ratio: int
    stretch: torch.Tensor | None = None


@dataclass(frozen=True)
class Rule(ABC):
    """Something that samples are held to.

    Args:
        probability: Share of the samples, in [0, 1]; default 1.0. What appends tokens is drawn once for a batch.
    """

    probability: float = 1.0
    appends: ClassVar[bool] = False

    @property
    def sources(self) -> dict[str, str]:
        """Folders that it reads, and their names in a batch."""
        return {}

    @abstractmethod
    def item(self, clean: torch.Tensor, tools: LatentTools, moment: Moment) -> ConditionItem | None:
        """The condition for latents `[B, C, ...]`; `None` where it means nothing for clips of this size."""


@dataclass(frozen=True)
class Prefix(Rule):
    """Shows the beginning: the first frame (image to video), or more (extension).

    Args:
        boundary: Latent frames that are shown, or audio latents; default 1.
        optional: Whether it is left out for clips that it would show whole, rather than refused. Default `False`.
    """

    boundary: int = 1
    optional: bool = False

    def item(self, clean: torch.Tensor, tools: LatentTools, moment: Moment) -> ConditionItem | None:
        """The first latents in their place."""
        return _end(self, clean, tools, 0)


@dataclass(frozen=True)
class Suffix(Rule):
    """Shows the end.

    Args:
        boundary: Latent frames that are shown, or audio latents; default 1.
    """

    boundary: int = 1
    optional: ClassVar[bool] = False

    def item(self, clean: torch.Tensor, tools: LatentTools, moment: Moment) -> ConditionItem | None:
        """The last latents in their place."""
        return _end(self, clean, tools, clean.shape[2] - self.boundary)


def _end(rule: Prefix | Suffix, clean: torch.Tensor, tools: LatentTools, start: int) -> ConditionItem | None:
    if clean.shape[2] <= rule.boundary:
        if rule.optional:
            return None
        raise ValueError(
            f"temporal_boundary is {rule.boundary}, but a clip has {clean.shape[2]} latents, of which none would be left to "
            f"learn; use at most {clean.shape[2] - 1}, or longer clips"
        )
    item = (
        conditioning.VideoConditionByLatentIndex
        if isinstance(tools, VideoLatentTools)
        else conditioning.AudioConditionByLatentIndex
    )
    return item(clean[:, :, start : start + rule.boundary], latent_idx=start)


@dataclass(frozen=True)
class Crop(Rule):
    """Shows a rectangle of the pictures (outpainting).

    Args:
        region: First row, first column, last row and last column of it in pixels, the last ones outside.
    """

    region: tuple[int, int, int, int] = (0, 0, 0, 0)

    def item(self, clean: torch.Tensor, tools: LatentTools, moment: Moment) -> ConditionItem | None:
        """Everything outside the rectangle is free."""
        assert isinstance(tools, VideoLatentTools)
        _, high, wide = tools.scale_factors
        top, left, bottom, right = (edge // ratio for edge, ratio in zip(self.region, (high, wide, high, wide)))
        shown = torch.zeros(clean[:, 0].shape, device=clean.device)
        shown[:, :, top:bottom, left:right] = 1
        return _held_where(shown, clean)


@dataclass(frozen=True)
class StoredMask(Rule):
    """Shows what stored masks mark (inpainting).

    Args:
        folder: Folder of the masks, which are above 0.5 where the clip is shown.
    """

    folder: str = "video_masks"

    @property
    def sources(self) -> dict[str, str]:
        """The folder."""
        return {self.folder: self.folder}

    def item(self, clean: torch.Tensor, tools: LatentTools, moment: Moment) -> ConditionItem | None:
        """Everything that is not marked is free."""
        mask = moment.batch[self.folder]["mask"].to(clean.device)
        if mask.shape[1] != clean.shape[2]:
            raise ValueError(f"{self.folder} hold {mask.shape[1]} latent frames where the clips have {clean.shape[2]}")
        # Masks of sound have no mel bins.
        mask = mask if mask.ndim == clean.ndim - 1 else mask[..., None].expand(clean[:, 0].shape)
        return _held_where((mask > 0.5).float(), clean)


@dataclass(frozen=True)
class OutsideStretch(Rule):
    """Shows everything outside a random stretch of time, the same for both streams (retake).

    Args:
        shares: Shortest and longest stretch as shares of the clip, in (0, 1].
    """

    shares: tuple[float, float] = (0.2, 0.8)

    def item(self, clean: torch.Tensor, tools: LatentTools, moment: Moment) -> ConditionItem | None:
        """The stretch is free; it holds at least one latent of every stream."""
        assert moment.stretch is not None
        low, high = self.shares
        size, place = moment.stretch.to(clean.device, torch.float64).unbind(1)
        length = (low + (high - low) * size) * moment.duration_s
        seconds = tools.positions(clean.device)[:, 0]  # [B, T, 2]
        # Sound may end a little before the video.
        start = torch.minimum(place * (moment.duration_s - length), seconds[:, -1, 0].double())
        end_s, start_s = (start + length).float()[:, None], start.float()[:, None]
        free = (seconds[..., 1] > start_s) & (seconds[..., 0] < end_s)
        return _free_where(free.float().unsqueeze(-1), clean, tools)


@dataclass(frozen=True)
class OutsideTime(Rule):
    """Shows the beginning or the end of both streams, up to the same time (extension).

    Args:
        boundary: Latent frames of the video that are shown.
        backward: Whether the end is shown, and what precedes it made. Default `False`.
    """

    boundary: int = 1
    backward: bool = False

    def item(self, clean: torch.Tensor, tools: LatentTools, moment: Moment) -> ConditionItem | None:
        """The time that is not shown is free."""
        # Of 8 k + 1 frames the first latent holds one; from the end all hold eight.
        ratio = moment.temporal_ratio
        frames = self.boundary * ratio if self.backward else (self.boundary - 1) * ratio + 1
        edge_s = moment.duration_s - frames / moment.frame_rate if self.backward else frames / moment.frame_rate
        if not 0 < edge_s < moment.duration_s:
            raise ValueError(
                f"temporal_boundary is {self.boundary}, but a clip lasts {moment.duration_s:.2f} s, of which nothing would be "
                "left to learn; use fewer latent frames, or longer clips"
            )
        last = tools.positions(clean.device)[0, 0, -1, 0].item()
        # Sound may end a little before the video, or after it.
        stretch = (0.0, edge_s) if self.backward else (min(edge_s, last), float("inf"))
        return ConditionOutsideRegion(clean, *stretch)


@dataclass(frozen=True)
class Reference(Rule):
    """Shows another clip, or another sound, beside what is made (IC-LoRA, reference audio).

    Args:
        folder: Folder of the references' latents.
        key: Their name in a batch.
        memory: What the first batch said about the scale of the references, which later ones may not contradict.
    """

    folder: str = "reference_latents"
    key: str = "ref_latents"
    memory: "ReferenceScale | None" = None
    appends: ClassVar[bool] = True

    @property
    def sources(self) -> dict[str, str]:
        """The folder."""
        return {self.folder: self.key}

    def item(self, clean: torch.Tensor, tools: LatentTools, moment: Moment) -> ConditionItem | None:
        """Tokens behind those of the target."""
        latents = moment.batch[self.key]["latents"].to(clean)
        if not isinstance(tools, VideoLatentTools):
            return conditioning.AudioConditionByReferenceLatent(latents)
        space = reference_scale(clean.shape[3:], latents.shape[3:])
        time = _temporal_scale(moment.batch[self.key], moment.frame_rate)
        if self.memory is not None:
            self.memory.agree(space, time)
        return conditioning.VideoConditionByReferenceLatent(latents, space, temporal_scale_factor=time)


def _temporal_scale(reference: Mapping[str, Any], frame_rate: float) -> int:
    """Frames of the video per frame of its reference: the ratio of their rates, if it is a whole number."""
    if "fps" not in reference:
        return 1
    ratio = frame_rate / float(reference["fps"][0])
    return round(ratio) if ratio > 1.5 and abs(ratio - round(ratio)) < 0.01 * ratio else 1


@dataclass
class ReferenceScale:
    """The scale of the references of a run; 0 until it is known.

    Args:
        space: Size of the video over that of the reference.
        time: Frames of the video per frame of the reference.
    """

    space: int = 0
    time: int = 0

    def agree(self, space: int, time: int) -> None:
        """Remember the scale of the first batch; `ValueError` if a later one differs."""
        for name, known, now in (("size", self.space, space), ("frame rate", self.time, time)):
            if known not in (0, now):
                raise ValueError(
                    f"the {name} of a reference is 1/{now} of its clip's, but that of those before was 1/{known}; a LoRA is "
                    "trained at one scale"
                )
        self.space, self.time = space, time


def reference_scale(target: tuple[int, ...] | torch.Size, reference: tuple[int, ...] | torch.Size) -> int:
    """Size of a clip over that of its reference, from latent heights and widths.

    Raises:
        ValueError: If the reference is larger, or no whole number leads from its sides to the clip's.
    """
    factors = {a / b for a, b in zip(target, reference)}
    factor = factors.pop()
    if factors or factor < 1 or factor != int(factor):
        raise ValueError(
            f"a reference of {reference[0]} x {reference[1]} latents does not fit a clip of {target[0]} x {target[1]}: both "
            "sides have to be the same whole number of times smaller"
        )
    return int(factor)


def _held_where(shown: torch.Tensor, clean: torch.Tensor) -> ConditionItem:
    """Holds latents where a mask `[B, F, h, w]` or `[B, L, M]` is 1."""
    return ConditionOutsideRegion(clean, 0.0, float("inf"), region=1.0 - shown)


def _free_where(free: torch.Tensor, clean: torch.Tensor, tools: LatentTools) -> ConditionItem:
    """Holds latents where a mask over tokens `[B, T, 1]` is 0."""
    patch = free.expand(-1, -1, tools.patchifier.patch_size**2)
    region = tools.patchifier.unpatchify(patch, tools.target_shape.mask_shape())[:, 0]
    return ConditionOutsideRegion(clean, 0.0, float("inf"), region=region.expand(clean[:, 0].shape))


@dataclass(frozen=True)
class Role:
    """How a stream takes part.

    Args:
        folder: Folder of its latents, and their name in a batch.
        generated: Whether the model learns to make it; else it sees it without noise.
        rules: What the samples are held to.
        optional: Whether clips without it are trained without it.
    """

    folder: str
    generated: bool = True
    rules: tuple[Rule, ...] = ()
    optional: bool = False


class Strategy(ABC):
    """What is trained.

    Args:
        section: Section `training_strategy` of a configuration.
    """

    def __init__(self, section: Any) -> None:
        self.section = section

    @property
    @abstractmethod
    def runs(self) -> Streams[bool]:
        """Which streams go through the transformer."""

    @abstractmethod
    def data_sources(self) -> dict[str, str]:
        """Folders of a data set that are read, and their names in a batch."""

    def optional_sources(self) -> frozenset[str]:
        """Those of the folders that a sample may lack."""
        return frozenset()

    @abstractmethod
    def prepare(
        self, batch: Batch, levels: NoiseLevels, draws: Draws, sizes: ModelSizes
    ) -> Streams[TrainedStream | None]:
        """Both streams of a step; `None` for one that takes no part."""

    def metadata(self) -> dict[str, str]:
        """What a file of trained weights says about how to use them."""
        return {}


class MaskedStrategy(Strategy):
    """A strategy that is a role for each stream.

    Args:
        section: Section `training_strategy` of a configuration.
        roles: The roles; `None` for a stream that takes no part.
        shared_noise_level: Whether the sound takes the noise level of the video.
        always_tells_scale: Whether metadata hold the scale of references that are as large as the clip, too.
    """

    def __init__(
        self,
        section: Any,
        roles: Streams[Role | None],
        shared_noise_level: bool = False,
        always_tells_scale: bool = False,
    ) -> None:
        super().__init__(section)
        if not any(role is not None and role.generated for role in roles):
            raise ValueError("training_strategy generates neither video nor audio; set is_generated of one of them")
        self.roles = roles
        self._shares_level = shared_noise_level
        self._always_tells_scale = always_tells_scale
        rules = [rule for role in roles if role is not None for rule in role.rules]
        self._scale = next((r.memory for r in rules if isinstance(r, Reference) and r.memory), None)
        self._draws_stretch = any(isinstance(rule, OutsideStretch) for rule in rules)

    @property
    def runs(self) -> Streams[bool]:
        """Which streams go through the transformer."""
        return Streams(*(role is not None for role in self.roles))

    def data_sources(self) -> dict[str, str]:
        """Folders of a data set that are read, and their names in a batch."""
        sources = {"conditions": "conditions"}
        for role in self.roles:
            if role is not None:
                sources[role.folder] = role.folder
                for rule in role.rules:
                    sources |= rule.sources
        return sources

    def optional_sources(self) -> frozenset[str]:
        """Those of the folders that a sample may lack."""
        return frozenset(role.folder for role in self.roles if role is not None and role.optional)

    def prepare(
        self, batch: Batch, levels: NoiseLevels, draws: Draws, sizes: ModelSizes
    ) -> Streams[TrainedStream | None]:
        """Both streams of a step."""
        moment = self._moment(batch, draws, sizes)
        prepared: list[TrainedStream | None] = []
        for role, make_tools in zip(self.roles, (_video_tools, _audio_tools)):
            # An optional stream is missing from batches of clips that lack it.
            if role is None or (role.optional and role.folder not in batch):
                prepared.append(None)
                continue
            clean = batch[role.folder]["latents"].float()
            tools = make_tools(clean, moment.frame_rate, sizes)
            if not role.generated:
                references = [shown.item for shown in _shown(role.rules, True, clean, tools, moment)]
                prepared.append(given_stream(clean, tools, references))
                continue

            def conditions(role: Role = role, clean: torch.Tensor = clean, tools: LatentTools = tools) -> list[Shown]:
                return [s for appends in (False, True) for s in _shown(role.rules, appends, clean, tools, moment)]

            first = prepared[0] if prepared and self._shares_level else None
            sigma = first.sigma if first is not None and first.velocity is not None else None
            prepared.append(trained_stream(clean, tools, levels, draws, conditions, sigma))
        return Streams(*prepared)

    def metadata(self) -> dict[str, str]:
        """The scale of the references that the first batch had."""
        if self._scale is None:
            return {}
        found = {"reference_downscale_factor": self._scale.space, "reference_temporal_scale_factor": self._scale.time}
        told = {name: str(value) for name, value in found.items() if value > 1}
        return {"reference_downscale_factor": "1", **told} if self._always_tells_scale else told

    def _moment(self, batch: Batch, draws: Draws, sizes: ModelSizes) -> Moment:
        video, audio = (None if role is None else batch.get(role.folder) for role in self.roles)
        frame_rate = _frame_rate(video or {})
        if video is not None:
            count, duration_s = len(video["latents"]), sizes.pixel_frames(video["latents"].shape[2]) / frame_rate
        else:
            assert audio is not None
            mel_frames = sizes.mel_frames(audio["latents"].shape[2])
            count, duration_s = len(audio["latents"]), mel_frames * sizes.hop_length / sizes.sample_rate
        stretch = draws.uniform((count, 2)) if self._draws_stretch else None
        return Moment(batch, draws, frame_rate, duration_s, sizes.temporal_ratio, stretch)


def _frame_rate(video: Mapping[str, Any]) -> float:
    """Frames per second of the videos of a batch."""
    if "fps" not in video:
        return _FRAME_RATE
    rates = video["fps"]
    if (rates != rates[0]).any():
        raise ValueError(f"clips of a batch have to have one frame rate but have {rates.tolist()}")
    return float(rates[0])


def _shown(
    rules: tuple[Rule, ...], appends: bool, clean: torch.Tensor, tools: LatentTools, moment: Moment
) -> list[Shown]:
    """What samples are held to by the rules that append tokens, or by those that do not."""
    shown = []
    for rule in rules:
        if rule.appends != appends:
            continue
        item = rule.item(clean, tools, moment)
        if item is None:
            continue
        if appends:
            # All samples of a batch have as many tokens.
            if moment.draws.once() < rule.probability:
                shown.append(Shown(item))
        else:
            shown.append(Shown(item, (moment.draws.uniform((len(clean),)) < rule.probability).to(clean.device)))
    return shown


def _video_tools(clean: torch.Tensor, frame_rate: float, sizes: ModelSizes) -> LatentTools:
    ratios = conditioning.SpatioTemporalScaleFactors(sizes.temporal_ratio, sizes.spatial_ratio, sizes.spatial_ratio)
    return VideoLatentTools(
        conditioning.VideoLatentPatchifier(sizes.patch_size),
        conditioning.VideoLatentShape.from_torch_shape(clean.shape),
        frame_rate,
        ratios,
        mark_keyframes=sizes.marks_keyframes,
    )


def _audio_tools(clean: torch.Tensor, frame_rate: float, sizes: ModelSizes) -> LatentTools:  # noqa: ARG001
    shape = conditioning.AudioLatentShape.from_torch_shape(clean.shape)
    return conditioning.AudioLatentTools(conditioning.AudioPatchifier(), shape)


def _video(section: Any, *rules: Rule) -> Role:  # noqa: ARG001 (roles are made alike)
    return Role("latents", rules=rules)


def _audio(section: Any, *rules: Rule) -> Role | None:
    """The sound, where it is trained; clips that have none are trained without."""
    return Role(section.audio_latents_dir, rules=rules, optional=True) if section.with_audio else None


def _first_frame(section: Any) -> Rule:
    return Prefix(section.first_frame_conditioning_p, optional=True)


def _text_to_video(section: Any) -> Streams[Role | None]:
    return Streams(_video(section, _first_frame(section)), _audio(section))


def _video_to_video(section: Any) -> Streams[Role | None]:
    reference = Reference(folder=section.reference_latents_dir, memory=ReferenceScale())
    return Streams(_video(section, _first_frame(section), reference), None)


def _audio_to_video(section: Any) -> Streams[Role | None]:
    video = _video(section, _first_frame(section))
    return Streams(video, Role(section.audio_latents_dir, generated=False))


def _video_to_audio(section: Any) -> Streams[Role | None]:
    return Streams(Role("latents", generated=False), Role(section.audio_latents_dir))


def _text_to_audio(section: Any) -> Streams[Role | None]:
    return Streams(None, Role(section.audio_latents_dir))


def _inpainting(section: Any) -> Streams[Role | None]:
    return Streams(_video(section, StoredMask(folder=section.mask_dir)), _audio(section))


def _extension(section: Any) -> Streams[Role | None]:
    rule = OutsideTime(boundary=section.temporal_boundary, backward=section.direction == "backward")
    return Streams(_video(section, rule), _audio(section, rule))


def _retake(section: Any) -> Streams[Role | None]:
    rule = OutsideStretch(shares=(section.min_share, section.max_share))
    return Streams(_video(section, rule), _audio(section, rule))


def _reference_audio(section: Any) -> Streams[Role | None]:
    folder = section.reference_audio_latents_dir
    audio = Role(section.audio_latents_dir, rules=(Reference(folder=folder, key=folder),))
    return Streams(_video(section, _first_frame(section)), audio)


def _flexible(section: Any) -> Streams[Role | None]:
    return Streams(*(_flexible_role(part) for part in (section.video, section.audio)))


def _flexible_role(part: Any) -> Role | None:
    if part is None:
        return None
    memory = ReferenceScale()
    makers: dict[str, Callable[[Any], Rule]] = {
        "first_frame": lambda c: Prefix(c.probability, optional=True),
        "prefix": lambda c: Prefix(c.probability, c.temporal_boundary),
        "suffix": lambda c: Suffix(c.probability, c.temporal_boundary),
        "spatial_crop": lambda c: Crop(c.probability, tuple(c.spatial_region)),
        "mask": lambda c: StoredMask(c.probability, c.mask_dir),
        "reference": lambda c: Reference(c.probability, c.latents_dir, c.latents_dir, memory),
    }
    rules = tuple(makers[condition.type](condition) for condition in part.conditions)
    return Role(part.latents_dir, part.is_generated, rules)


_ROLES: dict[str, Callable[[Any], Streams[Role | None]]] = {
    "text_to_video": _text_to_video,
    "image_to_video": _text_to_video,
    "video_to_video": _video_to_video,
    "audio_to_video": _audio_to_video,
    "video_to_audio": _video_to_audio,
    "text_to_audio": _text_to_audio,
    "inpainting": _inpainting,
    "extension": _extension,
    "retake": _retake,
    "reference_audio": _reference_audio,
    "flexible": _flexible,
}
_OWN: dict[str, Callable[[Any], Strategy]] = {}


def register_strategy(name: str, strategy: Callable[[Any], Strategy]) -> None:
    """Make a strategy of your own known by a name, under which a configuration asks for it.

    Args:
        name: Its name, which no other strategy has.
        strategy: Makes it from section `training_strategy`, which may hold any keys then.
    """
    if name in _ROLES:
        raise ValueError(f"there is a strategy {name!r} in this package; give yours another name")
    from ..config import register_strategy_section

    _OWN[name] = strategy
    register_strategy_section(name)


def registered_strategies() -> tuple[str, ...]:
    """Names of strategies that were made known."""
    return tuple(_OWN)


def strategy_of(section: Any, shared_noise_level: bool = False) -> Strategy:
    """The strategy of a configuration.

    Args:
        section: Section `training_strategy`.
        shared_noise_level: Whether the sound takes the noise level of the video. Default `False`.
    """
    if section.name in _OWN:
        return _OWN[section.name](section)
    if section.name not in _ROLES:
        near = get_close_matches(section.name, [*_ROLES, *_OWN], n=1)
        raise ValueError(
            f"training_strategy.name {section.name!r} is unknown"
            + (f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join([*_ROLES, *_OWN])}")
        )
    roles = _ROLES[section.name](section)
    return MaskedStrategy(section, roles, shared_noise_level, always_tells_scale=section.name == "video_to_video")
