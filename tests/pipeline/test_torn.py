import fcntl
import subprocess

import pytest

from pipeline.torn import mend
from tests.support.clone import ROOT

WHOLE = (ROOT / "dvc.lock").read_bytes()


@pytest.fixture
def root(tmp_path):
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    for command in (["init", "-q"], ["config", "user.name", "n"], ["config", "user.email", "e"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / "dvc.lock").write_bytes(WHOLE)
    return tmp_path


def commit(root):
    subprocess.run(["git", "add", "dvc.lock"], cwd=root, check=True)
    subprocess.run(["git", "commit", "-qm", "run"], cwd=root, check=True)


def test_whole_files_are_left_alone(root):
    readers = root / ".dvc/tmp/rwlock"
    readers.write_text('{"write": {"/a": {"pid": 1, "cmd": "dvc repro"}}}')
    mend(root)
    assert readers.is_file() and (root / "dvc.lock").read_bytes() == WHOLE


@pytest.mark.parametrize("left", ["", '{"write": {"/a": {"pi'])
def test_a_torn_list_of_readers_is_removed(root, left, caplog):
    readers = root / ".dvc/tmp/rwlock"
    readers.write_text(left)
    mend(root)
    assert not readers.exists() and "rwlock: removed" in caplog.text


def test_nothing_is_mended_while_a_dvc_writes(root):
    readers = root / ".dvc/tmp/rwlock"
    readers.write_text("")
    with (root / ".dvc/tmp/rwlock.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        mend(root)
    assert readers.is_file()


def test_a_dvc_lock_that_dvc_cannot_read_is_put_aside_and_gits_version_takes_its_place(root, caplog):
    commit(root)
    lines = WHOLE.splitlines(keepends=True)
    within = WHOLE.index(b"generate@") + 9
    ends = {"nothing": b"", "a key alone": WHOLE[: WHOLE.index(b"path")], "inside a stage's name": WHOLE[:within]}
    path = WHOLE.index(b"- path:", within) + 7
    ends |= {"a path without a value": WHOLE[:path], "a command's first line": lines[3]}
    for what, left in ends.items():
        (root / "dvc.lock").write_bytes(left)
        mend(root)
        assert (root / "dvc.lock").read_bytes() == WHOLE, what
        assert (root / "dvc.lock.torn").read_bytes() == left, what
    assert "git's version takes its place" in caplog.text


def test_without_a_committed_dvc_lock_there_is_none(root, caplog):
    (root / "dvc.lock").write_bytes(b"")
    mend(root)
    assert not (root / "dvc.lock").exists() and "git has no version" in caplog.text
