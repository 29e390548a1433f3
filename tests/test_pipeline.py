"""What dvc.yaml says of the stages is what they do."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx
import pytest
import yaml
from dvc.repo import Repo

from pipeline.inputs import write_inputs
from tests.support.defaults import default_params

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "cluster", "commands", "data", "evaluation", "feedback", "generators", "inspection", "pipeline", "report", "rl",
    "stages", "tabletop",
)  # fmt: skip


def definitions() -> dict[str, dict]:
    """Stages of dvc.yaml by name, as they are written there, foreach looked through."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


STAGES = definitions()


def command_of(name: str) -> Path:
    """The module that a stage runs, from the root."""
    return Path("stages") / (re.match(r"python -m stages\.(\w+)", STAGES[name]["cmd"])[1] + ".py")


def commands() -> set[str]:
    return {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}


# Names


def test_every_stage_runs_a_command_and_every_command_is_a_stage():
    assert {command_of(name).stem for name in STAGES} == commands()


def test_a_stage_is_named_after_its_command_and_says_what_it_does():
    for name, stage in STAGES.items():
        command = command_of(name).stem
        assert command in name.split("-") and name.split("-")[0] in (command, "eval"), name
        assert stage["desc"], name


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


@cache
def imported_by(path: Path) -> frozenset[Path]:
    """Files of ours that a file imports, at its top or within a function."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found for module in modules for found in files_of(module))


@cache
def named_by(path: Path) -> frozenset[Path]:
    """Files of ours whose dotted names are the values of a table, for data.doors.find."""
    tables = (node for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Dict))
    names = {value.value for table in tables for value in table.values if isinstance(value, ast.Constant)}
    dotted = {name for name in names if isinstance(name, str) and re.fullmatch(r"\w+(\.\w+)+", name)}
    return frozenset(found for module in dotted for found in files_of(module))


# What every stage stands on decides nothing that a stage writes: what it reads for one is declared as a param or an
# input. The rest of pipeline/ is code of the stages that import it.
PLUMBING = {
    f"pipeline/{name}.py"
    for name in (
        "__init__",
        "check",
        "command",
        "configs",
        "cost",
        "forecast",
        "graph",
        "guardians",
        "identity",
        "inputs",
        "launch",
        "lock",
        "params",
        "recipes",
        "state",
    )  # fmt: skip
}
# Code that params.yaml names: stage base records it in runs/inputs, which the stages that use it depend on.
RECORDED = [Path("generators/families"), Path("generators/decoders"), Path("tabletop")]


def used_by(path: Path) -> set[Path]:
    """All files of ours that running a stage's module may run and that can change what it writes."""
    seen, todo = set(), [path]
    while todo:
        current = todo.pop()
        recorded = path.stem != "pretrain" and any(current.is_relative_to(folder) for folder in RECORDED)
        if current in seen or recorded or str(current) in PLUMBING:
            continue
        seen.add(current)
        todo += imported_by(current) | named_by(current)
    return {found for found in seen if not only_a_docstring(found)} | {
        Path("data/manifest.py")  # pipeline.command writes metrics with it
    }


@cache
def only_a_docstring(path: Path) -> bool:
    return all(isinstance(node, ast.Expr) for node in ast.parse((ROOT / path).read_text()).body)


def test_a_stage_depends_on_the_code_that_it_uses_and_on_no_other():
    for name in STAGES:
        code = {Path(dep) for dep in STAGES[name].get("deps", []) if dep.split("/")[0] in {*PACKAGES}}
        used = used_by(command_of(name))
        missing = {str(path) for path in used if not {path, *path.parents} & code}
        assert missing == set() or name == "base", name  # base runs always
        needless = {str(dep) for dep in code if not any(path == dep or dep in path.parents for path in used)}
        assert needless == set(), name


def test_no_stage_imports_another():
    for path in (ROOT / "stages").glob("*.py"):
        others = {found for found in imported_by(path.relative_to(ROOT)) if found.parent == Path("stages")}
        assert others <= {Path("stages/__init__.py")}, path


FLOORS = (  # each may import those before it, and itself
    {"data"},
    {"cluster"},
    {"generators"},
    {"feedback", "rl", "evaluation"},
    {"report"},
    {"pipeline"},
    {"inspection"},
    {"stages", "commands", "tabletop"},
)


def test_arrows_between_packages_run_down_only():
    below: set[str] = set()
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


@pytest.mark.parametrize(("given", "wanted"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_a_stage_sleep_while_they_wait_unless_the_environment_says_otherwise(given, wanted, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    checked = "import stages.train, sys, os; assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    done = subprocess.run([sys.executable, "-c", checked], check=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == wanted


def test_a_source_without_a_model_of_its_own_labels_without_torch():
    checked = """
import sys, importlib, data.store, feedback.core.label, feedback.core.kinds
for kind in ("physics", "gpt", "gemini", "served", "human"):
    importlib.import_module(feedback.core.kinds.KINDS[kind])
assert not {'torch', 'transformers', 'openai', 'google.genai'} & sys.modules.keys(), sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", checked], check=True, cwd=ROOT)


# Params and paths


def option(cmd: str, name: str) -> str:
    return re.search(rf"--{name} (\S+)", cmd)[1]


def params_read_by(name: str) -> set[str]:
    """Sections and whole files that a stage's module reads, what depends on the stage's arguments as *."""
    tree, read = ast.parse((ROOT / command_of(name)).read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "build_config":
            read.add("build")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "train_config":
            read |= {"train.common", "train.*", re.sub(r"\$\{.*?\}", "*", option(STAGES[name]["cmd"], "entry"))}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "load_params":
            read.add(node.args[0].args[0].value)  # of load_params(Path("file"))
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("section", "block", "source_block")
        ):
            argument = node.args[0]
            if node.func.id == "source_block":
                read.add("feedback.sources.*")
                continue
            if isinstance(argument, ast.Constant):
                read.add(argument.value)
            elif isinstance(argument, ast.JoinedStr):
                read.add("".join(part.value if isinstance(part, ast.Constant) else "*" for part in argument.values))
            else:  # an option of that name
                read.add(option(STAGES[name]["cmd"], argument.id))
    return read


def test_a_stage_declares_the_params_that_it_reads_and_no_others():
    for name in set(STAGES) - {"base"}:  # base runs always
        entries = STAGES[name].get("params", [])
        params = (param for entry in entries for param in (entry if isinstance(entry, dict) else [entry]))
        declared = {re.sub(r"\$\{.*?\}", "*", param) for param in params}
        assert declared == params_read_by(name), name


def written_by(stage: dict) -> dict[str, dict]:
    """The options of everything that a stage writes, by path."""
    entries = [*stage["outs"], *stage.get("metrics", []), *stage.get("plots", [])]
    return {path: options for entry in entries for path, options in as_mapping(entry).items()}


def as_mapping(entry: str | dict) -> dict[str, dict]:
    return entry if isinstance(entry, dict) else {entry: {}}


def test_every_path_on_a_command_line_is_declared():
    for name, stage in STAGES.items():
        words = {word for word in stage["cmd"].split() if "/" in word or word == "report-out"}
        inputs = {dep for dep in stage.get("deps", []) if dep.startswith(("runs/", "metrics/"))}
        # What params.yaml names, read by its name; a source's own model too.
        inputs -= {dep for dep in inputs if dep.startswith(("runs/inputs/", "runs/rewards/"))}
        made = set(written_by(stage)) - {f"models/tabletop/{model}" for model in MODELS}
        assert words - {"models/tabletop"} == {*inputs, *made}, name


def test_dvc_metrics_shows_the_headline_alone():
    shown = [path for stage in STAGES.values() for entry in stage.get("metrics", []) for path in as_mapping(entry)]
    assert shown == ["metrics/evaluate.json"]


def test_dvc_can_restore_every_run_since_what_is_not_cached_is_a_metric():
    for name, stage in STAGES.items():
        if name != "pretrain":  # frozen
            outs = [*stage["outs"], *stage.get("plots", [])]
            assert all(
                (options or {}).get("cache", True) for entry in outs for options in as_mapping(entry).values()
            ), name


SAMPLING, LABELLING = (
    {"generate", "generate-dense", "generate-select", "eval-generate"},
    {"label", "label-compare", "label-dense", "label-select", "eval-label"},
)
READERS = {
    "generator.json": SAMPLING | {"effects", "train", "train-compare", "online"},
    "audits.json": {"train", "train-compare"},
    "prompts.json": SAMPLING | {"audit", "online", "extend"},
    "images.json": SAMPLING | {"audit", "online"},
    "references.json": {"audit", "online"},
    "sources/": LABELLING | {"audit", "eval-prefer", "online"},
    "online/": {"online"},
    "rewards/": {"reward"},
}


def test_what_params_name_is_an_input_of_the_stages_that_read_it_and_of_no_others():
    for entry, readers in READERS.items():
        deps = {name: stage.get("deps", []) for name, stage in STAGES.items()}
        assert {name for name in deps if any(f"runs/inputs/{entry}" in dep for dep in deps[name])} == readers, entry


MODELS = ("generator", "first_frame_generator", "judge", "second_judge", "clip")


# The graph as DVC resolves it


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """Stages that each stage is made from, by name, with a comparison beside the default rounds."""
    folder = tmp_path_factory.mktemp("graph")
    params = default_params()
    params["comparison"] = {
        "rounds": ["r1"],
        "sources": ["physics"],
        "policies": {"rwr1-physics": {"start": "base", "round": "r1", "objective": "rwr", "source": "physics"}},
    }
    params["rounds"]["r1b"] = {"policy": "base"}
    params["pools"] = {"both": ["r1", "r1b"], "all": ["both", "r2"]}
    params["policies"]["rwr1b"] = {"start": "base", "round": "both", "objective": "rwr"}
    params["policies"]["dpo3"] = {"start": "rwr1", "round": "all", "objective": "dpo"}
    params["dense"] = {"d1": {"round": "r1", "policy": "base", "noise": 0.75, "pairs_per_prompt": 4, "window": 4}}
    params["policies"]["dpo-dense"] = {"start": "base", "round": "d1", "objective": "dense_dpo"}
    params["select"]["policies"] = ["rwr1"]
    params["extend"] = {"base-extended": {"policy": "base", "prompts": "rewritten.csv", "template": "{prompt}"}}
    params["reward"]["models"] = {"bt": {"round": "r1"}, "bt-of-all": {"round": "both"}}
    for name in params["reward"]["models"]:
        params["feedback"]["sources"][name] = {"kind": "reward_model", "path": f"runs/rewards/{name}"}
    grown = {"start": "base", "recipe": "reward-gradient", "judge": "bt", "held_out": "judge"}
    params["online"]["policies"] = {"bt-gradient": grown}
    params["evaluate"]["policies"] += ["rwr1-physics", "rwr1-selected", "base-extended"]
    params["evaluate"]["judges"] += ["bt-of-all"]
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    with Repo.init(str(folder), no_scm=True) as repo:
        edges = [(one.name, other.name) for one, other in repo.index.graph.edges]
    return networkx.DiGraph(edges)


def test_rounds_chain(graph):
    made_from = networkx.descendants(graph, "train@rwr2")

    assert {"generate@r2", "train@rwr1", "build@r1", "label@r1", "generate@r1", "base"} <= made_from
    assert "train@rwr2" not in networkx.descendants(graph, "generate@r2")


def test_a_pool_waits_for_its_rounds_and_a_policy_for_its_pool_alone(graph):
    made_from = networkx.descendants(graph, "train@rwr1b")

    assert {"pool@both", "build@r1", "build@r1b", "generate@r1b"} <= made_from
    assert not {"pool@all", "generate@r2"} & made_from
    assert {"pool@all", "pool@both", "build@r2"} <= networkx.descendants(graph, "train@dpo3")
    assert "pool@both" not in networkx.descendants(graph, "train@rwr1")


def test_pairs_with_one_start_wait_for_the_clips_of_their_round_and_for_no_label_of_it(graph):
    made_from = networkx.descendants(graph, "train@dpo-dense")

    assert {"build-dense@d1", "label-dense@d1", "generate-dense@d1", "generate@r1"} <= made_from
    assert "label@r1" not in made_from


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


def test_what_asks_a_reward_model_waits_for_its_training_and_what_does_not_waits_for_none(graph):
    made_from = networkx.descendants(graph, "online@bt-gradient")

    assert {"reward@bt", "build@r1", "label@r1", "generate@r1"} <= made_from
    assert "reward@bt-of-all" not in made_from
    assert {"pool@both", "build@r1b"} <= networkx.descendants(graph, "reward@bt-of-all")
    assert "reward@bt-of-all" in networkx.descendants(graph, "eval-label@base-bt-of-all")
    assert not {"reward@bt", "reward@bt-of-all"} & networkx.descendants(graph, "eval-label@base-judge")
    assert "reward@bt" not in networkx.descendants(graph, "label@r2")


def test_a_policy_that_is_told_more_is_evaluated_as_any_other(graph):
    assert {"extend@base-extended", "base"} <= networkx.descendants(graph, "eval-generate@base-extended")
    assert "eval-label@base-extended-judge" in networkx.descendants(graph, "report")


# What runs again, with stand-ins that write a hash of what they read in place of the commands

STAND_IN = """
import hashlib, json, pathlib, sys
stage, reads, writes = sys.argv[1], sys.argv[2].split(","), sys.argv[3].split(",")
recorded = json.loads(pathlib.Path("recorded.json").read_text())  # what the real stage base writes into runs/inputs
with open("ran", "a") as ran:
    print(stage, file=ran)

def digest(paths):
    files = [f for p in map(pathlib.Path, paths) for f in (sorted(p.rglob("*")) if p.is_dir() else [p]) if f.is_file()]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()

for path in map(pathlib.Path, writes):
    if path.suffix == ".json":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"a": 1}')
    elif path.name == "inputs":
        for name, content in recorded.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(content)
        for name in (path / "sources").iterdir():  # as pipeline.inputs.hold_places
            pathlib.Path("runs/rewards").mkdir(exist_ok=True)
            pathlib.Path("runs/rewards", name.stem).touch()
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
        stage["deps"] = [dep for dep in stage.get("deps", []) if dep.startswith(("runs/", "metrics/", "models/"))]
        writes = list(written_by(stage))
        key = "${key}" if "foreach" in written or "matrix" in written else ""
        stage["cmd"] = f"python -S -E stand_in.py {name}@{key} {','.join(stage['deps']) or '-'} {','.join(writes)}"
    return document


def recorded(params: dict, folder: Path) -> dict[str, str]:
    """What stage base writes into runs/inputs, by name."""
    shutil.rmtree(folder, ignore_errors=True)
    write_inputs(params, folder)
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.json")}


@pytest.fixture(scope="module")
def swapping(tmp_path_factory):
    """Sets feedback.source, runs `dvc repro`, and says which stages ran: all of them the first time."""
    folder = tmp_path_factory.mktemp("swapping")
    params = default_params()
    params["policies"] = {name: params["policies"][name] for name in ("sft1", "rwr1", "dpo2")}
    params["evaluate"] |= {"policies": ["base", "sft1", "rwr1"], "judges": ["judge"]}
    for model in MODELS:
        (folder / "models/tabletop" / model).mkdir(parents=True)
    (folder / "stand_in.py").write_text(STAND_IN)
    shutil.copy(ROOT / "pretrain.yaml", folder)
    (folder / "dvc.yaml").write_text(yaml.safe_dump(with_stand_ins(), sort_keys=False))
    dvc = [sys.executable, "-m", "dvc"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=folder, check=True)

    def repro(source: str, **other: dict) -> set[str]:
        params["feedback"] |= {"source": source}
        params["feedback"]["sources"] |= other
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        (folder / "recorded.json").write_text(json.dumps(recorded(params, folder / "inputs")))
        (folder / "ran").write_text("")
        subprocess.run([*dvc, "repro", "-q"], cwd=folder, check=True, env=environment)
        return set((folder / "ran").read_text().split()) - {"base@"}  # which runs always

    repro("judge")
    return repro


DEPEND_ON_THE_JUDGE = {
    "label@r1", "build@r1", "train@rwr1", "generate@r2", "label@r2", "build@r2", "train@dpo2",
    "eval-generate@rwr1", "eval-label@rwr1-judge", "effects@rwr1", "evaluate@", "report@",
}  # fmt: skip


@pytest.mark.ci
def test_swapping_the_judge_runs_what_depends_on_it_and_swapping_back_runs_nothing(swapping):
    assert swapping("physics") == DEPEND_ON_THE_JUDGE  # not r1's clips, nor sft1 and its evaluation
    # Nothing runs twice, and an edit of a source that is not used runs nothing.
    people = default_params()["feedback"]["sources"]["people"]
    assert swapping("judge", people=people | {"raters": ["me", "you"]}) == set()
