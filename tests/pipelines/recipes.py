"""The recipes in stages on one packaged checkpoint, and calls that are watched while they run.

Shapes: F latent frames, n tokens of a latent frame, T video tokens, L audio latents.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.adapters.active import adapter_layers
from ltx2_diffusers.media.preprocess import fit_cover, normalize_pixels
from ltx2_diffusers.pipelines.recipes.two_stage import LTX2TwoStagePipeline
from tests.media.clips import tone
from tests.pipelines.tiny import PROMPT, load, seeded

LORA_LAYER = "transformer_blocks.0.attn1.to_q"
STAGE_2 = [0.909375, 0.421875]
CALL = {
    "prompt": PROMPT,
    "height": 64,
    "width": 64,
    "num_frames": 9,
    "num_inference_steps": 2,
    "max_sequence_length": 64,
    "output_type": "latent",
}
TWO_STAGES = {"two_stage": True, "stage_2_adapters": {}, "stage_2_sigmas": STAGE_2}
RATE = 24000
SOUND = tone(17 / 24, RATE)
CLIP = np.random.default_rng(0).integers(0, 256, (17, 64, 64, 3), dtype=np.uint8)
PICTURE, OTHER = (PIL.Image.fromarray(CLIP[i]) for i in (0, 5))


@cache
def staged() -> LTX2TwoStagePipeline:
    """The packaged checkpoint, whose scheduler is of the dev kind, without adapters."""
    return load("2.0", LTX2TwoStagePipeline)


@cache
def recipe(pipeline_class: type, **components: Any) -> Any:
    """A recipe on the models of `staged`."""
    pipe = pipeline_class.from_pipe(staged(), **components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def add_lora(pipe: LTX2Pipeline, folder: Path, name: str, seed: int = 0, **metadata: str) -> None:
    """Load a random LoRA under a name, through a file that carries metadata."""
    layer = pipe.transformer.get_submodule(LORA_LAYER)
    layer = getattr(layer, "base_layer", layer)
    factors = {
        f"{LORA_LAYER}.lora_A.weight": torch.randn(2, layer.in_features, generator=seeded(seed)),
        f"{LORA_LAYER}.lora_B.weight": torch.randn(layer.out_features, 2, generator=seeded(seed + 1)),
    }
    pipe.save_lora_weights(folder / name, transformer_lora_layers=factors, metadata=metadata)
    pipe.load_lora_weights(folder / name, adapter_name=name)


def strengths(pipe: LTX2Pipeline) -> list[dict[str, float]]:
    """Strength of each active adapter, layer by layer."""
    return [
        {} if layer.disable_adapters else {name: layer.scaling[name] for name in layer.active_adapters}
        for layer in adapter_layers(pipe)
    ]


@dataclass
class Watched:
    """What happened during a call.

    Args:
        output: Its result.
        predictions: Predictions that each call of the transformer made, per sample.
        video_tokens: Video tokens of each call of the transformer; `None` without video.
        adapters: Strengths of the adapters at each call of the transformer.
        steps: Latents of both streams after each step, packed.
    """

    output: Any = None
    predictions: list[int] = field(default_factory=list)
    video_tokens: list[int | None] = field(default_factory=list)
    adapters: list[dict[str, float]] = field(default_factory=list)
    steps: list[dict[str, torch.Tensor | None]] = field(default_factory=list)

    def stages(self) -> list[list[dict[str, torch.Tensor | None]]]:
        """The steps of each stage."""
        lengths = [len(levels) - 1 for levels in stage_sigmas(self.output.info)]
        ends = np.cumsum(lengths)
        assert ends[-1] == len(self.steps)
        return [self.steps[end - length : end] for length, end in zip(lengths, ends)]


def stage_sigmas(info: dict[str, Any]) -> list[list[float]]:
    """Noise levels per stage, however many there are."""
    return info["sigmas"] if isinstance(info["sigmas"][0], list) else [info["sigmas"]]


def per_stage(value: Any) -> list[Any]:
    """A field of `output.info` as a list over stages."""
    return value if isinstance(value, list) else [value]


@contextmanager
def watching(pipe: LTX2Pipeline) -> Iterator[Watched]:
    """Record every call of the pipeline's transformers."""
    seen = Watched()

    def note(_module: Any, _args: Any, inputs: dict[str, Any]) -> None:
        masks = inputs.get("perturbation_keep_masks")
        # Passes that share their text go in together, one mask each.
        seen.predictions.append(len(masks) if isinstance(masks, list) else 1)
        video = inputs["hidden_states"]
        seen.video_tokens.append(None if video is None else video.shape[1])
        seen.adapters.append(next(iter(strengths(pipe)), {}))

    with ExitStack() as hooks:
        for model in (pipe.transformer, getattr(pipe, "stage_2_transformer", None)):
            if model is not None:
                hooks.callback(model.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield seen


def watched(pipe: LTX2Pipeline, **arguments: Any) -> Watched:
    """Call a recipe and record what happens."""
    with watching(pipe) as seen:
        seen.output = pipe(
            **arguments,
            callback_on_step_end=lambda _pipe, _step, _timestep, tensors: seen.steps.append(tensors),
            callback_on_step_end_tensor_inputs=["latents", "audio_latents"],
        )
    return seen


@contextmanager
def no_computation(pipe: LTX2Pipeline) -> Iterator[None]:
    """Fail if any model of the pipeline runs."""
    ran = []
    models = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    with ExitStack() as hooks:
        for name, model in models.items():
            for module in model.modules():
                hooks.callback(module.register_forward_pre_hook(_named(ran, name)).remove)
        yield
    assert not ran, f"{ran[0]} ran"


def _named(ran: list[str], name: str) -> Callable[..., None]:
    return lambda *_: ran.append(name)


def encoded(pipe: LTX2Pipeline, frames: Any, height: int, width: int) -> torch.Tensor:
    """Normalised latents of bytes `[F, H, W, 3]`, or of an image, at a size in pixels."""
    pixels = torch.from_numpy(np.array(frames)).reshape(-1, *np.array(frames).shape[-3:])
    return pipe.encode_video(normalize_pixels(fit_cover(pixels, height, width)))


def encoded_sound(pipe: LTX2Pipeline, num_frames: int = 9, frame_rate: float = 24.0) -> torch.Tensor:
    """Normalised latents of `SOUND` as long as so many frames."""
    waveform = SOUND[None, :, : round(num_frames / frame_rate * RATE)]
    return pipe.encode_audio(waveform, RATE)[:, :, : round(num_frames / frame_rate * 25)]


def packed(latents: torch.Tensor) -> torch.Tensor:
    """Tokens `[1, T, C]` of a latent `[1, C, F, h, w]`, or `[1, L, C * M]` of an audio latent `[1, C, L, M]`."""
    if latents.ndim == 5:
        return latents.flatten(2).transpose(1, 2)
    return latents.transpose(1, 2).flatten(2)


def assert_tokens(tokens: torch.Tensor, start: int, expected: Sequence[torch.Tensor]) -> None:
    """The tokens from `start` on are bit for bit those of the given latents, one after the other."""
    wanted = torch.cat([packed(latent) for latent in expected], dim=1)
    assert torch.equal(tokens[:, start : start + wanted.shape[1]], wanted)
