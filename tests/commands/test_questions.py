"""`vfrl questions`: the questions of each prompt's own, written by a grammar or by a language model."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import commands.questions
from data.tables.questions import read_questions
from feedback.core.rubric import load_rubric
from feedback.questions.sheet import load_sheet
from tests.support.defaults import default_params
from tests.support.faulty_provider import serving
from tests.support.network import block_of, use_ledger

ROOT = Path(__file__).parents[2]
SET = """prompt_id,prompt,category,split
a,pushing green cube from left to right,c,train
b,a parade of elephants,c,train
c,pushing green cube from left to right,c,test
"""
SHEET = str(ROOT / "feedback/questions/diffusion-drf.yaml")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """An empty project, in which the command runs."""
    use_ledger(tmp_path / "ledger.sqlite", monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("set.csv").write_text(SET)
    write({})
    return tmp_path


def write(sources: dict) -> None:
    """params.yaml with the prompt set, a size of clips and these sources."""
    params = {"prompts": {"path": "set.csv"}, "video": default_params()["video"], "feedback": {"sources": sources}}
    Path("params.yaml").write_text(yaml.safe_dump(params))


def run(*options: str, code: int = 0) -> str:
    done = CliRunner().invoke(commands.questions.main, ["--out", "questions.csv", *options])
    assert done.exit_code == code, done.output
    return done.output


def test_the_template_writes_each_text_once_and_says_which_prompts_have_no_question():
    output = run("--writer", "template", "--kinds", "alignment,physics")
    rows = read_questions(Path("questions.csv"))
    assert {row.prompt for row in rows} == {"pushing green cube from left to right"}
    assert [(row.name, row.question, row.wanted) for row in rows[:3]] == [
        ("alignment_object", "is there a green cube", "Yes"),
        ("alignment_event", "does the green cube move from left to right", "Yes"),
        ("physics_jump", "does anything jump", "No"),
    ]
    assert "questions.csv: 7 questions about 1 prompts, by template" in output
    assert "1 prompts have no question:\n  b: " in output and "elephants" in output


def test_a_file_that_is_there_is_written_again_only_with_force():
    Path("questions.csv").write_text("mine")
    assert "questions.csv is there already; --force writes it again" in run("--writer", "template", code=2)
    assert Path("questions.csv").read_text() == "mine"
    run("--writer", "template", "--kinds", "quality", "--force")
    assert len(read_questions(Path("questions.csv"))) == 2


def test_a_language_model_is_paid_once_and_a_rubric_reads_what_it_wrote():
    stated = dict.fromkeys(load_sheet(Path(SHEET)).parts, []) | {"objects": ["a green cube"]}
    with serving() as server:
        write({"writer": block_of("gpt", server.base)})
        message = {"role": "assistant", "content": json.dumps(stated)}
        server.behaviour.script = [{"body": {"choices": [{"message": message}]}, "times": 99}]
        output = run("--writer", "writer", "--rubric", SHEET)
        assert "about 2 prompts, by writer" in output and len(server.bodies) == 2  # a and c are one text
        first = Path("questions.csv").read_text()
        run("--writer", "writer", "--rubric", SHEET, "--force")
        assert len(server.bodies) == 2 and Path("questions.csv").read_text() == first
    Path("own.yaml").write_text("name: own\nframes: 8\nrule: mean\ninstructions: ''\nquestions: questions.csv\n")
    questions = load_rubric(Path("own.yaml")).of("a parade of elephants").questions
    assert questions[0].name == "alignment_objects" and "a green cube" in questions[0].ask
    assert {question.name.partition("_")[0] for question in questions} == {"alignment", "physics", "quality"}


def test_a_wrong_writer_or_setting_is_an_error_in_one_line():
    for options, said in (
        (("--writer", "nobody"), "writer is 'nobody', known are"),
        (("--writer", "template"), "kinds is None, expected some kinds of questions that template writes"),
        (("--writer", "template", "--kinds", "colour"), "kinds ['colour'] are unknown, expected some of"),
        (("--writer", "rubric"), "writer is rubric, but rubric, a YAML file, is null"),
    ):
        output = run(*options, code=1)
        assert said in output and "Traceback" not in output, (options, output)
    assert not Path("questions.csv").exists()
