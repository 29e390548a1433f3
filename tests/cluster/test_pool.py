"""The default engine: one worker in this process."""

import subprocess
import sys
import weakref

import pytest

from cluster.pool import Here, Unit, pool_of
from tests.support.refusals import assert_refused


class Adder:
    def work(self, number: int) -> int:
        return number + 1


def test_units_are_done_in_their_order_by_a_worker_that_is_made_when_it_is_needed():
    made = []

    def make():
        made.append(Adder())
        return made[-1]

    pool = Here()
    assert list(pool.run(make, [])) == [] and not made
    units = [Unit(number, f"clip {number}", 10 * number) for number in (2, 0, 1)]
    assert list(pool.run(make, units)) == [(2, 21), (0, 1), (1, 11)]
    assert list(pool.run(make, units[:1])) == [(2, 21)] and len(made) == 1


def test_a_worker_is_let_go_of_before_another_is_made():
    pool, seen = Here(), []

    def make():
        assert not seen or seen[-1]() is None
        worker = Adder()
        seen.append(weakref.ref(worker))
        return worker

    for another in (make, lambda: make()):
        list(pool.run(another, [Unit(0, "", 1)]))
    pool.release()
    assert [one() for one in seen] == [None, None]


def test_unknown_engines_and_numbers_of_workers_are_refused():
    cases = [
        (("slurm",), "engine 'slurm' is unknown; known: here, ray"),
        (("here", "0"), "workers: '0' is neither auto nor a number above 0"),
        (("ray", "many"), "workers: 'many' is neither"),
    ]
    assert_refused(lambda arguments: pool_of(*arguments), cases)


def test_the_default_engine_imports_no_ray():
    code = "import sys; from cluster.pool import pool_of; pool_of('here'); assert 'ray' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("stage", ["generate", "label", "audit"])
def test_stages_take_engine_and_workers_from_the_environment(stage):
    import importlib

    options = {one.name: one.envvar for one in importlib.import_module(f"stages.{stage}").main.params}
    assert options["engine"] == "STAGE_ENGINE" and options["workers"] == "STAGE_WORKERS"
