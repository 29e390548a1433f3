"""Stage `evaluate`: accept rates of every evaluated policy under every judge, with intervals."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from evaluation.selection import BestOf, TopK
from stages.command import PATH, metrics_option, out_option, stage_command, write_metrics
from stages.graph import SELECTED
from stages.params import block, section
from stages.state import stage_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateConfig:
    """Section `evaluate`; `generate` is read by stages.generate."""

    policies: tuple[str, ...]
    judges: tuple[str, ...]
    top_k: TopK | None
    best_of: BestOf | None
    generate: dict[str, Any]
    draws: int
    seed: int

    def __post_init__(self) -> None:
        asked = {
            "top_k.by": self.top_k.by if self.top_k else None,
            "best_of.judge": self.best_of.judge if self.best_of else None,
        }
        for key, judge in asked.items():
            if judge is not None and judge not in self.judges:
                raise ValueError(f"{key} is {judge!r}, expected one of evaluate.judges: {', '.join(self.judges)}")


@stage_command
@click.option("--sets", type=PATH, required=True, help="Folder with an evaluation set for each policy.")
@click.option("--rounds", type=PATH, required=True, help="Folder with <round>.json, how each round was labelled.")
@out_option
@metrics_option
def main(sets: Path, rounds: Path, out: Path, metrics: Path) -> None:
    """Summarise the evaluation: accept rates and scores, paired differences, intervals, agreement of judges."""
    from data.manifest import publish, write_manifest
    from evaluation.accept import as_json, headline, plot_rows, summarise
    from evaluation.sets import load_set

    config = section("evaluate", EvaluateConfig)
    trained = block("policies") | block("comparison.policies") | block("online.policies")
    starts = {name: entry["start"] for name, entry in trained.items()}
    starts |= {f"{name}{SELECTED}": starts[name] for name in block("select.policies")}
    counts = {name: json.loads((rounds / f"{name}.json").read_text()) for name in block("rounds")}
    with stage_state("evaluate", out, (config, starts), [sets, rounds]) as work:
        evaluated = {name: load_set(sets / name, config.judges) for name in config.policies}
        summary = summarise(
            evaluated, starts, counts, config.draws, config.seed, top_k=config.top_k, best_of=config.best_of
        )
        for name, entry in block("extend").items():
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
    write_metrics(metrics, headline(summary))


if __name__ == "__main__":
    main()
