"""What a run tells of itself: losses over all processes, speed, the time left.

Shapes: B samples.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from tqdm import tqdm  # type: ignore[import-untyped]  # it ships no types

from .objective.losses import LEVEL_BOUNDS, StepLosses

logger = get_logger(__name__, log_level="INFO")

_STREAMS = ("video", "audio")
_BUCKETS = [f"_sigma_{low:.2f}-{high:.2f}" for low, high in pairwise(LEVEL_BOUNDS)]
_NAMES = [f"loss_{stream}{bucket}" for stream in _STREAMS for bucket in ("", *_BUCKETS)]
# Steps between two lines where there is no progress bar.
_LINE_STEPS = 20


class LossMeter:
    """Mean losses of a step, over its forward passes and all processes: of each stream, and by noise level.

    Nothing waits for the device until the means are asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(_NAMES), 2, device=device, dtype=torch.float64)
        self._total = torch.zeros(2, device=device, dtype=torch.float64)

    def add(self, losses: StepLosses) -> None:
        """Count one forward pass."""
        self._total += torch.stack([losses.total.detach().double(), torch.ones_like(losses.total).double()])
        rows = self._sums.view(len(_STREAMS), -1, 2)
        for row, values, sigmas in zip(rows, losses.streams, losses.sigmas):
            if values is None or sigmas is None:
                continue
            values = values.double()
            row[0] += torch.stack([values.sum(), torch.ones_like(values).sum()])
            for place, (low, high) in enumerate(pairwise(LEVEL_BOUNDS), start=1):
                # The last bucket holds pure noise, too.
                inside = ((sigmas >= low) & ((sigmas < high) | (high == LEVEL_BOUNDS[-1]))).double()
                row[place] += torch.stack([torch.where(inside > 0, values, 0.0).sum(), inside.sum()])

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """`loss`, which was minimised, and those of the streams and noise levels that there were."""
        counted = torch.cat([self._total[None], self._sums])
        counted = accelerator.reduce(counted, reduction="sum")
        named = zip(["loss", *_NAMES], counted.tolist())
        return {name: value / count for name, (value, count) in named if count}


class Reporter:
    """Shows and logs the steps of a run.

    Args:
        accelerator: What runs it; its trackers are started.
        section: `tracking` of a configuration.
        first: Steps that are done.
        total: Steps of the run.
        batch_size: Samples of a forward pass over all processes.
        accumulation: Forward passes of a step.
    """

    def __init__(
        self, accelerator: Accelerator, section: Any, first: int, total: int, batch_size: int, accumulation: int
    ) -> None:
        self._accelerator, self._first, self._total = accelerator, first, total
        self._batch_size, self._samples_per_step = batch_size, batch_size * accumulation
        hidden = not section.progress_bar or not accelerator.is_main_process
        self._bar = tqdm(total=total, initial=first, desc="training", unit="step", disable=hidden)
        self._lines = not section.progress_bar
        self._began = self._last = time.perf_counter()
        self._waited = 0.0
        self._paused = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around reading a batch: how long a step waits for its data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Around what is not training: validation, checkpoints."""
        start = time.perf_counter()
        yield
        passed = time.perf_counter() - start
        self._paused += passed
        self._last += passed

    def step(self, step: int, losses: dict[str, float], rate: float, grad_norm: float | None) -> None:
        """Tell of a step that is done."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        values = {f"train/{name}": value for name, value in losses.items()}
        values |= {
            "train/learning_rate": rate,
            "train/step_time": seconds,
            "train/data_time": self._waited,
            "train/samples_per_second": self._samples_per_step / seconds,
            "train/global_step": step,
        }
        if grad_norm is not None:
            values["train/grad_norm"] = grad_norm
        self._waited = 0.0
        self._accelerator.log(values, step=step)
        shown = {name: f"{losses[name]:.4f}" for name in ("loss", "loss_video", "loss_audio") if name in losses}
        speed = f"{self._samples_per_step / seconds:.2f}"
        self._bar.set_postfix(shown | {"lr": f"{rate:.1e}", "samples/s": speed})
        self._bar.update()
        if self._lines and (step % _LINE_STEPS == 0 or step == self._total):
            left = (self._total - step) * self._seconds() / max(step - self._first, 1)
            told = ", ".join(f"{name} {value}" for name, value in shown.items())
            logger.info(f"step {step} of {self._total}: {told}, {speed} samples/s, {left / 60:.0f} min left")

    def _seconds(self) -> float:
        return time.perf_counter() - self._began - self._paused

    def close(self, steps: int) -> dict[str, float | int]:
        """End the bar; what the run took."""
        self._bar.close()
        seconds, training = time.perf_counter() - self._began, max(self._seconds(), 1e-9)
        processes = self._accelerator.num_processes
        stats: dict[str, float | int] = {
            "total_time_seconds": seconds,
            "steps_per_second": steps / training,
            "samples_per_second": steps * self._samples_per_step / training,
            "peak_gpu_memory_gb": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0,
            "global_batch_size": self._batch_size,
            "num_processes": processes,
        }
        logged = ("steps_per_second", "samples_per_second", "peak_gpu_memory_gb")
        values = {"stats/total_time_minutes": seconds / 60} | {f"stats/{name}": stats[name] for name in logged}
        self._accelerator.log(values)
        return stats
