"""Which weights wait where, and what that costs: numbers in, the fastest choice that fits out.

A choice says for every component where its weights are. All sizes are in bytes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from .. import devices

WHERE = ("resident", "released", "streamed")
"""On the device throughout; only while it is used; block by block."""
SOURCES = ("device", "ram", "disk")
# One block computes, and the next one is copied.
_SLOTS = 2
LANGUAGE_MODEL, DENOISER = "text_encoder", "transformer"


@dataclass(frozen=True)
class Weights:
    """The weights of a component.

    Args:
        total: All of them.
        blocks: Number of blocks that can be streamed, 0 for none.
        block: The largest block.
    """

    total: int
    blocks: int = 0
    block: int = 0

    @property
    def rest(self) -> int:
        """What is in no block."""
        return max(self.total - self.blocks * self.block, 0)


@dataclass(frozen=True)
class Whereabouts:
    """Where the weights of a component are.

    Args:
        where: One of `WHERE`.
        source: Where they wait, one of `SOURCES`; what is released waits in host memory.
        num_on_device: Blocks on the device at a time, of those that are streamed.
    """

    where: str = "resident"
    source: str = "device"
    num_on_device: int = 0

    def streamed_blocks(self, weights: Weights) -> int:
        """Blocks that come and go."""
        return max(weights.blocks - max(self.num_on_device - _SLOTS, 0), 0) if self.where == "streamed" else 0

    def on_device(self, name: str, weights: Weights, in_use: bool) -> int:
        """Bytes on the device, while the component is in use and while it is not."""
        if self.where == "resident":
            return weights.total
        if self.where == "released":
            return weights.total if in_use else 0
        blocks = min(self.num_on_device, weights.blocks) * weights.block
        # All but the layers of a language model comes when it runs.
        return blocks + (weights.rest if in_use or name != LANGUAGE_MODEL else 0)

    def on_host(self, name: str, weights: Weights) -> int:
        """Bytes in host memory."""
        if self.where == "resident":
            return 0
        if self.where == "released":
            return weights.total
        rest = weights.rest if name == LANGUAGE_MODEL else 0
        blocks = self.streamed_blocks(weights) if self.source == "ram" else _SLOTS
        return rest + blocks * weights.block

    @property
    def shown(self) -> str:
        """In words."""
        if self.where == "resident":
            return "resident"
        if self.where == "released":
            return "released after use"
        source = {"ram": "RAM", "disk": "disk"}[self.source]
        kept = f", {self.num_on_device} on the device" if self.num_on_device != _SLOTS else ""
        return f"streamed from {source}{kept}"


@dataclass(frozen=True)
class StageNeed:
    """What a stage needs.

    Args:
        name: Its name.
        uses: Components that run in it.
        activations: Most bytes of tensors beside the weights.
        operations: Additions and multiplications of one repetition.
        attention: Those of them that are attention, which float8 does not speed up.
        repeats: How often it runs.
        traversals: How often a repetition goes through all blocks.
    """

    name: str
    uses: tuple[str, ...]
    activations: int
    operations: float
    attention: float = 0
    repeats: int = 1
    traversals: int = 1


@dataclass(frozen=True)
class Budget:
    """What there is.

    Args:
        device_bytes: Memory of the device.
        host_bytes: Host memory.
        gpu: The device.
        is_cuda: Whether context and fragments of CUDA take their share.
    """

    device_bytes: float
    host_bytes: float
    gpu: devices.Gpu
    is_cuda: bool = True

    def needed(self, tensors: float) -> float:
        """What a device has to have for so many bytes of tensors."""
        return tensors * (1 + devices.FRAGMENTS) + devices.CONTEXT_BYTES if self.is_cuda else tensors

    def needed_on_host(self, weights: float) -> float:
        """The same for host memory."""
        return weights + devices.HOST_BYTES if self.is_cuda else weights


@dataclass(frozen=True)
class Variant:
    """One way to run, without saying where the weights are.

    Args:
        storage: How the transformer is stored.
        decoding: How videos are decoded.
        batched: Whether all passes of a step are one batch.
        keeps_text: Whether keys and values of the text are kept between steps.
        weights: Weights of the components.
        stages: The stages.
        output: Bytes of host memory that the result takes.
        is_fast_float8: Whether the transformer multiplies in float8.
    """

    storage: str | None
    decoding: str
    batched: bool
    keeps_text: bool
    weights: Mapping[str, Weights]
    stages: Sequence[StageNeed]
    output: int = 0
    is_fast_float8: bool = False


@dataclass(frozen=True)
class StageForecast:
    """What a stage will take.

    Args:
        name: Its name.
        peak: Most bytes of tensors on the device, weights included.
        activations: Those without weights.
        transfer: Bytes of weights that come to the device in each repetition.
        repeats: How often it runs, the steps of a loop.
        seconds: Its time, an estimate.
    """

    name: str
    peak: int
    activations: int
    transfer: int
    repeats: int
    seconds: float


def most_bytes(stages: Sequence[StageForecast]) -> int:
    """Most bytes of tensors on the device in any stage."""
    return max(stage.peak for stage in stages)


def all_seconds(stages: Sequence[StageForecast]) -> float:
    """Time of all stages."""
    return sum(stage.seconds for stage in stages)


@dataclass(frozen=True)
class Choice:
    """A variant with the places of its weights, and what it costs."""

    variant: Variant
    placements: Mapping[str, Whereabouts]
    stages: Sequence[StageForecast]
    host: int

    @property
    def seconds(self) -> float:
        """Time of a call."""
        return all_seconds(self.stages)

    @property
    def peak(self) -> int:
        """Most bytes of tensors on the device."""
        return most_bytes(self.stages)

    def lack(self, budget: Budget) -> float:
        """How much larger than they are device and host memory would have to be, as a factor; 1 if it fits."""
        device = budget.needed(self.peak) / budget.device_bytes
        return max(device, 1) * max(budget.needed_on_host(self.host) / budget.host_bytes, 1)

    @property
    def moving(self) -> int:
        """Components that are not on the device throughout; of two plans that take as long, the one with fewer is better."""
        return sum(placement.where != "resident" for placement in self.placements.values())


def chosen(variants: Sequence[Variant], budget: Budget) -> tuple[Choice | None, Choice]:
    """The fastest choice that fits, if any does, and the one that lacks least."""
    best: Choice | None = None
    least: Choice | None = None
    for variant in variants:
        for placements in _placements(variant):
            choice = _with_blocks(variant, placements, budget)
            lack = choice.lack(budget)
            if least is None or lack < least.lack(budget):
                least = choice
            if lack > 1:
                continue
            # A hundredth of a second decides nothing.
            if best is None or (round(choice.seconds, 2), choice.moving) < (round(best.seconds, 2), best.moving):
                best = choice
    assert least is not None
    return best, least


def _placements(variant: Variant) -> Iterator[dict[str, Whereabouts]]:
    """All ways to place the components; of the small ones none wait, or those that read text, or all."""
    resident = Whereabouts()
    options = {}
    for name, weights in variant.weights.items():
        if name in (LANGUAGE_MODEL, DENOISER):
            options[name] = [resident, Whereabouts("released", "ram")]
            # What is quantised while it is loaded is in no file.
            sources = ("ram",) if name == DENOISER and variant.storage is not None else ("ram", "disk")
            if weights.blocks > 1:
                counts = sorted({min(count, weights.blocks - 1) for count in (1, _SLOTS)}, reverse=True)
                options[name] += [Whereabouts("streamed", *one) for one in product(sources, counts)]
    others = [name for name in variant.weights if name not in options]
    for waiting in ([], [name for name in others if name == "connectors"], others):
        small = {name: Whereabouts("released", "ram") if name in waiting else resident for name in others}
        for large in product(*options.values()):
            yield {**dict(zip(options, large)), **small}


def _with_blocks(variant: Variant, placements: dict[str, Whereabouts], budget: Budget) -> Choice:
    """The choice, with as many blocks of the transformer on the device as fit beside everything else."""
    choice = forecast(variant, placements, budget)
    own, weights = placements[DENOISER], variant.weights[DENOISER]
    if own.where != "streamed" or own.num_on_device < _SLOTS or budget.needed(choice.peak) > budget.device_bytes:
        return choice
    spare = (budget.device_bytes - budget.needed(0)) / (budget.needed(1) - budget.needed(0)) - choice.peak
    more = min(int(spare // weights.block), weights.blocks - 1 - own.num_on_device)
    if more <= 0:
        return choice
    placed = {**placements, DENOISER: replace(own, num_on_device=own.num_on_device + more)}
    return forecast(variant, placed, budget)


def forecast(variant: Variant, placements: Mapping[str, Whereabouts], budget: Budget) -> Choice:
    """What a variant costs with its weights in these places."""
    stages, weights = [], variant.weights
    for stage in variant.stages:
        held = sum(p.on_device(name, weights[name], name in stage.uses) for name, p in placements.items())
        moved, seconds = 0, 0.0
        per_repeat = stage.operations / (budget.gpu.tflops * 1e12 * devices.COMPUTE_SHARE)
        if variant.is_fast_float8 and DENOISER in stage.uses:
            share = stage.attention / stage.operations if stage.operations else 0
            per_repeat *= share + (1 - share) / 2
        for name in stage.uses:
            placed, own = placements[name], weights[name]
            if placed.where == "released":
                seconds += own.total / devices.PAGEABLE_BYTES_PER_S
            elif placed.where == "streamed":
                rate = devices.DISK_BYTES_PER_S if placed.source == "disk" else devices.PINNED_BYTES_PER_S
                size = placed.streamed_blocks(own) * own.block * stage.traversals
                moved += size
                copies = size / rate
                # They run beside the computation, where there is room for two blocks.
                if placed.num_on_device > 1:
                    copies = max(0.0, copies - per_repeat) + devices.EXPOSED_SHARE * copies
                per_repeat += copies
                if name == LANGUAGE_MODEL:
                    seconds += own.rest / devices.PAGEABLE_BYTES_PER_S
        seconds += per_repeat * stage.repeats
        stages.append(
            StageForecast(stage.name, held + stage.activations, stage.activations, moved, stage.repeats, seconds)
        )
    host = variant.output + sum(p.on_host(name, weights[name]) for name, p in placements.items())
    return Choice(variant, placements, stages, host)


def smallest_gib(choice: Choice, budget: Budget) -> float:
    """GiB of a device that the choice fits, rounded up to a tenth."""
    return math.ceil(budget.needed(choice.peak) / 2**30 * 10) / 10
