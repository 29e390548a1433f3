"""What `vfrl doctor --family` reports of a checkpoint, by its configs."""

import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from commands.doctor import main
from generators.tiny.variants import VARIANTS, params_of
from tests.support.defaults import default_params

NAME = "wan2.2-t2v"


@pytest.fixture
def doctor(tmp_path, monkeypatch):
    """Runs the command beside a params.yaml for the variant, and these changes of its video."""
    monkeypatch.chdir(tmp_path)

    def run(folder: Path, *words: str, **video: int) -> Result:
        params = default_params()
        own = params_of(VARIANTS[NAME], str(folder))
        params |= {"generator": own["generator"], "video": own["video"] | video}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        return CliRunner().invoke(main, words)

    return run


def test_the_family_components_and_memory_of_a_whole_checkpoint(doctor, tiny_model):
    done = doctor(tiny_model(NAME), "--family", "auto")

    assert done.exit_code == 0, done.output
    assert "wan reads it, a WanPipeline" in done.output
    assert "WanTransformer3DModel, 19,832 parameters" in done.output  # counted by vfrl tiny's own modules too
    for title in ("generate: encoding", "generate: sampling", "label", "train, LoRA", "train, full", "not counted"):
        assert f"  {title}  " in done.output
    assert "width x 4 bytes x 2 layers x 40" in done.output
    assert "width x 4 bytes x (2 layers + 40)" in done.output


def test_another_family_is_named(doctor, tiny_model):
    done = doctor(tiny_model(NAME), "--family", "cogvideox")

    assert done.exit_code == 1
    assert "cogvideox does not read a WanPipeline; wan does" in done.output
    assert done.output.splitlines()[-1] == "Not ready: family."


def test_missing_weights_are_named_and_the_memory_is_still_estimated(doctor, tiny_model, tmp_path):
    folder = tmp_path / "partial"
    shutil.copytree(tiny_model(NAME), folder)
    for file in (folder / "transformer").glob("*.safetensors"):
        file.unlink()
    done = doctor(folder, "--family", "wan")

    assert done.exit_code == 1
    assert "no weights in transformer" in done.output
    assert "train, full" in done.output
    assert done.output.splitlines()[-1] == "Not ready: transformer."


def test_a_size_that_the_family_cannot_make_leaves_the_memory_out(doctor, tiny_model):
    done = doctor(tiny_model(NAME), "--family", "auto", num_frames=10)

    assert done.exit_code == 1
    assert "num_frames: 10 cannot be represented" in done.output
    assert "19,832 parameters" in done.output
    assert "train, full" not in done.output
