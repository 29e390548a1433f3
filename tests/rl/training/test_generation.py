"""A process whose place another has taken writes no log, no checkpoint, no state and no policy."""

from pathlib import Path

import pytest

from cluster.training import SupersededError
from rl.training import run as frame
from rl.training.generation import FILE, take
from rl.training.state import STATE_FILE
from tests.support.training import run, write_base, write_clip_set


@pytest.fixture(scope="module")
def clip_set(tmp_path_factory):
    return write_clip_set(tmp_path_factory.mktemp("clips") / "samples")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("policies") / "base")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_start_that_took_the_folder_last_holds_it(tmp_path):
    first = take(tmp_path)
    first.check()
    second = take(tmp_path)
    second.check()
    with pytest.raises(SupersededError, match="this process is of start 1 of the run, and start 2 of it holds"):
        first.check()
    (tmp_path / FILE).unlink()
    with pytest.raises(SupersededError, match="its folder is gone"):
        second.check()


def test_of_two_starts_with_one_number_the_last_to_write_holds(tmp_path):
    first = take(tmp_path)
    (tmp_path / FILE).unlink()
    second = take(tmp_path)
    assert first.held.split()[0] == second.held.split()[0] == "1"
    second.check()
    with pytest.raises(SupersededError):
        first.check()


@pytest.mark.parametrize("moment", ["append_log", "describe", "save_file", "write_manifest"])
def test_a_superseded_process_writes_nothing_more(moment, tiny_wan, clip_set, base, tmp_path, monkeypatch):
    """Another takes the folder while this one writes a log line, a checkpoint, a state, or the policy."""
    module = frame.state if moment == "save_file" else frame
    write, before = getattr(module, moment), {}

    def taken(*arguments, **options):
        write(*arguments, **options)
        take(tmp_path / "work")
        before.update(files(tmp_path))

    monkeypatch.setattr(module, moment, taken)
    with pytest.raises(SupersededError, match="start 2 of it holds the folder"):
        run("sft", tiny_wan, clip_set, base, tmp_path)
    left = files(tmp_path)
    assert not (tmp_path / "out").exists()
    new = {name for name in left if left[name] != before.get(name)}
    assert {name for name in new if "/." not in name} == set()
    steps = {"append_log": 0, "describe": 0, "save_file": 1, "write_manifest": 2}[moment]
    assert len([name for name in left if name.endswith("/policy.json") and "/step-" in name]) == steps
    assert (tmp_path / "work" / STATE_FILE).exists() == (moment == "write_manifest")


def test_what_is_published_does_not_tell_of_starts(tiny_wan, clip_set, base, tmp_path):
    run("sft", tiny_wan, clip_set, base, tmp_path)
    assert (tmp_path / "work" / FILE).is_file()
    assert not [name for name in files(tmp_path / "out") if FILE in name]


def test_a_copied_state_does_not_make_the_copy_superseded(tiny_wan, clip_set, base, tmp_path):
    run("sft", tiny_wan, clip_set, base, tmp_path / "old")
    take(tmp_path / "old/work")
    run("sft", tiny_wan, clip_set, base, tmp_path / "new", resume_from=tmp_path / "old/work")
    assert (tmp_path / "new/work" / FILE).read_text().split()[0] == "1"
