"""Lessons for the tabletop's judges: clips, questions in words, answers in words.

What they are taught, and what they are not: rendered clips of all captions with the renderer's truth, as a VLM knows
the words of its world; and clips of the generator's siblings, which were trained on from it, with what physics tells of
them, but only for captions outside the prompt set that RL trains and tests on. They never saw a clip of the shipped
base, nor any generated clip of a prompt of that set.

    verdict     the rubric's own question, Accept or Reject, with a reason
    describe    what is to be seen
    ask         Yes or No about one aspect of a claim (tabletop/questions.py), with a reason
    inside      whether a thing is inside a rectangle that is drawn over some frames
    compare     whether the first of two clips has a defect; the second is a rendered one of the same caption
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage

from data.video import sample_frames
from feedback.core.rubric import Rubric, load_rubric
from feedback.differentiable.overlay import Overlay, apply, parse_mark
from feedback.differentiable.overlay import render as render_overlay
from tabletop import questions as asked_of
from tabletop.captions import COLORS, KINDS, SHAPES, Claim, all_claims, caption, parse, vocabulary
from tabletop.near_misses import near_miss, pick
from tabletop.physics import Blob, check, find_blobs, shape_of
from tabletop.render import PIXEL, render
from tabletop.scenes import BOTCHES, FRAMES, SIZE, make_scene

RUBRIC = Path("tabletop/rubric.yaml")
DESCRIBE = "describe the video"
FRAMES_SEEN = 8
Pair = tuple[str, str]  # question, answer
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
REASONS = {  # botch -> the judge's words for it
    "static": "nothing moves", "reverse": "moves the wrong way", "partial": "stops too soon", "teleport": "jumps",
    "vanish": "vanishes", "wrong_color": "wrong color", "wrong_shape": "wrong shape", "recolor": "changes color",
    "reshape": "changes shape", "hover": "hangs in the air", "sink": "sinks into the table",
    "one_only": "only one moves",
    "empty": "nothing there", "duplicate": "two of them", "stray": "something else appears", "other": "another scene",
    "resize": "changes size", "form": "wrong form", "place": "wrong place",
}  # fmt: skip
PHYSICS = (  # what the physics check says, first match -> the judge's words
    (r"not a \w+ throughout: a (\w+)", "wrong shape {}"),
    (r"two \w+ things", REASONS["duplicate"]),
    (r"no \w+ thing anywhere", REASONS["empty"]),
    (r"no \w+ thing in frame|vanishes", REASONS["vanish"]),
    (r"changes its size", REASONS["resize"]),
    (r"slanted|stretched|ragged|swells|spreads", REASONS["form"]),
    (r"jumps|at once", REASONS["teleport"]),
    (r"a \w+ thing (comes|wanders|changes)", REASONS["stray"]),
    (r"only one of them", REASONS["one_only"]),
    (r"-\d+ units in the wanted|back on itself", REASONS["reverse"]),
    (r"units|by a factor|is not squeezed|come off|come out", REASONS["partial"]),
    (r"", REASONS["place"]),  # starts, stays or ends where it should not
)


BLURRED = 0.08  # part of the rendered clips that is out of focus
ASKED = 2  # defects that a clip does not have, of those asked about


@dataclass(frozen=True)
class Lessons:
    """Clips with what may be said of them.

    frames: uint8 (N, 8, H, W, 3). pairs: for each clip and family, (question text, answer) pairs to draw from.
    reference: of the same shape, the clip that is shown after; null where each is shown alone.
    """

    frames: np.ndarray
    pairs: list[dict[str, list[Pair]]]
    reference: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.pairs)


@lru_cache
def _rubric() -> Rubric:
    return load_rubric(RUBRIC)


def words() -> list[str]:
    """The judges' whole vocabulary beside the special tokens."""
    rubric = _rubric()
    texts = [rubric.text(question, "") for question in rubric.questions]
    texts += [DESCRIBE, *REASONS.values(), "Accept Reject because to and"]
    said = {word for text in texts for word in text.split()}
    return sorted({*vocabulary(), *asked_of.vocabulary(), *COLORS, *SHAPES, *said})


def verdict_question(text: str) -> str:
    rubric = _rubric()
    return rubric.text(rubric.questions[0], text)


class Rendered(NamedTuple):
    """Rendered clips and what may be said of them."""

    frames: np.ndarray  # uint8 (N, FRAMES, H, W, 3)
    pairs: list[dict[str, list[Pair]]]
    captions: list[str | None]  # of those that fulfil it


def rendered_lessons(count: int, allowed: list[Claim], seed: int) -> Rendered:
    """Rendered clips, half of them botched, with verdicts, near-miss prompts, descriptions and single aspects."""
    rng = np.random.default_rng(seed)
    of_kind = {kind: [c for c in allowed if c.kind == kind] for kind in KINDS}
    frames, pairs = np.empty((count, FRAMES, SIZE, SIZE, 3), np.uint8), []
    captions: list[str | None] = []
    for i in range(count):
        claim = pick(of_kind[list(KINDS)[i % len(KINDS)]], rng)
        botch = str(rng.choice(BOTCHES[claim.kind])) if rng.random() < 0.5 else None
        scene = make_scene(claim, rng, botch)
        frames[i] = render(scene)
        captions.append(caption(claim) if botch is None else None)
        if rng.random() < BLURRED:
            frames[i], captions[-1] = blurred(frames[i], rng), None
            pairs.append({"ask": [(_defect_text("blur"), _defect_told("blur", True))]})
            continue
        told = "Accept" if botch is None else f"Reject because {REASONS[botch]}"
        verdicts = [(verdict_question(caption(claim)), told)] * 3
        if botch is None:
            other = caption(near_miss(claim, allowed, rng))
            verdicts.append((verdict_question(other), f"Reject because {REASONS['other']}"))
        asks = aspect_pairs(frames[i], claim, near_miss(claim, allowed, rng), rng)
        asks.append((_defect_text("blur"), _defect_told("blur", False)))
        pairs.append({"verdict": verdicts, "describe": [(DESCRIBE, _description(scene))], "ask": asks})
    return Rendered(frames, pairs, captions)


def blurred(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The frames, uint8 (F, H, W, 3), out of focus by 0.9 to 1.8 pixels."""
    sigma = rng.uniform(0.9, 1.8)
    smooth = ndimage.gaussian_filter(frames.astype(np.float32), (0, sigma, sigma, 0), mode="nearest")
    return smooth.round().astype(np.uint8)


def aspect_pairs(frames: np.ndarray, claim: Claim, other: Claim, rng: np.random.Generator) -> list[Pair]:
    """Questions about a clip's claim and about another's, with what its pixels answer, (F, H, W, 3) uint8.

    All that is asked of alignment; of defects those that it has and ASKED others, since most clips lack most of them.
    """
    pairs, blobs = [], find_blobs(frames)
    for asked_about in (claim, other):
        told = asked_of.answers(frames, asked_about, blobs)
        known = [q for q in asked_of.questions(asked_about) if q.name in told]
        pairs += [(q.text, str(told[q.name])) for q in known if q.kind == "alignment"]
        if asked_about is claim:
            pairs += _defect_pairs(known, told, rng)
    return list(dict.fromkeys(pairs))


def _defect_pairs(known: list[asked_of.Asked], told: dict[str, asked_of.Told], rng: np.random.Generator) -> list[Pair]:
    defects = [q for q in known if q.kind != "alignment"]
    present = [q for q in defects if told[q.name].answer == asked_of.YES]
    absent = [q for q in defects if told[q.name].answer == asked_of.NO]
    picked = [absent[int(i)] for i in rng.permutation(len(absent))[:ASKED]]
    return [(q.text, str(told[q.name])) for q in present + picked]


def _defect_text(name: str) -> str:
    return asked_of.DEFECTS[name][1]


def _defect_told(name: str, present: bool) -> str:
    _, _, yes, no = asked_of.DEFECTS[name]
    return str(asked_of.Told(asked_of.YES, yes) if present else asked_of.Told(asked_of.NO, no))


def _description(scene) -> str:
    """What the scene really shows: its things by colour and shape in the first and the last frame, and the event."""
    first = sorted((e.x[0], str(e.look(0))) for e in scene.entities if e.visible[0] and e.thing.color in COLORS)
    last = sorted((e.x[-1], str(e.look(-1))) for e in scene.entities if e.visible[-1] and e.thing.color in COLORS)
    names = [" and ".join(name for _, name in side) or "nothing there" for side in (first, last)]
    event = caption(scene.claim) if scene.botch is None else REASONS[scene.botch]
    return f"{names[0]} to {names[1]} because {event}"


def generated_lessons(frames: np.ndarray, captions: list[str], allowed: list[Claim], seed: int) -> Lessons:
    """Clips of generators with what the physics check says of their caption, of a near miss of it, of single aspects
    of both, and of the things that are to be seen.

    frames: uint8 (N, FRAMES, H, W, 3). captions: of allowed claims.
    """
    rng = np.random.default_rng(seed)
    pairs = []
    for clip, claim in zip(frames, _claims(captions, allowed), strict=True):
        text, other = caption(claim), near_miss(claim, allowed, rng)
        of_clip = {
            "verdict": [(verdict_question(text), _told(clip, text))] * 4
            + [(verdict_question(caption(other)), _told(clip, caption(other)))],
            "ask": aspect_pairs(clip, claim, other, rng),
        }
        if {thing.shape for thing in claim.things} <= set(SHAPES):
            of_clip["describe"] = [(DESCRIBE, f"{_seen(clip)} because {_told(clip, text)}")]
        pairs.append(of_clip)
    return Lessons(frames[:, sample_frames(FRAMES, FRAMES_SEEN)], pairs)


def compared_lessons(frames: np.ndarray, captions: list[str], allowed: list[Claim], seed: int) -> Lessons:
    """Generated clips, each followed by a rendered one that fulfils its caption: has the first a defect?

    frames: uint8 (N, FRAMES, H, W, 3). captions: of allowed claims.
    """
    rng = np.random.default_rng(seed)
    picked, pairs, shown = [], [], []
    for index, claim in enumerate(_claims(captions, allowed)):
        told = asked_of.answers(frames[index], claim)
        known = [q for q in asked_of.questions(claim) if q.name in told]
        asks = [(f"{text} {asked_of.IN_FIRST}", answer) for text, answer in _defect_pairs(known, told, rng)]
        if asks:
            picked.append(index)
            pairs.append({"compare": asks})
            shown.append(render(make_scene(claim, rng)))
    seen = sample_frames(FRAMES, FRAMES_SEEN)
    return Lessons(frames[picked][:, seen], pairs, np.stack(shown)[:, seen])


def marked_lessons(frames: np.ndarray, captions: list[str], seed: int) -> Lessons:
    """Clips with a rectangle drawn over some frames: is the caption's first thing inside it?

    frames: uint8 (N, FRAMES, H, W, 3). The rectangle is the overlay's default, as users draw it. Clips of which physics
    cannot say where the thing is are left out.
    """
    rng, seen = np.random.default_rng(seed), sample_frames(FRAMES, FRAMES_SEEN)
    marked, pairs = [], []
    for clip, text in zip(frames, captions, strict=True):
        thing = parse(text).things[0]
        where = _marked_frames(rng)
        places = [_place(of_frame[thing.color]) for of_frame in find_blobs(clip[where])]
        found = [place for place in places if place]
        if len(found) < len(where):
            continue
        inside = bool(rng.random() < 0.5)
        box = _box_around(found, rng) if inside else _box_beside(found, rng)
        if box is None:
            continue
        told = asked_of.Told(asked_of.YES, "inside") if inside else asked_of.Told(asked_of.NO, "outside")
        marked.append(with_rectangle(clip, box, where)[seen])
        pairs.append({"inside": [(asked_of.INSIDE.format(thing=thing), str(told))]})
    return Lessons(np.stack(marked), pairs)


def with_rectangle(frames: np.ndarray, box: Box, where: list[int]) -> np.ndarray:
    """The clip, uint8 (F, H, W, 3), with a box over those frames, as an overlay that says no more draws it."""
    mark = parse_mark("box", f"{','.join(map(str, box))}@{','.join(map(str, where))}")
    rendered = render_overlay(Overlay((mark,)), *frames.shape[:3])
    drawn = apply(torch.from_numpy(frames).float() / 255, range(len(frames)), rendered)
    return (drawn * 255).round().byte().numpy()


def _marked_frames(rng: np.random.Generator) -> list[int]:
    """A run of frames: all of them, the first, the last, or any."""
    first = int(rng.integers(0, FRAMES - 2))
    runs = [(0, FRAMES), (0, FRAMES // 2 + 1), (FRAMES // 2, FRAMES), (first, int(rng.integers(first + 2, FRAMES + 1)))]
    return list(range(*runs[int(rng.integers(len(runs)))]))


def _place(blobs: list[Blob]) -> tuple[float, float, float, float] | None:
    """Left, top, right, bottom of the largest patch, in pixels; null where there is none."""
    if not blobs:
        return None
    blob = blobs[0]
    return (
        (blob.x - blob.width / 2) / PIXEL, blob.top / PIXEL, (blob.x + blob.width / 2) / PIXEL, blob.bottom / PIXEL,
    )  # fmt: skip


def _box_around(places: list[tuple[float, float, float, float]], rng: np.random.Generator) -> Box | None:
    """A box that holds all places, with some room; null where that would be most of the picture."""
    left, top = (min(place[i] for place in places) - rng.uniform(1, 5) for i in (0, 1))
    right, bottom = (max(place[i] for place in places) + rng.uniform(1, 5) for i in (2, 3))
    box = (max(0, round(left)), max(0, round(top)), min(SIZE, round(right)), min(SIZE, round(bottom)))
    return box if (box[2] - box[0]) * (box[3] - box[1]) < 0.7 * SIZE * SIZE else None


def _box_beside(places: list[tuple[float, float, float, float]], rng: np.random.Generator) -> Box | None:
    """A box in which none of the places has its centre, nor comes near; null where no try finds one."""
    centres = [((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in places]
    for _ in range(20):
        width, height = (int(n) for n in rng.integers(9, 19, 2))
        x, y = int(rng.integers(0, SIZE - width + 1)), int(rng.integers(0, SIZE - height + 1))
        if not any(x - 2 < cx < x + width + 2 and y - 2 < cy < y + height + 2 for cx, cy in centres):
            return x, y, x + width, y + height
    return None


def _claims(captions: list[str], allowed: list[Claim]) -> list[Claim]:
    names = {caption(claim) for claim in allowed}
    if outside := {c for c in captions if c not in names}:
        raise ValueError(f"captions {sorted(outside)[:3]} are not among those that the judge may be taught")
    return [parse(text) for text in captions]


def _told(clip: np.ndarray, text: str) -> str:
    """The physics check's verdict and reason in the judge's words."""
    found = check(clip, text)
    if found.ok:
        return "Accept"
    words, match = next((words, match) for pattern, words in PHYSICS if (match := re.search(pattern, found.reason)))
    return f"Reject because {words.format(*match.groups())}"


def _seen(clip: np.ndarray) -> str:
    """The solids that stand free in the first and in the last frames, by colour and shape, from left to right."""
    blobs = find_blobs(clip)
    halves = []
    for part in (blobs[: len(blobs) // 2], blobs[-(len(blobs) // 2) :]):
        free = {color: [found[color][0] for found in part if found[color] and found[color][0].free] for color in COLORS}
        things = sorted((mine[0].x, f"{color} {shape_of(mine)}") for color, mine in free.items() if mine)
        halves.append(" and ".join(name for _, name in things) or REASONS["empty"])
    return " to ".join(halves)


def allowed_claims(rl_prompts: list[str]) -> list[Claim]:
    """Claims that the judge may be taught: none of the RL prompts, in either order of their things."""
    taken = {parse(prompt).event for prompt in rl_prompts}
    return [claim for claim in all_claims() if claim.event not in taken]
