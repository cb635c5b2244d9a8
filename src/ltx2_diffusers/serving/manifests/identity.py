"""What tells a loaded checkpoint and its LoRAs from others."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...adapters.active import DISTILLED_ADAPTER
from ...cli.identities import checkpoint_identity
from ...cli.manifest import STORYBOARD
from ..jobs import Job

_LOADED = ("checkpoint", "text_encoder", "upsampler", "diffusion_decoder")
_SAID = ("dtype", "tiling")


def identity_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Names for all that is loaded.

    Args:
        options: Options of `ltx2 generate` that say what is loaded, and `adapters`, LoRAs by name.
    """
    loras = {name: file for name, (file, _) in options.get("adapters", {}).items()}
    if "distilled_lora" in options:
        loras[DISTILLED_ADAPTER] = options["distilled_lora"][0]
    return {
        **{name: checkpoint_identity(str(options[name])) for name in _LOADED if name in options},
        **{name: options[name] for name in _SAID if name in options},
        "adapters": {name: checkpoint_identity(str(file)) for name, file in loras.items()},
    }


def used_by(job: Job, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an identity that a job depends on: of LoRAs those that it asks for."""
    adapters = {name: known for name, known in identity.get("adapters", {}).items() if name in _asked(job)}
    return {**identity, "adapters": adapters}


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is loaded now and was not then, or the other way round, in words."""
    what = {name for name in {**then, **now} if name != "adapters" and then.get(name) != now.get(name)}
    before, after = then.get("adapters", {}), now.get("adapters", {})
    loras = [name for name in before if before[name] != after.get(name)]
    return [f"the {name.replace('_', ' ')}" for name in sorted(what)] + [f"the adapter {name!r}" for name in loras]


def _asked(job: Job) -> Sequence[str]:
    """Names of the LoRAs that a job asks for."""
    if STORYBOARD in job.options:
        board = job.options[STORYBOARD]
        named = [*(shot.get("adapters") for shot in board["shots"])]
        named += [board.get("stage_1_adapters"), board.get("stage_2_adapters")]
        return [name for one in named for name in one or ()]
    return [*job.adapters, *([DISTILLED_ADAPTER] if "distilled_lora" in job.options else [])]
