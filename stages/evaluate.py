"""Stage `evaluate`: accept rates of every evaluated policy under every judge, with intervals."""

import json
import logging
from pathlib import Path

import click

from pipeline.command import PATH, metrics_option, out_option, stage_command, write_metrics
from pipeline.configs import EvaluateConfig
from pipeline.cost import COST
from pipeline.params import block, section
from pipeline.replicates import SELECTED, chains, policies_by_seed
from pipeline.state import stage_state

logger = logging.getLogger(__name__)


@stage_command
@click.option("--sets", type=PATH, required=True, help="Folder with an evaluation set for each policy.")
@click.option("--rounds", type=PATH, required=True, help="Folder with <round>.json, how each round was labelled.")
@out_option
@metrics_option
def main(sets: Path, rounds: Path, out: Path, metrics: Path) -> None:
    """Summarise the evaluation: accept rates and scores, paired differences, intervals, agreement of judges."""
    from data.manifest import publish, write_manifest
    from evaluation.accept import BASE, as_json, plot_rows, summarise
    from evaluation.effects.figures import Figures
    from evaluation.effects.rows import read_effects
    from evaluation.effects.summary import effects_of, effects_over_seeds
    from evaluation.metrics import metrics as metrics_of
    from evaluation.sets import load_set

    config = section("evaluate", EvaluateConfig)
    trained = block("policies") | block("comparison.policies") | block("online.policies")
    starts = {name: entry["start"] for name, entry in trained.items()}
    extended, selected = block("extend"), block("select.policies")
    starts |= {f"{name}{SELECTED}": starts[name] for name in selected}
    by_seed = policies_by_seed(config.policies, trained, extended, selected, block("seeds"))
    made_from = chains(trained, extended, selected, block("rounds"), block("dense"), block("pools"))
    figures = {name: json.loads((rounds / f"{name}.json").read_text()) for name in block("rounds")}
    counts = {name: {key: value for key, value in one.items() if key != COST} for name, one in figures.items()}
    with stage_state("evaluate", out, {"evaluate": config, "starts": starts, "seeds": by_seed}, [sets, rounds]) as work:
        evaluated = {name: load_set(sets / name, config.judges) for name in config.policies}
        summary = summarise(
            evaluated, starts, counts, config.draws, config.seed, config.top_k, config.best_of, by_seed, made_from
        )
        measured = {
            name: read_effects(sets / name / "effects", one.folder, one.samples) for name, one in evaluated.items()
        }
        labelling = list(summary["policies"][BASE]["accept"])
        effect_figures = Figures(evaluated, measured, labelling, config.pass_at)
        effects = effects_of(effect_figures, config.draws, config.seed)
        for name, of_policy in effects.items():
            summary["policies"][name]["effects"] = of_policy
        for name, joined in effects_over_seeds(effect_figures, effects, by_seed, config.draws, config.seed).items():
            summary["replicates"][name]["effects"] = joined
        for name, entry in extended.items():
            if name in summary["policies"]:
                summary["policies"][name]["baseline"] = {"kind": "prompt_extension", "of": entry["policy"]}
        for sentence in summary["warnings"]:
            logger.warning(sentence)
        folder = work / "evaluation"
        folder.mkdir(exist_ok=True)
        (folder / "summary.json").write_text(as_json(summary), encoding="utf-8")
        (folder / "plot.json").write_text(json.dumps(plot_rows(summary), indent=1) + "\n", encoding="utf-8")
        write_manifest(folder, "evaluation", policies=list(evaluated))
        publish(folder, out)
        write_metrics(metrics, metrics_of(summary))


if __name__ == "__main__":
    main()
