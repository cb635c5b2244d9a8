"""What the miniature world holds: scenes of one coloured shape that does something, and captions that say so.

Lengths are parts of the picture's shorter side; times are parts of the clip, or seconds where a name says so.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

COLOURS = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.70, 0.15),
    "blue": (0.10, 0.20, 0.95),
    "yellow": (0.98, 0.90, 0.10),
    "purple": (0.60, 0.10, 0.75),
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
}
SHAPES = ("circle", "square", "triangle", "cross")
NEW_SHAPE = "star"
"""A shape that the miniature never saw; it is what a LoRA teaches it."""
PITCHES_HZ = {"circle": 200.0, "square": 400.0, "triangle": 700.0, "cross": 1200.0, NEW_SHAPE: 2200.0}
"""Multiples of 100 Hz: a spectrogram of 100 frames a second knows no phases, so of one that does not change a vocoder,
which does the same at every frame, can only make a sound that repeats with the frames."""
SIZES = {"small": 0.20, "big": 0.28}
"""Radius of the circle of a size; other shapes cover about the same area."""
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
MOTIONS = (*DIRECTIONS, "bounces", "grows", "shrinks", "turns", "changes", "stays")

_VERBS = {
    **{direction: (f"moves {direction}", f"slides {direction}") for direction in ("up", "down")},
    **{
        direction: (f"moves to the {direction}", f"moves {direction}", f"slides to the {direction}")
        for direction in ("left", "right")
    },
    "bounces": ("bounces", "bounces on the floor"),
    "grows": ("grows", "gets bigger"),
    "shrinks": ("shrinks", "gets smaller"),
    "turns": ("turns", "spins"),
    "stays": ("stands still", "does not move"),
}


@dataclass(frozen=True)
class Scene:
    """One shape on one background.

    Args:
        shape: Name of a shape.
        colour: Of the shape, a name of `COLOURS`.
        background: Another name of `COLOURS`.
        motion: One of `MOTIONS`.
        radius: Of a circle of that size, 0.15 to 0.3.
        place: Centre (x, y) in the middle of what the shape does; x grows to the right, y downwards.
        reach: How far it moves in all, or how high it bounces.
        new_colour: What it changes to, for "changes".
        period_s: Seconds from one bounce to the next.
        first_bounce_s: When it first hits the floor.
        turned: Angle in turns at the start, for training pictures.
    """

    shape: str
    colour: str
    background: str
    motion: str
    radius: float
    place: tuple[float, float]
    reach: float = 0.0
    new_colour: str = ""
    period_s: float = 0.7
    first_bounce_s: float = 0.3
    turned: float = 0.0

    def bounces_s(self, duration_s: float) -> list[float]:
        """When the shape hits the floor."""
        if self.motion != "bounces":
            return []
        count = max(0, math.floor((duration_s - self.first_bounce_s) / self.period_s) + 1)
        return [self.first_bounce_s + number * self.period_s for number in range(count)]


def triples(split: str, shapes: tuple[str, ...] = SHAPES) -> list[tuple[str, str, str]]:
    """The (shape, colour, background) of a split; those of "train", "validation" and "held_out" share none.

    Every shape, colour and background occurs in training, each with most of the others.
    """
    names, found = list(COLOURS), []
    for (i, shape), (j, colour), steps in product(enumerate(shapes), enumerate(names), range(1, len(names))):
        # Of the six backgrounds of a shape and colour, one is held out and one is kept for validation.
        place = (steps - 1 - i - j) % 6
        if split == {0: "held_out", 3: "validation"}.get(place, "train"):
            found.append((shape, colour, names[(j + steps) % len(names)]))
    return found


def random_scene(
    draw: random.Random,
    split: str = "train",
    aspect: float = 1.0,
    motion: str = "",
    shapes=SHAPES,
    spread: float = 0.1,
) -> Scene:
    """A scene of a split.

    Args:
        draw: Where chance comes from.
        split: "train", "validation" or "held_out".
        aspect: Width of the picture by its height, at least 1.
        motion: One of `MOTIONS`; empty draws one.
        shapes: Names of shapes to draw from.
        spread: Part of the room that places are drawn from, around the middle. No caption says a place, and a small
            transformer learns what captions do say much sooner if it has not to find out the place first.
    """
    shape, colour, background = draw.choice(triples(split, shapes))
    motion = motion or draw.choice(MOTIONS)
    while motion == "turns" and shape == "circle":
        shape, colour, background = draw.choice(triples(split, shapes))
    radius = SIZES[draw.choice(list(SIZES))] * draw.uniform(0.97, 1.03)
    largest = 0.29 if motion in ("grows", "shrinks") else radius
    reach = draw.uniform(0.36, 0.40)
    free_x, free_y = (max(0.0, side - 2.2 * largest) for side in (aspect, 1.0))
    if motion in ("left", "right"):
        reach, free_x = min(reach, free_x), max(0.0, free_x - reach)
    elif motion in ("up", "down", "bounces"):
        reach, free_y = min(reach, free_y), max(0.0, free_y - reach)
    others = [name for name in COLOURS if name not in (colour, background)]
    return Scene(
        shape,
        colour,
        background,
        motion,
        radius,
        (aspect / 2 + spread * free_x * draw.uniform(-0.5, 0.5), 0.5 + spread * free_y * draw.uniform(-0.5, 0.5)),
        reach,
        draw.choice(others) if motion == "changes" else "",
        draw.uniform(0.65, 0.75),
        draw.uniform(0.25, 0.4),
    )


def caption(scene: Scene, draw: random.Random, plain: bool = False) -> str:
    """A sentence that is true of a scene.

    Args:
        scene: What it is about.
        draw: Where chance comes from: wording, order, and whether it is said that something is big.
        plain: Whether to take the first wording of everything, and to leave out that something is big.
    """
    size = min(SIZES, key=lambda name: abs(SIZES[name] - scene.radius))
    # What nothing is said of is big.
    says_size = scene.motion not in ("grows", "shrinks") and (size == "small" or (not plain and draw.random() < 0.5))
    thing = " ".join(["a", *([size] if says_size else []), scene.colour, scene.shape])
    if scene.motion == "changes":
        verbs = tuple(f"{verb} {scene.new_colour}" for verb in ("turns", "changes to", "becomes"))
    else:
        verbs = _VERBS[scene.motion]
    does = verbs[0] if plain else draw.choice(verbs)
    ground = f"a {scene.background} background"
    sentences = (
        f"{thing} {does} on {ground}",
        f"{thing} {does} in front of {ground}",
        f"on {ground}, {thing} {does}",
        f"{ground}; {thing} {does}",
    )
    sentence = sentences[0] if plain else draw.choice(sentences)
    if not plain and draw.random() < 0.5:
        sentence = sentence[0].upper() + sentence[1:] + "."
    return sentence


def prompts(split: str, count: int, seed: int, **options) -> Iterator[tuple[str, Scene]]:
    """`count` captions with scenes they are true of."""
    draw = random.Random(f"{split} {seed}")
    for _ in range(count):
        scene = random_scene(draw, split, **options)
        yield caption(scene, draw), scene


def outlined(scene: Scene) -> Scene:
    """The same scene as a drawing in white on black, whose shape is not filled."""
    return replace(scene, colour="outline", background="black", new_colour="outline" if scene.new_colour else "")
