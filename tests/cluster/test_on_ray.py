"""Units of work on a Ray cluster of loopback nodes: what is done again, what stops, and who is refused."""

import os
import signal
import time
from functools import partial

import pytest

from cluster import on_ray
from cluster.pool import Unit, pool_of

pytestmark = pytest.mark.cluster


class Doubler:
    """Doubles numbers; does something else at its first sight of some of them."""

    def __init__(self, folder, seconds=0.0, trouble=None):
        self.folder, self.seconds, self.trouble = folder, seconds, trouble or {}

    def work(self, number):
        time.sleep(self.seconds)
        what, times = self.trouble.get(number, (None, 0))
        seen = self.folder / f"seen-{number}"
        before = len(seen.read_text()) if seen.exists() else 0
        if what and before < times:
            seen.write_text("x" * (before + 1))
            what()
        return 2 * number, os.environ["RAY_NODE"] if "RAY_NODE" in os.environ else node_of_this()


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


def units(count):
    return [Unit(number, f"clips {number}-0 to {number}-3", number) for number in range(count)]


@pytest.fixture
def ray_pool(loopback):
    pool = pool_of("ray", "auto", "cpu")
    yield pool
    pool.release()


def doubled(results):
    return {number: result[0] for number, result in results}


def test_every_unit_is_done_once_and_all_workers_take_part(ray_pool, tmp_path):
    results = list(ray_pool.run(partial(Doubler, tmp_path, 0.2), units(12)))

    assert sorted(number for number, _ in results) == list(range(12))
    assert all(result[0] == 2 * number for number, result in results)
    assert len({result[1] for _, result in results}) == 2
    assert ray_pool.status() == {"workers": 2, "lost": 0}


def test_workers_stay_for_the_next_run_of_the_same_make_alone(ray_pool, tmp_path, caplog):
    caplog.set_level("INFO")
    make = partial(Doubler, tmp_path)
    for _ in range(2):
        assert doubled(ray_pool.run(make, units(4))) == {0: 0, 1: 2, 2: 4, 3: 6}
    before = caplog.text.count("ready after")
    list(ray_pool.run(partial(Doubler, tmp_path), units(1)))
    assert before <= 2 and caplog.text.count("ready after") == before + 1


def test_the_unit_of_a_worker_that_dies_is_done_again(ray_pool, tmp_path, caplog):
    caplog.set_level("INFO")
    results = doubled(ray_pool.run(partial(Doubler, tmp_path, 0.05, {3: (die, 1)}), units(8)))

    assert results == {number: 2 * number for number in range(8)}
    assert ray_pool.status()["lost"] == 1
    assert "its worker is gone" in caplog.text and "clips 3-0 to 3-3 are done again" in caplog.text
    assert "1 units were lost with their workers and done again" in caplog.text


def test_a_killed_node_is_named_and_one_that_joins_is_used(ray_pool, loopback, tmp_path, caplog):
    found, nodes, killed = {}, [], ""
    for number, (result, node) in ray_pool.run(partial(Doubler, tmp_path, 0.7), units(24)):
        found[number] = result
        nodes.append(node)
        if len(found) == 3:
            killed = loopback.kill()
        if len(found) == 5:
            loopback.join()

    assert found == {number: 2 * number for number in range(24)}
    assert f"node {killed} " in caplog.text and "the node is gone" in caplog.text
    assert len(set(nodes)) == 3


def test_a_unit_that_costs_three_workers_is_named_after_all_others_are_done(ray_pool, tmp_path):
    found = {}
    with pytest.raises(on_ray.LostError, match=r"clips 1-0 to 1-3 cost 3 workers, on node 127\.0\.0\.") as raised:
        for number, (result, _) in ray_pool.run(partial(Doubler, tmp_path, 0, {1: (die, 99)}), units(5)):
            found[number] = result
    assert found == {0: 0, 2: 4, 3: 6, 4: 8}
    assert "all else is done and kept" in str(raised.value)


def test_an_error_of_ours_stops_at_once_as_it_is_and_anothers_comes_with_its_traceback(ray_pool, tmp_path):
    with pytest.raises(ValueError, match=r"^generate\.steps: found 0$") as raised:
        list(ray_pool.run(partial(Doubler, tmp_path, 0, {0: (refuse, 9)}), units(3)))
    assert "in refuse" in str(raised.value.__cause__)
    assert len((tmp_path / "seen-0").read_text()) == 1  # not done again
    with pytest.raises(on_ray.WorkerError, match="in complain"):
        list(ray_pool.run(partial(Doubler, tmp_path, 0, {1: (complain, 9)}), units(3)))


def test_workers_that_die_before_they_can_work_stop_the_run(ray_pool):
    with pytest.raises(on_ray.LostError, match="3 workers were lost one after the other before any could work"):
        list(ray_pool.run(die, units(3)))


def test_an_idle_worker_does_the_unit_of_a_straggler_too(ray_pool, tmp_path, caplog):
    began = time.monotonic()
    make = partial(Doubler, tmp_path, 0.1, {2: (partial(time.sleep, 100), 1)})
    assert doubled(ray_pool.run(make, units(10))) == {number: 2 * number for number in range(10)}
    assert time.monotonic() - began < 50
    assert "clips 2-0 to 2-3 take long; an idle worker does them too" in caplog.text


def test_a_node_with_other_code_or_versions_is_refused_by_its_name(loopback, tmp_path, monkeypatch):
    for name, value, message in (
        ("code_hash", lambda: "0123456789abcdef", r"node 127\.0\.0\.\d+ \(.*has other code .* here 0123456789abcdef"),
        ("versions", lambda: {"torch": "1.0"}, r"node 127\.0\.0\.\d+ \(.*has other versions .*torch .*\(was 1\.0\)"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(on_ray, name, value)
            pool = pool_of("ray", "1", "cpu")
        with pytest.raises(on_ray.RefusedError, match=message):
            list(pool.run(partial(Doubler, tmp_path), units(1)))
        pool.release()


def test_a_warning_of_a_worker_and_another_device_are_said_here(ray_pool, tmp_path, caplog):
    ray_pool._devices.append({"type": "cuda", "name": "H200", "threads": 1})
    list(ray_pool.run(partial(Doubler, tmp_path), units(1)))
    assert "computes on {'type': 'cpu'" in caplog.text and "equal within float tolerance only" in caplog.text


def test_without_a_token_nothing_starts(monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(ValueError, match=r"RAY_AUTH_MODE is not token.*ray get-auth-token --generate"):
        pool_of("ray")
