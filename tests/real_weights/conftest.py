"""Which weights the tests of this folder run on, and how."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ltx2_diffusers.checkpoints.packaged import PACKAGED
from ltx2_diffusers.checkpoints.pipeline_folder import check_repository_id
from ltx2_diffusers.cli.identities import checkpoint_identity, device_name

from .records import RECORDS, Records
from .running import OFFLOADED, Weights


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("real weights", "tests/real_weights, see the README there")
    add = group.addoption
    add("--checkpoint", default="ltx2-mini", metavar="PATH_OR_ID", help="folder in diffusers' layout, id of the Hub, or ltx2-mini (default)")  # fmt: skip
    add("--distilled-lora", metavar="FILE", help="LoRA for few steps; default the one that lies beside the components")
    add("--ic-lora", metavar="FILE", help="IC-LoRA; default the one that lies beside the components")
    add("--dtype", choices=("float32", "bfloat16"), help="default float32 on a CPU, bfloat16 on a GPU")
    add("--offload", action="store_true", help="networks wait in host memory until they compute")
    add("--record", action="store_true", help="write what is found instead of comparing with it")
    add("--record-missing", action="store_true", help="write what has no record, compare the rest")


@pytest.fixture(scope="session")
def weights(request: pytest.FixtureRequest) -> Weights:
    """What the options name."""

    def option(name: str) -> Any:
        return request.config.getoption(name)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = option("--dtype") or ("bfloat16" if device == "cuda" else "float32")
    name = option("--checkpoint")
    if Path(name).is_file():
        pytest.exit(
            f"--checkpoint {name} is a file; `ltx2 convert` makes a folder of it, which diffusers reads, too", 4
        )
    if name not in PACKAGED and not Path(name).is_dir():
        try:
            check_repository_id(name)
        except ValueError as error:
            pytest.exit(f"--checkpoint {name}: {error}", 4)
    loras = {"distilled": option("--distilled-lora"), "ic": option("--ic-lora")}
    return Weights(name, device, dtype, option("--offload"), loras)


@pytest.fixture(scope="session")
def pipeline(weights: Weights) -> Any:
    """All components, loaded once for all tests."""
    return weights.load()


@pytest.fixture(scope="session")
def records(weights: Weights, request: pytest.FixtureRequest) -> Records:
    """What earlier runs found."""
    kind = device_name(weights.device).removeprefix("cuda ").strip("()")
    numbers = weights.dtype if weights.dtype == "float32" else f"{weights.dtype}, {kind}"
    memory = kind + (OFFLOADED if weights.offload else "")
    identity = checkpoint_identity(weights.name)
    writes = {mode for mode in ("record", "record_missing") if request.config.getoption(mode)}
    return Records(RECORDS, Path(weights.name).name, identity, numbers, memory, writes)
