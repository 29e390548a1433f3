"""SQLite files of ours: whose a file is, and the version of its tables."""

import sqlite3
from pathlib import Path
from typing import NamedTuple

from data.manifest import StoreError


class Format(NamedTuple):
    """A kind of file."""

    what: str  # in errors, such as "a ledger"
    application: int  # SQLite's application_id
    variable: str  # environment variable that names another file
    migrations: tuple[str, ...]  # SQL statements that bring the tables from version n to n + 1


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
