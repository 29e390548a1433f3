"""index.html: what the run reached, in a folder that can be copied anywhere and opened without a server."""

import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data.records import Label, Sample
from evaluation.accept import EvaluationSet, as_json
from report import curves, table
from report.turned import Turned, write_turned

logger = logging.getLogger(__name__)

TEMPLATE = "page.html.j2"


class Shown(NamedTuple):
    """One policy's clip in a row of the gallery."""

    policy: str
    video: str  # path from the page
    labels: dict[str, Label]  # by judge


class GalleryRow(NamedTuple):
    """One prompt and seed, as every policy filmed it."""

    sample: Sample
    shown: list[Shown]


def write_page(
    summary: Mapping[str, Any],
    sets: Mapping[str, EvaluationSet],
    logs: Mapping[str, Sequence[Mapping[str, Any]]],
    clips_per_category: int,
    out: Path,
) -> None:
    """Write index.html, summary.json and media/ into the folder `out`.

    sets: evaluation sets by policy, paired (`evaluation.accept.check_paired`). logs: training rows by policy, with
    `step` and `loss`. Equal inputs give equal bytes.
    """
    media = out / "media"
    media.mkdir(parents=True)
    gallery = _gallery(sets, clips_per_category, media)
    turned = write_turned(summary, sets, media / "turned.png")
    for theme in curves.THEMES:
        (media / f"accept-{theme.name}.svg").write_text(curves.accept_rates(summary, theme), encoding="utf-8")
        if logs:
            (media / f"loss-{theme.name}.svg").write_text(curves.training_losses(logs, theme), encoding="utf-8")
    (out / "summary.json").write_text(as_json(summary), encoding="utf-8")
    (out / "index.html").write_text(_render(summary, gallery, turned, bool(logs)), encoding="utf-8")
    logger.info("%d policies, %d clips each: %s", len(sets), len(gallery), out / "index.html")


def read_logs(policies: Path, names: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows of log.jsonl by policy, for the policies of these names that were trained."""
    paths = {name: policies / name / "log.jsonl" for name in names}
    return {
        name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for name, path in paths.items()
        if path.exists()
    }


def _render(summary: Mapping[str, Any], gallery: Sequence[GalleryRow], turned: Turned | None, has_logs: bool) -> str:
    """The page. Prompts and judges' words come from outside, so everything is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    tables = [(judge, table.columns(summary, judge), table.rows(summary, judge)) for judge in table.judges(summary)]
    round_votes = {name: table.votes(one.get("agreement")) for name, one in summary["rounds"].items()}
    return environment.get_template(TEMPLATE).render(
        summary=summary,
        tables=tables,
        round_votes=round_votes,
        vote_columns=list(next(filter(None, round_votes.values()), {})),
        voted=any(round_votes.values()) or any(table.VOTES_AGREE in columns for _, columns, _ in tables),
        gallery=gallery,
        turned=turned,
        has_logs=has_logs,
    )


def pick(samples: Sequence[Sample], per_category: int) -> list[Sample]:
    """The clips to show: of each category the first prompts, test ones before train ones, each with its first seed.

    By name alone and never by outcome, so the gallery shows what the numbers are made of.
    """
    first: dict[str, Sample] = {}
    for sample in sorted(samples, key=lambda s: (s.category, s.split != "test", s.prompt_id, s.seed)):
        first.setdefault(sample.prompt_id, sample)
    by_category: dict[str, list[Sample]] = {}
    for sample in first.values():
        by_category.setdefault(sample.category, []).append(sample)
    return [sample for group in by_category.values() for sample in group[:per_category]]


def _gallery(sets: Mapping[str, EvaluationSet], per_category: int, media: Path) -> list[GalleryRow]:
    samples = next(iter(sets.values())).samples
    rows = [(samples.index(sample), sample) for sample in pick(samples, per_category)]
    return [
        GalleryRow(sample, [_shown(name, one, place, media) for name, one in sets.items()]) for place, sample in rows
    ]


def _shown(policy: str, one: EvaluationSet, place: int, media: Path) -> Shown:
    """A policy's clip at a place of the order that all policies share, its video copied to `media`."""
    sample = one.samples[place]
    copy = media / policy / Path(sample.file_name).name
    copy.parent.mkdir(exist_ok=True)
    shutil.copyfile(one.folder / sample.file_name, copy)
    return Shown(policy, f"media/{policy}/{copy.name}", {judge: labels[place] for judge, labels in one.labels.items()})
