"""Text files that people write, in encodings that their editors save them in."""

from pathlib import Path

import pytest
from click.testing import CliRunner

import commands.rewrite
from data.prompts import load_prompts
from data.tables.benchmarks import read_benchmark
from data.tables.questions import read_questions
from data.written import CURE, read_written
from feedback.core.rubric import load_rubric
from feedback.differentiable.overlay import load_overlay
from feedback.metrics.reward_models.texts import read_text
from feedback.questions.sheet import load_sheet
from pipeline.params import load_params

READERS = {
    "prompts.csv": load_prompts,
    "questions.csv": read_questions,
    "list.txt": lambda path: read_benchmark("videophy2", [path], "train"),
    "list.json": lambda path: read_benchmark("vbench", [path], "train"),
    "params.yaml": load_params,
    "rubric.yaml": load_rubric,
    "sheet.yaml": load_sheet,
    "overlay.yaml": load_overlay,
    "reward.txt": lambda path: read_text(str(path), ""),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_is_not_utf_8_is_an_error_with_its_name_the_line_and_the_way_to_mend_it(name, tmp_path):
    path = tmp_path / name
    path.write_bytes("# text\na café at night\n".encode("cp1252"))
    with pytest.raises(Exception, match=f"{name}, line 2: byte 0xe9 is not UTF-8; .* it is 'é'; save it as ") as raised:
        READERS[name](path)
    assert not isinstance(raised.value, UnicodeDecodeError)
    path.write_bytes("a café".encode("utf-16"))
    with pytest.raises(Exception, match=f"{name}: text in UTF-16"):
        READERS[name](path)


def test_the_instructions_of_a_rewriter_too(tmp_path):
    (tmp_path / "ask.txt").write_bytes("réécris {prompt}".encode("latin-1"))
    words = ["--prompts", "configs/prompt_sets/tabletop.csv", "--out", f"{tmp_path}/out.csv", "--model", "m"]
    done = CliRunner().invoke(commands.rewrite.main, [*words, "--instructions", f"{tmp_path}/ask.txt"])
    assert done.exit_code == 1
    assert f"{tmp_path}/ask.txt, line 1: byte 0xe9 is not UTF-8" in done.output and CURE in done.output


def test_a_byte_order_mark_is_no_text_and_line_ends_are_those_of_unix(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfsteps: 3\r\n")
    assert read_written(path) == "steps: 3\n"
    assert load_params(path) == {"steps": 3}
    assert read_written(Path("params.yaml")) == Path("params.yaml").read_text(encoding="utf-8")
