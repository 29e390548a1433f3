"""Which disks a ledger and a file of verdicts may lie on."""

from pathlib import Path

import pytest

from data.manifest import StoreError
from feedback.core.database import shared_disk_of
from feedback.core.verdicts import Unusable, VerdictFile
from feedback.network.ledger import Ledger

LOCAL = ("ext4", "xfs", "tmpfs", "overlay", "btrfs", "zfs", "9p", "fuseblk", "fuse.fuse-overlayfs", "fuse.gocryptfs")
SHARED = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "fuse.sshfs",
    "fuse.glusterfs",
    "fuse.juicefs",
)


@pytest.fixture
def mount(tmp_path, monkeypatch):
    """Writes the table of mounts: of the root, of this folder's disk, and others."""

    def write(kind: str, at: Path, *more: str) -> None:
        lines = [
            "/dev/sda1 / ext4 rw 0 0",
            f"server:/export {str(at).replace(' ', chr(92) + '040')} {kind} rw 0 0",
            *more,
        ]
        (tmp_path / "mounts").write_text("\n".join(lines) + "\n")

    monkeypatch.setattr("feedback.core.database.MOUNTS", tmp_path / "mounts")
    return write


def test_a_ledger_on_a_network_file_system_is_refused_by_name(mount, tmp_path):
    for kind in SHARED:
        mount(kind, tmp_path)
        with pytest.raises(StoreError, match="FEEDBACK_LEDGER") as refused:
            Ledger(tmp_path / "of/me/ledger.sqlite")
        assert f"({kind}, mounted at {tmp_path})" in str(refused.value)
    assert not (tmp_path / "of").exists()


def test_one_that_lies_there_already_is_to_be_copied(mount, tmp_path):
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    mount("nfs4", tmp_path)
    with pytest.raises(StoreError, match=f"in FEEDBACK_LEDGER, and copy {path} there while nothing uses it"):
        Ledger(path)


def test_kept_verdicts_there_are_refused_by_name_and_can_be_turned_off(mount, tmp_path):
    mount("lustre", tmp_path)
    with pytest.raises(Unusable, match="FEEDBACK_VERDICTS; or set FEEDBACK_VERDICTS to off"):
        VerdictFile(tmp_path / "verdicts.sqlite")


def test_disks_of_one_host_are_taken(mount, tmp_path):
    for kind in LOCAL:
        mount(kind, tmp_path)
        assert shared_disk_of(tmp_path / "ledger.sqlite") is None, kind
        with Ledger(tmp_path / f"{kind}.sqlite"):
            pass


def test_the_innermost_mount_decides_and_of_two_at_one_place_the_later(mount, tmp_path):
    home, local = tmp_path / "my home", tmp_path / "my home/local"
    mount("nfs4", home, f"/dev/sdb1 {str(local).replace(' ', chr(92) + '040')} xfs rw 0 0")
    assert shared_disk_of(home / "ledger.sqlite") == f"nfs4, mounted at {home}"
    assert shared_disk_of(tmp_path / "my homework/ledger.sqlite") is None
    assert shared_disk_of(local / "ledger.sqlite") is None
    mount("autofs", tmp_path, f"server:/export {tmp_path} nfs rw 0 0")
    assert shared_disk_of(tmp_path / "ledger.sqlite") == f"nfs, mounted at {tmp_path}"


def test_a_link_to_a_network_file_system_is_followed(mount, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    mount("nfs", tmp_path / "far")
    assert shared_disk_of(tmp_path / "near/ledger.sqlite") == f"nfs, mounted at {tmp_path / 'far'}"


def test_a_system_without_such_a_table_is_not_looked_into(monkeypatch, tmp_path):
    monkeypatch.setattr("feedback.core.database.MOUNTS", tmp_path / "none")
    assert shared_disk_of(tmp_path / "ledger.sqlite") is None
