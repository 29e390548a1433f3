"""`dvc repro` on the smallest preset of a family that starts from first frames, with a model that `vfrl tiny` wrote."""

import json
import shutil

import pytest
import yaml
from safetensors import safe_open

from data.manifest import read_manifest
from generators.tiny.variants import VARIANTS, params_of
from tests.support.clone import DVC, ROOT, make_clone, run

CONDITION = {  # of a prompt's image, in a clip set
    "wan2.2-ti2v": "given", "cogvideox-5b-i2v": "first", "hunyuan-video-i2v": "given", "unet3d-pixels": "first",
    "framepack-f1": "given",
}  # fmt: skip


@pytest.mark.ci
@pytest.mark.parametrize(
    ("preset", "variant"),
    [
        ("smoke-wan2.2-ti2v", "wan2.2-ti2v"),
        ("smoke-cogvideox-i2v", "cogvideox-5b-i2v"),
        ("smoke-cogvideox-i2v", "hunyuan-video-i2v"),
        ("smoke-cogvideox-i2v", "unet3d-pixels"),
        ("smoke-framepack-f1", "framepack-f1"),
    ],
)
def test_the_loop_runs_from_first_frames_to_a_report(preset, variant, tmp_path, forking):
    """The values that `vfrl tiny` prints are laid over the preset, which fits other variants too then."""
    make_clone(tmp_path)
    shutil.copytree(ROOT / "models/tabletop", tmp_path / "models/tabletop")
    run(tmp_path, "python", "-m", "commands", "tiny", variant, env=forking)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(params_of(VARIANTS[variant], f"models/tiny/{variant}")))
    run(tmp_path, "python", "-m", "commands", "preset", preset, "tiny.yaml", env=forking)
    run(tmp_path, *DVC, "repro", env=forking)

    read_manifest(tmp_path / "report-out", "report", verify=True)
    summary = json.loads((tmp_path / "report-out/summary.json").read_text())
    assert summary["policies"].keys() == {"base", "dpo1", *(["ask1"] if preset == "smoke-framepack-f1" else [])}
    assert summary["policies"]["dpo1"]["accept"]["physics"]["all"]["n"] == 6  # clips
    with safe_open(tmp_path / "runs/r1/samples/conditions.safetensors", "pt") as file:
        assert f"prompt/dm-train-01/{CONDITION[variant]}" in file.keys()  # noqa: SIM118 - safe_open is no dict
    shown = sorted(path.name for path in (tmp_path / "runs/r1/samples/first").iterdir())
    assert shown == ["dm-train-01.png", "dm-train-03.png"]
    for objective in ("sft", "rwr", "dpo"):
        log = (tmp_path / f"runs/policies/{objective}1/log.jsonl").read_text().splitlines()
        assert json.loads(log[-1])["step"] == 3


@pytest.mark.parametrize(
    ("preset", "variant"),
    [
        ("smoke-wan2.2-ti2v", "wan2.2-ti2v"),
        ("smoke-cogvideox-i2v", "cogvideox-5b-i2v"),
        ("smoke-framepack-f1", "framepack-f1"),
    ],
)
def test_the_presets_have_the_values_that_vfrl_tiny_prints(preset, variant):
    values = yaml.safe_load((ROOT / f"configs/presets/{preset}.yaml").read_text())
    wanted = params_of(VARIANTS[variant], f"models/tiny/{variant}")
    assert values["generator"].items() <= wanted["generator"].items()
    assert values["generate"]["solver"] == values["evaluate"]["generate"]["solver"] == wanted["generate"]["solver"]
