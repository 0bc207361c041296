"""Parsing of shapes captions without a model, for fakes that render a prompt."""

import random
import re
from dataclasses import replace

from shapes.world import COLORS, Scene, Thing, _place

THING = re.compile(r"a (small|large) (\w+) (\w+) moving (\w+)")


def understand(text: str, seed: int) -> Scene:
    """Return the scene of a full caption, with positions drawn from the seed."""
    things = [Thing(color, shape, size, direction) for size, color, shape, direction in THING.findall(text)]
    rng = random.Random(seed)
    while (placed := _place(rng, things)) is None:
        pass
    return Scene(placed, text.split(" on a ")[1].split()[0])


def next_color(thing: Thing) -> Thing:
    names = list(COLORS)
    return replace(thing, color=names[(names.index(thing.color) + 1) % len(names)])
