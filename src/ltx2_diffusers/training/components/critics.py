"""Small networks that learn to tell what is made from what is real, and the losses of both sides.

Shapes: B batch, C channels, F frames, H height, W width, N samples.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SLOPE = 0.2


class PairCritic(nn.Module):
    """Judges, patch by patch, which of two videos is the real one; LTX-Video's "reconstruction GAN" (arXiv 2501.00103).

    It sees original and reconstruction side by side, so that it need not know what videos look like, only which of
    the two has been through the autoencoder.

    Args:
        in_channels: Channels of one video. Default 3.
        channels: Width of the first layer, doubled by each further one. Default 32.
        layers: Layers that halve rows and columns; all but the first one halve frames too. Default 3.
    """

    def __init__(self, in_channels: int = 3, channels: int = 32, layers: int = 3) -> None:
        super().__init__()
        widths = [2 * in_channels, *(channels * 2**level for level in range(layers))]
        self.convs = nn.ModuleList(
            nn.Conv3d(width, wider, 3, stride=(1 if level == 0 else 2, 2, 2), padding=1)
            for level, (width, wider) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for width in widths[2:])
        self.out = nn.Conv3d(widths[-1], 1, 3, padding=1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Scores of patches of two videos `[B, C, F, H, W]`: high where the first looks like the real one."""
        x = F.leaky_relu(self.convs[0](torch.cat([first, second], dim=1)), _SLOPE)
        for conv, norm in zip(self.convs[1:], self.norms):
            x = F.leaky_relu(norm(conv(x)), _SLOPE)
        return self.out(x)


def pair_adversarial_loss(critic: nn.Module, made: Tensor, real: Tensor) -> Tensor:
    """What the maker of `made` loses by the critic's scores of both orders; 0 for a critic that cannot tell."""
    return 0.5 * (critic(real, made) - critic(made, real)).mean()


def pair_critic_loss(critic: nn.Module, made: Tensor, real: Tensor) -> Tensor:
    """Hinge loss of a critic that has to score real first with at least 1 and made first with at most -1."""
    return 0.5 * (F.relu(1 - critic(real, made)).mean() + F.relu(1 + critic(made, real)).mean())


class _StridedStack(nn.Module):
    """Strided convolutions over time; gives what every layer makes, the scores last.

    Args:
        channels: Width of the first layer, doubled by each further one.
        layers: Layers with a stride.
        period: Samples a row; time is then folded into rows of this length. 1 convolves the samples as they come.
        stride: Of each layer along time.
    """

    def __init__(self, channels: int, layers: int, period: int, stride: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, *(channels * 2**level for level in range(layers))]
        size, padding = (2 * stride - 1, 1), (stride - 1, 0)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, wider, size, stride=(stride, 1), padding=padding) for width, wider in pairwise(widths)
        )
        self.out = nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0))

    def forward(self, waveform: Tensor) -> list[Tensor]:
        """Features and scores of `[B, 1, N]`."""
        x = F.pad(waveform, (0, -waveform.shape[-1] % self.period)).unflatten(-1, (-1, self.period))
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), _SLOPE)
            features.append(x)
        return [*features, self.out(x)]


class WaveCritics(nn.Module):
    """Judges sound by its samples at several periods and at several rates, as the critics of HiFi-GAN do.

    Args:
        periods: Samples between those that one critic sees side by side. Default (2, 3, 5).
        scales: How many samples are averaged to one before a critic sees them. Default (1, 2).
        channels: Width of every critic's first layer. Default 16.
        layers: Layers of every critic. Default 3.
    """

    def __init__(
        self, periods: Sequence[int] = (2, 3, 5), scales: Sequence[int] = (1, 2), channels: int = 16, layers: int = 3
    ) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.by_period = nn.ModuleList(_StridedStack(channels, layers, period, 3) for period in periods)
        self.by_scale = nn.ModuleList(_StridedStack(channels, layers, 1, 4) for _ in scales)

    def forward(self, waveform: Tensor) -> list[list[Tensor]]:
        """Features of every critic on waveforms `[B, C, N]`, its scores last; channels are judged one by one."""
        mono = waveform.flatten(0, 1)[:, None]
        scaled = (F.avg_pool1d(mono, scale) if scale > 1 else mono for scale in self.scales)
        pairs = [*((critic, mono) for critic in self.by_period), *zip(self.by_scale, scaled)]
        return [critic(sound) for critic, sound in pairs]


def wave_adversarial_losses(critics: nn.Module, made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """What the maker loses: the squared distance of its scores from 1, and that of features from those of real sound."""
    judged = critics(made)
    with torch.no_grad():
        wanted = critics(real)
    adversarial = torch.stack([(1 - features[-1]).square().mean() for features in judged]).mean()
    distances = [F.l1_loss(a, b) for made_by, real_by in zip(judged, wanted) for a, b in zip(made_by[:-1], real_by)]
    return adversarial, torch.stack(distances).mean()


def wave_critic_loss(critics: nn.Module, made: Tensor, real: Tensor) -> Tensor:
    """Squared distances of the scores of real sound from 1 and of made sound from 0 (LSGAN)."""
    pairs = zip(critics(real), critics(made))
    return torch.stack([(1 - r[-1]).square().mean() + m[-1].square().mean() for r, m in pairs]).mean()
