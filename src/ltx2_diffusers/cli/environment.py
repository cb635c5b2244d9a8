"""What a result depends on beside its inputs: versions of libraries, and the machine."""

import importlib.metadata
import platform
from typing import Any

VERSIONED = ("ltx2-diffusers", "torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "av")


def versions() -> dict[str, str]:
    """Installed versions of this package and of those that compute."""
    return {name: importlib.metadata.version(name) for name in VERSIONED}


def device_name(device: str) -> str:
    """A device as people know it."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if torch.device(device).type == "cuda" else device


def environment(device: str) -> dict[str, Any]:
    """Versions and machine; where they are equal, equal calls give equal results."""
    import torch

    return {
        **versions(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "CPU instructions": torch.backends.cpu.get_cpu_capability(),
        # The order in which a sum is taken depends on the number of threads.
        "threads": torch.get_num_threads(),
    }
