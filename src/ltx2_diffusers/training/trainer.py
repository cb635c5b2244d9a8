"""The training loop.

Shapes: B samples of a batch in one process.
"""

import hashlib
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    DynamoBackend,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    disable_fsdp_ram_efficient_loading,
    gather_object,
    send_to_device,
    set_seed,
)
from diffusers.training_utils import EMAModel
from torch.optim.lr_scheduler import LambdaLR

from ..atomic import complete_file
from ..conditioning import Streams
from ..data.dataset import PrecomputedDataset, check_not_smaller
from ..data.samples import AUDIO_TEXT, TEXT_MASK, VIDEO_TEXT, Sample, padded_rows
from ..extras import library
from ..publishing import CARD_NAME, check_repository_name, put_card
from .batches import BatchOrder, check_widths, kinds_of, make_loader, names_of
from .checkpoints import (
    CONFIG_FILE,
    Checkpoints,
    Progress,
    check_unfinished,
    latest_checkpoint,
    read_progress,
    trained_tensors,
)
from .config import TrainingConfig
from .config_files import save_config
from .model_card import local_sample, run_card
from .objective.losses import StepLosses, step_losses
from .objective.noise_levels import NoiseLevels, RowDraws, noise_levels
from .objective.strategies import Strategy, strategy_of
from .optimisers import make_optimizer, make_schedule
from .reports import LossMeter, Reporter, logger
from .trained.models import TrainedModels, load_models, without_projections
from .trained.network import TrainingNetwork
from .trained.sharding import check_sharding, is_sharded, set_types

Callback = Callable[[int, int, list[Path]], None]
"""Called after every step with its number, the number of all, and the samples that validation has made."""

# Steps in a row of which nothing could be learnt, after which a run ends.
_MOST_SKIPPED = 10


@dataclass
class Run:
    """Everything that a run is made of, ready for its first step.

    Args:
        accelerator: What runs it.
        models: Networks and the pipeline that they belong to.
        network: The trained module, prepared.
        optimizer: The optimiser, prepared.
        schedule: Its schedule, not prepared.
        average: Moving average of the trained weights, if there is one.
        strategy: What is trained.
        levels: Distribution of the noise levels.
        dataset: The samples.
        empty_prompt: Features of the empty caption, where captions are dropped.
        order: Which samples each batch has.
        checkpoints: Writes what is learnt.
        progress: How far it is.
    """

    accelerator: Accelerator
    models: TrainedModels
    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    average: EMAModel | None
    strategy: Strategy
    levels: NoiseLevels
    dataset: Any
    empty_prompt: Sample | None
    order: BatchOrder
    checkpoints: Checkpoints
    progress: Progress


class LTX2Trainer:
    """Trains an adapter or the whole transformer on precomputed samples.

    Args:
        config: All settings; `ltx2_diffusers.training.config_files.load_config` reads them from a YAML file.
        callback: Called after every step with its number, the number of all, and the paths of the samples that
            validation has made after it.
    """

    def __init__(self, config: TrainingConfig, callback: Callback | None = None) -> None:
        self.config = config
        self.callback = callback

    def train(self) -> tuple[Path, dict[str, float | int]]:
        """Train, or go on with a run.

        Returns:
            The folder of the last checkpoint, and what the run took: `total_time_seconds`, `steps_per_second`,
            `samples_per_second`, `peak_gpu_memory_gb`, `global_batch_size`, `num_processes`.

        Raises:
            ValueError: Before anything is loaded, if settings, data or checkpoint do not fit each other.
            ImportError: Before that, if a tracker is asked for whose package is not installed.
            RuntimeError: If losses are not finite for many steps in a row; the last checkpoint stays.
        """
        try:
            accelerator = self._accelerator()
            run = self._prepared(accelerator)
            result = self._train(run)
            accelerator.end_training()
        finally:
            if PartialState._shared_state and PartialState().num_processes == 1:
                # The settings of this run must not be those of the next one in this process.
                AcceleratorState._reset_state(reset_partial_state=True)
        return result

    def _accelerator(self) -> Accelerator:
        config = self.config
        trackers = [
            name
            for name, wanted in (("tensorboard", config.tracking.tensorboard), ("wandb", config.wandb.enabled))
            if wanted
        ]
        for name in trackers:
            # Accelerate leaves out what is not installed, without a word.
            library(name, f"`{'wandb.enabled' if name == 'wandb' else 'tracking.tensorboard'}: true`")
        folder = Path(config.output_dir)
        accumulation = config.optimization.gradient_accumulation_steps
        return Accelerator(
            mixed_precision=config.acceleration.mixed_precision_mode or "no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(accumulation, sync_with_dataloader=False),
            log_with=trackers or None,
            project_config=ProjectConfiguration(os.fspath(folder), logging_dir=os.fspath(folder / "logs")),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )

    def _prepared(self, accelerator: Accelerator) -> Run:
        """Check the data, load the models and prepare them."""
        config = self.config
        strategy = strategy_of(config.training_strategy, bool(config.flow_matching.shared_noise_level))
        dataset = self._dataset(strategy)
        batch_size = config.optimization.batch_size * accelerator.num_processes
        check_not_smaller(dataset, batch_size)
        resumed = self._resumed()
        empty_prompt = dataset.empty_prompt() if config.training_strategy.caption_dropout_p else None
        self._check(accelerator)
        self._begin_folder(accelerator)

        set_seed(config.seed)
        models = self._models(accelerator, strategy)
        if strategy.optional_sources() and not models.learns_from(Streams(True, False)):
            # Of clips without sound, an adapter of the sound alone could learn nothing.
            dataset = self._dataset(strategy, complete=True)
            check_not_smaller(dataset, batch_size)
        check_widths(dataset, models)
        kinds = kinds_of(dataset)
        order = BatchOrder(kinds, batch_size, config.seed)
        fingerprint = self._fingerprint(dataset, kinds, batch_size, models)
        levels = noise_levels(
            config.flow_matching.timestep_sampling_mode,
            config.flow_matching.timestep_sampling_params,
            models.generation,
        )
        parameters = models.parameters()
        optimizer = make_optimizer(config.optimization, parameters)
        schedule = make_schedule(optimizer, config.optimization)
        decay = config.optimization.ema_decay
        average = None if decay is None else EMAModel(parameters, decay=decay)
        network = self._network(models)
        with without_projections(models.connectors):
            # The networks are where they belong, some of them in host memory.
            prepared, optimizer = accelerator.prepare(network, optimizer, device_placement=[False, True])
        accelerator.register_for_checkpointing(schedule, *([] if average is None else [average]))
        checkpoints = Checkpoints(config, accelerator, prepared, optimizer, models)
        # Dropout differs between processes; noise and order do not come from these generators.
        set_seed(config.seed, device_specific=True)
        progress = Progress() if resumed is None else checkpoints.resume(resumed, fingerprint)
        progress.fingerprint = fingerprint
        if average is not None:
            # What is read from a checkpoint lies on the CPU.
            average.to(accelerator.device)
        return Run(
            accelerator,
            models,
            prepared,
            optimizer,
            schedule,
            average,
            strategy,
            levels,
            dataset,
            empty_prompt,
            order,
            checkpoints,
            progress,
        )

    def _models(self, accelerator: Accelerator, strategy: Strategy) -> TrainedModels:
        """The models, compiled if the launcher says so."""
        config, sharded = self.config, is_sharded(accelerator)
        if sharded:
            set_types(accelerator)
            # Transformers would leave the text encoder without weights in all processes but one.
            disable_fsdp_ram_efficient_loading()
        # FSDP brings weights to the device in pieces, which the whole might not fit.
        device = torch.device("cpu") if sharded else accelerator.device
        models = load_models(config, device, _makes_samples(config), strategy.runs)
        compiler = accelerator.state.dynamo_plugin
        if compiler.backend != DynamoBackend.NO:
            # Block by block and in place: parameters keep their names, and FSDP its hooks.
            models.transformer.compile_repeated_blocks(**compiler.to_kwargs())
            compiler.backend = DynamoBackend.NO
        return models

    def _network(self, models: TrainedModels) -> TrainingNetwork:
        """What every process runs."""
        trains_connectors, positions = "connectors" in models.trained, self.config.data.max_sequence_length
        network = TrainingNetwork(models.transformer, models.connectors, trains_connectors, positions).train()
        if models.streaming is not None:
            models.streaming.leave_out_of_ddp(network)
        return network

    def _dataset(self, strategy: Strategy, complete: bool = False) -> PrecomputedDataset:
        """The samples, or those alone that have all that the strategy can read."""
        root = self.config.data.preprocessed_data_root
        return PrecomputedDataset(root, strategy.data_sources(), () if complete else strategy.optional_sources())

    def _resumed(self) -> Path | None:
        """The checkpoint that the run goes on from, if it does."""
        section, folder = self.config.checkpoints, Path(self.config.output_dir) / "checkpoints"
        if section.resume is None or section.no_resume:
            if not section.no_resume and (earlier := latest_checkpoint(folder)) is not None:
                warnings.warn(
                    f"{str(folder)!r} holds {earlier.name} of an earlier run, and this run begins anew; checkpoints.resume "
                    "goes on from it, and another output_dir keeps them apart",
                    stacklevel=2,
                )
            return None
        found = latest_checkpoint(folder) if section.resume == "latest" else Path(section.resume).expanduser()
        if found is None:
            warnings.warn(
                f"there is no checkpoint in {str(folder)!r} to go on from; the run begins anew", stacklevel=2
            )
        else:
            check_unfinished(read_progress(found), self.config.optimization.steps, found)
        return found

    def _begin_folder(self, accelerator: Accelerator) -> None:
        """Write the settings; a folder that cannot be written to is found before anything is loaded."""
        if accelerator.is_main_process:
            save_config(self.config, Path(self.config.output_dir) / CONFIG_FILE)

    def _check(self, accelerator: Accelerator) -> None:
        """What cannot work is refused before anything is loaded."""
        hub = self.config.hub
        if hub.push_to_hub and hub.hub_model_id is not None:
            check_repository_name(hub.hub_model_id)
        check_sharding(self.config, accelerator)
        if self.config.acceleration.block_streaming and accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
            raise ValueError(
                "acceleration.block_streaming and a launch file with a compiler exclude each other; use the file without"
            )

    def _fingerprint(
        self, dataset: PrecomputedDataset, kinds: list[str], batch_size: int, models: TrainedModels
    ) -> dict[str, Any]:
        """Settings without which the numbers of a run are others."""
        config = self.config
        settings = config.model_dump(
            mode="json", include={"lora", "training_strategy", "flow_matching", "optimization", "seed"}
        )
        for name in ("steps", "batch_size", "enable_gradient_checkpointing"):
            del settings["optimization"][name]
        return {
            **_flat(settings),
            "training_mode": config.model.training_mode,
            "mixed_precision_mode": config.acceleration.mixed_precision_mode or "no",
            "quantization": config.acceleration.quantization,
            "max_sequence_length": config.data.max_sequence_length,
            "base_model": models.base_identity(),
            "trained_parameters": sum(parameter.numel() for parameter in models.parameters()),
            "samples_per_batch": batch_size,
            "samples": hashlib.sha256("\n".join([*dataset.names, *kinds]).encode()).hexdigest()[:16],
        }

    def _train(self, run: Run) -> tuple[Path, dict[str, float | int]]:
        """All steps, with what is done between them."""
        config, accelerator, progress = self.config, run.accelerator, run.progress
        section, total = config.optimization, config.optimization.steps
        self._begin_tracking(accelerator)
        validation = _Validation(config, run)
        if progress.step == 0 and not config.validation.skip_initial_validation:
            validation.sample(0)
        batch_size = section.batch_size * accelerator.num_processes
        reporter = Reporter(
            accelerator, config.tracking, progress.step, total, batch_size, section.gradient_accumulation_steps
        )
        first, batches, checkpoint, skipped_in_a_row = progress.step, self._batches(run), None, 0
        while progress.step < total:
            progress.step += 1
            losses, grad_norm, rate, names = self._step(run, batches, reporter)
            learnt = grad_norm is not None
            skipped_in_a_row = 0 if learnt else skipped_in_a_row + 1
            if not learnt:
                self._tell_skipped(run, names, skipped_in_a_row, checkpoint)
            reporter.step(progress.step, losses, rate, grad_norm)
            with reporter.pause():
                samples = validation.sample(progress.step)
                if progress.step == total or _due(progress.step, config.checkpoints.interval):
                    checkpoint = self._save(run)
            if self.callback is not None:
                self.callback(progress.step, total, samples)
        assert checkpoint is not None
        stats = reporter.close(progress.step - first)
        self._finish(run, checkpoint, validation)
        return checkpoint, stats

    def _begin_tracking(self, accelerator: Accelerator) -> None:
        config = self.config
        wandb = {"name": Path(config.output_dir).name, "entity": config.wandb.entity, "tags": config.wandb.tags}
        accelerator.init_trackers(
            config.wandb.project if config.wandb.enabled else "",
            config={key: str(value) for key, value in _flat(config.model_dump(mode="json")).items()},
            init_kwargs={"wandb": wandb},
        )

    def _batches(self, run: Run) -> Iterator[Mapping[str, Any]]:
        """Batches of this process from where the run is."""
        size, rank = self.config.optimization.batch_size, run.accelerator.process_index
        loader = make_loader(
            run.dataset,
            run.order,
            run.progress.step * self.config.optimization.gradient_accumulation_steps,
            (rank * size, (rank + 1) * size),
            self.config.data.num_dataloader_workers,
            run.accelerator.device.type == "cuda",
        )
        return iter(loader)

    def _step(
        self, run: Run, batches: Iterator[Mapping[str, Any]], reporter: Reporter
    ) -> tuple[dict[str, float], float | None, float, list[str]]:
        """One step of the optimiser.

        Returns:
            Mean losses, the norm of the gradients before clipping or `None` if they were not finite, the learning rate, and
            the names of the samples of this process.
        """
        accelerator, accumulation = run.accelerator, self.config.optimization.gradient_accumulation_steps
        meter, names = LossMeter(accelerator.device), []
        for part in range(accumulation):
            with reporter.waiting():
                batch = next(batches)
            names += names_of(run.dataset, batch["idx"].tolist())
            number = (run.progress.step - 1) * accumulation + part
            with accelerator.accumulate(run.network):
                losses = self._losses(run, send_to_device(batch, accelerator.device, non_blocking=True), number)
                accelerator.backward(losses.total)
                meter.add(losses)
        means = meter.means(accelerator)
        rate = float(run.schedule.get_last_lr()[0])
        grad_norm = self._update(run, means["loss"])
        with warnings.catch_warnings():
            # It goes on over a step that is skipped, even if that is the first one.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            run.schedule.step()
        return means, grad_norm, rate, names

    def _losses(self, run: Run, batch: Mapping[str, Any], number: int) -> StepLosses:
        """One forward pass, the `number`th of the run."""
        config, accelerator = self.config, run.accelerator
        size = config.optimization.batch_size
        rows = range(accelerator.process_index * size, (accelerator.process_index + 1) * size)
        draws = RowDraws(config.seed, number, rows, accelerator.device)
        text = batch["conditions"]
        if run.empty_prompt is not None:
            chosen = draws.uniform((size,)) < config.training_strategy.caption_dropout_p
            text = with_empty_prompts(text, run.empty_prompt, chosen)
        streams = run.strategy.prepare(batch, run.levels, draws, run.models.pipeline.sizes)
        # FSDP does not bring it itself.
        with accelerator.autocast():
            predicted = Streams(*run.network(text, streams))
        weights = config.flow_matching
        return step_losses(predicted, streams, Streams(weights.video_loss_weight, weights.audio_loss_weight))

    def _update(self, run: Run, loss: float) -> float | None:
        """Step the optimiser, unless loss or gradients are not finite; returns their norm before clipping, or `None`."""
        accelerator = run.accelerator
        limit = self.config.optimization.max_grad_norm
        parameters = [p for p in run.network.parameters() if p.requires_grad]
        norm = float(accelerator.clip_grad_norm_(parameters, limit if limit > 0 else float("inf")))
        # With fp16 the scaler meets infinite gradients by design, and has to see them.
        is_scaled = accelerator.scaler is not None
        learns = math.isfinite(loss) and (is_scaled or math.isfinite(norm))
        if learns or is_scaled:
            run.optimizer.step()
            if run.average is not None and not accelerator.optimizer_step_was_skipped:
                run.average.step(run.models.parameters())
        run.optimizer.zero_grad(set_to_none=True)
        return norm if learns else None

    def _tell_skipped(self, run: Run, names: list[str], in_a_row: int, checkpoint: Path | None) -> None:
        """Name the samples of a step of which nothing was learnt; end the run if there are too many such steps."""
        run.progress.skipped += 1
        everyones = gather_object(names)
        message = (
            f"step {run.progress.step} is skipped, loss or gradients are not finite (skipped so far: "
            f"{run.progress.skipped}); its samples: {', '.join(everyones)}"
        )
        logger.warning(message)
        if in_a_row >= _MOST_SKIPPED:
            kept = f"; the last checkpoint is {str(checkpoint)!r}" if checkpoint is not None else ""
            raise RuntimeError(
                f"losses or gradients were not finite for {in_a_row} steps in a row, the last one with the samples "
                f"{', '.join(everyones)}; check the data with `ltx2 data check`, or lower optimization.learning_rate{kept}"
            )

    def _save(self, run: Run) -> Path:
        """Write a checkpoint; what it publishes is the moving average, if there is one."""
        with averaged(run):
            published = trained_tensors(run.accelerator, run.network)
        return run.checkpoints.save(run.progress, published, run.strategy.metadata())

    def _finish(self, run: Run, checkpoint: Path, validation: "_Validation") -> None:
        """Put the result where users look for it, and publish it if asked."""
        if not run.accelerator.is_main_process:
            return
        folder = Path(self.config.output_dir)
        for file in checkpoint.iterdir():
            if file.is_file() and file.name != CARD_NAME:
                with complete_file(folder / file.name) as temporary:
                    shutil.copyfile(file, temporary)
        if self.config.model.training_mode == "lora":
            # The weights of a whole model stay in the checkpoint, with their card.
            samples = [local_sample(sample.path, sample.prompt, folder) for sample in validation.last]
            put_card(folder, folder, lambda name: run_card(self.config, name, checkpoint, samples))
        hub = self.config.hub
        if hub.push_to_hub and hub.hub_model_id is not None:
            from .hub import push_training

            push_training(self.config, checkpoint, validation.last, hub.hub_model_id)


class _Validation:
    """Samples made between steps, if any are wanted."""

    def __init__(self, config: TrainingConfig, run: Run) -> None:
        self._config, self._run = config, run
        self._folder = Path(config.output_dir) / "samples"
        self._validator = None
        self.last: list[Any] = []
        if _makes_samples(config):
            from .validation import Validator

            self._validator = Validator(config, run.models)

    def sample(self, step: int) -> list[Path]:
        """Samples after a step, if they are due; paths of all of them."""
        if self._validator is None or not _due(step, self._config.validation.interval):
            return []
        from .validation import offloaded_states

        offloads = self._config.acceleration.offload_optimizer_during_validation
        with offloaded_states(self._run.optimizer, offloads), averaged(self._run):
            self.last = self._validator.sample(step, self._folder, self._run.accelerator)
        return [sample.path for sample in self.last]


@contextmanager
def averaged(run: Run) -> Iterator[None]:
    """Put the moving average, if there is one, in the place of the trained weights for a while."""
    if run.average is None:
        yield
        return
    parameters = run.models.parameters()
    run.average.store(parameters)
    run.average.copy_to(parameters)
    try:
        yield
    finally:
        run.average.restore(parameters)


def with_empty_prompts(text: Mapping[str, Any], empty: Mapping[str, Any], chosen: torch.Tensor) -> dict[str, Any]:
    """The captions of a batch, those that are chosen `[B]` replaced by the features of the empty one."""
    mask, result = text[TEXT_MASK], dict(text)
    for name in (VIDEO_TEXT, AUDIO_TEXT):
        if name in text:
            rows = [
                empty[name].to(row) if drop else row[own] for row, own, drop in zip(text[name], mask, chosen.tolist())
            ]
            result[name], new_mask = padded_rows(rows)
            result[TEXT_MASK] = new_mask.to(mask.device)
    return result


def _makes_samples(config: TrainingConfig) -> bool:
    return config.validation.interval is not None and bool(config.validation.all_samples())


def _due(step: int, interval: int | None) -> bool:
    return interval is not None and step % interval == 0


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
