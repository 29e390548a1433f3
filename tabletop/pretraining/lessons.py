"""Lessons for the tabletop's judges: clips, questions in words, answers in words.

A judge learns from rendered clips of all captions with the renderer's truth, as a VLM knows the words of its world; and
from clips of the generator's siblings, with the verdicts of physics, but only for captions outside the prompt set that
RL trains and tests on. It sees no clip of the shipped base, nor any generated clip of a prompt of that set.

    verdict     the rubric's own question, Accept or Reject, with a reason
    describe    the things in the first and the last frames, and the event
    ask         Yes or No about one aspect of a claim (tabletop/questions.py), with a reason
    inside      whether a thing is inside a rectangle that is drawn over some frames
    compare     whether the first of two clips has a defect; the second is a rendered one of the same caption
"""

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
from tabletop.captions import COLORS, KINDS, SHAPES, Claim, all_claims, caption, parse, vocabulary
from tabletop.near_misses import near_miss, pick
from tabletop.physics import Blob, Blobs, check_claim, find_blobs, shape_of
from tabletop.pretraining.measures import COUNT, measured
from tabletop.questions import (
    DEFECTS,
    IN_FIRST,
    INSIDE,
    NO,
    YES,
    AspectAnswer,
    AspectQuestion,
    answers,
    defect_answer,
    in_words,
    question_words,
    questions,
)
from tabletop.render import PIXEL, render
from tabletop.scenes import BOTCHES, FRAMES, SIZE, Scene, make_scene

RUBRIC = Path("tabletop/rubric.yaml")
DESCRIBE = "describe the video"
FRAMES_SEEN = 8
Pair = tuple[str, str]  # question, answer
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
ACCEPT = "Accept"
REASONS = {  # botch -> the judge's words for it
    "static": "nothing moves", "reverse": "moves the wrong way", "partial": "stops too soon", "teleport": "jumps",
    "vanish": "vanishes", "wrong_color": "wrong color", "wrong_shape": "wrong shape", "recolor": "changes color",
    "reshape": "changes shape", "hover": "hangs in the air", "sink": "sinks into the table",
    "one_only": "only one moves",
    "empty": "nothing there", "duplicate": "two of them", "stray": "something else appears", "other": "another scene",
}  # fmt: skip
BLURRED = 0.08  # part of the rendered clips that is out of focus
ABSENT = 2  # questions about defects that a clip does not have


@dataclass(frozen=True)
class Lessons:
    """Clips with questions and answers about them.

    frames: uint8 (N, 8, H, W, 3). pairs: for each clip and family, (question text, answer) pairs to draw from.
    reference: of the same shape, the second clip of each pair; None where each clip stands alone.
    measures: of each clip, (N, 8, colours, COUNT), see measures.py; None where they are not learnt.
    """

    frames: np.ndarray
    pairs: list[dict[str, list[Pair]]]
    reference: np.ndarray | None = None
    measures: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.pairs)


@lru_cache
def _rubric() -> Rubric:
    return load_rubric(RUBRIC).of("")  # its question is the same for every prompt


def words() -> list[str]:
    """The judges' whole vocabulary beside the special tokens."""
    rubric = _rubric()
    texts = [rubric.text(question, "") for question in rubric.questions]
    texts += [DESCRIBE, *REASONS.values(), f"{ACCEPT} Reject because to and"]
    own = {word for text in texts for word in text.split()}
    return sorted({*vocabulary(), *question_words(), *COLORS, *SHAPES, *own})


def verdict_question(text: str) -> str:
    """The rubric's question about a clip of this caption."""
    rubric = _rubric()
    return rubric.text(rubric.questions[0], text)


class RenderedClips(NamedTuple):
    """Rendered clips with questions and answers about them."""

    frames: np.ndarray  # uint8 (N, FRAMES, H, W, 3)
    pairs: list[dict[str, list[Pair]]]
    captions: list[str | None]  # of each clip that shows what its caption says; None for any other
    measures: np.ndarray  # (N, FRAMES, colours, COUNT)


def rendered_lessons(count: int, allowed: list[Claim], seed: int) -> RenderedClips:
    """Rendered clips, half of them botched, with verdicts, near-miss prompts, descriptions and single aspects."""
    rng = np.random.default_rng(seed)
    of_kind = {kind: [c for c in allowed if c.kind == kind] for kind in KINDS}
    frames, pairs = np.empty((count, FRAMES, SIZE, SIZE, 3), np.uint8), []
    measures = np.empty((count, FRAMES, len(COLORS), COUNT), np.float16)
    captions: list[str | None] = []
    for i in range(count):
        claim = pick(of_kind[list(KINDS)[i % len(KINDS)]], rng)
        botch = str(rng.choice(BOTCHES[claim.kind])) if rng.random() < 0.5 else None
        scene = make_scene(claim, rng, botch)
        frames[i] = render(scene)
        captions.append(caption(claim) if botch is None else None)
        if rng.random() < BLURRED:
            frames[i], captions[-1] = blurred(frames[i], rng), None
            measures[i] = measured(find_blobs(frames[i]))
            pairs.append({"ask": [_defect_pair("blur", True)]})
            continue
        verdicts = [(verdict_question(caption(claim)), ACCEPT if botch is None else _rejected(REASONS[botch]))] * 3
        if botch is None:
            other = caption(near_miss(claim, allowed, rng))
            verdicts.append((verdict_question(other), _rejected(REASONS["other"])))
        blobs = find_blobs(frames[i])
        measures[i] = measured(blobs)
        asks = aspect_pairs(frames[i], claim, near_miss(claim, allowed, rng), blobs, rng)
        asks.append(_defect_pair("blur", False))
        pairs.append({"verdict": verdicts, "describe": [(DESCRIBE, _description(scene))], "ask": asks})
    return RenderedClips(frames, pairs, captions, measures)


def blurred(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The frames, uint8 (F, H, W, 3), out of focus by 0.9 to 1.8 pixels."""
    sigma = rng.uniform(0.9, 1.8)
    smooth = ndimage.gaussian_filter(frames.astype(np.float32), (0, sigma, sigma, 0), mode="nearest")
    return np.asarray(smooth.round(), np.uint8)


def aspect_pairs(frames: np.ndarray, claim: Claim, other: Claim, blobs: Blobs, rng: np.random.Generator) -> list[Pair]:
    """Questions about a clip's claim and about another claim, with the answers of its pixels, (F, H, W, 3) uint8.

    All questions about alignment; of those about defects the ones that the clip has and ABSENT others, since most clips
    lack most of them. blobs: `find_blobs(frames)`.
    """
    pairs = []
    for about in (claim, other):
        answered = answers(frames, about, blobs)
        known = [question for question in questions(about) if question.name in answered]
        pairs += [(one.text, str(answered[one.name])) for one in known if one.kind == "alignment"]
        if about is claim:
            pairs += _defect_pairs(known, answered, rng)
    return list(dict.fromkeys(pairs))


def _defect_pairs(
    known: list[AspectQuestion], answered: dict[str, AspectAnswer], rng: np.random.Generator
) -> list[Pair]:
    defects = [question for question in known if question.kind != "alignment"]
    present = [question for question in defects if answered[question.name].answer == YES]
    absent = [question for question in defects if answered[question.name].answer == NO]
    picked = [absent[int(i)] for i in rng.permutation(len(absent))[:ABSENT]]
    return [(question.text, str(answered[question.name])) for question in present + picked]


def _defect_pair(name: str, present: bool) -> Pair:
    """The question about a defect and its answer."""
    return DEFECTS[name][1], str(defect_answer(name, present))


def _rejected(reason: str) -> str:
    return f"Reject because {reason}"


def _description(scene: Scene) -> str:
    """The scene in words: its things by colour and shape in the first and the last frame, and the event."""
    first = sorted((e.x[0], str(e.look(0))) for e in scene.entities if e.visible[0] and e.thing.color in COLORS)
    last = sorted((e.x[-1], str(e.look(-1))) for e in scene.entities if e.visible[-1] and e.thing.color in COLORS)
    names = [" and ".join(name for _, name in side) or "nothing there" for side in (first, last)]
    event = caption(scene.claim) if scene.botch is None else REASONS[scene.botch]
    return f"{names[0]} to {names[1]} because {event}"


def generated_lessons(frames: np.ndarray, captions: list[str], allowed: list[Claim], seed: int) -> Lessons:
    """Clips of generators with the physics check's verdicts and answers.

    The verdict is on the clip's caption and on a near miss of it, the answers are about single aspects of both, and the
    things in the clip are listed.

    frames: uint8 (N, FRAMES, H, W, 3). captions: of allowed claims.
    """
    rng = np.random.default_rng(seed)
    pairs, measures = [], []
    for clip, claim in zip(frames, _claims(captions, allowed), strict=True):
        other, blobs = near_miss(claim, allowed, rng), find_blobs(clip)
        verdict, of_other = (verdict_answer(clip, about, blobs) for about in (claim, other))
        of_clip = {
            "verdict": [(verdict_question(caption(claim)), verdict)] * 4
            + [(verdict_question(caption(other)), of_other)],
            "ask": aspect_pairs(clip, claim, other, blobs, rng),
        }
        if {thing.shape for thing in claim.things} <= set(SHAPES):
            of_clip["describe"] = [(DESCRIBE, f"{_things(blobs)} because {verdict}")]
        pairs.append(of_clip)
        measures.append(measured(blobs))
    seen = sample_frames(FRAMES, FRAMES_SEEN)
    return Lessons(frames[:, seen], pairs, measures=np.stack(measures)[:, seen])


def compared_lessons(frames: np.ndarray, captions: list[str], allowed: list[Claim], seed: int) -> Lessons:
    """Generated clips, each followed by a rendered one of its caption, with questions about the first one's defects.

    frames: uint8 (N, FRAMES, H, W, 3). captions: of allowed claims.
    """
    rng = np.random.default_rng(seed)
    picked, pairs, rendered = [], [], []
    for index, claim in enumerate(_claims(captions, allowed)):
        answered = answers(frames[index], claim)
        known = [question for question in questions(claim) if question.name in answered]
        asks = [(f"{text} {IN_FIRST}", answer) for text, answer in _defect_pairs(known, answered, rng)]
        if asks:
            picked.append(index)
            pairs.append({"compare": asks})
            rendered.append(render(make_scene(claim, rng)))
    seen = sample_frames(FRAMES, FRAMES_SEEN)
    return Lessons(frames[picked][:, seen], pairs, np.stack(rendered)[:, seen])


def marked_lessons(frames: np.ndarray, captions: list[str], seed: int) -> Lessons:
    """Clips with a rectangle over some frames, with the question whether the caption's first thing is inside it.

    frames: uint8 (N, FRAMES, H, W, 3). The rectangle is the overlay's default, as users draw it. Clips in which physics
    does not find the thing are left out.
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
        answer = AspectAnswer(YES, "inside") if inside else AspectAnswer(NO, "outside")
        marked.append(with_rectangle(clip, box, where)[seen])
        pairs.append({"inside": [(INSIDE.format(thing=thing), str(answer))]})
    return Lessons(np.stack(marked), pairs)


def with_rectangle(frames: np.ndarray, box: Box, where: list[int]) -> np.ndarray:
    """The clip, uint8 (F, H, W, 3), with a box over those frames, in the overlay's default colour and width."""
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
    """Left, top, right, bottom of the largest patch, in pixels; None where there is none."""
    if not blobs:
        return None
    blob = blobs[0]
    return (
        (blob.x - blob.width / 2) / PIXEL, blob.top / PIXEL, (blob.x + blob.width / 2) / PIXEL, blob.bottom / PIXEL,
    )  # fmt: skip


def _box_around(places: list[tuple[float, float, float, float]], rng: np.random.Generator) -> Box | None:
    """A box that holds all places, with some room; None where that would be most of the picture."""
    left, top = (min(place[i] for place in places) - rng.uniform(1, 5) for i in (0, 1))
    right, bottom = (max(place[i] for place in places) + rng.uniform(1, 5) for i in (2, 3))
    box = (max(0, round(left)), max(0, round(top)), min(SIZE, round(right)), min(SIZE, round(bottom)))
    return box if (box[2] - box[0]) * (box[3] - box[1]) < 0.7 * SIZE * SIZE else None


def _box_beside(places: list[tuple[float, float, float, float]], rng: np.random.Generator) -> Box | None:
    """A box that neither holds nor nearly touches the centre of a place; None where 20 tries find none."""
    centres = [((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in places]
    for _ in range(20):
        width, height = (int(n) for n in rng.integers(9, 19, 2))
        x, y = int(rng.integers(0, SIZE - width + 1)), int(rng.integers(0, SIZE - height + 1))
        if not any(x - 2 < cx < x + width + 2 and y - 2 < cy < y + height + 2 for cx, cy in centres):
            return x, y, x + width, y + height
    return None


def _claims(captions: list[str], allowed: list[Claim]) -> list[Claim]:
    """The claims of captions. Raises ValueError for a caption of a claim that is not allowed."""
    names = {caption(claim) for claim in allowed}
    if outside := {c for c in captions if c not in names}:
        raise ValueError(f"captions {sorted(outside)[:3]} are not among those that a judge may learn from")
    return [parse(text) for text in captions]


def verdict_answer(clip: np.ndarray, claim: Claim, blobs: Blobs) -> str:
    """The physics check's verdict on a clip, uint8 (F, H, W, 3), and its reason in the judge's words."""
    failure = check_claim(clip, claim, blobs).failure
    return ACCEPT if failure is None else _rejected(in_words(failure))


def _things(blobs: Blobs) -> str:
    """The solids that stand free in the first and in the last frames, by colour and shape, from left to right."""
    halves = []
    for part in (blobs[: len(blobs) // 2], blobs[-(len(blobs) // 2) :]):
        free = {color: [found[color][0] for found in part if found[color] and found[color][0].free] for color in COLORS}
        things = sorted((mine[0].x, f"{color} {shape_of(mine)}") for color, mine in free.items() if mine)
        halves.append(" and ".join(name for _, name in things) or REASONS["empty"])
    return " to ".join(halves)


def allowed_claims(rl_prompts: list[str]) -> list[Claim]:
    """The claims that a judge may learn from: none of the RL prompts, in either order of their things."""
    taken = {parse(prompt).event for prompt in rl_prompts}
    return [claim for claim in all_claims() if claim.event not in taken]
