"""A clip set with its labels and training rows as a dataset for others."""

from pathlib import Path

import click

from pipeline.command import PATH, stage_command


@stage_command
@click.option("--out", type=PATH, help="Folder to write.")
@click.option("--hub", "repo", metavar="USER/NAME", help="Dataset repository on the Hugging Face Hub.")
@click.option("--push", "pushed", is_flag=True, help="Push to --hub. Without it nothing is sent.")
@click.option("--public", is_flag=True, help="Make a new repository public; default: private.")
@click.option(
    "--set", "clips", type=PATH, help="Folder of the clip set; default: runs/<round>/samples of the only round."
)
@click.option("--labels", type=PATH, multiple=True, help="Folder of labels; repeatable; default: all beside the clips.")
@click.option(
    "--rows", type=PATH, multiple=True, help="Folder of weights or pairs; repeatable; default: datasets/rwr and dpo."
)
@click.option("--license", "licence", help="Of the clips, as the Hub names it, such as cc-by-4.0.")
@click.option("--for", "taker", type=click.Choice(["vbench"]), help="Write --out for this program instead.")
def main(
    out: Path | None,
    repo: str | None,
    pushed: bool,
    public: bool,
    clips: Path | None,
    labels: tuple[Path, ...],
    rows: tuple[Path, ...],
    licence: str | None,
    taker: str | None,
) -> None:
    """Write clips, labels, weighted rows and pairs as a dataset: into a folder, to the Hugging Face Hub, or both.

    The dataset has a card written from the manifests, and `datasets.load_dataset` reads it. An earlier export of the
    same set is replaced, in a folder and on the Hub; any other folder that is not empty is refused. Clips are hard
    links where that is possible. Without --push nothing is sent. The token is read from the environment variable
    HF_TOKEN only.

    --for vbench writes mp4s and their prompts, for VBench's `custom_input` mode.
    """
    from commands.export.dataset import find_sources, gather, listing
    from commands.export.folder import check_folder, in_words, write_folder
    from commands.export.hub import check_count, check_repo, push, token_from_environment
    from data.manifest import read_manifest

    if not (out or repo):
        raise click.UsageError("name --out FOLDER, --hub USER/NAME, or both")
    if (pushed or public) and not repo:
        raise click.UsageError("--push and --public are for --hub USER/NAME")
    if taker:
        if repo or labels or rows or licence or out is None:
            raise click.UsageError(f"--for {taker} takes --set and --out, and nothing else")
        _for_vbench(find_sources(clips, [], []).clips, out)
        return
    if repo:
        check_repo(repo)
    token = token_from_environment() if pushed else ""  # before every file is read
    sources = find_sources(clips, labels, rows)
    if out:
        check_folder(out, read_manifest(sources.clips, "clip_set")["facts"])
    title = repo or (out.absolute().name if out else "")
    parts = gather(sources, title, licence)
    if repo:
        check_count(repo, parts)
    click.echo(listing(parts))
    if out:
        click.echo(f"\n{in_words(write_folder(parts, out), out, sources.clips)}")
    if repo and pushed:
        click.echo(f"\npushed: {push(repo, parts, token, private=not public)}")
    elif repo:
        card = parts[0].content
        assert isinstance(card, bytes)
        click.echo("" if out else f"\nREADME.md:\n\n{card.decode()}")
        click.echo("Nothing was pushed; --push does it.")


def _for_vbench(clips: Path, out: Path) -> None:
    from commands.export.vbench import command, write_folder

    click.echo(f"{write_folder(clips, out)} clips in {out}. In VBench's own environment:\n")
    click.echo(f"    {command(out, 'motion_smoothness')}")
