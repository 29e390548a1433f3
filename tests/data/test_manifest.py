import errno
import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data.manifest import MANIFEST, StoreError, atomically, publish, read_manifest, write_manifest


def finished(folder: Path, content: str = "seven b") -> Path:
    """A folder of kind "toy" with two files, one nested."""
    (folder / "nested").mkdir(parents=True)
    (folder / "b.txt").write_text(content)
    (folder / "nested" / "a.bin").write_bytes(b"\0\1")
    write_manifest(folder, "toy", policy="base", seed=1)
    return folder


def test_the_manifest_lists_every_file_with_size_and_sha256(tmp_path):
    manifest = read_manifest(finished(tmp_path / "set"), "toy", verify=True)
    assert manifest["facts"] == {"policy": "base", "seed": 1}
    assert [(listed["path"], listed["size"]) for listed in manifest["files"]] == [("b.txt", 7), ("nested/a.bin", 2)]
    # sha256sum of the two bytes 00 01
    sha256 = "b413f47d13ee2fe6c845b2ee141af81de858df4ec549a58b7970bb96645bc8d2"
    assert manifest["files"][1]["sha256"] == sha256


def test_equal_folders_have_equal_manifests(tmp_path):
    one, other = finished(tmp_path / "one"), finished(tmp_path / "other")
    assert (one / MANIFEST).read_bytes() == (other / MANIFEST).read_bytes()
    write_manifest(one, "toy", seed=1, policy="base")  # over an older one, facts in another order
    assert (one / MANIFEST).read_bytes() == (other / MANIFEST).read_bytes()


def test_dotted_names_are_not_part_of_a_result(tmp_path):
    folder = finished(tmp_path / "set")
    before = (folder / MANIFEST).read_bytes()
    (folder / ".batches").mkdir()
    (folder / ".batches" / "00000.parquet").write_text("marker")
    (folder / ".b.txt.partial").write_text("left by a kill")
    write_manifest(folder, "toy", policy="base", seed=1)
    assert (folder / MANIFEST).read_bytes() == before


def test_a_folder_without_a_manifest_is_half_written(tmp_path):
    with pytest.raises(StoreError, match=r"set: no manifest.json, so it is half-written .* run `dvc repro`"):
        folder = tmp_path / "set"
        folder.mkdir()
        read_manifest(folder, "toy")
    with pytest.raises(StoreError, match=r"absent: no such folder; .* `dvc repro <stage>`, such as generate@r1"):
        read_manifest(tmp_path / "absent", "toy")


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(StoreError, match="holds a 'toy', but a 'clip_set' is wanted"):
        read_manifest(finished(tmp_path / "set"), "clip_set")


def test_an_unsupported_format_is_refused(tmp_path):
    path = finished(tmp_path / "set") / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(StoreError, match="format 99, but this code reads format 1"):
        read_manifest(tmp_path / "set", "toy")


@pytest.mark.parametrize("text", ["", '{"format": 1', "[]", '{"format": 1, "kind": "toy"}'])
def test_a_torn_manifest_is_named(tmp_path, text):
    (finished(tmp_path / "set") / MANIFEST).write_text(text)
    with pytest.raises(StoreError, match="manifest.json: not "):
        read_manifest(tmp_path / "set", "toy")


def test_a_missing_file_is_named(tmp_path):
    (finished(tmp_path / "set") / "nested" / "a.bin").unlink()
    with pytest.raises(StoreError, match=r"nested/a.bin: missing, though the manifest lists it"):
        read_manifest(tmp_path / "set", "toy")


def test_a_truncated_file_is_named(tmp_path):
    (finished(tmp_path / "set") / "b.txt").write_text("seven")
    with pytest.raises(StoreError, match="b.txt: truncated: 5 bytes, the manifest says 7"):
        read_manifest(tmp_path / "set", "toy")


def test_changed_bytes_of_equal_length_show_only_under_verify(tmp_path):
    (finished(tmp_path / "set") / "b.txt").write_text("7 bytes")
    read_manifest(tmp_path / "set", "toy")
    with pytest.raises(StoreError, match="b.txt: changed: sha256"):
        read_manifest(tmp_path / "set", "toy", verify=True)


def test_facts_that_json_cannot_hold_leave_no_manifest(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_manifest(tmp_path, "toy", loss=float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_publishing_replaces_what_was_there_and_takes_no_second_space(tmp_path):
    out = finished(tmp_path / "runs" / "out", content="the old")
    (out / "stray").write_text("of an older run")
    publish(finished(tmp_path / "work"), out)
    read_manifest(out, "toy", verify=True)
    assert (out / "b.txt").read_text() == "seven b"
    assert not (out / "stray").exists()
    for file in (MANIFEST, "b.txt", "nested/a.bin"):
        assert (out / file).samefile(tmp_path / "work" / file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "work"]


def test_publishing_into_a_new_parent_makes_it(tmp_path):
    publish(finished(tmp_path / "work"), tmp_path / "a" / "b" / "out")
    read_manifest(tmp_path / "a" / "b" / "out", "toy", verify=True)


def test_an_unfinished_folder_is_not_published(tmp_path):
    out = finished(tmp_path / "out")
    (tmp_path / "work").mkdir()
    with pytest.raises(StoreError, match="work: no manifest.json, so it is not finished"):
        publish(tmp_path / "work", out)
    read_manifest(out, "toy")


@pytest.fixture
def disk(tmp_path, monkeypatch) -> Path:
    """A folder that looks as if it lay on another file system than the rest."""
    folder = tmp_path / "disk"

    def refusing(real):
        def move(source, target):
            if Path(source).is_relative_to(folder) != Path(target).is_relative_to(folder):
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            real(source, target)

        return move

    for name in ("replace", "link"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    return folder


def test_publishing_across_filesystems_copies(tmp_path, disk):
    work, out = finished(disk / "work"), finished(tmp_path / "out", content="the old")
    publish(work, out)
    assert (out / "b.txt").read_text() == "seven b"
    read_manifest(out, "toy", verify=True)
    assert sorted(path.name for path in [*tmp_path.iterdir(), *disk.iterdir()]) == ["disk", "out", "work"]


def test_without_hard_links_publishing_copies(tmp_path, monkeypatch):
    work, out = finished(tmp_path / "work"), finished(tmp_path / "out", content="the old")

    def refuse(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    publish(work, out)
    read_manifest(out, "toy", verify=True)
    assert not (out / "b.txt").samefile(work / "b.txt")


def test_a_copy_that_fails_is_not_visible_as_done(tmp_path, disk, monkeypatch):
    work, out = finished(disk / "work"), finished(tmp_path / "out", content="the old")
    copy = shutil.copy2

    def full(source, target, **_):
        if Path(target).is_relative_to(disk):
            return copy(source, target)
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(StoreError, match="(?s)out: .*work could not be put there: .*No space left"):
        publish(work, out)
    assert not out.exists()
    read_manifest(work, "toy", verify=True)
    assert sorted(path.name for path in [*tmp_path.iterdir(), *disk.iterdir()]) == ["disk", "work"]


def test_a_kill_while_the_old_folder_goes_leaves_it_without_a_manifest(tmp_path, monkeypatch):
    work, out = finished(tmp_path / "work"), finished(tmp_path / "out", content="the old")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            publish(work, out)
    with pytest.raises(StoreError, match="half-written"):
        read_manifest(out, "toy")
    publish(work, out)
    assert (out / "b.txt").read_text() == "seven b"


def test_a_full_disk_names_the_file_and_keeps_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "table.parquet"
    path.write_text("old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(StoreError, match="table.parquet: not written: No space left on device"),
        atomically(path) as new,
    ):
        new.write_text("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_also_where_safetensors_meets_it(tmp_path):
    path = tmp_path / "state.safetensors"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with (
            pytest.raises(StoreError, match="state.safetensors: not written: .*File too large"),
            atomically(path) as new,
        ):
            save_file({"weight": torch.zeros(4096)}, new)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_is_interrupted_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomically(tmp_path / "a.txt") as new:
        new.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
