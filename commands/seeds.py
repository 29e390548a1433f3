"""Train every policy with several seeds: write the entries of the further ones into params.yaml."""

from collections.abc import MutableMapping, Sequence
from typing import Any

import click

from commands.preset import edited
from pipeline.changes import changes
from pipeline.command import stage_command
from pipeline.params import PARAMS, load_params
from pipeline.replicates import ENTRIES, LISTS, SEEDS, check_seeds, expanded, originals, value


@stage_command
@click.argument("seeds", nargs=-1, type=int)
@click.option("--dry-run", is_flag=True, help="Print the changes, and write nothing.")
def main(seeds: tuple[int, ...], dry_run: bool) -> None:
    """Write the entries that train every policy with each of SEEDS, and print them.

    Without SEEDS, those of the key `seeds` in params.yaml. Each entry of policies, comparison.policies and
    online.policies is repeated for each seed but the first, with the rounds, pools and extended prompts that come from
    it: rwr2-s2 starts from rwr1-s2, on r2-s2. Entries of seeds that are no longer named are removed. An entry with a
    `seed` that you gave it is not repeated. Run it again after a change of the entries.
    """
    from pipeline.graph import check_entries, check_shapes  # and the kinds of source with it, which import pyarrow

    before = load_params()
    before.setdefault(SEEDS, [])
    check_shapes(before)
    check_entries(before)
    after = expanded(originals(before), check_seeds(list(seeds) or before[SEEDS]))
    changed = list(changes(before, after))
    click.echo(f"{len(changed)} values of {PARAMS} change")
    for line in changed:
        click.echo(f"  {line}")
    if dry_run:
        click.echo(f"{PARAMS} is as it was (--dry-run)")
    elif changed:
        with edited() as params:
            write_into(params, after)
        click.echo(f"{PARAMS} is written; `vfrl check` says whether all of it fits together")


def write_into(params: MutableMapping[str, Any], wanted: MutableMapping[str, Any]) -> None:
    """Give the sections and lists that have replicates the wanted entries. params: of ruamel, whose comments stay."""
    params.setdefault(SEEDS, [])
    for key in (SEEDS, *LISTS):
        _fill(value(params, key), value(wanted, key))
    for key in (*ENTRIES, "pools"):
        section, entries = value(params, key), value(wanted, key)
        for name in [name for name in section if name not in entries]:
            del section[name]
        for name, entry in entries.items():
            if section.get(name) != entry:
                section[name] = in_one_line(entry)


def _fill(listed: Any, wanted: Sequence[Any]) -> None:
    """Make a list of ruamel the wanted one, item by item, so that comments stay with theirs."""
    for place in reversed([place for place, one in enumerate(listed) if one not in wanted]):
        listed.pop(place)
    for place, one in enumerate(wanted):
        if place == len(listed) or listed[place] != one:
            if one in listed:
                listed.remove(one)
            listed.insert(place, one)


def in_one_line(entry: Any) -> Any:
    """A mapping or list as ruamel writes it in braces or brackets."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    found = CommentedMap(entry) if isinstance(entry, MutableMapping) else CommentedSeq(entry)
    found.fa.set_flow_style()
    return found
