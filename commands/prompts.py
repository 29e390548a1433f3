"""A prompt set of a published benchmark, from the files that its authors publish."""

from pathlib import Path

import click

from pipeline.command import PATH, stage_command

KNOWN = ("vbench", "vbench2", "videophy", "videophy2", "phygenbench", "t2v-compbench")


@stage_command
@click.argument("files", nargs=-1, type=PATH, required=True)
@click.option("--benchmark", "name", type=click.Choice(KNOWN), required=True, help="Whose files these are.")
@click.option("--out", type=PATH, required=True, help="CSV to write: a prompt set for prompts.path.")
@click.option(
    "--split", type=click.Choice(("train", "test")), default="test", show_default=True, help="Split of all its prompts."
)
@click.option("--force", is_flag=True, help="Write it again where it is there, over what was changed in it by hand.")
def main(files: tuple[Path, ...], name: str, out: Path, split: str, force: bool) -> None:
    """Make a prompt set of the FILES of a benchmark that you downloaded; configs/prompt_sets/README.md says which."""
    from data.prompts import remarks, write_prompts
    from data.tables.benchmarks import BENCHMARKS, categories, read_benchmark

    if out.exists() and not force:
        raise click.UsageError(f"{out} is there already; --force writes it again")
    prompts, benchmark = read_benchmark(name, files, split), BENCHMARKS[name]
    write_prompts(out, prompts)
    counts = categories(prompts)
    click.echo(f"{out}: {len(prompts):,} prompts of {benchmark.title} in {len(counts)} categories, split {split}")
    click.echo(f"licence: {benchmark.licence} ({benchmark.page})")
    for category, count in counts.most_common():
        click.echo(f"  {count:>5,}  {category}")
    for remark in remarks(prompts):
        click.echo(f"note: {remark}")
