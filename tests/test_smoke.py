"""`dvc repro` itself, on the smallest preset, then killed and resumed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from benchmarks.soak import soak
from data.manifest import read_manifest
from data.policies import read_log
from pipeline.lock import holder_of
from tests.support.clone import DVC, ROOT, environment, make_clone, run
from tests.support.judges import WORDS, build_judge


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_wan, forking) -> Path:
    """A copy of the repository, run to its end under the preset `smoke` with models of random weights."""
    folder = tmp_path_factory.mktemp("smoke")
    make_clone(folder)
    shutil.copytree(tiny_wan, folder / "models/tabletop/generator")
    for model in ("clip", "first_frame_generator"):
        shutil.copytree(ROOT / "models/tabletop" / model, folder / "models/tabletop" / model)
    prompts = (folder / "configs/presets/smoke.csv").read_text().replace(",", " ").split()
    for judge in ("judge", "second_judge"):
        build_judge(folder / "models/tabletop" / judge, words=dict.fromkeys([*WORDS, *prompts]))
    run(folder, "python", "-m", "commands", "preset", "smoke", env=forking)
    slow_down(folder / "params.yaml")
    run(folder, *DVC, "repro", env=forking)
    return folder


def slow_down(path: Path) -> None:
    """Many small batches and checkpoints, so that there is something to kill half-way; one judge."""
    params = yaml.safe_load(path.read_text())
    params["generate"]["batch_size"] = params["label"]["batch_size"] = 1
    params["generate"]["steps"] = 60  # the stage lives on for half a second after its dvc is killed
    params["train"]["common"] |= {"steps": 8, "checkpoint_every": 1}
    params["evaluate"] |= {"policies": ["base", "rwr1", "ask1"], "judges": ["judge"]}  # each pair is a stage
    path.write_text(yaml.safe_dump(params, sort_keys=False))


def test_the_loop_ends_with_a_report(home):
    summary = json.loads((home / "report-out/summary.json").read_text())
    policies = yaml.safe_load((home / "params.yaml").read_text())["evaluate"]["policies"]

    assert list(summary["policies"]) == [*policies, "base best of 2 by judge"]
    assert set(summary["policies"]["rwr1"]["accept"]["judge"]["all"]) == {"rate", "low", "high", "n"}
    assert set(summary["policies"]["rwr1"]["minus_base"]["judge"]["all"]) == {"diff", "low", "high"}
    assert sum(summary["rounds"]["r2"][key] for key in ("accepted", "rejected", "unlabelled")) == 12
    assert (home / "report-out/index.html").is_file()
    assert summary["costs"]["ask1"]["making"]["forwards"] > summary["costs"]["rwr1"]["making"]["forwards"] > 0
    assert None not in summary["costs"]["ask1"]["making"].values()
    read_manifest(home / "report-out", "report", verify=True)


def test_the_table_and_the_path_of_the_page_are_printed(home, forking):
    printed = run(home, "python", "-m", "commands", "show", env=forking)

    assert "accepted by judge" in printed
    assert printed.rstrip().endswith("report-out/index.html")


def test_a_second_run_has_nothing_to_do_but_to_check_params(home, forking):
    ran = re.findall(r"Running stage '(.*)'", run(home, *DVC, "repro", env=forking))
    assert ran == ["base"]


def test_a_plan_lists_what_a_change_runs_and_what_follows_without_running_it(home, forking):
    def planned() -> tuple[dict[str, str], str]:
        *lines, last = run(home, "python", "-m", "commands", "plan", env=forking).splitlines()
        words = [line.split() for line in lines]
        return {one[1]: one[0] for one in words if one[0] in ("runs", "restored", "follows")}, last

    before = (home / "params.yaml").read_text()
    assert planned() == ({}, "0 stages besides base; clips are sampled by: none")
    try:
        params = yaml.safe_load(before)
        params["feedback"]["source"] = "physics"  # another judge: of round 1 the labels, and what comes from them
        (home / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        stages, sampled = planned()
        assert stages["label@r1"] == "runs" and stages["build@r1"] == stages["train@rwr1"] == "follows"
        assert "generate@r1" not in stages and "eval-generate@base" not in stages
        assert sampled.endswith("clips are sampled by: generate@r2, eval-generate@rwr1, eval-generate@ask1")

        params = yaml.safe_load(before)
        params["evaluate"]["draws"] = 100
        (home / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        stages, sampled = planned()
        assert stages == {"evaluate": "runs", "report": "follows"}
        assert sampled.endswith("clips are sampled by: none")
    finally:
        (home / "params.yaml").write_text(before)


def test_what_the_stages_took_is_kept_for_the_next_plan_and_is_no_output(home):
    rates = json.loads((home / ".state/rates.json").read_text())
    units = {name.split()[0]: rate["unit"] for name, rate in rates.items()}
    assert units["sample"] == "clips" and units["train"] == units["online"] == "rows" and units["evaluate"] == "runs"
    assert all(rate["seconds"] > 0 and rate["start"] >= 0 for rate in rates.values())
    assert "rates.json" not in (home / "dvc.lock").read_text()


def test_dvc_shows_two_numbers_a_policy_and_draws_its_plots_without_a_complaint(home):
    policies = yaml.safe_load((home / "params.yaml").read_text())["evaluate"]["policies"]
    metrics = json.loads((home / "metrics/evaluate.json").read_text())
    assert set(metrics) == {*policies, *(f"Δ{name}" for name in policies if name != "base"), "in detail"}
    assert set(metrics["in detail"]["minus_base"]["judge"]["ask1"]) == {"all", "train", "test"}
    shown = run(home, *DVC, "metrics", "show")
    assert len(shown.splitlines()) == 2 and max(map(len, shown.splitlines())) <= 120
    assert "failed" not in run(home, *DVC, "plots", "show")


def test_policy_json_and_the_report_name_judge_rubric_and_versions_by_hash(home):
    facts = json.loads((home / "runs/policies/rwr1/policy.json").read_text())
    labels = json.loads((home / "runs/r1/labels/judge/manifest.json").read_text())["facts"]
    base = json.loads((home / "runs/policies/base/policy.json").read_text())
    assert facts["generator"] == base and facts["judge"]["rubric_hash"] == labels["rubric_hash"]
    assert [entry["from_step"] for entry in facts["made_with"]] == [0]
    page = (home / "report-out/index.html").read_text()
    for shown in (base["fingerprint"][:12], labels["rubric_hash"], facts["made_with"][0]["versions"]["torch"]):
        assert shown in page


def test_an_online_policy_stands_in_the_report_with_what_its_judges_said(home):
    rows = [json.loads(line) for line in (home / "runs/policies/ask1/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(0 <= row["held_out"]["held_out"] <= 1 for row in rows)
    assert "judge/accept" in rows[-1]["questions"]
    asks = (home / "runs/policies/ask1/asks.jsonl").read_text().splitlines()
    assert json.loads(asks[0])["author"] == "tabletop"
    summary = json.loads((home / "report-out/summary.json").read_text())
    assert summary["policies"]["ask1"]["minus_start"]["judge"]["all"]["diff"] is not None
    assert summary["trained"]["ask1"]["objective"] == "online"
    assert (home / "report-out/media/answers-light.svg").is_file()


def test_a_policy_of_the_second_round_is_a_plain_diffusers_lora(home):
    from safetensors import safe_open

    with safe_open(home / "runs/policies/dpo2/pytorch_lora_weights.safetensors", "pt") as file:
        assert all(key.startswith("transformer.") for key in file.keys())  # noqa: SIM118 - safe_open is no dict


@pytest.mark.ci
def test_train_spreads_over_processes_and_learns_the_same(home):
    printed = run(
        home, sys.executable, "-m", "stages.train", "--objective", "sft", "--start", "runs/policies/base",
        "--set", "runs/r1/samples", "--rows", "runs/r1/datasets/sft", "--out", "runs/policies/sft1-by-two",
        "--metrics", "two.json", "--processes", "2",
    )  # fmt: skip
    alone, together = (json.loads((home / path).read_text()) for path in ("metrics/train/sft1.json", "two.json"))

    assert "rank 1 of 2" in printed
    for cost in (alone.pop("cost"), together.pop("cost")):
        assert (cost["forwards"], cost["backwards"]) == (8 * 4, 8 * 4)  # steps of 4 rows
    assert together == pytest.approx(alone, rel=1e-3)
    read_manifest(home / "runs/policies/sft1-by-two", "policy", verify=True)
    assert [path.name for path in (home / ".state/train-runs-policies-sft1-by-two").iterdir()] == ["lock"]


@pytest.mark.ci
def test_online_spreads_over_processes_and_the_judges_see_the_same_clips(home):
    printed = run(
        home, sys.executable, "-m", "stages.online", "--entry", "ask1", "--start", "runs/policies/rwr1",
        "--out", "runs/policies/ask1-by-two", "--metrics", "online-two.json", "--processes", "2",
    )  # fmt: skip
    alone, together = (read_log(home / "runs/policies" / name) for name in ("ask1", "ask1-by-two"))

    assert "rank 1 of 2" in printed
    assert [line["step"] for line in together] == [line["step"] for line in alone] == [0, 1, 2]
    for one, two in zip(alone, together, strict=True):
        for judge in ("training", "held_out"):
            assert two["held_out"][judge] == pytest.approx(one["held_out"][judge], rel=1e-2)
    losses = [[line["question_loss"] for line in log[1:]] for log in (alone, together)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert json.loads((home / "online-two.json").read_text())["updates"] == 2
    read_manifest(home / "runs/policies/ask1-by-two", "policy", verify=True)
    assert [path.name for path in (home / ".state/online-runs-policies-ask1-by-two").iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("stage", "out", "begun", "victims"),
    [
        ("generate@r1", "runs/r1/samples", "clips/.batches/*.parquet", ("dvc",)),
        pytest.param("label@r1", "runs/r1/labels/judge", "verdicts-*.parquet", ("stage",), marks=pytest.mark.ci),
        pytest.param("train@dpo2", "runs/policies/dpo2", "state.safetensors", ("dvc", "stage"), marks=pytest.mark.ci),
    ],
)
def test_a_stage_that_is_killed_and_started_again_ends_with_the_same_bytes(home, stage, out, begun, victims, forking):
    undisturbed = (home / out / "manifest.json").read_bytes()
    state = home / ".state" / f"{stage.split('@')[0]}-{out.replace('/', '-')}"

    killed = kill_half_way(home, stage, state, begun, victims)

    assert not (home / out / "manifest.json").exists()
    assert list(state.glob(f"*/{begun}")), "nothing was kept to resume from"
    assert not psutil.pid_exists(killed)
    run(home, *DVC, "repro", "--force", "--single-item", stage, env=forking)
    read_manifest(home / out, json.loads(undisturbed)["kind"], verify=True)
    assert (home / out / "manifest.json").read_bytes() == undisturbed
    assert all(path.with_name(f"{path.name}.finished").is_file() for path in state.iterdir() if path.is_dir())


@pytest.mark.ci
def test_after_an_edit_work_of_hours_is_offered_and_adopting_it_ends_with_the_same_bytes(home, forking):
    stage, out = "generate@r1", home / "runs/r1/samples"
    undisturbed = (out / "manifest.json").read_bytes()
    state, code = home / ".state/generate-runs-r1-samples", home / "generators/core/solvers.py"
    kill_half_way(home, stage, state, "clips/.batches/*.parquet", ("dvc", "stage"))
    (work,) = (path for path in state.iterdir() if path.is_dir())
    work.with_name(f"{work.name}.seconds").write_text("36000")
    with (home / "report/page.py").open("a") as page:  # no code of this stage
        page.write("# edited\n")
    before = code.read_text()
    code.write_text(f"{before}# edited\n")
    try:
        command = [*DVC, "repro", "--force", "--single-item", stage]
        refused = subprocess.run(command, cwd=home, env=forking, capture_output=True, text=True)
        assert refused.returncode != 0 and work.is_dir()
        said = refused.stdout + refused.stderr
        assert "10.0 hours of work" in said and "code: generators/core/solvers.py has changed" in said
        assert "report/page.py" not in said and "STAGE_STATE=adopt" in said
        done = subprocess.run(command, cwd=home, env=forking | {"STAGE_STATE": "adopt"}, capture_output=True, text=True)
        assert done.returncode == 0 and "12 clips by base, 12 of them now" not in done.stdout + done.stderr
    finally:
        code.write_text(before)
    assert (out / "manifest.json").read_bytes() == undisturbed
    assert all(path.with_name(f"{path.name}.finished").is_file() for path in state.iterdir() if path.is_dir())


@pytest.mark.ci
@pytest.mark.parametrize("target", ["build@r1", "train@dpo2", "evaluate"])
def test_a_target_that_is_killed_at_random_moments_ends_as_if_nothing_had_happened(home, target):
    row = soak(home, target, moments=2)
    assert row.good, row


@pytest.mark.ci
@pytest.mark.parametrize("stage", ["generate@r1", "train@dpo2"])
def test_a_full_disk_stops_a_stage_in_a_sentence_and_the_next_run_ends_with_the_same_bytes(home, stage, forking):
    entry = yaml.safe_load((home / "dvc.lock").read_text())["stages"][stage]
    out = next(home / one["path"] for one in entry["outs"] if one["path"].startswith("runs/"))
    undisturbed = (out / "manifest.json").read_bytes()
    largest = max(one["size"] for one in json.loads(undisturbed)["files"])
    limited = f"ulimit -f {(largest - 1) // 1024}; exec {entry['cmd']}"  # KiB of each file, as on a disk that is full
    stopped = subprocess.run(["bash", "-c", limited], cwd=home, env=environment(), capture_output=True, text=True)

    said = stopped.stderr.splitlines()
    assert stopped.returncode == 1 and said[-1].startswith("Error: ") and "not written" in said[-1], said[-20:]
    run(home, *DVC, "repro", "--force", "--single-item", stage, env=forking)  # under DVC it is the same work as by hand
    assert (out / "manifest.json").read_bytes() == undisturbed


def kill_half_way(home: Path, stage: str, state: Path, begun: str, victims: tuple[str, ...]) -> int:
    """Run a stage again under dvc and kill the victims once it has something to resume from; returns its pid."""
    shutil.rmtree(state, ignore_errors=True)  # the finished work of an earlier test
    command = [*DVC, "repro", "--force", "--single-item", stage]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    dvc = subprocess.Popen(command, cwd=home, env=environment(), **quiet)
    deadline = time.monotonic() + 120
    while not list(state.glob(f"*/{begun}")):
        assert dvc.poll() is None and time.monotonic() < deadline, f"{stage} never began to keep its work"
        time.sleep(0.005)
    pid = holder_of(state / "lock").pid
    for victim in victims:
        os.kill(dvc.pid if victim == "dvc" else pid, signal.SIGKILL)
    assert dvc.wait(timeout=120) != 0
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return pid
