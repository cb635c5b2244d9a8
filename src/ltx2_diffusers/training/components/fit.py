"""The loop that trains a network from nothing: one step after another, resumable exactly, averaged and saved safely."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]  # it ships no types

from ...atomic import complete_file, replaced_folder
from ...checks import check_at_least_one, check_choice, check_from_zero, check_positive, check_unit
from .graphs import Replays
from .muon import Muon
from .step import Losses, TrainingStep

Batch = Mapping[str, Any]
Batches = Callable[[int], Batch] | Sequence[Batch]
Records = list[dict[str, float]]
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "muon": Muon}


@dataclass(frozen=True)
class FitOptions:
    """How a network is trained.

    Args:
        optimizer: `"adamw"`, or `"muon"` (see [`Muon`]): better pictures in the same time from convolutional networks.
            Default `"adamw"`.
        schedule: Of the learning rate: `"constant"`, `"linear"` or `"cosine"`, the latter two to 0. Default
            `"constant"`.
        warmup_steps: Steps in which the learning rate grows from 0. Default 0.
        betas: Of the optimiser. Default (0.9, 0.99).
        weight_decay: Of the optimiser. Default 0.0.
        max_grad_norm: Longest gradient of all parameters together; longer ones are scaled down. Default 1.0.
        ema_decay: Decay of the running average of the parameters, which they hold in the end. Default None, no average.
        mixed_precision: `"no"`, or `"bf16"` to compute in bfloat16 where torch's autocast does. Default `"no"`.
        cuda_graphs: Whether batches of a shape that was seen before replay what was recorded of it on a GPU: several
            times as fast where networks are so small that starting their kernels takes longer than running them. For
            steps without a critic that do not look at values on the CPU, and batches of tensors. A loss that is not finite
            is found after it has changed the weights. Default `False`.
        critic_learning_rate: Of a step's critic. Default None, that of the network.
        state_file: Where the state of training is kept. If it exists, training goes on from it. Default None.
        save_every: Steps between two states; the last step's is kept always. Default 500.
        progress: Whether a bar shows the losses and the time that is left. Default True.
    """

    optimizer: str = "adamw"
    schedule: str = "constant"
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float | None = None
    mixed_precision: str = "no"
    cuda_graphs: bool = False
    critic_learning_rate: float | None = None
    state_file: Path | None = None
    save_every: int = 500
    progress: bool = True

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, tuple(_OPTIMIZERS))
        check_choice("schedule", self.schedule, ("constant", "linear", "cosine"))
        check_choice("mixed_precision", self.mixed_precision, ("no", "bf16"))
        check_from_zero(warmup_steps=self.warmup_steps, weight_decay=self.weight_decay)
        check_positive(max_grad_norm=self.max_grad_norm, critic_learning_rate=self.critic_learning_rate)
        check_unit(ema_decay=self.ema_decay)
        check_at_least_one(save_every=self.save_every)


def fit(
    step: TrainingStep,
    parameters: Iterable[nn.Parameter],
    batches: Batches,
    steps: int,
    learning_rate: float,
    options: FitOptions = FitOptions(),
) -> Records:
    """Train a network, and its critic where the step has one.

    A run that was interrupted and goes on from its `state_file` is bit for bit the run that was not: weights, moments,
    average, learning rate and random numbers (of torch, Python and numpy) are in the file. Batches have to follow from
    their number, or from those random numbers. Networks are in training mode meanwhile, and in evaluation mode afterwards.

    Args:
        step: The step of training, on its device.
        parameters: What its loss trains.
        batches: Makes the batch of a step from its number, counted from 0; or batches that are gone through again and
            again. Tensors are moved to the device of the step.
        steps: Steps in all, those before an interruption included.
        learning_rate: Of the optimiser, after the warm-up.
        options: See [`FitOptions`].

    Returns:
        The losses of every step, `"loss"` first, and of the critic.

    Raises:
        ValueError: If there is nothing to train, `state_file` belongs to another training, or `cuda_graphs` cannot be had.
        FloatingPointError: If a loss or its gradient is not finite, before it changes a weight; the message names it.
    """
    check_at_least_one(steps=steps)
    check_positive(learning_rate=learning_rate)
    if not callable(batches) and not len(batches):
        raise ValueError("there are no batches; give at least one, or a function of the step's number.")
    run = _Run(step, list(parameters), steps, learning_rate, options)
    run.resume()
    step.train()
    with tqdm(total=steps, initial=len(run.records), disable=not options.progress, unit="step") as bar:
        while len(run.records) < steps:
            number = len(run.records)
            batch = batches(number) if callable(batches) else batches[number % len(batches)]
            try:
                record = run.advance(batch)
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"in step {number} {error}; no weight was changed by it. Look at the batch of this step, or lower the "
                    "learning rate."
                ) from error
            bar.set_postfix({name: f"{value:.4g}" for name, value in record.items()})
            bar.update()
            if len(run.records) % options.save_every == 0 or len(run.records) == steps:
                run.save()
    run.average()
    step.eval()
    return run.records


def save_networks(step: TrainingStep, folder: str | Path) -> None:
    """Write the networks of a step to folders of their names in `folder`, each whole or none at all."""
    with replaced_folder(folder) as temporary:
        for name, network in step.networks.items():
            network.save_pretrained(Path(temporary, name))  # type: ignore[operator]  # of diffusers or transformers


class _Learner:
    """An optimiser, its learning rate and the parameters they change."""

    def __init__(self, parameters: list[nn.Parameter], steps: int, learning_rate: float, options: FitOptions) -> None:
        self.parameters, self.max_grad_norm = parameters, options.max_grad_norm
        settings: dict[str, Any] = {"betas": options.betas, "weight_decay": options.weight_decay, "lr": learning_rate}
        if options.cuda_graphs:
            # A record reads the rate from where it is.
            settings["lr"] = torch.tensor(learning_rate, device=parameters[0].device)
            if options.optimizer == "adamw":
                settings["capturable"] = True
        self.optimizer = _OPTIMIZERS[options.optimizer](parameters, **settings)
        # diffusers' plain "constant" knows no warm-up.
        name = "constant_with_warmup" if options.schedule == "constant" else options.schedule
        self.schedule = get_scheduler(
            name, self.optimizer, num_warmup_steps=options.warmup_steps, num_training_steps=steps
        )

    def gradient(self, loss: torch.Tensor) -> torch.Tensor:
        """Take the gradient of a loss, and return its norm."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)

    def descend(self, loss: torch.Tensor) -> None:
        """Change the parameters along the gradient of a loss; `FloatingPointError` if that is not finite."""
        norm = self.gradient(loss).item()
        if not np.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm} though its loss is {loss.item():.4g}")
        self.optimizer.step()
        self.schedule.step()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


class _Run:
    """One training: its learners, its average and what has been done so far."""

    def __init__(
        self, step: TrainingStep, parameters: list[nn.Parameter], steps: int, learning_rate: float, options: FitOptions
    ) -> None:
        if not parameters:
            raise ValueError(
                "there are no parameters to train; unfreeze the network, for example by network.requires_grad_()."
            )
        if options.cuda_graphs and (step.critic is not None or step.device.type != "cuda"):
            raise ValueError(
                f"cuda_graphs need a step on a GPU without a critic, but {type(step).__name__} is on {step.device} "
                f"{'with' if step.critic is not None else 'without'} one; leave them out."
            )
        self.step, self.options = step, options
        self.settings = self._settings(steps, learning_rate)
        self.learners = [_Learner(parameters, steps, learning_rate, options)]
        if step.critic is not None:
            rate = options.critic_learning_rate or learning_rate
            self.learners.append(_Learner(list(step.critic.parameters()), steps, rate, options))
        self.ema = None if options.ema_decay is None else EMAModel(parameters, options.ema_decay, foreach=True)
        self.records: Records = []
        self._names: list[str] = []
        self._replays = Replays(self._whole_step, step.device) if options.cuda_graphs else None

    def _settings(self, steps: int, learning_rate: float) -> dict[str, Any]:
        """What a resumed run must not change; more steps at a constant rate are no change."""
        kept = {key: value for key, value in asdict(self.options).items() if key not in _FREE_SETTINGS}
        kept["betas"] = list(kept["betas"])
        total = {} if self.options.schedule == "constant" else {"steps": steps}
        return {"step": type(self.step).__name__, "learning_rate": learning_rate, **total, **kept}

    def advance(self, batch: Batch) -> dict[str, float]:
        """Train on a batch."""
        batch = send_to_device(batch, self.step.device)
        if self._replays is not None:
            values = self._replays(batch).tolist()  # the first step says what they are called
            record = dict(zip(self._names, values))
            self._check_finite(record)
            self.learners[0].schedule.step()
        else:
            record = self._descend(self.learners[0], lambda: self.step(batch))
        if self.ema is not None:
            self.ema.step(self.learners[0].parameters)
        if self.step.critic is not None:
            record |= self._descend(self.learners[1], self.step.critic_losses) | {"loss": record["loss"]}
        self.records.append(record)
        return record

    def _whole_step(self, batch: Batch) -> torch.Tensor:
        """Train on a batch without a look at any value; the losses, in the order of their names."""
        with self._precision():
            losses = self.step(batch)
        self._names = list(losses)
        self.learners[0].gradient(losses["loss"])
        self.learners[0].optimizer.step()
        return torch.stack([loss.detach().float() for loss in losses.values()])

    def _descend(self, learner: _Learner, compute: Callable[[], Losses]) -> dict[str, float]:
        with self._precision():
            losses = compute()
        values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
        record = dict(zip(losses, values))
        self._check_finite(record)
        learner.descend(losses["loss"])
        return record

    def _precision(self) -> AbstractContextManager:
        if self.options.mixed_precision == "no":
            return nullcontext()
        return torch.autocast(self.step.device.type, torch.bfloat16)

    def _check_finite(self, record: dict[str, float]) -> None:
        # The sum comes first but says less than its parts.
        for name, value in reversed(record.items()):
            if not np.isfinite(value):
                raise FloatingPointError(f"the loss {name!r} is {value}")

    def save(self) -> None:
        """Write the state, whole or not at all."""
        if self.options.state_file is None:
            return
        state = {
            "settings": self.settings,
            "records": self.records,
            "step": self.step.state_dict(),
            "learners": [learner.state() for learner in self.learners],
            "ema": None if self.ema is None else self.ema.state_dict(),
            "random": _random_state(),
        }
        with complete_file(self.options.state_file) as temporary:
            torch.save(state, temporary)

    def resume(self) -> None:
        """Go on from the state file, if there is one."""
        path = self.options.state_file
        if path is None or not Path(path).exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            before = state["settings"]
        except Exception as error:
            raise ValueError(f"{str(path)!r} is no state of training ({error}); remove it to begin anew.") from error
        for name, value in (before | self.settings).items():
            if before.get(name) != self.settings.get(name):
                raise ValueError(
                    f"{str(path)!r} is the state of a training with {name}={before.get(name)!r}, not {value!r}; use that, "
                    "or another file to begin anew."
                )
        self._check_weights(state["step"])
        self.step.load_state_dict(state["step"])
        for learner, saved in zip(self.learners, state["learners"]):
            learner.load(saved)
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
            self.ema.to(self.step.device)
        self.records = state["records"]
        _set_random_state(state["random"])

    def _check_weights(self, saved: Mapping[str, torch.Tensor]) -> None:
        # Before anything is loaded: torch copies what fits even if something else does not.
        own = self.step.state_dict()
        for name in [*own, *saved]:
            shapes = [list(weights[name].shape) if name in weights else None for weights in (saved, own)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"{str(self.options.state_file)!r} is the state of other networks: {name} has shape {shapes[0]} there "
                    f"and {shapes[1]} here; use another file to begin anew."
                )

    def average(self) -> None:
        """Put the running average into the parameters."""
        if self.ema is not None:
            self.ema.copy_to(self.learners[0].parameters)


# Settings that change nothing of what is computed.
_FREE_SETTINGS = ("state_file", "save_every", "progress")


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
    }


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
