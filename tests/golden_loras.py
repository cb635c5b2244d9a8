"""The golden LoRA in every layout: those that only spell `original.safetensors` otherwise are written when they are needed."""

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.golden_data import GOLDEN_DIR, load_tensors

STORED = GOLDEN_DIR / "checkpoint" / "lora"
ORIGINAL, SECOND, WIDE = (
    STORED / f"{name}.safetensors" for name in ("original", "second_fp32_rank2", "wide_original")
)
# What holds the written files until the process ends.
_WRITTEN = tempfile.TemporaryDirectory()


def _plain(prefix: str) -> Callable[[str], str]:
    return lambda module: prefix + module


# Layout -> name of a module, endings of its two factors, whether alpha is half the rank (and the second factor doubled).
_SPELLINGS = {
    "bare": (_plain(""), ("lora_A", "lora_B"), False),
    "diffusers": (_plain("transformer."), ("lora_A", "lora_B"), False),
    "peft": (_plain("base_model.model."), ("lora_A", "lora_B"), False),
    "original_with_alpha": (_plain("diffusion_model."), ("lora_A", "lora_B"), True),
    "kohya_dotted": (_plain("diffusion_model."), ("lora_down", "lora_up"), True),
    "kohya_underscored": (lambda module: "lora_unet_" + module.replace(".", "_"), ("lora_down", "lora_up"), True),
}


@cache
def lora_file(layout: str) -> Path:
    """The LoRA file in one layout."""
    stored = STORED / f"{layout}.safetensors"
    if stored.is_file():
        return stored
    path = Path(_WRITTEN.name, stored.name)
    save_file(dict(_spelled(*_SPELLINGS[layout])), path, {"format": "pt"})
    return path


def lora_files() -> list[Path]:
    """All LoRA files, sorted by name."""
    stored = {path.stem for path in STORED.glob("*.safetensors")}
    return [lora_file(layout) for layout in sorted(stored | set(_SPELLINGS))]


def _spelled(
    name: Callable[[str], str], endings: tuple[str, str], has_alpha: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    for key, tensor in load_tensors(ORIGINAL).items():
        module, factor = key.removeprefix("diffusion_model.").removesuffix(".weight").rsplit(".", 1)
        is_down = factor == "lora_A"
        yield (
            f"{name(module)}.{endings[0] if is_down else endings[1]}.weight",
            (tensor if is_down or not has_alpha else tensor * 2),
        )
        if has_alpha and is_down:
            yield f"{name(module)}.alpha", torch.tensor(len(tensor) / 2)
