"""The training of a network in phases that end by their score, save themselves, and go on where they stopped."""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ltx2_diffusers.atomic import complete_file, write_json
from ltx2_diffusers.training.components import FitOptions, TrainingStep, fit, trained_parameters

Scores = dict[str, float]
Batches = Callable[[int], Mapping[str, Any]]


class Ahead:
    """Makes the next batch while a step runs.

    Args:
        batches: Makes the batch of a step from its number and nothing else, on the CPU.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches, self._worker = batches, ThreadPoolExecutor(1)
        self._begun: tuple[int, Future[Mapping[str, Any]]] | None = None

    def __call__(self, number: int) -> Mapping[str, Any]:
        """The batch of a step."""
        if self._begun is None or self._begun[0] != number:
            self._begun = number, self._worker.submit(self._batches, number)
        batch = self._begun[1].result()
        self._begun = number + 1, self._worker.submit(self._batches, number + 1)
        return batch


@dataclass(frozen=True)
class Place:
    """Where a training runs.

    Args:
        device: Of networks and clips.
        times: How many times the clips that two CPU cores are given, in all and in a batch.
    """

    device: torch.device
    times: int = 1

    @classmethod
    def named(cls, device: str) -> "Place":
        """A CPU, or a GPU: the networks are so small that a GPU takes many clips in the time of one."""
        place = torch.device(device)
        if place.type == "cpu":
            return cls(place)
        torch.set_float32_matmul_precision("high")
        return cls(place, 12)

    def ahead(self, batches: Batches) -> Batches:
        """Batches that follow from their number; made while a GPU is busy. Two threads take a CPU longer than one."""
        return batches if self.device.type == "cpu" else Ahead(batches)


CPU = Place(torch.device("cpu"))


def arguments(doc: str) -> argparse.ArgumentParser:
    """What every training takes from the command line.

    Args:
        doc: Of the module, whose first line says what is trained.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained networks")
    parser.add_argument("--device", type=Place.named, default=CPU, help="cpu (default) or cuda", dest="place")
    return parser


@dataclass(frozen=True)
class Phase:
    """A part of a training.

    Args:
        name: Of its files.
        batches: Makes the batch of a step from its number.
        steps: Most steps.
        learning_rate: Of the optimiser.
        options: Of [`fit`]; where the state is kept is filled in.
        every: Steps between two scores.
        enough: The score that ends the phase; infinity makes all steps. Phases whose rate falls make all steps.
    """

    name: str
    batches: Batches
    steps: int
    learning_rate: float
    options: FitOptions = field(default_factory=FitOptions)
    every: int = 500
    enough: float = float("inf")


def train(
    folder: Path, step: TrainingStep, phases: Sequence[Phase], score: Callable[[], Scores], judged_by: str
) -> None:
    """Run the phases that are not finished; the network holds the result.

    Args:
        folder: Where states, weights and the log are kept.
        step: The step of training.
        phases: One after the other.
        score: Measures the network on validation scenes.
        judged_by: The score that ends phases, the higher the better.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights, finished = folder / "weights.pt", _finished(folder)
    if finished:
        step.load_state_dict(torch.load(weights, weights_only=True))
    for phase in phases:
        if phase.name in finished:
            continue
        _run(folder, step, phase, score, judged_by)
        with complete_file(weights) as temporary:
            torch.save(step.state_dict(), temporary)
        finished.append(phase.name)
        write_json(folder / "finished.json", finished)
        (folder / f"{phase.name}.pt").unlink()


def _finished(folder: Path) -> list[str]:
    path = folder / "finished.json"
    return json.loads(path.read_text()) if path.exists() else []


def _run(folder: Path, step: TrainingStep, phase: Phase, score: Callable[[], Scores], judged_by: str) -> None:
    options = replace(phase.options, state_file=folder / f"{phase.name}.pt", save_every=phase.every, progress=False)
    done, begun = 0, time.monotonic()
    while done < phase.steps:
        # What falls in the course of all steps cannot be cut into parts.
        done = min(phase.steps, done + phase.every) if options.schedule == "constant" else phase.steps
        records = fit(step, trained_parameters(step), phase.batches, done, phase.learning_rate, options)
        # After an interruption the first part may be finished already.
        done = len(records)
        recent = records[-phase.every :]
        losses = {name: sum(record[name] for record in recent) / len(recent) for name in records[-1]}
        scores = score()
        _log(folder, {"phase": phase.name, "steps": done, "seconds": time.monotonic() - begun} | losses | scores)
        if scores[judged_by] >= phase.enough:
            return


def _log(folder: Path, line: dict[str, Any]) -> None:
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in line.items()}
    print(json.dumps(rounded), flush=True)
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(rounded) + "\n")
