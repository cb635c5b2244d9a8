"""`ltx2 doctor`: does this machine compute the right numbers?"""

import argparse
import platform
from typing import Any

from .identities import device_name, versions
from .loading import DTYPES, check_device


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "doctor",
        help="check every component of the packaged miniature against stored numbers",
        description="Run every component of the packaged miniature on stored inputs and compare with what diffusers "
        "computes from the same weights. Exit status 1 if one differs by more than the tolerance.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--device", default="cpu", help="where to run: cpu, cuda, cuda:1, mps")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="data type of weights and inputs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print versions and the table of errors."""
    import torch

    from ..checkpoints.self_check import run_checks

    check_device(options.device)
    for name, version in versions().items():
        print(f"{name:<16}{version}")
    print(f"{'python':<16}{platform.python_version()} on {platform.system()} {platform.machine()}")
    print(f"{'device':<16}{device_name(options.device)}, {options.dtype}\n")
    print(f"{'component':<26}{'case':<18}{'relative error':>16}{'tolerance':>12}  result")
    failed = 0
    for result in run_checks(options.device, getattr(torch, options.dtype)):
        failed += not result.passed
        verdict = "ok" if result.passed else f"FAILED {result.failure or ''}".strip()
        print(f"{result.name:<26}{result.case:<18}{result.error:>16.1e}{result.tolerance:>12.1e}  {verdict}")
    print(f"\n{f'{failed} checks failed' if failed else 'all checks passed'}")
    return 1 if failed else 0
