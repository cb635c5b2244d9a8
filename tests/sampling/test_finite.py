"""A run whose latents stop being finite numbers says where."""

import pytest
import torch

from ltx2_diffusers.conditioning import LatentState
from ltx2_diffusers.conditioning.streams import Streams
from ltx2_diffusers.sampling.loop import FiniteWatch, denoise

SIGMAS = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])


def state(value: float = 0.0) -> LatentState:
    latent = torch.full((1, 3, 2), value)
    return LatentState(latent, torch.ones(1, 3, 1), torch.zeros(1, 1, 3, 2), latent)


class Breaks:
    """A sampler that makes one stream bad in one step."""

    predictions_per_step = 1

    def __init__(self, step: int, bad: Streams, value: float = float("nan")):
        self.bad_step, self.bad, self.value, self.steps = step, bad, value, []

    def step(self, _predict, states, _sigmas, step):
        self.steps.append(step)
        values = (self.value if step == self.bad_step and bad else 0.0 for bad in self.bad)
        return Streams(*(None if s is None else state(v) for s, v in zip(states, values))), Streams(None, None)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Streams(True, False), r"the video stopped being finite .* in step 3 of"),
        (Streams(False, True), r"the audio stopped being finite .* in step 3 of"),
        (Streams(True, True), r"the video and the audio stopped being finite .* in step 3 of .*float16"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_step_and_stream_are_named_and_the_run_ends(bad, message, value):
    sampler = Breaks(2, bad, value)
    with pytest.raises(ValueError, match=message):
        denoise(None, Streams(state(), state()), SIGMAS, sampler)
    assert sampler.steps == [0, 1, 2]


def test_a_lone_stream_is_watched_too():
    with pytest.raises(ValueError, match=r"the audio stopped being finite .* in step 1 of"):
        denoise(None, Streams(None, state()), SIGMAS, Breaks(0, Streams(True, True)))


def test_where_answers_cost_waiting_they_are_asked_once():
    """As on an accelerator: nothing is asked before the end, when the first bad step is named."""
    watch = FiniteWatch(flags=[torch.tensor([True, True]), torch.tensor([True, False]), torch.tensor([False, False])])
    watch.streams = ["video", "audio"]
    with pytest.raises(ValueError, match=r"the audio stopped being finite .* in step 2 of"):
        watch.check()


def test_an_interrupted_run_is_what_it_was():
    states = Streams(state(), state())
    assert denoise(None, states, SIGMAS, Breaks(9, states), interrupted=lambda: True) is states
