"""Strategies that others bring."""

import pytest

from ltx2_diffusers.conditioning import Streams
from ltx2_diffusers.training import LTX2Trainer, register_strategy
from ltx2_diffusers.training.config import STRATEGY_SECTIONS
from ltx2_diffusers.training.config_files import parse_config
from ltx2_diffusers.training.objective import strategies
from ltx2_diffusers.training.objective.strategies import MaskedStrategy, Role, Suffix, strategy_of
from tests.training.running import Losses, settings, stored_samples


@pytest.fixture
def ending(monkeypatch):
    """A strategy that shows the end of every clip, known for one test."""
    monkeypatch.setattr(strategies, "_OWN", {})
    monkeypatch.setattr("ltx2_diffusers.training.config.STRATEGY_SECTIONS", dict(STRATEGY_SECTIONS))

    class Ending(MaskedStrategy):
        def __init__(self, section):
            super().__init__(section, Streams(Role("latents", rules=(Suffix(boundary=section.shown),)), None))

        def metadata(self):
            return {"ending": "1"}

    register_strategy("ending", Ending)
    return Ending


def test_a_registered_strategy_trains(ending, tmp_path):
    data = stored_samples(tmp_path / "data", count=2, frames=3)
    found = settings(data, tmp_path / "run", optimization={"steps": 2})
    found["training_strategy"] = {"name": "ending", "shown": 2}
    trainer = LTX2Trainer(parse_config(found))
    losses = Losses(trainer)
    trainer.train()
    assert len(losses.values) == 2
    assert isinstance(strategy_of(parse_config(found).training_strategy), ending)


def test_names_of_the_package_are_taken():
    with pytest.raises(ValueError, match="there is a strategy 'retake'"):
        register_strategy("retake", MaskedStrategy)


def test_unknown_names_get_the_nearest():
    class Section:
        name = "retakes"

    with pytest.raises(ValueError, match="did you mean 'retake'"):
        strategy_of(Section())
