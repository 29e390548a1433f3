"""List what `dvc repro` would run, without running anything."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pipeline.command import stage_command

if TYPE_CHECKING:
    from dvc.stage import Stage

SAMPLING = ("generate", "eval-generate", "generate-select")  # the stages that cost most
INPUTS, BASE = Path("runs/inputs"), Path("runs/policies/base")  # what stage base writes
SHOWN = 3  # reasons of a line
RUNS, RESTORED, FOLLOWS = "runs", "restored", "follows"


class Planned(NamedTuple):
    """A stage that `dvc repro` would not skip."""

    stage: str
    state: str  # RUNS | RESTORED, from DVC's cache | FOLLOWS: if a stage before it comes out with other bytes
    why: str


@stage_command
def main() -> None:
    """List the stages that `dvc repro` would run, those that follow from them, and whether sampling is among them.

    `dvc repro --dry` ends with an error at the first stage whose inputs do not exist yet; this does not.
    """
    from pipeline.check import check_params

    check_params(with_generator=False)
    found = list(plan())
    width = max((len(one.stage) for one in found), default=0)
    for one in found:
        click.echo(f"{one.state:<{len(RESTORED)}}  {one.stage:<{width}}  {one.why}")
    sampling = [one.stage for one in found if one.stage.split("@")[0] in SAMPLING and one.state != RESTORED]
    click.echo(f"{len(found)} stages besides base; clips are sampled by: {', '.join(sampling) or 'none'}")


def plan() -> Iterator[Planned]:
    """The stages besides base that are out of date, each after those that it depends on."""
    from dvc.repo import Repo
    from dvc.repo.reproduce import plan_repro

    stale = set(stale_inputs())
    with Repo() as repo, repo.lock:
        graph, touched = repo.index.graph, set[Any]()
        for stage in plan_repro(graph):
            if stage.frozen or stage.always_changed:
                continue
            before = sorted(one.addressing for one in graph.successors(stage) if one in touched)
            if before:
                found = Planned(stage.addressing, FOLLOWS, f"after {_first(before)}")
            elif reasons := list(dict.fromkeys([*_changes(stage), *_pending(stage, stale)])):
                state = RUNS if _pending(stage, stale) or not _is_kept(stage) else RESTORED
                found = Planned(stage.addressing, state, _first(reasons))
            else:
                continue
            touched.add(stage)
            yield found


def stale_inputs() -> Iterator[str]:
    """The files of stage base that it would write with other bytes, as paths."""
    from pipeline.inputs import write_inputs
    from pipeline.params import load_params

    with tempfile.TemporaryDirectory() as folder:
        write_inputs(load_params(), Path(folder))
        for path in sorted(Path(folder).rglob("*.json")):
            kept = INPUTS / path.relative_to(folder)
            if not kept.is_file() or kept.read_bytes() != path.read_bytes():
                yield str(kept)
                if kept.name == "generator.json":
                    yield str(BASE)


def _pending(stage: "Stage", stale: set[str]) -> list[str]:
    """What it depends on that stage base would write anew."""
    return sorted(f"{path} modified" for path in stale & {dep.def_path for dep in stage.deps})


def _first(names: list[str]) -> str:
    return ", ".join([*names[:SHOWN], *([f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else [])])


def _changes(stage: "Stage") -> Iterator[str]:
    """What DVC sees changed: params, files, outputs, the command."""
    if not any(out.hash_info for out in stage.outs):
        yield "not run yet"
        return
    for change in stage.status().get(stage.addressing, []):
        if isinstance(change, str):
            yield change
            continue
        for what, entries in change.items():
            for path, state in entries.items():
                inner = state if isinstance(state, dict) else {path: state}
                prefix = "" if what == "changed deps" else "output "
                yield from (f"{prefix}{key} {found}" for key, found in inner.items())


def _is_kept(stage: "Stage") -> bool:
    """Whether DVC has run this stage with these params, inputs and code, and still has what it wrote."""
    from dvc.stage.cache import RunCacheNotFoundError

    try:
        stage.save_deps()
        stage.repo.stage_cache.restore(stage, dry=True)
    except (RunCacheNotFoundError, FileNotFoundError):
        return False
    return True
