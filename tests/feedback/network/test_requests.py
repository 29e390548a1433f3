"""From clips to calls and from replies to verdicts, through the real SDKs against a server on this machine."""

import base64
import copy
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import av
import pytest
import yaml

from data.labels import read_verdicts
from data.records import Sample
from feedback.core.kinds import make_source
from feedback.core.label import label_clip_set, requests_for
from feedback.core.source import REFUSED, UNREADABLE_ANSWER, UNREADABLE_CLIP, LabelError, Request
from feedback.network.ledger import StoredAnswer
from tests.support.faulty_provider import NULL, ODD, meant, reply
from tests.support.first_frames import TOLD, shows_first_frame, with_first_frames
from tests.support.network import (
    CLIPS,
    KINDS,
    PRICE,
    ROOT,
    answered_as_meant,
    block_of,
    every_kind,
    judged,
    make_clips,
    of_clip,
    outcomes,
    source_at,
    stopped,
    word,
)


@every_kind
def test_every_clip_is_judged_as_the_server_means_it(server, clips, ledger, kind):
    rows = judged(source_at(server, kind, price=PRICE), clips)
    assert len(rows) == len(server.attempts) == CLIPS
    assert {word(row) for row in rows.values()} == {"Accept", "Reject"}
    assert answered_as_meant(server, rows)
    row = rows["clip0"]
    assert row.raw and row.cost and row.tokens and row.error is None
    assert row.frames == list(range(9)) if kind.startswith("gemini") else len(row.frames) == 8
    assert outcomes(ledger) == ["answered"] * CLIPS


@every_kind
def test_an_odd_answer_is_read_if_it_can_mean_one_thing_only_and_is_never_requested_again(server, clips, ledger, kind):
    server.behaviour.script = [{"of": f"scene {n}.", "odd": odd} for n, odd in enumerate(ODD)]
    rows = judged(source_at(server, kind), clips, len(ODD))
    for n, odd in enumerate(ODD):
        row = rows[f"clip{n}"]
        if odd in NULL:
            refused = kind.endswith("decision") or odd in ("refusal", "filtered", "policy")
            assert row.answer is None and row.error.startswith(REFUSED if refused else UNREADABLE_ANSWER), odd
            assert len(row.error) > len(REFUSED) + 3, odd
        else:
            assert word(row) == meant(of_clip(server, row.sample_id)[0]["key"]), odd
        assert row.raw, odd
    assert judged(source_at(server, kind), clips, len(ODD)) == rows
    assert len(server.attempts) == len(ODD) and outcomes(ledger) == ["answered"] * len(ODD)


def pictures(body: Any) -> list[bytes]:
    """The files in a call in their order, whatever the form in which a provider takes them."""
    if isinstance(body, dict):
        own = [body["data"]] if isinstance(body.get("data"), str) else []
        own += [body["url"].partition(",")[2]] if isinstance(body.get("url"), str) else []
        own += [body["image_url"].partition(",")[2]] if isinstance(body.get("image_url"), str) else []
        found = [
            base64.b64decode(text.partition(",")[0], altchars=b"-_" if "-" in text or "_" in text else None)
            for text in own
        ]
        return found + [file for value in body.values() for file in pictures(value)]
    return [file for value in body for file in pictures(value)] if isinstance(body, list) else []


@every_kind
def test_the_first_frame_is_sent_before_the_clip_where_the_rubric_shows_it(server, clips, tmp_path, kind):
    rubric = str(shows_first_frame(ROOT / "feedback/rubrics/review.yaml", tmp_path / "shown.yaml"))
    red = with_first_frames(clips, tmp_path / "red")
    list(source_at(server, kind).judge(requests_for(clips, 1)[:1]))
    plain = server.bodies[-1]
    list(source_at(server, kind).judge(requests_for(red, 1)[:1]))
    assert len(server.bodies) == 1  # a rubric without the option asks what it asked before
    list(source_at(server, kind, rubric=rubric).judge(requests_for(red, 1)[:1]))

    first = red.first_frame("p0")
    assert first and pictures(server.bodies[-1]) == [first.read_bytes(), *pictures(plain)]
    assert TOLD in json.dumps(server.bodies[-1]) and TOLD not in json.dumps(plain)

    list(source_at(server, kind, rubric=rubric).judge(requests_for(red, 1)[:1]))
    assert len(server.bodies) == 2
    blue = with_first_frames(clips, tmp_path / "blue", red=0)
    list(source_at(server, kind, rubric=rubric).judge(requests_for(blue, 1)[:1]))
    assert len(server.bodies) == 3 and pictures(server.bodies[-1])[0] != first.read_bytes()


@every_kind
def test_a_set_without_first_frames_sends_nothing_where_the_rubric_shows_them(server, clips, tmp_path, kind):
    rubric = str(shows_first_frame(ROOT / "feedback/rubrics/review.yaml", tmp_path / "shown.yaml"))
    source = source_at(server, kind, rubric=rubric)
    with pytest.raises(LabelError, match="clip0.mp4: has no first frame, and the rubric review shows it"):
        label_clip_set(clips, source, tmp_path / "work", tmp_path / "out", 4)
    with pytest.raises(LabelError, match="has no first frame"):
        source.estimate(requests_for(clips, 1))
    assert server.bodies == []


def test_a_first_frame_that_was_changed_after_its_set_was_written_is_not_sent(server, clips, tmp_path):
    rubric = str(shows_first_frame(ROOT / "feedback/rubrics/review.yaml", tmp_path / "shown.yaml"))
    red = with_first_frames(clips, tmp_path / "red")
    requests = requests_for(red, 1)[:1]
    (red.folder / "first/p0.png").write_bytes(b"another")
    ((row,),) = source_at(server, rubric=rubric).judge(requests)
    assert row.error.startswith(f"{UNREADABLE_CLIP}{red.folder}/first/p0.png: changed") and server.bodies == []


def test_an_estimate_counts_the_first_frame_as_one_picture_more(server, clips, tmp_path):
    rubric = str(shows_first_frame(ROOT / "feedback/rubrics/review.yaml", tmp_path / "shown.yaml"))
    sample = clips.samples[0]
    words = len(TOLD) / 4 + 2
    for kind, each in (("gpt", 2), ("served", 1), ("gemini", 70)):  # 32 x 32 pixels: 1.2 tokens a patch; of 28 x 28: 1
        plain, shown = (
            source_at(server, kind, **more).estimate_for([sample], 1).input_tokens for more in ({}, {"rubric": rubric})
        )
        assert each <= shown - plain <= each + words, kind


OWN = "name: own\nframes: 8\nrule: all\ninstructions: 'Reply with one word.'\nquestions: questions.csv\n"


@every_kind
def test_a_clip_is_sent_its_prompts_own_questions_and_a_change_of_one_is_sent_alone(
    server, clips, tmp_path, monkeypatch, kind
):
    def write(**other: str) -> None:
        rows = [f"scene {n}.,shape,{other.get(f'of{n}', f'is shape {n} there')},Accept,Reject" for n in range(CLIPS)]
        rows += [f"scene {n}.,colour,is it more red or blue,Reject,Accept" for n in range(3)]
        (tmp_path / "questions.csv").write_text("\n".join(["prompt,name,question,wanted,other", *rows]))

    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(OWN)
    write()
    source = source_at(server, kind, rubric="own.yaml")
    verdicts = [row for rows in source.judge(requests_for(clips, 1)) for row in rows]
    assert Counter(row.question for row in verdicts) == {"shape": CLIPS, "colour": 3}
    assert all(row.answer is not None for row in verdicts)
    texts = [json.dumps(body) for body in server.bodies]
    for n in range(CLIPS):
        (of_shape,) = [text for text in texts if f"is shape {n} there" in text]
        assert "Reply with one word." in of_shape
    assert sum("more red or blue" in text for text in texts) == 3
    sent = len(server.bodies)
    assert sent == (CLIPS if kind.endswith("decision") else CLIPS + 3)

    write(of5="is the shape of scene five there")
    again = source_at(server, kind, rubric="own.yaml")
    assert len(list(again.judge(requests_for(clips, 1)))) == CLIPS
    assert len(server.bodies) == sent + 1 and "scene five" in json.dumps(server.bodies[-1])


def nodes(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all that is in a JSON value, itself included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from nodes(item, (*path, key))


def with_node(value: Any, path: tuple, new: Any) -> Any:
    if not path:
        return new
    value = copy.deepcopy(value)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = new
    return value


@every_kind
def test_json_of_any_shape_is_read_without_an_exception_and_is_null_where_no_answer_is_left(clips, kind):
    source = make_source("j", block_of(kind, "http://127.0.0.1:9", price=PRICE))
    (call,) = source.calls_about(clips.samples[0], 1, "")
    request = Request(clips.samples[0], clips.video(clips.samples[0]))
    path = {"gemini": "m:generateContent", "gpt": "chat/completions", "served": "chat/completions"}
    sent = call.plan.body | {"model": "m", "logprobs": True}
    _, good = reply(f"/{path.get(kind, 'decisions')}", sent, "0" * 15 + "1", None)
    for node in nodes(good):
        for new in (None, True, 7, -1.5, float("nan"), "x", "", [], [7], [None], {}, {"x": 7}, [{"x": []}]):
            raw = json.dumps(with_node(good, node, new))
            cost = source.cost(call, raw)
            (row,) = source.verdicts(request, {0: StoredAnswer(raw, cost)}, [call])
            probable = "top_logprobs" in node  # another word there may well say something else
            assert row.answer is True or (row.answer is None and row.error) or probable, (node, new)
            assert cost is None or cost >= 0, (node, new)
            assert isinstance(row.model_version, str) and isinstance(row.tokens, int | None), (node, new)


def test_a_reply_with_half_a_character_can_be_written_to_the_tables(server, clips, tmp_path):
    content = '{"answer": "Accept", "reason": "half of \\ud83d"}'
    message = {"role": "assistant", "content": content}
    server.behaviour.script = [{"body": {"choices": [{"message": message}]}, "times": 99}]
    label_clip_set(clips, source_at(server), tmp_path / "work", tmp_path / "out", 64)
    assert {row.answer for row in read_verdicts(tmp_path / "out")} == {True}


def test_an_answer_that_could_not_be_read_is_read_again_for_nothing_by_a_better_parser(server, clips, monkeypatch):
    server.behaviour.script = [{"odd": "foreign"}]
    assert judged(source_at(server), clips, 1)["clip0"].answer is None
    monkeypatch.setattr("feedback.network.gpt.read_answer", lambda text, question: {"answer": "nicht" not in text})
    assert judged(source_at(server), clips, 1)["clip0"].answer is False
    assert len(server.attempts) == 1


def test_clips_of_the_same_bytes_and_prompt_are_asked_about_once(server, clips):
    request = requests_for(clips, 1)[0]
    twins = [replace(request, sample=replace(request.sample, sample_id=f"twin{n}")) for n in range(3)]
    rows = [rows[0] for rows in source_at(server).judge(twins)]
    assert {row.sample_id for row in rows} == {"twin0", "twin1", "twin2"}
    assert len(server.attempts) == 1


def test_every_vote_is_an_asking_of_its_own(server, clips):
    (rows,) = source_at(server).judge(requests_for(clips, 3)[:1])
    assert [row.vote for row in rows] == [0, 1, 2]
    assert len(server.attempts) == 3


@every_kind
def test_whatever_decides_an_answer_is_in_its_key(clips, tmp_path, kind):
    sample, base = clips.samples[0], "http://127.0.0.1:9"
    rubric = yaml.safe_load((ROOT / "feedback/rubrics/review.yaml").read_text())
    changes: list[dict[str, Any]] = [{"model": "n"}, {"parameters": {"temperature": 0.5}}, {"base_url": "http://other"}]
    for key, value in {"frames": 4, "instructions": "Judge: {prompt}"}.items():
        path = tmp_path / f"{key}.yaml"
        path.write_text(yaml.safe_dump(rubric | {key: value}))
        if (kind, key) != ("gemini", "frames"):
            changes.append({"rubric": str(path)})
    changes += {
        "gpt": [{"detail": "low"}, {"picture": "jpeg"}],
        "served": [{"clip": "frames"}, {"clip": "video"}, {"clip": "video", "server_frames": 3}, {"max_tokens": 1}],
        "gemini": [{"clip": "frames"}, {"fps": 2.0}, {"resolution": "low"}],
    }[KINDS[kind]["kind"]]
    if kind.startswith("gemini"):
        changes = [change for change in changes if "frames.yaml" not in change.get("rubric", "")]

    def key_of(sample: Sample = sample, content: str = "content", **more) -> set[str]:
        return {call.key for call in make_source("j", block_of(kind, base, **more)).calls_about(sample, 2, content)}

    keys = [key_of(), key_of(content="other"), key_of(replace(sample, prompt="another scene"))]
    keys += [key_of(**change) for change in changes]
    assert len(set().union(*keys)) == 2 * len(keys)  # two votes each
    same = {"concurrency": 9, "timeout": 3.0, "attempts": 2, "budget_usd": 5.0, "price": PRICE}
    assert key_of(replace(sample, sample_id="other", policy="other", seed=9), **same) == key_of()


@pytest.mark.parametrize("kind", ["gpt", "gemini"])
def test_no_more_calls_are_in_flight_than_concurrency_and_no_fewer(server, clips, kind):
    server.behaviour.latency = 0.1
    judged(source_at(server, kind, concurrency=3), clips)
    assert server.most_in_flight == 3


def test_gemini_takes_as_many_connections_as_concurrency_says(server, tmp_path):
    count = 120
    clips = make_clips(tmp_path / "many", count)
    server.behaviour.together = count
    judged(source_at(server, "gemini", concurrency=count), clips, count)
    assert server.most_in_flight == count


def test_two_stages_at_once_ask_about_each_clip_once_and_both_get_all_answers(server, clips, tmp_path):
    server.behaviour.latency = 0.05

    def label(name: str) -> None:
        label_clip_set(clips, source_at(server), tmp_path / f"work-{name}", tmp_path / name, 64)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(label, ("one", "two")))
    assert len(server.attempts) == CLIPS
    one, two = (read_verdicts(tmp_path / name) for name in ("one", "two"))
    assert one == two


def test_an_address_in_the_environment_is_not_used(monkeypatch):
    for variable in ("OPENAI_BASE_URL", "GOOGLE_GEMINI_BASE_URL"):
        monkeypatch.setenv(variable, "http://elsewhere.example/v1")
    places = {"gpt": "https://api.openai.com/v1/", "gemini": "https://generativelanguage.googleapis.com/"}
    for kind, official in places.items():
        provider = make_source("j", {k: v for k, v in block_of(kind, "").items() if k != "base_url"}).provider
        provider.open()
        client = provider.client.client if kind == "gpt" else provider.client
        assert str(client.base_url if kind == "gpt" else client._api_client._http_options.base_url) == official


def test_a_server_on_this_machine_is_reached_without_the_proxy_of_the_environment(server, clips, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for kind in ("served", "gemini"):
        (row,) = judged(source_at(server, kind, attempts=1), clips, 1).values()
        assert row.answer is not None, f"{kind}: {row.error}"


def test_a_server_behind_a_proxy_that_does_not_reach_it_is_an_error_that_names_both(server, clips, monkeypatch):
    for name in ("all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("feedback.network.calls.FIRST_CONTACT", 0.0)
    host = "judge.invalid"
    for kind in ("served", "gpt", "gemini"):
        block = block_of(kind, f"http://{host}") | {"attempts": 1}
        monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9")  # nothing listens there
        message = stopped(make_source("j", block), clips, 1)
        assert f"through the proxy 127.0.0.1:9 of the environment, which NO_PROXY={host} bypasses" in message, kind
        assert "secret" not in message

        server.behaviour.script = [{"status": 503, "body": "<html>no route</html>", "times": 1}]
        monkeypatch.setenv("http_proxy", server.base)
        (row,) = judged(make_source("j", block), clips, 1).values()
        port = server.base.rpartition(":")[2]
        assert f"HTTP 503 through the proxy 127.0.0.1:{port} of the environment" in row.error, kind

        monkeypatch.setenv("no_proxy", host)
        message = stopped(make_source("j", block), clips, 1)
        assert "no reply from" in message and "proxy" not in message, kind
        monkeypatch.delenv("no_proxy")


def test_a_clip_that_cannot_be_read_is_null_with_its_error_and_not_sent(server, tmp_path):
    clips = make_clips(tmp_path / "set", 5)
    empty, zeros, missing, frameless = (clips.video(sample) for sample in clips.samples[1:])
    empty.write_bytes(b"")
    zeros.write_bytes(b"\0" * 2000)
    missing.unlink()
    with av.open(str(frameless), "w") as container:
        container.add_stream("libx264", rate=8)
        container.start_encoding()
    rows = judged(source_at(server), clips)
    assert rows.pop("clip0").answer is not None
    for name, row in rows.items():
        assert row.answer is None
        assert row.error.startswith(UNREADABLE_CLIP) and f"{name}.mp4" in row.error
    assert len(rows) == 4 and len(server.attempts) == 1


def test_request_keys_are_those_under_which_answers_were_paid_for(tmp_path):
    # Pinned: with another key every stored answer would be requested, and paid for, again.
    question = {"name": "accept", "ask": "Reply with one word.", "affirmative": "Accept", "negative": "Reject"}
    rubric = {"name": "pinned", "frames": 4, "rule": "all", "instructions": "The request: {prompt}"}
    rubric["questions"] = [question | {"wanted": True, "required": True}]
    path = tmp_path / "rubric.yaml"
    path.write_text(yaml.safe_dump(rubric, sort_keys=False))
    sample = Sample("s", "p", "a ball rolls.", "c", "train", "base", 0, 9, 8.0, 32, 32, "s.mp4")
    more = {
        "gpt": {"parameters": {"temperature": 1}},
        "gemini": {"fps": 2},
        "served-video": {"clip": "video", "server_frames": 4},
    }
    keys = {}
    for kind in (*KINDS, "served-video"):
        of_kind = kind.removesuffix("-video")
        source = make_source("j", block_of(of_kind, "http://host", rubric=str(path), **more.get(kind, {})))
        (call,) = source.calls_about(sample, 1, "0" * 64)
        keys[kind] = call.key[:16]
    assert keys == {
        "gpt": "2c90c7b0970b712e", "gpt-decision": "d322530e1f2d19fa", "served": "70cbd2a4d6c9bdfd",
        "served-video": "14b71aded0fa5495",
        "gemini": "a4614b11d250404d", "gemini-decision": "183c22bc11f40a36",
    }  # fmt: skip
