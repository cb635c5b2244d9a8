"""Samples made while training, by the package's own pipelines and without a trace in the training."""

from .undisturbed import offloaded_states, undisturbed
from .validator import ValidationSample, Validator

__all__ = ["ValidationSample", "Validator", "offloaded_states", "undisturbed"]
