"""What params.yaml names outside runs/ is followed by its content, entry by entry."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from data.content.modules import module_files
from pipeline.inputs import LISTED, hold_places, hub_commit, write_inputs
from tests.support.defaults import default_params

ROOT = Path(__file__).parents[2]
KIND = """
from pydantic.dataclasses import dataclass
from data.config import STRICT
from feedback.core.kinds import Kind
from .tables import WEIGHTS
from elsewhere import lens

@dataclass(frozen=True, config=STRICT)
class Options:
    weights: str

KIND = Kind(Options, lambda name, options, device: None)
"""
SHEET = "feedback/questions/vlm-as-teacher.yaml"
HEADER = "prompt_id,prompt,category,split,image,reference\n"


@pytest.fixture
def params(tmp_path, monkeypatch):
    """The default params in the working folder, where each thing that they name lies in a folder of its own."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    for name in ("configs", "feedback", "generators", "tabletop", "data"):
        Path(name).symlink_to(ROOT / name)
    files = {
        "lab/model/weights": "w",
        "lab/judge/weights": "w",
        "lab/clip/weights": "w",
        "lab/weights.pt": "w",
        "lab/sheet.yaml": (ROOT / SHEET).read_text(),
        "lab/marks.yaml": "marks: [{mask: pictures/region.png, frames: all}]",
        "lab/pictures/region.png": "picture",
        "lab/recipe.yaml": (ROOT / "configs/recipes/vlm-as-teacher.yaml").read_text().replace(SHEET, "lab/sheet.yaml"),
        "lab/real.mp4": "clip",
        "lab/prompts.csv": HEADER + "p1,a ball rolls,c,train,first.png,real.mp4\n",
        "my_lab/tracker.py": KIND,
        "my_lab/tables.py": "WEIGHTS = 1",
        "../library/elsewhere/__init__.py": "",
        "../library/elsewhere/lens.py": "from . import glass",
        "../library/elsewhere/glass.py": "",
        "../library/rubric.yaml": (ROOT / "feedback/rubrics/match.yaml").read_text(),
    }
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    Image.new("RGB", (4, 4)).save("lab/first.png")
    Path("lab/model/linked").symlink_to(tmp_path / "library/elsewhere")
    for folder in (home, tmp_path / "library"):
        monkeypatch.syspath_prepend(folder)
    params = default_params()
    sources = params["feedback"]["sources"]
    rubric = str(tmp_path / "library/rubric.yaml")
    params["generator"]["path"], params["prompts"]["path"] = "lab/model", "lab/prompts.csv"
    params["feedback"]["sources"] = {
        "mine": {"kind": "my_lab.tracker", "weights": "lab/weights.pt"},
        "judge": sources["judge"] | {"path": "lab/judge", "rubric": rubric},
        "gpt": sources["gpt"] | {"rubric": rubric},
        "clip": sources["clip"] | {"path": "lab/clip"},
        "panel": sources["panel"] | {"members": ["mine", "judge"]},
        "several": {"kind": "metrics", "of": ["clip"], "batch_size": 1},
    }
    params["online"]["policies"] = {
        "teacher": {"start": "base", "recipe": "lab/recipe.yaml", "judge": "judge", "held_out": "judge"},
        "ask": {"start": "base", "recipe": "ask-a-video", "judge": "judge", "held_out": "judge"}
        | {"references": "tabletop", "overlay": "lab/marks.yaml"},
    }
    yield params
    for name in [name for name in sys.modules if name.split(".")[0] in ("my_lab", "elsewhere")]:
        del sys.modules[name]


def entries(params, **options) -> dict[str, str]:
    """The text of each entry of runs/inputs, by name."""
    shutil.rmtree("inputs", ignore_errors=True)
    write_inputs(params, Path("inputs"), **options)
    return {str(path.relative_to("inputs")): path.read_text() for path in Path("inputs").rglob("*.json")}


def changed_by(params, change) -> set[str]:
    """Names of the entries of runs/inputs that a change makes anew."""
    before = entries(params)
    assert entries(params) == before
    change()
    return {name for name, text in entries(params).items() if text != before[name]}


@pytest.mark.ci
def test_a_change_of_a_file_is_seen_by_the_entries_that_use_it_and_by_no_others(params):
    library = Path("../library").resolve()
    users = {
        library / "rubric.yaml": {"sources/judge", "sources/gpt", "sources/panel"},  # two share it, outside the folder
        library / "elsewhere/glass.py": {"sources/mine", "sources/panel", "generator"},  # imported; linked to
        "my_lab/tables.py": {"sources/mine", "sources/panel"},
        "lab/weights.pt": {"sources/mine", "sources/panel"},
        "lab/judge/weights": {"sources/judge", "sources/panel", "online/teacher"},  # which writes the teacher's rules
        "lab/clip/weights": {"sources/clip", "sources/several"},
        "lab/model/weights": {"generator"},
        "lab/prompts.csv": {"prompts"},
        "lab/first.png": {"images"},  # so that an edited first frame runs what shows it, and not stage extend
        "lab/real.mp4": {"references"},
        "lab/recipe.yaml": {"online/teacher"},
        "lab/sheet.yaml": {"online/teacher"},
        "lab/marks.yaml": {"online/ask"},
        "lab/pictures/region.png": {"online/ask"},
    }
    for name, expected in users.items():
        path = Path(name)
        with_more = {".csv": "p2,a cup falls,c,train,,\n", ".yaml": "# more\n", ".py": "# more\n"}.get(path.suffix, "x")
        more = with_more.encode()
        changed = changed_by(params, lambda path=path, more=more: path.write_bytes(path.read_bytes() + more))
        assert changed == {f"{one}.json" for one in expected}, name


def test_questions_that_a_rubric_names_are_recorded_where_it_is_used(params):
    own = "name: own\nframes: 8\nrule: all\ninstructions: ''\nquestions: lab/questions.csv\n"
    table = "prompt,name,question,wanted\na ball rolls,object,is there a ball,Yes\n"
    Path("lab/questions.csv").write_text(table)
    Path("../library/rubric.yaml").write_text(own)
    recipe = yaml.safe_load(Path("lab/recipe.yaml").read_text())
    recipe["questions"] |= {"writer": "rubric", "rubric": str(Path("../library/rubric.yaml").resolve()), "kinds": None}
    Path("lab/recipe.yaml").write_text(yaml.safe_dump(recipe))
    change = Path("lab/questions.csv").write_text
    assert changed_by(params, lambda: change(table.replace("is there", "do you see"))) == {
        "sources/judge.json", "sources/gpt.json", "sources/panel.json", "online/teacher.json",
    }  # fmt: skip


def test_the_decoders_of_vaes_are_recorded_where_clips_are_decoded_with_gradient(params):
    found = entries(params)
    names = {name for name, text in found.items() if "decoders/cogvideox.py" in text and "decoders/wan.py" in text}
    assert names == {name for name in found if name.startswith("online/")} != set()


def test_the_vlm_and_the_rubric_of_a_reward_model_are_recorded_and_what_is_trained_is_not(params):
    """DVC follows runs/rewards/bt itself; recorded too, it would run everything again after its first training."""
    params["feedback"]["sources"]["bt"] = {"kind": "reward_model", "path": "runs/rewards/bt"}
    settings = {"path": "lab/judge", "rubric": str(Path("../library/rubric.yaml").resolve())}
    params["reward"] = {"models": {"bt": {"round": "r1"}}, "settings": params["reward"]["settings"] | settings}
    trained = Path("runs/rewards/bt")
    trained.mkdir(parents=True)

    assert changed_by(params, lambda: trained.joinpath("manifest.json").write_text("{}")) == set()
    seen = changed_by(params, lambda: Path("lab/judge/weights").write_text("other"))
    assert seen == {"rewards/bt.json", "sources/judge.json", "sources/panel.json", "online/teacher.json"}


def test_a_source_without_a_reward_model_has_a_file_in_its_place(params):
    params["feedback"]["sources"]["bt"] = {"kind": "reward_model", "path": "runs/rewards/bt"}
    params["reward"]["models"] = {"bt": {"round": "r1"}}
    trained, before = Path("runs/rewards/bt"), Path("runs/rewards/panel")
    for folder in (trained, before):  # the second was trained when the params were others
        folder.mkdir(parents=True)
    for _ in range(2):
        hold_places(params)
        held = {path.name for path in Path("runs/rewards").iterdir() if path.is_file()}
        assert held == params["feedback"]["sources"].keys() - {"bt", "panel"}
        assert trained.is_dir() and before.is_dir()
    trained.rmdir()
    params["reward"]["models"] = {}
    hold_places(params)
    assert trained.is_file()
    params["reward"]["models"] = {"bt": {"round": "r1"}}
    hold_places(params)
    assert not trained.exists()  # for stage reward to write


def test_without_rounds_evaluate_finds_the_folder_that_it_depends_on(params):
    graph = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text(encoding="utf-8"))
    params["rounds"] = {}
    hold_places(params)
    assert "metrics/label" in graph["stages"]["evaluate"]["deps"] and Path("metrics/label").is_dir()


def test_a_new_file_beside_one_that_is_used_changes_nothing(params):
    for name in ("lab/other.yaml", "lab/other.mp4", "my_lab/other.py", "../library/rubric2.yaml", "lab/model/.cache"):
        assert changed_by(params, lambda name=name: Path(name).write_text("x: 1")) == set(), name
    assert changed_by(params, lambda: Path("lab/model/more").write_text("x")) == {"generator.json"}


def test_a_members_block_counts_and_a_writers_price_does_not(params):
    sources = params["feedback"]["sources"]
    assert changed_by(params, lambda: sources["judge"].update(dtype="bfloat16")) == {
        "sources/judge.json",
        "sources/panel.json",
    }


def test_how_fast_and_for_how_much_money_a_source_asks_is_not_recorded(params):
    gpt = params["feedback"]["sources"]["gpt"]
    assert not changed_by(params, lambda: gpt.update(budget_usd=99.0, concurrency=2))
    assert changed_by(params, lambda: gpt.update(picture="png")) == {"sources/gpt.json"}


def test_a_text_that_is_too_long_for_a_name_is_no_path(params):
    params["feedback"]["sources"]["gpt"]["parameters"] = {"instructions": "Look closely. " * 30}
    assert "Look closely" in entries(params)["sources/gpt.json"]


def test_a_path_of_the_working_folder_is_recorded_as_relative(params):
    params["generator"]["path"] = str(Path("lab/model").resolve())
    assert list(json.loads(entries(params)["generator.json"])["files"]) == ["lab/model"]


def test_code_that_dvc_yaml_lists_is_not_recorded_twice(params):
    assert module_files("feedback.judges.qwen", LISTED) == {}
    elsewhere = Path("../library/elsewhere").resolve()
    found = [elsewhere / f"{name}.py" for name in ("__init__", "glass", "lens")]
    mine = sorted([*found, Path("my_lab/tables.py"), Path("my_lab/tracker.py")])
    assert list(module_files("my_lab.tracker", LISTED)) == mine
    assert Path("generators/families/wan.py") in module_files("generators.families.wan", LISTED)
    assert not any(path.is_relative_to("generators/core") for path in module_files("generators.families.wan", LISTED))


def test_the_rubric_and_the_writer_of_an_online_recipe_are_recorded(params):
    recipe = yaml.safe_load((ROOT / "configs/recipes/ask-a-video.yaml").read_text())
    found = json.loads(entries(params)["online/ask.json"])
    assert recipe["questions"]["rubric"] in found["files"]
    assert "tabletop/references.py" in found["code"]["tabletop"]


def test_the_weights_and_the_code_of_a_lighter_decoder_are_recorded(params, tmp_path):
    weights = Path("lab/colours.safetensors")
    weights.write_bytes(b"one")
    place = {"kind": "my_lab.tracker", "path": str(weights)}
    params["online"]["policies"]["ask"]["changes"] = {"decoding": {"decoder": place}}
    found = json.loads(entries(params)["online/ask.json"])
    assert str(weights) in found["files"] and "my_lab/tracker.py" in found["code"]["my_lab.tracker"]
    assert changed_by(params, lambda: weights.write_bytes(b"another")) == {"online/ask.json"}


def test_the_commit_that_the_cache_has_of_a_hub_id_is_recorded(params, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    params["feedback"]["sources"]["judge"]["path"] = "some/judge"
    assert "hub" not in json.loads(entries(params, needed=["judge"])["sources/judge.json"])  # no network, no cache

    one, two = "1" * 40, "2" * 40
    folder = tmp_path / "cache/models--some--judge"
    for commit in (one, two):
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(one)
    assert json.loads(entries(params)["sources/judge.json"])["hub"] == {"some/judge@main": one}
    move = (folder / "refs/main").write_text
    assert changed_by(params, lambda: move(two)) == {"sources/judge.json", "sources/panel.json"}
    params["feedback"]["sources"]["judge"]["revision"] = one  # stands for itself
    assert "hub" not in json.loads(entries(params)["sources/judge.json"])
    assert hub_commit("some/other", None, ask=False) is None


def test_an_audit_is_recorded_where_a_policy_is_trained_with_its_label_noise_alone(params, tmp_path):
    """So that another audit of a source makes no other policy out of date."""
    audit = {"false_accept_rate": 0.2, "false_reject_rate": 0.1, "accuracy": 0.85}
    for name in ("judge", "clip"):
        path = Path("runs/audit", name, "audit.json")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(audit))
    params["feedback"]["source"] = "judge"

    def recorded() -> dict:
        write_inputs(params, tmp_path / "inputs")
        return json.loads((tmp_path / "inputs/audits.json").read_text())

    assert recorded() == {}
    params["train"]["dpo"]["label_noise"] = "from_audit"
    assert recorded() == {"judge": {"false_accept_rate": 0.2, "false_reject_rate": 0.1, "decided_accuracy": None}}
    Path("runs/audit/judge/audit.json").unlink()
    assert recorded() == {"judge": None}
    params["policies"] = {"rwr1": params["policies"]["rwr1"]}  # no policy of dpo
    assert recorded() == {}
