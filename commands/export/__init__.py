"""A clip set and its labels as a dataset for others."""

from pathlib import Path

import click

from pipeline.command import PATH, stage_command


@stage_command
@click.option("--hub", "repo", metavar="USER/NAME", help="Dataset repository on the Hugging Face Hub.")
@click.option("--for", "taker", type=click.Choice(["vbench"]), help="Write a folder for this program.")
@click.option("--out", type=PATH, help="The folder, with --for.")
@click.option("--set", "clips", type=PATH, required=True, help="Folder of the clip set.")
@click.option("--labels", type=PATH, multiple=True, help="Folder of labels of these clips; may be repeated.")
@click.option("--license", "licence", help="Of the clips, as the Hub names it, such as cc-by-4.0.")
@click.option("--public", is_flag=True, help="Make a new repository public; default: private.")
@click.option("--push", "pushed", is_flag=True, help="Push. Without this option, only list what would be pushed.")
def main(
    repo: str | None,
    taker: str | None,
    out: Path | None,
    clips: Path,
    labels: tuple[Path, ...],
    licence: str | None,
    public: bool,
    pushed: bool,
) -> None:
    """Push clips and labels to the Hugging Face Hub, or write a folder for another program.

    The Hub: with a card written from the manifests. Without --push nothing is sent. The token is read from the
    environment variable HF_TOKEN only. Pushing again replaces the files of an earlier export, in one commit.
    VBench: mp4s and their prompts, for its `custom_input` mode.
    """
    if taker and out and not repo:
        from commands.export.vbench import command, write_folder

        click.echo(f"{write_folder(clips, out)} clips in {out}. In VBench's own environment:\n")
        click.echo(f"    {command(out, 'motion_smoothness')}")
        return
    if repo is None or taker:
        raise click.UsageError("name either --hub USER/NAME, or --for vbench with --out FOLDER")
    from commands.export.hub import check_repo, gather, listing, push, token_from_environment

    check_repo(repo)
    token = token_from_environment() if pushed else ""  # before every file is read
    parts = gather(clips, labels, repo, licence)
    click.echo(listing(parts))
    if pushed:
        click.echo(f"\npushed: {push(repo, parts, token, private=not public)}")
        return
    card = parts[0].content
    assert isinstance(card, bytes)
    click.echo(f"\nREADME.md:\n\n{card.decode()}\nNothing was pushed; --push does it.")
