"""What `vfrl doctor` reports of a machine and of a params.yaml."""

import contextlib
import json
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from cluster.on_ray import Node
from commands.doctor import main
from commands.doctor.generator import find_generator
from commands.doctor.machine import BROKEN, NOTE, OK, cluster, codecs, ledger, libraries, repository, verdicts
from commands.doctor.usable import (
    PATIENCE,
    check_sources,
    keeps_answers,
    key_variables,
    labellings,
    read_sources,
)
from commands.rate.server import Ratings, gather
from feedback.core.kinds import make_source
from feedback.core.label import label_clip_set
from feedback.core.rubric import load_rubric
from feedback.core.verdicts import Origin, VerdictFile
from feedback.network.ledger import Ledger
from generators.core.size import VideoSize
from pipeline.check import check_params
from pipeline.configs import GeneratorConfig
from pipeline.state import StateError
from tests.support.defaults import default_params
from tests.support.network import make_clips

ROOT = Path(__file__).parents[2]
PARAMS = default_params()
BLOCKS = PARAMS["feedback"]["sources"]
SHEET = str(ROOT / "feedback/rubrics/review.yaml")
SECRET = "sk-of-the-test-alone"


def found(blocks: dict, needed: set[str] = frozenset(), prompts: tuple[str, ...] = ()) -> dict[str, tuple[str, str]]:
    """State and detail by source."""
    findings = check_sources(read_sources(blocks), needed, prompts)
    return {name: (one.state, one.detail) for name, one in zip(blocks, findings, strict=True)}


# Sources


def test_the_shipped_sources_here_without_keys(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("OPENAI_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    blocks = {name: BLOCKS[name] for name in ("judge", "physics", "gpt", "gemini", "people", "panel")}
    states = found(blocks, {"judge", "physics", "gpt"}, ("lifting red ball up",))

    assert {name: state for name, (state, _) in states.items()} == {
        "judge": OK, "physics": OK, "gpt": BROKEN, "gemini": NOTE, "people": OK, "panel": OK,
    }  # fmt: skip
    assert "OPENAI_API_KEY is not set" in states["gpt"][1]


def test_a_key_makes_a_source_usable_and_is_not_printed(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    state, detail = found({"gpt": BLOCKS["gpt"] | {"rubric": SHEET}})["gpt"]

    assert state == OK
    assert SECRET not in detail
    monkeypatch.setenv("OPENAI_API_KEY", f"{SECRET} and a space")
    state, detail = found({"gpt": BLOCKS["gpt"] | {"rubric": SHEET}})["gpt"]
    assert (state, SECRET in detail) == (NOTE, False)


def test_why_a_source_is_not_usable(monkeypatch):
    monkeypatch.chdir(ROOT)
    for block, reason in (
        (BLOCKS["judge"] | {"path": "/no/such/judge"}, "/no/such/judge is neither a folder nor a hub id"),
        (BLOCKS["judge"] | {"rubric": "none.yaml"}, "none.yaml: not read: No such file"),
        (BLOCKS["judge"] | {"colour": 1}, "feedback.sources.one.colour (1) is unknown"),
        ({"kind": "oracle"}, "feedback.sources.one.kind is 'oracle'"),
        (None, "feedback.sources.one.kind is missing"),
        (BLOCKS["physics"], "physics knows the tabletop world alone, and not 1 of"),
        (BLOCKS["panel"] | {"members": {"a": BLOCKS["physics"], "b": BLOCKS["gpt"]}}, "a: physics knows"),
    ):
        for needed, expected in (({"one"}, BROKEN), (set(), NOTE)):
            state, detail = found({"one": block}, needed, ("a horse on the moon",))["one"]
            assert (state, reason in detail) == (expected, True), (reason, detail)


def test_a_model_folder_without_weights_is_no_judge(tmp_path):
    block = BLOCKS["judge"] | {"path": str(tmp_path), "rubric": SHEET}
    detail = found({"one": block}, {"one"})["one"][1]

    assert "no config.json in this folder" in detail
    assert "no weights (*.safetensors)" in detail


def test_a_hub_id_that_is_not_in_the_cache_is_a_note_even_where_it_is_needed():
    block = BLOCKS["judge"] | {"path": "nobody/no-such-judge", "rubric": SHEET}
    state, detail = found({"one": block}, {"one"})["one"]

    assert state == NOTE
    assert "downloaded at first use" in detail


class Wants(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401 if self.path == "/v1/models" else 500)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def server():
    with HTTPServer(("127.0.0.1", 0), Wants) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/v1"
        running.shutdown()


@contextlib.contextmanager
def silence():
    """The address of a server that accepts calls and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        yield f"http://127.0.0.1:{mute.getsockname()[1]}/v1"


def test_servers_are_called_side_by_side_and_not_waited_for(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing listens there, and no proxy is wanted here
    monkeypatch.delenv("no_proxy", raising=False)
    with server() as answers, silence() as mute:
        at = {"here": answers, "mute": mute, "mute2": mute, "mute3": mute, "odd": "nonsense"}
        blocks = {name: BLOCKS["served"] | {"base_url": url, "rubric": SHEET} for name, url in at.items()}
        started = time.monotonic()
        states = found(blocks)
        took = time.monotonic() - started

    assert {name: state for name, (state, _) in states.items()} == dict.fromkeys(at, NOTE) | {"here": OK}
    assert "does not answer within 2 s (timed out)" in states["mute"][1]
    assert took < 2 * PATIENCE  # of three that each take PATIENCE


def test_a_proxy_before_a_server_is_named(monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing listens there
    ((state, detail),) = found({"j": BLOCKS["served"] | {"base_url": "http://gpu7/v1", "rubric": SHEET}}).values()
    assert state == NOTE
    assert "through the proxy 127.0.0.1:9 of the environment, which NO_PROXY=gpu7 bypasses" in detail


def test_which_keys_and_whether_the_ledger_is_wanted():
    inner = BLOCKS["gemini"] | {"key_variable": "OTHER_KEY"}
    panel = {"kind": "panel", "rule": "all", "members": {"a": inner, "b": BLOCKS["physics"]}}

    sources = read_sources(BLOCKS | {"both": panel})

    assert key_variables(sources) == ["OPENAI_API_KEY", "GEMINI_API_KEY", "OTHER_KEY"]
    keeping = {source.name for source in sources if keeps_answers(source)}
    assert keeping == {"gpt", "gemini", "served", "people", "both"}


def test_people_are_counted_on_the_sets_that_they_label(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEEDBACK_LEDGER", str(tmp_path / "ledger.sqlite"))
    people = BLOCKS["people"] | {"rubric": str(ROOT / BLOCKS["people"]["rubric"])}
    members = {"people": people | {"unrated": "leave_out"}, "physics": BLOCKS["physics"]}
    blocks = {
        "people": people | {"unrated": "error"}, "some": members["people"],
        "both": BLOCKS["panel"] | {"members": members},
    }  # fmt: skip
    params = PARAMS | {"comparison": {"rounds": ["r1"], "sources": ["some", "both"], "policies": {}}}
    params = params | {"feedback": {"source": "people"}, "rounds": {"r1": {"policy": "base"}}}

    def states() -> list[tuple[str, str]]:
        findings = check_sources(read_sources(blocks), set(blocks), (), labellings(params))
        return [(one.state, one.detail) for one in findings]

    missing = "runs/r1/samples is not made yet, so no clip can be rated"
    assert states() == [(NOTE, missing)] * 3
    clips = make_clips(tmp_path / "runs/r1/samples", 3)
    none = "0 of 3 clips of runs/r1/samples rated by me: "
    assert states() == [
        (BROKEN, f"{none}rate all, or set unrated: leave_out"), (BROKEN, f"{none}rate some"),
        (BROKEN, f"{none}rate some"),
    ]  # fmt: skip
    items = gather([clips.folder], load_rubric(Path(people["rubric"])), "me", None, 0)
    Ratings(items, tmp_path / "ledger.sqlite").rate(items[0].rateable.key, "a", None)
    one = "1 of 3 clips of runs/r1/samples rated by me"
    assert states() == [
        (BROKEN, f"{one}: rate all, or set unrated: leave_out"), (OK, f"human, {one}"), (OK, f"panel, {one}")
    ]  # fmt: skip
    source = make_source("some", blocks["some"])
    label_clip_set(clips, source, tmp_path / "work", Path("runs/r1/labels/people"), 4)
    assert states()[0] == (OK, f"human, {one}, and labelled")


def test_a_generator_is_looked_into_by_its_small_files(tmp_path):
    config, video = GeneratorConfig(**PARAMS["generator"]), VideoSize(**PARAMS["video"])
    shipped = ROOT / "models/tabletop/generator"
    newer = shutil.copytree(shipped, tmp_path / "newer") / "model_index.json"
    newer.write_text(json.dumps(json.loads(newer.read_text()) | {"expand_timesteps": True}))
    for change, size, state, detail in (
        ({"path": str(shipped)}, {}, OK, f"wan, {shipped}, WanPipeline, 10.2 MB, float32"),
        (
            {"path": str(newer.parent)},
            {},
            BROKEN,
            "is a WanPipeline with expand_timesteps and patches",
        ),
        ({"path": "./models/none"}, {}, BROKEN, "generator.path: './models/none' is no folder, and no hub id"),
        (
            {"path": "nobody/none"},
            {},
            BROKEN,
            "generator.path: nobody/none is no local folder, and could not be looked up",
        ),
        ({"path": str(shipped)}, {"num_frames": 16}, BROKEN, "video.num_frames: 16 cannot be represented; it must be"),
        ({"family": "data.doors"}, {}, BROKEN, "generator.family is 'data.doors'"),
    ):
        found = find_generator(replace(config, **change), replace(video, **size))
        assert (found.state, found.what, detail in found.detail) == (state, "generator", True), found


# The machine


def test_libx264_writes_and_reads_a_clip():
    assert [one.state for one in codecs()] == [OK, OK]


def test_a_library_of_another_version_is_a_note_and_a_missing_one_is_broken(tmp_path, monkeypatch):
    (tmp_path / "constraints.txt").write_text("torch==0.1\n")
    monkeypatch.setattr("commands.doctor.machine.LIBRARIES", ("torch", "pyarrow", "no-such-library"))
    states = {one.what: one for one in libraries(tmp_path / "constraints.txt")}

    assert [states[name].state for name in ("torch", "pyarrow", "no-such-library")] == [NOTE, OK, BROKEN]
    assert states["torch"].detail.endswith("; tested with 0.1")


def test_a_ledger_is_counted_and_one_that_cannot_be_used_is_broken_only_where_it_is_needed(tmp_path):
    path = tmp_path / "ledger.sqlite"
    assert ledger(path, True).detail.endswith("none yet; it is made at the first call to a judge")
    assert not path.exists()
    with Ledger(path) as open_:
        open_.write("key", {"sent": 1}, "yes")
    assert ledger(path, True) == (OK, "ledger", f"{path}: 1 answers, writable")
    other = tmp_path / "other.sqlite"
    with contextlib.closing(sqlite3.connect(other)) as strange:
        strange.execute("CREATE TABLE cats (name TEXT)")
    assert [ledger(other, needed).state for needed in (True, False)] == [BROKEN, NOTE]
    assert "no such table: answers" in ledger(other, True).detail


def test_verdicts_of_this_machine_are_counted_and_never_broken(tmp_path):
    path = tmp_path / "verdicts.sqlite"
    assert verdicts(None).state == NOTE
    assert verdicts(path) == (OK, "verdicts", f"{path}: none yet; it is made when a judge of this machine is loaded")
    with VerdictFile(path) as file:
        file.keep(Origin("1", "judge", "qwen", "m", None, "r"), {"a": "[]"})
    assert verdicts(path) == (OK, "verdicts", f"{path}: 1 clips, writable")
    path.write_text("Dear diary, " * 100)
    assert verdicts(path).state == NOTE and "file is not a database" in verdicts(path).detail


def test_a_ledger_and_verdicts_on_a_network_file_system_are_named(tmp_path, monkeypatch):
    (tmp_path / "mounts").write_text(f"server:/export {tmp_path} nfs4 rw 0 0\n")
    monkeypatch.setattr("feedback.core.database.MOUNTS", tmp_path / "mounts")
    of_answers, of_verdicts = ledger(tmp_path / "ledger.sqlite", True), verdicts(tmp_path / "verdicts.sqlite")
    assert (of_answers.state, of_verdicts.state) == (BROKEN, NOTE)
    assert f"(nfs4, mounted at {tmp_path}); name a file of this machine in FEEDBACK_LEDGER" in of_answers.detail
    assert "FEEDBACK_VERDICTS" in of_verdicts.detail


def test_the_nodes_of_a_cluster_are_listed_with_accelerators_versions_and_what_is_wrong(monkeypatch):
    nodes = [
        Node("10.0.0.2", {"CPU": 8.0}, (), None),
        Node("10.0.0.3", {"CPU": 64.0, "GPU": 8.0}, ("H200",), None),
        Node("10.0.0.4", {}, (), "has other versions than this process: torch 2.14, here 2.15"),
    ]
    monkeypatch.setattr("cluster.on_ray.survey", lambda: nodes)
    monkeypatch.setattr(
        "cluster.nodes.compared_versions", lambda: {"python": "3.11.7", "torch": "2.15.0", "peft": None}
    )
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"ray": "2.60.0"}[name])
    found = {one.what: (one.state, one.detail) for one in cluster()}
    assert found == {
        "token": (OK, "asked for on this node"),
        "versions": (OK, "here python 3.11.7, torch 2.15.0, ray 2.60.0"),
        "node 10.0.0.2": (OK, "8 CPU; code and versions as here"),
        "node 10.0.0.3": (OK, "64 CPU, 8 GPU (H200); code and versions as here"),
        "node 10.0.0.4": (BROKEN, "for no work; has other versions than this process: torch 2.14, here 2.15"),
    }


def test_a_cluster_that_cannot_be_asked_is_broken_and_says_why(monkeypatch):
    def refuse():
        raise ValueError("engine ray: RAY_AUTH_MODE is not token")

    monkeypatch.setattr("cluster.on_ray.survey", refuse)
    assert list(cluster()) == [(BROKEN, "cluster", "engine ray: RAY_AUTH_MODE is not token")]


def test_the_state_of_a_repository(tmp_path):
    states = {one.what: one for one in repository(tmp_path)}
    assert (states["git"].state, states["dvc"].state) == (NOTE, BROKEN)

    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q", "-b", "main"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    (tmp_path / ".dvc").mkdir()
    outs = {"base": ["runs/policies/base", "runs/inputs"], "train@rwr1": ["runs/policies/rwr1"]}
    stages = {name: {"cmd": "a", "outs": [{"path": path} for path in paths]} for name, paths in outs.items()}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    (tmp_path / "runs/policies/rwr1").mkdir(parents=True)
    (tmp_path / ".state/label-runs-r1/abc").mkdir(parents=True)
    states = {one.what: one for one in repository(tmp_path)}
    assert states["git"].detail.startswith("main at ")
    assert states["git"].detail.endswith(", files that differ from it: 1")  # dvc.lock; git knows no empty folders
    assert states["dvc"].detail.startswith("2 stages recorded in dvc.lock, 1 of them with their results here")
    assert states["unfinished"].detail.startswith("label-runs-r1: ")


def test_outputs_behind_a_link_are_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    finished = tmp_path / "runs/r1/samples"
    finished.mkdir(parents=True)
    (finished / "manifest.json").write_text("{}")
    (finished / "videos").symlink_to(tmp_path / "disk")  # DVC's own links to its cache are files; both are read through
    monkeypatch.chdir(tmp_path)
    assert not [one for one in repository(tmp_path) if one.what == "outputs"]

    for name in ("runs/policies", "runs/r1/labels", "metrics", "report-out"):
        link = tmp_path / name
        link.symlink_to(tmp_path / "disk")
        (finding,) = (one for one in repository(tmp_path) if one.what == "outputs")
        assert finding.state == BROKEN
        assert f"{name} is a symbolic link to" in finding.detail and "clone the repository there" in finding.detail
        with pytest.raises(StateError, match=f"{name} is a symbolic link"):  # also in `vfrl check` and stage base
            check_params()
        link.unlink()


# The command


@pytest.fixture
def doctor(tmp_path, monkeypatch):
    """Runs the command in a folder with our files and this text as params.yaml, in an environment with these keys."""
    for name in ("configs", "data", "feedback", "models", "tabletop"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)

    def run(text: str, **keys: str) -> Result:
        (tmp_path / "params.yaml").write_text(text)
        unset = dict.fromkeys(("OPENAI_API_KEY", "GEMINI_API_KEY", "HF_TOKEN"))
        return CliRunner().invoke(main, env=unset | {"FEEDBACK_LEDGER": str(tmp_path / "ledger.sqlite")} | keys)

    return run


def test_the_default_params_are_ready_and_no_key_is_printed(doctor):
    done = doctor(yaml.safe_dump(PARAMS), OPENAI_API_KEY=SECRET)

    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == "Ready: nothing that params.yaml needs is broken here."
    assert SECRET not in done.output
    lines = {line.split()[1]: line.split() for line in done.output.splitlines() if line.startswith("  ")}
    assert lines["OPENAI_API_KEY"] == ["ok", "OPENAI_API_KEY", "set"]
    assert lines["GEMINI_API_KEY"] == ["–", "GEMINI_API_KEY", "not", "set"]
    assert lines["device"][0] == lines["generator"][0] == "ok"


def test_what_the_params_need_and_is_missing_ends_with_1_and_its_names(doctor):
    params = PARAMS | {"feedback": PARAMS["feedback"] | {"source": "gemini"}}
    done = doctor(yaml.safe_dump(params | {"generator": PARAMS["generator"] | {"path": "models/tabletop/none"}}))

    assert done.exit_code == 1
    assert done.output.splitlines()[-1] == "Not ready: gemini (in use), generator."


def test_a_params_file_that_cannot_be_read_does_not_hide_the_machine(doctor):
    done = doctor("rounds: [")

    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert "not readable: params.yaml: not readable" in done.output
    assert done.output.splitlines()[-1] == "Not ready: params."
    assert "device" in done.output
