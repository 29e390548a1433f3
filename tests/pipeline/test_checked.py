"""A check that found nothing wrong is made again as soon as something that it reads has changed."""

import shutil
from pathlib import Path

import pytest

from pipeline.checked import Found, recalled, remember
from pipeline.inputs import write_inputs
from pipeline.params import load_params
from tests.support.defaults import DEFAULTS

ROOT = DEFAULTS.parents[2]
FOUND = Found("312 prompts", ["a note"])


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """Says what is recalled in a folder whose default params were checked."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "feedback", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "tabletop", tmp_path / "tabletop")
    (tmp_path / "params.yaml").write_text(DEFAULTS.read_text())
    write_inputs(load_params(), Path("inputs"))
    remember(load_params(), Path("inputs"), FOUND)
    return lambda: recalled(load_params(), tmp_path / "again")


def test_nothing_changed(checked):
    found = checked()

    assert found and Found(*found) == FOUND


def test_another_value(checked):
    Path("params.yaml").write_text(DEFAULTS.read_text().replace("steps: 8", "steps: 9", 1))
    assert checked() is None


def test_another_rubric(checked):
    Path("tabletop/rubric.yaml").write_text(Path("tabletop/rubric.yaml").read_text() + "\n# a note\n")
    assert checked() is None


def test_a_key_that_is_set_or_taken_away(checked, monkeypatch):
    monkeypatch.setenv("SOME_LAB_API_KEY", "1")
    assert checked() is None


def test_other_code(checked, monkeypatch):
    monkeypatch.setattr("pipeline.checked.code_files", lambda stage: [Path("params.yaml")])
    assert checked() is None


def test_a_prompt_set_that_is_gone_is_left_to_the_check(checked):
    Path("configs").unlink()
    assert checked() is None


def test_a_damaged_memory(checked):
    Path(".state/checked.json").write_text('{"params": 3}')
    assert checked() is None
