"""What judges say of a prompt's clips before and after training, and whether the one that was trained on was fooled."""

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.asked import clip_request, first_frame_at, open_asked, score_of
from pipeline.judges import OpenJudges, answers_about, in_unit
from pipeline.online import Job
from pipeline.trained_clip import purpose_of

if TYPE_CHECKING:  # torch takes seconds to import
    import numpy as np

    from data.records import Label
    from rl.training.run import TrainReport

logger = logging.getLogger(__name__)

OUTCOME = "outcome.json"
TRAINED_ON, HELD_OUT, ALSO = "trained on", "held out", "also asked"


@dataclass
class Opinion:
    """What a judge says of a clip."""

    role: str
    score: float | None  # mean p of the wanted answers or p of acceptance; else 1 or 0 for the label; else a metric's
    right: bool | None  # whether it finds the clip right; None: a metric, or no answer
    reason: str = ""
    answers: Mapping[str, float] = field(default_factory=dict)  # p of the wanted answer by judge/question


Opinions = dict[str, dict[str, Opinion]]  # by clip and judge


def opinions_of(
    job: Job, also: Sequence[str], opened: OpenJudges | None, clips: "Mapping[str, np.ndarray]", device: str
) -> Opinions:
    """What the judges say of each clip (F, H, W, 3): the one trained on, the held-out one of a check, and `also`.

    opened: the judges that were differentiated; None: the run was one on rewards. A source of `also` that cannot judge
    the prompt, as its kind says, is left out.
    """
    (prompt,) = job.prompts
    found: Opinions = {name: {} for name in clips}
    if opened:
        for name, frames in clips.items():
            said = answers_about(opened.judges.plain, in_unit(frames).to(device), prompt.prompt_id)
            right = None if said.least is None else said.least >= 0.5
            found[name][job.judge] = Opinion(TRAINED_ON, said.score, right, "", said.answers)
    roles = {name: ALSO for name in also if _judges(name, job)}
    roles |= {job.held_out: HELD_OUT} if job.recipe.engine.held_out_every else {}
    roles = {name: role for name, role in roles.items() if name != job.judge}
    for source, role in roles.items() if opened else [(job.judge, TRAINED_ON), *roles.items()]:
        for name, label in _labels(source, job, clips, device).items():
            found[name][source] = Opinion(role, score_of(label), label.label, label.reason or "")
    return found


def _judges(name: str, job: Job) -> bool:
    """Whether a source says that it can judge the prompt."""
    from feedback.core.kinds import read_block

    check = read_block(name, job.sources[name]).kind.check_prompts
    try:
        if check:
            check([prompt.prompt for prompt in job.prompts])
    except ValueError as error:
        logger.info("%s is not asked about the clips: %s", name, error)
        return False
    return True


def _labels(source: str, job: Job, clips: "Mapping[str, np.ndarray]", device: str) -> "dict[str, Label]":
    """A source's label of each clip, by the clip's name."""
    from data.first_frames import first_frames

    (prompt,), size = job.prompts, job.size
    with tempfile.TemporaryDirectory() as folder:
        shown = first_frames([prompt], size.height, size.width) if prompt.image else {}
        firsts = [first_frame_at(Path(folder) / "first.png", image) for image in shown.values()]
        requests = [
            clip_request(
                frames, prompt, size, Path(name).stem, Path(folder), purpose_of("outcome", prompt, job.recipe),
                first=firsts[0] if firsts else None, place=place,
            )
            for place, (name, frames) in enumerate(clips.items())
        ]  # fmt: skip
        labels = open_asked(source, job.sources[source], device).labels_of(requests)
    return {name: labels[Path(name).stem] for name in clips}


def fooled(opinions: Mapping[str, Opinion]) -> list[str]:
    """The judges that find a clip wrong where the one that was trained on finds it right."""
    if not any(one.role == TRAINED_ON and one.right for one in opinions.values()):
        return []
    return [name for name, one in opinions.items() if one.role != TRAINED_ON and one.right is False]


def in_words(found: Opinions, before: str, after: str) -> list[str]:
    """A line for each judge: its score before and after, and what it says of the clip after."""
    lines = []
    for name, one in found[after].items():
        earlier = found[before][name]
        verdict = {True: ", right", False: ", wrong", None: ""}[one.right]
        answers = ", ".join(f"{question.partition('/')[2]} {p:.2f}" for question, p in one.answers.items())
        why = "; ".join(text for text in (one.reason, answers) if text)
        scores = " -> ".join("none" if score is None else f"{score:.2f}" for score in (earlier.score, one.score))
        lines.append(f"{name} ({one.role}): {scores}{verdict}{f' ({why})' if why else ''}")
    if by := fooled(found[after]):
        trained = next(name for name, one in found[after].items() if one.role == TRAINED_ON)
        lines.append(f"{trained} was fooled: it finds {after} right, and {', '.join(by)} does not; look at the clip")
    return lines


def write_outcome(path: Path, found: Opinions, after: str, report: "TrainReport") -> None:
    """Write what the judges say as JSON, with how the run ended."""
    facts: dict[str, Any] = {
        "updates": report.last["step"],
        "kept": report.kept,
        "stopped": report.stopped,
        "fooled": fooled(found[after]),
        "clips": {clip: {name: asdict(one) for name, one in said.items()} for clip, said in found.items()},
    }
    path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
