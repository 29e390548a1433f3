"""The tabletop world is a plug-in: the project works without it, and a user's own code comes in as it does."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.prompts import Prompt
from feedback.questions import Writing, write_questions
from pipeline.audit import check_known, world_of
from pipeline.configs import AuditConfig
from pipeline.judges import REFERENCES
from tests.support.defaults import default_params

ROOT = Path(__file__).parents[1]
WITHOUT_TABLETOP = """
import importlib, pkgutil, sys
from pathlib import Path

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tabletop":
            raise ModuleNotFoundError(f"{name} is hidden")

sys.meta_path.insert(0, Hidden())
for folder in sorted(path.parent for path in Path().glob("*/__init__.py")):
    if folder.name in ("tabletop", "tests"):
        continue
    importlib.import_module(folder.name)
    for module in pkgutil.walk_packages([str(folder)], f"{folder.name}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            print(module.name)
"""
LAB = """
from data.known import World
from feedback.differentiable.asks import Ask, opposing
from feedback.questions.references import RealClip


def write_asks(caption, kinds, with_reference):
    return [Ask(kind, kind, f"is this {caption}?", "Yes", opposing("Yes"), None, False, "lab") for kind in kinds]


def real_clips(prompts, frames, fps):
    return {prompt.prompt_id: RealClip(None, fps) for prompt in prompts}


def known_clips(folder, prompts, count, seed, fps):
    raise NotImplementedError


WORLD = World("the lab's", lambda prompts: [one.prompt for one in prompts if "mouse" not in one.prompt], known_clips)
"""


@pytest.mark.ci
def test_every_other_module_is_imported_without_the_tabletop():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TABLETOP], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert {"data.known", "feedback.questions.references", "pipeline.judges", "stages.pretrain"} <= imported


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A module my_lab.world of the working folder."""
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab/world.py").write_text(LAB)
    (tmp_path / "my_lab/known.py").write_text("from my_lab.world import WORLD")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield "my_lab.world"
    for name in [name for name in sys.modules if name.split(".")[0] == "my_lab"]:
        del sys.modules[name]


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(f"p{number}", text, "x", "train", None, None) for number, text in enumerate(texts)]


def audit(of: str) -> AuditConfig:
    section = default_params()["audit"]
    return AuditConfig(**section | {"set": of, "sources": ("physics",)})


def test_a_world_of_ones_own_is_audited_by_its_package_folder(lab):
    world = world_of(audit("my_lab"))
    assert world is not None and world.truth == "the lab's"
    check_known(audit("my_lab"), prompts("a mouse runs"))
    with pytest.raises(ValueError, match="audit.set is my_lab, but 1 of 2 prompts .* such as 'a cat sits'"):
        check_known(audit("my_lab"), prompts("a mouse runs", "a cat sits"))
    assert world_of(audit("runs/r1/samples")) is None


def test_a_writer_of_ones_own_writes_the_questions(lab):
    by = Writing(lab, None, ("alignment", "physics"), explanation=False, with_reference=False)
    written = write_questions(prompts("a mouse runs"), by, {}, "cpu")
    assert [ask.text for ask in written.asks["p0"]] == ["is this a mouse runs?"] * 2


def test_real_clips_of_ones_own_are_found_as_the_tabletops_are(lab):
    from data.doors import find

    for name in (lab, *REFERENCES):
        real_clips = find(name, REFERENCES, "references", "real_clips")
        clips = real_clips(prompts("lifting red ball up"), 4, 8.0)
        assert set(clips) == (set() if name == "prompts" else {"p0"})
        assert name != "tabletop" or clips["p0"].frames.dtype == np.uint8
