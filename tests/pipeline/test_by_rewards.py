"""Claims about online runs on rewards: what the judge is asked, what is paid, and what cannot give rewards."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.counts import collected_counts
from data.prompts import Prompt
from feedback.core.source import REFUSED, LabelError
from feedback.judges.panel import PanelSource
from generators.core.load import load_generator
from pipeline.asked import RunJudge
from pipeline.by_rewards import ClipRewards, check_judge, check_unread
from pipeline.configs import CheckConfig
from pipeline.online import Job, check_held_out, for_other_machines, run
from pipeline.params import ParamsError
from pipeline.recipes import load_recipe
from rl.online.rewarded import RolledClip
from rl.training import run as frame
from tests.feedback.judges.test_panel import Member
from tests.support.defaults import default_params
from tests.support.faulty_provider import serving
from tests.support.network import PRICE, attempts, block_of, source_at, use_ledger
from tests.support.tiny import SIZE
from tests.support.training import write_base

PROMPTS = [Prompt(f"p{n}", text, "c", "train", None, None) for n, text in enumerate(("a red ball", "a blue cup"))]


def test_the_judges_label_is_the_reward_and_a_clip_that_it_refused_has_none(tmp_path):
    """Places 4 to 6 of a rollout, as a second process has them; the budget is that of the run, not of a rollout."""
    asked: list[Any] = []

    def opinion(sample, vote, question) -> dict[str, Any]:
        asked.append(sample)
        if sample.sample_id.endswith("5"):
            return {"answer": None, "error": f"{REFUSED}no"}
        return {"answer": sample.prompt == "a red ball", "p_yes": 0.8}

    images = {"p0": np.full((16, 16, 3), 7, np.uint8)}
    source = Member("judge", opinion)
    seen: list[Any] = []
    judge = source.judge

    def judging(requests):
        seen.extend(requests := list(requests))
        assert all(request.path.is_file() for request in requests)
        return judge(requests)

    source.judge = judging  # type: ignore[method-assign]
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    by_p = {4: 0.8, 5: None, 6: 0.8}  # this judge has no score
    for column, expected in (("label", {4: 1.0, 5: None, 6: 0.0}), ("p_accept", by_p), (None, by_p)):
        rewards = ClipRewards(RunJudge(False, source), column, PROMPTS, images, SIZE, "one", tmp_path, "online/one")
        with collected_counts() as counts:
            clips = [RolledClip(4, "p0", frames), RolledClip(5, "p0", frames), RolledClip(6, "p1", frames)]
            assert rewards(3, clips) == expected
        assert counts.judge_calls == 3
    assert [(one.sample_id, one.prompt) for one in sorted(asked[:3], key=lambda one: one.sample_id)] == [
        ("rollout-000003-0004", "a red ball"), ("rollout-000003-0005", "a red ball"),
        ("rollout-000003-0006", "a blue cup"),
    ]  # fmt: skip
    assert {request.purpose for request in seen} == {"online/one"}
    assert [request.first_frame is not None for request in seen[:3]] == [True, True, False]
    assert not list(tmp_path.glob("*.mp4"))
    with pytest.raises(ValueError, match=r"judge gave none of 1 clips a score, which engine\.reward names"):
        ClipRewards(RunJudge(False, source), "score", PROMPTS, images, SIZE, "one", tmp_path, "online/one")(
            4, clips[:1]
        )


def rewards_by(source: Any, column: str | None, tmp_path: Path) -> ClipRewards:
    return ClipRewards(RunJudge(False, source), column, PROMPTS, {}, SIZE, "one", tmp_path, "online/one")


CLIPS = [RolledClip(place, "p0", np.zeros((5, 16, 16, 3), np.uint8)) for place in range(2)]


def test_all_clips_of_a_rollout_are_ranked_by_one_column(tmp_path):
    """The panel's score takes CLIP's; of the second clip, whose CLIP is unknown, only p_accept is known."""

    def similarity(sample, vote, question) -> dict[str, Any]:
        known = sample.sample_id.endswith("0")
        return {"answer": None, "score": 2.5} if known else {"answer": None, "error": f"{REFUSED}no"}

    judge = Member("judge", lambda *_: {"answer": True, "p_yes": 0.75})
    panel = PanelSource("both", {"judge": judge, "clip": Member("clip", similarity)}, "mean")
    assert rewards_by(panel, "p_accept", tmp_path)(0, CLIPS) == {0: 0.75, 1: 0.75}
    assert rewards_by(panel, None, tmp_path)(0, CLIPS) == {0: (0.75 + 2.5) / 2, 1: None}


def test_rollouts_that_no_clip_of_could_be_judged_end_a_run_when_they_do_not_stop(tmp_path, caplog):
    readable: list[int] = [2]  # rollouts

    def opinion(sample, vote, question) -> dict[str, Any]:
        known = int(sample.sample_id.split("-")[1]) in readable
        return {"answer": True, "p_yes": 0.9} if known else {"answer": None, "error": f"{REFUSED}unsafe"}

    rewards = rewards_by(Member("judge", opinion), None, tmp_path)
    found = [rewards(number, CLIPS) for number in range(5)]
    assert found == [{0: None, 1: None}] * 2 + [{0: 0.9, 1: 0.9}] + [{0: None, 1: None}] * 2
    assert "judge could judge none of the 2 clips of rollout 1, of prompt p0; of the first it says: " in caplog.text
    with pytest.raises(ValueError, match=r"of rollout 6, of prompt p0; .*unsafe.* No clip of the last 3 rollouts"):
        rewards(5, CLIPS)


class Killed(BaseException):
    """Stands for a kill at a chosen line."""


def job(judge: str, blocks: dict[str, Any], **engine: Any) -> Job:
    changes = {
        "steps": 3, "guidance": 1.0, "updates": 4, "batch_size": 4, "group_size": 2, "checkpoint_every": 2,
        "precision": "fp32", "gradient_checkpointing": False, "held_out_every": 2,
    } | engine  # fmt: skip
    recipe = load_recipe("flow-grpo", {"engine": changes, "sampling": {"inference_steps": 2}})
    check = CheckConfig(prompts=1, samples_per_prompt=2, batch_size=2, seed=1)
    return Job(recipe, PROMPTS, None, None, None, judge, judge, blocks, check, SIZE)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.ci
def test_no_clip_is_paid_for_twice_by_a_run_that_is_killed_and_resumed(tiny_wan, tmp_path, monkeypatch):
    """4 rollouts of 4 clips and checks of 2 clips at updates 0, 2 and 4, by a judge over the network.

    The kill comes as update 4 is logged: its rollout and that of update 3 have been paid for and are sampled again.
    """
    base = write_base(tmp_path / "base")
    load = partial(load_generator, "wan", str(tiny_wan), SIZE, max_prompt_tokens=12)
    lines, append = [], frame.append_log

    def killed(*args: Any, **kwargs: Any) -> None:
        lines.append(1)
        if len(lines) == 5:  # of update 0, 1, 2, 3, 4
            raise Killed
        append(*args, **kwargs)

    with serving() as server:
        given = job("gpt", {"gpt": block_of("gpt", server.base)})

        def train(home: Path):
            use_ledger(home / "ledger.sqlite", monkeypatch)
            return run(given, load, base, home / "work", home / "policy", torch.device("cpu"))

        whole = train(tmp_path / "whole")
        paid = len(server.attempts)
        assert paid == len(attempts(tmp_path / "whole" / "ledger.sqlite")) == 4 * 4 + 3 * 2
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(frame, "append_log", killed)
            train(tmp_path / "killed")
        resumed = train(tmp_path / "killed")
        assert resumed.steps == 2 and len(server.attempts) == 2 * paid
    assert contents(tmp_path / "killed" / "policy") == contents(tmp_path / "whole" / "policy")
    assert whole.counts == resumed.counts
    policy = json.loads((tmp_path / "whole" / "policy" / "policy.json").read_text())
    assert policy["judges"] == {"gpt": 1.0} and policy["recipe"]["engine"]["reward"] == "p_accept"
    assert not list((tmp_path / "killed" / "work").rglob("*.mp4"))


def test_a_judges_budget_is_that_of_the_run_and_not_of_a_rollout(tmp_path, monkeypatch):
    """Six and a half calls: four for the first rollout, and two of the second's four."""
    use_ledger(tmp_path / "ledger.sqlite", monkeypatch)
    random = np.random.default_rng(0)
    with serving() as server:
        price = PRICE | {"output_tokens": 20}
        cost = source_at(server, price=price).price.of(1000, 20, 400)  # what each reply of the server uses
        source = source_at(server, price=price, budget_usd=6.5 * cost, concurrency=1)
        rewards = ClipRewards(
            RunJudge(True, source), "label", PROMPTS, {}, SIZE, "one", tmp_path / "clips", "online/one"
        )

        def rollout(number: int) -> dict[int, float | None]:
            frames = random.integers(0, 255, (4, 5, 16, 16, 3)).astype(np.uint8)
            return rewards(number, [RolledClip(place, f"p{place // 2}", frames[place]) for place in range(4)])

        assert None not in rollout(0).values()
        with pytest.raises(LabelError, match=r"budget_usd"):
            rollout(1)
        assert 4 < len(server.attempts) <= 6


def test_a_paid_judge_is_refused_where_keys_cannot_go():
    with pytest.raises(ValueError, match="judge: gpt is asked over the network"):
        for_other_machines(job("gpt", {"gpt": block_of("gpt", "http://localhost")}, held_out_every=None))


def test_sources_that_give_no_rewards_and_settings_that_are_not_read_are_named():
    sources = default_params()["feedback"]["sources"]

    def engine(reward: str, **more: Any):
        return load_recipe("raft", {"engine": {"reward": reward, **more}}).engine

    check_judge("physics", sources["physics"], engine("label"))
    people = {"kind": "human", "rubric": "tabletop/rubric.yaml", "raters": ["ann"]}
    for name, block, reward, error in (
        ("people", people, "label", "people is answered by people"),
        ("pairs", {**sources["judge"], "rubric": "tabletop/pairs.yaml"}, "label", "pairs compares clips"),
        ("clip", sources["clip"], "label", "clip measures clips and labels none, so engine.reward must be score"),
    ):
        with pytest.raises(ParamsError, match=error):
            check_judge(name, block, engine(reward))
    check_judge("clip", sources["clip"], engine("score"))
    checked = {"stop_right": 0.8, "held_out_every": 100}
    check_judge("judge", sources["judge"], engine("score", **checked))
    with pytest.raises(ParamsError, match=r"engine\.stop_right is a probability, and clip, a metric, has none"):
        check_judge("clip", sources["clip"], engine("score", **checked))
    scores = {"kind": "panel", "rule": "mean", "members": {"clip": sources["clip"], "flow": sources["flow"]}}
    judged = scores | {"members": {"clip": sources["clip"], "judge": sources["judge"]}}
    check_judge("both", judged, engine("score", **checked))
    check_held_out("both", judged, engine("score", **checked))
    check_held_out("clip", sources["clip"], engine("score"))
    with pytest.raises(ParamsError, match="and both, a metric, has none"):
        check_judge("both", scores, engine("score", **checked))
    for name, block in (("both", scores), ("clip", sources["clip"])):
        with pytest.raises(ParamsError, match=rf"engine\.stop_held_out is a probability, and held_out, {name}"):
            check_held_out(name, block, engine("score", **checked))
    for overlay, references in (("marks.yaml", None), (None, "tabletop")):
        with pytest.raises(ParamsError, match="a recipe by rewards does not read it"):
            check_unread(overlay, references)
