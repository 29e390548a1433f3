"""`vfrl ledger`: what is kept, by source, and the removal of some of it."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import commands.ledger
from feedback.core.verdicts import Origin, VerdictFile
from feedback.network.ledger import Ledger, request_key


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch) -> Path:
    """A ledger with calls of three sources and a person's two ratings, and a file of verdicts of two judges."""
    monkeypatch.setenv("FEEDBACK_LEDGER", str(tmp_path / "ledger.sqlite"))
    monkeypatch.setenv("FEEDBACK_VERDICTS", str(tmp_path / "verdicts.sqlite"))
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        paid = [("f1 gpt", 0.5), ("f2 gpt", 0.25), ("f1 panel.members.gpt", None), ("rewrite prompts gemini", 0.125)]
        for number, (purpose, cost) in enumerate(paid):
            ledger.answered(begin(ledger, number, purpose), "{}", cost)
        ledger.lost(begin(ledger, 9, "f1 gpt"))
        for rating in ({"place": "human", "rater": "anna"}, {"place": "human pair", "rater": "anna"}):
            ledger.write(request_key(rating), rating, "{}")
    with VerdictFile(tmp_path / "verdicts.sqlite") as file:
        file.keep(Origin("1", "judge", "qwen", "models/judge", "abc", "review 123"), {"a": "[]", "b": "[]"})
        file.keep(Origin("3", "pairs", "served_here", "models/judge", "abc", "better 789"), {"a b": "[]", "b a": "[]"})
        file.keep(Origin("2", "flow", "optical_flow", "DIS", None, "metric 456"), {"a": "[]"})
    return tmp_path


def begin(ledger: Ledger, number: int, purpose: str):
    sent = {"place": "https://api.test m", "number": number}
    return ledger.begin(request_key(sent), sent, purpose, 0.5)


def run(*options: str, code: int = 0) -> str:
    done = CliRunner().invoke(commands.ledger.main, options)
    assert done.exit_code == code, done.output
    return done.output


def lines_with(word: str) -> list[str]:
    return [" ".join(line.split()) for line in run().splitlines() if word in line.split()]


def test_it_shows_answers_with_dollars_and_verdicts_by_source(files):
    assert [line.rsplit(" ", 2)[0] for line in lines_with("gpt")] == ["gpt https://api.test m 2 $0.7500 0.00"]
    assert lines_with("gemini")[0].startswith("gemini https://api.test m 1 $0.1250")
    assert [line.partition(" - ")[0] for line in lines_with("anna")] == ["anna ratings 1", "anna pair ratings 1"]
    assert lines_with("qwen")[0].startswith("judge qwen models/judge abc review 123 2 0 ")
    assert lines_with("served_here")[0].startswith("pairs served_here models/judge abc better 789 0 2 ")
    assert lines_with("optical_flow")[0].startswith("flow optical_flow DIS - metric 456 1 0 ")
    output = run()
    for line in ("in all $0.8750", "answers of unknown price: 1", "may have been billed without an answer: 1"):
        assert line in output


def test_where_nothing_is_kept_it_says_so_and_makes_no_file(files, monkeypatch):
    monkeypatch.setenv("FEEDBACK_LEDGER", str(files / "none/ledger.sqlite"))
    monkeypatch.delenv("FEEDBACK_VERDICTS")
    assert run().count("none yet") == 2
    monkeypatch.setenv("FEEDBACK_VERDICTS", "off")
    assert "not kept, since FEEDBACK_VERDICTS is off" in run()
    assert not (files / "none").exists()


def test_a_path_from_the_home_folder_is_understood_where_no_shell_has_expanded_it(files, monkeypatch):
    monkeypatch.setenv("HOME", str(files))
    monkeypatch.setenv("FEEDBACK_LEDGER", "~/ledger.sqlite")
    monkeypatch.setenv("FEEDBACK_VERDICTS", "~/verdicts.sqlite")
    assert "in all $0.8750" in run() and lines_with("qwen")


def test_pruning_verdicts_never_removes_an_answer_or_a_rating(files):
    before = run().partition("Verdicts of this machine")[0]
    assert "2 clips" in run("--prune", "--source", "judge", "--yes")
    assert lines_with("qwen") == [] and lines_with("optical_flow")
    run("--prune", "--older-than", "0", "--keep-mb", "0", "--yes")
    assert lines_with("optical_flow") == []
    assert run().partition("Verdicts of this machine")[0] == before


def test_paid_answers_go_by_name_alone_and_their_dollars_stay(files):
    assert "2 answers of gpt, which cost $0.7500" in run("--prune", "--paid", "gpt", "--yes")
    assert lines_with("gpt")[0].startswith("gpt https://api.test m 0 $0.7500")
    assert lines_with("gemini")[0].startswith("gemini https://api.test m 1 ")
    assert lines_with("panel.members.gpt")[0].startswith("panel.members.gpt https://api.test m 1 ")
    assert lines_with("anna")[0].startswith("anna ratings 1")


def test_without_yes_and_without_a_terminal_nothing_is_removed(files):
    before = run()
    for options in (("--source", "judge"), ("--paid", "gpt")):
        assert "nothing was removed; give --yes" in run("--prune", *options, code=2)
    assert run() == before


def test_wrong_options_are_errors_that_name_what_there_is():
    cases = {
        ("--prune",): "--prune wants --source, --older-than, --keep-mb or --paid",
        ("--source", "judge"): "want --prune",
        ("--prune", "--source", "gpt", "--yes"): "--source is gpt; .* has flow, judge, pairs",
        ("--prune", "--paid", "judge", "--yes"): "--paid is judge; .* has gemini, gpt, panel.members.gpt",
        ("--prune", "--paid", "anna", "--yes"): "--paid is anna; .* has gemini",
        ("--prune", "--paid", "gpt", "--source", "judge"): "one of both",
        ("--prune", "--older-than", "-1"): "not in the range",
        ("--prune", "--older-than", "1e6"): "'--older-than': 1000000.0 is not in the range",
        ("--prune", "--older-than", "nan"): "'--older-than': nan is no finite number",
        ("--prune", "--keep-mb", "nan"): "'--keep-mb': nan is no finite number",
        ("--prune", "--keep-mb", "inf"): "'--keep-mb': inf is not in the range",
    }
    for options, message in cases.items():
        assert re.search(message, " ".join(run(*options, code=2).split())), options


def test_a_file_that_cannot_be_read_is_an_error_in_one_line_and_does_not_hide_the_other(files):
    (files / "verdicts.sqlite").write_text("Dear diary, " * 100)
    output = run(code=1)
    assert "a damaged file of verdicts, or another file" in output and "in all $0.8750" in output
    for suffix in ("-wal", "-shm"):
        (files / f"ledger.sqlite{suffix}").unlink(missing_ok=True)
    (files / "ledger.sqlite").write_text("Dear diary, " * 100)
    assert re.search("a damaged ledger, or another file .* keep it", run(code=1))
    (files / "folder").mkdir()
    VerdictFile(files / "other.sqlite").__exit__()
    for path, message in ((files / "folder", "unable to open"), (files / "other.sqlite", "none yet")):
        assert message in CliRunner(env={"FEEDBACK_VERDICTS": str(path)}).invoke(commands.ledger.main).output
