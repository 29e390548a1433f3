"""SQLite files of ours: whose a file is, the version of its tables, and the disks that cannot hold one."""

import re
import sqlite3
from pathlib import Path
from typing import NamedTuple

from data.manifest import StoreError

MOUNTS = Path("/proc/mounts")  # of Linux; no other system is looked into
# Types of file systems that other hosts may use too. Behind `fuse.` stand disks of one host as well. 9p and virtiofs
# are most often the only disk of a virtual machine, and are taken.
SHARED = frozenset((
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ncpfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "panfs",
    "pvfs2", "wekafs", "ocfs2", "gfs2", "juicefs",
))  # fmt: skip
SHARED_BY_FUSE = (  # beginnings
    "sshfs", "glusterfs", "ceph", "s3fs", "gcsfuse", "rclone", "juicefs", "mfs", "lizardfs", "goofys", "mount-s3",
    "blobfuse", "beegfs", "afs", "nfs", "smb",
)  # fmt: skip


class Format(NamedTuple):
    """A kind of file."""

    what: str  # in errors, such as "a ledger"
    application: int  # SQLite's application_id
    variable: str  # environment variable that names another file
    migrations: tuple[str, ...]  # SQL statements that bring the tables from version n to n + 1


def shared_disk_of(path: Path) -> str | None:
    """The type and the mount point of the network file system that a file lies on, or would; None on another."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    mounts = [(Path(_unescaped(line.split()[1])), line.split()[2]) for line in lines]
    over = [(point, kind) for point, kind in mounts if path.resolve().is_relative_to(point)]
    if not over:
        return None
    point, kind = max(
        reversed(over), key=lambda one: len(one[0].parts)
    )  # of two at one place the later covers the other
    shared = kind in SHARED or (kind.startswith("fuse.") and kind.removeprefix("fuse.").startswith(SHARED_BY_FUSE))
    return f"{kind}, mounted at {point}" if shared else None


def refuse_shared_disk(path: Path, form: Format) -> None:
    """Raises StoreError for a file on a disk that other hosts may use too.

    SQLite's write-ahead log needs memory that all its processes share, and its locks and ours tell the processes of one
    host apart: another host would take our calls in flight for lost, and pay for them again.
    """
    if disk := shared_disk_of(path):
        moving = f", and copy {path} there while nothing uses it" if path.exists() else ""
        raise StoreError(
            f"{path}: {form.what} cannot lie on a network file system ({disk}): SQLite loses its locks there. Name a "
            f"file on a disk of this machine in {form.variable}{moving}"
        )


def _unescaped(point: str) -> str:
    """As the kernel writes it: blanks, tabs, newlines and backslashes are three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), point)


def version_of(db: sqlite3.Connection, path: Path, form: Format) -> int:
    """The version of a file's tables; 0 where it is new. Raises StoreError where this code cannot use it."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if (application, version, tables) != (0, 0, 0) and application != form.application:
        raise StoreError(f"{path}: an SQLite file of another program, not {form.what} of feedback")
    if version > len(form.migrations):
        raise StoreError(
            f"{path}: {form.what} of version {version}, but this code knows versions up to {len(form.migrations)}; "
            f"update the code, or name another file in {form.variable}"
        )
    return int(version)


def migrate(db: sqlite3.Connection, path: Path, form: Format) -> None:
    """Bring a file's tables up to date, within the caller's transaction. Raises StoreError as `version_of` does."""
    version = version_of(db, path, form)
    for step in form.migrations[version:]:
        for statement in filter(str.strip, step.split(";")):
            db.execute(statement)
    db.execute(f"PRAGMA application_id = {form.application}")
    db.execute(f"PRAGMA user_version = {len(form.migrations)}")
