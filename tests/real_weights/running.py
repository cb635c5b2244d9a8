"""Calls on any checkpoint: what they are given, what they are watched for, and the memory that they take."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from benchmarks.mini_world_star import PLAIN
from ltx2_diffusers import (
    LTX2AudioToVideoPipeline,
    LTX2DistilledPipeline,
    LTX2ImageToVideoPipeline,
    LTX2InContextPipeline,
    LTX2Pipeline,
    LTX2ReferenceCondition,
    LTX2TwoStagePipeline,
    LTX2VideoToAudioPipeline,
)
from ltx2_diffusers.checkpoints.packaged import PACKAGED, checkpoint_path
from ltx2_diffusers.cli.identities import file_sha256
from tests.training.live_bytes import LiveBytes

HEIGHT, WIDTH, NUM_FRAMES, FRAME_RATE, STEPS = 128, 192, 17, 24, 4
RATE = 48_000
PROMPT = "a red circle moves to the right on a blue background"
SIZE = {"height": HEIGHT, "width": WIDTH, "num_frames": NUM_FRAMES}
FEW = SIZE | {"num_inference_steps": STEPS}
ALIKE = {"prompt": PROMPT, "negative_prompt": "a circle does not move", **SIZE, "frame_rate": FRAME_RATE, **PLAIN, "num_inference_steps": STEPS}  # fmt: skip
"""A call that this package and diffusers promise to answer alike."""
TEXT_POSITIONS = 1024
LATENTS = ("latents", "audio_latents")
OFFLOADED = ", networks offloaded"
# Of the LoRAs: names that are looked for in a checkpoint's folder. Published IC-LoRAs have repositories of their own.
LORA_FILES = {
    "distilled": ("distilled_lora.safetensors", "ltx-2-19b-distilled-lora-384.safetensors"),
    "ic": ("ic_lora.safetensors",),
}


def scene(step: int, **drawing: Any) -> Image.Image:
    """A circle on its way to the right."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "black" if "outline" in drawing else "#1a33f2")
    ImageDraw.Draw(picture).ellipse((20 + 4 * step, 28, 92 + 4 * step, 100), **drawing)
    return picture


def filled() -> list[Image.Image]:
    """The circle in all frames."""
    return [scene(step, fill="#e61a1a") for step in range(NUM_FRAMES)]


def outlined() -> list[Image.Image]:
    """Its outline in all frames."""
    return [scene(step, outline="white", width=8) for step in range(NUM_FRAMES)]


def tone() -> Tensor:
    """A second of sound `[2, N]`, which is longer than the clip."""
    return (0.4 * torch.sin(2 * torch.pi * 200 / RATE * torch.arange(RATE))).expand(2, -1)


@dataclass(frozen=True)
class Case:
    """A call.

    Args:
        name: Of the case.
        pipeline: Class of the pipeline.
        call: Makes its arguments beside the prompt.
        lora: Which LoRA it needs.
        is_active: Whether the LoRA acts in all stages; a second stage adds it by itself.
    """

    name: str
    pipeline: Any
    call: Callable[[], dict[str, Any]]
    lora: str = ""
    is_active: bool = True


CASES = (
    Case("text to video", LTX2Pipeline, lambda: FEW),
    Case("image to video", LTX2ImageToVideoPipeline, lambda: {**FEW, "image": filled()[0]}),
    Case("two stages", LTX2TwoStagePipeline, lambda: FEW, "distilled", is_active=False),
    Case("distilled", LTX2DistilledPipeline, lambda: SIZE, "distilled"),
    Case("in context", LTX2InContextPipeline, lambda: {**FEW, "reference_conditions": LTX2ReferenceCondition(outlined())}, "ic"),
    Case("audio to video", LTX2AudioToVideoPipeline, lambda: {**FEW, "audio": tone(), "sampling_rate": RATE, "two_stage": False}),
    Case("video to audio", LTX2VideoToAudioPipeline, lambda: {"video": filled(), "num_inference_steps": STEPS}),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a case gave.

    Args:
        case: The case.
        lora: SHA-256 of its LoRA, empty without.
        found: `latents` and `audio_latents` after the last step, `frames` `[B, F, 3, H, W]` and `audio` `[B, C, N]`.
        peak_bytes: Weights and whatever else was in the device's memory when that was most.
    """

    case: Case
    lora: str
    found: dict[str, Tensor]
    peak_bytes: int


@dataclass(frozen=True)
class Weights:
    """A checkpoint and where it runs.

    Args:
        name: Folder, id of the Hub or name of a packaged checkpoint.
        device: `"cpu"` or `"cuda"`.
        dtype: `"float32"` or `"bfloat16"`.
        offload: Whether networks wait in host memory.
        loras: Given files by kind.
    """

    name: str
    device: str
    dtype: str
    offload: bool = False
    loras: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype == "float32":
            # Convolutions on recent GPUs would round to 10 bits.
            torch.backends.cudnn.allow_tf32 = False

    def load(self, kind: Any = LTX2TwoStagePipeline) -> Any:
        """A pipeline of the checkpoint, of this package or of diffusers, on the device."""
        source = checkpoint_path(self.name) if self.name in PACKAGED else self.name
        pipeline = kind.from_pretrained(source, dtype=getattr(torch, self.dtype))
        pipeline.set_progress_bar_config(disable=True)
        if self.offload:
            pipeline.enable_model_cpu_offload(device=self.device)
            return pipeline
        return pipeline.to(self.device)

    def lora_file(self, kind: str) -> Path:
        """The file of a LoRA; without one the test fails, and says what to give."""
        if (given := self.loras.get(kind)) is not None:
            return Path(given)
        folder = checkpoint_path(self.name)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(self.name, allow_patterns=list(LORA_FILES[kind])))
        found = [folder / name for name in LORA_FILES[kind] if (folder / name).is_file()]
        if not found:
            pytest.fail(f"{self.name} has no {kind} LoRA beside its components; give one with --{kind}-lora FILE")
        return found[0]

    def text_positions(self, pipeline: Any) -> int:
        """Text positions that both libraries are told to use."""
        return min(TEXT_POSITIONS, pipeline.tokenizer.model_max_length)

    def of_diffusers(self) -> dict[str, Tensor]:
        """Frames and sound of [`ALIKE`] by diffusers' own pipeline, which is gone afterwards."""
        pipeline = self.load(diffusers.LTX2Pipeline)
        found = decoded(pipeline(**ALIKE, **self.common(pipeline)))
        del pipeline
        gc.collect()
        torch.cuda.empty_cache()
        return found

    def common(self, pipeline: Any) -> dict[str, Any]:
        """What every call is told. The noise comes from the CPU, so that it is the same on every device."""
        generator = torch.Generator().manual_seed(0)
        return {"generator": generator, "output_type": "pt", "max_sequence_length": self.text_positions(pipeline)}

    def run(self, pipeline: Any, case: Case) -> Outcome:
        """Run a case on the common components."""
        needs = case.lora and not (case.lora == "distilled" and pipeline.preset.kind == "distilled")
        lora = self.lora_file(case.lora) if needs else None
        if lora is not None:
            pipeline.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name=case.lora)
            pipeline.set_adapters([case.lora] if case.is_active else [])
        try:
            recipe = case.pipeline.from_pipe(pipeline)
            recipe.set_progress_bar_config(disable=True)
            last: dict[str, Tensor] = {}

            def keep(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
                last.update({name: value for name, value in tensors.items() if value is not None})
                return {}

            watched = {"callback_on_step_end": keep, "callback_on_step_end_tensor_inputs": list(LATENTS)}
            with peak_memory(self.device, recipe) as peak:
                output = recipe(prompt=PROMPT, **case.call(), **self.common(recipe), **watched)
            return Outcome(case, file_sha256(lora) if lora else "", last | decoded(output), peak[0])
        finally:
            if lora is not None:
                pipeline.unload_lora_weights()


def decoded(output: Any) -> dict[str, Tensor]:
    """Frames and sound of an output, on the CPU."""
    return {name: value.float().cpu() for name in ("frames", "audio") if (value := getattr(output, name)) is not None}


@contextmanager
def peak_memory(device: str, pipeline: Any) -> Iterator[list[int]]:
    """Measure, into the first place of a list, the most bytes that a device held.

    On a GPU that is what PyTorch allocated. On a CPU it is the weights of the pipeline and every tensor that was made and still
    held, counted after each operation, so that it does not depend on the system.
    """
    result = [0]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield result
        result[0] = torch.cuda.max_memory_allocated()
        return
    networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    held = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    storages = {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    with LiveBytes(held) as counter:
        yield result
    result[0] = sum(storages.values()) + counter.peak
