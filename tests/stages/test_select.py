"""Which checkpoint of a policy is kept: the curve, the rule, and the stages around them after a kill."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from data.manifest import read_manifest, write_manifest
from data.policies import candidates
from data.records import Label, Sample, Verdict, read_rows, write_rows
from data.store import ClipSet
from evaluation.checkpoints import candidates_of, curve, keep, plot_rows, read_outcomes
from generators.core.lora import LORA_FILE, apply_policy
from stages import generate, select
from tests.support.tiny import load_wan
from tests.support.training import run, write_base, write_clip_set

# The rule


def points(*rates):
    return [{"step": 100 * (place + 1), "rate": rate} for place, rate in enumerate(rates)]


@pytest.mark.parametrize(
    ("rule", "step"),
    [
        ("last", 600),
        ("best", 200),
        ("best-of-last-5", 200),
        ("best-of-last-4", 500),  # of 0.3, 0.3, 0.6, 0.1
        ("best-of-last-1", 600),
        ("best-of-last-50", 200),  # there are six
    ],
)
def test_a_rule_keeps_the_best_of_the_checkpoints_that_it_looks_at(rule, step):
    assert keep(points(0.2, 0.8, 0.3, 0.3, 0.6, 0.1), rule) == step


def test_of_equally_good_checkpoints_the_earliest_is_kept():
    assert keep(points(0.2, 0.5, 0.5), "best") == 200


def test_a_checkpoint_that_the_judge_labelled_nothing_of_is_passed_over():
    assert keep(points(0.0, None, None), "best") == 100
    with pytest.raises(ValueError, match=r"labelled no clip of steps \[200, 300\]"):
        keep(points(0.0, None, None), "best-of-last-2")


@pytest.mark.parametrize("rule", ["first", "best-of-last-0", "best-of-last-", "best-of-last-5x", ""])
def test_an_unknown_rule_is_refused_with_the_known_ones(rule):
    with pytest.raises(ValueError, match=f"keep is '{rule}'; known are last, best, or best-of-last-N"):
        candidates_of(rule, 3)


# The curve


def clips_by(*policies):
    """Two prompts, a clip each, by every policy."""
    return [
        Sample(f"{policy}-{p}", p, "a cup", "c", "train", policy, 1, 5, 8.0, 16, 16, f"videos/{policy}-{p}.mp4")
        for policy in policies
        for p in ("p1", "p2")
    ]


def test_the_curve_has_the_rate_of_every_judge_after_every_step():
    outcomes = {"judge": np.array([0.0, 1.0, 1.0, 1.0]), "physics": np.array([1.0, np.nan, 0.0, 0.0])}

    first, second = curve(clips_by("a", "b"), outcomes, {"a": 100, "b": 200}, draws=200, seed=0)

    assert (first["step"], first["rate"], first["low"], first["high"], first["n"]) == (100, 0.5, None, None, 2)
    assert (second["step"], second["rate"], second["low"], second["high"], second["n"]) == (200, 1.0, None, None, 2)
    assert first["physics"] == {"rate": 1.0, "low": None, "high": None, "n": 1}  # the other clip has no label
    assert second["physics"]["rate"] == 0.0


def test_a_judge_without_any_label_has_a_rate_of_null_and_not_of_zero():
    (point,) = curve(clips_by("a"), {"judge": np.full(2, np.nan)}, {"a": 100}, draws=10, seed=0)

    assert point == {"step": 100, "rate": None, "low": None, "high": None, "n": 0}


def test_clips_of_other_checkpoints_are_refused():
    with pytest.raises(ValueError, match=r"clips are by \['a', 'b'\], the checkpoints are \['a', 'c'\]"):
        curve(clips_by("a", "b"), {"judge": np.ones(4)}, {"a": 100, "c": 200}, draws=10, seed=0)


def test_dvc_plots_a_row_for_each_step_and_judge():
    rates = {"rate": 0.5, "low": 0.25, "high": 0.75, "n": 8}

    rows = plot_rows([{"step": 100, **rates, "physics": rates | {"rate": 0.375}}], ["judge", "physics"])

    assert rows == [
        {"step": 100, "judge": "judge", **rates},
        {"step": 100, "judge": "physics", **rates, "rate": 0.375},
    ]


# The checkpoints of a policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory, tiny_wan) -> Path:
    """Trained for 5 steps and kept every 2."""
    home = tmp_path_factory.mktemp("policy")
    run("rwr", tiny_wan, write_clip_set(home / "clips"), write_base(home / "base"), home)
    return (home / "out").rename(home / "rwr1")


def test_the_candidates_are_the_checkpoints_and_the_end(policy):
    found = candidates(policy)

    assert [(one.name, one.step) for one in found] == [("step-000002", 2), ("step-000004", 4), ("step-000005", 5)]
    assert found[0].folder == policy / "checkpoints/step-000002"
    assert found[2].folder == policy


def test_an_end_that_is_a_checkpoint_is_no_candidate_twice(policy, tmp_path):
    copy = shutil.copytree(policy, tmp_path / "rwr1")
    shutil.copytree(copy / "checkpoints/step-000004", copy / "checkpoints/step-000005")

    assert [one.step for one in candidates(copy)] == [2, 4, 5]


def test_a_policy_without_a_choice_is_refused(policy, tmp_path):
    with pytest.raises(ValueError, match="base: not a trained policy"):
        candidates(write_base(tmp_path / "base"))
    copy = shutil.copytree(policy, tmp_path / "rwr1", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(ValueError, match="kept at step 5 alone, so there is nothing to choose from; lower checkpoint"):
        candidates(copy)


# The stages

PARAMS = {
    "generator": {"family": "wan", "revision": None, "dtype": "float32", "max_prompt_tokens": 8},
    "prompts": {"path": "prompts.csv"},
    "video": {"num_frames": 5, "height": 16, "width": 16, "fps": 8},
    "evaluate": {"draws": 50, "seed": 1},
    "select": {
        "policies": ["rwr1"],
        "judges": ["judge", "physics"],
        "keep": "best-of-last-5",
        "generate": {
            "steps": 1, "guidance": 1.0, "solver": "euler", "samples_per_prompt": 2, "batch_size": 1,
            "split": "train", "prompts": 2, "seed": 1,
        },
    },
}  # fmt: skip
CSV = """prompt_id,prompt,category,split
p1,the red ball rolls off the table,falling,train
p2,the ball drops into a box,falling,train
p3,a hand lifts the blue cup,lifting,train
p4,a hand lifts the red cup,lifting,test
"""
SAMPLES, LABELS, CURVE = Path("runs/select/rwr1/samples"), Path("runs/select/rwr1/labels"), Path("curve.json")


def write_params(tiny_wan: Path, **changes):
    """Write params.yaml into the working directory. changes: of its section select."""
    generator = PARAMS["generator"] | {"path": str(tiny_wan)}
    text = yaml.safe_dump(PARAMS | {"generator": generator, "select": PARAMS["select"] | changes})
    Path("params.yaml").write_text(text)


def start_project(monkeypatch, folder: Path, tiny_wan: Path, policy: Path) -> None:
    """Make a folder the working directory, with params.yaml, prompts and the policy."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("STAGE_DEVICE", "cpu")
    Path("prompts.csv").write_text(CSV)
    shutil.copytree(policy, "runs/policies/rwr1")
    write_params(tiny_wan)


@pytest.fixture
def project(tmp_path, monkeypatch, tiny_wan, policy):
    """A project; returns how to write its params again with another rule."""
    start_project(monkeypatch, tmp_path, tiny_wan, policy)
    return partial(write_params, tiny_wan)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory, tiny_wan, policy) -> Path:
    """A project in which `generate_clips` has made its clips and generate.json."""
    home = tmp_path_factory.mktemp("sampled")
    with pytest.MonkeyPatch.context() as monkeypatch:
        start_project(monkeypatch, home, tiny_wan, policy)
        done = generate_clips()
    assert done.exit_code == 0, done.output
    return home


@pytest.fixture
def clips(project, sampled) -> None:
    """The same clips and generate.json in a project of one's own."""
    shutil.copytree(sampled / SAMPLES, SAMPLES)
    shutil.copy(sampled / "generate.json", ".")


def generate_clips(out=SAMPLES):
    options = ["--set", "select", "--policy", "runs/policies/rwr1", "--checkpoints", "--sampling", "select.generate"]
    return CliRunner().invoke(generate.main, [*options, "--out", str(out), "--metrics", "generate.json"])


def label_as(judge, accepts):
    """Labels by a judge that accepts the clips of which `accepts(sample)` is true; null where it is None."""
    rows = [
        Label(sample.sample_id, judge, accepts(sample), None, None, 1, int(accepts(sample) is None), None)
        for sample in read_rows(SAMPLES / "metadata.parquet", Sample)
    ]
    write_rows(LABELS / judge / "labels.parquet", rows, Label)
    write_rows(LABELS / judge / "verdicts.parquet", [], Verdict)
    write_manifest(LABELS / judge, "labels")


def select_one():
    options = ["--policy", "runs/policies/rwr1", "--samples", str(SAMPLES), "--labels", str(LABELS)]
    outs = ["--curve", str(CURVE), "--out", "runs/policies/rwr1-selected", "--metrics", "metrics.json"]
    return CliRunner().invoke(select.main, [*options, *outs])


def test_every_checkpoint_makes_clips_of_the_same_prompts_and_noise(clips):
    found = ClipSet.open(SAMPLES, verify=True)
    made = {}
    for sample in found.samples:
        made.setdefault(sample.policy, []).append((sample.prompt_id, sample.seed))
    assert list(made) == ["rwr1/step-000002", "rwr1/step-000004", "rwr1/step-000005"]
    assert made["rwr1/step-000002"] == made["rwr1/step-000004"] == made["rwr1/step-000005"]
    assert [prompt for prompt, _ in made["rwr1/step-000002"]] == ["p1", "p1", "p2", "p2"]  # two of three
    assert found.samples[0].sample_id == "select-step-000002-p1-000"
    assert json.loads(Path("generate.json").read_text())["clips"] == 12


@pytest.mark.ci
def test_a_checkpoints_clips_are_its_own(project, tiny_wan):
    """As the checkpoint's folder makes them when it is named as a policy."""
    weights = Path("runs/policies/rwr1/checkpoints/step-000002") / LORA_FILE
    louder = {key: value * 40 for key, value in load_file(weights).items()}
    save_file(louder, weights, metadata=_metadata(weights))
    generate_clips()
    clips = ClipSet.open(SAMPLES)
    generator = load_wan(tiny_wan, max_prompt_tokens=8)
    apply_policy(generator, weights.parent)
    sample = clips.samples[0]

    latents = generator.sample(
        clips.conditions([sample.prompt_id]), clips.empty,
        generator.draw_noise([sample.seed], generator.latent_shape), 1, 1.0, "euler",
    )  # fmt: skip

    np.testing.assert_allclose(clips.latents([sample.sample_id]), latents, atol=1e-5)
    of_the_next = clips.latents([sample.sample_id.replace("step-000002", "step-000004")])
    assert not np.allclose(of_the_next, latents, atol=1e-3)


def _metadata(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.ci
def test_a_stopped_run_samples_no_clip_twice_and_loads_no_finished_checkpoint(project, monkeypatch):
    from generators.core import generator as module

    generate_clips(Path("whole"))
    sampled, loaded, sample = [], [], module.Generator.sample

    def counted(stop_at, self, *args):
        sampled.append(args)
        if len(sampled) == stop_at:
            raise KeyboardInterrupt
        return sample(self, *args)

    def noted(generator, folder):
        loaded.append(folder.name)
        apply_policy(generator, folder)

    monkeypatch.setattr("generators.core.rollout.apply_policy", noted)
    monkeypatch.setenv("STAGE_WORKERS", "1")  # forks would count for themselves
    monkeypatch.setattr(module.Generator, "sample", lambda *args: counted(6, *args))
    assert generate_clips().exit_code != 0
    assert not SAMPLES.exists()
    assert loaded == ["step-000002", "step-000004"]
    monkeypatch.setattr(module.Generator, "sample", lambda *args: counted(None, *args))
    assert generate_clips().exit_code == 0

    assert len(sampled) == 12 + 1  # the sixth was stopped, so begun twice
    assert loaded == ["step-000002", "step-000004", "step-000004", "rwr1"]
    assert (SAMPLES / "manifest.json").read_bytes() == Path("whole/manifest.json").read_bytes()


def test_the_kept_checkpoint_is_a_policy_that_can_be_sampled_and_trained_from(clips, tiny_wan, tmp_path, caplog):
    label_as("judge", lambda sample: "step-000004" in sample.policy)
    label_as("physics", lambda sample: "step-000002" in sample.policy)

    with caplog.at_level("INFO"):
        done = select_one()

    assert done.exit_code == 0, done.output
    assert "rwr1: kept step 4; accepted by judge: 2 0.0%, 4 100.0%, 5 0.0%" in caplog.text
    selected, source = Path("runs/policies/rwr1-selected"), Path("runs/policies/rwr1/checkpoints/step-000004")
    assert sorted(path.name for path in selected.iterdir()) == ["manifest.json", "policy.json", LORA_FILE]
    assert (selected / LORA_FILE).read_bytes() == (source / LORA_FILE).read_bytes()
    facts, of_source = (json.loads((folder / "policy.json").read_text()) for folder in (selected, source.parents[1]))
    assert facts["step"] == 4 and facts["made_with"] == of_source["made_with"]
    assert read_manifest(selected, "policy", verify=True)["facts"] == {"selected_from": "rwr1", "steps": 4}
    apply_policy(load_wan(tiny_wan, max_prompt_tokens=8), selected)
    run("rwr", tiny_wan, write_clip_set(tmp_path / "clips"), selected, tmp_path / "next", steps=1, checkpoint_every=1)
    assert json.loads((tmp_path / "next/out/policy.json").read_text())["start"] == "rwr1-selected"


def test_the_curve_and_the_metrics_have_the_rates_behind_the_choice(clips):
    label_as("judge", lambda sample: "step-000004" in sample.policy)
    label_as("physics", lambda sample: None if sample.prompt_id == "p1" else "step-000002" in sample.policy)

    select_one()

    document = json.loads(CURVE.read_text())
    assert (document["judge"], document["rule"], document["kept"]) == ("judge", "best-of-last-5", 4)
    assert [(point["step"], point["rate"], point["n"]) for point in document["curve"]] == [
        (2, 0, 4),
        (4, 1, 4),
        (5, 0, 4),
    ]
    assert [point["physics"]["rate"] for point in document["curve"]] == [1.0, 0.0, 0.0]
    assert document["curve"][0]["physics"]["n"] == 2
    metrics = json.loads(Path("metrics.json").read_text())
    assert metrics["kept"] == 4 and metrics["measured"] == {"judge": False, "physics": False}
    assert [key for key, value in metrics.items() if isinstance(value, list)] == ["curve"]  # else dvc plots fails
    rates = [(row["step"], row["judge"], row["rate"]) for row in metrics["curve"]]
    assert rates == [
        (2, "judge", 0.0), (2, "physics", 1.0), (4, "judge", 1.0), (4, "physics", 0.0), (5, "judge", 0.0),
        (5, "physics", 0.0),
    ]  # fmt: skip


def test_another_rule_keeps_another_checkpoint_of_the_same_clips(project, clips):
    for judge in ("judge", "physics"):
        label_as(judge, lambda sample: "step-000004" in sample.policy)
    project(keep="last")

    select_one()

    selected = Path("runs/policies/rwr1-selected")
    assert (selected / LORA_FILE).read_bytes() == Path("runs/policies/rwr1", LORA_FILE).read_bytes()
    assert sorted(path.name for path in selected.iterdir()) == ["manifest.json", "policy.json", LORA_FILE]


def test_a_fully_trained_policy_is_selected_from_likewise(tiny_wan, tmp_path):
    from data.policies import copy_policy

    base = write_base(tmp_path / "base")
    run("rwr", tiny_wan, write_clip_set(tmp_path / "clips"), base, tmp_path, full=True, steps=3, lora_targets=None)

    first, _ = candidates(tmp_path / "out")
    copy_policy(first.folder, tmp_path / "selected")

    apply_policy(load_wan(tiny_wan, max_prompt_tokens=8), tmp_path / "selected")
    assert sorted(path.name for path in (tmp_path / "selected").iterdir()) == ["policy.json", "transformer"]


def test_labels_of_other_clips_are_refused(clips):
    label_as("judge", lambda sample: True)
    label_as("physics", lambda sample: True)
    rows = read_rows(LABELS / "physics/labels.parquet", Label)
    write_rows(LABELS / "physics/labels.parquet", rows[1:], Label)
    write_manifest(LABELS / "physics", "labels")

    with pytest.raises(ValueError, match="physics: its 11 labels are not of the 12 clips beside them"):
        read_outcomes(SAMPLES, LABELS, ["judge", "physics"])
    done = select_one()
    assert done.exit_code == 1
    assert not Path("runs/policies/rwr1-selected").exists()


def test_a_metric_keeps_the_checkpoint_of_the_highest_mean_score(project, clips):
    project(judges=["clip", "physics"], keep="best")
    label_as("physics", lambda sample: True)
    label_as("clip", lambda sample: None)
    labels = read_rows(LABELS / "clip/labels.parquet", Label)
    by = {one.sample_id: one.policy for one in read_rows(SAMPLES / "metadata.parquet", Sample)}
    first = min(by.values())
    scored = [replace(label, score=7.5 if by[label.sample_id] == first else 6.0) for label in labels]
    write_rows(LABELS / "clip/labels.parquet", scored, Label)
    write_manifest(LABELS / "clip", "labels")

    assert select_one().exit_code == 0

    document = json.loads(CURVE.read_text())
    assert (document["judge"], document["measured"]) == ("clip", ["clip"])
    assert [point["rate"] for point in document["curve"]] == [7.5, *[6.0] * (len(document["curve"]) - 1)]
    assert document["kept"] == document["curve"][0]["step"]
    assert document["curve"][0]["physics"]["rate"] == 1.0


def test_more_prompts_than_there_are_is_refused(project):
    project(generate=PARAMS["select"]["generate"] | {"prompts": 4})

    done = generate_clips()

    assert "4 prompts are wanted, split 'train' has 3" in done.output
    assert not SAMPLES.exists()
