"""summary.json as the tables that people read, for the page and for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from report.over_seeds import over_seeds, single_seeds
from report.text import aligned

SPLITS = ("all", "train", "test")
COMPARED = {"minus_base": "− base", "minus_start": "− start"}
VOTES_AGREE, NOT_UNANIMOUS = "votes agree (κ)", "not unanimous"  # columns only where clips had more than one vote
BETTER, WORSE, OPEN = "better", "worse", "open"  # open: the interval holds 0, or there is none, so it is neither
UNKNOWN = "–"  # in brackets: too few prompts for an interval
SEEDS = "seeds"  # a column only where policies were trained with several


class Cell(NamedTuple):
    """A number as text."""

    text: str
    verdict: str | None = None  # of a difference: better, worse or open


class Row(NamedTuple):
    """One policy, judge, pair of judges or category."""

    name: str
    cells: dict[str, Cell]  # column title -> cell; a column may be missing


class ResultTable(NamedTuple):
    """Rows under one heading."""

    title: str
    head: str  # of the column with the rows' names
    columns: list[str]
    rows: list[Row]


BASELINES = {  # in words, by the keys of a baseline in summary.json
    "best_of": "of every {n} clips of {of} the one that {judge} scores highest; each costs {samples_per_clip} samples",
    "prompt_extension": "{of} with longer prompts",
}

OVER_SEEDS = (
    "A row of several seeds is the mean of as many training runs: its bracket is over seeds and prompts, and ± is the "
    "standard deviation between the seeds."
)


def judges(summary: Mapping[str, Any]) -> list[str]:
    """The judges of a summary that accept and reject, in its order."""
    return list(dict.fromkeys(judge for policy in summary["policies"].values() for judge in policy["accept"]))


def measuring(summary: Mapping[str, Any]) -> list[str]:
    """The judges of a summary that give a score, metrics among them, in its order."""
    return list(dict.fromkeys(judge for policy in summary["policies"].values() for judge in policy.get("scores", {})))


def verdict(low: float | None, high: float | None) -> str:
    """`better` or `worse` only where the interval is clear of zero, else `open`."""
    if low is None or high is None or low <= 0 <= high:
        return OPEN
    return BETTER if low > 0 else WORSE


def findings(summary: Mapping[str, Any]) -> list[str]:
    """By judge, which policies are better or worse than base, and whether the best is better than the second."""
    return [_finding(summary, judge) for judge in judges(summary)]


def overview(summary: Mapping[str, Any]) -> ResultTable:
    """Every policy under every judge on all clips, with the difference to the base."""
    rows = []
    for name, policy in summary["policies"].items():
        cells = seeds_cell(policy)
        for judge in judges(summary):
            cells[judge] = _rate(policy["accept"].get(judge, {}).get("all"))
            if "minus_base" in policy:
                cells[f"{judge} − base"] = _difference(policy["minus_base"].get(judge, {}).get("all"))
        rows.append(Row(name, cells))
    columns = [column for judge in judges(summary) for column in (judge, f"{judge} − base")]
    columns += [SEEDS] if any(SEEDS in row.cells for row in rows) else []
    return ResultTable("Accepted, % of all clips [95 %]", "policy", columns, rows)


def accept_table(summary: Mapping[str, Any], judge: str) -> ResultTable:
    """Every policy under one judge: by split, and the differences on all clips."""
    rows = [Row(name, _accept_cells(policy, judge)) for name, policy in summary["policies"].items()]
    return _table(f"accepted by {judge}, % [95 %]", "policy", rows, [*SPLITS, *COMPARED.values()])


def seeds_table(summary: Mapping[str, Any]) -> ResultTable | None:
    """Every training run of the policies that were trained with several seeds; brackets are over its prompts alone."""
    if "replicates" not in summary:
        return None
    found = overview(single_seeds(summary))
    return found._replace(title="Each training seed: accepted, % of all clips [95 %]")


def between_table(summary: Mapping[str, Any]) -> ResultTable | None:
    """The differences of the policies that were trained with several seeds to each other, over seeds and prompts."""
    replicated = summary.get("replicates", {})
    rows = [
        Row(f"{name} − {other}", {judge: _difference(splits["all"]) for judge, splits in gaps.items()})
        for name, policy in replicated.items()
        for other, gaps in policy.get("minus", {}).items()
    ]
    return _table("Differences of these policies, points of all clips [95 %]", "policies", rows) if rows else None


def further_tables(summary: Mapping[str, Any]) -> list[ResultTable]:
    """What some runs have beside accept rates: the best clips of each prompt, and mean scores."""
    found = []
    for judge in dict.fromkeys([*judges(summary), *measuring(summary)]):
        best = [Row(name, _splits(policy, "top_k", judge, _rate)) for name, policy in summary["policies"].items()]
        found.append(_table(f"accepted by {judge} among the top k of each prompt, % [95 %]", "policy", best, SPLITS))
        means = [Row(name, _score_cells(policy, judge)) for name, policy in summary["policies"].items()]
        found.append(_table(f"mean score of {judge} [95 %]", "policy", means, [*SPLITS, "− base"]))
    return [table for table in found if table.columns]


def question_tables(summary: Mapping[str, Any]) -> list[ResultTable]:
    """Of each judge that asks several questions, how often each gets its wanted answer under each policy."""
    asked = {name: policy for name, policy in summary["policies"].items() if "questions" in policy}
    found = []
    for judge in dict.fromkeys(judge for policy in asked.values() for judge in policy["questions"]):
        questions = dict.fromkeys(one for policy in asked.values() for one in policy["questions"].get(judge, {}))
        rows = [Row(question, _question_cells(asked, judge, question)) for question in questions]
        found.append(_table(f"wanted answers of {judge}, % [95 %]", "question", rows))
    return found


def agreement_table(summary: Mapping[str, Any]) -> ResultTable | None:
    """How far each pair of judges agrees: on clips, and on what is better among prompts and policies."""
    agreement = summary.get("agreement", {})
    pairs = dict.fromkeys(pair for level in ("clips", "prompts", "policies") for pair in agreement.get(level, {}))
    rows = []
    for pair in pairs:
        clips = agreement.get("clips", {}).get(pair)
        cells = {}
        if clips:
            cells = {"clips": Cell(str(clips["n"])), "agree, %": _percent(clips["agree"]), "κ": _two(clips["kappa"])}
        for level in ("prompts", "policies"):
            if found := agreement.get(level, {}).get(pair):
                cells[f"r over {level}"] = Cell(f"{_two(found['pearson']).text} (n = {found['n']})")
                cells[f"p over {level}"] = _p_value(found["p_value"])
        rows.append(Row(pair.replace("|", " and "), cells))
    return _table("Agreement of judges", "judges", rows) if rows else None


def audit_table(summary: Mapping[str, Any]) -> ResultTable | None:
    """What each audited judge got right on clips whose answer is known."""
    audits = summary.get("audit", {}).items()
    rows = [Row(judge, _audit_cells(audit)) for judge, audit in audits if not audit.get("pairs")]
    return _table("Audit on clips whose answer is known", "judge", rows) if rows else None


def pair_audit_table(summary: Mapping[str, Any]) -> ResultTable | None:
    """What each audited judge that compares two clips got right on pairs whose better clip is known."""
    audits = summary.get("audit", {}).items()
    rows = [Row(judge, _pair_audit_cells(audit)) for judge, audit in audits if audit.get("pairs")]
    return _table("Audit on pairs whose better clip is known", "judge", rows) if rows else None


def audit_categories(summary: Mapping[str, Any]) -> list[ResultTable]:
    """Each audited judge's errors by category."""
    tables = []
    for judge, audit in summary.get("audit", {}).items():
        pairs = bool(audit.get("pairs"))
        rows = [Row(category, _category_cells(found, pairs)) for category, found in audit["categories"].items()]
        tables.append(_table(f"{judge} by category", "category", rows))
    return [table for table in tables if table.rows]


def select_table(summary: Mapping[str, Any]) -> ResultTable | None:
    """Which checkpoint of each policy was kept, beside its last."""
    rows = []
    for policy, found in summary.get("select", {}).items():
        by_step = {point["step"]: point for point in found["curve"]}
        last = max(by_step)
        as_cell = _score_of if found["judge"] in found.get("measured", []) else _rate
        cells = {
            "judge": Cell(found["judge"]),
            "kept, step": Cell(str(found["kept"])),
            "its accept rate, % (or score)": as_cell(by_step.get(found["kept"])),
            "last, step": Cell(str(last)),
            "last's": as_cell(by_step[last]),
        }
        rows.append(Row(policy, cells))
    return _table("Checkpoints", "policy", rows) if rows else None


def preference_table(summary: Mapping[str, Any]) -> ResultTable | None:
    """How often a source prefers one policy's clip to another's of the same prompt and noise."""
    rows = [_preference_row(found) for found in summary.get("preferences", {}).values()]
    return _table("Preferred, % of pairs [95 %]", "policy", rows) if rows else None


def votes(agreement: Mapping[str, Any] | None) -> dict[str, Cell]:
    """Pairs of votes that make the same label, in percent, with kappa, and clips that are not unanimous."""
    if not agreement:
        return {}
    label = agreement["label"]
    agree = UNKNOWN if label["observed"] is None else f"{100 * label['observed']:.1f} ({_two(label['kappa']).text})"
    return {VOTES_AGREE: Cell(agree), NOT_UNANIMOUS: Cell(f"{label['not_unanimous']} of {label['clips']}")}


def baselines(summary: Mapping[str, Any]) -> dict[str, str]:
    """How each baseline was made, in words."""
    made = {name: policy.get("baseline") for name, policy in summary["policies"].items()}
    return {name: BASELINES[how["kind"]].format(**how) for name, how in made.items() if how}


# Rows of one policy or judge


def _finding(summary: Mapping[str, Any], judge: str) -> str:
    gaps = {
        name: gap
        for name, policy in summary["policies"].items()
        if (gap := policy.get("minus_base", {}).get(judge, {}).get("all")) and gap["diff"] is not None
    }
    order = sorted(gaps, key=lambda name: -gaps[name]["diff"])
    said_of = {
        BETTER: "better than base",
        WORSE: "worse than base",
        OPEN: "cannot be told apart from base",
        None: "too few prompts to compare with base",
    }
    policies = dict[str | None, list[str]]((kind, []) for kind in said_of)
    for name in order:
        gap = gaps[name]
        kind = None if gap["low"] is None else verdict(gap["low"], gap["high"])
        policies[kind].append(f"{name} ({100 * gap['diff']:+.1f})")
    parts = [f"{said}: {', '.join(policies[kind])}" for kind, said in said_of.items() if policies[kind]]
    compared = f"{judge}: {'; '.join(parts) or 'no policy to compare with base'}."
    best = summary.get("best", {}).get(judge)
    return f"{compared} {_best_of(best)}" if best and best["diff"] is not None else compared


def _best_of(best: Mapping[str, Any]) -> str:
    """Whether the best of the trained policies is better than the second, by their own difference."""
    gap = _difference(best)
    if gap.verdict == BETTER:
        return f"{best['policy']} is better than {best['over']}, the second of the trained policies: {gap.text}."
    if best["low"] is None:
        return f"Too few prompts to compare {best['policy']} with {best['over']}: {gap.text}."
    return f"The best of the trained, {best['policy']}, cannot be told apart from {best['over']}: {gap.text}."


def seeds_cell(policy: Mapping[str, Any]) -> dict[str, Cell]:
    """How many seeds a row is over, where they are several."""
    return {SEEDS: Cell(str(len(policy["seeds"])))} if "seeds" in policy else {}


def _accept_cells(policy: Mapping[str, Any], judge: str) -> dict[str, Cell]:
    cells = _splits(policy, "accept", judge, _rate)
    for key, title in COMPARED.items():
        if key in policy:
            cells[title] = _difference(policy[key].get(judge, {}).get("all"))
    return cells | seeds_cell(policy) | votes(policy.get("agreement", {}).get(judge))


def _question_cells(policies: Mapping[str, Any], judge: str, question: str) -> dict[str, Cell]:
    cells = {}
    for name, policy in policies.items():
        rate = policy["questions"].get(judge, {}).get(question, {}).get("all")
        cells[name] = _rate(rate)
        if "questions_minus_base" in policy:
            gap = policy["questions_minus_base"].get(judge, {}).get(question, {}).get("all")
            cells[f"{name} − base"] = _difference(gap)
    return cells


def _score_cells(policy: Mapping[str, Any], judge: str) -> dict[str, Cell]:
    cells = _splits(policy, "scores", judge, _mean)
    gap = policy.get("score_minus_base", {}).get(judge, {}).get("all")
    if cells and gap and gap["diff"] is not None:
        text = _with_interval(gap["diff"], gap["low"], gap["high"], "+.3g")
        cells["− base"] = Cell(text, verdict(gap["low"], gap["high"]))
    return cells


def _category_cells(found: Mapping[str, Any], pairs: bool) -> dict[str, Cell]:
    cells = {"pairs" if pairs else "clips": Cell(str(found["clips"])), "right, %": _percent(found["accuracy"])}
    if not pairs:
        cells["false accepts, %"] = _percent(found["false_accept_rate"])
        cells["false rejects, %"] = _percent(found["false_reject_rate"])
    return cells


def _pair_audit_cells(audit: Mapping[str, Any]) -> dict[str, Cell]:
    pairs = audit["pairs"]
    cells = {
        "pairs": Cell(str(audit["labelled"])),
        "right, ties half, % [95 %]": _rate({"rate": audit["accuracy"], "low": audit["low"], "high": audit["high"]}),
        "ties, %": _percent(pairs["ties"] / audit["labelled"]),
        "right without ties, %": _percent(audit["decided_accuracy"]),
    }
    if pairs["both_orders"]:
        cells["first twice, %"] = _percent(pairs["position_bias"])
        cells["second twice, %"] = _percent(pairs["second_in_both"] / pairs["both_orders"])
    return cells


def _audit_cells(audit: Mapping[str, Any]) -> dict[str, Cell]:
    cells = {
        "clips": Cell(str(audit["labelled"])),
        "right, % [95 %]": _rate({"rate": audit["accuracy"], "low": audit["low"], "high": audit["high"]}),
        "AUC": _two(audit["auc"]),
        "false accepts": Cell(str(audit["false_accepts"])),
        "false rejects": Cell(str(audit["false_rejects"])),
    }
    if calibration := audit["calibration"]:
        cells["ECE"] = Cell(f"{calibration['ece']:.3f}")
    if stable := audit["votes"]:
        cells["votes agree, % (κ)"] = Cell(f"{_percent(stable['observed']).text} ({_two(stable['kappa']).text})")
    if frames := audit["frames"]:
        cells["changed by other frames, %"] = _percent(frames["changed"])
    if human := audit["human"]:
        cells["people agree, % (κ)"] = Cell(f"{_percent(human['agree']).text} ({_two(human['kappa']).text})")
    if threshold := audit["threshold"]:
        cells["threshold, now → suggested"] = Cell(f"{threshold['current']:.2f} → {threshold['suggested']:.2f}")
        now, then = _percent(threshold["accuracy_now"]), _percent(threshold["accuracy_then"])
        cells["right with it, %"] = Cell(f"{now.text} → {then.text}")
    return cells


def _preference_row(found: Mapping[str, Any]) -> Row:
    everything, test = found["splits"]["all"], found["splits"].get("test")
    cells = {key: _rate(everything[key]) for key in ("win", "tie", "loss")}
    cells["win − loss"] = _difference(everything["minus"])
    if test:
        cells["win − loss, test"] = _difference(test["minus"])
    cells["pairs"] = Cell(str(found["pairs"]))
    if found["unknown"]:
        cells["no answer"] = Cell(str(found["unknown"]))
    if found["both_orders"]:  # none where people see a pair once
        cells["first twice"] = _percent(found["position_bias"])
        cells["second twice"] = _percent(found["second_in_both"] / found["both_orders"])
    return Row(f"{found['policy']} against {found['against']}, by {found['source']}", cells)


def _splits(policy: Mapping[str, Any], key: str, judge: str, cell: Any) -> dict[str, Cell]:
    found = policy.get(key, {}).get(judge, {})
    return {split: cell(found[split]) for split in SPLITS if split in found}


# Cells


def _rate(found: Mapping[str, Any] | None) -> Cell:
    if not found or found["rate"] is None:
        return Cell(UNKNOWN)
    return Cell(_with_interval(found["rate"], found["low"], found["high"], ".1f", 100) + spread(found, 100, ".1f"))


def spread(found: Mapping[str, Any], scale: float, form: str) -> str:
    """The standard deviation between seeds times scale; nothing where there is one."""
    between = found.get("between_seeds")
    return "" if between is None else f" ± {scale * between:{form}}"


def _mean(found: Mapping[str, Any]) -> Cell:
    if found["mean"] is None:
        return Cell(UNKNOWN)
    return Cell(_with_interval(found["mean"], found["low"], found["high"], ".3g") + spread(found, 1, ".2g"))


def _score_of(point: dict[str, Any] | None) -> Cell:
    """A point of a checkpoint curve under a metric, whose rate is a mean score."""
    return _mean(point | {"mean": point["rate"]}) if point else Cell(UNKNOWN)


def _difference(found: Mapping[str, Any] | None) -> Cell:
    if not found or found["diff"] is None:
        return Cell(UNKNOWN, OPEN)
    text = _with_interval(found["diff"], found["low"], found["high"], "+.1f", 100) + spread(found, 100, ".1f")
    return Cell(text, verdict(found["low"], found["high"]))


def _with_interval(middle: float, low: float | None, high: float | None, form: str, scale: float = 1) -> str:
    """A figure times scale, with its interval in brackets; "–" in them where there is none."""
    interval = UNKNOWN if low is None or high is None else f"{scale * low:{form}}, {scale * high:{form}}"
    return f"{scale * middle:{form}} [{interval}]"


def _percent(part: float | None) -> Cell:
    return Cell(UNKNOWN if part is None else f"{100 * part:.1f}")


def _two(value: float | None) -> Cell:
    return Cell(UNKNOWN if value is None else f"{value:.2f}")


def _p_value(value: float | None) -> Cell:
    if value is None:
        return Cell(UNKNOWN)
    return Cell("< 0.001" if value < 0.001 else f"{value:.3f}")


# Tables


def _table(title: str, head: str, rows: list[Row], first: Any = ()) -> ResultTable:
    """Columns that at least one row has: those of `first` in its order, then the others as they come."""
    found = dict.fromkeys(title for row in rows for title in row.cells)
    return ResultTable(title, head, [*(t for t in first if t in found), *(t for t in found if t not in first)], rows)


def as_text(summary: Mapping[str, Any], further: Sequence[ResultTable] = ()) -> str:
    """Warnings, findings and tables for a terminal; ▲ and ▼ mark differences whose interval is clear of zero."""
    shown = over_seeds(summary)
    tables = [
        *(accept_table(shown, judge) for judge in judges(summary)),
        *further_tables(shown),
        *question_tables(summary),
        *filter(
            None,
            (
                between_table(summary),
                seeds_table(summary),
                preference_table(summary),
                agreement_table(summary),
                audit_table(summary),
                pair_audit_table(summary),
                select_table(summary),
            ),
        ),
        *further,
    ]
    warnings = [f"Warning: {warning}" for warning in summary.get("warnings", [])]
    made = [f"{name}: {how}" for name, how in baselines(shown).items()]
    made += [OVER_SEEDS] if "replicates" in summary else []
    blocks = [*map(_text_table, tables), "\n".join(made), "\n".join(findings(shown)), "\n".join(warnings)]
    return "\n\n".join(block for block in blocks if block)


def _text_table(table: ResultTable) -> str:
    marks = {BETTER: " ▲", WORSE: " ▼", OPEN: "  ", None: ""}
    lines = [[table.title, *table.columns]]
    for row in table.rows:
        cells = [row.cells.get(title, Cell("")) for title in table.columns]
        lines.append([row.name, *(cell.text + marks[cell.verdict] for cell in cells)])
    return aligned(lines, "l" + "r" * len(table.columns))
