"""The page on which clips are rated, for sources of kind human."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import click

from pipeline.command import PATH, stage_command
from pipeline.params import block


@stage_command
@click.option("--set", "sets", type=PATH, multiple=True, required=True, help="Folder of a clip set; may be repeated.")
@click.option("--against", type=PATH, help="Folder of another policy's clips, which those of --set are compared with.")
@click.option("--source", "name", required=True, help="A name in feedback.sources, of kind human.")
@click.option("--rater", required=True, help="Who rates: one of the source's raters.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0 takes a free one.")
@click.option("--per-prompt", type=click.IntRange(min=1), help="Only the first clips of each prompt in each set.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order, which also differs by rater.")
def main(
    sets: tuple[Path, ...],
    against: Path | None,
    name: str,
    rater: str,
    port: int,
    per_prompt: int | None,
    seed: int,
) -> None:
    """Serve a page on this machine to rate clips with the keys a, r and u. Continues where it stopped; Ctrl-C ends it.

    Where the source's rubric compares, two clips of a prompt stand side by side, and the keys are ←, →, = and u: the
    pairs that `dvc repro` asks about, or each clip with that of the same noise in --against.

    Clips of several sets are shuffled together, so that policies are compared blind. Ratings of a set
    that is not labelled yet count at the next `dvc repro`; those given after it was labelled count after
    `dvc repro --force --single-item` of its label stage, such as label@r1.
    """
    from commands.rate.pairs import pairs_to_compare
    from commands.rate.server import Rated, Ratings, RatingServer, gather, gather_pairs, people
    from feedback.core.rubric import load_rubric
    from feedback.network.ledger import ledger_path

    options = people(name, block(f"feedback.sources.{name}"), rater)
    rubric = load_rubric(Path(options.rubric))
    items: Sequence[Rated]
    if rubric.compares:
        items = gather_pairs(pairs_to_compare(sets, against, per_prompt, block("label.opponents")), rubric, rater, seed)
    elif against:
        raise ValueError(f"--against is for pairs, but {options.rubric} is about one clip; it lacks compares: true")
    else:
        items = gather(sets, rubric, rater, per_prompt, seed)
    if not items:
        raise ValueError(f"{', '.join(map(str, sets))}: no clips to rate")
    ratings = Ratings(items, ledger_path())
    try:
        server = RatingServer(ratings, port)
    except OSError as error:
        raise ValueError(f"port {port} on 127.0.0.1: {error.strerror}; --port 0 takes a free one") from error
    click.echo(f"{rater} has rated {ratings.rated} of {len(items)}. Open {server.url} and press Ctrl-C here to end.")
    with contextlib.suppress(KeyboardInterrupt), server:
        server.serve_forever()
    click.echo(f"\n{rater} has rated {ratings.rated} of {len(items)}; the same command continues from there.")
    if options.unrated == "error" and (ratings.rated < len(items) or per_prompt):
        click.echo(f"To train on the clips that are rated alone, set feedback.sources.{name}.unrated: leave_out.")
