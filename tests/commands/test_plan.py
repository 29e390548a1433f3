"""`vfrl plan` in a small clone whose dvc.lock DVC wrote, without a stage that was run."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from commands.plan import main
from data.manifest import write_manifest
from tests.support.clone import DVC, ROOT, make_clone, run

WRITTEN = (
    "runs/r1/samples/clip", "metrics/generate/r1.json", "runs/r1/labels/judge/label", "metrics/label/r1.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """Round r1 counts as sampled and labelled: files stand there, and DVC has committed them. Nothing else was run."""
    folder = tmp_path_factory.mktemp("plan")
    make_clone(folder)
    (folder / "models/tabletop").mkdir(parents=True)
    for model in (ROOT / "models/tabletop").iterdir():
        (folder / "models/tabletop" / model.name).symlink_to(model)
    run(folder, sys.executable, "-m", "commands", "preset", "smoke")
    git(folder, "init", "-q")
    git(folder, "add", "--all")
    git(folder, "commit", "-qm", "as it ran")
    run(folder, *DVC, "repro", "base")
    for path in WRITTEN:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)
    run(folder, *DVC, "commit", "--force", "generate@r1", "label@r1")
    return folder


def git(folder: Path, *words: str) -> None:
    person = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    subprocess.run(["git", *person, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def planned(clone, monkeypatch):
    """The lines that the command prints in the clone, for the options that are given."""
    monkeypatch.chdir(clone)

    def lines(*options: str) -> list[str]:
        done = CliRunner().invoke(main, options, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output.splitlines()

    return lines


def line_of(lines: list[str], stage: str) -> str | None:
    return next((line for line in lines if line.split()[1:2] == [stage]), None)


def test_a_pool_s_clip_sets_have_no_size_of_their_own(planned, clone):
    pool = clone / "runs/both/samples"
    pool.mkdir(parents=True)
    write_manifest(pool, "clip_sets", rounds={})
    try:
        assert "12 clips, 294.9 kB" in (line_of(planned(), "generate@r2") or "")  # 12 x (latents + a byte a pixel)
    finally:
        shutil.rmtree(pool.parent)


def test_a_changed_value_is_named_as_it_was_and_as_it_is(planned, clone):
    before = (clone / "params.yaml").read_text()
    try:
        params = yaml.safe_load(before)
        params["generate"]["steps"] = 5
        (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        lines = planned()
    finally:
        (clone / "params.yaml").write_text(before)

    line = line_of(lines, "generate@r1")
    assert line and line.startswith("runs") and "generate.steps: 2 -> 5" in line and "12 clips" in line
    assert not any("dvc commit" in line for line in lines)  # what it wrote is of other values


@pytest.mark.ci
def test_edited_code_is_named_by_file_and_the_printed_command_accepts_what_is_there(planned, clone):
    code, other = (clone / f"generators/core/{name}.py" for name in ("rollout", "solvers"))
    before = code.read_text()
    assert line_of(planned(), "generate@r1") is None
    code.write_text(before + "# a comment\n")
    try:
        lines = planned()
        line = line_of(lines, "generate@r1")
        assert line and "code generators/core/rollout.py" in line and str(other.name) not in line
        accept = next(line for line in lines if line.strip().startswith("dvc commit -f"))
        assert "generate@r1" in shlex.split(accept) and any("would write the same bytes" in line for line in lines)
        run(clone, *DVC, *shlex.split(accept)[1:])
        assert line_of(planned(), "generate@r1") is None
    finally:
        code.write_text(before)
        run(clone, *DVC, "commit", "--force", "generate@r1")


@pytest.mark.parametrize(
    ("edited", "stage", "other"),
    [
        ("generators/families/wan.py", "generate@r1", "label@r1"),
        ("feedback/judges/qwen.py", "label@r1", "generate@r1"),
    ],
)
@pytest.mark.ci  # 35 s
def test_edited_code_of_a_family_or_a_kind_is_named_and_accepted_after_base(planned, clone, edited, stage, other):
    before = (clone / edited).read_text()
    (clone / edited).write_text(before + "# a comment\n")
    try:
        lines = planned()
        assert edited not in (line_of(lines, other) or "")
        assert f" code {edited} " in f"{line_of(lines, stage)} "
        if stage == "generate@r1":  # labels of a judge in this process are made again in a minute
            accept = next(line.strip() for line in lines if "dvc commit -f" in line)
            assert accept.startswith("dvc repro base && dvc commit -f ") and stage in shlex.split(accept)
            for command in accept.split(" && "):
                run(clone, *DVC, *shlex.split(command)[1:])
            assert line_of(planned(), stage) is None
    finally:
        (clone / edited).write_text(before)
        run(clone, *DVC, "repro", "base")
        run(clone, *DVC, "commit", "--force", "generate@r1", "label@r1")


def test_an_edited_rubric_is_named_for_the_stages_that_use_it(planned, clone):
    (clone / "tabletop/rubric.yaml").write_text((clone / "tabletop/rubric.yaml").read_text() + "\n# a note\n")
    try:
        lines = planned()
    finally:
        git(clone, "checkout", "tabletop/rubric.yaml")

    assert line_of(lines, "generate@r1") is None
    line = line_of(lines, "label@r1")
    assert line and line.startswith("runs") and "tabletop/rubric.yaml changed" in line
    assert "12 answers of judges here" in line


def test_a_paid_judge_has_calls_tokens_and_a_price(planned, clone):
    before = (clone / "params.yaml").read_text()
    try:
        params = yaml.safe_load(before)
        params["feedback"]["source"] = "gpt"
        (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        lines = planned("--seconds-per-call", "8")
    finally:
        (clone / "params.yaml").write_text(before)

    line = line_of(lines, "label@r1")
    calls = 12 * len(yaml.safe_load((clone / "feedback/rubrics/review.yaml").read_text())["questions"])
    assert line and f"[{calls:,} calls" in line and re.search(r"[\d,]+ tokens, \$0\.\d\d", line)
    assert f", {calls * 8 / 16:.0f} s," in line  # 16 in flight
    assert f"{2 * calls:,} calls" in lines[-1]  # of both rounds


def test_time_is_unknown_until_it_was_measured_or_given(planned, clone):
    unknown = planned("--last-line")
    assert len(unknown) == 1 and "without the time of" in unknown[0] and not re.search(r"\d (h|min|s)\b", unknown[0])
    # r2 and four evaluation sets of 12 clips; a forward of sampling takes 5 s, of evaluation (guided) twice as many
    given = planned("--seconds-per-clip", "10")
    assert "[12 clips, 2 min," in (line_of(given, "generate@r2") or "")
    assert "[12 clips, 4 min," in (line_of(given, "eval-generate@base") or "")
    assert "[3 steps, 3 min]" in (line_of(given, "train@rwr1") or "")  # 3 steps x 4 rows x 3 forwards x 5 s

    rates = {"sample models/tabletop/generator 32x32x9": {"unit": "clips", "seconds": 1.0, "start": 6.0}}
    (clone / ".state").mkdir(exist_ok=True)
    kept = clone / ".state/rates.json"
    try:
        kept.write_text(json.dumps(rates))
        assert "[12 clips, 30 s," in (line_of(planned(), "generate@r2") or "")  # 6 + 12 x 2 x 1
        without = planned("--last-line")[0]
        kept.write_text(json.dumps(rates | {"base": {"unit": "runs", "seconds": 7200.0, "start": 0.0}}))
        assert not re.search(r"\d h\b", without) and re.search(r"\b2\.\d h\b", planned("--last-line")[0])
    finally:
        kept.unlink()


def test_without_outputs_and_cache_every_stage_runs_for_one_short_reason(clone, tmp_path, monkeypatch):
    """As in a fresh clone, in which only dvc.lock tells of the run."""
    fresh = tmp_path / "fresh"
    git(clone, "clone", "-q", ".", str(fresh))
    for name in ("params.yaml", "dvc.lock"):
        shutil.copy(clone / name, fresh / name)
    monkeypatch.chdir(fresh)
    done = CliRunner().invoke(main, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    *lines, _ = done.output.splitlines()
    for stage, reason in (("generate@r1", "output not there yet"), ("label@r1", "output not there yet"),
                          ("evaluate", "not run yet")):  # fmt: skip
        line = line_of(lines, stage)
        assert line and re.sub(r" \[.*\]", "", line).split(None, 2)[::2] == ["runs", reason]
    assert not any("dvc commit" in line for line in lines)
