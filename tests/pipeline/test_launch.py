"""How a stage that trains gets its processes, and what must not leave this machine with them."""

import importlib
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.pool import HERE, RAY
from generators.core.size import VideoSize
from pipeline import online
from pipeline.configs import CheckConfig, GeneratorConfig
from pipeline.launch import Launch
from pipeline.recipes import load_recipe
from pipeline.train import TrainJob
from rl.objectives import get_objective
from rl.training.config import configure
from tests.support.defaults import default_params

PARAMS = default_params()
SIZE = VideoSize(**PARAMS["video"])
MODEL = GeneratorConfig(**PARAMS["generator"])
CHECK = CheckConfig(**PARAMS["online"]["check"])


@pytest.mark.parametrize("stage", ["train", "online"])
def test_stages_that_train_take_engine_and_processes_from_the_environment(stage):
    options = {one.name: one.envvar for one in importlib.import_module(f"stages.{stage}").main.params}
    assert options["engine"] == "STAGE_ENGINE" and options["processes"] == "STAGE_PROCESSES"
    assert "workers" not in options


def test_what_cannot_be_launched_is_refused_before_the_stage_begins(monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    for launch, message in (
        (Launch("slurm", "auto", "cpu"), "engine 'slurm' is unknown; known: here, ray"),
        (
            Launch(HERE, "1-2", "cpu"),
            "processes: '1-2' is neither auto nor a number above 0; engine ray",
        ),
        (Launch(RAY, "2", "cpu"), "engine ray: RAY_AUTH_MODE is not token"),
    ):
        with pytest.raises(ValueError, match=message):
            launch.begin()


def test_here_a_body_is_called_in_this_process(tmp_path):
    assert Launch(HERE, "1", "cpu").run(lambda *given: given, "job", tmp_path) == ("job", tmp_path, "cpu")


def held_out(name: str = "judge", writer: str = "rubric", **engine) -> online.Job:
    """An online job of the default params. writer: of questions. engine: changes of the recipe's."""
    recipe = load_recipe("ask-a-video", {})
    assert recipe.questions is not None
    recipe = recipe._replace(
        questions=replace(recipe.questions, writer=writer), engine=replace(recipe.engine, **engine)
    )
    sources = PARAMS["feedback"]["sources"]
    return online.Job(recipe, [], None, None, None, "judge", name, sources, CHECK, SIZE)


def test_what_travels_to_other_machines_comes_back_as_it_was(tmp_path):
    objective = get_objective("rwr")
    config = configure(objective, PARAMS["train"]["common"])
    folder = Path("runs")
    job = TrainJob("rwr", MODEL, SIZE, config, folder, folder, folder, folder, None, None)
    given = online.OnlineTraining(held_out(), MODEL, folder, folder, "tensorboard")
    for one in (job, given):
        assert pickle.loads(pickle.dumps(one)) == one


def test_a_held_out_judge_over_the_network_is_refused_on_other_machines():
    with pytest.raises(ValueError, match="held_out: gpt is asked over the network, and keys stay on this machine"):
        online.for_other_machines(held_out("gpt", checkpoint_every=2, held_out_every=2))
    unchecked = held_out("gpt", held_out_every=None)
    assert online.for_other_machines(unchecked) is unchecked


def test_questions_that_a_model_over_the_network_writes_are_written_on_this_machine(monkeypatch):
    asked = {"p0": ()}
    monkeypatch.setattr(online, "written_asks", lambda *_: asked)
    assert online.for_other_machines(held_out(writer="served")).asks is asked
    for writer in ("rubric", "template", "judge"):
        assert online.for_other_machines(held_out(writer=writer)).asks is None
