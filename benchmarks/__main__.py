"""Runs the CPU benchmarks against diffusers, each in a process of its own, and prints ratios beside their bounds.

`python -m benchmarks` samples briefly and leaves the recorded results alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .common import RESULTS_DIR, print_table, write_file
from .counts import BYTES_BOUND, KERNELS_BOUND
from .pipeline import bounds_of
from .step import BOUNDS, MEMORY_BOUND

BENCHMARKS = (
    *("counts", "step", "vae", "pipeline"),
    *("transformer_forward", "export_video", "training_step", "import_time"),
)


def measured(name: str, quick: bool, results: Path) -> dict[str, Any]:
    """Run one benchmark and return what it wrote."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if quick else [])]
    environment = {**os.environ, "LTX2_BENCHMARK_RESULTS": os.fspath(results)}
    # One that misses a bound of its own says so in the table below.
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
    paths = list(results.glob(f"{name}*.json"))
    if len(paths) != 1:
        raise SystemExit(f"{' '.join(command[1:])} wrote no results and ended with status {done.returncode}")
    return json.loads(paths[0].read_text())


def ratios(name: str, payload: dict[str, Any]) -> Iterator[tuple[str, float, float | None, bool]]:
    """Name, value and bound (if any) of every ratio of a benchmark, and whether the bound is a lower one."""
    if name == "transformer_forward":
        for case in payload["cases"]:
            label = f"transformer forward, {case['case']}, {case['tokens']} video tokens: speed"
            yield label, case["ratio paired"], 0.97, True
    elif name == "counts":
        for case in (case for case in payload["cases"] if case["by"] == "ours, fused"):
            label = f"{case['model']}, {case['case']}, fused"
            yield f"{label}: kernels beside products", case["of diffusers'"], KERNELS_BOUND, False
            yield f"{label}: their bytes", case["of its GB"], BYTES_BOUND, False
    elif name == "step":
        for case in payload["cases"]:
            yield f"{case['case']}: speed", case["median"], BOUNDS[case["case"]], True
        yield "forward, image to video: memory", payload["memory, image to video"], MEMORY_BOUND, False
    elif name == "pipeline":
        for case in (case for case in payload["cases"] if case["by"] == "ours"):
            yield f"whole call, {case['case']}: speed", case["over diffusers"], bounds_of(case["case"], "cpu")[0], True
    elif name == "vae":
        for case in payload["time"]:
            label = f"VAE {case['what']}, {case['structure']}, {case['width']} px: speed"
            bound = 1.0 if case["what"] == "decode" else None
            yield label, case["ratio_diffusers_over_ours"]["paired"], bound, True
        for case in payload["memory"]:
            clip = f"{case['frames']} x {case['height']} x {case['width']}"
            label = f"VAE decode, {case['structure']}, {clip}, streamed: memory"
            yield label, case["ratio_streamed_over_diffusers"], 0.4, False
        for case in payload["streaming"]:
            label = f"VAE decode, {case['structure']}, streamed over whole: time"
            yield label, case["ratio_streamed_over_whole"]["paired"], 1.05, False
        for case in payload["streams"]:
            label = f"VAE decode, {case['structure']}, {case['frames']} x {case['height']} x {case['width']}"
            yield f"{label}: operations before the first frame", case["operations_before_first_frame"], 0.5, False
    elif name == "training_step":
        for case in payload["cases"]:
            how = "with" if case["gradient checkpointing"] else "without"
            label = f"training step, {case['video tokens']} video tokens, {how} gradient checkpointing: forwards"
            # With checkpointing a forward pass more is what it is about.
            yield label, case["forwards per step, paired"], None if case["gradient checkpointing"] else 3.3, False
        for case in payload["data"]:
            label = f"training step, waiting for data read by {case['workers']} processes: share of the step"
            yield label, case["share of the step"], 0.05, False
    elif name == "import_time":
        yield (
            "import of every public name, seconds beyond torch and diffusers",
            payload["median_s"]["every_name"],
            0.3,
            False,
        )
    else:
        clip = payload["clip"]
        yield f"tensor to MP4, {clip}: speed", payload["file_speedup_default_encoder"]["median"], 3, True
        # Encoding itself, which both sides leave to x264, is most of our time then; there is no bound to keep.
        same = payload["file_speedup_same_encoder"]["median"]
        yield f"tensor to MP4, {clip}, both with diffusers' encoder options: speed", same, None, True
        yield f"tensor to MP4, {clip}: host memory", payload["memory_ratio"], 0.35, False


def kept(value: float, bound: float | None, is_lower: bool) -> bool:
    """Whether a ratio keeps its bound."""
    return bound is None or (value >= bound if is_lower else value <= bound)


def main() -> int:
    """Print the table; exit status 1 if a ratio misses its bound."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--record", action="store_true", help=f"take many samples and write them to {RESULTS_DIR.name}/"
    )
    parser.add_argument("--only", choices=BENCHMARKS, help="run one benchmark")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in [options.only] if options.only else BENCHMARKS:
            print(f"running {name} ...", file=sys.stderr)
            payload = measured(name, not options.record, Path(folder))
            rows += ratios(name, payload)
            if options.record:
                write_file(name, payload)
    print_table(
        [
            {
                "ratio to diffusers, or seconds": label,
                "measured": value,
                "bound": "" if bound is None else f"{'>=' if is_lower else '<='} {bound:g}",
                "kept": "yes" if kept(value, bound, is_lower) else "NO",
            }
            for label, value, bound, is_lower in rows
        ]
    )
    return int(not all(kept(*row) for _, *row in rows))


if __name__ == "__main__":
    sys.exit(main())
