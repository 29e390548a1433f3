"""What params.yaml names outside runs/ is followed by its content, entry by entry."""

import json
from pathlib import Path

import pytest
import yaml

from pipeline.inputs import module_files, write_inputs

ROOT = Path(__file__).parents[2]
TRACKER = "from my_lab.tables import WEIGHTS\nKIND = None\n"


@pytest.fixture
def params(tmp_path, monkeypatch):
    """A project in the working folder: one source with a rubric in a folder of its own, one of a user's own kind."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "feedback", "generators", "tabletop", "data"):
        Path(name).symlink_to(ROOT / name)
    files = {
        "lab/rubric.yaml": "name: a",
        "lab/model/weights": "w",
        "my_lab/tracker.py": TRACKER,
        "my_lab/tables.py": "WEIGHTS = 1",
        "prompts.csv": (ROOT / "configs/presets/smoke.csv").read_text(),
    }
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    return {
        "generator": {"family": "wan", "path": "lab/model"},
        "prompts": {"path": "prompts.csv"},
        "feedback": {
            "sources": {
                "mine": {"kind": "my_lab.tracker"},
                "judge": {"kind": "qwen", "path": "some/hub-id", "rubric": "lab/rubric.yaml"},
                "panel": {"kind": "panel", "rule": "all", "members": ["mine", "judge"]},
            }
        },
        "online": {"policies": {"ask": {"start": "base", "recipe": "ask-a-video", "references": "tabletop"}}},
    }


def changed_by(params, change) -> set[str]:
    """Names of the entries of runs/inputs that a change makes anew."""

    def entries():
        write_inputs(params, Path("inputs"))
        return {str(path.relative_to("inputs")): path.read_text() for path in Path("inputs").rglob("*.json")}

    before = entries()
    assert entries() == before
    change()
    return {name for name, text in entries().items() if text != before[name]}


def test_a_change_is_seen_by_the_entries_that_use_it_and_by_no_others(params):
    cases = {
        "a rubric in any folder": (lambda: Path("lab/rubric.yaml").write_text("name: bb"), {"judge", "panel"}),
        "code that a kind imports": (lambda: Path("my_lab/tables.py").write_text("WEIGHTS = 22"), {"mine", "panel"}),
        "a member's block": (
            lambda: params["feedback"]["sources"]["judge"].update(dtype="float32"),
            {"judge", "panel"},
        ),
    }
    for name, (change, sources) in cases.items():
        assert changed_by(params, change) == {f"sources/{source}.json" for source in sources}, name
    assert changed_by(params, lambda: Path("lab/model/more").write_text("x")) == {"generator.json"}
    assert changed_by(params, lambda: Path("lab/model/.cache").write_text("x")) == set()
    assert changed_by(params, lambda: params["feedback"]["sources"]["mine"].update(kind="panel")) >= {
        "sources/mine.json"
    }


def test_code_that_dvc_yaml_lists_is_not_recorded_twice(params):
    assert [str(path) for path in module_files("feedback.judges.qwen")] == []
    assert {str(path) for path in module_files("my_lab.tracker")} == {"my_lab/tracker.py", "my_lab/tables.py"}
    assert Path("generators/families/wan.py") in module_files("generators.families.wan")
    assert not any(path.is_relative_to("generators/core") for path in module_files("generators.families.wan"))


def test_the_rubric_and_the_writer_of_an_online_recipe_are_recorded(params):
    write_inputs(params, Path("inputs"))
    recipe = yaml.safe_load((ROOT / "configs/recipes/ask-a-video.yaml").read_text())
    found = json.loads(Path("inputs/online/ask.json").read_text())
    assert set(found["files"]) == {recipe["questions"]["rubric"]}
    assert "tabletop/references.py" in found["code"]["tabletop"]
