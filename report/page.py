"""index.html: what the run reached, in a folder that can be copied anywhere and opened without a server."""

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data.policies import HEATMAPS, name_of
from evaluation.accept import as_json
from evaluation.checkpoints import RATE
from evaluation.sets import EvaluationSet
from report import cost, effects, figures, lineage, methods, table
from report.gallery import write_gallery
from report.html import render
from report.over_seeds import further, over_seeds
from report.playable import PlayableCopies
from report.turned import write_turned

logger = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("page.html.j2")
HOW_TRAINED = ("start", "round", "objective", "source")  # of policy.json; null where a policy was not trained

Logs = Mapping[str, Sequence[Mapping[str, Any]]]
Heatmaps = Mapping[str, Mapping[int, Path]]  # by policy and update, the sheet of where its judges looked


def write_page(
    summary: Mapping[str, Any],
    sets: Mapping[str, EvaluationSet],
    logs: Logs,
    per_prompt: int | None,
    out: Path,
    encoded: Path | None = None,
    heatmaps: Heatmaps = MappingProxyType({}),
) -> None:
    """Write index.html, gallery.html, summary.json and what they show into the folder `out`.

    summary: `evaluation.accept.summarise`'s, and where they are known `trained` (`read_trained`), `methods`
        (`report.methods.read_methods`), `costs` (`report.cost.costs_of`), `audit` and `select` (`read_measured`,
        `read_selected`).
    sets: evaluation sets by policy; a baseline that is only computed has none.
    logs: training rows by policy, with `step` and `loss`. per_prompt: clips of each prompt in the gallery; None: all.
    encoded: folder that keeps the gallery's encoded clips for the next report; None keeps none.
    heatmaps: sheets of online policies, as `read_heatmaps` finds them.
    Equal inputs give equal bytes.
    """
    media = out / "media"
    media.mkdir(parents=True)
    turned = write_turned(over_seeds(summary), sets, media / "turned.png")
    summary = {**summary, **({"turned": turned._asdict()} if turned else {})}
    drawn = _draw(summary, logs, media)
    clips = write_gallery(table.judges(summary), sets, per_prompt, out, PlayableCopies(encoded) if encoded else None)
    summary["gallery"] = {"clips": clips}
    (out / "summary.json").write_text(as_json(summary), encoding="utf-8")
    looks = _copy_heatmaps(heatmaps, media)
    (out / "index.html").write_text(_render(summary, drawn, looks), encoding="utf-8")
    logger.info("%d policies, %d clips: %s", len(sets), clips, out / "index.html")


def read_logs(policies: Path, names: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows of log.jsonl by policy, for the policies of these names that were trained."""
    paths = {name: policies / name / "log.jsonl" for name in names}
    return {
        name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for name, path in paths.items()
        if path.exists()
    }


def read_heatmaps(policies: Path, names: Iterable[str]) -> dict[str, dict[int, Path]]:
    """For the online policies of these names that were checked, the sheets of their start and of the update kept."""
    found: dict[str, dict[int, Path]] = {}
    for name in names:
        folder = policies / name / HEATMAPS
        if folder.is_dir():
            kept = json.loads((policies / name / "policy.json").read_text(encoding="utf-8"))["step"]
            sheets = {step: folder / f"{name_of(step)}.png" for step in dict.fromkeys((0, kept))}
            found[name] = {step: path for step, path in sheets.items() if path.is_file()}
    return found


def _copy_heatmaps(heatmaps: Heatmaps, media: Path) -> dict[str, dict[int, str]]:
    """The sheets' names in `media`, into which they are copied."""
    named = {policy: {step: f"heatmap-{policy}-{step}.png" for step in sheets} for policy, sheets in heatmaps.items()}
    for policy, sheets in heatmaps.items():
        for step, path in sheets.items():
            shutil.copyfile(path, media / named[policy][step])
    return named


def read_trained(policies: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How each of these policies was trained: its start, round, objective and source, null for the base.

    Where it was trained on several rounds, or on another policy's, also `rounds`: each with the policy that sampled it.
    """
    paths = {name: policies / name / "policy.json" for name in names}
    facts = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}
    return {
        name: {key: found.get(key) for key in HOW_TRAINED} | ({"rounds": found["rounds"]} if "rounds" in found else {})
        for name, found in facts.items()
    }


def read_measured(folder: Path) -> dict[str, Any]:
    """The JSON documents <folder>/<name>.json by name; none where there is no folder."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def read_selected(folder: Path) -> dict[str, Any]:
    """By policy, the result of stage `select`: judge, measured (the judges that are metrics), kept (step), and curve.

    A point of the curve has step, rate, low, high and n of the judge that selects, and those of the others in `others`.
    """
    return {name: _selected(document) for name, document in read_measured(folder).items()}


def _selected(document: Mapping[str, Any]) -> dict[str, Any]:
    points: dict[int, dict[str, Any]] = {}
    for row in document["curve"]:  # a step's first row is of the judge that selects
        found = {key: row[key] for key in RATE}
        if row["step"] in points:
            points[row["step"]]["others"][row["judge"]] = found
        else:
            points[row["step"]] = {"step": row["step"], **found, "others": {}}
    judge = document["curve"][0]["judge"]
    measured = [name for name, is_metric in document["measured"].items() if is_metric]
    return {"judge": judge, "measured": measured, "kept": document["kept"], "curve": list(points.values())}


def _draw(summary: Mapping[str, Any], logs: Logs, media: Path) -> list[str]:
    """Write every figure that the summary has numbers for, in both themes; returns their names."""
    calibrated = {
        judge: audit["calibration"] for judge, audit in summary.get("audit", {}).items() if audit["calibration"]
    }
    shown, seeds = over_seeds(summary), further(summary)
    online = {name: rows for name, rows in logs.items() if any("questions" in row or "reward" in row for row in rows)}
    offline = {name: rows for name, rows in logs.items() if name not in online}
    trained = [name for name, how in summary.get("trained", {}).items() if how["start"]]
    starts = {name: how["start"] for name, how in summary.get("trained", {}).items()}
    checks = figures.held_out_rates(online, summary)
    candidates: list[tuple[str, Callable[[figures.Theme], str], object]] = [
        ("accept", lambda theme: figures.accept_rates(shown, theme), True),
        ("categories", lambda theme: figures.by_category(shown, theme), True),
        ("cost", lambda theme: figures.gain_by_cost(shown, theme), figures.has_costs(shown)),
        ("rounds", lambda theme: figures.by_round(shown, theme), trained),
        ("lineage", lambda theme: lineage.draw(shown, theme), trained),
        ("drift", lambda theme: figures.reward_by_drift(shown, theme), any(effects.drifts(shown).values())),
        ("training", lambda theme: figures.training_curves(offline, theme, seeds), offline),
        ("answers", lambda theme: figures.answer_curves(online, theme), online),
        ("dynamics", lambda theme: figures.training_dynamics(checks, starts, theme, seeds), checks),
        ("select", lambda theme: figures.over_optimisation(summary["select"], theme), summary.get("select")),
        ("reliability", lambda theme: figures.reliability(calibrated, theme), calibrated),
    ]
    drawn = []
    for name, draw, wanted in candidates:
        if wanted:
            drawn.append(name)
            for theme in figures.THEMES:
                (media / f"{name}-{theme.name}.svg").write_text(draw(theme), encoding="utf-8")
    return drawn


def _render(summary: Mapping[str, Any], drawn: Sequence[str], heatmaps: Mapping[str, Mapping[int, str]]) -> str:
    """The page's HTML. heatmaps: names in media/ by policy and update."""
    shown = over_seeds(summary)
    accept_tables = [table.accept_table(shown, judge) for judge in table.judges(summary)]
    round_votes = {name: table.votes(one.get("agreement")) for name, one in summary["rounds"].items()}
    return render(
        TEMPLATE,
        summary=summary,
        warnings=summary.get("warnings", []),
        findings=table.findings(shown),
        overview=table.overview(shown),
        over_seeds=table.OVER_SEEDS,
        seeds=table.seeds_table(summary),
        between=table.between_table(summary),
        accept_tables=accept_tables,
        further_tables=table.further_tables(shown),
        question_tables=table.question_tables(summary),
        baselines=table.baselines(shown),
        effects=effects.effects_table(shown),
        reasons=effects.reason_tables(shown),
        effects_over_seeds=effects.OVER_SEEDS,
        effects_of_seeds=effects.seeds_tables(summary),
        preferences=table.preference_table(summary),
        agreement=table.agreement_table(summary),
        audit=table.audit_table(summary),
        pair_audit=table.pair_audit_table(summary),
        audit_categories=table.audit_categories(summary),
        select=table.select_table(summary),
        costs=cost.tables(summary),
        methods=methods.tables(summary.get("methods"), summary.get("replicates", {})),
        round_votes=round_votes,
        vote_columns=list(next(filter(None, round_votes.values()), {})),
        voted=any(round_votes.values()) or any(table.VOTES_AGREE in one.columns for one in accept_tables),
        turned=summary.get("turned"),
        drawn=drawn,
        heatmaps=heatmaps,
        judges=table.judges(summary),
        clips=summary["gallery"]["clips"],
    )
