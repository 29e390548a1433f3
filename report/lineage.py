"""The graph of rounds and policies: which policy made which clips, and which policy was trained on them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from report.figures import COLORS, Theme, as_svg
from report.table import judges

STEP, LINE = 1.55, 0.62  # inches between a node and its child, and between leaves
CURVE = 0.15  # height of a curved arrow by its length


class LineageNode(NamedTuple):
    """A policy or a round, with its place in a tree that grows to the right."""

    name: str
    is_round: bool
    depth: int
    height: float  # in leaves, from the top
    parent: int | None  # index of the node that it was made from
    others: tuple[int, ...] = ()  # of further ones


Key = tuple[str, bool]  # name and is_round of a node


def layout(trained: Mapping[str, Mapping[str, Any]]) -> list[LineageNode]:
    """Every policy and round as a tree, parents first.

    trained: policy -> start and round, both None where the policy was not trained (the base), and `rounds` of one that
        was trained on several or on another policy's. The parent of a policy is its first round that its start
        sampled; its other rounds are `others`, and its start where it sampled none. The parent of a round is the policy
        that sampled it. The parent of a policy trained without a round is its start. A start that is not in `trained`
        has no parent.
    """
    above: dict[Key, Key | None] = {}
    others: dict[Key, list[Key]] = {}
    for name, how in trained.items():
        start = (how["start"], False) if how["start"] else None
        if start:
            above.setdefault(start, None)
        rounds = _rounds(how)
        for one, maker in rounds.items():
            above.setdefault(maker, None)
            above[one] = maker
        first = next((one for one, maker in rounds.items() if maker == start), next(iter(rounds), start))
        above[name, False] = first
        others[name, False] = [one for one in rounds if one != first]
        if start and rounds and start not in rounds.values():
            others[name, False].append(start)
    return _placed(above, others)


def _rounds(how: Mapping[str, Any]) -> dict[Key, Key]:
    """The rounds that a policy was trained on, each with the policy that sampled it."""
    listed = how.get("rounds") or ([{"round": how["round"], "policy": how["start"]}] if how["round"] else [])
    return {(one["round"], True): (one["policy"], False) for one in listed}


def _placed(above: Mapping[Key, Key | None], others: Mapping[Key, list[Key]]) -> list[LineageNode]:
    """The nodes, each with its place. above: node -> its parent. others: node -> its further ones."""
    below: dict[Key | None, list[Key]] = {}
    for key, parent in above.items():
        below.setdefault(parent, []).append(key)
    nodes: list[LineageNode] = []
    leaves = 0

    def place(key: Key, depth: int, parent: int | None) -> float:
        nonlocal leaves
        index = len(nodes)
        nodes.append(LineageNode(*key, depth, 0.0, parent))
        heights = [place(child, depth + 1, index) for child in below.get(key, [])]
        if not heights:
            heights, leaves = [float(leaves)], leaves + 1
        nodes[index] = nodes[index]._replace(height=(heights[0] + heights[-1]) / 2)
        return nodes[index].height

    for root in below.get(None, []):
        place(root, 0, None)
    at = {(node.name, node.is_round): index for index, node in enumerate(nodes)}
    return [
        node._replace(others=tuple(at[key] for key in others.get((node.name, node.is_round), []))) for node in nodes
    ]


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
        for index in [] if node.parent is None else [node.parent, *node.others]:
            above = nodes[index]
            arrow = {"arrowstyle": "-|>", "color": theme.soft, "linewidth": 0.9, "shrinkA": 1, "shrinkB": 1}
            arrow |= {"patchA": boxes[index], "patchB": box}
            if index != node.parent:  # past other boxes: curved away from their line
                curve = -CURVE if above.height < node.height else CURVE
                arrow |= {"linestyle": "--", "connectionstyle": f"arc3,rad={curve}"}
            axes.annotate("", (node.depth, node.height), (above.depth, above.height), arrowprops=arrow)
    return as_svg(figure, [], theme)


def _box(axes: Axes, node: LineageNode, words: str, theme: Theme) -> Any:
    """The node's words in a box: rounds are round and orange, policies square and blue."""
    shape, color = ("round,pad=0.4", COLORS[1]) if node.is_round else ("square,pad=0.45", COLORS[0])
    at, box = (node.depth, node.height), {"boxstyle": shape, "facecolor": "none", "edgecolor": color}
    text = axes.text(*at, words, ha="center", va="center", fontsize=8.5, color=theme.ink, bbox=box, linespacing=1.3)
    return text.get_bbox_patch()


def _words(node: LineageNode, summary: Mapping[str, Any]) -> str:
    if node.is_round:
        counts = summary["rounds"].get(node.name)
        return f"{node.name}\n{counts['samples']} clips" if counts else node.name
    judge = judges(summary)[0]
    found = summary["policies"].get(node.name, {}).get("accept", {}).get(judge, {}).get("all", {})
    how = summary["trained"].get(node.name, {}).get("objective")
    rate = f"{100 * found['rate']:.1f} %" if found.get("rate") is not None else None
    return "\n".join([node.name, " ".join(filter(None, (how, rate)))]).strip()
