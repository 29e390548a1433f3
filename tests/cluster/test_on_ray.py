"""Units of work on a Ray cluster of loopback nodes: what is done again, what stops, and who is refused."""

import os
import re
import signal
import time
from functools import partial

import pytest

from cluster import on_ray
from cluster.pool import Unit, pool_of
from commands.doctor import machine
from tests.support.ray_cluster import GONE

pytestmark = pytest.mark.cluster


class Doubler:
    """Doubles numbers; does something else when it first sees a unit that has trouble."""

    def work(self, data):
        number, seconds, folder, what, times = data
        time.sleep(seconds)
        seen = folder / f"seen-{number}"
        before = len(seen.read_text()) if seen.exists() else 0
        if what and before < times:
            seen.write_text("x" * (before + 1))
            what()
        return 2 * number, node_of_this()


MAKE = Doubler  # one for all tests, so that its workers stay


def node_of_this():
    import ray

    return ray.get_runtime_context().get_node_id()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def refuse():
    raise ValueError("generate.steps: found 0")


def complain():
    import json

    json.loads("{")


@pytest.fixture
def units(tmp_path):
    def made(count, seconds=0.0, trouble=None):
        """trouble: what to do, and how often, by unit."""
        each = {number: (number, seconds, tmp_path, *(trouble or {}).get(number, (None, 0))) for number in range(count)}
        return [Unit(number, f"clips {number}-0 to {number}-3", data) for number, data in each.items()]

    return made


@pytest.fixture(scope="module")
def _pool(_cluster):
    _cluster.settle(2)
    pool = pool_of("ray", "auto", "cpu")
    yield pool
    pool.release()


@pytest.fixture
def ray_pool(loopback, _pool):
    _pool._lost = 0
    return _pool


def doubled(results):
    return {number: result[0] for number, result in results}


def test_every_unit_is_done_once_and_all_workers_take_part(ray_pool, units):
    results = list(ray_pool.run(MAKE, units(12, 0.2)))

    assert sorted(number for number, _ in results) == list(range(12))
    assert all(result[0] == 2 * number for number, result in results)
    assert len({result[1] for _, result in results}) == 2
    assert ray_pool.status() == {"workers": 2, "lost": 0}


def test_workers_stay_for_the_next_run(ray_pool, units, caplog):
    caplog.set_level("INFO")
    list(ray_pool.run(MAKE, units(2)))
    caplog.clear()
    assert doubled(ray_pool.run(MAKE, units(4))) == {0: 0, 1: 2, 2: 4, 3: 6}
    assert "ready after" not in caplog.text


def test_an_error_of_ours_stops_at_once_as_it_is_and_anothers_comes_with_its_traceback(ray_pool, units, tmp_path):
    with pytest.raises(ValueError, match=r"^generate\.steps: found 0$") as raised:
        list(ray_pool.run(MAKE, units(3, 0, {0: (refuse, 9)})))
    assert "in refuse" in str(raised.value.__cause__)
    assert len((tmp_path / "seen-0").read_text()) == 1  # not done again
    with pytest.raises(on_ray.WorkerError, match="in complain"):
        list(ray_pool.run(MAKE, units(3, 0, {1: (complain, 9)})))


def test_the_unit_of_a_worker_that_dies_is_done_again(ray_pool, units, caplog):
    caplog.set_level("INFO")
    results = doubled(ray_pool.run(MAKE, units(8, 0.05, {3: (die, 1)})))

    assert results == {number: 2 * number for number in range(8)}
    assert ray_pool.status()["lost"] == 1
    assert "its worker is gone" in caplog.text and "clips 3-0 to 3-3 are done again" in caplog.text
    assert "units that were lost with their workers and done again: 1" in caplog.text


def test_a_killed_node_is_named_and_one_that_joins_is_used(ray_pool, loopback, units, caplog):
    while ray_pool.status()["workers"] < 2:  # a worker that has not begun is named by no node
        list(ray_pool.run(MAKE, units(4, 0.2)))
    found, nodes, killed = {}, [], ""
    for number, (result, node) in ray_pool.run(MAKE, units(24, 0.7)):
        found[number] = result
        nodes.append(node)
        if len(found) == 3:
            killed = loopback.kill()
        if len(found) == 5:
            loopback.join()

    assert found == {number: 2 * number for number in range(24)}
    assert f"node {killed} " in caplog.text and re.search(GONE, caplog.text)
    assert len(set(nodes)) == 3


def test_an_idle_worker_does_the_unit_of_a_straggler_too(ray_pool, units, caplog):
    began = time.monotonic()
    trouble = {2: (partial(time.sleep, 100), 1)}
    assert doubled(ray_pool.run(MAKE, units(10, 0.1, trouble))) == {number: 2 * number for number in range(10)}
    assert time.monotonic() - began < 50
    assert "clips 2-0 to 2-3 take long; an idle worker does them too" in caplog.text


def test_a_unit_that_costs_three_workers_is_named_after_all_others_are_done(ray_pool, units):
    found = {}
    with pytest.raises(on_ray.LostError, match=r"clips 1-0 to 1-3 cost 3 workers, on node 127\.0\.0\.") as raised:
        for number, (result, _) in ray_pool.run(MAKE, units(5, 0, {1: (die, 99)})):
            found[number] = result
    assert found == {0: 0, 2: 4, 3: 6, 4: 8}
    assert "all else is done and kept" in str(raised.value)


def test_a_node_with_other_code_versions_or_without_tokens_is_refused_by_its_name(ray_pool, units, monkeypatch, caplog):
    """The workers are those of the tests before; another device is warned of."""
    ray_pool.release()
    for changes, message in (
        ({"code": "0123456789abcdef"}, r"node 127\.0\.0\.\d+ \(.*has other code .* here 0123456789abcdef"),
        ({"versions": {"torch": "1.0"}}, r"node 127\.0\.0\.\d+ \(.*has other versions .*torch .*\(was 1\.0\)"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(ray_pool, "_ours", ray_pool._ours._replace(**changes))
            with pytest.raises(on_ray.RefusedError, match=message):
                list(ray_pool.run(MAKE, units(1)))
        ray_pool.release()
    without = on_ray.Facts("a", ray_pool._ours.code, {}, token=False)
    assert "was started without RAY_AUTH_MODE=token" in ray_pool._ours.problem_of(without)
    ray_pool._devices[:] = [{"type": "cuda", "name": "H200", "threads": 1}]
    list(ray_pool.run(MAKE, units(1)))
    assert "computes on {'type': 'cpu'" in caplog.text and "equal within float tolerance only" in caplog.text


def test_workers_that_die_before_they_can_work_stop_the_run(ray_pool, units):
    with pytest.raises(on_ray.LostError, match="3 workers were lost one after the other before any could work"):
        list(ray_pool.run(die, units(3)))


def test_doctor_says_what_each_node_has_and_why_it_would_be_refused(loopback, monkeypatch):
    monkeypatch.setattr(on_ray, "code_hash", lambda: "0123456789abcdef")
    token, here, *nodes = machine.cluster()
    assert token.what == "token" and here.what == "versions" and "ray 2.60." in here.detail
    assert sorted(one.detail.partition(";")[0] for one in nodes) == ["1 CPU", "1 CPU", "for no work"]  # of the head
    assert all(one.state == machine.BROKEN and "has other code in" in one.detail for one in nodes)


def test_without_a_token_nothing_starts(monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(ValueError, match=r"RAY_AUTH_MODE is not token.*ray get-auth-token --generate"):
        pool_of("ray")


def test_an_address_where_no_cluster_answers_is_refused_at_once(loopback, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.2:9")
    with pytest.raises(ValueError, match=r"no cluster answers at RAY_ADDRESS=127\.0\.0\.2:9"):
        pool_of("ray")
