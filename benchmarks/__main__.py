"""Runs every CPU benchmark briefly and prints its ratios: `python -m benchmarks`."""

import subprocess
import sys


BENCHMARKS = ("transformer_forward", "vae_decode", "export_video")


def main() -> int:
    """Run the benchmarks one after another, each in a process of its own."""
    options = sys.argv[1:] or ["--quick"]
    return max(subprocess.call([sys.executable, "-m", f"benchmarks.{name}", *options]) for name in BENCHMARKS)


if __name__ == "__main__":
    sys.exit(main())
