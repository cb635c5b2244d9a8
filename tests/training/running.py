"""Small runs of the trainer on the packaged miniature: samples of random values, and a configuration."""

from pathlib import Path
from typing import Any

import torch

from ltx2_diffusers.data.samples import write_sample
from ltx2_diffusers.training.config_files import parse_config
from tests.tiny_checkpoints import tiny_checkpoint

SOURCES = ("latents", "audio_latents", "reference_latents", "reference_audio_latents", "video_masks")


def stored_samples(root: Path, count: int = 5, frames: int = 2, silent: tuple[int, ...] = ()) -> Path:
    """A data set of the widths of the tiny checkpoint of 2.0, whose values follow from their index."""
    for index in range(count):
        noise = torch.Generator().manual_seed(index)

        def randn(*shape: int, noise: torch.Generator = noise) -> torch.Tensor:
            return torch.randn(shape, generator=noise)

        name = f"clip_{index}.safetensors"
        grid = {"num_frames": frames, "height": 1, "width": 2, "fps": 24.0}
        folder = root / ".precomputed"
        write_sample(folder / "latents" / name, {"latents": randn(128, frames, 1, 2).bfloat16()}, grid)
        write_sample(folder / "reference_latents" / name, {"latents": randn(128, frames, 1, 2).bfloat16()}, grid)
        write_sample(folder / "conditions" / name, {"video_prompt_embeds": randn(3 + index, 32).bfloat16()}, {})
        mask = torch.ones(frames, 1, 2)
        mask[index % frames] = 0
        write_sample(folder / "video_masks" / name, {"mask": mask}, {})
        for source in ("audio_latents", "reference_audio_latents"):
            if index not in silent:
                write_sample(folder / source / name, {"latents": randn(2, 8, 16)}, {"num_time_steps": 8})
    empty = torch.randn(1, 32, generator=torch.Generator().manual_seed(99))
    write_sample(root / ".precomputed" / "empty_prompt.safetensors", {"video_prompt_embeds": empty.bfloat16()}, {})
    return root


def settings(data: Path, output: Path, **sections: Any) -> dict[str, Any]:
    """A configuration as a mapping; sections given are merged into it."""
    found: dict[str, Any] = {
        "model": {"model_path": str(tiny_checkpoint("2.0"))},
        "lora": {"rank": 4, "alpha": 8},
        "training_strategy": {"name": "text_to_video", "with_audio": True, "first_frame_conditioning_p": 0.5},
        "optimization": {"steps": 4, "batch_size": 1, "learning_rate": 0.01},
        "acceleration": {"mixed_precision_mode": "no"},
        "data": {"preprocessed_data_root": str(data), "num_dataloader_workers": 0},
        "validation": {"interval": None},
        "checkpoints": {"precision": "float32"},
        "tracking": {"tensorboard": False, "progress_bar": False},
        "output_dir": str(output),
    }
    for name, section in sections.items():
        found[name] = {**found.get(name, {}), **section} if isinstance(section, dict) else section
    return found


def config(data: Path, output: Path, **sections: Any):
    """The same, read by the schema."""
    return parse_config(settings(data, output, **sections))


class Losses:
    """Records the loss of every step of a trainer."""

    def __init__(self, trainer: Any) -> None:
        self.values: list[float] = []
        step = trainer._step

        def recorded(*arguments: Any) -> Any:
            result = step(*arguments)
            self.values.append(result[0]["loss"])
            return result

        trainer._step = recorded
