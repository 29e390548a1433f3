"""How far a source agrees with people: with their choices between two clips, or with their scores of clips."""

from pathlib import Path

import click

from pipeline.command import PATH, device_option, out_option, stage_command


@stage_command
@click.option("--source", "name", required=True, help="A name in feedback.sources.")
@click.option(
    "--preferences",
    type=PATH,
    required=True,
    help="CSV with the columns clip_a, clip_b, prompt, preferred (A, B or tie), or clip, prompt, score; and dimension.",
)
@click.option(
    "--measure",
    "measures",
    multiple=True,
    metavar="DIMENSION=MEASURE",
    help="The measure of a source of several that a dimension is compared with. May be repeated.",
)
@out_option
@device_option
def main(name: str, preferences: Path, measures: tuple[str, ...], out: Path, device: str) -> None:
    """Compare a source with people's choices or scores. docs/audit.md defines the figures."""
    from data.tables.choices import read_said
    from feedback.core.kinds import make_source, needs_device
    from pipeline.choices import audit, in_words
    from pipeline.configs import AuditConfig, LabelConfig
    from pipeline.params import section, source_block

    if wrong := [one for one in measures if "=" not in one]:
        raise ValueError(f"--measure {wrong[0]}: expected DIMENSION=MEASURE, such as VQ=visual_quality")
    label, config, given = section("label", LabelConfig), section("audit", AuditConfig), source_block(name)
    said = read_said(preferences)
    if needs_device(name, given):
        from cluster.devices import pick_device  # and torch with it, which takes seconds

        device = str(pick_device(device))
    source = make_source(name, given, device)
    named = dict(one.split("=", 1) for one in measures)
    how = (label.batch_size, label.votes, label.max_failed)
    figures = audit(said, source, given, out, named, how, config.draws, config.seed)
    for line in in_words(figures):
        click.echo(line)
    if figures["unreadable"]:
        click.echo(f"{figures['unreadable']} of {figures['clips']} clips cannot be decoded; their rows have no figure")


if __name__ == "__main__":
    main()
