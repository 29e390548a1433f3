"""People's ratings: the page that collects them, over real HTTP, and the source that reads them."""

import contextlib
import dataclasses
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from playwright.sync_api import Browser, Page, expect

import stages.label
from commands.rate import main
from commands.rate import server as rating
from commands.rate.server import Ratings, RatingServer, gather, people
from data.labels import read_labels, read_verdicts
from data.manifest import StoreError, read_manifest
from data.records import Sample
from data.store import ClipSet, ClipSetWriter, encode_clips
from feedback.core.audit import rated
from feedback.core.kinds import make_source
from feedback.core.label import LabelCounts, label_clip_set, requests_for
from feedback.core.rubric import Question, Rubric, load_rubric
from feedback.core.source import LabelError
from feedback.judges.human import Rateable
from feedback.judges.panel import PanelSource
from feedback.network.ledger import VARIABLE, Ledger
from rl.datasets import build
from tests.conftest import hear_ctrl_c
from tests.feedback.judges.test_panel import steady
from tests.support.browser import wait_until
from tests.support.conditions import blank_conditions
from tests.support.first_frames import TOLD, shows_first_frame, with_first_frames

ROOT = Path(__file__).parents[3]
RUBRIC = ROOT / "feedback" / "rubrics" / "people.yaml"
PROMPTS, SEEDS = 3, 2
CLIPS = PROMPTS * SEEDS


def make_clips(folder: Path, policy: str = "rwr1", shade: int = 0) -> ClipSet:
    """Two clips of each of three prompts. All differ in brightness, which rises from frame to frame."""
    names = [f"eval-{policy}-p{prompt}-{seed:03d}" for prompt in range(PROMPTS) for seed in range(SEEDS)]
    samples = [
        Sample(
            name, f"p{i // SEEDS}", f"pushing ball {i // SEEDS} off the table", "falling", "test", policy, i % SEEDS,
            3, 8.0, 32, 32, f"videos/{name}.mp4",
        )
        for i, name in enumerate(names)
    ]  # fmt: skip
    shades = shade + 10 * np.arange(CLIPS)[:, None] + 3 * np.arange(3)
    frames = np.broadcast_to(shades[..., None, None, None], (CLIPS, 3, 32, 32, 3)).astype(np.uint8)
    writer = ClipSetWriter(folder)
    writer.add_batch(0, samples, encode_clips(samples, frames), torch.zeros(CLIPS, 4, 3, 4, 4))
    writer.finish(blank_conditions(f"p{prompt}" for prompt in range(PROMPTS)), {})
    return ClipSet.open(folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> ClipSet:
    return make_clips(tmp_path_factory.mktemp("set") / "samples")


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> ClipSet:
    """Other clips of the same prompts by another policy."""
    return make_clips(tmp_path_factory.mktemp("set") / "samples", "base", shade=100)


@pytest.fixture(autouse=True)
def ledger(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "ledger.sqlite"))
    return tmp_path / "ledger.sqlite"


def block(*raters: str) -> dict[str, Any]:
    return {"kind": "human", "rubric": str(RUBRIC), "raters": list(raters)}


def ratings_of(
    ledger: Path, *sets: ClipSet, rater: str = "anna", per_prompt: int | None = None, seed: int = 0
) -> Ratings:
    return Ratings(gather([one.folder for one in sets], load_rubric(RUBRIC), rater, per_prompt, seed), ledger)


class Visitor:
    """Sends requests to a rating server with a browser's headers, unless others are given."""

    def __init__(self, url: str) -> None:
        self.host = urlsplit(url).netloc
        self.seen = b""  # all replies

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, timeout=30)
        own = {"Origin": f"http://{self.host}", "Content-Type": "application/json"} if method == "POST" else {}
        sent = None if body is None else json.dumps(body)
        connection.request(method, path, sent, own | {name.replace("_", "-"): text for name, text in headers.items()})
        response = connection.getresponse()
        found = response.read()
        connection.close()
        self.seen += found
        return response.status, found

    def view(self, path: str = "/item") -> dict[str, Any]:
        status, found = self.ask("GET", path)
        assert status == 200, found
        return json.loads(found)

    def rate(self, item: str, answer: str) -> dict[str, Any]:
        status, found = self.ask("POST", "/rate", {"item": item, "answer": answer, "seconds": 1.25})
        assert status == 200, found
        return json.loads(found)

    def rate_all(self, answer: str = "a") -> None:
        view = self.view()
        while view["item"]:
            view = self.rate(view["item"], answer)


@contextlib.contextmanager
def serving(ratings: Ratings, port: int = 0) -> Iterator[Visitor]:
    with RatingServer(ratings, port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))  # seconds between checks for the shutdown
        thread.start()
        try:
            yield Visitor(server.url)
        finally:
            server.shutdown()
            thread.join()


def labelled(clips: ClipSet, tmp_path: Path, *raters: str, name: str = "people") -> tuple[list, list]:
    """Verdicts and labels of a set, labelled anew."""
    out = tmp_path / "labels"
    source = make_source(name, block(*(raters or ("anna",))))
    work = tmp_path / f"work{len(list(tmp_path.iterdir()))}"
    label_clip_set(clips, source, work, out, batch_size=4, votes=max(1, len(raters)))
    return read_verdicts(out), read_labels(out)


# Rating and labelling


def test_people_are_asked_the_questions_of_each_prompt_and_another_question_of_one_asks_about_its_clips_alone(
    clips, ledger, tmp_path, monkeypatch
):
    def write(**other: str) -> None:
        first, *_ = prompts
        rows = [f"{prompt},shape,is it round,Yes" for prompt in prompts if prompt != first]
        rows += [f"{first},shape,{other.get('ask', 'is it round')},Yes", f"{first},jump,does it jump,No"]
        Path("own.csv").write_text("\n".join(["prompt,name,question,wanted", *rows]))

    monkeypatch.chdir(tmp_path)
    prompts = sorted({sample.prompt for sample in clips.samples})
    Path("own.yaml").write_text("name: own\nframes: null\nrule: all\ninstructions: ''\nquestions: own.csv\n")
    write()
    of_first = sum(sample.prompt == prompts[0] for sample in clips.samples)

    def items() -> list:
        return gather([clips.folder], load_rubric(Path("own.yaml")), "anna", None, 0)

    assert Counter(item.rateable.question.name for item in items()) == {"shape": CLIPS, "jump": of_first}
    with serving(Ratings(items(), ledger)) as visitor:
        assert visitor.view()["ask"] in ("is it round", "does it jump")
        visitor.rate_all()
    source = make_source("people", block("anna") | {"rubric": "own.yaml"})
    rows = [row for of_clip in source.judge(requests_for(clips, 1)) for row in of_clip]
    assert len(rows) == CLIPS + of_first and all(row.answer is True for row in rows)
    write(ask="is it a ball")
    ratings = Ratings(items(), ledger)
    assert len(ratings.items) - ratings.rated == 2 * of_first
    write(ask="is it a ball")
    Path("own.csv").write_text(Path("own.csv").read_text().replace(prompts[0], "another prompt"))
    with pytest.raises(ValueError, match=f"own.csv has no question about 1 of {len(prompts)} prompts"):
        items()


def test_the_labels_of_a_set_are_the_ratings_sent_over_http(clips, ledger, tmp_path):
    pressed = {}
    with serving(ratings_of(ledger, clips)) as visitor:
        view = visitor.view()
        assert (view["rated"], view["total"], view["previous"]) == (0, CLIPS, None)
        while view["item"]:
            _, mp4 = visitor.ask("GET", f"/clip/{view['item']}")
            pressed[mp4] = "aru"[len(pressed) % 3]
            view = visitor.rate(view["item"], pressed[mp4])
        assert view["rated"] == view["total"] == CLIPS

    verdicts, labels = labelled(clips, tmp_path)

    assert len(pressed) == CLIPS
    for sample, verdict, label in zip(clips.samples, verdicts, labels, strict=True):
        answer = pressed[clips.video(sample).read_bytes()]
        assert label.label is verdict.answer is {"a": True, "r": False, "u": None}[answer]
        assert verdict.error == ("unsure" if answer == "u" else None)
        assert (verdict.model, verdict.model_version, verdict.vote) == ("human", "anna", 0)
        assert verdict.frames == [0, 1, 2]
        reply = json.loads(verdict.raw)
        assert (reply["answer"], reply["seconds"]) == (answer, 1.2)
    assert {label.reason for label in labels if label.label is None} == {"accept: no answer (unsure)"}


def test_the_rating_of_a_clip_applies_in_every_set_that_contains_it(clips, ledger, tmp_path):
    with serving(ratings_of(ledger, clips)) as visitor:
        visitor.rate_all("r")

    copied = make_clips(tmp_path / "elsewhere", "dpo1")  # the same bytes and prompts under other names

    assert ratings_of(ledger, copied).rated == CLIPS
    assert [label.label for label in labelled(copied, tmp_path)[1]] == [False] * CLIPS


def test_another_clip_prompt_rubric_or_rater_needs_a_new_rating():
    rubric = Rubric("r", None, "all", "{prompt}", (Question("accept", "?", "Accept", "Reject", True, True),))
    first = Rateable("anna", "c0ffee", "a ball", rubric, rubric.questions[0])
    reworded = dataclasses.replace(rubric, instructions="Look well: {prompt}")
    others = [
        first._replace(rater="ben"), first._replace(clip="decaf"), first._replace(prompt="a cube"),
        first._replace(rubric=reworded),
    ]  # fmt: skip

    assert len({one.key for one in [first, *others]}) == 5
    assert first.sent == {  # a change would lose all ratings of the past
        "place": "human", "rater": "anna", "clip": "c0ffee", "prompt": "a ball", "rubric": rubric.hash,
        "question": "accept",
    }  # fmt: skip


def test_every_rater_has_one_vote_and_a_tie_is_null(clips, ledger, tmp_path):
    with (
        serving(ratings_of(ledger, clips, rater="anna")) as anna,
        serving(ratings_of(ledger, clips, rater="ben")) as ben,
    ):
        threads = [threading.Thread(target=anna.rate_all, args="a"), threading.Thread(target=ben.rate_all, args="r")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    verdicts, labels = labelled(clips, tmp_path, "anna", "ben")

    assert [(v.vote, v.model_version, v.answer) for v in verdicts[:2]] == [(0, "anna", True), (1, "ben", False)]
    assert {(label.label, label.p_accept, label.votes, label.nulls) for label in labels} == {(None, 0.5, 2, 0)}


def test_the_metrics_of_stage_label_include_the_raters_agreement(clips, ledger, tmp_path, monkeypatch):
    for rater, presses in (("anna", "aaarra"), ("ben", "aarrru")):
        ratings = ratings_of(ledger, clips, rater=rater)
        with serving(ratings) as visitor:
            view, pressed = visitor.view(), dict(zip(sorted(clip_bytes(clips)), presses, strict=True))
            while view["item"]:
                view = visitor.rate(view["item"], pressed[visitor.ask("GET", f"/clip/{view['item']}")[1]])
    params = {
        "label": {"batch_size": 4, "votes": 1, "opponents": 4, "max_failed": 0.0},
        "feedback": {"sources": {"people": block("anna", "ben")}},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)

    options = ["--set", str(clips.folder), "--source", "people", "--out", "labels", "--metrics", "metrics/r1.json"]
    done = CliRunner().invoke(stages.label.main, options)

    assert done.exit_code == 0, done.output
    # Both rated five clips and disagree on one: 4/5. Yes: 1, 1, 1/2, 0, 0, on average 1/2, and by chance 1/2.
    # kappa = (4/5 - 1/2) / (1/2) = 3/5.
    both = {"clips": 5, "not_unanimous": 1, "observed": 0.8, "kappa": pytest.approx(0.6)}
    metrics = json.loads((tmp_path / "metrics/r1.json").read_text())
    assert metrics["samples"] == CLIPS
    assert metrics["agreement"] == {"label": both, "answers": both, "questions": {"accept": both}}


def clip_bytes(clips: ClipSet) -> list[bytes]:
    return [clips.video(sample).read_bytes() for sample in clips.samples]


def test_a_rater_can_go_back_and_change_a_rating(clips, ledger, tmp_path):
    with serving(ratings_of(ledger, clips)) as visitor:
        first = visitor.view()["item"]
        second = visitor.rate(first, "a")["item"]
        after = visitor.rate(second, "a")
        assert after["previous"] == second
        assert visitor.view(f"/item/{second}")["previous"] == first
        again = visitor.view(f"/item/{first}")
        assert (again["given"], again["previous"], again["rated"]) == ("a", None, 2)
        changed = visitor.rate(first, "r")
        assert (changed["item"], changed["rated"], changed["previous"]) == (after["item"], 2, second)
        visitor.rate_all("a")

    labels = labelled(clips, tmp_path)[1]

    assert sorted(label.label for label in labels) == [False] + [True] * (CLIPS - 1)


def test_a_rater_can_go_back_after_a_restart(clips, ledger):
    with serving(ratings_of(ledger, clips)) as visitor:
        first = visitor.view()["item"]
        second = visitor.rate(first, "a")["item"]
        visitor.rate(second, "u")
        visitor.rate(first, "r")

    view = ratings_of(ledger, clips).view()

    assert (view["rated"], view["previous"]) == (2, first)  # the latest


def test_the_remaining_time_is_estimated_from_the_median_pace(clips, ledger, monkeypatch):
    ratings, now = ratings_of(ledger, clips), [0.0]
    monkeypatch.setattr(rating.time, "monotonic", lambda: now[0])
    for item, seconds in zip(list(ratings.items)[:4], (0, 30, 30, 3000), strict=True):
        assert ratings.view()["minutes"] is None
        now[0] += seconds
        ratings.rate(item, "a", None)
    assert ratings.view()["minutes"] == 1  # two clips of 30 s; the pause of 3000 s has no effect


# Order and choice


def test_raters_see_different_orders_that_never_change(clips, others, ledger):
    def order(*sets: ClipSet, **of) -> list[str]:
        return [item.sample.sample_id for item in ratings_of(ledger, *sets, **of).items.values()]

    single, both = order(clips), order(clips, others)
    assert sorted(single) == sorted(sample.sample_id for sample in clips.samples) != single
    assert single == order(clips)
    assert single != order(clips, rater="ben")
    assert single != order(clips, seed=1)
    assert [name for name in both if name in single] == single
    assert both == order(others, clips)
    policies = [name.split("-")[1] for name in both]
    assert policies not in (["base"] * CLIPS + ["rwr1"] * CLIPS, ["rwr1"] * CLIPS + ["base"] * CLIPS)


def test_per_prompt_takes_the_first_clips_of_each_prompt_in_each_set(clips, others, ledger):
    chosen = ratings_of(ledger, clips, others, per_prompt=1).items.values()

    assert sorted((item.sample.policy, item.sample.prompt_id, item.sample.seed) for item in chosen) == sorted(
        (policy, f"p{prompt}", 0) for policy in ("base", "rwr1") for prompt in range(PROMPTS)
    )


# Killed between two ratings


@contextlib.contextmanager
def command(folder: Path, clips: ClipSet) -> Iterator[tuple[subprocess.Popen, Visitor]]:
    """`vfrl rate` in a folder with a params.yaml, in a separate process."""
    (folder / "params.yaml").write_text(yaml.safe_dump({"feedback": {"sources": {"people": block("anna")}}}))
    words = ["--set", str(clips.folder), "--source", "people", "--rater", "anna", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "commands", "rate", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    try:
        url = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        assert url, process.wait()
        yield process, Visitor(url[0])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_server_killed_between_two_ratings_loses_none_and_resumes(clips, tmp_path):
    with command(tmp_path, clips) as (process, visitor):
        first = visitor.view()["item"]
        second = visitor.rate(first, "r")["item"]
        third = visitor.rate(second, "a")["item"]
        process.send_signal(signal.SIGKILL)
        process.wait()

    with command(tmp_path, clips) as (process, visitor):
        view = visitor.view()
        assert (view["item"], view["rated"], view["previous"]) == (third, 2, second)
        visitor.rate_all()
        assert visitor.view()["item"] is None
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
        assert f"anna has rated {CLIPS} of {CLIPS}" in process.stdout.read()

    assert [label.label for label in labelled(clips, tmp_path)[1]].count(False) == 1


def test_a_rating_that_cannot_be_written_is_reported_and_the_view_is_unchanged(clips, ledger, monkeypatch):
    def full(*_: Any) -> None:
        raise StoreError("ledger.sqlite: the disk is full")

    with serving(ratings_of(ledger, clips)) as visitor:
        before = visitor.view()
        with monkeypatch.context() as broken:
            broken.setattr(Ledger, "write", full)
            status, reply = visitor.ask("POST", "/rate", {"item": before["item"], "answer": "a", "seconds": 1})
        assert (status, reply) == (500, b"ledger.sqlite: the disk is full")
        assert visitor.view() == before


# Blind rating and access


def test_the_page_and_its_replies_do_not_reveal_the_origin_of_a_clip(clips, others, ledger):
    with serving(ratings_of(ledger, clips, others)) as visitor:
        visitor.ask("GET", "/")
        view = visitor.view()
        while view["item"]:
            visitor.view(f"/item/{view['item']}")
            view = visitor.rate(view["item"], "r")
        visitor.ask("GET", "/item/nothing")
        visitor.ask("POST", "/rate", {"item": "nothing", "answer": "a"})

    replies = visitor.seen.decode().lower()
    names = [sample.sample_id for one in (clips, others) for sample in one.samples]
    for word in [
        "policy",
        "policies",
        "source",
        "sample",
        "verdict",
        "judge",
        "label",
        "rwr1",
        "base",
        "split",
        *names,
    ]:
        assert not re.search(rf"\b{word}", replies), word
    assert str(clips.folder) not in replies


def test_the_page_loads_nothing_from_other_hosts():
    assert "://" not in rating.PAGE.read_text()


def test_a_request_with_a_foreign_host_is_refused(clips, ledger):
    with serving(ratings_of(ledger, clips)) as visitor:
        item = visitor.view()["item"]
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil", ""):
            for path in ("/", "/item", f"/clip/{item}", "/rate"):
                rated = {"item": item, "answer": "a"} if path == "/rate" else None
                status, reply = visitor.ask("POST" if rated else "GET", path, rated, Host=host)
                assert status == 403 and item.encode() not in reply, (host, path)
        assert visitor.view()["rated"] == 0


def test_a_rating_from_another_page_is_refused(clips, ledger):
    with serving(ratings_of(ledger, clips)) as visitor:
        item = visitor.view()["item"]
        for headers in (
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://localhost:3000"},  # another server of this machine
            {"Origin": ""},
            {"Content_Type": "text/plain"},  # a form of another page could send it
        ):
            assert visitor.ask("POST", "/rate", {"item": item, "answer": "a"}, **headers)[0] in (403, 415), headers
        assert visitor.view()["rated"] == 0


def test_the_page_may_be_opened_as_localhost(clips, ledger):
    with serving(ratings_of(ledger, clips)) as visitor:
        host = f"localhost:{visitor.host.split(':')[1]}"
        rated = {"item": visitor.view()["item"], "answer": "a"}
        assert visitor.ask("POST", "/rate", rated, Host=host, Origin=f"http://{host}")[0] == 200


def test_no_other_file_can_be_read(clips, ledger):
    with serving(ratings_of(ledger, clips)) as visitor:
        item = visitor.view()["item"]
        for path in (
            "/../params.yaml", "/clip/../../params.yaml", "/clip/%2e%2e/params.yaml", "//etc/passwd",
            "/clip//etc/passwd", "/rating.html", "/clip/0", "/clip/", "/frames/" + "0" * 64,
            f"/clip/{item}/../../manifest.json",
        ):  # fmt: skip
            assert visitor.ask("GET", path) == (404, b"there is nothing here"), path


def test_a_malformed_rating_is_refused(clips, ledger):
    with serving(ratings_of(ledger, clips)) as visitor:
        item = visitor.view()["item"]
        for rated in (
            [], 7, None, {}, {"item": 0, "answer": "a"}, {"item": item, "answer": "x"}, {"item": item, "answer": None},
            {"item": [item], "answer": "a"}, {"item": item, "answer": "a" * 2000},
        ):  # fmt: skip
            assert visitor.ask("POST", "/rate", rated)[0] in (400, 404, 413), rated
        assert visitor.view()["rated"] == 0


def test_the_headers_forbid_other_pages_to_embed_or_read_the_page(clips, ledger):
    with serving(ratings_of(ledger, clips)) as visitor:
        connection = http.client.HTTPConnection(visitor.host)
        connection.request("GET", "/")
        headers = connection.getresponse().headers
        connection.close()
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Access-Control-Allow-Origin"] is None


def test_the_animated_picture_has_the_frames_and_the_rate_of_the_clip(clips, ledger):
    with serving(ratings_of(ledger, clips)) as visitor:
        item = visitor.view()["item"]
        _, mp4 = visitor.ask("GET", f"/clip/{item}")
        status, webp = visitor.ask("GET", f"/frames/{item}")
    assert status == 200
    sample = next(sample for sample in clips.samples if clips.video(sample).read_bytes() == mp4)
    pictures, durations = [], []
    with Image.open(io.BytesIO(webp)) as picture:
        assert picture.info["loop"] == 0  # endless
        for number in range(picture.n_frames):
            picture.seek(number)
            pictures.append(np.array(picture.convert("RGB")))
            durations.append(picture.info["duration"])
    assert durations == [125] * 3  # 8 frames a second
    assert np.array_equal(pictures, clips.frames(sample))


# Missing ratings


def test_labelling_without_all_ratings_stops_and_names_the_clips_and_the_command(clips, ledger, tmp_path):
    with serving(ratings_of(ledger, clips, rater="anna")) as visitor:
        visitor.rate_all()
    with serving(ratings_of(ledger, clips, rater="ben d")) as visitor:
        visitor.rate(visitor.view()["item"], "a")

    with pytest.raises(LabelError) as stopped:
        labelled(clips, tmp_path, "anna", "ben d")

    message = str(stopped.value)
    lacking = ratings_of(ledger, clips, rater="ben d")
    unrated = [s.sample_id for s in clips.samples if s.sample_id not in {
        item.sample.sample_id for key, item in lacking.items.items() if key in lacking._pressed
    }]  # fmt: skip
    assert f"{CLIPS - 1} of {CLIPS} by ben d ({', '.join(unrated[:3])}, …)" in message
    assert f"\n  vfrl rate --set {clips.folder} --source people --rater 'ben d'\n" in message
    assert str(ledger) in message and "anna" not in message
    assert not list(tmp_path.glob("work*/verdicts-*"))

    with serving(lacking) as visitor:
        visitor.rate_all()
    assert len(labelled(clips, tmp_path, "anna", "ben d")[1]) == CLIPS


def test_the_command_in_the_error_has_the_same_path_as_the_set(clips, monkeypatch):
    monkeypatch.chdir(clips.folder.parent)
    with pytest.raises(LabelError, match=r"--set samples --source people --rater anna\n"):
        next(make_source("people", block("anna")).judge(requests_for(ClipSet.open(Path("samples")), 1)))


def test_wrong_raters_are_an_error_that_names_the_key():
    wrong = [
        ([], "raters: expected the name of at least one person"),
        (["anna", "anna"], "raters: a name occurs twice"),
        (["anna", 7], r"raters\[1\] is 7"),
        ([" "], "raters: ' ' is not a name"),
        ("anna", "raters is 'anna'"),
    ]
    for raters, problem in wrong:
        with pytest.raises(ValueError, match=f"feedback.sources.people.{problem}"):
            make_source("people", block() | {"raters": raters})


# Errors of the command


@pytest.fixture
def run(tmp_path, monkeypatch, clips):
    """Runs the command in a folder with a params.yaml and returns its output."""
    sources = {"people": block("anna"), "physics": {"kind": "physics"}, "nobody": block()}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"feedback": {"sources": sources}}))
    monkeypatch.chdir(tmp_path)

    def run(source: str = "people", rater: str = "anna", folder: Path = clips.folder, *words: str) -> str:
        given = ["--set", str(folder), "--source", source, "--rater", rater, "--port", "0", *words]
        result = CliRunner().invoke(main, given)
        assert result.exit_code == 1
        return result.output

    return run


def test_unknown_names_are_errors_that_list_the_known_ones(run, tmp_path):
    assert "feedback.sources.folk is missing; in feedback.sources there is: " in run("folk")
    assert "feedback.sources.physics.kind is 'physics', which people do not rate: human" in run("physics")
    assert "feedback.sources.nobody.raters: expected the name of at least one person" in run("nobody")
    assert "feedback.sources.people.raters is ['anna'], without 'bob'; add the name there" in run(rater="bob")
    assert f"{tmp_path / 'none'}: no such folder" in run(folder=tmp_path / "none")


def test_a_port_in_use_is_an_error_that_names_an_alternative(run, clips, ledger):
    with serving(ratings_of(ledger, clips)) as visitor:
        taken = visitor.host.split(":")[1]
        output = run("people", "anna", clips.folder, "--port", taken)
    assert f"port {taken} on 127.0.0.1: Address already in use; --port 0 takes a free one" in output


def test_a_source_of_another_kind_is_refused_without_loading_it():
    with pytest.raises(ValueError, match="feedback.sources.judge.kind is 'qwen'"):
        people("judge", {"kind": "qwen"}, "anna")


# In a browser

READY = "document.readyState == 'complete' && !busy && view !== null"


def open_page(chromium: Browser, visitor: Visitor) -> Page:
    """The rating page with its first clip."""
    tab = chromium.new_page()
    tab.goto(f"http://{visitor.host}/")
    wait_until(tab, READY)
    return tab


def press(tab: Page, key: str, then: str) -> None:
    """Press a key and wait until the page is ready and a JavaScript condition holds."""
    tab.keyboard.press(key)
    wait_until(tab, f"{READY} && {then}")


def test_keys_rate_go_back_and_finish(chromium, others, ledger, tmp_path):
    with serving(ratings_of(ledger, others)) as visitor:
        tab = open_page(chromium, visitor)
        first = visitor.view()
        expect(tab.locator("h1").first).to_have_text(first["prompt"])
        expect(tab.locator("#stage")).to_have_text("")
        video = "document.querySelector('#stage video')"
        assert tab.evaluate(f"[{video}.loop, {video}.videoWidth, {video}.error]") == [True, 32, None]
        wait_until(tab, f"{video}.currentTime > 0")
        expect(tab.locator("#stage video")).to_have_css("image-rendering", "pixelated")
        assert tab.locator("#stage video").bounding_box()["width"] % 32 == 0
        assert tab.evaluate("document.documentElement.scrollHeight <= innerHeight")

        for count, key in enumerate("aru", start=1):
            press(tab, key, f"view.rated == {count}")
        tab.keyboard.press("x")
        expect(tab.locator("#progress")).to_have_text(re.compile(f"^3 of {CLIPS}"))
        for key in ("b", "Backspace", "b"):
            before = tab.evaluate("view.previous")
            press(tab, key, f"view.item == '{before}'")
        assert tab.evaluate("view.item") == first["item"]
        expect(tab.locator(".given")).to_have_attribute("data-answer", "a")
        press(tab, "r", "!view.given")
        for count in range(4, CLIPS + 1):
            tab.click("[data-answer=a]")
            wait_until(tab, f"{READY} && view.rated == {count}")
        expect(tab.locator("#finished")).to_contain_text("All clips are rated")

    order = list(ratings_of(ledger, others).items.values())
    answers = {label.sample_id: label.label for label in labelled(others, tmp_path)[1]}
    assert [answers[item.sample.sample_id] for item in order] == [False, False, None] + [True] * (CLIPS - 3)


def test_a_clip_that_does_not_play_can_only_be_unsure(chromium, ledger, tmp_path):
    broken = make_clips(tmp_path / "broken")
    for sample in broken.samples:
        path = broken.video(sample)
        path.write_bytes(bytes(path.stat().st_size - 1) + bytes([sample.seed]))
    with serving(ratings_of(ledger, broken)) as visitor:
        tab = open_page(chromium, visitor)
        expect(tab.locator("#stage")).to_have_text("This clip cannot be played. Press U.")
        tab.keyboard.press("a")
        press(tab, "u", "view.rated == 1")
        assert tab.evaluate("view.previous") and ratings_of(ledger, broken).view()["rated"] == 1


def test_a_page_reports_a_stopped_server_and_continues_after_its_restart(chromium, clips, ledger):
    with serving(ratings_of(ledger, clips)) as visitor:
        tab = open_page(chromium, visitor)
    clip = tab.evaluate("view.item")
    press(tab, "a", "!document.getElementById('trouble').hidden")
    expect(tab.locator("#trouble")).to_contain_text("The server does not answer")
    assert tab.evaluate("view.item") == clip
    with serving(ratings_of(ledger, clips), int(visitor.host.split(":")[1])):
        press(tab, "a", "view.rated == 1 && document.getElementById('trouble').hidden")


def test_a_browser_without_the_codec_plays_the_animated_picture(chromium, clips, ledger):
    with serving(ratings_of(ledger, clips)) as visitor:
        tab = open_page(chromium, visitor)
        tab.evaluate("URL.createObjectURL = () => 'data:video/mp4;base64,AAAA'; 0")
        press(tab, "a", "view.rated == 1")
        assert tab.evaluate("document.querySelector('#stage img').naturalWidth") == 32
        press(tab, "r", "view.rated == 2")


# With the first frame


def test_people_see_the_first_frame_where_the_rubric_shows_it_and_an_edited_one_is_rated_again(
    chromium, clips, ledger, tmp_path
):
    red, blue = with_first_frames(clips, tmp_path / "red"), with_first_frames(clips, tmp_path / "blue", red=0)
    path = shows_first_frame(RUBRIC, tmp_path / "shown.yaml")

    def ratings(one: ClipSet) -> Ratings:
        return Ratings(gather([one.folder], load_rubric(path), "anna", None, 0), ledger)

    with serving(ratings_of(ledger, red)) as visitor:  # of a rubric without the option
        assert visitor.view()["first"] is False
        assert visitor.ask("GET", f"/first/{visitor.view()['item']}")[0] == 404
    with serving(ratings(red)) as visitor:
        tab = open_page(chromium, visitor)
        wide = (
            "[...document.querySelectorAll('#stage img, #stage video')].map(one => one.getBoundingClientRect().width)"
        )
        assert len(set(tab.evaluate(wide))) == 1 and len(tab.evaluate(wide)) == 2
        assert tab.evaluate("document.querySelector('#stage img').naturalWidth") == 32
        expect(tab.locator("#given")).to_be_visible()
        assert TOLD in visitor.view()["guidance"]
        assert visitor.ask("GET", f"/first/{visitor.view()['item']}")[1].startswith(b"\x89PNG")
        visitor.rate_all("a")
    source = make_source("people", block("anna") | {"rubric": str(path)})
    assert all(row.answer for rows in source.judge(requests_for(red, 1)) for row in rows)
    with pytest.raises(LabelError, match=f"{CLIPS} of {CLIPS} by anna"):
        list(source.judge(requests_for(blue, 1)))
    with pytest.raises(LabelError, match="has no first frame, and the rubric people shows it"):
        ratings(clips)


# Rated in part


def rate(clips: ClipSet, ledger: Path, rater: str, presses: str) -> dict[str, str]:
    """Rate as many clips as there are presses, over HTTP; answers by sample_id."""
    ratings, given = ratings_of(ledger, clips, rater=rater), {}
    with serving(ratings) as visitor:
        item = visitor.view()["item"]
        for press in presses:
            given[ratings.items[item].sample.sample_id] = press
            item = visitor.rate(item, press)["item"]
    return given


def in_part(clips: ClipSet, folder: Path, *raters: str) -> tuple[LabelCounts, dict[str, Any]]:
    """The counts and the labels by sample_id of a set that may be rated in part."""
    source = make_source("people", block(*raters) | {"unrated": "leave_out"})
    counts = label_clip_set(clips, source, folder / "work", folder / "labels", 2, max_failed=0.0)
    return counts, {label.sample_id: label for label in read_labels(folder / "labels")}


def test_a_clip_that_nobody_rated_is_left_out_and_counted(clips, ledger, tmp_path):
    given = rate(clips, ledger, "anna", "aru")

    counts, labels = in_part(clips, tmp_path, "anna")

    # Six clips: one accepted, one rejected, one unsure and three that nobody saw.
    assert counts == LabelCounts(accepted=1, rejected=1, unlabelled=4, unreadable=0, failed=0, unrated=3)
    for name, label in labels.items():
        assert label.label is {"a": True, "r": False, "u": None, None: None}[given.get(name)]
        unrated = label.reason == "accept: no answer (unrated: anna has not rated it)"
        assert unrated == (name not in given)
    assert read_manifest(tmp_path / "labels", "labels")["facts"]["unrated"] == 3
    rows = build(
        clips.samples, list(labels.values()), name="r1", reward="label", shaping="linear", scale=1.0, shift=1.0,
        temperature=1.0, pairs="all", pairs_per_prompt=9, min_margin=0.0, seed=0,
    )  # fmt: skip
    labelled = {name for name, press in given.items() if press != "u"}
    assert {row.sample_id for row in rows.weighted} == labelled  # a shift of 1 weighs even a rejected clip
    assert {clip for row in rows.paired for clip in (row.chosen, row.rejected)} <= labelled


def test_those_who_rated_a_clip_decide_on_it(clips, ledger, tmp_path):
    anna, ben = rate(clips, ledger, "anna", "aaaa"), rate(clips, ledger, "ben", "rrr")

    counts, labels = in_part(clips, tmp_path, "anna", "ben")

    both = anna.keys() & ben.keys()
    for name, label in labels.items():
        alone = {"a": True}.get(anna.get(name)) if name in anna else {"r": False}.get(ben.get(name))
        assert label.label is (None if name in both else alone), name  # two who differ are a tie
        assert label.nulls == (name not in anna) + (name not in ben)
    assert counts.unrated == CLIPS - len(anna.keys() | ben.keys())


def test_a_set_without_any_rating_is_an_error_that_says_how_to_rate(clips, ledger, tmp_path):
    command = re.escape(f"vfrl rate --set {clips.folder} --source people --rater 'ben d'")
    with pytest.raises(LabelError, match=rf"people: none of {CLIPS} clips is rated. Rate some with\n  {command}"):
        in_part(clips, tmp_path, "ben d")

    rate(clips, ledger, "anna", "a")

    assert in_part(clips, tmp_path, "anna")[0].accepted == 1  # nothing unrated was kept as resume state


def test_a_panel_judges_a_clip_that_its_people_did_not_rate_by_its_rule(clips, ledger, tmp_path):
    given = rate(clips, ledger, "anna", "aaa")
    people = block("anna") | {"unrated": "leave_out"}
    for rule, of_unrated in (("majority", True), ("all", None)):
        panel = PanelSource("panel", {"people": make_source("people", people), "sure": steady("sure", 0.9)}, rule)
        work, out = tmp_path / rule, tmp_path / f"{rule}-labels"
        counts = label_clip_set(clips, panel, work, out, 4)
        for label in read_labels(out):
            assert label.label is (True if label.sample_id in given else of_unrated), rule
        assert counts.unrated == (CLIPS - 3 if of_unrated is None else 0), rule


def test_an_audit_takes_the_clips_that_are_rated(clips, ledger):
    given = rate(clips, ledger, "anna", "ar")
    for unrated, raters, expected in (
        ("error", ["anna"], given.keys()),
        ("error", ["anna", "ben"], set()),
        ("leave_out", ["anna", "ben"], given.keys()),
    ):
        people = make_source("people", block(*raters) | {"unrated": unrated})
        assert {label.sample_id for label in rated(people, clips)} == set(expected), (unrated, raters)
