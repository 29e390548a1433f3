"""`vfrl`: its commands, and how little it takes to list them."""

import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from click.testing import CliRunner

from commands.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[2]


def test_help_of_every_command_imports_nothing_heavy():
    heavy = {
        "av", "datasets", "diffusers", "dvc", "google.genai", "jinja2", "matplotlib", "openai", "pandas", "PIL",
        "pyarrow", "torch", "transformers",
    }  # fmt: skip
    checked = f"""
import sys
from click.testing import CliRunner
from commands.__main__ import COMMANDS, main
for words in [["--version"], ["--help"], *([name, "--help"] for name in COMMANDS)]:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, (words, done.output)
    assert not {heavy} & sys.modules.keys(), (words, {heavy} & sys.modules.keys())
"""
    subprocess.run([sys.executable, "-c", checked], check=True, cwd=ROOT)


def test_the_version_is_that_of_pyproject_and_of_the_citation():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert CliRunner().invoke(main, ["--version"]).output == f"vfrl {wanted}\n"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == wanted


def test_the_table_of_commands_lists_every_module_of_the_package():
    modules = {path.stem for path in (ROOT / "commands").glob("[!_]*")}

    assert modules == COMMANDS.keys()
