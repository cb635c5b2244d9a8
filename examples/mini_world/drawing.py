"""Frames of scenes, drawn from distances to outlines with soft edges of one pixel.

Shapes: B scenes, F frames, H height, W width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .scenes import COLOURS, DIRECTIONS, Scene

FRAME_RATE = 24
LINE = 0.03
"""Half the width of an outline."""
GROWTH = (0.16, 0.29)
"""Radii between which shapes grow and shrink."""


def draw(scenes: Sequence[Scene], num_frames: int, height: int, width: int) -> Tensor:
    """Videos `[B, 3, F, H, W]` in [-1, 1] of scenes."""
    return torch.stack([_video(scene, num_frames, height, width) for scene in scenes])


def _video(scene: Scene, num_frames: int, height: int, width: int) -> Tensor:
    part = torch.linspace(0, 1, num_frames) if num_frames > 1 else torch.tensor([0.5])
    pixel = 1 / min(height, width)
    x = (torch.arange(width) + 0.5) * pixel
    y = ((torch.arange(height) + 0.5) * pixel)[:, None]
    centre = track(scene, num_frames)[..., None, None]
    distance = DISTANCES[scene.shape](
        *_turned(x - centre[:, 0], y - centre[:, 1], turns(scene, part)[:, None, None]),
        radii(scene, part)[:, None, None],
    )
    ground = torch.tensor(COLOURS[scene.background])
    if scene.colour == "outline":
        distance, colours = distance.abs() - LINE, torch.ones(num_frames, 3)
    else:
        colours = fills(scene, part)
    covered = (0.5 - distance / pixel).clamp(0, 1)[:, None]
    video = torch.lerp(ground[:, None, None], colours[..., None, None], covered)
    return video.transpose(0, 1) * 2 - 1


def track(scene: Scene, num_frames: int) -> Tensor:
    """Centres (x, y) `[F, 2]` of the shape."""
    part = torch.linspace(0, 1, num_frames) if num_frames > 1 else torch.tensor([0.5])
    return path(scene, part, (num_frames - 1) / FRAME_RATE)


def path(scene: Scene, part: Tensor, duration_s: float) -> Tensor:
    """Centres (x, y) `[N, 2]` of the shape at parts of the clip `[N]`."""
    place = torch.tensor(scene.place).expand(len(part), 2)
    if scene.motion in DIRECTIONS:
        return place + (part[:, None] - 0.5) * scene.reach * torch.tensor(DIRECTIONS[scene.motion])
    if scene.motion == "bounces":
        phase = ((part * duration_s - scene.first_bounce_s) / scene.period_s) % 1
        height = scene.reach * (1 - (2 * phase - 1) ** 2)
        return torch.stack([place[:, 0], place[:, 1] + scene.reach / 2 - height], dim=1)
    return place


def radii(scene: Scene, part: Tensor) -> Tensor:
    """Radius at parts of the clip."""
    small, big = GROWTH
    if scene.motion == "grows":
        return small + (big - small) * part
    if scene.motion == "shrinks":
        return big - (big - small) * part
    return torch.full_like(part, scene.radius)


def turns(scene: Scene, part: Tensor) -> Tensor:
    """Angle in turns at parts of the clip."""
    return scene.turned + (0.25 * part if scene.motion == "turns" else torch.zeros_like(part))


def fills(scene: Scene, part: Tensor) -> Tensor:
    """Colour `[N, 3]` at parts of the clip; it changes in the middle fifth."""
    first = torch.tensor(COLOURS[scene.colour])
    last = torch.tensor(COLOURS[scene.new_colour or scene.colour])
    return torch.lerp(first, last, ((part - 0.4) / 0.2).clamp(0, 1)[:, None])


def _turned(x: Tensor, y: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)
    return x * cos + y * sin, y * cos - x * sin


# Signed distances of points (x, y) to the outline: negative inside. All shapes cover about the area of the circle.


def circle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.hypot(x, y) - radius


def square(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.886 * radius


def triangle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    # Equilateral, standing on a side; its centre of gravity is the centre.
    inner = 0.74 * radius
    return torch.maximum(x.abs() * (math.sqrt(3) / 2) - y / 2, y) - inner


def cross(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    long, short = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    return torch.maximum(long - 1.19 * radius, short - 0.397 * radius)


def star(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    # Five tips, one upwards: the point is folded into the tenth of the plane beside that tip.
    tip, waist = 1.45 * radius, 0.68 * radius
    length, fifth = torch.hypot(x, y), 2 * math.pi / 5
    angle = (torch.remainder(torch.atan2(x, -y) + fifth / 2, fifth) - fifth / 2).abs()
    px, py = length * torch.sin(angle), length * torch.cos(angle)
    ex, ey = waist * math.sin(fifth / 2), waist * math.cos(fifth / 2) - tip
    return (px * -ey - (py - tip) * -ex) / torch.hypot(ex, ey)


DISTANCES = {function.__name__: function for function in (circle, square, triangle, cross, star)}
