"""A copy of the repository with default params, in which commands and stages run as in a fresh clone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.defaults import DEFAULTS

ROOT = Path(__file__).parents[2]
COPIED = (
    "cluster", "commands", "configs", "data", "evaluation", "feedback", "generators", "inspection", "pipeline",
    "report", "rl", "stages", "tabletop", "dvc.yaml", "pretrain.yaml", "pyproject.toml", ".dvcignore",
)  # fmt: skip
DVC = [sys.executable, "-m", "dvc"]


def make_clone(folder: Path) -> None:
    """Copy all but the models and dvc.lock into an empty folder, and initialise DVC there: no stage counts as run."""
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    shutil.copy(DEFAULTS, folder / "params.yaml")
    run(folder, *DVC, "init", "--no-scm", "--quiet")
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots", dirs_exist_ok=True)


def environment() -> dict[str, str]:
    first = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": first, "OMP_NUM_THREADS": "1", "STAGE_DEVICE": "cpu"}


def run(folder: Path, *command: str, env: dict[str, str] | None = None) -> str:
    """What a command that must succeed prints."""
    done = subprocess.run(command, cwd=folder, env=env or environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stderr + done.stdout
