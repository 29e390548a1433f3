"""`vfrl tiny`: what it prints is a preset, and it overwrites nothing."""

from pathlib import Path

import yaml
from click.testing import CliRunner

from commands import preset
from commands.tiny import main
from generators.tiny.variants import VARIANTS
from tests.support.defaults import default_params


def run(*words: str):
    return CliRunner().invoke(main, words)


def test_what_is_printed_fits_over_params_as_a_preset_and_names_the_folder(tmp_path):
    done = run("wan2.2-ti2v", "--out", str(tmp_path / "model"))

    assert done.exit_code == 0, done.output
    block = yaml.safe_load(done.stdout)
    assert (Path(block["generator"]["path"]) / "model_index.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    params = default_params()
    preset.overlay(params, block)
    assert params["generator"]["family"] == "wan" and params["video"]["num_frames"] == 9


def test_every_variant_can_be_looked_at_without_writing_it(tmp_path):
    listed = run("--list").output.splitlines()
    assert [line.split()[0] for line in listed] == list(VARIANTS)
    assert run().output.splitlines() == listed
    for name in VARIANTS:
        done = run(name, "--out", str(tmp_path / "model"), "--dry-run")
        assert yaml.safe_load(done.stdout)["generator"]["path"] == str(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_kept_and_an_unknown_variant_lists_the_known_in_one_line(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for words, message in (
        (("wan2.2-ti2v", "--out", str(tmp_path / "kept")), f"out: {tmp_path / 'kept'} is there already"),
        (("wan2.2-ti2v", "--out", str(tmp_path / "file")), f"out: {tmp_path / 'file'} is there already"),
        (("wan2.2-ti2v", "--out", str(tmp_path / "file/model")), str(tmp_path / "file")),
        (("wan2.3",), "variant 'wan2.3' is unknown; known are wan2.1-t2v, "),
    ):
        done = run(*words)
        assert done.exit_code == 1 and message in done.output, done.output
        assert done.output.startswith("Error: ") and len(done.output.splitlines()) == 1
    assert (tmp_path / "kept/notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "file"}
