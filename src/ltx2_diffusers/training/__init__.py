"""Training of LTX-2: adapters, the whole transformer, and every network from nothing.

What others take from here is imported on first use, since it needs the extra `train`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import TrainingConfig
    from .config_files import load_config, save_config
    from .objective.strategies import Strategy, register_strategy
    from .trainer import LTX2Trainer

_PLACES = {
    "LTX2Trainer": ".trainer",
    "Strategy": ".objective.strategies",
    "TrainingConfig": ".config",
    "load_config": ".config_files",
    "register_strategy": ".objective.strategies",
    "save_config": ".config_files",
}

__all__ = ["LTX2Trainer", "Strategy", "TrainingConfig", "load_config", "register_strategy", "save_config"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name], __name__), name)
