"""What label sets and datasets hold, and the clips in them."""

import tempfile
import webbrowser
from pathlib import Path

import click

from pipeline.command import PATH, stage_command


class _FolderOrDiff(click.Group):
    """A group that runs `show` where the first word is no command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] in ctx.help_option_names:
            args = ["show", *args]  # whose options people mean; `diff` is named in its text
        elif args and args[0] not in self.commands:
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_FolderOrDiff)
def main() -> None:
    """Look into a folder of labels, rows or clips: `vfrl inspect FOLDER`, with the options of `show`."""


clips_option = click.option("--set", "clips", type=PATH, help="Folder of the clip set, if it is not found by itself.")


@stage_command
@click.argument("folder", type=PATH)
@clips_option
@click.option("--where", "condition", help="Only rows that meet this: \"category == 'roll' and p_accept < 0.3\".")
@click.option("--prompt", help="Only this prompt_id, or else prompts with these words.")
@click.option("--disagree", nargs=2, metavar="SOURCE SOURCE", help="Only clips that these two label differently.")
@click.option("--sort", "order", metavar="EXPRESSION", help='Order of the rows: -p_accept, "abs(p_accept - 0.5)".')
@click.option(
    "--first",
    type=click.IntRange(1),
    default=24,
    show_default=True,
    help="Rows and prompts listed, rows drawn and opened.",
)
@click.option("--sheet", type=PATH, metavar="PNG", help="Draw these clips' frames with their labels.")
@click.option("--open", "opened", is_flag=True, help="Open a page in the browser that plays these clips.")
def show(
    folder: Path, clips: Path | None, condition: str | None, prompt: str | None, disagree: tuple[str, str] | None,
    order: str | None, first: int, sheet: Path | None, opened: bool,
) -> None:  # fmt: skip
    """Print what a folder holds, by category, and list its clips.

    FOLDER is runs/<round>/labels/<source>, runs/<round>/datasets/<objective> or runs/<round>/samples, also of a set of
    `dense`, whose labels are of windows.

    Conditions are those of pandas.DataFrame.query, on any column of the samples, labels and verdicts; an order is any
    expression of the columns of samples and labels, smallest first. Without a condition the prompts that have no
    accepted clip (labels) or no pair (dpo) are listed too.
    """
    from inspection.composition import composition, heading, lacking, listed
    from inspection.pictures import write_clip_page, write_sheet
    from inspection.view import captioned_clips, disagreeing, of_prompt, open_view, sort, where

    everything = view = open_view(folder, clips)
    if disagree:  # first, because conditions may name its columns
        view = disagreeing(view, *disagree)
    if prompt:
        view = of_prompt(view, prompt)
    if condition:
        view = where(view, condition)
    if order:
        view = sort(view, order)
    filtered = f"\nof these, {len(view.rows)} {view.noun} were chosen" if len(view.rows) < len(everything.rows) else ""
    click.echo(f"{heading(everything)}{filtered}\n\n{composition(view)}")
    if view.rows is everything.rows and (missing := lacking(view, first)):
        click.echo(f"\n{missing}")
    chosen = view.head(first)
    if condition or prompt or disagree or order:
        click.echo(f"\nthe first {len(chosen.rows)} of {len(view.rows)}\n{listed(chosen)}")
    if sheet:
        click.echo(f"\n{write_sheet(captioned_clips(chosen), sheet)} {view.shown} drawn: {sheet.resolve()}")
    if opened:
        page = write_clip_page(chosen, Path(tempfile.mkdtemp(prefix="clips-")), heading(everything))
        click.echo(f"\n{page.clips} {view.shown} of {len(view.rows)} {view.noun}: {page.path}")
        webbrowser.open(page.path.as_uri())


@stage_command
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@clips_option
@click.option("--first", "named", type=click.IntRange(0), default=5, show_default=True, help="Ids of each change.")
def diff(first: Path, second: Path, clips: Path | None, named: int) -> None:
    """Print which labels differ between FIRST and SECOND, by category, and Cohen's kappa."""
    from inspection.difference import difference, in_words

    click.echo(in_words(difference(first, second, clips), named))


main.add_command(show, "show")
main.add_command(diff, "diff")
