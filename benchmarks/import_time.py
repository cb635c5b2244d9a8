"""What importing the package costs beyond the libraries it stands on, in fresh interpreters.

Run `python -m benchmarks.import_time [--quick]`. The clock starts when torch, diffusers and the rest are imported.
"""

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

from .common import print_table, write_results

LIBRARIES = """
import time
import av, diffusers, peft, PIL.Image, torch, transformers
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin, SchedulerMixin
from diffusers.video_processor import VideoProcessor
import diffusers.loaders.peft, diffusers.hooks
started = time.perf_counter()
import ltx2_diffusers
bare = time.perf_counter() - started
for name in ltx2_diffusers.__all__:
    getattr(ltx2_diffusers, name)
print([bare, time.perf_counter() - started])
"""


def run(repeats: int) -> dict[str, Any]:
    """Seconds of the bare import and of resolving every public name."""
    samples = []
    for _ in range(repeats):
        finished = subprocess.run([sys.executable, "-c", LIBRARIES], capture_output=True, text=True, check=True)
        samples.append(json.loads(finished.stdout.splitlines()[-1]))
    bare, every = (statistics.median(values) for values in zip(*samples))
    return {"repeats": repeats, "median_s": {"import": bare, "every_name": every}}


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    payload = run(repeats=3 if parser.parse_args().quick else 9)
    print_table([{"import, s": payload["median_s"]["import"], "every name, s": payload["median_s"]["every_name"]}])
    write_results("import_time", payload)


if __name__ == "__main__":
    main()
