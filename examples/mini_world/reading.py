"""What a clip shows and how it sounds, read from its frames and samples by exact analysis: nothing here is learnt.

Shapes: F frames, H height, W width, N samples of sound, T moments of sound. Lengths are parts of the picture's shorter
side, as in scenes.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .drawing import DISTANCES, FRAME_RATE, GROWTH
from .scenes import COLOURS, DIRECTIONS, PITCHES_HZ, SIZES, Scene
from .sounding import HARMONICS, LOUDNESS

LEAST_CONTRAST = 0.25
"""Distance of a shape's colour to the background's (RGB in [0, 1]) below which nothing is seen; colours differ by 0.55."""

# What the world's scenes do in the course of a clip, at the least. A motion is what comes nearest to that, if it comes
# half the way.
TRAVEL = 0.34
SWELL = math.log(GROWTH[1] / GROWTH[0])
TURN = 0.25
FALL = 0.75 * TRAVEL

WORST_FIT = 0.04
"""Mean squared difference of coverage above which nothing has a shape: circles to stars stay below 0.02 at 20 dB, and most of
what is none lies above."""
ANGLES = 36
"""Angles at which shapes are compared, in a full turn."""
BLURS = (0.04, 0.1, 0.2, 0.35)
"""Half the width of the edges at which shapes are compared, in radii."""
PATCH, PATCH_REACH = 32, 1.8
"""Pixels across the patch in which shapes are compared, and how many radii it reaches from the centre."""
LEAST_CLICK = 0.05
"""Root mean square of 10 ms of noise below which it is no click; the world's are of 0.3."""
GAP_S = 0.15
"""Least time between two bounces or two clicks."""


@dataclass(frozen=True)
class Seen:
    """What frames show.

    Args:
        background: Name of its colour.
        colour: Name of the shape's colour at the start; empty if there is no shape.
        new_colour: Name of the shape's colour at the end.
        shape: Name of the shape that fits best; empty if none fits.
        errors: Name of a shape to the mean squared difference of its coverage.
        motion: One of `MOTIONS`; empty if there is no shape.
        centres: (x, y) `[F, 2]`.
        radii: Of circles of the same area `[F]`.
        coverage: How much of a pixel the shape covers `[F, H, W]`, in [0, 1].
        turn: By how many turns the shape turns.
        bounces_s: When it hits the floor.
    """

    background: str
    colour: str
    new_colour: str
    shape: str
    errors: dict[str, float]
    motion: str
    centres: Tensor
    radii: Tensor
    coverage: Tensor
    turn: float
    bounces_s: list[float]


@dataclass(frozen=True)
class Heard:
    """What is heard.

    Args:
        pitch_hz: Of the tone; 0 if there is none.
        shape: Name of the shape whose pitch is nearest; empty if there is no tone.
        loudness: Amplitude of the tone of both sides together, clicks left out.
        size: Name of the size that sounds that loud.
        pan: From 0, left, to 1, right, `[T]`.
        pan_s: The moments of `pan`.
        clicks_s: When clicks begin.
    """

    pitch_hz: float
    shape: str
    loudness: float
    size: str
    pan: Tensor
    pan_s: Tensor
    clicks_s: list[float]


def judge(scene: Scene, frames: Tensor, audio: Tensor | None = None, rate: int = 0) -> dict[str, Any]:
    """Compare a clip with the scene that it should show.

    Args:
        scene: What was asked for. Place, size of steps and moments of bounces are the clip's to choose.
        frames: `[F, 3, H, W]` or `[F, H, W, 3]` in [0, 1].
        audio: Waveform `[2, N]` or `[N]`; what is heard is left out without it.
        rate: Its samples in a second.

    Returns:
        Name to whether that is right, or to a number; None where a number has no meaning for this scene.
    """
    seen = see(frames)
    verdict = judged_picture(scene, seen)
    if audio is not None:
        verdict |= judged_sound(scene, seen, hear(audio, rate), frames.shape)
    return verdict


def judged_picture(scene: Scene, seen: Seen) -> dict[str, Any]:
    """Whether frames show what they should."""
    size = nearest_size(float(seen.radii.median()))
    colours = (scene.colour, scene.new_colour) if scene.new_colour else (scene.colour,)
    return {
        "shape": seen.shape == scene.shape,
        # Whether a colour changes is a question of motion; what it changes to is one of colour.
        "colour": colours == (seen.colour, seen.new_colour)[: len(colours)],
        "background": seen.background == scene.background,
        "direction": seen.motion == scene.motion,
        "size": size == nearest_size(scene.radius) if scene.motion not in ("grows", "shrinks") else None,
    }


def judged_sound(scene: Scene, seen: Seen, heard: Heard, frames_shape: torch.Size) -> dict[str, Any]:
    """Whether sound is that of the scene, and how well it follows the picture."""
    bounces = scene.motion == "bounces"
    return {
        "pitch": heard.shape == scene.shape,
        "loudness": heard.size == nearest_size(float(seen.radii.median())),
        "pan_error": pan_error(seen, heard, frames_shape),
        "pan_correlation": pan_correlation(seen, heard) if scene.motion in ("left", "right") else None,
        "bounce_offset_ms": bounce_offset_ms(seen, heard) if bounces else None,
        "clicks": len(heard.clicks_s) == 0 if not bounces else len(heard.clicks_s) > 0,
    }


def nearest_size(radius: float) -> str:
    """Name of the size of a shape."""
    return min(SIZES, key=lambda name: abs(SIZES[name] - radius))


def nearest_colour(colour: Tensor) -> str:
    """Name of the colour that is nearest to `[3]` in [0, 1]."""
    return min(COLOURS, key=lambda name: float((colour - torch.tensor(COLOURS[name])).norm()))


def bounce_offset_ms(seen: Seen, heard: Heard) -> float:
    """Median distance of a bounce that is seen to the next click, in milliseconds; infinite if either is missing."""
    if not seen.bounces_s or not heard.clicks_s:
        return math.inf
    seen_s, clicks_s = torch.tensor(seen.bounces_s), torch.tensor(heard.clicks_s)
    return 1000 * float((seen_s[:, None] - clicks_s).abs().amin(1).quantile(0.5))


def pan_error(seen: Seen, heard: Heard, frames_shape: torch.Size) -> float:
    """Mean distance of where the sound comes from to where the shape is, as part of the picture's width."""
    height, width = frames_shape[-2:] if frames_shape[1] == 3 else frames_shape[1:3]
    return float((heard.pan - _at(heard.pan_s, seen.centres[:, 0]) * min(height, width) / width).abs().mean())


def pan_correlation(seen: Seen, heard: Heard) -> float:
    """Correlation of where the sound comes from with where the shape is; 0 if either stands still."""
    pair = torch.stack([heard.pan, _at(heard.pan_s, seen.centres[:, 0])])
    return float(torch.corrcoef(pair)[0, 1].nan_to_num()) if len(heard.pan) > 1 else 0.0


def _at(moments_s: Tensor, values: Tensor) -> Tensor:
    """Values of frames `[F]` at moments, linearly interpolated."""
    place = (moments_s * FRAME_RATE).clamp(0, len(values) - 1)
    first = place.long().clamp(max=max(len(values) - 2, 0))
    return torch.lerp(values[first], values[(first + 1).clamp(max=len(values) - 1)], place - first)


# Picture


def see(frames: Tensor) -> Seen:
    """Read frames `[F, 3, H, W]` or `[F, H, W, 3]` in [0, 1], 24 of them in a second."""
    frames = (frames if frames.shape[1] == 3 else frames.movedim(-1, 1)).detach().float().cpu()
    background, ground = ground_of(frames)
    colours = fills_of(frames, ground)
    coverage = coverage_of(frames, ground, colours)
    centres, radii = placed(coverage)
    errors, turn = matched(coverage, centres, radii)
    shape = min(errors, key=errors.__getitem__)
    # The colour changes in the middle fifth of a clip.
    part = max(1, int(0.35 * len(frames)))
    ends = (colours[:part].median(0).values, colours[-part:].median(0).values)
    names = [nearest_colour(end) if (end - ground).norm() > LEAST_CONTRAST else "" for end in ends]
    bounces_s = bounces_of(centres[:, 1])
    motion = motion_of(centres, radii, 0.0 if shape == "circle" else turn, names[0] != names[1]) if any(names) else ""
    shape = shape if any(names) and errors[shape] < WORST_FIT else ""
    return Seen(background, *names, shape, errors, motion, centres, radii, coverage, turn, bounces_s)


def ground_of(frames: Tensor) -> tuple[str, Tensor]:
    """Name of the colour of most pixels at the border of `[F, 3, H, W]`, and their median colour `[3]`."""
    edge = max(2, min(frames.shape[-2:]) // 20)
    inside = torch.zeros(frames.shape[-2:], dtype=torch.bool)
    inside[edge:-edge, edge:-edge] = True
    border = frames.movedim(1, -1)[:, ~inside].reshape(-1, 3)
    names = list(COLOURS)
    nearest = torch.cdist(border, torch.tensor([COLOURS[name] for name in names])).argmin(1)
    most = int(nearest.bincount(minlength=len(names)).argmax())
    return names[most], border[nearest == most].median(0).values


def fills_of(frames: Tensor, ground: Tensor) -> Tensor:
    """Colour `[F, 3]` of what stands out most from the ground in `[F, 3, H, W]`."""
    smooth = _smooth(frames).flatten(2)
    contrast = (smooth - ground[:, None]).square().sum(1).sqrt()
    # The smallest shape covers three hundredths of the widest picture; half of that is its core.
    peak = contrast.quantile(0.985, dim=1, keepdim=True)
    core = (contrast >= 0.9 * peak)[:, None].float()
    return (smooth * core).sum(-1) / core.sum(-1)


def _smooth(frames: Tensor) -> Tensor:
    """Mean of 3x3 pixels of `[..., C, H, W]`."""
    return F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def coverage_of(frames: Tensor, ground: Tensor, colours: Tensor) -> Tensor:
    """Where pixels of `[F, 3, H, W]` lie on the way from the ground to the shape's colours: `[F, H, W]` in [0, 1]."""
    way = colours - ground
    # Where the shape cannot be told from the ground, as it may be in the middle of a change, there is none.
    length = way.square().sum(1).clamp(min=LEAST_CONTRAST**2)
    along = torch.einsum("fchw,fc->fhw", frames - ground[:, None, None], way)
    return (along / length[:, None, None]).clamp(0, 1)


def placed(coverage: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (x, y) `[F, 2]` and radii `[F]` of circles of the same area."""
    height, width = coverage.shape[1:]
    pixel = 1 / min(height, width)
    x, y = (torch.arange(width) + 0.5) * pixel, (torch.arange(height) + 0.5) * pixel
    # Noise is cut away; edges, which lie evenly about a half, keep their place.
    sharp = ((_smooth(coverage[:, None])[:, 0] - 0.3) / 0.4).clamp(0, 1)
    near = sharp
    for _ in range(3):
        mass = near.sum((1, 2)).clamp(min=1e-6)
        centres = torch.stack([(near.sum(1) * x).sum(1), (near.sum(2) * y).sum(1)], dim=1) / mass[:, None]
        radii = (mass / math.pi).sqrt() * pixel
        # What lies far from the centre is no part of the shape, whose tips reach 1.5 radii.
        far = torch.hypot(x - centres[:, :1, None], y[:, None] - centres[:, 1:, None])
        near = sharp * (far < 1.8 * radii[:, None, None].clamp(min=0.05))
    return centres, radii


@cache
def templates() -> Tensor:
    """Coverage `[S, L, A, P]` by shapes, edges and angles in a patch, all of the area of a circle of radius 1."""
    place = (torch.arange(PATCH) + 0.5) / PATCH * 2 - 1
    x, y = place * PATCH_REACH, place[:, None] * PATCH_REACH
    angles = torch.arange(ANGLES)[:, None, None] * (2 * math.pi / ANGLES)
    cos, sin = angles.cos(), angles.sin()
    drawn = []
    for distance in DISTANCES.values():
        inside = torch.linspace(-2, 2, 801)
        area = float((distance(inside, inside[:, None], torch.tensor(1.0)) < 0).sum()) * 0.005**2
        radius = torch.tensor(math.sqrt(math.pi / area))
        to_edge = distance(x * cos + y * sin, y * cos - x * sin, radius)
        drawn.append(torch.stack([(0.5 - to_edge / (2 * blur)).clamp(0, 1) for blur in BLURS]))
    return torch.stack(drawn).flatten(3)


def patches(coverage: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """Coverage `[F, P]` about the centres, in units of the radii."""
    height, width = coverage.shape[1:]
    place = ((torch.arange(PATCH) + 0.5) / PATCH * 2 - 1) * PATCH_REACH
    offset = torch.stack(torch.meshgrid(place, place, indexing="xy"), dim=-1)
    where = centres[:, None, None] + offset * radii[:, None, None, None].clamp(min=0.02)
    where = where * min(height, width) / torch.tensor([width, height]) * 2 - 1
    return F.grid_sample(coverage[:, None], where, align_corners=False).flatten(1)


def matched(coverage: Tensor, centres: Tensor, radii: Tensor) -> tuple[dict[str, float], float]:
    """Errors of the shapes, each turning as fits it best, and by how many turns the best one turns."""
    shown, known = patches(coverage, centres, radii), templates()
    products = torch.einsum("fp,slap->fsla", shown, known)
    errors = (shown.square().sum(1)[:, None, None, None] - 2 * products + known.square().sum(-1)) / shown.shape[1]
    errors = errors.amin(2)
    rates = torch.arange(-ANGLES // 2, ANGLES // 2 + 1)
    part = torch.linspace(0, 1, len(shown))
    steps = (part[:, None, None] * rates[:, None] + torch.arange(ANGLES)).round().long() % ANGLES
    count = len(DISTANCES)
    paths = errors.gather(2, steps.flatten(1)[:, None].expand(-1, count, -1)).mean(0)
    per_rate = paths.unflatten(1, (len(rates), ANGLES)).amin(2)
    best = int(per_rate.amin(1).argmin())
    turn = int(rates[per_rate[best].argmin()]) / ANGLES
    return dict(zip(DISTANCES, per_rate.amin(1).tolist())), turn


def motion_of(centres: Tensor, radii: Tensor, turn: float, changes: bool) -> str:
    """What the shape does: of the world's motions the one that it comes nearest to."""
    part = max(1, len(radii) // 6)
    travel = (centres[-part:].mean(0) - centres[:part].mean(0)) / TRAVEL
    first, last = (radii[some].mean().clamp(min=0.01) for some in (slice(part), slice(-part, None)))
    growth = float((last / first).log()) / SWELL
    # Means of the first and last frames lie a bit nearer together than the ends.
    nearer = max(0.5, 1 - part / max(len(radii), 1))
    amounts = {name: float(travel @ torch.tensor(way)) / nearer for name, way in DIRECTIONS.items()}
    amounts |= {"grows": growth, "shrinks": -growth, "turns": abs(turn) / TURN, "changes": float(changes)}
    amounts["bounces"] = max((rise for _, rise in _peaks(centres[:, 1], 0.0)), default=0.0) / FALL
    most = max(amounts, key=amounts.__getitem__)
    return most if amounts[most] > 0.5 else "stays"


def _peaks(values: Tensor, least: float) -> list[tuple[int, float]]:
    """Maxima of a curve `[F]` inside of it, and by how much they stand above what lies beside them, at least `least`."""
    gap, found = int(GAP_S * FRAME_RATE), []
    for at in range(1, len(values) - 1):
        if values[at] < values[max(0, at - gap) : at + gap + 1].max():
            continue
        higher = (values > values[at]).nonzero().flatten()
        first = int(higher[higher < at].max()) if bool((higher < at).any()) else 0
        last = int(higher[higher > at].min()) if bool((higher > at).any()) else len(values) - 1
        rise = float(values[at] - torch.maximum(values[first : at + 1].min(), values[at : last + 1].min()))
        if rise > least:
            found.append((at, rise))
    return found


def bounces_of(heights: Tensor) -> list[float]:
    """Seconds at which a track `[F]` of y, which grows downwards, has a kink at the floor."""
    return [kink_of(heights, at) / FRAME_RATE for at, _ in _peaks(heights, FALL / 2)]


def kink_of(values: Tensor, at: int, reach: int = 5) -> float:
    """Where between frames a curve turns back: two slopes and a common curvature are fitted about frame `at`."""
    frames = torch.arange(max(0, at - reach), min(len(values), at + reach + 1))
    places = at + torch.linspace(-1.5, 1.5, 121)
    past = frames - places[:, None]
    terms = torch.stack([torch.ones_like(past), past.clamp(max=0), past.clamp(min=0), past.square()], dim=-1)
    curve = values[frames].expand(len(places), -1)[..., None]
    left = curve - terms @ (torch.linalg.pinv(terms) @ curve)
    return float(places[left.square().sum((1, 2)).argmin()])


# Sound


def hear(audio: Tensor, rate: int) -> Heard:
    """Read a waveform `[2, N]` or `[N]`, of `rate` samples in a second."""
    audio = torch.atleast_2d(audio.detach().float().cpu())
    audio = audio.expand(2, -1) if len(audio) == 1 else audio
    window = 2 ** round(math.log2(0.08 * rate))
    spectrum = _spectrum(audio, window, window // 4)
    pitch_hz = pitch_of(spectrum.square().sum(0).sqrt().median(-1).values, rate)
    shape = min(PITCHES_HZ, key=lambda name: abs(math.log(PITCHES_HZ[name] / pitch_hz))) if pitch_hz else ""
    low = max(0, int((pitch_hz or 100) * window / rate) - 2)
    levels = spectrum[:, low : low + 6].square().sum(1).sqrt()
    # Of a tone with equal power everywhere the angle between the levels of both sides says where it is.
    pan = torch.atan2(levels[1], levels[0]) / (math.pi / 2)
    moments_s = torch.arange(levels.shape[1]) * (window // 4) / rate
    amplitude = _amplitude(audio, rate)
    size = min(LOUDNESS, key=lambda name: abs(math.log(LOUDNESS[name] / max(amplitude, 1e-9))))
    return Heard(pitch_hz, shape, amplitude, size, pan, moments_s, clicks_of(audio, rate))


def _spectrum(audio: Tensor, window: int, hop: int) -> Tensor:
    """Magnitudes `[2, K, T]` at moments that are `hop` samples apart, the first of them 0."""
    if audio.shape[-1] <= window // 2:
        audio = F.pad(audio, (0, window))
    shape = torch.hann_window(window)
    return torch.stft(audio, window, hop, window=shape, return_complex=True).abs() * (2 / float(shape.sum()))


def _amplitude(audio: Tensor, rate: int) -> float:
    """Amplitude of a tone with the world's harmonics, from the middle of the powers of parts of 20 ms."""
    size = max(1, min(rate // 50, audio.shape[-1]))
    power = audio.unfold(-1, size, size).square().mean(-1).sum(0).median()
    return math.sqrt(2 * float(power) / sum(part**2 for part in HARMONICS))


def pitch_of(magnitudes: Tensor, rate: int) -> float:
    """Fundamental of a tone with harmonics, in hertz, from magnitudes `[K]`; 0 if nothing stands out."""
    candidates = torch.logspace(math.log2(120), math.log2(min(3600, 0.45 * rate)), 1200, base=2)
    per_bin = (len(magnitudes) - 1) / (rate / 2)
    total = torch.zeros_like(candidates)
    for harmonic in (1, 2, 3, 4):
        place = (candidates * harmonic * per_bin).clamp(max=len(magnitudes) - 1.001)
        first = place.long()
        # Weights that fall fast keep a tone from being taken for harmonics of one an octave below.
        total += torch.lerp(magnitudes[first], magnitudes[first + 1], place - first) / harmonic**2
    if total.max() < 6 * magnitudes.median() or total.max() < 1e-4:
        return 0.0
    return float(candidates[total.argmax()])


def clicks_of(audio: Tensor, rate: int) -> list[float]:
    """Seconds at which short noise begins: what rises above a tone at most frequencies at once."""
    window = 2 ** round(math.log2(0.01 * rate))
    hop = window // 8
    spectrum = _spectrum(audio, window, hop).square().sum(0).sqrt()
    first, last = int(500 * window / rate), int(0.4 * window)
    # A tone with a few harmonics fills a few lines; the median line holds noise alone. The factor makes that the root
    # mean square of white noise: what a Hann window leaves of it, and the median of a Rayleigh distribution.
    noise = spectrum[first:last].median(0).values * (math.sqrt(window / 6) / 1.18)
    floor = float(noise.median())
    least = max(LEAST_CLICK, 6 * floor, 0.3 * float(noise.max()))
    gap, found = int(GAP_S * rate / hop), []
    for at in (noise > least).nonzero().flatten().tolist():
        if noise[at] < noise[max(0, at - gap) : at + gap + 1].max():
            continue
        before = (noise[:at] < (noise[at] + floor) / 2).nonzero().flatten()
        found.append((int(before[-1]) + 0.5 if len(before) else 0.0) * hop / rate)
    return found
