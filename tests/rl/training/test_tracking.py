"""Claims about what a tracker is sent, and about the previews of a policy, on tiny models of the real classes."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image

from data.config import ConfigError
from data.policies import numbers, previews_in
from generators.core.generator import SAMPLING
from rl.online.guards import CurvePoint
from rl.training import run as frame
from rl.training.config import PreviewConfig
from rl.training.previews import Previews
from rl.training.tracking import Tracker
from tests.support import online
from tests.support.tiny import load_wan
from tests.support.training import config, run, write_base, write_clip_set

SHOWN = {"prompts": 2, "every": 2, "steps": 3, "guidance": 1.5, "solver": "unipc"}
PREVIEW = {"preview": SHOWN}


@pytest.fixture(scope="module")
def clip_set(tmp_path_factory):
    return write_clip_set(tmp_path_factory.mktemp("clips") / "samples", prompts=3)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("policies") / "base")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Recorder(GeneralTracker):
    """A tracker by accelerate's own interface; `runs` holds what each start of it was sent."""

    name = "recorder"
    requires_logging_directory = False
    runs: list["Recorder"] = []

    def __init__(self, run_name: str, **options) -> None:
        super().__init__()
        self.config, self.lines, self.pictures, self.ended = {}, [], [], False
        Recorder.runs.append(self)

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **options):
        self.lines.append((step, values))

    def log_images(self, values, step=None, **options):
        self.pictures.append((step, *values))

    def finish(self):
        self.ended = True


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "recorder", Recorder)
    monkeypatch.setattr(Recorder, "runs", [])
    return Recorder.runs


def tracker(tmp_path: Path, name: str = "recorder") -> Tracker:
    return Tracker(name, "sft1", tmp_path / "logs")


class Killed(BaseException):
    """Stands for a kill at a chosen line."""


def killed_at_step(step: int, monkeypatch, *args, **kwargs) -> None:
    """A run that is killed once it has logged and sent that step."""
    keep = frame.TrainingRun._report_progress

    def killed(self):
        keep(self)
        if self.done == step:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(frame.TrainingRun, "_report_progress", killed)
        run(*args, **kwargs)


# What is sent


def test_a_tracker_is_sent_every_line_of_the_log_and_changes_no_byte(recorder, tiny_wan, clip_set, base, tmp_path):
    run("dpo", tiny_wan, clip_set, base, tmp_path / "plain")
    run("dpo", tiny_wan, clip_set, base, tmp_path / "tracked", tracker=tracker(tmp_path))
    assert contents(tmp_path / "tracked" / "out") == contents(tmp_path / "plain" / "out")
    (sent,) = recorder
    log = [json.loads(line) for line in (tmp_path / "plain/out/log.jsonl").read_text().splitlines()]
    assert sent.lines == [(line.pop("step"), line) for line in log]
    assert sent.config["learning_rate"] == 0.01 and sent.ended


def test_a_resumed_run_goes_on_and_repeats_no_step(recorder, tiny_wan, clip_set, base, tmp_path, monkeypatch):
    """Killed after step 3, it starts again from the state of step 2."""
    sent = {"tracker": tracker(tmp_path)}
    killed_at_step(3, monkeypatch, "sft", tiny_wan, clip_set, base, tmp_path, **sent, **PREVIEW)
    assert run("sft", tiny_wan, clip_set, base, tmp_path, **sent, **PREVIEW).steps < 5
    first, second = recorder
    assert [step for step, _ in first.lines] == [1, 2, 3] and [step for step, _ in second.lines] == [4, 5]
    assert [step for step, _ in first.pictures + second.pictures] == [0, 2, 4, 5]
    assert second.config == {}  # the run is described once


def test_a_tracker_that_comes_later_is_sent_the_log_so_far(recorder, tiny_wan, clip_set, base, tmp_path, monkeypatch):
    killed_at_step(4, monkeypatch, "sft", tiny_wan, clip_set, base, tmp_path)
    run("sft", tiny_wan, clip_set, base, tmp_path, tracker=tracker(tmp_path))
    assert [step for step, _ in recorder[0].lines] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("broken", ["log", "log_images", "finish"])
def test_a_tracker_that_fails_does_not_end_the_training(
    broken, recorder, tiny_wan, clip_set, base, tmp_path, monkeypatch, caplog
):
    def fail(*_, **__):
        raise ConnectionError("no route to the tracker")

    monkeypatch.setattr(Recorder, broken, fail)
    run("sft", tiny_wan, clip_set, base, tmp_path / "plain", **PREVIEW)
    run("sft", tiny_wan, clip_set, base, tmp_path / "tracked", tracker=tracker(tmp_path), **PREVIEW)
    assert contents(tmp_path / "tracked" / "out") == contents(tmp_path / "plain" / "out")
    assert "no route to the tracker" in caplog.text


def test_only_the_first_process_sends(recorder, tiny_wan, clip_set, base, tmp_path, monkeypatch):
    generator = load_wan(tiny_wan, max_prompt_tokens=6, parts=("denoiser",))
    with monkeypatch.context() as patch:
        patch.setattr(frame.devices, "rank", lambda: 1)
        frame.begin("sft", generator, config("sft"), base, tmp_path, None, {}, {}, tracker(tmp_path))
    assert recorder == []


def test_an_online_run_sends_its_questions_and_the_held_out_checks(recorder, tiny_wan, base, tmp_path):
    held_out = {"held_out_every": 2, "checkpoint_every": 2, "updates": 2}
    scores = CurvePoint(0.5, 0.25)
    online.run(tiny_wan, base, tmp_path, check=lambda _: scores, tracker=tracker(tmp_path), **held_out)
    (sent,) = recorder
    assert sent.lines[0] == (0, {"held_out/training": 0.5, "held_out/held_out": 0.25})
    assert {"loss", "questions/red/red/p", "held_out/held_out"} <= sent.lines[-1][1].keys()


def test_numbers_are_found_within_mappings_and_nulls_and_text_left_out():
    line = {"loss": 1.5, "questions": {"a": {"p": None, "loss": 2}}, "stopped": "why"}
    assert numbers(line) == {"loss": 1.5, "questions/a/loss": 2}


# Real trackers, those that are installed


def tensorboard_points(folder: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    assert {one.step for one in events.Images("preview")} == {0, 2, 4, 5}
    return [one.step for one in events.Scalars("loss")]


def dvclive_points(folder: Path) -> list[int]:
    rows = (folder / "plots/metrics/loss.tsv").read_text().splitlines()
    assert len(list(folder.rglob("step-*.png"))) == 4
    return [int(row.split("\t")[rows[0].split("\t").index("step")]) for row in rows[1:]]


@pytest.mark.parametrize(("name", "points"), [("tensorboard", tensorboard_points), ("dvclive", dvclive_points)])
def test_a_tracker_on_this_disk_holds_every_step_once(name, points, tiny_wan, clip_set, base, tmp_path, monkeypatch):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(tmp_path)  # dvclive looks for a repository around it
    for _ in range(2):  # a second training of the policy replaces the first in its place
        home, sent = tmp_path / f"home-{_}", {"tracker": tracker(tmp_path, name)}
        killed_at_step(3, monkeypatch, "sft", tiny_wan, clip_set, base, home, **sent, **PREVIEW)
        run("sft", tiny_wan, clip_set, base, home, tracker=tracker(tmp_path, name), **PREVIEW)
        assert points(tmp_path / "logs" / name / "sft1") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("name", "resume"), [("wandb", ["allow", "allow"]), ("trackio", ["never", "allow"])])
def test_a_tracker_elsewhere_goes_on_in_the_same_run(name, resume, tiny_wan, clip_set, base, tmp_path, monkeypatch):
    for variable, value in {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")}.items():
        monkeypatch.setenv(variable, value)
    module = pytest.importorskip(name)
    begun, init = [], module.init
    monkeypatch.setattr(module, "init", lambda **options: begun.append(options) or init(**options))
    sent = {"tracker": tracker(tmp_path, name)}
    killed_at_step(3, monkeypatch, "sft", tiny_wan, clip_set, base, tmp_path, **sent, **PREVIEW)
    module.finish()
    run("sft", tiny_wan, clip_set, base, tmp_path, **sent, **PREVIEW)
    first, second = begun
    assert [one.pop("resume") for one in begun] == resume
    assert first == second and first["name"] == "sft1" and first["project"] == Path.cwd().name


# Previews


def test_previews_are_of_the_same_clips_and_change_nothing_that_is_trained(tiny_wan, clip_set, base, tmp_path):
    run("sft", tiny_wan, clip_set, base, tmp_path / "plain")
    run("sft", tiny_wan, clip_set, base, tmp_path / "drawn", **PREVIEW)
    plain, drawn = contents(tmp_path / "plain" / "out"), contents(tmp_path / "drawn" / "out")
    pictures = {name for name in drawn if name.startswith("previews/")}
    assert pictures == {f"previews/step-00000{step}.png" for step in (0, 2, 4, 5)}
    assert {name: drawn[name] for name in plain if name != "manifest.json"} == {
        name: plain[name] for name in plain if name != "manifest.json"
    }
    run("sft", tiny_wan, clip_set, base, tmp_path / "again", **PREVIEW)
    assert contents(tmp_path / "again" / "out") == drawn
    sheets = {step: np.asarray(Image.open(path)) for step, path in previews_in(tmp_path / "drawn" / "out").items()}
    assert sheets[0].shape == sheets[5].shape and (sheets[0] != sheets[5]).any()


def test_a_killed_run_ends_with_the_same_previews(tiny_wan, clip_set, base, tmp_path, monkeypatch):
    run("sft", tiny_wan, clip_set, base, tmp_path / "whole", **PREVIEW)
    killed_at_step(3, monkeypatch, "sft", tiny_wan, clip_set, base, tmp_path / "killed", **PREVIEW)
    run("sft", tiny_wan, clip_set, base, tmp_path / "killed", **PREVIEW)
    assert contents(tmp_path / "killed" / "out") == contents(tmp_path / "whole" / "out")


def test_drawing_uses_up_no_random_number_and_draws_a_clip_of_each_prompt(tiny_wan, clip_set, tmp_path):
    generator = load_wan(tiny_wan, max_prompt_tokens=6, parts=SAMPLING)
    previews = Previews(generator, [clip_set], PreviewConfig(**SHOWN))
    seeds, sample = [], generator.draw_noise
    generator.draw_noise = lambda own, shape: seeds.append(own) or sample(own, shape)
    before = torch.get_rng_state()
    previews.draw(tmp_path / "sheet.png")
    assert torch.equal(torch.get_rng_state(), before)
    assert seeds == [[clip_set.by_id["p0-0"].seed], [clip_set.by_id["p1-0"].seed]]  # of three prompts, evenly spread
    assert Image.open(tmp_path / "sheet.png").width > 0


def test_a_clip_that_is_not_finite_is_left_out_and_training_goes_on(tiny_wan, clip_set, tmp_path, caplog):
    generator = load_wan(tiny_wan, max_prompt_tokens=6, parts=SAMPLING)
    generator.sample = lambda told, *rest: torch.full((1, *generator.latent_shape), torch.nan)
    Previews(generator, [clip_set], PreviewConfig(**SHOWN)).draw(tmp_path / "sheet.png")
    assert caplog.text.count("left out: its latents are infinite or NaN") == 2
    assert not (tmp_path / "sheet.png").exists()


def test_a_preview_is_drawn_at_checkpoints_alone():
    with pytest.raises(ConfigError, match=r"preview.every must be a multiple of checkpoint_every \(2\), found 3"):
        config("sft", preview=SHOWN | {"every": 3})
