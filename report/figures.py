"""The report's figures as SVG, each in ink for a light and for a dark ground."""

import io
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from matplotlib.transforms import BboxBase

from report.effects import drifts
from report.table import judges

COLORS = (  # readable on white and on near-black
    "#2f7bbf", "#d0762b", "#3f9a63", "#a45bb0", "#b9973a", "#7d8790", "#c65a72", "#3a9ea5", "#8a6d4f", "#6f78cf",
)  # fmt: skip
MARKERS = "os^Dv"  # one after the other when the colours are used up
SMOOTHING = 0.85  # of the running mean drawn over the raw curve
TRAINING_CURVES = ("loss", "implicit_reward_accuracy")  # columns of a training log


class Theme(NamedTuple):
    """Ink of one colour scheme; the ground is the page's."""

    name: str
    ink: str
    soft: str
    grid: str


LIGHT = Theme("light", "#33383d", "#7b848c", "#dfe3e7")
DARK = Theme("dark", "#c9ced4", "#89929a", "#3a4047")
THEMES = (LIGHT, DARK)


def accept_rates(summary: Mapping[str, Any], theme: Theme) -> str:
    """SVG: each policy's accept rate on all clips under each judge, with its interval."""
    policies, names = summary["policies"], judges(summary)
    figure = Figure(figsize=(8, 0.6 + 0.42 * len(policies)))
    axes = figure.subplots()
    for place, judge in enumerate(names):
        offset = 0.18 * (place - (len(names) - 1) / 2)
        found = {
            row + offset: rate for row, one in enumerate(policies.values()) if (rate := _known(one, judge)) is not None
        }
        _dots(axes, found, place, judge)
    axes.set_yticks(range(len(policies)), list(policies))
    axes.invert_yaxis()
    _percent_axis(axes, theme)
    _legend(axes, theme)
    return as_svg(figure, [axes], theme)


def by_round(summary: Mapping[str, Any], theme: Theme) -> str:
    """SVG: accept rates by how many rounds a policy is away from the base, joined to the policy it started from.

    summary["trained"] has the start of each policy; policies that are not in it are left out.
    """
    depths = {name: depth for name in summary["policies"] if (depth := _rounds(summary["trained"], name)) is not None}
    across = _side_by_side(depths)
    names = judges(summary)
    figure, panels = _panels(len(names), 2, 2.7)
    for panel, judge in zip(panels, names, strict=False):
        ends = []
        for place, (name, x) in enumerate(across.items()):
            if (found := _known(summary["policies"][name], judge)) is None:
                continue
            start = summary["trained"][name]["start"]
            before = _known(summary["policies"][start], judge) if start in across else None
            if before is not None:
                line = [100 * before["rate"], 100 * found["rate"]]
                panel.plot([across[start], x], line, color=_color(place), linewidth=0.9, alpha=0.6)
            panel.plot([x, x], _span(found, 100), color=_color(place), linewidth=2, solid_capstyle="butt", alpha=0.55)
            panel.plot([x], [100 * found["rate"]], _marker(place), color=_color(place), markersize=5.5)
            ends.append((x, 100 * found["rate"], name, place))
        _name_points(panel, ends)
        panel.set_xticks(range(max(depths.values()) + 1), ["base", *map(str, range(1, max(depths.values()) + 1))])
        panel.set_xlim(-0.5, max(depths.values()) + 0.75)
        panel.set_xlabel("rounds")
        panel.set_ylabel("accepted, %")
        panel.set_title(judge, fontsize=9.5, color=theme.ink, loc="left")
        panel.grid(axis="y", color=theme.grid, linewidth=0.8)
    return as_svg(figure, panels, theme)


def has_costs(summary: Mapping[str, Any]) -> bool:
    """Whether the forwards of a policy that was trained, and its gain over base, are known."""
    return any(forwards for judge in judges(summary) for forwards, _ in _gains(summary, judge).values())


def gain_by_cost(summary: Mapping[str, Any], theme: Theme) -> str:
    """SVG: each policy's gain over base, with its interval, by the forwards that making it took; a panel a judge.

    summary["costs"]: as report.cost.costs_of has it. A policy whose forwards are not known is left out. Baselines are
    hollow: what they cost beside is at sampling.
    """
    names = [judge for judge in judges(summary) if _gains(summary, judge)]
    places = {name: place for place, name in enumerate(summary["policies"])}
    figure, panels = _panels(len(names), 2, 2.9)
    for panel, judge in zip(panels, names, strict=False):
        panel.axhline(0, color=theme.soft, linewidth=0.9, linestyle=":")
        found, points = _gains(summary, judge), []
        for name, (forwards, gap) in found.items():
            place, hollow = places[name], bool(summary["policies"][name].get("baseline"))
            x, color = forwards, _color(place)
            panel.plot([x, x], [100 * gap["low"], 100 * gap["high"]], color=color, linewidth=2, alpha=0.55)
            face = "none" if hollow else color
            panel.plot([x], [100 * gap["diff"]], _marker(place), color=color, markersize=5.5, markerfacecolor=face)
            points.append((x, 100 * gap["diff"], name, place))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.set_xlabel("forwards of the denoiser")
        panel.set_ylabel("− base, points of all clips")
        panel.set_title(judge, fontsize=9.5, color=theme.ink, loc="left")
        panel.grid(color=theme.grid, linewidth=0.6)
        _name_to_the_right(panel, points)
    return as_svg(figure, panels, theme)


def _gains(summary: Mapping[str, Any], judge: str) -> dict[str, tuple[int, Mapping[str, float]]]:
    """Forwards of making each policy, and its difference to base, where both are known."""
    found = {}
    for name, cost in summary.get("costs", {}).items():
        forwards = cost["making"]["forwards"]
        gap = summary["policies"][name].get("minus_base", {}).get(judge, {}).get("all")
        if forwards is not None and gap and gap["diff"] is not None:
            found[name] = (forwards, gap)
    return found


def by_category(summary: Mapping[str, Any], theme: Theme) -> str:
    """SVG: each policy's accept rate in each category, a panel a judge."""
    policies, names = summary["policies"], judges(summary)
    categories = list(dict.fromkeys(name for policy in policies.values() for name in policy.get("categories", {})))
    columns = min(2, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(9.5, lines * (0.7 + len(categories) * (0.22 + 0.12 * len(policies)))))
    panels = list(figure.subplots(lines, columns, squeeze=False, sharey=True, gridspec_kw={"wspace": 0.06}).flat)
    for panel, judge in zip(panels, names, strict=False):
        for place, (name, policy) in enumerate(policies.items()):
            offset = 0.8 * (place - (len(policies) - 1) / 2) / len(policies)
            found = {
                row + offset: rate
                for row, category in enumerate(categories)
                if (rate := _known(policy.get("categories", {}).get(category, {}), judge)) is not None
            }
            _dots(panel, found, place, name, size=4)
        panel.set_yticks(range(len(categories)), [category.replace("_", " ") for category in categories])
        panel.set_ylim(len(categories) - 0.5, -0.5)
        panel.set_title(judge, fontsize=9.5, color=theme.ink, loc="left")
        _percent_axis(panel, theme)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    top = 0.88 + 0.28 / figure.get_figheight()  # above the panels and their titles
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower center", bbox_to_anchor=(0.5, top), ncols=8, frameon=False,
        labelcolor=theme.ink, handletextpad=0.2, columnspacing=1.2, fontsize=9,
    )  # fmt: skip
    return as_svg(figure, panels, theme)


def reward_by_drift(summary: Mapping[str, Any], theme: Theme) -> str:
    """SVG: each policy's accept rate by how far its predictions are from the base's, a panel a judge.

    Policies whose drift is not known are left out. A policy far to the right that is no higher has changed without
    gain; where rates fall with drift under one judge alone, the other is exploited.
    """
    distances, names = drifts(summary), judges(summary)
    figure, panels = _panels(len(names), 2, 2.7)
    for panel, judge in zip(panels, names, strict=False):
        points = []
        for place, (name, distance) in enumerate(distances.items()):
            if (found := _known(summary["policies"][name], judge)) is None:
                continue
            if found["low"] is not None:
                span = [100 * found["low"], 100 * found["high"]]
                panel.plot([distance, distance], span, color=_color(place), linewidth=2, alpha=0.55)
            panel.plot([distance], [100 * found["rate"]], _marker(place), color=_color(place), markersize=5.5)
            points.append((distance, 100 * found["rate"], name, place))
        panel.set_xlabel("mean squared change of the prediction")
        panel.set_ylabel("accepted, %")
        panel.set_title(judge, fontsize=9.5, color=theme.ink, loc="left")
        panel.grid(color=theme.grid, linewidth=0.6)
        _name_to_the_right(panel, points)
    return as_svg(figure, panels, theme)


def training_curves(
    logs: Mapping[str, Sequence[Mapping[str, Any]]], theme: Theme, further: Mapping[str, str] = MappingProxyType({})
) -> str:
    """SVG: by step a policy's loss, and how often DPO prefers the chosen clip. Losses share no scale, so no axis.

    logs: policy -> rows with `step` and `loss`, at least one policy.
    further: policies that are other seeds of one, whose running means are drawn beside its own.
    """
    curves = [
        (name, column, rows)
        for name, rows in logs.items()
        for column in TRAINING_CURVES
        if rows and column in rows[0] and further.get(name) not in logs
    ]
    figure, panels = _panels(len(curves), 3, 1.7, hspace=0.5)
    for panel, (name, column, rows) in zip(panels, curves, strict=False):
        steps, values = [row["step"] for row in rows], [row[column] for row in rows]
        panel.plot(steps, values, color=COLORS[0], linewidth=0.8, alpha=0.35)
        for place, seed in enumerate((other for other, first in further.items() if first == name), 1):
            means = _running_mean([row[column] for row in logs.get(seed, ())])
            panel.plot([row["step"] for row in logs.get(seed, ())], means, color=_color(place), linewidth=1, alpha=0.8)
        panel.plot(steps, _running_mean(values), color=COLORS[0], linewidth=1.6)
        panel.set_title(f"{name}, {column.replace('_', ' ')}", fontsize=9, color=theme.ink, loc="left")
        panel.grid(color=theme.grid, linewidth=0.6)
    return as_svg(figure, panels, theme)


def over_optimisation(select: Mapping[str, Any], theme: Theme) -> str:
    """SVG: accept rate by training step under the judge that selects and under others; a line marks what was kept.

    select: policy -> judge, measured, kept and curve. Where the judge's rate rises while the others' fall, the policy
    has learned the judge and not the task (Furuta et al., Fig. 7 right). Metrics have their own scale, on the right.
    """
    figure, panels = _panels(len(select), 2, 2.4, hspace=0.45)
    for panel, (policy, found) in zip(panels, select.items(), strict=False):
        curve = found["curve"]
        others = dict.fromkeys(name for point in curve for name in point.get("others", {}))
        series = {found["judge"]: curve} | {
            name: [point["others"][name] | {"step": point["step"]} for point in curve if name in point["others"]]
            for name in others
        }
        measured = set(found.get("measured", []))
        scores = panel.twinx() if measured & series.keys() else panel
        lines = []
        for place, (judge, points) in enumerate(series.items()):
            known = [point for point in points if point["rate"] is not None]
            steps = [point["step"] for point in known]
            axis, factor = (scores, 1) if judge in measured else (panel, 100)
            rate, spans = [factor * point["rate"] for point in known], [_span(point, factor) for point in known]
            color, style = _color(place), "-" if judge == found["judge"] else "--"
            lines += axis.plot(steps, rate, style, marker=_marker(place), color=color, markersize=4, label=judge)
            lows, highs = [low for low, _ in spans], [high for _, high in spans]
            axis.fill_between(steps, lows, highs, color=color, alpha=0.13, linewidth=0)
        if scores is not panel:
            scores.set_ylabel("mean score", color=theme.ink)
            scores.tick_params(colors=theme.soft)
            for side in scores.spines.values():
                side.set_visible(False)
        panel.axvline(found["kept"], color=theme.soft, linewidth=0.9, linestyle=":")
        panel.set_title(f"{policy} (kept: step {found['kept']})", fontsize=9.5, color=theme.ink, loc="left")
        panel.set_xlabel("training step")
        panel.set_ylabel("accepted, %")
        panel.grid(color=theme.grid, linewidth=0.6)
        panel.legend(handles=lines, frameon=False, labelcolor=theme.ink, fontsize=8)
    return as_svg(figure, panels, theme)


def answer_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]], theme: Theme) -> str:
    """SVG: by update the probability of each wanted answer, as a running mean, and the judges' scores of full samples.

    A policy that is trained on metrics has their scores in place of the probabilities, one that is trained by rewards
    the mean reward of its rollouts.
    logs: policy -> rows of an online run, with `questions`, `reward` or `held_out`, at least one policy. Where the
    training judge rises and the held-out one falls, the policy exploits the judge.
    """
    figure, panels = _panels(len(logs), 2, 2.6, hspace=0.45)
    for panel, (policy, rows) in zip(panels, logs.items(), strict=False):
        answered, checked = ([row for row in rows if key in row] for key in ("questions", "held_out"))
        answers = [one for row in answered for one in row["questions"].values()]
        rewards = [(row["step"], row["reward"]) for row in rows if "reward" in row]
        scored = bool(answers) and all(one["p"] is None for one in answers)  # by metrics
        scored |= not all(0 <= reward <= 1 for _, reward in rewards)
        lines = []
        if rewards:
            means = _running_mean([reward for _, reward in rewards])
            look: dict[str, Any] = {
                "color": _color(0),
                "linewidth": 1.2,
                "alpha": 0.7,
                "label": "reward of the rollouts",
            }
            lines += panel.plot([step for step, _ in rewards], means, **look)
        for place, question in enumerate(dict.fromkeys(name for row in answered for name in row["questions"])):
            found = [(row["step"], row["questions"][question]) for row in answered if question in row["questions"]]
            known = [(step, -one["loss"] if scored else one["p"]) for step, one in found]
            known = [(step, value) for step, value in known if value is not None]
            if known:
                means = _running_mean([value for _, value in known])
                look = {"color": _color(place), "linewidth": 1.2, "alpha": 0.7, "label": question}
                lines += panel.plot([step for step, _ in known], means, **look)
        beside = None  # the axis of rates, where the panel's own is of scores
        for judge, style in (("training", "-"), ("held_out", "--")):
            values = [row["held_out"][judge] for row in checked]
            rates = all(0 <= value <= 1 for value in values)
            # A source whose score is the reward may accept beside it, with a probability.
            metric = scored and judge == "training" and not (rewards and rates)
            if values and (metric or rates):  # no other scores have an axis here
                if scored and not metric:
                    beside = beside or _rate_axis(panel, theme)
                axis = beside if beside and not metric else panel
                name = f"{judge.replace('_', '-')} judge, full samples"
                steps = [row["step"] for row in checked]
                look = {"color": theme.ink, "marker": "o", "markersize": 4, "linewidth": 1.6, "label": name}
                lines += axis.plot(steps, values, style, **look)
        if not scored:
            panel.set_ylim(-0.03, 1.03)
        panel.set_title(policy, fontsize=9.5, color=theme.ink, loc="left")
        panel.set_xlabel("update")
        panel.set_ylabel("reward" if rewards else "score" if scored else "probability of the wanted answer")
        panel.grid(color=theme.grid, linewidth=0.6)
        if lines:
            panel.legend(handles=lines, frameon=False, labelcolor=theme.ink, fontsize=7)
    return as_svg(figure, panels, theme)


def held_out_rates(
    logs: Mapping[str, Sequence[Mapping[str, Any]]], summary: Mapping[str, Any]
) -> dict[str, dict[str, dict[int, float]]]:
    """By held-out judge and online policy, the judge's rate at each check, by update.

    logs: policy -> rows of its log. summary["methods"] names each policy's held-out judge; a policy whose judge is not
    known is left out, and one whose judge gives scores, which are no rates.
    """
    found: dict[str, dict[str, dict[int, float]]] = {}
    policies = summary.get("methods", {}).get("policies", {})
    for name, rows in logs.items():
        judge = policies.get(name, {}).get("held_out")
        rates = {row["step"]: row["held_out"]["held_out"] for row in rows if "held_out" in row}
        if judge and rates and all(0 <= rate <= 1 for rate in rates.values()):
            found.setdefault(judge, {})[name] = rates
    return found


def training_dynamics(
    checks: Mapping[str, Mapping[str, Mapping[int, float]]],
    starts: Mapping[str, str],
    theme: Theme,
    further: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """SVG: the held-out judge's rate by update, all online policies together, a panel a judge; the base's level dashed.

    checks: from `held_out_rates`, at least one policy. starts: the policy that each was trained from; those that start
    from base are at its level at update 0, on the same prompts and noise.
    further: policies that are other seeds of one, whose lines are thinner and have its colour.
    Diffusion-DRF, Fig. 7, by VBench-2.0's score there: a policy that falls below the base has exploited its judge.
    """
    figure, panels = _panels(len(checks), 1, 3.2)  # names stand to the right
    for panel, (judge, policies) in zip(panels, checks.items(), strict=False):
        base = [rates[0] for name, rates in policies.items() if starts.get(name) == "base" and 0 in rates]
        if base:
            panel.axhline(100 * base[0], color=theme.soft, linewidth=1.2, linestyle="--", label="base")
        places = {name: place for place, name in enumerate(name for name in policies if name not in further)}
        for name, rates in policies.items():
            place, again = places.get(further.get(name, name), len(places)), name in further
            look: dict[str, Any] = {"color": _color(place), "linewidth": 0.8 if again else 1.6, "markersize": 4}
            values = [100 * rate for rate in rates.values()]
            panel.plot(list(rates), values, f"{_marker(place)}-", label=None if again else name, **look)
        panel.set_title(judge, fontsize=9.5, color=theme.ink, loc="left")
        panel.set_xlabel("update")
        panel.set_ylabel("accepted by the held-out judge, %")
        panel.grid(color=theme.grid, linewidth=0.6)
        panel.legend(frameon=False, labelcolor=theme.ink, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return as_svg(figure, panels, theme)


def _rate_axis(panel: Any, theme: Theme) -> Any:
    """A second axis, of the judges' rates, beside the scores of a panel."""
    axis = panel.twinx()
    axis.set_ylim(-0.03, 1.03)
    axis.set_ylabel("accepted", color=theme.ink, fontsize=8)
    axis.tick_params(colors=theme.soft, labelsize=7)
    for side in axis.spines.values():
        side.set_visible(False)
    return axis


def reliability(audit: Mapping[str, Any], theme: Theme) -> str:
    """SVG: the part of a judge's clips that truth accepts, by p_accept; on the diagonal the judge is calibrated.

    audit: judge -> calibration with ece and bins, at least one judge.
    """
    figure, panels = _panels(len(audit), 3, 2.9, hspace=0.45)
    for panel, (judge, found) in zip(panels, audit.items(), strict=False):
        bins = [one for one in found["bins"] if one["n"]]
        largest = max((one["n"] for one in bins), default=1)
        panel.plot([0, 1], [0, 1], color=theme.soft, linewidth=0.9, linestyle=":")
        x, y = [one["mean_p"] for one in bins], [one["accepted_by_truth"] for one in bins]
        panel.plot(x, y, color=COLORS[0], linewidth=1, alpha=0.6)
        panel.scatter(x, y, s=[12 + 120 * one["n"] / largest for one in bins], color=COLORS[0], zorder=3)
        panel.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), aspect="equal")
        panel.set_xlabel("p_accept")
        panel.set_ylabel("accepted by truth")
        panel.set_title(f"{judge}, ECE {found['ece']:.3f}", fontsize=9.5, color=theme.ink, loc="left")
        panel.grid(color=theme.grid, linewidth=0.6)
    return as_svg(figure, panels, theme)


def as_svg(figure: Figure, panels: Sequence[Axes], theme: Theme) -> str:
    """The figure's text. Equal figures give equal text: no date, no random ids."""
    for panel in panels:
        panel.set_facecolor("none")
        panel.tick_params(colors=theme.ink, labelsize=8)
        for axis in (panel.xaxis, panel.yaxis):
            axis.label.set_color(theme.ink)
            axis.label.set_fontsize(8.5)
        panel.set_axisbelow(True)
        for side, spine in panel.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(theme.grid)
    figure.set_facecolor("none")
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "report", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()


def _known(policy: Mapping[str, Any], judge: str) -> Mapping[str, float] | None:
    """A policy's accept rate on all clips, or of a category, if any clip has a label."""
    found = policy.get("accept", {}).get(judge, {}).get("all")
    return found if found and found["rate"] is not None else None


def _rounds(trained: Mapping[str, Mapping[str, Any]], name: str) -> int | None:
    """Training runs between the base and a policy."""
    seen = 0
    while name in trained and trained[name]["start"]:
        name, seen = trained[name]["start"], seen + 1
    return seen if name in trained else None


def _side_by_side(depths: Mapping[str, int]) -> dict[str, float]:
    """Where each policy stands: about its depth, beside the others of it, so that no interval hides another."""
    groups: dict[int, list[str]] = {}
    for name, depth in depths.items():
        groups.setdefault(depth, []).append(name)
    return {name: at + 0.07 * (groups[at].index(name) - (len(groups[at]) - 1) / 2) for name, at in depths.items()}


def _dots(axes: Axes, rates: Mapping[float, Mapping[str, float]], place: int, label: str, size: float = 6) -> None:
    """Rates with their intervals at heights, in percent."""
    for height, found in rates.items():
        span = _span(found, 100)
        axes.plot(span, [height, height], color=_color(place), linewidth=size / 3, solid_capstyle="butt", alpha=0.55)
    values = [100 * found["rate"] for found in rates.values()]
    axes.plot(values, list(rates), _marker(place), color=_color(place), markersize=size, label=label, clip_on=False)


def _span(found: Mapping[str, Any], factor: float) -> list[float]:
    """Low and high times a factor; nan, which draws nothing, where there are too few prompts for an interval."""
    return [math.nan if found[end] is None else factor * found[end] for end in ("low", "high")]


def _name_points(panel: Axes, ends: Sequence[tuple[float, float, str, int]]) -> None:
    """Each point's name beside its column, away from the lines, moved apart where names would touch."""
    low, high = panel.get_ylim()
    gap = (high - low) / 15
    for depth in {round(x) for x, *_ in ends}:
        column = sorted((end for end in ends if round(end[0]) == depth), key=lambda end: end[1])
        heights: list[float] = []
        for _, y, *_ in column:
            heights.append(max(y, heights[-1] + gap) if heights else y)
        edge, side = (min(column)[0] - 0.06, "right") if depth == 0 else (max(column)[0] + 0.06, "left")
        for height, (_, _, name, place) in zip(heights, column, strict=True):
            panel.text(edge, height, name, fontsize=8, color=_color(place), va="center", ha=side)


def _name_to_the_right(panel: Axes, points: Sequence[tuple[float, float, str, int]]) -> None:
    """Each point's name at its right, higher where it would touch the name of a lower point."""
    left, right = panel.get_xlim()
    panel.set_xlim(left, right + 0.25 * (right - left))  # the names' place
    panel.set_ylim(panel.get_ylim())  # names are compared in pixels
    taken: list[BboxBase] = []
    for x, y, name, place in sorted(points, key=lambda point: point[1]):
        text = panel.annotate(name, (x, y), (5, 3), textcoords="offset points", color=_color(place), fontsize=8)
        while any(text.get_window_extent().overlaps(box) for box in taken):
            text.xyann = (5, text.xyann[1] + 1)
        taken.append(text.get_window_extent())


def _color(place: int) -> str:
    return COLORS[place % len(COLORS)]


def _marker(place: int) -> str:
    return MARKERS[place // len(COLORS) % len(MARKERS)]


def _panels(count: int, across: int, height: float, hspace: float = 0.4) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, at most `across` beside each other; the rest of the last line stays empty."""
    columns = min(across, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(9.5 * max(columns, 2) / max(across, 2), 0.3 + height * lines))
    panels = list(figure.subplots(lines, columns, squeeze=False, gridspec_kw={"wspace": 0.28, "hspace": hspace}).flat)
    for panel in panels[count:]:
        panel.set_visible(False)
    return figure, panels


def _running_mean(values: Sequence[float]) -> list[float]:
    """Exponential mean without the pull towards its start."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total = SMOOTHING * total + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        means.append(total / weight)
    return means


def _percent_axis(axes: Axes, theme: Theme) -> None:
    axes.set_xlim(0, 100)
    axes.set_xlabel("accepted, % of clips (95 % interval)")
    axes.grid(axis="x", color=theme.grid, linewidth=0.8)


def _legend(axes: Axes, theme: Theme) -> None:
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=6, frameon=False, labelcolor=theme.ink, handletextpad=0.2,
        fontsize=9,
    )  # fmt: skip
