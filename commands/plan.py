"""List what `dvc repro` would run, why, and what that takes, without running anything."""

import logging
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pipeline.command import Finite, stage_command

if TYPE_CHECKING:
    from dvc.stage import Stage

    from pipeline.changes import Reason
    from pipeline.check import Checked
    from pipeline.rates import Command
    from pipeline.takes import Planner, Takes

SAMPLING = ("generate", "eval-generate", "generate-select", "generate-dense")  # the stages that cost most
LONG = ("generate", "train", "online")  # modules of stages that take hours of a large model
BASE = Path("runs/policies/base")
SHOWN = 3  # reasons of a line
RUNS, RESTORED, FOLLOWS = "runs", "restored", "follows"


class Planned(NamedTuple):
    """A stage that `dvc repro` would not skip."""

    stage: str
    state: str  # RUNS | RESTORED, from DVC's cache | FOLLOWS: if a stage before it comes out with other bytes
    why: str
    takes: "Takes"
    acceptable: bool  # only code changed, here and in the stages before it, and running it is expensive
    pending: bool  # whether it depends on what stage base would write anew


@stage_command
@click.option("--seconds-per-clip", type=Finite(min=0, min_open=True), help="To sample a clip of a round.")
@click.option("--seconds-per-call", type=Finite(min=0, min_open=True), help="Of a judge over the network.")
@click.option("--last-line", is_flag=True, help="Print the total alone.")
def main(seconds_per_clip: float | None, seconds_per_call: float | None, last_line: bool) -> None:
    """List the stages that `dvc repro` would run, why, and what they take: clips, calls, dollars, time and disk.

    `dvc repro --dry` ends with an error at the first stage whose inputs do not exist yet; this does not.
    Times are those of the last runs on this machine, in .state/rates.json.
    """
    from dvc.lock import LockError

    from pipeline.check import check_params
    from pipeline.rates import read_rates
    from pipeline.takes import Planner
    from pipeline.torn import mend

    mend()
    checked = check_params()
    planner = Planner(
        checked.params, checked.prompts, checked.generator, read_rates(), seconds_per_clip, seconds_per_call
    )
    try:
        found = list(plan(checked, planner))
    except LockError as error:
        raise click.ClickException(
            "DVC is busy in this repository or its experiments; ask again when it is done"
        ) from error
    if not last_line:
        for line in [*_table(found), *_accepting(found), *_unknown(found)]:
            click.echo(line)
    click.echo(_total(found, planner.base))


def plan(checked: "Checked", planner: "Planner") -> Iterator[Planned]:
    """The stages besides base that are out of date, each after those that it depends on."""
    from dvc.repo import Repo
    from dvc.repo.reproduce import plan_repro

    from pipeline.changes import Changes
    from pipeline.graph import needed_sources
    from pipeline.inputs import write_inputs

    logging.getLogger("dvc").setLevel("WARNING")  # it says "checking out outputs", which a dry run does not
    with tempfile.TemporaryDirectory() as folder, Repo() as repo, repo.lock:
        write_inputs(checked.params, Path(folder), needed_sources(checked.params))
        seen, graph = Changes(Path(folder), BASE), repo.index.graph
        touched = dict[Any, bool]()  # by stage that is out of date: whether nothing but code changed up to it
        for stage in plan_repro(graph):
            if stage.frozen or stage.always_changed:
                continue
            before = sorted((one for one in graph.successors(stage) if one in touched), key=lambda one: one.addressing)
            reasons = seen.of(stage)
            if not (before or reasons):
                continue
            touched[stage] = all(one.kind == "code" for one in reasons) and all(touched[one] for one in before)
            yield _planned(stage, reasons, before, touched[stage], seen.pending(stage), planner)


def _planned(
    stage: "Stage", reasons: "Sequence[Reason]", before: "Sequence[Stage]", only_code: bool, pending: bool,
    planner: "Planner",
) -> Planned:  # fmt: skip
    """before: the stages that are out of date among those that it depends on."""
    command = command_of(stage)
    written = sum(out.meta.size or 0 for out in stage.outs if out.meta)
    takes = planner.takes(command, not before, written)
    if any(one.kind == "new" for one in reasons):
        state = RUNS
    else:
        state = FOLLOWS if before else RUNS if pending or not _is_kept(stage) else RESTORED
    why = [one.text for one in reasons] or [f"after {_first([one.addressing for one in before])}"]
    expensive = state != RESTORED and (command.name in LONG or takes.calls > 0)
    return Planned(stage.addressing, state, _first(why), takes, bool(reasons) and only_code and expensive, pending)


def command_of(stage: "Stage") -> "Command":
    """The module and options that a stage runs."""
    from pipeline.rates import Command

    _, _, module, *options = shlex.split(str(stage.cmd))  # python -m stages.x
    return Command.of(module.rpartition(".")[2], options)


def _table(found: Sequence[Planned]) -> Iterator[str]:
    width = max((len(one.stage) for one in found), default=0)
    amounts = ["" if one.state == RESTORED else _amounts(one.takes) for one in found]
    for one, amount in zip(found, amounts, strict=True):
        yield f"{one.state:<{len(RESTORED)}}  {one.stage:<{width}}  {one.why}{f' [{amount}]' if amount else ''}"


def _accepting(found: Sequence[Planned]) -> Iterator[str]:
    """Where only code changed of expensive stages: what would be made again, and how to keep what is there."""
    from pipeline.takes import total

    kept = [one for one in found if one.acceptable]
    if not kept:
        return
    yield (
        f"Only code changed of {len(kept)} expensive stages. They would run again: "
        f"{_amounts(total(one.takes for one in kept))}. To keep their results instead:"
    )
    first = "dvc repro base && " if any(one.pending for one in kept) else ""
    yield f"    {first}dvc commit -f {' '.join(one.stage for one in kept)}"
    yield (
        "Do so only where the new code would write the same bytes: after a change of a comment, of a message, or a "
        "refactoring. After a change of behaviour, such as a fix of sampling or of a loss, let them run; otherwise "
        "dvc.lock says that the new code made results that it did not make."
    )


def _unknown(found: Sequence[Planned]) -> Iterator[str]:
    """The stages whose time is not known."""
    names = [one.stage for one in found if one.takes.seconds is None and one.state != RESTORED]
    if names:
        yield (
            f"Of these the time is not known, because nothing like them ran here: {_first(names)}. Give "
            "--seconds-per-clip (docs/generators.md has published figures) and --seconds-per-call, or run one"
        )


def _total(found: Sequence[Planned], base: float) -> str:
    """All in one line. base: seconds of stage base, which runs before them."""
    from pipeline.takes import total

    run = [one for one in found if one.state != RESTORED]
    sampling = [one.stage for one in run if one.stage.split("@")[0] in SAMPLING]
    follow = sum(one.state == FOLLOWS for one in run)
    words = [f"{len(found)} stages besides base"]
    if follow:
        words[0] += f", {follow} of them after others"
    needed, free = 2 * sum(one.takes.bytes for one in run), shutil.disk_usage(".").free
    takes = total(one.takes for one in run)
    if amounts := _amounts(takes._replace(seconds=(takes.seconds or 0.0) + base) if takes.seconds else takes):
        words.append(f"at most {amounts} (once in runs/, once in DVC's cache)" if needed else f"at most {amounts}")
    if lacking := sum(one.takes.seconds is None for one in run):
        words.append(f"without the time of {lacking}")
    if needed > free:
        words.append(f"MORE THAN THE {_size(free)} THAT ARE FREE")
    return "; ".join([*words, f"clips are sampled by: {_first(sampling) or 'none'}"])


def _amounts(takes: "Takes") -> str:
    """In words, without what is nothing."""
    dollars = "at an unknown price" if takes.dollars is None else f"${takes.dollars:,.2f}"
    parts = (
        (takes.clips, f"{takes.clips:,} clips"),
        (takes.answers, f"{takes.answers:,} answers of judges here"),
        (takes.calls, f"{takes.calls:,} calls, {takes.tokens:,} tokens, {dollars}"),
        (takes.steps, f"{takes.steps:,} steps"),
        (takes.seconds, _time(takes.seconds or 0.0)),
        (takes.bytes, _size(takes.bytes)),
    )
    return ", ".join(words for amount, words in parts if amount)


def _time(seconds: float) -> str:
    return (
        f"{seconds / 3600:,.1f} h"
        if seconds >= 5400
        else f"{seconds / 60:.0f} min"
        if seconds >= 90
        else f"{seconds:.0f} s"
    )


def _size(count: float) -> str:
    unit, scale = next(((u, s) for u, s in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)) if count >= s), ("kB", 1e3))
    return f"{count / scale:,.1f} {unit}"


def _first(names: Sequence[str]) -> str:
    return ", ".join([*names[:SHOWN], *([f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else [])])


def _is_kept(stage: "Stage") -> bool:
    """Whether DVC has run this stage with these params, inputs and code, and still has what it wrote."""
    from dvc.stage.cache import RunCacheNotFoundError
    from dvc_data.hashfile.hash_info import HashInfo

    try:
        stage.save_deps()
        for out in stage.outs:  # else DVC takes what dvc.lock has of them for outputs of the inputs saved just now
            out.hash_info = HashInfo()
        stage.repo.stage_cache.restore(stage, dry=True)
    except (RunCacheNotFoundError, FileNotFoundError):
        return False
    return True
