"""A prompt set rewritten by a language model, for the section extend."""

from pathlib import Path

import click

from pipeline.command import PATH, stage_command


@stage_command
@click.option("--prompts", type=PATH, help="CSV of the prompt set; default: that of params.yaml.")
@click.option("--out", type=PATH, required=True, help="CSV to write: the same rows with longer texts.")
@click.option("--model", required=True, help="Name of the model, as its server calls it.")
@click.option("--base-url", help="Address of an OpenAI-compatible server, ending in /v1; default: OpenAI's.")
@click.option("--key-variable", help="Environment variable with the server's key; OPENAI_API_KEY for OpenAI's.")
@click.option("--instructions", type=PATH, help="Text file of the request to the model, with {prompt} in it.")
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Calls in flight.")
def main(
    prompts: Path | None, out: Path, model: str, base_url: str | None, key_variable: str | None,
    instructions: Path | None, concurrency: int,
) -> None:  # fmt: skip
    """Rewrite every prompt at more length. The replies are kept in the ledger, so that none is paid for twice."""
    from data.prompts import load_prompts, write_prompts
    from data.written import read_written
    from feedback.questions.rewrite import INSTRUCTIONS, Rewriter, rewrite
    from pipeline.configs import PromptsConfig
    from pipeline.params import section

    rows = load_prompts(prompts or Path(section("prompts", PromptsConfig).path))
    text = read_written(instructions) if instructions else INSTRUCTIONS
    variable = key_variable or (None if base_url else "OPENAI_API_KEY")
    write_prompts(out, rewrite(rows, Rewriter(model, base_url, variable, text, concurrency)))
