"""What of this project works on this machine, and what does not and why."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.command import ROOT, stage_command
from pipeline.params import PARAMS, ParamsError, load_params

if TYPE_CHECKING:
    from commands.doctor.machine import Finding

MARK, WHAT = 6, 26  # characters of the first two columns


@stage_command
@click.option("--family", help="A generator's family, or auto: examine its checkpoint alone, by its configs.")
@click.option("--path", help="The checkpoint, a diffusers folder or hub id. Default: generator.path of params.yaml.")
@click.option("--revision", help="Of a hub id. Default with generator.path: generator.revision.")
def main(family: str | None, path: str | None, revision: str | None) -> None:
    """Say which libraries, devices, codecs, keys, sources and generators are usable here, and why others are not.

    With --family or --path: say which family reads a checkpoint, which components it has and lacks, and what memory
    generate, label and train need at the settings of params.yaml; no weights are read. Nothing is changed, and no judge
    is called. Exit code 1 where something that is needed is broken.
    """
    examined = family is not None or path is not None
    if revision is not None and not examined:
        raise click.UsageError("--revision is of --path or --family")
    sections = _examined(family or "auto", path, revision) if examined else _sections()
    _report(
        sections,
        "the checkpoint is read by a family and is whole"
        if examined
        else "nothing that params.yaml needs is broken here",
    )


def _report(sections: Iterable[tuple[str, Iterable["Finding"]]], ready: str) -> None:
    """Print sections as they come; end with exit code 1 where something is broken."""
    from commands.doctor.machine import BROKEN

    broken = []
    for title, findings in sections:
        click.echo(f"\n{title}")
        for state, what, detail in findings:
            click.echo(f"  {state:<{MARK}}  {what:<{WHAT}}  {detail}")
            broken += [what] if state == BROKEN else []
    if broken:
        click.echo(f"\nNot ready: {', '.join(broken)}.")
        raise SystemExit(1)
    click.echo(f"\nReady: {ready}.")


def _examined(family: str, path: str | None, revision: str | None) -> Iterator[tuple[str, Iterable["Finding"]]]:
    """The sections of one checkpoint, at the settings of params.yaml."""
    from dataclasses import replace

    from commands.doctor.family import describe, settings
    from generators.core.rollout import Sampling
    from generators.core.size import VideoSize
    from pipeline.configs import GeneratorConfig
    from pipeline.params import section

    model = section("generator", GeneratorConfig)
    if path is not None:
        own = model.components if path == model.path else None  # those of params.yaml belong to its path
        model = replace(model, path=path, revision=revision, components=own)
    elif revision is not None:
        model = replace(model, revision=revision)
    chosen = settings(load_params(), model, section("video", VideoSize), section("generate", Sampling))
    yield from describe(family, chosen)


def _sections() -> Iterator[tuple[str, Iterable["Finding"]]]:
    """Titles and their lines, found one after the other; what imports torch comes last."""
    from commands.doctor import machine, usable
    from feedback.core.verdicts import verdicts_path
    from feedback.network.ledger import ledger_path

    yield "libraries", machine.libraries(ROOT / "constraints.txt")
    yield "machine", machine.hardware()
    if os.environ.get("STAGE_ENGINE") == "ray":
        yield "cluster (STAGE_ENGINE is ray)", machine.cluster()
    yield "video", machine.codecs()
    yield "repository", machine.repository(Path.cwd())
    try:
        params = load_params()
        blocks, needed, prompts = _to_check(params)
        sets = usable.labellings(params)
    except (ParamsError, ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        yield str(PARAMS), [machine.Finding(machine.BROKEN, "params", f"not readable: {_message(error)}")]
        yield "device", [machine.accelerator()]
        return
    sources = usable.read_sources(blocks)
    yield "keys (whether the environment holds them)", _keys([*usable.key_variables(sources), "HF_TOKEN"])
    keeps = any(usable.keeps_answers(source) for source in sources if source.name in needed)
    files = machine.ledger(ledger_path(), keeps), machine.verdicts(verdicts_path())
    yield "feedback", [*files, *usable.check_sources(sources, needed, prompts, sets)]
    yield "device", [machine.accelerator()]
    yield "generator and params.yaml", _checked()


def _to_check(params: dict[str, Any]) -> tuple[dict[str, Any], set[str], list[str]]:
    """The blocks of all sources, the names of those that this run uses, and the prompts that they judge."""
    from data.prompts import load_prompts
    from pipeline.graph import needed_sources

    prompts = [one.prompt for one in load_prompts(Path(params["prompts"]["path"]))]
    return params["feedback"]["sources"], needed_sources(params), prompts


def _keys(names: Iterable[str]) -> Iterator["Finding"]:
    from commands.doctor.machine import NOTE, OK, Finding

    for name in names:
        there = bool(os.environ.get(name, "").strip())
        yield Finding(OK if there else NOTE, name, "set" if there else "not set")


def _checked() -> Iterator["Finding"]:
    """Whether the generator can be loaded, and whether all of params.yaml is valid."""
    from commands.doctor.machine import BROKEN, NOTE, OK, Finding

    try:
        from commands.doctor.generator import find_generator
        from generators.core.size import VideoSize
        from pipeline.check import check_params
        from pipeline.configs import GeneratorConfig
        from pipeline.params import section

        yield find_generator(section("generator", GeneratorConfig), section("video", VideoSize))
        notes = check_params(with_generator=False).notes
    except (click.ClickException, ValueError, OSError, ImportError) as error:
        yield Finding(BROKEN, str(PARAMS), _message(error))
        return
    yield from (Finding(NOTE, str(PARAMS), note) for note in notes)
    yield Finding(OK, str(PARAMS), "every section is valid, and rounds, policies and sources fit together")


def _message(error: Exception) -> str:
    return error.message if isinstance(error, click.ClickException) else f"{error}"
