"""Scenes: where every thing stands in every frame, for clips that show their claim and clips that botch it.

Coordinates are units of a WORLD x WORLD square, y down, drawn on SIZE x SIZE pixels. The table's top is at
y = TABLE_TOP and ends at x = TABLE_EDGE, beyond which things can fall. A scene is made from a claim, a random
generator and, optionally, the way in which it goes wrong (`BOTCHES`), in the manner in which video generators go wrong.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from tabletop.captions import COLORS, SHAPES, Claim, Thing

WORLD = 64
SIZE = 32  # pixels
FRAMES = 9
TABLE_TOP = 45.0
TABLE_EDGE = 49.0
FLOOR = 63.0

_SOLID = ("static", "reverse", "partial", "teleport", "vanish", "wrong_color", "wrong_shape", "recolor", "reshape")
_FALL = ("static", "partial", "teleport", "vanish", "wrong_color", "wrong_shape", "recolor", "reshape", "hover")
_HIDDEN = ("static", "reverse", "partial", "teleport", "vanish", "wrong_color", "wrong_shape", "recolor")
_SOFT = ("static", "reverse", "partial", "vanish", "wrong_color", "recolor")
_COMMON = ("empty", "duplicate", "stray")
# kind -> the ways in which its event can go wrong; random draws depend on their order
BOTCHES: dict[str, tuple[str, ...]] = {
    "push_right": (*_SOLID, "sink", *_COMMON),
    "push_left": (*_SOLID, "sink", *_COMMON),
    "lift": (*_SOLID, *_COMMON),
    "fall": (*_FALL, *_COMMON),
    "drop": (*_SOLID, "sink", *_COMMON),
    "closer": (*_SOLID, "one_only", "sink", *_COMMON),
    "apart": (*_SOLID, "one_only", "sink", *_COMMON),
    "take_out": (*_HIDDEN, *_COMMON),
    "uncover": (*_HIDDEN, *_COMMON),
    "fold": (*_SOFT, *_COMMON),
    "unfold": (*_SOFT, *_COMMON),
    "squeeze": (*_SOFT, *_COMMON),
}


@dataclass
class Entity:
    """One thing through all frames. x: centre, bottom: lower edge, both (F,) units; width, height likewise."""

    thing: Thing
    x: np.ndarray
    bottom: np.ndarray
    width: np.ndarray
    height: np.ndarray
    visible: np.ndarray = field(default_factory=lambda: np.ones(FRAMES, bool))
    things: list[Thing] | None = None  # per frame, where the thing changes its looks

    def look(self, frame: int) -> Thing:
        """The thing's colour and shape in a frame."""
        return self.things[frame] if self.things else self.thing


@dataclass
class Scene:
    """Entities in drawing order, back to front, with the claim they were made for and how it was botched."""

    claim: Claim
    botch: str | None
    entities: list[Entity]
    light: float  # brightness of the wall, 0.9 to 1.0


def make_scene(
    claim: Claim, rng: np.random.Generator, botch: str | None = None, botch_rng: np.random.Generator | None = None
) -> Scene:
    """A random scene of the claim; with `botch`, one that goes wrong in that way.

    botch_rng: draws what only the botch needs, None: `rng`. With another generator, a seed of `rng` mostly gives the
    sizes, places and pace of the scene that succeeds.
    Raises ValueError for a botch that this kind of event does not know.
    """
    if botch is not None and botch not in BOTCHES[claim.kind]:
        raise ValueError(f"{botch!r} is no way to botch {claim.kind}; known: {BOTCHES[claim.kind]}")
    own = rng if botch_rng is None else botch_rng
    actual = replace(claim, things=_substitute(claim.things, own, botch))
    progress = _botched_progress(_progress(rng), own, botch)
    entities = _STAGINGS[claim.kind](actual, progress, rng, botch)
    main = entities[0]
    if botch == "vanish":
        main.visible[own.integers(2, FRAMES - 2) :] = False
    elif botch in ("recolor", "reshape"):
        _change_looks(main, claim.things, own, botch)
    elif botch == "sink":
        main.bottom = main.bottom + np.linspace(0, own.uniform(8, 12), FRAMES)
    elif botch == "empty":
        entities = [e for e in entities if e.thing.shape in ("box", "cover")]
    elif botch == "duplicate":
        entities.append(_duplicate(main, own))
    strangers = _bystander(claim, entities, rng, stray=botch == "stray")
    return Scene(claim, botch, strangers + entities, light=float(rng.uniform(0.92, 1.0)))


def _progress(rng: np.random.Generator) -> np.ndarray:
    """(F,) from 0 to 1: how far the event has come, with a random pace and a little rest at either end."""
    start, end = rng.uniform(0, 0.12), rng.uniform(0.88, 1.0)
    s = np.clip((np.linspace(0, 1, FRAMES) - start) / (end - start), 0, 1)
    smooth = s * s * (3 - 2 * s)
    bend = rng.uniform(0, 0.6)
    return bend * smooth + (1 - bend) * s


def _botched_progress(progress: np.ndarray, rng: np.random.Generator, botch: str | None) -> np.ndarray:
    if botch == "static":
        return np.zeros(FRAMES)
    if botch == "reverse":
        return progress[::-1].copy() if rng.random() < 0.5 else 1 - progress
    if botch == "partial":
        return progress * rng.uniform(0.15, 0.38)
    if botch == "teleport":
        return (np.arange(FRAMES) >= rng.integers(2, FRAMES - 1)).astype(float)
    return progress


def _substitute(things: tuple[Thing, ...], rng: np.random.Generator, botch: str | None) -> tuple[Thing, ...]:
    """The things in the scene: the claimed ones, but for a wrong colour or shape of the first."""
    first, rest = things[0], things[1:]
    if botch == "wrong_color":
        others = [c for c in COLORS if c not in {t.color for t in things}]
        first = Thing(str(rng.choice(others)), first.shape)
    elif botch == "wrong_shape":
        first = Thing(first.color, str(rng.choice([s for s in SHAPES if s != first.shape])))
    return (first, *rest)


def _change_looks(main: Entity, things: tuple[Thing, ...], rng: np.random.Generator, botch: str) -> None:
    """Change the thing's colour or shape part-way, as in clips of generators."""
    when = rng.integers(3, FRAMES - 3)
    if botch == "recolor":
        taken = {t.color for t in things}
        after = Thing(str(rng.choice([c for c in COLORS if c not in taken])), main.thing.shape)
    else:
        after = Thing(main.thing.color, str(rng.choice([s for s in SHAPES if s != main.thing.shape])))
    main.things = [main.thing if frame < when else after for frame in range(FRAMES)]


def _duplicate(main: Entity, rng: np.random.Generator) -> Entity:
    """A second copy of the main thing that appears part-way, clear of the first one's path."""
    low, high = float((main.x - main.width / 2).min()), float((main.x + main.width / 2).max())
    width = float(np.median(main.width))
    room = [
        x
        for x in np.arange(width / 2 + 1, TABLE_EDGE - width / 2, 1.0)
        if x + width / 2 + 2 < low or x - width / 2 - 2 > high
    ]
    visible = np.arange(FRAMES) >= rng.integers(0, 5)
    height = np.full(FRAMES, float(np.median(main.height)))
    if room:
        x, bottom = float(rng.choice(room)), TABLE_TOP
    else:  # the path takes the whole table: the copy is in the air, above the highest point of the path
        x, bottom = (
            float(np.clip(main.x[0], width / 2 + 1, WORLD - width / 2 - 1)),
            float((main.bottom - main.height).min()) - 3,
        )
        if bottom - height[0] < 1:
            x, bottom = float(rng.uniform(8, 14)) if low > 24 else 56.0, 16.0
    return Entity(main.thing, np.full(FRAMES, x), np.full(FRAMES, bottom), np.full(FRAMES, width), height, visible)


def _bystander(claim: Claim, entities: list[Entity], rng: np.random.Generator, stray: bool) -> list[Entity]:
    """At times a thing of another colour that stands still; with `stray`, one that comes or goes half-way."""
    if not stray and rng.random() > 0.25:
        return []
    colors = [c for c in COLORS if c not in {t.color for t in claim.things} | {e.thing.color for e in entities}]
    radius = float(rng.uniform(6.5, 7.5))
    low = min((float((e.x - e.width / 2).min()) for e in entities), default=WORLD)
    high = max((float((e.x + e.width / 2).max()) for e in entities), default=0)
    room = [
        x for x in np.arange(radius + 1, TABLE_EDGE - radius, 1.0) if x + radius + 1.5 < low or x - radius - 1.5 > high
    ]
    bottom = TABLE_TOP
    if not room:  # in the air above every path, as if it were on the wall
        top = min((float((e.bottom - e.height).min()) for e in entities), default=WORLD)
        if top < 2 * radius + 4:
            if not stray:
                return []
            room, bottom = [WORLD - radius - 2], 2 * radius + 3
        else:
            room, bottom = list(np.arange(radius + 2, WORLD - radius - 2)), 2 * radius + 2
    thing = Thing(str(rng.choice(colors or [c for c in COLORS if c != claim.things[0].color])), str(rng.choice(SHAPES)))
    visible = np.ones(FRAMES, bool)
    if stray:
        when = rng.integers(2, FRAMES - 2)
        visible = np.arange(FRAMES) < when if rng.random() < 0.5 else np.arange(FRAMES) >= when
    x = float(rng.choice(room))
    size = np.full(FRAMES, 2 * radius)
    return [Entity(thing, np.full(FRAMES, x), np.full(FRAMES, bottom), size, size, visible)]


def _solid(thing: Thing, x: np.ndarray | float, bottom: np.ndarray | float, size: float) -> Entity:
    full = np.full(FRAMES, 1.0)
    return Entity(thing, x * full, bottom * full, size * full, size * full)


def _push(claim: Claim, progress: np.ndarray, rng: np.random.Generator, botch: str | None) -> list[Entity]:
    size = rng.uniform(14, 16)
    travel = rng.uniform(21, 28)
    left = rng.uniform(size / 2 + 1, TABLE_EDGE - travel - size / 2)
    start, end = (left, left + travel) if claim.kind == "push_right" else (left + travel, left)
    return [_solid(claim.things[0], start + (end - start) * progress, TABLE_TOP, size)]


def _lift(claim: Claim, progress: np.ndarray, rng: np.random.Generator, botch: str | None) -> list[Entity]:
    size = rng.uniform(14, 16)
    x = rng.uniform(size / 2 + 1, TABLE_EDGE - size / 2)
    return [_solid(claim.things[0], x, TABLE_TOP - rng.uniform(20, 29) * progress, size)]


def _drop(claim: Claim, progress: np.ndarray, rng: np.random.Generator, botch: str | None) -> list[Entity]:
    size = rng.uniform(14, 16)
    x = rng.uniform(size / 2 + 1, TABLE_EDGE - size / 2)
    fallen = progress if botch == "teleport" else np.clip(progress * rng.uniform(1.0, 1.15), 0, 1)
    return [_solid(claim.things[0], x, TABLE_TOP - rng.uniform(20, 29) * (1 - fallen), size)]


def _fall(claim: Claim, progress: np.ndarray, rng: np.random.Generator, botch: str | None) -> list[Entity]:
    """Pushed to the right until it stands beyond the edge, then down beside the table."""
    size = rng.uniform(12.5, 13.5)
    start = rng.uniform(24, 34)
    end = TABLE_EDGE + size / 2 + rng.uniform(0.5, 1.5)
    turn = rng.uniform(0.5, 0.6)  # the part of the progress spent on the table
    x = start + (end - start) * np.clip(progress / turn, 0, 1)
    depth = 0.0 if botch == "hover" else FLOOR - TABLE_TOP
    bottom = TABLE_TOP + depth * np.clip((progress - turn) / (1 - turn), 0, 1)
    return [_solid(claim.things[0], x, bottom, size)]


def _two(claim: Claim, progress: np.ndarray, rng: np.random.Generator, botch: str | None) -> list[Entity]:
    size = rng.uniform(12, 13)
    travel = rng.uniform(7.5, 9)  # of each
    near = size + rng.uniform(1.5, 3.5)
    middle = rng.uniform(near / 2 + travel + size / 2 + 0.5, TABLE_EDGE - near / 2 - travel - size / 2 + 0.5)
    outward = progress if claim.kind == "apart" else 1 - progress
    other = outward[0] * np.ones(FRAMES) if botch == "one_only" else outward
    side = 1 if rng.random() < 0.5 else -1
    a = _solid(claim.things[0], middle + side * (near / 2 + travel * outward), TABLE_TOP, size)
    b = _solid(claim.things[1], middle - side * (near / 2 + travel * other), TABLE_TOP, size)
    return [a, b]


def _take_out(claim: Claim, progress: np.ndarray, rng: np.random.Generator, botch: str | None) -> list[Entity]:
    size = rng.uniform(13, 14.5)
    x = rng.uniform(11, TABLE_EDGE - 11)
    box = size + rng.uniform(4, 5.5)
    depth = size + rng.uniform(0.5, 1.5)  # so that the thing starts wholly inside
    rise = depth + rng.uniform(5, 12)
    thing = _solid(claim.things[0], x, TABLE_TOP - 0.5 - rise * progress, size)
    container = _solid(Thing("dark", "box"), x, TABLE_TOP, box)
    container.height = np.full(FRAMES, depth + 1.5)
    return [thing, container]


def _uncover(claim: Claim, progress: np.ndarray, rng: np.random.Generator, botch: str | None) -> list[Entity]:
    size = rng.uniform(13, 14.5)
    x = rng.uniform(11, TABLE_EDGE - 11)
    cover = size + rng.uniform(3, 4.5)
    lift = cover + rng.uniform(5, 10)
    thing = _solid(claim.things[0], x, TABLE_TOP, size)
    return [thing, _solid(Thing("dark", "cover"), x, TABLE_TOP - lift * progress, cover)]


def _fold(claim: Claim, progress: np.ndarray, rng: np.random.Generator, botch: str | None) -> list[Entity]:
    width, height = rng.uniform(32, 38), rng.uniform(6, 7)
    left = rng.uniform(2, TABLE_EDGE - width - 1)
    folded = progress if claim.kind == "fold" else 1 - progress
    w = width * (1 - 0.5 * folded)
    full = np.ones(FRAMES)
    return [Entity(claim.things[0], left + w / 2, TABLE_TOP * full, w, height * (1 + 0.9 * folded))]


def _squeeze(claim: Claim, progress: np.ndarray, rng: np.random.Generator, botch: str | None) -> list[Entity]:
    width, height = rng.uniform(15, 18), rng.uniform(22, 26)
    x = rng.uniform(width / 2 + 4, TABLE_EDGE - width / 2 - 4)
    return [
        Entity(
            claim.things[0],
            np.full(FRAMES, x),
            np.full(FRAMES, TABLE_TOP),
            width * (1 + 0.2 * progress),
            height * (1 - 0.6 * progress),
        )
    ]


_STAGINGS = {
    "push_right": _push, "push_left": _push, "lift": _lift, "fall": _fall, "drop": _drop, "closer": _two,
    "apart": _two, "take_out": _take_out, "uncover": _uncover, "fold": _fold, "unfold": _fold, "squeeze": _squeeze,
}  # fmt: skip
