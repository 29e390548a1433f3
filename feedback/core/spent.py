"""What answers about clips took: how many there are, and what was paid for them."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data.counts import Counts
from data.labels import VERDICTS
from data.preferences import COMPARISONS
from data.records import Comparison, Verdict, read_rows
from feedback.core.source import FAILED, UNRATED, UNREADABLE_CLIP

NOT_ASKED = (FAILED, UNRATED, UNREADABLE_CLIP)  # beginnings of errors of rows without an answer, read or not


def spent_on(rows: Iterable[Verdict | Comparison], source: Any) -> Counts:
    """The answers in these rows of a source, whoever asked for them first, and US dollars that they cost then.

    An answer of a panel is the answers of its members. An answer that was kept from an earlier run counts too, with
    what it cost then. Dollars are None where a provider's answer has no known price, and 0 for judges of this machine
    and for people. Calls that may have been billed without an answer are not among them; `vfrl ledger` shows them.
    """
    found, members = Counts(), getattr(source, "members", {})
    for row in rows:
        for error in _answers(row) if members else [row.error]:
            found.add(Counts(judge_calls=int(not (error or "").startswith(NOT_ASKED))))
        asked = members.get(row.question, source)
        if row.cost is not None:
            found.add(Counts(usd=row.cost))
        elif hasattr(asked, "price") and not (row.error or "").startswith(NOT_ASKED):
            found.add(Counts(usd=None))
    return found


def spent_in(labels: Path, source: Any) -> Counts:
    """As `spent_on`, of the rows in a folder of labels; of a source that compares, its comparisons."""
    if (labels / COMPARISONS).is_file():
        return spent_on(read_rows(labels / COMPARISONS, Comparison), source)
    return spent_on(read_rows(labels / VERDICTS, Verdict), source)


def _answers(row: Verdict | Comparison) -> Iterator[str | None]:
    """The errors of the members' own rows, which the row of a panel holds as JSON."""
    for one in json.loads(row.raw or "[]"):
        yield one.get("error")
