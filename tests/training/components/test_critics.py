"""Critics: their losses by hand, what they learn, and whom their gradients reach."""

import torch
from torch.testing import assert_close

from ltx2_diffusers.training.components import PairCritic, WaveCritics, trained_parameters
from ltx2_diffusers.training.components.critics import (
    pair_adversarial_loss,
    pair_critic_loss,
    wave_adversarial_losses,
    wave_critic_loss,
)
from ltx2_diffusers.training.components.step import held
from tests.training.components.made import sound, video


def first_minus_second(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """A critic whose score is a difference of means."""
    return (first.mean() - second.mean())[None]


def doubled(waveform: torch.Tensor) -> list[list[torch.Tensor]]:
    """Two critics with a feature each: the sound, and a score of 2."""
    return [[waveform, torch.full((1,), 2.0)], [0 * waveform, torch.full((1,), 2.0)]]


def test_pair_losses_by_hand():
    made, real = torch.zeros(1, 3, 1, 2, 2), torch.full((1, 3, 1, 2, 2), 0.25)
    # Scores are 0.25 in the right order and -0.25 in the other: both are 0.75 short of the margin.
    assert_close(pair_critic_loss(first_minus_second, made, real), torch.tensor(0.75))
    assert_close(pair_adversarial_loss(first_minus_second, made, real), torch.tensor(0.25))
    assert pair_adversarial_loss(first_minus_second, real, real) == 0


def test_wave_losses_by_hand():
    made, real = torch.zeros(1, 1, 4), torch.full((1, 1, 4), 0.5)
    adversarial, features = wave_adversarial_losses(doubled, made, real)
    assert_close(adversarial, torch.tensor(1.0))
    assert_close(features, torch.tensor(0.25))
    assert_close(wave_critic_loss(doubled, made, real), torch.tensor(5.0))


def learned(critic: torch.nn.Module, loss) -> tuple[float, float]:
    """The loss of a critic before and after forty steps."""
    optimizer, values = torch.optim.AdamW(critic.parameters(), 5e-3), []
    for _ in range(40):
        optimizer.zero_grad()
        values.append(loss())
        values[-1].backward()
        optimizer.step()
    return values[0].item(), values[-1].item()


def test_a_pair_critic_learns_to_tell_blurred_videos():
    torch.manual_seed(0)
    real = video(2, 5, 32)
    made = torch.nn.functional.avg_pool3d(real, (1, 5, 5), stride=1, padding=(0, 2, 2))
    critic = PairCritic(channels=8)
    assert critic(made, real).shape == (2, 1, 2, 4, 4)
    before, after = learned(critic, lambda: pair_critic_loss(critic, made, real))
    assert after < 0.5 * before


def test_wave_critics_learn_to_tell_noise():
    torch.manual_seed(0)
    real = sound(1, 2000)
    made = 0.2 * torch.randn_like(real)
    critics = WaveCritics(channels=4)
    # Three periods and two scales, with three layers and the scores each; channels are judged apart.
    judged = critics(real)
    assert [len(features) for features in judged] == [4] * 5
    assert {features[-1].shape[:2] for features in judged} == {(2, 1)}
    before, after = learned(critics, lambda: wave_critic_loss(critics, made, real))
    assert after < 0.5 * before


def test_a_held_critic_passes_gradients_on_and_takes_none():
    critic, made = PairCritic(channels=4), video(1, 5, 32).requires_grad_()
    with held(critic):
        pair_adversarial_loss(critic, made, video(1, 5, 32, seed=1)).backward()
    assert made.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in critic.parameters())
    assert len(trained_parameters(critic)) == len(list(critic.parameters()))
