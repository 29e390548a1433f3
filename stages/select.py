"""Stage `select`: the checkpoint of a policy that a judge accepts most, as a policy of its own."""

import json
import logging
import shutil
from pathlib import Path

import click

from pipeline.command import PATH, metrics_option, out_option, stage_command, write_metrics
from pipeline.configs import SelectConfig
from pipeline.params import block, section
from pipeline.state import stage_state

logger = logging.getLogger(__name__)


@stage_command
@click.option("--policy", type=PATH, required=True, help="Folder of the policy, with its checkpoints.")
@click.option("--samples", type=PATH, required=True, help="Folder with the clips of all its checkpoints.")
@click.option("--labels", type=PATH, required=True, help="Folder with their labels, a folder a judge.")
@click.option("--curve", type=PATH, required=True, help="JSON file to write: the accept rate of each checkpoint.")
@out_option
@metrics_option
def main(policy: Path, samples: Path, labels: Path, curve: Path, out: Path, metrics: Path) -> None:
    """Keep one checkpoint of a policy, and write the curve of accept rates that it is chosen by."""
    from data.manifest import atomically, publish, write_manifest
    from data.policies import candidates, copy_policy
    from evaluation.checkpoints import curve as curve_of
    from evaluation.checkpoints import in_words, keep, plot_rows, read_outcomes

    config, draws, seed = section("select", SelectConfig), block("evaluate.draws"), block("evaluate.seed")
    params = {"select": config, "evaluate": {"draws": draws, "seed": seed}}
    with stage_state("select", out, params, [policy, samples, labels]) as work:
        checkpoints = {f"{policy.name}/{one.name}": one for one in candidates(policy)}
        clips, outcomes, measured = read_outcomes(samples, labels, config.judges)
        steps = {name: one.step for name, one in checkpoints.items()}
        points = curve_of(clips, outcomes, steps, draws, seed)
        kept = keep(points, config.keep)
        folder = work / "policy"
        shutil.rmtree(folder, ignore_errors=True)
        copy_policy(next(one.folder for one in checkpoints.values() if one.step == kept), folder)
        write_manifest(folder, "policy", selected_from=policy.name, steps=kept)
        publish(folder, out)
        document = {"judge": config.judges[0], "measured": measured, "rule": config.keep, "kept": kept, "curve": points}
        with atomically(curve) as partial:
            partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        # `dvc plots` fails on a file with a second list, so `measured` is a mapping.
        is_measured = {judge: judge in measured for judge in config.judges}
        write_metrics(metrics, {"kept": kept, "measured": is_measured, "curve": plot_rows(points, config.judges)})
    first, is_metric = config.judges[0], config.judges[0] in measured
    what = "mean score of" if is_metric else "accepted by"
    logger.info("%s: kept step %d; %s %s: %s", policy.name, kept, what, first, in_words(points, is_metric))


if __name__ == "__main__":
    main()
