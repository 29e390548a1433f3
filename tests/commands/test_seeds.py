"""`vfrl seeds` writes the entries of further seeds into params.yaml, and DVC makes stages of them."""

from pathlib import Path

import networkx
import pytest
import yaml
from click.testing import CliRunner
from dvc.repo import Repo

from commands.preset import edited
from commands.seeds import main
from pipeline.configs import OnlineEntry, train_config
from pipeline.params import section
from rl.objectives import get_objective
from tests.support.defaults import DEFAULTS

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The default params.yaml as the commands write it, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(DEFAULTS.read_text())
    with edited():
        pass
    return tmp_path


def seeds(*words: str) -> str:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_entries_are_written_among_the_others_and_comments_stay():
    before = Path("params.yaml").read_text().splitlines()
    seeds("1", "2", "3")
    after = Path("params.yaml").read_text()

    changed = [line for line in before if line not in after.splitlines()]
    assert [line.split(":")[0] for line in changed] == ["seeds", "  policies"]
    assert {line.partition("#")[2] for line in before} <= {line.partition("#")[2] for line in after.splitlines()}
    assert "  rwr2-s3: {start: rwr1-s3, round: r2-s3, objective: rwr, seed: 3, of: rwr2}\n" in after


def test_twice_is_as_once_and_fewer_seeds_take_away_what_more_have_added():
    first = Path("params.yaml").read_text()
    seeds("1", "2")
    second = Path("params.yaml").read_text()
    seeds("1", "2", "5")

    assert "0 values" in seeds()
    seeds("1", "2")
    assert Path("params.yaml").read_text() == second
    seeds("1")
    assert Path("params.yaml").read_text().split() == first.split()  # the longer list has moved a comment


def test_after_an_edit_the_command_makes_the_entries_follow():
    seeds("1", "2")
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("  dpo2: {start: rwr1, round: r2", "  dpo2: {start: base, round: r1"))

    assert "policies.dpo2-s2.start: rwr1-s2 -> base" in seeds()
    assert yaml.safe_load(Path("params.yaml").read_text())["policies"]["dpo2-s2"]["round"] == "r1"


def test_a_dry_run_writes_nothing_and_wrong_seeds_are_refused():
    before = Path("params.yaml").read_text()

    assert "policies.rwr2-s2: absent -> {start: rwr1-s2" in seeds("1", "2", "--dry-run")
    done = CliRunner().invoke(main, ["1", "1"])
    assert done.exit_code == 1 and "expected different whole numbers" in done.output
    assert Path("params.yaml").read_text() == before


def test_an_entry_s_seed_is_what_it_is_trained_with():
    seeds("1", "2")

    assert train_config(get_objective("rwr"), "policies.rwr2-s2").seed == 2
    assert train_config(get_objective("rwr"), "policies.rwr2") == train_config(get_objective("rwr"))
    entry = {"start": "base", "recipe": "ask-a-video", "judge": "second", "held_out": "judge"}
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["online"]["policies"] = {"ask1-s2": entry | {"seed": 2, "changes": {"engine": {"updates": 3}}}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    found = section("online.policies.ask1-s2", OnlineEntry)
    assert found.all_changes == {"engine": {"updates": 3, "seed": 2}}


def test_dvc_trains_every_seed_on_the_rounds_of_its_own_chain(folder):
    seeds("1", "2", "3")
    (folder / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    with Repo.init(str(folder), no_scm=True) as repo:
        stages = {stage.name: stage for stage in repo.index.stages}
        graph = networkx.DiGraph([(one.name, other.name) for one, other in repo.index.graph.edges])

    trained = stages["train@rwr2-s3"]
    assert {"runs/policies/rwr1-s3", "runs/r2-s3/samples"} <= {str(dep) for dep in trained.deps}
    assert "--entry policies.rwr2-s3 " in trained.cmd
    params = [name for dep in trained.deps for name in getattr(dep, "params", ())]
    assert "policies.rwr2-s3" in params
    before = networkx.descendants(graph, "train@rwr2-s3")
    assert {"generate@r2-s3", "train@rwr1-s3", "build@r1"} <= before
    assert not {"train@rwr1", "generate@r2", "train@rwr1-s2"} & before
    assert {"eval-label@dpo1-s2-judge", "label@r2-s3"} <= networkx.descendants(graph, "evaluate")
