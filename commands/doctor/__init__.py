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
def main() -> None:
    """Say which libraries, devices, codecs, keys, sources and generators are usable here, and why others are not.

    Nothing is changed, and no judge is asked. Exit code 1 where something that params.yaml asks for is broken.
    """
    from commands.doctor.machine import BROKEN

    broken = []
    for title, findings in _sections():
        click.echo(f"\n{title}")
        for state, what, told in findings:
            click.echo(f"  {state:<{MARK}}  {what:<{WHAT}}  {told}")
            broken += [what] if state == BROKEN else []
    if broken:
        click.echo(f"\nNot ready: {', '.join(broken)}.")
        raise SystemExit(1)
    click.echo("\nReady: nothing that params.yaml asks for is broken here.")


def _sections() -> Iterator[tuple[str, Iterable["Finding"]]]:
    """Titles and their lines, found as they are drawn; what imports torch comes last."""
    from commands.doctor import machine, usable
    from feedback.network.ledger import ledger_path

    yield "libraries", machine.libraries(ROOT / "constraints.txt")
    yield "machine", machine.hardware()
    yield "video", machine.codecs()
    yield "repository", machine.repository(Path.cwd())
    try:
        params = load_params()
        blocks, needed, prompts = _asked(params)
    except (ParamsError, ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        yield str(PARAMS), [machine.Finding(machine.BROKEN, "params", f"not readable: {_message(error)}")]
        yield "device", [machine.accelerator()]
        return
    yield "keys (whether the environment holds them)", _keys([*usable.key_variables(blocks), "HF_TOKEN"])
    keeps = any(usable.keeps_answers(name, blocks[name]) for name in needed & blocks.keys())
    yield "feedback", [machine.ledger(ledger_path(), keeps), *usable.sources(blocks, needed, prompts)]
    yield "device", [machine.accelerator()]
    yield "generator and params.yaml", _checked(params)


def _asked(params: dict[str, Any]) -> tuple[dict[str, Any], set[str], list[str]]:
    """The blocks of all sources, the names of those that this run asks, and the prompts that they judge."""
    from data.prompts import load_prompts

    feedback = params["feedback"]
    needed = {feedback["source"], *params["comparison"]["sources"], *params["evaluate"]["judges"]}
    return feedback["sources"], needed, [one.prompt for one in load_prompts(Path(params["prompts"]["path"]))]


def _keys(names: Iterable[str]) -> Iterator["Finding"]:
    from commands.doctor.machine import NOTE, OK, Finding

    for name in names:
        there = bool(os.environ.get(name, "").strip())
        yield Finding(OK if there else NOTE, name, "set" if there else "not set")


def _checked(params: dict[str, Any]) -> Iterator["Finding"]:
    """The generator's line, and what `stages.base` would say of all of params.yaml."""
    from commands.doctor.machine import BROKEN, OK, Finding

    try:
        from commands.doctor.usable import generator
        from generators.core.load import FAMILIES
        from pipeline.check import check_params
        from pipeline.configs import GeneratorConfig
        from pipeline.params import section

        config = section("generator", GeneratorConfig)
        yield generator(config.family, config.path, config.revision, list(FAMILIES))
        check_params()
    except (ParamsError, ValueError, OSError, ImportError) as error:
        yield Finding(BROKEN, str(PARAMS), _message(error))
        return
    yield Finding(OK, str(PARAMS), "every section can be read, and rounds, policies and sources fit together")


def _message(error: Exception) -> str:
    return error.message if isinstance(error, ParamsError) else f"{error}"
