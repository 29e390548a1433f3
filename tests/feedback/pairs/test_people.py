"""People compare two clips: the page's server and its keys, and what becomes of the answers."""

import contextlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from commands.rate.pairs import pairs_to_compare
from commands.rate.server import Ratings, RatingServer, gather_pairs
from data.preferences import read_comparisons, read_preferences
from data.store import ClipSet
from feedback.core.kinds import make_source
from feedback.core.rubric import load_rubric
from feedback.core.source import LabelError
from feedback.network.ledger import VARIABLE
from feedback.pairs.compare import compare_pairs
from feedback.pairs.label import compare_clip_set
from feedback.pairs.sets import pairs_between
from tests.feedback.pairs.test_compare import make_clips
from tests.support.browser import CHROMIUM, running_chromium, wait_until

RUBRIC = Path("feedback/rubrics/people-preference.yaml")
READY = "document.readyState == 'complete' && !busy && view !== null"


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> ClipSet:
    return make_clips(tmp_path_factory.mktemp("set") / "samples")


@pytest.fixture(autouse=True)
def ledger(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "ledger.sqlite"))
    return tmp_path / "ledger.sqlite"


def people(*raters: str, **more):
    return make_source("people", {"kind": "human", "rubric": str(RUBRIC), "raters": list(raters), **more})


def ratings(ledger: Path, clips: ClipSet, rater: str = "anna", against: Path | None = None, seed: int = 0) -> Ratings:
    pairs = pairs_to_compare([clips.folder], against, None, 2)
    return Ratings(gather_pairs(pairs, load_rubric(RUBRIC), rater, seed), ledger)


def seed_of(side) -> int:
    """The number of a clip, by which it is brighter."""
    return side[0].seed


def rate_all(rated: Ratings) -> Counter[str]:
    """Prefer the brighter clip of every pair; says how often each side was chosen."""
    chosen: Counter[str] = Counter()
    for key, item in rated.items.items():
        answer = "left" if seed_of(item.left) > seed_of(item.right) else "right"
        rated.rate(key, answer, 1.0)
        chosen[answer] += 1
    return chosen


def test_what_people_prefer_is_read_whatever_side_it_stood_on(clips, ledger, tmp_path):
    chosen = rate_all(ratings(ledger, clips))
    assert set(chosen) == {"left", "right"}  # the sides are shuffled
    out = tmp_path / "labels"
    counts = compare_clip_set(clips, people("anna"), tmp_path / "work", out, 2, 2)["comparisons"]

    assert (counts["pairs"], counts["ties"], counts["unknown"], counts["both_orders"]) == (8, 0, 0, 0)
    for row in read_preferences(out, "labels"):
        better = row.first if row.preferred == "first" else row.second
        assert better == max(row.first, row.second)  # clip7 is brighter than clip6
    shown = read_comparisons(out, "labels")
    assert Counter("left" if row.answer == "first" else "right" for row in shown) == chosen


def test_the_sides_and_the_order_differ_by_rater_and_stay_after_a_restart(clips, ledger):
    def sides(rater: str) -> list[tuple[str, str]]:
        items = ratings(ledger, clips, rater).items.values()
        return [(item.left[0].sample_id, item.right[0].sample_id) for item in items]

    assert sides("anna") == sides("anna") != sides("ben")
    pairs = {frozenset(pair) for pair in sides("anna")}
    assert pairs == {frozenset(pair) for pair in sides("ben")} and len(pairs) == 8


def test_several_raters_decide_by_their_number(clips, ledger, tmp_path):
    rate_all(ratings(ledger, clips, "anna"))
    rate_all(ratings(ledger, clips, "ben"))
    odd = ratings(ledger, clips, "cleo")
    for key in odd.items:
        odd.rate(key, "equal", 1.0)
    pairs = pairs_to_compare([clips.folder], None, None, 2)
    found = [compare_pairs(_votes(pairs, len(names)), people(*names), None, 2).preferences
             for names in (("anna", "ben"), ("anna", "cleo"), ("cleo",))]  # fmt: skip

    assert [{row.preferred == "tie" for row in rows} for rows in found] == [{False}, {False}, {True}]


def _votes(pairs, votes):
    return [replace(pair, first=replace(pair.first, votes=votes)) for pair in pairs]


def test_missing_answers_stop_labelling_with_the_command_to_give_them(clips, ledger, tmp_path):
    with pytest.raises(LabelError) as raised:
        compare_clip_set(clips, people("anna"), tmp_path / "work", tmp_path / "labels", 2, 2)
    assert f"vfrl rate --set {clips.folder} --source people --rater anna" in str(raised.value)
    other = make_clips(tmp_path / "other", policy="rwr1", brightness=5)
    with pytest.raises(LabelError) as raised:
        pairs = pairs_between(other.folder, clips.folder, ("rwr1", "base"), None, 1)
        compare_pairs(pairs, people("anna"), None, 2)
    assert f"vfrl rate --set {other.folder} --against {clips.folder} --source people" in str(raised.value)


def test_without_any_answer_the_command_is_named_also_where_some_may_lack(clips, ledger, tmp_path):
    with pytest.raises(LabelError) as raised:
        compare_clip_set(clips, people("anna", unrated="leave_out"), tmp_path / "work", tmp_path / "labels", 2, 2)
    wanted = f"none of 8 pairs is compared. Compare some with\n  vfrl rate --set {clips.folder} --source people --rater"
    assert wanted in str(raised.value)


def test_in_part_those_that_are_there_count(clips, ledger, tmp_path):
    rated = ratings(ledger, clips)
    for key in list(rated.items)[:3]:
        rated.rate(key, "equal", None)
    rated.rate(list(rated.items)[3], "u", None)
    source = people("anna", unrated="leave_out")
    counts = compare_clip_set(clips, source, tmp_path / "work", tmp_path / "labels", 2, 2)["comparisons"]

    assert (counts["ties"], counts["unknown"]) == (3, 5)
    for key in rated.items:
        rated.rate(key, "equal", None)
    again = compare_clip_set(clips, source, tmp_path / "work", tmp_path / "labels", 2, 2)["comparisons"]
    assert (again["ties"], again["unknown"]) == (7, 1)  # what was not rated is read again; "unsure" was an answer


# The page


@contextlib.contextmanager
def serving(rated: Ratings) -> Iterator[RatingServer]:
    server = RatingServer(rated, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def chromium():
    if not CHROMIUM:
        pytest.skip("no Chromium here")
    with running_chromium() as browser:
        yield browser


def press(tab: Page, key: str, then: str) -> None:
    tab.keyboard.press(key)
    wait_until(tab, f"{READY} && {then}")


def test_arrows_and_the_equals_sign_rate_pairs_side_by_side(chromium: Browser, clips, ledger):
    rated = ratings(ledger, clips)
    with serving(rated) as server:
        tab = chromium.new_page()
        tab.goto(server.url)
        wait_until(tab, READY)
        videos = tab.locator("#stage video")
        expect(videos).to_have_count(2)
        expect(tab.locator(".answers button")).to_have_text(["←Left", "=Equal", "→Right", "UUnsure"])
        first, second = (videos.nth(place).bounding_box() for place in (0, 1))
        assert first["width"] == second["width"] and first["width"] % 32 == 0 and first["x"] < second["x"]
        assert tab.evaluate("document.documentElement.scrollHeight <= innerHeight")
        assert not re.search(r"clip\d|policy|base|source", json.dumps(tab.evaluate("view")))  # blind
        keys = list(rated.items)
        for count, key in enumerate(("ArrowLeft", "ArrowRight", "=", "u"), start=1):
            press(tab, key, f"view.rated == {count}")
        tab.keyboard.press("a")  # of the page for single clips
        press(tab, "b", f"view.item == '{keys[3]}'")
        expect(tab.locator(".given")).to_have_attribute("data-answer", "u")
        press(tab, "ArrowRight", "!view.given")

    assert [rated.view(key)["given"] for key in keys[:4]] == ["left", "right", "equal", "right"]
    assert [ratings(ledger, clips).view(key)["given"] for key in keys[:4]] == ["left", "right", "equal", "right"]
