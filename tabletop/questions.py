"""What can be asked of a tabletop clip with Yes or No, and what its pixels answer: one aspect of the claim at a time.

Alignment with the caption's parts, where Yes is wanted, and defects of physics and of the picture, where No is, as
Diffusion-DRF (§3.2) divides them. All words are those of `vocabulary`, for a judge that knows no others.
"""

import re
from typing import NamedTuple

import numpy as np

from tabletop.captions import COLORS, SHAPES, Claim, Thing, caption
from tabletop.physics import Aspects, Blob, aspects, find_blobs, shape_of

YES, NO = "Yes", "No"
Blobs = list[dict[str, list[Blob]]]  # what find_blobs finds
OBJECT = "is there a {thing}"
INSIDE = "is the {thing} inside the rectangle"  # which visual prompting draws
EVENTS = {
    "push_right": "does the {a} move from left to right",
    "push_left": "does the {a} move from right to left",
    "lift": "does the {a} move up",
    "fall": "does the {a} fall off the table",
    "drop": "does the {a} drop onto the table",
    "closer": "do the {a} and the {b} move closer to each other",
    "apart": "do the {a} and the {b} move away from each other",
    "take_out": "does the {a} come out of the box",
    "uncover": "does the cover come off the {a}",
    "fold": "does somebody fold the {a}",
    "unfold": "does somebody unfold the {a}",
    "squeeze": "does somebody squeeze the {a}",
}
DEFECTS = {  # name -> (kind, question, the reason of Yes, the reason of No)
    "jump": ("physics", "does anything jump", "jumps", "nothing jumps"),
    "vanish": ("physics", "does anything vanish", "vanishes", "nothing vanishes"),
    "stray": ("physics", "does something else appear or vanish", "something else appears", "nothing else appears"),
    "reshape": ("physics", "does anything change shape", "changes shape", "nothing changes shape"),
    "resize": ("physics", "does anything change size", "changes size", "nothing changes size"),
    "form": ("quality", "is anything out of form", "wrong form", "nothing out of form"),
    "blur": ("quality", "is the picture blurred", "blurred", "sharp"),
}
IN_FIRST = "in the first video"  # ends a question where two clips are shown, the generated one and then a real one


class Asked(NamedTuple):
    """A question about a claim."""

    name: str  # object, object_2, event, or a defect's
    kind: str  # alignment | physics | quality
    text: str
    wanted: str  # Yes | No


class Told(NamedTuple):
    """An answer with its reason."""

    answer: str  # Yes | No
    reason: str

    def __str__(self) -> str:
        return f"{self.answer} because {self.reason}"


def questions(claim: Claim) -> list[Asked]:
    """Everything that is asked of a clip of this claim: its things, its event, and the defects that it may have."""
    return [
        *(Asked(_object(i), "alignment", OBJECT.format(thing=thing), YES) for i, thing in enumerate(claim.things)),
        Asked("event", "alignment", event_question(claim), YES),
        *(Asked(name, kind, text, NO) for name, (kind, text, _, _) in DEFECTS.items()),
    ]


def event_question(claim: Claim) -> str:
    return EVENTS[claim.kind].format(**dict(zip("ab", map(str, claim.things), strict=False)))


def answers(frames: np.ndarray, claim: Claim, blobs: Blobs | None = None) -> dict[str, Told]:
    """What the pixels of a clip, uint8 (F, H, W, 3), answer to `questions(claim)`, by name.

    What they cannot tell is left out; whether the picture is blurred always is, for physics does not measure it.
    blobs: `find_blobs(frames)`, for whoever asks about several claims.
    """
    blobs = find_blobs(frames) if blobs is None else blobs
    found = aspects(frames, claim, blobs)
    told = {}
    for i, (thing, check) in enumerate(zip(claim.things, found.things, strict=True)):
        there = any(of_frame[thing.color] for of_frame in blobs)
        reason = _in_words(check.reason, _OBJECT_REASONS) if there else "nothing there"
        told[_object(i)] = Told(YES, f"there is a {thing}") if check.ok else Told(NO, reason)
    told |= _event(found, claim)
    for name, present in _defects(found, claim.things, blobs).items():
        _, _, yes, no = DEFECTS[name]
        told[name] = Told(YES, yes) if present else Told(NO, no)
    return told


def vocabulary() -> list[str]:
    """Every word of the questions and answers beside those of captions, sorted."""
    texts = [OBJECT, INSIDE, IN_FIRST, *EVENTS.values(), "because", YES, NO, "outside inside"]
    texts += [text for _, *of_defect in DEFECTS.values() for text in of_defect]
    texts += [*_OBJECT_REASONS.values(), *_EVENT_REASONS.values(), "there is a", *COLORS, *SHAPES]
    return sorted({word for text in texts for word in text.split() if not word.startswith("{")})


_OBJECT_REASONS = {  # what physics says, first match -> in words of this world
    r"two \w+ things": "two of them",
    r"in frame|vanishes": "vanishes",
    r"not a \w+ throughout: a (\w+)": "wrong shape {}",
    r"": "wrong form",
}
_EVENT_REASONS = {
    r"-\d+ units in the wanted|back on itself": "moves the wrong way",
    r"only one of them": "only one moves",
    r"units|by a factor|is not squeezed|come off|come out": "stops too soon",
    r"": "wrong place",
}


def _object(index: int) -> str:
    return "object" if index == 0 else f"object_{index + 1}"


def _in_words(reason: str, table: dict[str, str]) -> str:
    words, match = next((words, match) for pattern, words in table.items() if (match := re.search(pattern, reason)))
    return words.format(*match.groups())


def _event(found: Aspects, claim: Claim) -> dict[str, Told]:
    """A thing that is not there throughout does nothing."""
    if found.event is None:
        return {"event": Told(NO, "nothing there")}
    if found.event.ok:
        # Whether a leap is a movement, and whether that of another shape counts, is open.
        sure = all(check.ok for check in (*found.things, *found.steady) if check)
        return {"event": Told(YES, caption(claim))} if sure else {}
    return {"event": Told(NO, _in_words(found.event.reason, _EVENT_REASONS))}


def _defects(found: Aspects, things: tuple[Thing, ...], blobs: Blobs) -> dict[str, bool]:
    """Whether a clip has each defect, of which its pixels tell it."""
    reasons = [check.reason for check in (*found.things, *found.steady, found.others) if check]
    followed = all(found.steady)  # every claimed thing could be
    said = {
        "jump": any("jumps" in reason for reason in reasons),
        "vanish": any("vanishes" in reason for reason in reasons) or any(_goes(blobs, thing) for thing in things),
        "stray": any("comes or goes" in reason for reason in reasons),
        "reshape": "changes its shape" in found.others.reason or any(_morphs(blobs, thing) for thing in things),
        "resize": any("changes its size" in reason or "swells" in reason for reason in reasons),
        "form": any(re.search("slanted|stretched|ragged", reason) for reason in reasons),
    }
    # That a thing does none of these can be told only of one that was followed.
    return {name: present for name, present in said.items() if present or followed or name in ("vanish", "stray")}


def _goes(blobs: Blobs, thing: Thing) -> bool:
    """Whether a thing is there and later not."""
    seen = [bool(of_frame[thing.color]) for of_frame in blobs]
    return any(seen) and not all(seen[seen.index(True) :])


def _morphs(blobs: Blobs, thing: Thing) -> bool:
    """Whether a solid has another shape in its last frames than in its first."""
    free = [of_frame[thing.color][0] for of_frame in blobs if of_frame[thing.color] and of_frame[thing.color][0].free]
    half = len(free) // 2
    return thing.shape in SHAPES and half > 0 and shape_of(free[:half]) != shape_of(free[-half:])
