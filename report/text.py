"""Tables and histograms for a terminal."""

from collections.abc import Sequence

import numpy as np

BINS = 10
BAR = 40  # characters of the longest bar


def aligned(rows: Sequence[Sequence[str]], sides: str) -> str:
    """Rows of cells in columns. sides: l or r for each column, flush left or right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    columns = list(zip(widths, sides, strict=True))
    return "\n".join(
        "  ".join(
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, (width, side) in zip(row, columns, strict=True)
        ).rstrip()
        for row in rows
    )


def histogram(title: str, values: np.ndarray, low: float, high: float) -> str:
    """Counts of values in BINS equal bins of [low, high], which holds them all, with bars.

    A value at the bound of two bins counts in the upper one. Where low is high, a line that says so.
    """
    if low == high:
        return f"{title}: {low:.3g} in all {len(values)}"
    inner = [float(f"{edge:.12g}") for edge in np.linspace(low, high, BINS + 1)[1:-1]]  # 0.6, not 0.6000000000000001
    counts, edges = np.histogram(values, [low, *inner, high])
    bars = ["█" * -(-BAR * int(count) // int(counts.max())) for count in counts]  # rounded up: 1 stays visible
    rows = [
        [f"{edges[i]:.3g}", "to", f"{edges[i + 1]:.3g}", str(count), bar]
        for i, (count, bar) in enumerate(zip(counts, bars, strict=True))
    ]
    return f"{title}\n{aligned(rows, 'rlrrl')}"
