"""Stage `eval-prefer`: which of two policies' evaluation clips a source prefers, pair by pair."""

from pathlib import Path

import click

from pipeline.command import (
    PATH,
    device_option,
    engine_options,
    metrics_option,
    out_option,
    stage_command,
    write_metrics,
)
from pipeline.configs import LabelConfig, PreferenceEntry
from pipeline.identity import RECORDED
from pipeline.params import block, section, source_block
from pipeline.state import stage_state


@stage_command
@click.option("--entry", "key", required=True, help="A name in preferences.")
@click.option("--policy", type=PATH, required=True, help="Folder of the policy's evaluation clips.")
@click.option("--against", type=PATH, required=True, help="Folder of the other policy's.")
@out_option
@metrics_option
@device_option
@engine_options
def main(
    key: str, policy: Path, against: Path, out: Path, metrics: Path, device: str, engine: str, workers: str
) -> None:
    """Compare two policies' clips of the same prompts and noise: win, tie and loss, with intervals."""
    from data.manifest import begun_for, publish, write_manifest
    from evaluation.preferences import win_table
    from feedback.core.kinds import open_source, what_is_asked
    from feedback.pairs.compare import as_comparer, compare_pairs, identity, votes_in_an_order, write_compared
    from feedback.pairs.sets import pairs_between

    entry, config = section(f"preferences.{key}", PreferenceEntry), section("label", LabelConfig)
    given, draws, seed = source_block(entry.source), block("evaluate.draws"), block("evaluate.seed")
    how = (config.batch_size, config.votes, config.max_failed)
    params = {f"preferences.{key}": entry, "label": dict(zip(("batch_size", "votes", "max_failed"), how, strict=True))}
    params |= {f"feedback.sources.{entry.source}": what_is_asked(given), "evaluate": {"draws": draws, "seed": seed}}
    inputs = [policy, against, RECORDED / f"sources/{entry.source}.json"]
    with stage_state("eval-prefer", out, params, inputs) as work:
        begun_for(work, policy, against)
        source = as_comparer(open_source(entry.source, given, device, engine, workers, config.batch_size))
        votes = votes_in_an_order(source, config.votes)
        pairs = pairs_between(policy, against, (entry.policy, entry.against), entry.clips, votes)
        compared = compare_pairs(pairs, source, work, config.batch_size, config.max_failed)
        samples = [pair.first.sample for pair in pairs]
        names = {"policy": entry.policy, "against": entry.against, "source": entry.source}
        table = names | win_table(samples, compared.preferences, draws, seed)
        folder = work / "out"
        write_compared(folder, compared)
        write_manifest(folder, "preferences", **(names | identity(source, compared)))
        publish(folder, out)
        write_metrics(metrics, table)


if __name__ == "__main__":
    main()
