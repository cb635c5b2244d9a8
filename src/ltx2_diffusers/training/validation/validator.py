"""The samples of a training run: prompts encoded once, clips made by the pipelines on the networks that are trained."""

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch.nn import functional

from ...pipelines.recipes.text_to_video import LTX2Pipeline
from ..config import TrainingConfig
from ..trained.sharding import is_sharded
from .files import ValidationSample, log_samples, write_sample
from .gathering import gathered
from .requests import SampleCall, same_number_of_forwards, sample_calls
from .undisturbed import undisturbed

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..trained.models import TrainedModels

_DECODERS = ("vae", "audio_vae", "vocoder")


class _Text(NamedTuple):
    """Language-model states `[1, n, W]` of the tokens of a text, on the CPU, without padding."""

    states: torch.Tensor

    def padded(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """States `[1, length, W]` with zeros in front, and their mask `[1, length]`."""
        missing = length - self.states.shape[1]
        mask = functional.pad(torch.ones(1, self.states.shape[1], dtype=torch.long), (missing, 0))
        return functional.pad(self.states, (0, 0, missing, 0)), mask


class Validator:
    """Makes the validation samples of a training run.

    All prompts and the negative prompt are encoded here, once; the text encoder is not needed afterwards and is taken out
    of the pipeline. Everything that can be wrong with a sample is found here, before training.

    Args:
        config: The settings.
        models: The networks. `models.pipeline` has to have a text encoder and tokenizer if there are samples to make.
        device: Where prompts are encoded, default where the text encoder lies.

    Raises:
        ValueError: If a sample cannot be made.
    """

    def __init__(self, config: TrainingConfig, models: "TrainedModels", device: torch.device | None = None) -> None:
        self.config, self.models = config, models
        section, pipeline = config.validation, models.pipeline
        wanted = section.interval is not None
        self.calls = sample_calls(section, pipeline, models.generation) if wanted else []
        self._texts: dict[str, _Text] = {}
        if self.calls:
            pipeline.require("text_encoder", "tokenizer", "connectors", "transformer", "scheduler")
            if device is not None and pipeline.text_encoder.device != device:
                torch.nn.Module.to(pipeline.text_encoder, device)
            texts = [section.negative_prompt, *(call.prompt for call in self.calls)]
            self._texts = {text: _encoded(pipeline, text, self._length) for text in dict.fromkeys(texts)}
        pipeline.register_modules(text_encoder=None)
        gc.collect()

    def sample(self, step: int, folder: Path, accelerator: "Accelerator") -> list[ValidationSample]:
        """Make all samples, and show them in the trackers of the run.

        Processes share them; every process returns all.

        Args:
            step: Training step, for the names of the files, `step_<step>_<number>`.
            folder: Folder for the files, made if needed.
            accelerator: Knows the device, the other processes and the trackers.
        """
        made: list[tuple[int, ValidationSample]] = []
        modules = [part for part in self.models.pipeline.components.values() if isinstance(part, torch.nn.Module)]
        # Weights that FSDP gathers are in half precision then, those beside them in their own.
        types = accelerator.autocast() if is_sharded(accelerator) else nullcontext()
        with undisturbed(modules), gathered(accelerator._models), self._placed(accelerator.device), types:
            for index, is_kept in _share(self.calls, accelerator):
                stem = folder / f"step_{step:06d}_{index + 1}"
                sample = self._make(self.calls[index], stem if is_kept else None, accelerator)
                made += [] if sample is None else [(index, sample)]
        shared = gather_object(made) if accelerator.num_processes > 1 else made
        samples = [sample for _, sample in sorted(shared, key=lambda pair: pair[0])]
        if accelerator.is_main_process:
            log_samples(accelerator.trackers, samples, step, self.config.wandb.log_validation_videos)
        return samples

    def _make(self, call: SampleCall, stem: Path | None, accelerator: "Accelerator") -> ValidationSample | None:
        """Run a call, and write what it made if a name is given."""
        pipeline = call.pipeline.from_pipe(self.models.pipeline, text_encoder=None)
        shows_progress = self.config.tracking.progress_bar and accelerator.is_local_main_process
        pipeline.set_progress_bar_config(disable=not shows_progress, leave=False, desc="validation sample")
        positive, negative = (self._texts[text].padded(self._length) for text in (call.prompt, self._negative))
        output: Any = pipeline(  # type: ignore[operator]  # every pipeline is called, with arguments of its own
            prompt_embeds=positive[0],
            prompt_attention_mask=positive[1],
            negative_prompt_embeds=negative[0],
            negative_prompt_attention_mask=negative[1],
            generator=torch.Generator().manual_seed(call.seed),
            output_type="uint8",
            **call.arguments,
        )
        if stem is None:
            return None
        path = write_sample(output, stem, call.reference, call.plan.num_frames)
        return ValidationSample(path, call.prompt, call.seed)

    @property
    def _length(self) -> int:
        """Text positions that the streams attend to, as in training."""
        return self.config.data.max_sequence_length

    @property
    def _negative(self) -> str:
        return self.config.validation.negative_prompt

    @contextmanager
    def _placed(self, device: torch.device) -> Iterator[None]:
        """Bring the networks beside the transformer to a device for a block, and decode in tiles there."""
        pipeline = self.models.pipeline
        with ExitStack() as back:
            parts = [part for name in _DECODERS if (part := getattr(pipeline, name, None)) is not None]
            # Of the connectors, the projection lies on the host in training.
            for part in [*parts, *([] if pipeline.connectors is None else pipeline.connectors.children())]:
                lies_on = next(part.parameters()).device
                if lies_on != device:
                    back.callback(torch.nn.Module.to, part, lies_on)
                    torch.nn.Module.to(part, device)
            vae = pipeline.vae
            if vae is not None and not (vae.use_tiling or vae.use_streaming):
                vae.use_tiling = True
                back.callback(setattr, vae, "use_tiling", False)
            yield


@torch.no_grad()
def _encoded(pipeline: LTX2Pipeline, text: str, length: int) -> _Text:
    device = pipeline.text_encoder.device
    states, mask, *_ = pipeline.encode_prompt(text, None, False, device=device, max_sequence_length=length)
    # A copy, or the padding would stay in memory.
    return _Text(states[:, -int(mask.sum()) :].to("cpu", copy=True).contiguous())


def _share(calls: list[SampleCall], accelerator: "Accelerator") -> Iterator[tuple[int, bool]]:
    """Numbers of the samples that this process makes, and whether it keeps them.

    Processes that share the weights of the transformer have to run it together and equally often.
    """
    rank, count = accelerator.process_index, accelerator.num_processes
    together = is_sharded(accelerator)
    if together and not same_number_of_forwards(calls):
        yield from ((index, index % count == rank) for index in range(len(calls)))
        return
    for start in range(0, len(calls), count):
        index = start + rank
        if index < len(calls):
            yield index, True
        elif together:
            yield len(calls) - 1, False
