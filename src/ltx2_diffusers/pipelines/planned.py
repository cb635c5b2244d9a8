"""Plans of memory for checkpoints: what is asked for, checked, and the search for what fits.

Nothing is loaded for a plan: models are built without values, from configurations and headers of files.
"""

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from .. import checks, declared, devices, planning
from ..checkpoints.versions import check_ltx2
from ..conditioning.shapes import VIDEO_SCALE_FACTORS
from ..guidance.presets import DEFAULT_SIZE
from ..prompts.encoding import DEFAULT_TEXT_POSITIONS
from ..quantization.configs import NAMES
from ..quantization.layers import cast_layers, put_cast, put_scaled, scaled_layers
from ..sampling import PassLayout
from ..schedulers.scheduling_ltx2 import LTX2Scheduler
from .engine import DECODERS
from .generation import LTX2GenerationPipeline
from .plan import ClipPlan, ModelSizes, Size, plan_clip

Value = TypeVar("Value")

# Times of a smaller or shorter clip that are tried for a plan that does not fit.
_TRIES = 3


@declared.takes_declared
def plan_memory(
    checkpoint: str | os.PathLike,
    vram_gb: float,
    ram_gb: float | None = None,
    *,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    frame_rate: float = 24.0,
    two_stage: bool = False,
    image: bool = False,
    given_frames: int = 0,
    decoder: str = "vae",
    guided: bool | None = None,
    num_inference_steps: int | None = None,
    num_videos: int = 1,
    prompt_tokens: int = 512,
    quantize: str | None = None,
    allow_lossy: bool = False,
    gpu: str | None = None,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    text_encoder: str | os.PathLike | None = None,
    upsampler: str | os.PathLike | None = None,
    diffusion_decoder: str | os.PathLike | None = None,
) -> planning.MemoryPlan:
    """The fastest way to run a generation within a device's memory and host memory. Nothing is loaded.

    For every component it is chosen whether its weights stay on the device, are there while they are used, or come block by
    block from host memory or from their file; and how videos are decoded, and the passes of guidance made. By default all
    of that leaves the result as it is, up to rounding.

    Args:
        checkpoint: A folder in diffusers' layout, an original safetensors file, or a packaged name; or `"ltx-2-19b"` or
            `"ltx-2.3-22b"`, published models whose files are not needed for a plan.
        vram_gb: Memory of the device in GiB, as cards are sold. What CUDA and fragments take is counted within it.
        ram_gb: Host memory in GiB that may be used. Default what this machine has free.
        height, width: Size in pixels, default 512 x 768.
        num_frames: Frames, default 121.
        frame_rate: Frames per second. Default 24.0.
        two_stage: Whether a stage at half the size is refined. Default `False`.
        image: Whether the first frame is given. Default `False`.
        given_frames: Frames of the longest clip that is given, to work on or to follow; it is encoded whole. What a reference
            adds to every step is not counted. Default 0, none.
        decoder: What makes frames: `"vae"` (default), or `"diffusion"`, the `diffusion_decoder`, which other plans leave out.
        guided: Whether the first stage is guided. Default as the checkpoint's reference settings say.
        num_inference_steps: Steps of the first stage, default the reference's.
        num_videos: Videos of the batch. Default 1.
        prompt_tokens: Tokens of the longest prompt, up to 1024; longer prompts take more memory when they are
            read. Default 512, some 350 words.
        quantize: `"fp8_cast"` or `"fp8_scaled_mm"` to store the transformer in float8, which is lossy. Default as it is
            stored.
        allow_lossy: Whether the planner may itself store the transformer in float8 (`fp8_cast`) and decode in blended tiles,
            where that is faster or all that fits. Default `False`.
        gpu: Card whose speed times are estimated with, a name of `ltx2 plan --gpu`. Default this machine's, or an RTX 4090's.
        device: `"cuda"` (default), or `"cpu"` to count as a CPU's kernels do, without what CUDA takes.
        dtype: Type of the weights and of the computation. Default `torch.bfloat16`.
        text_encoder: Folder of the language model of an original file, which other checkpoints bring. Default: for a plan, the
            sizes of Gemma 3 12B.
        upsampler: File or folder of the upsampler, if the checkpoint has none.
        diffusion_decoder: File or folder of the decoder of `decoder="diffusion"`, the same.

    Raises:
        ValueError: If no plan fits, with the nearest that do; or if an argument is out of range or contradicts another.
    """
    asked = _checked(vram_gb, ram_gb, quantize, allow_lossy, device)
    checks.check_choice("dtype", str(dtype).removeprefix("torch."), planning.DTYPES)
    check_ltx2(
        checkpoint,
        "only LTX-2 is planned; use --offload model of `ltx2 generate`, or enable_model_cpu_offload() of an LTXVideoPipeline",
    )
    parts = planning.parts_of(checkpoint, text_encoder, upsampler, dtype, diffusion_decoder)
    _check_storage(parts, asked)
    size = [default if given is None else given for given, default in zip((height, width, num_frames), DEFAULT_SIZE)]
    steps = (num_inference_steps, num_videos, prompt_tokens)
    _check_decoder(parts, decoder)
    wish = replace(
        clip_wish(parts, size, frame_rate, two_stage, (image, given_frames), guided, *steps), decoder=decoder
    )
    name = gpu or (devices.present_gpu() if device == "cuda" else None)
    card = devices.CPU if device == "cpu" and gpu is None else devices.device_named(name)
    budget = planning.Budget(vram_gb * 2**30, asked.ram_gb * 2**30, card, device == "cuda")
    planner = Planner(parts, asked, budget, _counts(parts, budget))
    given = {"text_encoder": text_encoder, "upsampler": upsampler, "diffusion_decoder": diffusion_decoder}
    places: dict[str, Any] = {name: None if place is None else os.fspath(place) for name, place in given.items()}
    plan = planner.plan(wish)
    shown = "a CPU" if card is devices.CPU else (name or devices.USUAL)
    return replace(plan, gpu=shown, **places)


_LATEST = threading.local()


def _counts(parts: planning.ModelParts, budget: planning.Budget) -> planning.Counts:
    """What is counted of a checkpoint, that of the last plan of this thread if it was for the same one."""
    kind = "cuda" if budget.is_cuda else "cpu"
    # Kernels of a CPU have room for every thread.
    key = parts, kind, torch.get_num_threads()
    if getattr(_LATEST, "key", None) != key:
        put = partial(stored, own=parts.storage, layers=parts.float8)
        _LATEST.key, _LATEST.counts = key, planning.Counts(parts, kind, put)
    counts: planning.Counts = _LATEST.counts
    return counts


class Planner:
    """Plans for one checkpoint, device and set of liberties.

    Args:
        parts: The checkpoint.
        asked: What the plan may do.
        budget: Memory of device and host.
        counts: Counts what the checkpoint needs.
    """

    def __init__(
        self, parts: planning.ModelParts, asked: "Liberties", budget: planning.Budget, counts: planning.Counts
    ) -> None:
        self.parts, self.asked, self.budget, self.counts = parts, asked, budget, counts

    def plan(self, wish: planning.ClipWish) -> planning.MemoryPlan:
        """The fastest plan that fits.

        Raises:
            ValueError: If none does, with the nearest that do.
        """
        best, least = self.choice(wish)
        if best is None:
            raise ValueError(self._refusal(wish, least))
        return self._as_plan(wish, best)

    def fits(self, wish: planning.ClipWish) -> bool:
        """Whether a plan fits."""
        return self.choice(wish)[0] is not None

    def choice(self, wish: planning.ClipWish) -> tuple[planning.Choice | None, planning.Choice]:
        """The fastest choice that fits, if any does, and the one that lacks least."""
        needs = planning.Needs(self.counts, wish, planning.Clips(*clip_sizes(self.parts, wish)))
        storages = self.asked.storages(self.parts.storage)
        decodings = [how for how in planning.DECODINGS if how != "tiled" or self.asked.allow_lossy]
        best, least = planning.chosen(planning.variants(needs, storages, [PassLayout()], decodings), self.budget)
        if best is not None and best.placements[planning.DENOISER].where != "streamed":
            return best, least
        # A batch of passes saves the way of weights to the device, and texts that are not kept save room for them.
        others = [PassLayout(batched=True)] if any(needs.passes) else []
        if self.parts.preset.version == "2.0":
            others += [replace(layout, keeps_text=False) for layout in (PassLayout(), *others)]
        if others:
            other, smaller = planning.chosen(planning.variants(needs, storages, others, decodings), self.budget)
            if other is not None and (best is None or other.seconds < best.seconds):
                best = other
            least = min(least, smaller, key=lambda choice: choice.lack(self.budget))
        return best, least

    def _as_plan(self, wish: planning.ClipWish, choice: planning.Choice) -> planning.MemoryPlan:
        variant, budget = choice.variant, self.budget
        parts = {
            name: planning.PartPlan(
                weights.total,
                choice.placements[name],
                choice.placements[name].on_device(name, weights, True),
                choice.placements[name].on_host(name, weights),
            )
            for name, weights in variant.weights.items()
        }
        return planning.MemoryPlan(
            checkpoint=self.parts.name,
            clip=wish,
            vram_gb=budget.device_bytes / 2**30,
            ram_gb=budget.host_bytes / 2**30,
            device="cuda" if budget.is_cuda else "cpu",
            gpu="",
            dtype=str(self.parts.dtype).removeprefix("torch."),
            decoding=variant.decoding,
            batched_guidance=variant.batched,
            keeps_text=variant.keeps_text,
            parts=parts,
            stages=tuple(choice.stages),
            device_bytes=int(budget.needed(choice.peak)),
            host_bytes=int(budget.needed_on_host(choice.host)),
            quantize=variant.storage,
            is_lossy=variant.decoding == "tiled" or (variant.storage not in (None, self.parts.storage)),
        )

    def _refusal(self, wish: planning.ClipWish, least: planning.Choice) -> str:
        """What does not fit, and the nearest plans that do."""
        budget = self.budget
        device, host = budget.needed(least.peak), budget.needed_on_host(least.host)
        lacks = []
        if device > budget.device_bytes:
            lacks.append(f"{_gib(device)} GB of the device (vram_gb={_shown(budget.device_bytes)})")
        if host > budget.host_bytes:
            lacks.append(f"{_gib(host)} GB of host memory (ram_gb={_shown(budget.host_bytes)})")
        near = list(self._nearest(wish))
        hint = f"; it fits {', or '.join(near)}" if near else "; take more memory"
        return f"{self.parts.name}: {wish.shown} needs at least {' and '.join(lacks)}{hint}"

    def _nearest(self, wish: planning.ClipWish) -> Iterator[str]:
        """What would fit, in words."""
        if not self.asked.allow_lossy and self.asked.quantize is None:
            freer = Planner(self.parts, replace(self.asked, allow_lossy=True), self.budget, self.counts)
            best, _ = freer.choice(wish)
            if best is not None:
                freedom = "allow_lossy=True" if best.variant.storage is None else "quantize='fp8-cast'"
                yield f"with {freedom}, which is lossy"
        shorter = range(9, wish.num_frames, 8)
        frames = most_fitting(shorter, lambda count: self.fits(replace(wish, num_frames=count)))
        if frames is not None:
            yield f"with num_frames={frames}"
        step = 64 if wish.two_stage else 32
        smaller = sizes_below(wish.height, wish.width, step)
        size = most_fitting(smaller, lambda one: self.fits(replace(wish, height=one[0], width=one[1])))
        if size is not None:
            yield f"at {size[1]} x {size[0]} x {wish.num_frames}"


def most_fitting(values: Sequence[Value], fits: Callable[[Value], bool], tries: int = _TRIES) -> Value | None:
    """The last of rising values that fits, found in some tries."""
    low, high, found = 0, len(values), None
    for _ in range(tries):
        if low >= high:
            break
        middle = (low + high) // 2
        if fits(values[middle]):
            low, found = middle + 1, values[middle]
        else:
            high = middle
    return found


def sizes_below(height: int, width: int, step: int) -> list[tuple[int, int]]:
    """Smaller sizes of about the same shape, rising."""
    sizes = []
    for eighth in range(1, 8):
        sides = [max(round(side * eighth / 8 / step) * step, step) for side in (height, width)]
        sizes.append((sides[0], sides[1]))
    return [one for one in dict.fromkeys(sizes) if one[0] * one[1] < height * width]


def _gib(size: float) -> str:
    return f"{math.ceil(size / 2**30 * 10) / 10:g}" if size >= 2**30 / 4 else f"{size / 2**30 * 1.005:.3g}"


def _shown(size: float) -> str:
    return f"{size / 2**30:g}"


@dataclass(frozen=True)
class Liberties:
    """What a plan may do.

    Args:
        ram_gb: Host memory in GiB.
        quantize: How the transformer has to be stored; `None` leaves it open.
        allow_lossy: Whether what changes results may be chosen.
    """

    ram_gb: float
    quantize: str | None = None
    allow_lossy: bool = False

    def storages(self, own: str | None) -> list[str | None]:
        """Ways to store the transformer; what is in float8 stays as it is stored."""
        if self.quantize is not None:
            return [self.quantize]
        if own is not None:
            return [own]
        return [None, "fp8_cast"] if self.allow_lossy else [None]


def _checked(vram_gb: float, ram_gb: float | None, quantize: str | None, allow_lossy: bool, device: str) -> Liberties:
    """The liberties of a plan, after a check of what is wrong whatever the checkpoint."""
    checks.check_positive(vram_gb=vram_gb, ram_gb=ram_gb)
    checks.check_choice("device", device, planning.DEVICES)
    if quantize is not None:
        quantize = quantize.replace("-", "_")
        checks.check_choice("quantize", quantize, NAMES)
    return Liberties(devices.host_gib() if ram_gb is None else ram_gb, quantize, allow_lossy)


def _check_storage(parts: planning.ModelParts, asked: Liberties) -> None:
    """A transformer that a folder holds in float8 cannot be stored otherwise."""
    own, other = parts.storage, asked.quantize
    if None not in (own, other) and own != other and os.path.isdir(parts.name):
        raise ValueError(f"`quantize` is {other!r}, but {parts.name} is stored in {own}; leave it out")


def _check_decoder(parts: planning.ModelParts, decoder: str) -> None:
    checks.check_choice("decoder", decoder, tuple(DECODERS))
    if decoder == "diffusion" and planning.DIFFUSION not in parts.configs:
        raise ValueError(
            f'`decoder` is "diffusion", but {parts.name} has no {planning.DIFFUSION}; name one with `diffusion_decoder`, or '
            "leave it out"
        )


def clip_wish(
    parts: planning.ModelParts,
    size: Sequence[int],
    frame_rate: float,
    two_stage: bool,
    given: tuple[bool, int],
    guided: bool | None,
    steps: int | None,
    num_videos: int,
    prompt_tokens: int,
) -> planning.ClipWish:
    """The generation, after a check of its values against the checkpoint; `given` is a picture, and frames of a clip."""
    preset = parts.preset
    is_dev = preset.kind == "dev"
    if guided and not is_dev:
        raise ValueError("`guided` is True, but a distilled checkpoint runs without guidance; leave it out")
    if two_stage and "latent_upsampler" not in parts.configs:
        raise ValueError(f"{parts.name} has no latent_upsampler, which two stages need; name one with `upsampler`")
    if two_stage and parts.has_second:
        raise ValueError(
            f"{parts.name} has a transformer of its own for the second stage, whose memory no plan counts; plan without "
            "`two_stage`"
        )
    if steps is not None and not is_dev:
        raise ValueError(f"`num_inference_steps` is {steps}, but a distilled checkpoint has fixed steps; leave it out")
    checks.check_at_least_one(num_videos=num_videos, prompt_tokens=prompt_tokens)
    count = preset.num_inference_steps if steps is None else steps
    checks.check_at_least_one(num_inference_steps=count)
    all_steps = (count, len(preset.stage_2_sigmas)) if two_stage else (count,)
    positions = _positions(parts)
    guided = is_dev if guided is None else guided
    height, width, num_frames = size
    image, given_frames = given
    if given_frames:
        checks.check_num_frames(given_frames, VIDEO_SCALE_FACTORS.time, "given_frames")
    tokens = min(prompt_tokens, positions)
    clip = (height, width, num_frames, frame_rate)
    wish = planning.ClipWish(*clip, two_stage, image, guided, all_steps, num_videos, tokens, positions, given_frames)
    clip_sizes(parts, wish)
    return wish


def _positions(parts: planning.ModelParts) -> int:
    """Text positions that the streams attend to: those of texts by default, as far as the language model knows them."""
    config = parts.configs["text_encoder"].get("text_config", {})
    return min(DEFAULT_TEXT_POSITIONS, config.get("max_position_embeddings", DEFAULT_TEXT_POSITIONS))


def clip_sizes(
    parts: planning.ModelParts, wish: planning.ClipWish, sizes: ModelSizes | None = None
) -> tuple[ClipPlan, ClipPlan]:
    """The sizes of the finished clip and of the first stage; `sizes` are those of [`model_sizes`], if they are known."""
    scale = 0.5 if wish.two_stage else 1.0
    wished = Size(wish.height, wish.width, wish.num_frames, wish.frame_rate)
    clip = plan_clip(sizes or model_sizes(parts), wish.num_videos, wished, [(scale, 1.0), (1.0, 1.0)])
    return clip, clip.at_scale(scale, 1.0)


def model_sizes(parts: planning.ModelParts) -> ModelSizes:
    """What the networks make of pixels and seconds, read from them without values."""
    networks: dict[str, Any] = {name: parts.model(name) for name in ("vae", "audio_vae")}
    networks["transformer"] = parts.model(planning.DENOISER, 1)
    absent: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "connectors", "vocoder"))
    return LTX2GenerationPipeline(LTX2Scheduler(), **networks, **absent).sizes


def stored(
    transformer: nn.Module, storage: str | None, own: str | None = None, layers: frozenset[str] = frozenset()
) -> nn.Module:
    """A transformer without values, stored in some way.

    Args:
        transformer: The transformer, which is changed.
        storage: How it is to be stored, `None` as it is.
        own: How its checkpoint is stored.
        layers: Those layers of the checkpoint that are stored so; others are chosen by the method.
    """
    if storage is None:
        return transformer
    dtype = next(transformer.parameters()).dtype
    shapes = {name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}
    found = cast_layers(shapes) if storage == "fp8_cast" else scaled_layers(shapes)
    if storage == own:
        found = [layer for layer in sorted(layers) if f"{layer}.weight" in shapes]
    if storage == "fp8_cast":
        put_cast(transformer, found, dtype)
    else:
        put_scaled(transformer, dict.fromkeys(found, False), dtype)
    return transformer
