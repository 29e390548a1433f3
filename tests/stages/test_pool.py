"""Rounds that are joined and trained on together, by the stages."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from data.manifest import read_manifest
from data.store import ClipSet
from generators.core.lora import LORA_FILE
from rl.objectives import OBJECTIVES, OF_ROUNDS
from rl.tables import write_tables
from stages import pool, train
from tests.support.tiny import load_wan
from tests.support.training import CONFIG, OWN, rows, write_base, write_clip_set
from tests.support.training import train as train_policy

PARAMS = {
    "generator": {"family": "wan", "revision": None, "dtype": "float32", "max_prompt_tokens": 6},
    "video": {"num_frames": 5, "height": 16, "width": 16, "fps": 8},
    "train": {"common": CONFIG, "sft": {}, "rwr": {}, **OWN},
}
LABELS = {"source": "judge", "judge": {"model_versions": ["v1"]}, "reward": "label"}


@pytest.fixture
def project(tmp_path, monkeypatch, tiny_wan):
    """A folder with params.yaml, the policy base, its rounds r1 and r1b, and rwr1's r2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STAGE_DEVICE", "cpu")
    params = PARAMS | {"generator": PARAMS["generator"] | {"path": str(tiny_wan)}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    write_base(Path("runs/policies/base"))
    for name, policy in (("r1", "base"), ("r1b", "base"), ("r2", "rwr1")):
        write_round(name, policy)


def write_round(name: str, policy: str) -> None:
    facts = {"set": name, "policy": policy, "family": "wan", "size": [5, 16, 16]}
    clips = write_clip_set(Path("runs", name, "samples"), prefix=f"{name}-", facts=facts)
    weighted, paired = rows("rwr", clips), rows("dpo", clips)
    pairs = {f"{name}-0": 2, f"{name}-1": 2}
    counts = {"name": f"{name}/judge", "samples": 8, "weighted": 8, "pairs": 4, "categories": {}}
    counts |= {"pairs_per_prompt": pairs, "prompts_without_a_pair": {}, "reasons": {}}
    made = {"round": name}
    write_tables(Path("runs", name, "datasets"), clips.samples, weighted, paired, counts, made, LABELS, {}, {})


def join(name: str, *parts: str):
    options = [word for part in parts for word in ("--set", f"runs/{part}/samples", "--rows", f"runs/{part}/datasets")]
    return CliRunner().invoke(pool.main, [*options, "--out", f"runs/{name}", "--metrics", f"metrics/{name}.json"])


def trained(name: str, objective: str, on: str, start: str = "base") -> dict:
    """policy.json of a policy that stage train makes."""
    options = ["--objective", objective, "--start", f"runs/policies/{start}", "--set", f"runs/{on}/samples"]
    made = ["--rows", f"runs/{on}/datasets/{objective}", "--out", f"runs/policies/{name}", "--metrics", "train.json"]
    done = CliRunner().invoke(train.main, [*options, *made])
    assert done.exit_code == 0, done.output
    return json.loads(Path("runs/policies", name, "policy.json").read_text())


def test_a_pool_has_rows_and_names_of_clip_sets_and_says_what_it_joins(project):
    assert join("both", "r1", "r1b").exit_code == 0

    files = {path.relative_to("runs/both").as_posix() for path in Path("runs/both").rglob("*") if path.is_file()}
    weighted = {f"datasets/{name}/weighted.parquet" for name in ("sft", "rwr", "kto", "nft")}
    tables = {*weighted, "datasets/dpo/paired.parquet"}
    manifests = {
        f"{folder}manifest.json" for folder in ("", "samples/", "datasets/", *(f"datasets/{o}/" for o in OF_ROUNDS))
    }
    assert files == {*tables, *manifests, "datasets/composition.json"}
    assert read_manifest(Path("runs/both"), "pool", verify=True)["facts"] == {"rounds": ["r1", "r1b"]}
    metrics = json.loads(Path("metrics/both.json").read_text())
    weights = metrics.pop("weights")
    assert metrics == {"rounds": 2, "samples": 16, "weighted": 16, "pairs": 8}
    assert weights == json.loads(Path("runs/both/datasets/composition.json").read_text())["weights"]


def test_rounds_that_do_not_go_together_stop_the_stage_with_both_named(project):
    shutil.rmtree("runs/r1b/samples")
    facts = {"set": "r1b", "policy": "base", "family": "ltx", "size": [5, 16, 16]}
    write_clip_set(Path("runs/r1b/samples"), prefix="r1b-", facts=facts)

    done = join("both", "r1", "r1b")

    assert done.exit_code == 1 and not Path("runs/both").exists()
    assert "runs/r1/samples and runs/r1b/samples cannot be trained on together: family is wan and ltx" in done.output


@pytest.mark.parametrize("objective", OF_ROUNDS)
def test_a_policy_is_trained_on_the_clips_of_all_rounds_of_its_pool(objective, project):
    join("both", "r1", "r1b")
    facts = trained("pooled", objective, "both")

    assert facts["round"] == "both" and facts["start"] == "base"
    assert facts["rounds"] == [{"round": "r1", "policy": "base"}, {"round": "r1b", "policy": "base"}]
    assert facts["clip_sets"] == [ClipSet.open(Path("runs", name, "samples")).fingerprint() for name in ("r1", "r1b")]
    assert facts["rows"] == (8 if objective == "dpo" else 16)


def test_a_policy_of_one_round_is_the_one_that_it_was_before_there_were_pools(project, tiny_wan, tmp_path, caplog):
    """Its weights, log and policy.json are those of the library's loop over the one clip set."""
    facts = trained("rwr1", "rwr", "r1")

    clips = ClipSet.open(Path("runs/r1/samples"))
    generator = load_wan(tiny_wan, max_prompt_tokens=6, parts=("denoiser",))
    origin = {"round": "r1", **LABELS, "build": {}}
    start, work, out = Path("runs/policies/base"), tmp_path / "work", tmp_path / "out"
    objective = OBJECTIVES["rwr"]
    train_policy(
        generator, [clips], rows("rwr", clips), objective, train.train_config(objective), start, work, out, origin
    )
    for name in (LORA_FILE, "log.jsonl", "policy.json"):
        assert Path("runs/policies/rwr1", name).read_bytes() == (out / name).read_bytes(), name
    assert "rounds" not in facts and "off-policy" not in caplog.text


def test_off_policy_rounds_are_named_in_the_log_and_in_policy_json(project, caplog):
    trained("rwr1", "rwr", "r1")
    join("all", "r1", "r2")
    facts = trained("dpo2", "dpo", "all", start="rwr1")

    assert facts["rounds"] == [{"round": "r1", "policy": "base"}, {"round": "r2", "policy": "rwr1"}]
    warned = [record.getMessage() for record in caplog.records if "off-policy" in record.getMessage()]
    assert warned == ["the clips of r1 are off-policy: base sampled them, and training starts from rwr1"]
    assert trained("dpo2b", "dpo", "r1", start="rwr1")["rounds"] == [{"round": "r1", "policy": "base"}]
