"""The graph of rounds and policies: which policy made which clips, and which policy was trained on them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from report.figures import COLORS, Theme, as_svg
from report.table import judges

STEP, LINE = 1.55, 0.62  # inches between a node and its child, and between leaves


class Node(NamedTuple):
    """A policy or a round, with its place in a tree that grows to the right."""

    name: str
    is_round: bool
    depth: int
    height: float  # in leaves, from the top
    parent: int | None  # index of the node that it was made from


def layout(trained: Mapping[str, Mapping[str, Any]]) -> list[Node]:
    """Every policy and round as a tree, parents first.

    trained: policy -> start and round, both None where the policy was not trained (the base). The parent of a policy
        is its round. The parent of a round is the policy that made it, which is the start of those trained on it. The
        parent of a policy trained without a round is its start. A start that is not in `trained` has no parent.
    """
    above: dict[tuple[str, bool], tuple[str, bool] | None] = {}
    for name, how in trained.items():
        start = (how["start"], False) if how["start"] else None
        if start:
            above.setdefault(start, None)
        if how["round"]:
            above[how["round"], True] = start
            above[name, False] = (how["round"], True)
        else:
            above[name, False] = start
    below: dict[tuple[str, bool] | None, list[tuple[str, bool]]] = {}
    for key, parent in above.items():
        below.setdefault(parent, []).append(key)
    nodes: list[Node] = []
    leaves = 0

    def place(key: tuple[str, bool], depth: int, parent: int | None) -> float:
        nonlocal leaves
        index = len(nodes)
        nodes.append(Node(*key, depth, 0.0, parent))
        heights = [place(child, depth + 1, index) for child in below.get(key, [])]
        if not heights:
            heights, leaves = [float(leaves)], leaves + 1
        nodes[index] = nodes[index]._replace(height=(heights[0] + heights[-1]) / 2)
        return nodes[index].height

    for root in below.get(None, []):
        place(root, 0, None)
    return nodes


def draw(summary: Mapping[str, Any], theme: Theme) -> str:
    """SVG of summary["trained"]: a policy with its objective and accept rate, a round with its clips and labels."""
    nodes = layout(summary["trained"])
    width, lines = max(node.depth for node in nodes), max(node.height for node in nodes)
    figure = Figure(figsize=(STEP * (width + 0.8), LINE * (lines + 1)))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(-0.4, width + 0.4)
    axes.set_ylim(lines + 0.5, -0.5)
    axes.axis("off")
    boxes = [_box(axes, node, _words(node, summary), theme) for node in nodes]
    for node, box in zip(nodes, boxes, strict=True):  # after all boxes, at whose edges the arrows end
        if node.parent is not None:
            above = nodes[node.parent]
            arrow = {"arrowstyle": "-|>", "color": theme.soft, "linewidth": 0.9, "shrinkA": 1, "shrinkB": 1}
            ends = {"patchA": boxes[node.parent], "patchB": box}
            axes.annotate("", (node.depth, node.height), (above.depth, above.height), arrowprops=arrow | ends)
    return as_svg(figure, [], theme)


def _box(axes: Axes, node: Node, words: str, theme: Theme) -> Any:
    """The node's words in a box: rounds are round and orange, policies square and blue."""
    shape, color = ("round,pad=0.4", COLORS[1]) if node.is_round else ("square,pad=0.45", COLORS[0])
    at, box = (node.depth, node.height), {"boxstyle": shape, "facecolor": "none", "edgecolor": color}
    text = axes.text(*at, words, ha="center", va="center", fontsize=8.5, color=theme.ink, bbox=box, linespacing=1.3)
    return text.get_bbox_patch()


def _words(node: Node, summary: Mapping[str, Any]) -> str:
    if node.is_round:
        counts = summary["rounds"].get(node.name)
        return f"{node.name}\n{counts['samples']} clips" if counts else node.name
    judge = judges(summary)[0]
    found = summary["policies"].get(node.name, {}).get("accept", {}).get(judge, {}).get("all", {})
    how = summary["trained"].get(node.name, {}).get("objective")
    rate = f"{100 * found['rate']:.1f} %" if found.get("rate") is not None else None
    return "\n".join([node.name, " ".join(filter(None, (how, rate)))]).strip()
