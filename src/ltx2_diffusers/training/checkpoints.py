"""Checkpoints of a training run: what they hold, which are kept, and how a run goes on from one.

`<output_dir>/checkpoints/checkpoint-<step>/` holds the trained weights as pipelines load them, the configuration, and
`training_state/` with everything that a run needs to go on exactly. A checkpoint appears whole or not at all.
"""

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, load_fsdp_optimizer, save_fsdp_optimizer
from accelerate.utils import load as load_pickled
from safetensors.torch import save_file

from ..adapters.file import LORA_WEIGHT_NAME
from ..atomic import remove_leftovers, replaced_folder, write_json
from ..checkpoints.safetensors_io import Entry, SafetensorsFile, write_sharded
from ..pipelines.recipes.text_to_video import LTX2Pipeline
from ..publishing import put_card
from .config_files import save_config
from .model_card import run_card
from .trained.models import TrainedModels, lora_arguments
from .trained.sharding import fill, is_sharded, whole

STATE = "training_state"
PROGRESS, TRAINED = "progress.json", "trained.safetensors"
CONFIG_FILE = "training_config.yaml"
_REMOVED = ".removed"
_STEP_FOLDER = re.compile(r"checkpoint-(\d+)")
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass
class Progress:
    """How far a run is.

    Args:
        step: Steps of the optimiser that are done.
        skipped: Steps whose loss or gradients were not finite, of which nothing was learnt.
        written: Steps of the checkpoints of this run that were kept, oldest first.
        fingerprint: Settings that the numbers of a run depend on.
    """

    step: int = 0
    skipped: int = 0
    written: list[int] = field(default_factory=list)
    fingerprint: dict[str, Any] = field(default_factory=dict)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a folder that a run can go on from; `None` if there is none."""
    found = [path for path in folder.glob("checkpoint-*") if (path / STATE / PROGRESS).is_file()]
    return max(found, key=_step_of, default=None)


def _step_of(folder: Path) -> int:
    match = _STEP_FOLDER.fullmatch(folder.name)
    return -1 if match is None else int(match[1])


def read_progress(checkpoint: Path) -> Progress:
    """How far the run was when a checkpoint was written.

    Raises:
        ValueError: If the folder is no checkpoint that a run can go on from.
    """
    file = checkpoint / STATE / PROGRESS
    if not file.is_file():
        raise ValueError(
            f"{str(checkpoint)!r} has no {STATE}/{PROGRESS}, so no run can go on from it; give a folder checkpoint-<step>, or "
            "start a new run from its weights with model.load_checkpoint"
        )
    try:
        return Progress(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}); go on from another checkpoint") from None


def check_unfinished(progress: Progress, steps: int, checkpoint: Path) -> None:
    """`ValueError` if a run is at its end already."""
    if progress.step >= steps:
        raise ValueError(
            f"{str(checkpoint)!r} is at step {progress.step} of {steps}; raise optimization.steps to go on"
        )


def check_fingerprint(found: Mapping[str, Any], now: Mapping[str, Any], checkpoint: Path) -> None:
    """`ValueError` if a run with other settings than now would go on from a checkpoint."""
    other = [name for name in now if found.get(name) != now[name]]
    if other:
        changes = ", ".join(f"{name} was {found.get(name)!r} and is {now[name]!r}" for name in other)
        raise ValueError(
            f"the run cannot go on exactly from {str(checkpoint)!r}: {changes}; restore the settings, or start a new run from "
            "its weights with model.load_checkpoint"
        )


class Checkpoints:
    """Writes the checkpoints of a run and goes on from them.

    Args:
        config: Configuration of the run.
        accelerator: What runs it; the optimiser is prepared by it, and schedule and moving average are registered.
        network: The trained module, prepared.
        optimizer: The optimiser, prepared.
        models: The networks.
    """

    def __init__(
        self,
        config: Any,
        accelerator: Accelerator,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        models: TrainedModels,
    ) -> None:
        self.section, self.is_full = config.checkpoints, config.model.training_mode == "full"
        self.config, self.accelerator, self.network, self.models = config, accelerator, network, models
        self.optimizer = optimizer
        self.folder = Path(config.output_dir) / "checkpoints"

    def save(self, progress: Progress, published: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
        """Write a checkpoint and remove those that are too many; all processes take part.

        Args:
            progress: How far the run is; the checkpoint is added to those written.
            published: Trained weights by their names in the network, as users are to load them; read in the main process.
            metadata: What the file of weights says about how to use them.
        """
        target = self.folder / f"checkpoint-{progress.step}"
        if progress.step not in progress.written:
            progress.written.append(progress.step)
        if not self.accelerator.is_main_process:
            self._save_state(Path(self._shared(None)), progress, published)
            self.accelerator.wait_for_everyone()
            self._surplus(progress)
            return target
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        for removed in self.folder.glob(f".checkpoint-*{_REMOVED}"):
            # The removal was interrupted.
            shutil.rmtree(removed)
        with replaced_folder(target) as temporary:
            self._save_state(Path(self._shared(temporary)), progress, published)
            self._write_weights(Path(temporary), progress.step, published, metadata)
            save_config(self.config, Path(temporary) / CONFIG_FILE)
            put_card(temporary, target, lambda name: run_card(self.config, name, Path(temporary)))
        self.accelerator.wait_for_everyone()
        # Until they are gone, they stand in the file of the newest, so that a run goes on removing them after a kill.
        for step in self._surplus(progress):
            _remove_checkpoint(self.folder / f"checkpoint-{step}")
        return target

    def _shared(self, path: str | None) -> str:
        """A path of the main process, in all processes."""
        paths = [path]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(paths)
        assert paths[0] is not None
        return paths[0]

    def _surplus(self, progress: Progress) -> list[int]:
        """Steps of this run's checkpoints beyond those that are kept; never the newest."""
        kept = self.section.keep_last_n
        if kept < 1:
            return []
        surplus, progress.written = progress.written[:-kept], progress.written[-kept:]
        return surplus

    def _save_state(self, folder: Path, progress: Progress, published: Mapping[str, torch.Tensor]) -> None:
        """What a run needs to go on, from all processes."""
        if self.section.save_training_state == "off":
            return
        state = folder / STATE
        averages = self.config.optimization.ema_decay is not None
        trained = trained_tensors(self.accelerator, self.network) if averages else published
        if self.section.save_training_state == "full":
            with self._without_networks():
                self.accelerator.save_state(str(state))
            if is_sharded(self.accelerator):
                save_fsdp_optimizer(*self._sharded, str(state))
        if self.accelerator.is_main_process:
            state.mkdir(parents=True, exist_ok=True)
            # In full precision, and without the frozen base, which a run need not remember.
            save_file(dict(trained), state / TRAINED)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            write_json(state / PROGRESS, asdict(progress))

    @contextmanager
    def _without_networks(self) -> Iterator[None]:
        """Let Accelerate save or load what is neither a network nor, if they are cut to pieces, their optimiser."""
        accelerator = self.accelerator
        networks, optimizers = accelerator._models, accelerator._optimizers
        accelerator._models = []
        if is_sharded(accelerator):
            accelerator._optimizers = []
        try:
            yield
        finally:
            accelerator._models, accelerator._optimizers = networks, optimizers

    @property
    def _sharded(self) -> tuple[Any, Accelerator, torch.optim.Optimizer, torch.nn.Module]:
        """What Accelerate asks for to save or load states of an optimiser that are cut to pieces."""
        return self.accelerator.state.fsdp_plugin, self.accelerator, self.optimizer, self.network

    def _write_weights(
        self, folder: Path, step: int, published: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
    ) -> None:
        network, dtype = self.accelerator.unwrap_model(self.network), _DTYPES[self.section.precision]
        parts = {name: own_tensors(network, model, published) for name, model in self.models.trained.items()}
        if self.is_full:
            for name, model in self.models.trained.items():
                # What lies in the model is not averaged, and may be cut to pieces.
                (folder / name).mkdir()
                model.save_config(folder / name)
                write_sharded(folder / name, {key: Entry.of(t).to(dtype) for key, t in parts[name].items()})
            return
        parts = {name: {key: tensor.to(dtype) for key, tensor in part.items()} for name, part in parts.items()}
        layers = lora_arguments(self.models, parts)
        LTX2Pipeline.save_lora_weights(folder, **layers, metadata=metadata, weight_name=LORA_WEIGHT_NAME)
        if self.section.export_original:
            weight_name = f"lora_weights_step_{step:05d}.safetensors"
            LTX2Pipeline.save_lora_weights(
                folder, **layers, metadata=metadata, weight_name=weight_name, format="original"
            )

    def resume(self, checkpoint: Path, fingerprint: Mapping[str, Any]) -> Progress:
        """Go on from a checkpoint: weights, optimiser, schedule, moving average and random numbers are as they were.

        Raises:
            ValueError: If the run had other settings, or is at its end already.
        """
        progress = read_progress(checkpoint)
        check_fingerprint(progress.fingerprint, fingerprint, checkpoint)
        check_unfinished(progress, self.config.optimization.steps, checkpoint)
        if checkpoint.resolve().parent != self.folder.resolve():
            # What another folder holds is not this run's to remove.
            progress.written = []
        state = checkpoint / STATE
        load_trained(self.accelerator.unwrap_model(self.network), state / TRAINED)
        if not any(state.glob("optimizer*")):
            warnings.warn(
                f"{str(checkpoint)!r} holds no states of the optimiser, which begins anew; the run goes on, but not exactly",
                stacklevel=2,
            )
            return progress
        if is_sharded(self.accelerator):
            _checked(state, lambda: load_fsdp_optimizer(*self._sharded, str(state)))
        # Random numbers last.
        with self._without_networks():
            self._load_state(state)
        return progress

    def _load_state(self, state: Path) -> None:
        random = state / f"random_states_{self.accelerator.process_index}.pkl"
        if not random.is_file() and self.accelerator.num_processes > 1:
            warnings.warn(
                f"{str(state)!r} was written by fewer processes; dropout goes on with other random numbers",
                stacklevel=3,
            )
        else:
            # Accelerate goes on without random states that it cannot read.
            _checked(random, lambda: load_pickled(random, weights_only=False))
        _checked(state, lambda: self.accelerator.load_state(str(state)))


def _checked(place: Path, read: Callable[[], Any]) -> None:
    """Read something; `ValueError` naming the place if that fails."""
    try:
        read()
    except Exception as error:
        if isinstance(error, ValueError) and str(place) in str(error):
            raise
        # Damaged pickles raise anything.
        raise ValueError(f"{str(place)!r} cannot be read ({error}); go on from another checkpoint") from None


def trained_tensors(accelerator: Accelerator, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all trained weights on the CPU, by their names in the network.

    Where they are cut to pieces, all processes have to ask, and only the main one gets them; no more than one of them is
    whole on a device at a time.
    """
    keeps = accelerator.is_main_process or not is_sharded(accelerator)
    found = {}
    for name, parameter in accelerator.unwrap_model(network).named_parameters():
        if parameter.requires_grad:
            tensor = whole(parameter)
            if keeps:
                found[name] = tensor.to("cpu", copy=True).contiguous()
    return found


def load_trained(network: torch.nn.Module, file: Path) -> None:
    """Put saved weights in the place of the trained ones, all of them or none.

    Raises:
        ValueError: If the file is damaged, or holds others than those that are trained.
    """
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    try:
        saved = SafetensorsFile(file).entries
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}; go on from another checkpoint") from None
    shapes = {name: entry.shape for name, entry in saved.items()}
    expected = {name: tuple(parameter.shape) for name, parameter in trained.items()}
    if odd := sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name)):
        raise ValueError(f"{str(file)!r} and the trained weights differ in {odd[0]!r}; was it written by another run?")
    for name, parameter in trained.items():
        fill(parameter, saved[name].load())


def own_tensors(
    network: torch.nn.Module, model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Of the tensors of a network, those of one model in it, by their names in the model."""
    prefix = next(f"{name}." for name, module in network.named_modules() if module is model)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint so that no half of it is taken for one."""
    if not folder.is_dir():
        return
    hidden = folder.with_name(f".{folder.name}{_REMOVED}")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden)
