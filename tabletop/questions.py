"""Yes-or-no questions about a tabletop clip, one aspect of its claim at a time, and the answers of its pixels.

Alignment with the caption's parts, where Yes is wanted, and defects of physics and of the picture, where No is wanted,
as Diffusion-DRF (§3.2) divides them. All words are those of `question_words`, for a judge that knows no others.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tabletop.captions import COLORS, SHAPES, Claim, Thing, caption
from tabletop.physics import Aspects, Blobs, Failure, Finding, aspects, find_blobs, shape_of

YES, NO = "Yes", "No"
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
IN_FIRST = "in the first video"  # ends a question about two clips, the generated one and then a real one


class AspectQuestion(NamedTuple):
    """A question about a claim."""

    name: str  # object, object_2, event, or a defect's
    kind: str  # alignment | physics | quality
    text: str
    wanted: str  # Yes | No


class AspectAnswer(NamedTuple):
    """An answer with its reason."""

    answer: str  # Yes | No
    reason: str

    def __str__(self) -> str:
        return f"{self.answer} because {self.reason}"


SHORT = {  # a failure of physics in words that the judges know; any other is "wrong place"
    Finding.TWICE: "two of them",
    Finding.MISSING: "vanishes",
    Finding.ABSENT: "nothing there",
    Finding.VANISHES: "vanishes",
    Finding.RAGGED: "wrong form",
    Finding.OTHER_SHAPE: "wrong shape {other}",
    Finding.SLANTED: "wrong form",
    Finding.STRETCHED: "wrong form",
    Finding.SHAPE_RESIZED: "changes size",
    Finding.JUMPS: "jumps",
    Finding.RESIZED: "changes size",
    Finding.GOES_BACK: "moves the wrong way",
    Finding.DRIFTS: "stops too soon",
    Finding.LEAPS: "jumps",
    Finding.MOVES_TOO_LITTLE: "stops too soon",  # or moves the wrong way
    Finding.RISES_TOO_LITTLE: "stops too soon",
    Finding.DISTANCE_CHANGES_TOO_LITTLE: "stops too soon",  # or moves the wrong way
    Finding.ONLY_ONE_MOVES: "only one moves",
    Finding.STAYS_IN_BOX: "stops too soon",
    Finding.COVER_STAYS: "stops too soon",
    Finding.WIDTH_CHANGES_TOO_LITTLE: "stops too soon",
    Finding.CLOTH_SWELLS: "wrong form",
    Finding.NOT_SQUEEZED: "stops too soon",
    Finding.SPONGE_SPREADS: "wrong form",
    Finding.OTHER_COMES_OR_GOES: "something else appears",
    Finding.OTHER_WANDERS: "something else appears",
    Finding.OTHER_RESIZED: "changes size",
    Finding.OTHER_RESHAPED: "something else appears",
}
ELSE = "wrong place"
# Where the answers about a thing and about the event differ from the verdict's words. The shipped second judge learnt
# them so.
OF_OBJECT = {Finding.SHAPE_RESIZED: "wrong form", Finding.CUT_OFF: "wrong form"}
OF_EVENT = {Finding.LEAPS: "stops too soon", Finding.CLOTH_SWELLS: ELSE, Finding.SPONGE_SPREADS: ELSE}


def in_words(failure: Failure, other: Mapping[Finding, str] | None = None) -> str:
    """A failure of physics in words that the judges know. other: the wording of some findings, in place of SHORT's."""
    if failure.reverse:
        return SHORT[Finding.GOES_BACK]
    words = {**SHORT, **(other or {})}.get(failure.finding, ELSE)
    return words.format(**failure.fields)


def questions(claim: Claim) -> list[AspectQuestion]:
    """All questions about a clip of this claim: its things, its event, and the defects that it may have."""
    return [
        *(
            AspectQuestion(_object(i), "alignment", OBJECT.format(thing=thing), YES)
            for i, thing in enumerate(claim.things)
        ),
        AspectQuestion("event", "alignment", event_question(claim), YES),
        *(AspectQuestion(name, kind, text, NO) for name, (kind, text, _, _) in DEFECTS.items()),
    ]


def event_question(claim: Claim) -> str:
    """Whether the claimed event happens."""
    return EVENTS[claim.kind].format(**dict(zip("ab", map(str, claim.things), strict=False)))


def answers(frames: np.ndarray, claim: Claim, blobs: Blobs | None = None) -> dict[str, AspectAnswer]:
    """The answers of a clip's pixels, uint8 (F, H, W, 3), to `questions(claim)`, by name.

    Questions that the pixels cannot answer are left out; `blur` always is, since physics does not measure it.
    blobs: `find_blobs(frames)`, found once for several claims.
    """
    blobs = find_blobs(frames) if blobs is None else blobs
    found = aspects(frames, claim, blobs)
    answered = {}
    for i, (thing, check) in enumerate(zip(claim.things, found.things, strict=True)):
        if check.failure is None:
            answered[_object(i)] = AspectAnswer(YES, f"there is a {thing}")
        else:
            there = any(of_frame[thing.color] for of_frame in blobs)
            reason = in_words(check.failure, OF_OBJECT) if there else SHORT[Finding.ABSENT]
            answered[_object(i)] = AspectAnswer(NO, reason)
    answered |= _event(found, claim)
    for name, present in _defects(found, claim.things, blobs).items():
        answered[name] = defect_answer(name, present)
    return answered


def defect_answer(name: str, present: bool) -> AspectAnswer:
    """The answer to the question about a defect, a name in DEFECTS."""
    _, _, yes, no = DEFECTS[name]
    return AspectAnswer(YES, yes) if present else AspectAnswer(NO, no)


def question_words() -> list[str]:
    """Every word of the questions and answers beside those of captions, sorted."""
    texts = [OBJECT, INSIDE, IN_FIRST, *EVENTS.values(), "because", YES, NO, "outside inside"]
    texts += [text for _, *of_defect in DEFECTS.values() for text in of_defect]
    texts += [*SHORT.values(), ELSE, "there is a", *COLORS, *SHAPES]
    return sorted({word for text in texts for word in text.split() if not word.startswith("{")})


def _object(index: int) -> str:
    return "object" if index == 0 else f"object_{index + 1}"


def _event(found: Aspects, claim: Claim) -> dict[str, AspectAnswer]:
    """The answer about the event. A thing that is not there throughout does nothing."""
    if found.event is None:
        return {"event": AspectAnswer(NO, SHORT[Finding.ABSENT])}
    if found.event.failure is None:
        # Whether a leap is a movement, and whether the movement of another shape counts, is left open.
        sure = all(check.ok for check in (*found.things, *found.steady) if check)
        return {"event": AspectAnswer(YES, caption(claim))} if sure else {}
    return {"event": AspectAnswer(NO, in_words(found.event.failure, OF_EVENT))}


def _defects(found: Aspects, things: tuple[Thing, ...], blobs: Blobs) -> dict[str, bool]:
    """Whether a clip has each defect that its pixels can tell of."""
    checks = [check for check in (*found.things, *found.steady, found.others) if check]
    findings = {check.failure.finding for check in checks if check.failure}
    followed = all(found.steady)  # every claimed thing could be followed
    resized = {Finding.SHAPE_RESIZED, Finding.RESIZED, Finding.OTHER_RESIZED}
    reshaped = Finding.OTHER_RESHAPED in findings or any(_morphs(blobs, thing) for thing in things)
    present = {
        "jump": Finding.JUMPS in findings,
        "vanish": Finding.VANISHES in findings or any(_goes(blobs, thing) for thing in things),
        "stray": Finding.OTHER_COMES_OR_GOES in findings,
        "reshape": reshaped,
        "resize": bool(findings & resized),
        "form": bool(findings & {Finding.SLANTED, Finding.STRETCHED, Finding.RAGGED}),
    }
    # The absence of the other defects shows only in things that were followed.
    return {name: there for name, there in present.items() if there or followed or name in ("vanish", "stray")}


def _goes(blobs: Blobs, thing: Thing) -> bool:
    """Whether a thing is there and later not."""
    seen = [bool(of_frame[thing.color]) for of_frame in blobs]
    return any(seen) and not all(seen[seen.index(True) :])


def _morphs(blobs: Blobs, thing: Thing) -> bool:
    """Whether a solid has another shape in its last frames than in its first."""
    free = [of_frame[thing.color][0] for of_frame in blobs if of_frame[thing.color] and of_frame[thing.color][0].free]
    half = len(free) // 2
    return thing.shape in SHAPES and half > 0 and shape_of(free[:half]) != shape_of(free[-half:])
