"""A plan of memory: where the weights of a generation are, what every stage takes, and how long it lasts."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from ..atomic import write_json
from ..checkpoints.json_files import parse_object
from ..checks import check_choice
from ..declared import settled
from ..quantization.configs import NAMES
from .policy import SOURCES, WHERE, StageForecast, Whereabouts, all_seconds, most_bytes
from .stages import DECODINGS

DEVICES = ("cuda", "cpu")
"""Kinds of devices that are planned for."""
DTYPES = ("bfloat16", "float16", "float32")
"""Types of weights and computation."""
_GIB = 2**30


@dataclass(frozen=True)
class ClipWish:
    """The generation that is planned for.

    Args:
        height, width: Size in pixels.
        num_frames: Frames of the clip.
        frame_rate: Frames per second. Default 24.0.
        two_stage: Whether a first stage at half the size is refined. Default `False`.
        image: Whether the first frame is given. Default `False`.
        given_frames: Frames of the longest clip that is given. Default 0, none.
        decoder: What makes frames, `"vae"` (default) or `"diffusion"`.
        guided: Whether the first stage is guided.
        steps: Steps of each stage.
        num_videos: Videos of the batch. Default 1.
        prompt_tokens: Tokens of the longest prompt. Default 512.
        positions: Text positions that the streams attend to. Default 1024.
    """

    height: int
    width: int
    num_frames: int
    frame_rate: float = 24.0
    two_stage: bool = False
    image: bool = False
    guided: bool = True
    steps: tuple[int, ...] = ()
    num_videos: int = 1
    prompt_tokens: int = 512
    positions: int = 1024
    given_frames: int = 0
    decoder: str = "vae"

    @property
    def shown(self) -> str:
        """In words."""
        count = f"{self.num_videos} clips of " if self.num_videos > 1 else ""
        ways = [
            "two stages" if self.two_stage else "one stage",
            "guided" if self.guided else "unguided",
            *(["image to video"] if self.image else []),
            *([f"with a clip of {self.given_frames} frames"] if self.given_frames else []),
            *(["decoded by diffusion"] if self.decoder == "diffusion" else []),
        ]
        return f"{count}{self.width} x {self.height} x {self.num_frames} frames, {', '.join(ways)}"


@dataclass(frozen=True)
class PartPlan:
    """What becomes of the weights of one component.

    Args:
        total: All of them, in bytes.
        placement: Where they are.
        on_device: Bytes on the device while the component is used.
        on_host: Bytes that stay in host memory.
    """

    total: int
    placement: Whereabouts
    on_device: int
    on_host: int


@dataclass(frozen=True)
class MemoryPlan:
    """How a generation runs within a device's memory; made by [`plan_memory`], and loaded by `LTX2Pipeline.from_plan`.

    Printing it shows a table. Sizes are in bytes, times in seconds; times are estimates.

    Args:
        checkpoint: What is loaded: a folder, a file, or a packaged name.
        text_encoder, upsampler, diffusion_decoder: Where these are loaded from, if not from the checkpoint.
        clip: The generation.
        vram_gb, ram_gb: Memory of the device and host memory that it keeps within, in GiB.
        device: Kind of the device, `"cuda"` or `"cpu"`.
        gpu: The card whose speed the times are counted with.
        dtype: Type of the weights that are not stored in fewer bits, and of the computation.
        quantize: How the transformer is stored: `None` in `dtype`, `"fp8_cast"` or `"fp8_scaled_mm"`.
        is_lossy: Whether the result differs by more than rounding from that of the weights as they are stored.
        decoding: `"whole"`, `"streamed"` (the same frames, in parts) or `"tiled"` (in blended tiles, lossy).
        batched_guidance: Whether all passes of a step are one batch.
        keeps_text: Whether keys and values of the text are kept between steps.
        parts: What becomes of each component.
        stages: What each stage takes, in order.
        device_bytes: Most that the device has to have, with what libraries and fragments take.
        host_bytes: Most that host memory has to have, the same.
    """

    checkpoint: str
    clip: ClipWish
    vram_gb: float
    ram_gb: float
    device: str
    gpu: str
    dtype: str
    decoding: str
    batched_guidance: bool
    keeps_text: bool
    parts: Mapping[str, PartPlan]
    stages: tuple[StageForecast, ...]
    device_bytes: int
    host_bytes: int
    quantize: str | None = None
    is_lossy: bool = False
    text_encoder: str | None = None
    upsampler: str | None = None
    diffusion_decoder: str | None = None

    @property
    def peak(self) -> int:
        """Most bytes of tensors on the device."""
        return most_bytes(self.stages)

    @property
    def seconds(self) -> float:
        """Time of a call, an estimate from a device's stated speed."""
        return all_seconds(self.stages)

    @property
    def transfer_per_step(self) -> int:
        """Most bytes of weights that come to the device in one denoising step."""
        return max(stage.transfer for stage in self.stages if stage.name.startswith("stage"))

    def to_json(self) -> str:
        """The plan as JSON, which `from_json` reads."""
        return json.dumps(self._content(), indent=2) + "\n"

    def _content(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The plan that `to_json` wrote.

        Raises:
            ValueError: If the text is no such plan.
        """
        content = parse_object(text, "the plan")
        try:
            return _checked(cls(**_read(content)))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"the text is no memory plan: {error}; write one with to_json()") from None

    def save(self, path: str | os.PathLike) -> None:
        """Write the plan to a JSON file."""
        write_json(Path(path), self._content())

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Read a plan from a JSON file.

        Raises:
            ValueError: If it holds none.
        """
        try:
            return cls.from_json(Path(path).read_text())
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)!r} holds no plan: {error}") from error

    def __str__(self) -> str:
        """The table."""
        return "\n".join(
            [self._title(), "", *self._part_lines(), "", *self._stage_lines(), "", *self._closing_lines()]
        )

    def _title(self) -> str:
        return f"{self.checkpoint}: {self.clip.shown}\nwithin {self.vram_gb:.4g} GB beside {_host(self.ram_gb)}"

    def _part_lines(self) -> list[str]:
        lines = [f"{'weights':<18}{'size':>10}  {'where':<43}{'on device':>11}{'in RAM':>12}"]
        for name, part in self.parts.items():
            size, on_device, on_host = map(shown_bytes, (part.total, part.on_device, part.on_host))
            lines.append(f"{name:<18}{size:>10}  {part.placement.shown:<43}{on_device:>11}{on_host:>12}")
        return lines

    def _stage_lines(self) -> list[str]:
        lines = [f"{'stage':<18}{'peak':>10}  {'without weights':<16}{'moved per step':<16}{'time':<12}"]
        for stage in self.stages:
            count = f"{stage.repeats} steps, " if stage.repeats > 1 else ""
            lines.append(
                f"{stage.name:<18}{shown_bytes(stage.peak):>10}  {shown_bytes(stage.activations):<16}"
                f"{shown_bytes(stage.transfer):<16}{count}{shown_seconds(stage.seconds)}"
            )
        return lines

    def _closing_lines(self) -> list[str]:
        passes = "all passes of a step in one batch" if self.batched_guidance else "passes of a step one after another"
        text = "" if self.keeps_text else "; keys and values of the text computed anew in every step"
        decoding = self.decoding
        storage = self.quantize or "as stored"
        lossy = "; lossy" if self.is_lossy else ""
        return [
            f"transformer {storage}, {self.dtype}; video decoded {decoding}; {passes}{text}{lossy}",
            f"together: {shown_bytes(self.device_bytes)} of the device and {shown_bytes(self.host_bytes)} of host memory, with "
            "what libraries and fragments take",
            f"time: about {shown_seconds(self.seconds)} a call at the speed of {self.gpu}, an estimate",
        ]


def _read(content: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a plan as dataclasses again."""
    clip = {**content["clip"], "steps": tuple(content["clip"]["steps"])}
    parts = {
        name: PartPlan(**{**part, "placement": Whereabouts(**part["placement"])})
        for name, part in content["parts"].items()
    }
    stages = tuple(StageForecast(**stage) for stage in content["stages"])
    return {**content, "clip": ClipWish(**clip), "parts": parts, "stages": stages}


def _checked(plan: Any) -> Any:
    """The plan, if every value is of its type and one that a planner gives."""
    parts = {name: settled(replace(part, placement=settled(part.placement))) for name, part in plan.parts.items()}
    stages = tuple(settled(stage) for stage in plan.stages)
    plan = settled(replace(plan, clip=settled(plan.clip), parts=parts, stages=stages))
    for one in parts.values():
        check_choice("where", one.placement.where, WHERE)
        check_choice("source", one.placement.source, SOURCES)
    check_choice("decoding", plan.decoding, DECODINGS)
    check_choice("dtype", plan.dtype, DTYPES)
    check_choice("device", plan.device, DEVICES)
    check_choice("quantize", plan.quantize, (None, *NAMES))
    if not parts or not stages:
        raise ValueError("`parts` and `stages` have to hold something but are empty")
    return plan


def shown_bytes(size: float) -> str:
    """Bytes for people."""
    if size == 0:
        return "-"
    return f"{size / _GIB:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.2f} MiB"


def shown_seconds(seconds: float) -> str:
    """Time for people."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min"


def _host(gib: float) -> str:
    return f"{gib:.4g} GB of host memory"
