"""Stages `build`, `build-compare` and `build-dense`: from labels to the rows that training reads."""

from dataclasses import asdict
from pathlib import Path

import click

from pipeline.command import PATH, metrics_option, out_option, stage_command, write_metrics
from pipeline.configs import build_config
from pipeline.state import stage_state


@stage_command
@click.option("--set", "clips", type=PATH, required=True, help="Folder of the clip set.")
@click.option("--labels", type=PATH, required=True, help="Folder of its labels.")
@click.option("--dense", is_flag=True, help="Of pairs with one start and labels of windows: rows of dense_dpo.")
@out_option
@metrics_option
def main(clips: Path, labels: Path, dense: bool, out: Path, metrics: Path) -> None:
    """Build weighted and paired datasets from a labelled clip set."""
    from data.dense import open_window_labels, read_starts
    from data.labels import open_labels
    from data.manifest import publish
    from data.preferences import compares, read_preferences
    from data.store import ClipSet
    from rl.datasets import build
    from rl.dense import build_dense, write_dense
    from rl.rewards import weighting
    from rl.tables import write_tables

    clip_set = ClipSet.open(clips)
    labelled = open_window_labels(labels, clip_set) if dense else open_labels(labels, clips, clip_set.samples)
    config = build_config(labelled.source)
    judged = {key: labelled.facts[key] for key in ("model", "model_versions", "rubric", "rubric_hash", "votes")}
    made = {"round": clip_set.manifest["facts"]["set"]}
    by = {"source": labelled.source, "judge": judged, "reward": config.reward}
    with stage_state("build", out, {"build": config}, [clips, labels]) as work:
        name, folder = f"{made['round']}/{labelled.source}", work / "datasets"
        if dense:
            rows = build_dense(clip_set, read_starts(clip_set), labelled, name, config.reward, config.min_margin)
            composition = write_dense(folder, rows, clips=made, labels=by, min_margin=config.min_margin)
        else:
            preferences = read_preferences(labels, "labels") if compares(labelled.facts) else None
            how = {"name": name, "source": labelled.source, "preferences": preferences, **asdict(config)}
            tables = build(clip_set.samples, labelled.labels, **how)
            composition, settings = tables.composition, asdict(config)
            shaped = weighting(**{key: settings.pop(key) for key in ("shaping", "scale", "shift", "temperature")})
            write_tables(folder, clip_set.samples, *tables, clips=made, labels=by, weighting=shaped, pairing=settings)
        publish(folder, out)
        figures = {key: value for key, value in composition.items() if isinstance(value, int) or key == "weights"}
        write_metrics(metrics, figures)


if __name__ == "__main__":
    main()
