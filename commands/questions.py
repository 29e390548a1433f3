"""The questions of each prompt's own, for a rubric that names their file."""

from pathlib import Path

import click

from pipeline.command import PATH, device_option, stage_command


@stage_command
@click.option("--writer", required=True, help="template, a source of feedback.sources, rubric, or a dotted path.")
@click.option("--rubric", type=PATH, help="YAML file: the question sheet of a source, or of writer rubric.")
@click.option("--kinds", help="Such as alignment,physics,quality; default: all kinds of a question sheet.")
@click.option("--prompts", type=PATH, help="CSV of the prompt set; default: that of params.yaml.")
@click.option("--out", type=PATH, required=True, help="CSV to write, for `questions:` of a rubric.")
@click.option("--force", is_flag=True, help="Write it again where it is there, over what was changed in it by hand.")
@device_option
def main(
    writer: str, rubric: Path | None, kinds: str | None, prompts: Path | None, out: Path, force: bool, device: str
) -> None:
    """Write questions about each prompt of a set. What a source wrote is kept, so that none is paid for twice."""
    if out.exists() and not force:
        raise click.UsageError(f"{out} is there already; --force writes it again")
    from data.prompts import load_prompts
    from data.tables.questions import write_questions
    from feedback.core.kinds import needs_device, resolve
    from feedback.questions import Writing, is_source
    from feedback.questions.own import own_questions
    from generators.core.size import VideoSize
    from pipeline.configs import PromptsConfig
    from pipeline.params import block, section

    rows = load_prompts(prompts or Path(section("prompts", PromptsConfig).path))
    chosen = tuple(kind.strip() for kind in kinds.split(",")) if kinds else None
    by = Writing(writer, None if rubric is None else str(rubric), chosen, explanation=False, with_reference=False)
    sources = block("feedback.sources")
    if is_source(writer) and writer in sources and needs_device(writer, resolve(writer, sources)):
        from cluster.devices import pick_device  # and torch with it, which takes seconds

        device = str(pick_device(device))
    video = section("video", VideoSize)
    written = own_questions(rows, by, sources, device, (video.height, video.width))
    write_questions(out, written.questions)
    click.echo(f"{out}: {len(written.questions):,} questions about {written.prompts:,} prompts, by {writer}")
    for name, count in written.names.items():
        click.echo(f"  {count:>5,}  {name}")
    if written.unwritten:
        click.echo(f"{len(written.unwritten):,} prompts have no question:")
    for prompt_id, why in written.unwritten.items():
        click.echo(f"  {prompt_id}: {why}")
