"""What dvc.yaml says of the stages is what they do."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest
import yaml
from dvc.repo import Repo

from commands.preset import PRESETS, overlay
from pipeline.check import check_params
from pipeline.params import ParamsError, load_params

ROOT = Path(__file__).parents[1]
PARAMS = set(yaml.safe_load((ROOT / "params.yaml").read_text()))  # sections
PACKAGES = (
    "cluster", "commands", "data", "evaluation", "feedback", "generators", "inspection", "pipeline", "report", "rl",
    "stages", "tabletop",
)  # fmt: skip


def definitions() -> dict[str, dict]:
    """Stages of dvc.yaml by name, as they are written there, foreach looked through."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


STAGES = definitions()
EACH_STAGE = pytest.mark.parametrize("name", STAGES)


def command_of(name: str) -> Path:
    """The module that a stage runs, from the root."""
    return Path("stages") / (re.match(r"python -m stages\.(\w+)", STAGES[name]["cmd"])[1] + ".py")


def commands() -> set[str]:
    return {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}


# Names


def test_every_stage_runs_a_command_and_every_command_is_a_stage():
    assert {command_of(name).stem for name in STAGES} == commands()


@EACH_STAGE
def test_a_stage_is_named_after_its_command(name):
    assert command_of(name).stem in name.split("-")
    assert name.split("-")[0] in (command_of(name).stem, "eval")


@EACH_STAGE
def test_every_stage_says_what_it_does(name):
    assert STAGES[name]["desc"]


def test_the_readme_names_every_stage():
    text = (ROOT / "README.md").read_text()
    assert [name for name in STAGES if f"`{name}`" not in text] == []


# Modules


def files_of(module: str) -> Iterator[Path]:
    """The files of ours that importing a dotted name runs: the module and the packages that it lies in."""
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        inner = Path(*parts[:length])
        for path in (inner.with_suffix(".py"), inner / "__init__.py"):
            if parts[0] in PACKAGES and (ROOT / path).is_file():
                yield path


def imported_by(path: Path) -> set[Path]:
    """Files of ours that a file imports, at its top, within a function, or by a name for importlib or data.doors."""
    tree = ast.parse((ROOT / path).read_text())
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    if modules & {"importlib", "data.doors"}:
        constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        modules |= {text for text in map(str, constants) if re.fullmatch(r"\w+(\.\w+)+", text)}
    return {found for module in modules for found in files_of(module)}


# What every stage stands on decides nothing that a stage writes: what it reads for one is declared as a param or an
# input. The rest of pipeline/ is code of the stages that import it.
PLUMBING = {f"pipeline/{name}.py" for name in ("check", "command", "configs", "forecast", "graph", "params", "recipes",
                                               "state")}  # fmt: skip


def used_by(path: Path) -> set[Path]:
    """All files of ours that running a stage's module may run and that can change what it writes."""
    seen, todo = set(), [path]
    while todo:
        current = todo.pop()
        if current in seen or str(current) in PLUMBING:
            continue
        seen.add(current)
        todo += imported_by(current)
    return {found for found in seen if not only_a_docstring(found)} | {
        Path("data/manifest.py")  # pipeline.command writes metrics with it
    }


def only_a_docstring(path: Path) -> bool:
    return all(isinstance(node, ast.Expr) for node in ast.parse((ROOT / path).read_text()).body)


@EACH_STAGE
def test_a_stage_depends_on_the_code_that_it_uses_and_on_no_other(name):
    declared = [dep.replace("${generator.family}", "wan") for dep in STAGES[name]["deps"]]
    code = {Path(dep) for dep in declared if dep.split("/")[0] in {*PACKAGES}}
    used = used_by(command_of(name))

    assert {str(path) for path in used if not {path, *path.parents} & code} == set()
    needless = {dep for dep in code if not any(path == dep or dep in path.parents for path in used)}
    assert {str(dep) for dep in needless} - {"feedback/rubrics"} == set()


def test_no_stage_imports_another():
    for path in (ROOT / "stages").glob("*.py"):
        others = {found for found in imported_by(path.relative_to(ROOT)) if found.parent == Path("stages")}
        assert others <= {Path("stages/__init__.py")}, path


FLOORS = (  # each may import those before it, and itself
    {"data"},
    {"cluster"},
    {"generators"},
    {"feedback", "rl", "evaluation"},
    {"inspection", "report", "pipeline"},
    {"stages", "commands", "tabletop"},
)


def test_arrows_between_packages_run_down_only():
    below = {"tabletop"}
    for floor in FLOORS:
        for package in sorted(floor):
            for path in (ROOT / package).rglob("*.py"):
                reached = {found.parts[0] for found in imported_by(path.relative_to(ROOT))} - {package}
                assert reached <= below, path
        below |= floor


def test_asking_for_help_imports_nothing_heavy():
    imported = "; ".join(f"import stages.{name}" for name in sorted(commands()))
    heavy = "{'torch', 'diffusers', 'transformers', 'datasets', 'pyarrow', 'matplotlib', 'dvc'}"
    checked = f"{imported}; import sys; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", checked], check=True, cwd=ROOT)


@pytest.mark.parametrize("kind", ["physics", "gpt", "gemini", "served", "human"])
def test_a_source_without_a_model_of_its_own_labels_without_torch(kind):
    checked = f"""
import sys, importlib, data.store, feedback.core.label, feedback.core.kinds
importlib.import_module(feedback.core.kinds.KINDS[{kind!r}])
assert not {{'torch', 'transformers', 'openai', 'google.genai'}} & sys.modules.keys(), sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", checked], check=True, cwd=ROOT)


# Params and paths


def option(cmd: str, name: str) -> str:
    return re.search(rf"--{name} (\S+)", cmd)[1]


def params_read_by(name: str) -> set[str]:
    """Sections that a stage's module asks for, what hangs on the stage as *."""
    tree, read = ast.parse((ROOT / command_of(name)).read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("section", "block"):
            asked = node.args[0]
            if isinstance(asked, ast.Constant):
                read.add(asked.value)
            elif isinstance(asked, ast.JoinedStr):
                read.add("".join(part.value if isinstance(part, ast.Constant) else "*" for part in asked.values))
            else:  # an option of that name
                read.add(option(STAGES[name]["cmd"], asked.id))
    return read


@EACH_STAGE
def test_a_stage_declares_the_params_that_it_reads_and_no_others(name):
    declared = {re.sub(r"\$\{.*?\}", "*", param) for param in STAGES[name].get("params", [])}
    # base checks all that is used, but another source's block may change without any stage running
    checked = PARAMS - {"pretrain", "feedback"} | {"feedback.source", "feedback.sources.*"}

    assert declared == (checked if name == "base" else params_read_by(name))


@EACH_STAGE
def test_every_path_on_a_command_line_is_declared(name):
    stage = STAGES[name]
    outs = [next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"]]
    metrics = [next(iter(metric)) for metric in stage.get("metrics", [])]
    words = [word for word in stage["cmd"].split() if "/" in word or word == "report-out"]
    inputs = [dep for dep in stage["deps"] if dep.startswith(("runs/", "metrics/"))]

    assert set(words) - {"models/tabletop"} == {*inputs, *outs, *metrics} - {f"models/tabletop/{p}" for p in MODELS}
    assert all(metric[path]["cache"] is False for metric, path in zip(stage.get("metrics", []), metrics, strict=True))


MODELS = ("generator", "judge", "second_judge", "clip")


# The graph as DVC resolves it


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """Stages that each stage is made from, by name, with a comparison beside the rounds of params.yaml."""
    folder = tmp_path_factory.mktemp("graph")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["comparison"] = {
        "rounds": ["r1"],
        "sources": ["physics"],
        "policies": {"rwr1-physics": {"start": "base", "round": "r1", "objective": "rwr", "source": "physics"}},
    }
    params["select"]["policies"] = ["rwr1"]
    params["extend"] = {"base-extended": {"policy": "base", "prompts": "rewritten.csv", "template": "{prompt}"}}
    params["evaluate"]["policies"] += ["rwr1-physics", "rwr1-selected", "base-extended"]
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    with Repo.init(str(folder), no_scm=True) as repo:
        edges = [(one.name, other.name) for one, other in repo.index.graph.edges]
    return networkx.DiGraph(edges)


def test_rounds_chain(graph):
    made_from = networkx.descendants(graph, "train@rwr2")

    assert {"generate@r2", "train@rwr1", "build@r1", "label@r1", "generate@r1", "base"} <= made_from
    assert "train@rwr2" not in networkx.descendants(graph, "generate@r2")


def test_everything_waits_for_the_check_of_params(graph):
    assert all("base" in networkx.descendants(graph, stage) for stage in graph if stage not in ("base", "pretrain"))


def test_the_report_waits_for_every_policy_and_judge(graph):
    made_from = networkx.descendants(graph, "report")

    assert {"eval-label@rwr2-physics", "eval-label@rwr2-judge", "eval-label@base-judge", "label@r2"} <= made_from


def test_sft_does_not_read_the_labels_of_its_round():
    """Its rows are a folder of their own, so DVC sees that they are the same whoever judges."""
    assert "runs/${item.round}/datasets/${item.objective}" in STAGES["train"]["deps"]
    assert not any("labels" in dep for dep in STAGES["train"]["deps"])


def test_a_comparison_trains_beside_the_rounds_and_feeds_none(graph):
    made_from = networkx.descendants(graph, "train-compare@rwr1-physics")

    assert {"build-compare@r1-physics", "label-compare@r1-physics", "generate@r1"} <= made_from
    assert "label@r1" not in made_from
    assert "train-compare@rwr1-physics" in networkx.descendants(graph, "evaluate")


def test_a_checkpoint_is_selected_between_training_and_evaluation(graph):
    made_from = networkx.descendants(graph, "eval-generate@rwr1-selected")

    assert {"select@rwr1", "label-select@rwr1-judge", "generate-select@rwr1", "train@rwr1"} <= made_from
    assert {"select@rwr1", "label-select@rwr1-physics"} <= networkx.descendants(graph, "report")


def test_a_policy_that_is_told_more_is_evaluated_as_any_other(graph):
    assert {"extend@base-extended", "base"} <= networkx.descendants(graph, "eval-generate@base-extended")
    assert "eval-label@base-extended-judge" in networkx.descendants(graph, "report")


# What runs again, with stand-ins that write a hash of what they read in place of the commands

STAND_IN = """
import hashlib, pathlib, sys
stage, reads, writes = sys.argv[1], sys.argv[2].split(","), sys.argv[3].split(",")
with open("ran", "a") as ran:
    print(stage, file=ran)

def digest(paths):
    files = [f for p in map(pathlib.Path, paths) for f in (sorted(p.rglob("*")) if p.is_dir() else [p]) if f.is_file()]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()

for path in map(pathlib.Path, writes):
    if path.suffix == ".json":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"a": 1}')
    elif path.name == "datasets":
        for objective, of in (("sft", [p for p in reads if "labels" not in p]), ("rwr", reads), ("dpo", reads)):
            (path / objective).mkdir(parents=True)
            (path / objective / "rows").write_text(digest(of))
    else:
        path.mkdir(parents=True)
        (path / "file").write_text(f"{path} {digest(reads)}")  # labels lie under their source's name
"""


def with_stand_ins() -> dict:
    """dvc.yaml without its code, each command writing the same outs from the same inputs."""
    document = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    for name, written in document["stages"].items():
        stage = written.get("do", written)
        stage["deps"] = [dep for dep in stage["deps"] if dep.startswith(("runs/", "metrics/", "models/"))]
        writes = [next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"] + stage.get("metrics", [])]
        key = "${key}" if "foreach" in written or "matrix" in written else ""
        stage["cmd"] = f"python -S -E stand_in.py {name}@{key} {','.join(stage['deps'])} {','.join(writes)}"
    return document


@pytest.fixture(scope="module")
def swapping(tmp_path_factory):
    """Sets feedback.source, runs `dvc repro`, and says which stages ran: all of them the first time."""
    folder = tmp_path_factory.mktemp("swapping")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["policies"] = {name: params["policies"][name] for name in ("sft1", "rwr1", "dpo2")}
    params["evaluate"] |= {"policies": ["base", "sft1", "rwr1"], "judges": ["judge"]}
    for model in MODELS:
        (folder / "models/tabletop" / model).mkdir(parents=True)
    (folder / "stand_in.py").write_text(STAND_IN)
    (folder / "dvc.yaml").write_text(yaml.safe_dump(with_stand_ins(), sort_keys=False))
    dvc = [sys.executable, "-m", "dvc"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=folder, check=True)

    def repro(source: str, **other: dict) -> set[str]:
        params["feedback"] |= {"source": source}
        params["feedback"]["sources"] |= other
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        (folder / "ran").write_text("")
        subprocess.run([*dvc, "repro", "-q"], cwd=folder, check=True, env=environment)
        return set((folder / "ran").read_text().split())

    repro("judge")
    return repro


DEPEND_ON_THE_JUDGE = {
    "base@", "label@r1", "build@r1", "train@rwr1", "generate@r2", "label@r2", "build@r2", "train@dpo2",
    "eval-generate@rwr1", "eval-label@rwr1-judge", "evaluate@", "report@",
}  # fmt: skip


def test_with_nothing_changed_nothing_runs(swapping):
    assert swapping("judge") == set()


def test_swapping_the_judge_runs_what_depends_on_it_and_swapping_back_runs_nothing(swapping):
    assert swapping("physics") == DEPEND_ON_THE_JUDGE  # not r1's clips, nor sft1 and its evaluation
    assert swapping("judge") == set()


def test_editing_another_source_runs_nothing(swapping):
    assert swapping("judge", physics={"kind": "physics", "threshold": 1}) == set()


def test_a_panel_labels_again_when_a_members_own_block_is_edited(swapping):
    judge, physics = {"kind": "qwen"}, {"kind": "physics"}
    panel = {"kind": "panel", "rule": "all", "members": {"judge": judge, "physics": physics}}
    assert "*id" in yaml.safe_dump([judge, panel])  # one block in two places is written as an anchor and an alias

    swapping("panel", judge=judge, physics=physics, panel=panel)
    assert swapping("panel") == set()
    physics["threshold"] = 2
    assert swapping("panel") == {"base@", "label@r1", "label@r2"}  # to the same labels, the stand-ins being blind to it


# The check of all params


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Writes a params.yaml where `check_params` reads it, with our files beside it."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "data", "feedback", "models", "tabletop"):
        Path(name).symlink_to(ROOT / name)
    return lambda params: Path("params.yaml").write_text(yaml.safe_dump(params))


@pytest.mark.parametrize("preset", [None, *sorted(path.stem for path in PRESETS.glob("*.yaml"))])
def test_params_fit_together_under_every_preset(preset, project):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    if preset:
        overlay(params, yaml.safe_load((PRESETS / f"{preset}.yaml").read_text()))
    project(params)

    check_params()


JUDGE = "feedback.sources.judge"
WRONG = {
    "generate.solver": ("heun", "generate: solver is 'heun'; known are euler, unipc"),
    "evaluate.generate.split": ("val", "evaluate.generate: split is 'val'; known are train, test, all"),
    "build.pairs": ("best", "build: pairing strategy 'best' is unknown; known: all, balanced, margin"),
    "build.reward": ("accept", "build: reward 'accept' is unknown; known: label"),
    "build.shift": (-1, "build: reward shift must be >= 0"),
    "build.sources.clip.scale": (0, "build.sources.clip: reward scale must be > 0"),
    "build.sources.clip.eta": (0.1, "build.sources.clip.eta (0.1) is unknown; known keys are reward, scale"),
    "build.sources.klip": ({}, "build.sources.klip: no such source; feedback.sources has "),
    "train.rwr.steps": (0, "steps must be a whole number"),
    f"{JUDGE}.dtype": ("int4", f"{JUDGE}.dtype is 'int4'"),
    f"{JUDGE}.threshold": (0.5, f"{JUDGE}.threshold is not an option"),
    f"{JUDGE}.rubric": ("none.yaml", f"{JUDGE}.rubric: none.yaml: not a readable rubric"),
    "feedback.sources.gpt.rubric": ("none.yaml", "feedback.sources.gpt.rubric: none.yaml: not a readable rubric"),
    "feedback.sources.gpt.budget_usd": ("lots", "gpt.budget_usd is 'lots', expected a number or null"),
    "feedback.sources.gpt.batch": ("no", "gpt.batch is 'no', expected true or false"),
    "feedback.sources.gpt.price": ({"input": 0.1, "output": 0.5, "cached_input": 0.01}, "gpt.price.batch is missing"),
    "label.votes": (0, "label: votes is 0, expected at least 1"),
    "label.batch_size": (0, "label: batch_size is 0, expected at least 1"),
    "select.keep": ("best-of-last-0", "select: keep is 'best-of-last-0'; known are last, best, or best-of-last-N"),
    "select.generate.prompts": (0, "select.generate: prompts is 0, expected at least 1"),
    "prompts.path": ("configs/prompt_sets/furuta.csv", "physics knows the tabletop world alone, and not 160 of"),
}


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_value_is_told_before_anything_is_made(key, project):
    value, told = WRONG[key]
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    *sections, last = key.split(".")
    inner = params
    for name in sections:
        inner = inner[name]
    inner[last] = value
    project(params)

    with pytest.raises((ParamsError, ValueError)) as error:
        check_params()

    assert told in str(getattr(error.value, "message", error.value))


def test_a_policy_that_is_kept_at_its_end_alone_is_told_if_it_is_to_be_selected_from(project):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["train"]["common"]["checkpoint_every"] = 300
    params["select"]["policies"] = ["rwr1"]
    project(params)
    check_params()  # rwr: 600 steps

    params["select"]["policies"] = ["rwr1", "sft1"]
    project(params)
    with pytest.raises(ParamsError, match="select.policies: sft1 is trained for 300 steps and kept every 300"):
        check_params()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"template": "filmed up close"}, r"extend.more: template is 'filmed up close', expected a text with {prompt}"),
        ({"prompts": "configs/presets/smoke.csv"}, "extend.more: 52 of 58 prompts have no text to extend: "),
        ({"prompts": "none.csv"}, "extend.more: .*No such file or directory: 'none.csv'"),
        ({"policy": "rwr9"}, "extend.more.policy: 'rwr9' is unknown; known are base, "),
        ({"model": "gpt"}, r"extend.more.model \('gpt'\) is unknown; known keys are policy, prompts, template"),
    ],
)
def test_a_wrong_extension_is_told_before_anything_is_made(change, told, project):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    more = {"policy": "base", "prompts": "configs/prompt_sets/tabletop.csv", "template": "{prompt}, up close"}
    params["extend"], params["evaluate"]["policies"] = {"more": more}, ["base", "more"]
    project(params)
    check_params()

    more |= change
    project(params)
    with pytest.raises(ParamsError, match=told):
        check_params()


def with_panel(**changes) -> dict:
    """Our params with a panel of both sources, which is what is asked."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    sources = params["feedback"]["sources"]
    members = {"judge": dict(sources["judge"]), "physics": sources["physics"]}
    sources["panel"] = {"kind": "panel", "rule": "majority", "members": members} | changes
    params["feedback"]["source"] = "panel"
    return params


def test_the_shipped_panel_holds_its_members_whole_blocks(project):
    project(None)
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())

    check_params()

    sources = load_params()["feedback"]["sources"]
    assert sources["panel"]["members"] == {name: sources[name] for name in ("judge", "physics")}


PANEL = "feedback.sources.panel"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: p.update(rule="most"), f"{PANEL}.rule is 'most', known are"),
        (lambda p: p["members"]["judge"].update(kind="gemni"), f"{PANEL}.members.judge.kind is 'gemni'"),
        (lambda p: p["members"]["judge"].update(dtype="int4"), f"{PANEL}.members.judge.dtype is 'int4'"),
        (
            lambda p: p["members"]["judge"].update(rubric="none.yaml"),
            f"{PANEL}.members.judge.rubric: none.yaml: not a readable rubric",
        ),
        (lambda p: p["members"].update(inner=dict(p)), f"{PANEL}.members.inner.kind is 'panel'; a panel's members are"),
    ],
)
def test_a_panels_members_are_checked_as_other_sources_are(change, told, project):
    params = with_panel()
    change(params["feedback"]["sources"]["panel"])
    project(params)

    with pytest.raises(ValueError, match=re.escape(told)):
        check_params()


def test_what_a_panels_members_cannot_judge_is_told_if_it_is_asked(project):
    params = with_panel() | {"prompts": {"path": "configs/prompt_sets/furuta.csv"}}
    params["evaluate"]["judges"], params["audit"]["sources"] = ["judge"], []  # which has no known answers there
    project(params)
    with pytest.raises(ValueError, match="physics knows the tabletop world alone"):
        check_params()

    params["feedback"]["source"] = "judge"
    project(params)
    check_params()


def test_full_fine_tuning_in_bfloat16_is_told_before_anything_is_made(project):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["train"]["common"]["full"], params["generator"]["dtype"] = True, "bfloat16"
    project(params)

    with pytest.raises(ParamsError, match="full fine-tuning needs generator.dtype: float32"):
        check_params()


def test_an_online_policy_that_trains_all_weights_is_refused_in_bfloat16(project):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["generator"]["dtype"] = "bfloat16"
    full = {"start": "base", "recipe": "vanilla-drf", "judge": "judge", "held_out": "physics"}
    params["online"]["policies"]["drf1"] = full
    project(params)

    with pytest.raises(ParamsError, match="online.policies.drf1: full fine-tuning needs generator.dtype: float32"):
        check_params()
