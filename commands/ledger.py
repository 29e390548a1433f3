"""Which answers and verdicts are kept, by source, and the removal of some."""

import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from data.manifest import StoreError
from feedback.core.verdicts import OFF, VARIABLE, Chosen, VerdictFile, verdicts_path
from feedback.network.ledger import PEOPLE, Account, Ledger, ledger_path
from pipeline.command import Finite, stage_command

MEGABYTE = 1e6
DAYS, MEGABYTES = Finite(0, 36_500), Finite(0, 1e9)
PAID = ("source", "asked", "answers", "dollars", "MB", "first", "last")
LOCAL = ("source", "kind", "model", "version", "rubric", "clips", "shown pairs", "MB", "first", "last")


@stage_command
@click.option("--prune", is_flag=True, help="Remove what the options choose. Paid answers only by --paid.")
@click.option("--source", help="With --prune: verdicts of this source, by the name that the table shows.")
@click.option("--older-than", "days", type=DAYS, help="With --prune: verdicts older than so many days.")
@click.option("--keep-mb", "keep", type=MEGABYTES, help="With --prune: all but the latest, of so many megabytes.")
@click.option("--paid", metavar="SOURCE", help="With --prune: the paid answers of this source, and no verdicts.")
@click.option("--yes", is_flag=True, help="Do not ask before anything is removed.")
def main(prune: bool, source: str | None, days: float | None, keep: float | None, paid: str | None, yes: bool) -> None:
    """Show the answers and verdicts that are kept, by source: what was paid for, and what was judged here.

    Verdicts of judges and metrics of this machine are made again where they are needed, at the cost of computing; paid
    answers at their price. Ratings of people are never removed.
    """
    chosen = (source, days, keep)
    if not prune:
        if yes or paid or any(one is not None for one in chosen):
            raise click.UsageError("--source, --older-than, --keep-mb, --paid and --yes want --prune")
        _show()
    elif paid and any(one is not None for one in chosen):
        raise click.UsageError(
            "--paid removes paid answers, and --source, --older-than and --keep-mb verdicts: one of both"
        )
    elif paid:
        _prune_paid(paid, yes)
    elif all(one is None for one in chosen):
        raise click.UsageError(
            "--prune wants --source, --older-than, --keep-mb or --paid; --older-than 0 is everything"
        )
    else:
        before = None if days is None else datetime.now(UTC) - timedelta(days=days)
        _prune_verdicts(Chosen(source, before, None if keep is None else int(keep * MEGABYTE)), yes)


def _show() -> None:
    """Print both files. One that cannot be read does not hide the other."""
    whole = _section("Paid answers and ratings", ledger_path(), _paid)
    kept = verdicts_path()
    if kept is None:
        click.echo(f"Verdicts of this machine: not kept, since {VARIABLE} is {OFF}")
    else:
        whole = _section("Verdicts of this machine", kept, _verdicts) and whole
    if not whole:
        raise click.exceptions.Exit(1)


def _section(title: str, path: Path, lines_of: Callable[[Path], Iterator[str]]) -> bool:
    """Print what a file holds. Returns False where it could not be read."""
    click.echo(f"{title}: {path}")
    try:
        lines = list(lines_of(path)) if path.exists() else []
    except (StoreError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        return False
    for line in lines or ["none yet"]:
        click.echo(f"  {line}")
    return True


def _paid(path: Path) -> Iterator[str]:
    with Ledger(path) as ledger:
        accounts = ledger.accounts()
    yield from _table(PAID, [_row(one) for one in accounts])
    yield from _totals(accounts)


def _verdicts(path: Path) -> Iterator[str]:
    with VerdictFile(path) as file:
        rows = [
            (one.name, one.kind, one.model, one.version or "-", one.rubric, f"{one.clips:,}",
             f"{one.shown_pairs:,}", _mb(one.bytes), one.first[:10], one.last[:10])
            for one in file.kept()
        ]  # fmt: skip
    yield from _table(LOCAL, rows)


def _row(account: Account) -> tuple[str, ...]:
    rated = f"{account.place.removeprefix(PEOPLE)} ratings".strip()
    what, dollars = (rated, "-") if account.rated else (account.place, _dollars(account.dollars))
    counted = f"{account.answers:,}", dollars, _mb(account.bytes)
    return account.source, what, *counted, account.first[:10], account.last[:10]


def _totals(accounts: Sequence[Account]) -> Iterator[str]:
    """The dollars of all sources together, and what they leave out; nothing where nobody was paid."""
    if paid := [one for one in accounts if not one.rated]:
        yield f"in all {_dollars(sum(one.dollars for one in paid))}"
    if unpriced := sum(one.unpriced for one in paid):
        yield f"answers of unknown price: {unpriced:,}"
    if lost := sum(one.lost for one in paid):
        yield f"calls that may have been billed without an answer: {lost:,}"


def _prune_verdicts(chosen: Chosen, yes: bool) -> None:
    path = verdicts_path()
    if path is None:
        raise click.UsageError(f"{VARIABLE} is off; unset it to name the file")
    if not path.exists():
        click.echo(f"{path}: there is none")
        return
    with VerdictFile(path) as file:
        names = sorted({one.name for one in file.kept()})
        if chosen.source is not None and chosen.source not in names:
            raise click.UsageError(f"--source is {chosen.source}; {path} has {', '.join(names) or 'no verdicts'}")
        count = file.count(chosen)
        click.echo(
            f"{path}: the verdicts on {count:,} clips and shown pairs; they are judged again where they are needed"
        )
        if count and (yes or _agreed()):
            click.echo(f"removed: {file.remove(chosen):,}")


def _prune_paid(source: str, yes: bool) -> None:
    path = ledger_path()
    if not path.exists():
        click.echo(f"{path}: there is none")
        return
    with Ledger(path) as ledger:
        accounts = [one for one in ledger.accounts() if not one.rated]
        own = [one for one in accounts if one.source == source]
        if not own:
            names = ", ".join(sorted({one.source for one in accounts})) or "no paid answers"
            raise click.UsageError(f"--paid is {source}; {path} has {names}")
        count, dollars = sum(one.answers for one in own), _dollars(sum(one.dollars for one in own))
        click.echo(
            f"{path}: {count:,} answers of {source}, which cost {dollars}; each is paid for again where it is needed"
        )
        if count and (yes or _agreed()):
            click.echo(f"removed: {ledger.forget(source):,}")


def _agreed() -> bool:
    """Whether the person at the terminal agrees; without a terminal, an error asks for --yes."""
    if not sys.stdin.isatty():
        raise click.UsageError("nothing was removed; give --yes to remove it without being asked")
    return click.confirm("Remove them?")


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """The lines of a table; nothing where there are no rows."""
    table = [columns, *rows] if rows else []
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def _dollars(amount: float) -> str:
    return f"${amount:,.4f}"


def _mb(size: int) -> str:
    return f"{size / MEGABYTE:.2f}"
