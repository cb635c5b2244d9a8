"""Configurations of runs on the tiny checkpoints, and steps written by hand."""

from typing import Any

import torch

from ltx2_diffusers.training.config import TrainingConfig
from ltx2_diffusers.training.optimisers import make_optimizer
from ltx2_diffusers.training.trained.models import TrainedModels, load_models
from tests.models.transformer_tools import tiny_inputs
from tests.tiny_checkpoints import tiny_checkpoint

CPU = torch.device("cpu")


def config(lora: dict[str, Any] | None = None, **sections: dict[str, Any]) -> TrainingConfig:
    """A run on the tiny checkpoint of 2.0, with sections of their own values in place of the defaults."""
    values: dict[str, Any] = {
        "model": {"model_path": str(tiny_checkpoint("2.0"))},
        "data": {"preprocessed_data_root": "/data"},
        "lora": {"rank": 4, "alpha": 4} | (lora or {}),
        "optimization": {"learning_rate": 0.01, "enable_gradient_checkpointing": True},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return TrainingConfig.model_validate(values)


def loaded(settings: TrainingConfig, needs_decoders: bool = False, **options: Any) -> TrainedModels:
    torch.manual_seed(0)
    return load_models(settings, CPU, needs_decoders, **options)


def text_states(connectors: Any, batch_size: int = 1) -> dict[str, torch.Tensor]:
    """Hidden states of a language model, for as many positions as there are registers."""
    sizes = connectors.config
    positions = sizes.video_connector_num_learnable_registers
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(batch_size, positions, sizes.caption_channels, sizes.text_proj_in_factor, generator=generator)
    mask = torch.ones(batch_size, positions, dtype=torch.int64)
    mask[:, : positions // 2] = 0
    return {"text_encoder_hidden_states": states, "attention_mask": mask}


def velocities(transformer: Any, connectors: Any) -> list[torch.Tensor]:
    """Both velocities for a text that goes through the connectors."""
    # The projection of the text, which is never trained, comes first.
    dtype = next(connectors.parameters()).dtype
    text = text_states(connectors)
    video, audio, _ = connectors(text["text_encoder_hidden_states"].to(dtype), text["attention_mask"])
    inputs = tiny_inputs(transformer)
    inputs |= {"encoder_hidden_states": video, "audio_encoder_hidden_states": audio}
    inputs = {k: v.to(dtype) if k.endswith("hidden_states") else v for k, v in inputs.items()}
    return [velocity.float() for velocity in transformer(**inputs)]


def train(models: TrainedModels, settings: TrainingConfig, steps: int = 2) -> list[float]:
    """Losses of a few steps towards fixed velocities."""
    optimizer, losses = make_optimizer(settings.optimization, models.parameters()), []
    for model in models.trained.values():
        model.train()
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16):
            found = velocities(models.transformer, models.connectors)
        goals = [torch.randn(v.shape, generator=torch.Generator().manual_seed(7)) for v in found]
        loss = sum((v - goal).square().mean() for v, goal in zip(found, goals))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    for model in models.trained.values():
        model.eval()
    return losses
