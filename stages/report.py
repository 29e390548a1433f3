"""Stage `report`: the page that a person opens."""

import json
import shutil
from pathlib import Path

import click

from pipeline.command import PATH, out_option, stage_command
from pipeline.configs import ReportConfig
from pipeline.params import block, section
from pipeline.state import STATE, stage_state


@stage_command
@click.option("--evaluation", type=PATH, required=True, help="Folder with summary.json.")
@click.option("--sets", type=PATH, required=True, help="Folder with an evaluation set for each policy.")
@click.option("--policies", type=PATH, required=True, help="Folder with the policies, for how each was trained.")
@click.option("--metrics", type=PATH, required=True, help="Folder with the figures of the stages.")
@out_option
def main(evaluation: Path, sets: Path, policies: Path, metrics: Path, out: Path) -> None:
    """Write the report: index.html, gallery.html, summary.json and the clips that they show."""
    from data.manifest import publish, read_manifest, write_manifest
    from evaluation.sets import load_set
    from report.cost import Entries, costs_of, read_costs
    from report.methods import read_methods
    from report.page import read_heatmaps, read_logs, read_measured, read_selected, read_trained, write_page
    from report.table import judges, measuring

    config = section("report", ReportConfig)
    audit, select, prefer = metrics / "audit", metrics / "select", metrics / "eval-prefer"
    entries = Entries(
        block("rounds"), block("dense"), block("pools"), block("policies"), block("comparison.policies"),
        block("online.policies"), block("select.policies"), block("select.judges"), block("extend"),
        block("reward.models"),
    )  # fmt: skip
    clips = {"prompts": block("prompts")["path"], **block("video")}
    sampling = {"rounds": block("generate") | clips, "evaluation": block("evaluate.generate") | clips}
    params, inputs = {"report": config, "sampling": sampling}, [evaluation, sets, policies, metrics]
    params |= {"entries": entries._asdict()}
    with stage_state("report", out, params, inputs) as work:
        read_manifest(evaluation, "evaluation")
        summary = json.loads((evaluation / "summary.json").read_text(encoding="utf-8"))
        names = [name for name, one in summary["policies"].items() if not one.get("baseline") or (sets / name).is_dir()]
        sources = dict.fromkeys(judge.partition("/")[0] for judge in [*judges(summary), *measuring(summary)])
        evaluated = {name: load_set(sets / name, list(sources)) for name in names}
        summary["trained"] = read_trained(policies, names)
        summary["costs"] = costs_of(entries, read_costs(metrics), summary["policies"], sources)
        summary["methods"] = read_methods(policies, sets, names, sources, sampling)
        measured = {
            "audit": read_measured(audit),
            "select": read_selected(select),
            "preferences": read_measured(prefer),
        }
        summary |= {key: found for key, found in measured.items() if found}
        folder = work / "report"
        shutil.rmtree(folder, ignore_errors=True)
        logs = read_logs(policies, names)
        looks, clips_of = read_heatmaps(policies, names), config.samples_per_prompt
        write_page(summary, evaluated, logs, clips_of, folder, STATE / "report-clips", looks)
        write_manifest(folder, "report")
        publish(folder, out)


if __name__ == "__main__":
    main()
