"""What a tabletop clip claims to show, and its caption in Something-Something's manner.

A claim is a kind of event and the things it happens to. Captions and claims map one to one, so that a
clip can be judged from its pixels and its caption alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations, product

COLORS = ("red", "yellow", "green", "blue")
SHAPES = ("cube", "ball", "cone")

# kind -> (category, caption template, what the objects are)
KINDS: dict[str, tuple[str, str, str]] = {
    "push_right": ("directional_movement", "pushing {a} from left to right", "solid"),
    "push_left": ("directional_movement", "pushing {a} from right to left", "solid"),
    "lift": ("directional_movement", "lifting {a} up", "solid"),
    "fall": ("falling_down", "pushing {a} so that it falls off the table", "solid"),
    "drop": ("falling_down", "dropping {a} onto the table", "solid"),
    "closer": ("multiple_objects", "moving {a} and {b} closer to each other", "two solids"),
    "apart": ("multiple_objects", "moving {a} and {b} away from each other", "two solids"),
    "take_out": ("object_removal", "taking {a} out of the box", "solid"),
    "uncover": ("object_removal", "uncovering {a}", "solid"),
    "fold": ("deformable_object", "folding {a}", "cloth"),
    "unfold": ("deformable_object", "unfolding {a}", "cloth"),
    "squeeze": ("deformable_object", "squeezing {a}", "sponge"),
}


@dataclass(frozen=True)
class Thing:
    """A coloured thing, as captions name it."""

    color: str
    shape: str  # cube, ball, cone, cloth or sponge

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Claim:
    """A kind of event, a key of KINDS, and the one or two things that it happens to."""

    kind: str
    things: tuple[Thing, ...]

    @property
    def category(self) -> str:
        """The category of the prompt set that this kind of event belongs to."""
        return KINDS[self.kind][0]

    @property
    def event(self) -> tuple[str, frozenset[Thing]]:
        """What happens to which things. Two claims that name two things in either order are one event."""
        return self.kind, frozenset(self.things)


def caption(claim: Claim) -> str:
    """The claim in words."""
    names = dict(zip("ab", map(str, claim.things), strict=False))
    return KINDS[claim.kind][1].format(**names)


def all_claims() -> list[Claim]:
    """Every claim of this world. Two things of one claim always differ in colour, so that pixels tell them apart."""
    solids = [Thing(color, shape) for color, shape in product(COLORS, SHAPES)]
    claims = []
    for kind, (_, _, objects) in KINDS.items():
        if objects == "solid":
            claims += [Claim(kind, (thing,)) for thing in solids]
        elif objects == "two solids":
            claims += [Claim(kind, pair) for pair in permutations(solids, 2) if pair[0].color != pair[1].color]
        else:
            claims += [Claim(kind, (Thing(color, objects),)) for color in COLORS]
    return claims


_BY_CAPTION = {caption(claim): claim for claim in all_claims()}


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def parse(text: str) -> Claim:
    """The claim that a caption makes. Raises ValueError for words outside this world."""
    claim = _BY_CAPTION.get(_normal(text))
    if claim is None:
        raise ValueError(
            f"{text!r} is no caption of the tabletop world; they read like 'pushing red cube from left to right'"
        )
    return claim


def unknown_captions(texts: Iterable[str]) -> list[str]:
    """Those of the texts that are no captions of this world."""
    return [text for text in texts if _normal(text) not in _BY_CAPTION]


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    return sorted({word for text in _BY_CAPTION for word in text.split()})
