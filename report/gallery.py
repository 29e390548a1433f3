"""The gallery of all evaluation clips: gallery.html with its clips, and its data as scripts.

    clips/<policy>/<clip>.mp4       every clip, as any browser plays it
    first/<prompt_id>.png           the image that the generators were given, where there is one
    data/clips.js                   what all clips are and how they were labelled
    data/<policy>-<chunk>.js        the judges' own words on CHUNK clips, loaded when one of them is opened

The data are scripts because a page that is opened from disk may load those and nothing else.
"""

import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from data.labels import read_asked
from data.records import Asked, Label, Sample, Verdict, read_rows
from data.store import first_name
from data.video import LOSSLESS_UP_TO
from evaluation.sets import EvaluationSet
from report.playable import PlayableCopies, copy_playable

logger = logging.getLogger(__name__)

PAGE = ("gallery.html", "gallery.js", "style.css")
CHUNK = 100  # rows of the gallery whose verdicts share a file
DIGITS = 4  # of p_accept in clips.js; the chunks have it whole


class Line(NamedTuple):
    """A row of the gallery: one prompt and seed, with the policies' clips."""

    sample: Sample  # of one policy; prompt, category, split and seed are the same for all
    places: dict[str, int]  # policy -> place of its clip in its set, for the policies that have one


def write_gallery(
    judges: Sequence[str],
    sets: Mapping[str, EvaluationSet],
    per_prompt: int | None,
    out: Path,
    encoded: PlayableCopies | None = None,
) -> int:
    """Write the gallery's page, clips and data into the folder `out`; returns how many clips it shows.

    per_prompt: clips of each prompt and policy, the first by name; None for all. encoded: as `copy_playable` takes it.
    """
    lines = rows_of(sets, per_prompt)
    for name in PAGE:
        shutil.copyfile(Path(__file__).parent / name, out / name)
    _copy_clips(sets, lines, out / "clips", encoded)
    first = _copy_first_frames(sets, lines, out)
    data = out / "data"
    data.mkdir()
    clips = _clips(judges, sets, lines, first)
    (data / "clips.js").write_text(f"window.CLIPS = {as_script(clips)};\n", encoding="utf-8")
    for policy, one in sets.items():
        for number, chunk in enumerate(_words(policy, one, lines)):
            name = f"{policy}-{number}"
            text = f"window.WORDS[{as_script(name)}] = {as_script(chunk)};\n"
            (data / f"{name}.js").write_text(text, encoding="utf-8")
    return sum(len(line.places) for line in lines)


def rows_of(sets: Mapping[str, EvaluationSet], per_prompt: int | None) -> list[Line]:
    """The rows of the gallery by prompt and clip; policies are joined where prompt and seed are the same."""
    found: dict[tuple[str, int], Line] = {}
    for policy, one in sets.items():
        for place, sample in enumerate(one.samples):
            found.setdefault((sample.prompt_id, sample.seed), Line(sample, {})).places[policy] = place
    taken: dict[str, int] = {}
    lines = []
    for line in sorted(found.values(), key=lambda line: (line.sample.prompt_id, line.sample.sample_id)):
        prompt = line.sample.prompt_id
        taken[prompt] = taken.get(prompt, 0) + 1
        if per_prompt is None or taken[prompt] <= per_prompt:
            lines.append(line)
    return lines


def as_script(value: Any) -> str:
    """JSON that may stand in any script: nothing in it can end the script or a line of it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _copy_clips(
    sets: Mapping[str, EvaluationSet], lines: Sequence[Line], out: Path, encoded: PlayableCopies | None
) -> None:
    for policy in sets:
        (out / policy).mkdir(parents=True)

    def copy(job: tuple[str, int]) -> None:
        policy, place = job
        sample = sets[policy].samples[place]
        copy_playable(sets[policy].folder / sample.file_name, out / policy / _file_name(sample), sample, encoded)

    jobs = [(policy, place) for line in lines for policy, place in line.places.items()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(tqdm(pool.map(copy, jobs), total=len(jobs), desc="clips", unit="clip"))
    if encoded:
        encoded.prune()


def _copy_first_frames(sets: Mapping[str, EvaluationSet], lines: Sequence[Line], out: Path) -> set[str]:
    """Copy the first frame of each prompt; the prompt_ids of those that have one. All policies were given the same."""
    copied: set[str] = set()
    for prompt_id in dict.fromkeys(line.sample.prompt_id for line in lines):
        name = first_name(prompt_id)
        if found := next((path for one in sets.values() if (path := one.folder / name).is_file()), None):
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(found, out / name)
            copied.add(prompt_id)
    return copied


def _file_name(sample: Sample) -> str:
    return Path(sample.file_name).name


def _clips(
    judges: Sequence[str], sets: Mapping[str, EvaluationSet], lines: Sequence[Line], with_first: Collection[str]
) -> dict[str, Any]:
    """What gallery.js needs of every clip; lists under `clips` are in the order of `rows`.

    with_first: prompt_ids of the prompts with a first frame.
    """
    prompts = {line.sample.prompt_id: line.sample for line in lines}
    order = {prompt: number for number, prompt in enumerate(prompts)}
    first = lines[0].sample
    return {
        "judges": list(judges),
        "chunk": CHUNK,
        "size": [first.width, first.height],
        "pixelated": min(first.width, first.height) <= LOSSLESS_UP_TO,
        "prompts": [
            {"id": name, "text": sample.prompt, "category": sample.category, "split": sample.split}
            | ({"first": first_name(name)} if name in with_first else {})
            for name, sample in prompts.items()
        ],
        "rows": [[order[line.sample.prompt_id], line.sample.sample_id] for line in lines],
        "clips": {policy: _policy(policy, one, judges, lines) for policy, one in sets.items()},
    }


def _policy(policy: str, one: EvaluationSet, judges: Sequence[str], lines: Sequence[Line]) -> dict[str, Any]:
    places = [line.places.get(policy) for line in lines]

    def labels(judge: str) -> list[Label | None]:
        return [None if place is None or judge not in one.labels else one.labels[judge][place] for place in places]

    return {
        "files": [None if place is None else _file_name(one.samples[place]) for place in places],
        "labels": {judge: [None if label is None else label.label for label in labels(judge)] for judge in judges},
        "p": {
            judge: [
                None if label is None or label.p_accept is None else round(label.p_accept, DIGITS)
                for label in labels(judge)
            ]
            for judge in judges
        },
    }


def _words(policy: str, one: EvaluationSet, lines: Sequence[Line]) -> Iterator[list[dict[str, Any] | None]]:
    """The labels and verdicts of a policy's clips, CHUNK rows of the gallery at a time."""
    verdicts: dict[str, list[Verdict]] = {}
    asked: dict[str, dict[tuple[str, str], Asked]] = {}
    for source in dict.fromkeys(judge.partition("/")[0] for judge in one.labels):  # of <source>/<measure>
        path = one.folder.parent / "labels" / source / "verdicts.parquet"
        for row in read_rows(path, Verdict) if path.is_file() else []:  # labels that were computed have none
            verdicts.setdefault(row.sample_id, []).append(row)
        asked[source] = read_asked(path.parent)
    for start in range(0, len(lines), CHUNK):
        yield [_details(one, line.places.get(policy), verdicts, asked) for line in lines[start : start + CHUNK]]


def _details(
    one: EvaluationSet,
    place: int | None,
    verdicts: Mapping[str, Sequence[Verdict]],
    asked: Mapping[str, Mapping[tuple[str, str], Asked]],
) -> dict[str, Any] | None:
    if place is None:
        return None
    sample = one.samples[place]
    return {
        "clip": asdict(sample) | {"seed": str(sample.seed)},  # which a double cannot hold
        "labels": [asdict(labels[place]) | {"source": judge} for judge, labels in one.labels.items()],
        "verdicts": [
            asdict(verdict) | _as_asked(verdict, asked.get(verdict.source, {}).get((sample.prompt, verdict.question)))
            for verdict in verdicts.get(sample.sample_id, [])
        ],
    }


def _as_asked(verdict: Verdict, asked: Asked | None) -> dict[str, Any]:
    """The words of the question and of the answer, and whether it is the wanted one; of a single question, nothing."""
    if asked is None:
        return {}
    words = {True: asked.affirmative, False: asked.negative, None: None}
    wanted = None if verdict.answer is None else verdict.answer == asked.wanted
    return {"asked": asked.ask, "yes": asked.affirmative, "word": words[verdict.answer], "wanted": wanted}
