"""Timing and bookkeeping that all benchmarks share."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch

from ltx2_diffusers.atomic import complete_file

RESULTS_DIR = Path(os.environ.get("LTX2_BENCHMARK_RESULTS", Path(__file__).parent / "results"))


def hardware() -> dict[str, Any]:
    """What the numbers were measured on."""
    device = None
    if torch.cuda.is_available():
        device = {"name": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        device["cudnn"] = torch.backends.cudnn.version()
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def interleaved(
    functions: dict[str, Callable[[], Any]], repeats: int = 7, warmup: int = 1, inner: int = 1
) -> dict[str, list[float]]:
    """Time functions in turn, so that a machine that slows down slows all of them down.

    Args:
        functions (`dict[str, Callable]`): Name to what is timed, called without arguments.
        repeats (`int`, defaults to 7): Samples per function.
        warmup (`int`, defaults to 1): Untimed calls per function.
        inner (`int`, defaults to 1): Calls per sample.

    Returns:
        `dict[str, list[float]]`: Seconds per call, one entry per sample.
    """
    for function in functions.values():
        for _ in range(warmup):
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for sample in range(repeats):
        # Alternating who goes first keeps drift and warm caches from favouring one side.
        order = list(functions.items())[:: -1 if sample % 2 else 1]
        for name, function in order:
            _synchronize()
            start = time.perf_counter()
            for _ in range(inner):
                function()
            _synchronize()
            times[name].append((time.perf_counter() - start) / inner)
    return times


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(times: dict[str, list[float]], baseline: str, candidate: str) -> dict[str, float]:
    """How many times as fast the candidate is, from medians, from minima and as the median of paired samples."""
    pairs = [slow / fast for slow, fast in zip(times[baseline], times[candidate])]
    return {
        "median": statistics.median(times[baseline]) / statistics.median(times[candidate]),
        "minimum": min(times[baseline]) / min(times[candidate]),
        "paired": statistics.median(pairs),
    }


def write_results(name: str, payload: dict[str, Any]) -> Path:
    """Write `payload` with the hardware it was measured on to `results/<name>.json` and return the path."""
    return write_file(name, {"hardware": hardware(), **payload})


def write_file(name: str, content: dict[str, Any]) -> Path:
    """Write `content` to `results/<name>.json` and return the path."""
    path = RESULTS_DIR / f"{name}.json"
    with complete_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
    return path


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print dictionaries with equal keys as an aligned table."""
    cells = [list(rows[0])] + [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)))
