"""A policy with extended prompts: the texts, its clips, and the language model that writes them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from commands import rewrite as command
from data.manifest import read_manifest, write_manifest
from data.prompts import Prompt, extended, load_prompts, texts_for, write_prompts
from data.store import ClipSet
from evaluation.accept import EvaluationSet, check_paired
from feedback.core.source import LabelError
from feedback.questions.rewrite import INSTRUCTIONS, Rewriter, rewrite
from stages import extend, generate
from tests.support.faulty_provider import serving
from tests.support.tiny import load_wan
from tests.support.training import write_base

CSV = """prompt_id,prompt,category,split
p1,the red ball rolls off the table,falling,train
p2,a hand lifts the blue cup,lifting,test
"""


def prompt(prompt_id, text):
    return Prompt(prompt_id, text, "c", "train", None, None)


# The texts

PROMPTS = [prompt("p1", "a cup"), prompt("p2", "a ball")]


def test_the_template_stands_around_the_text_of_the_same_prompt():
    rewritten = [prompt("p2", "a round ball"), prompt("p3", "a box"), prompt("p1", "a blue cup")]

    assert extended(PROMPTS, rewritten, "{prompt}, slowly") == [
        prompt("p1", "a blue cup, slowly"), prompt("p2", "a round ball, slowly"),
    ]  # fmt: skip


def test_an_extended_prompt_keeps_its_other_columns_and_has_no_files():
    (one,) = extended([replace(PROMPTS[0], reference="real.mp4", others=(("notes", "n"),))], PROMPTS, "{prompt}")

    assert (one.reference, one.others) == (None, (("notes", "n"),))  # the policy's folder is not that of the files


def test_braces_of_a_template_or_a_text_are_no_places():
    (one,) = extended(PROMPTS[:1], [prompt("p1", "a {cup}")], "{style}: {prompt}")

    assert one.prompt == "{style}: a {cup}"


def test_a_template_without_a_place_and_a_prompt_without_a_text_are_refused():
    with pytest.raises(ValueError, match="template is 'slowly', expected a text with {prompt} in it"):
        extended(PROMPTS, PROMPTS, "slowly")
    with pytest.raises(ValueError, match="1 of 2 prompts have no text to extend: p2"):
        extended(PROMPTS, PROMPTS[:1], "{prompt}")


def test_prompts_are_read_as_they_were_written(tmp_path):
    written = [prompt("p1", 'a "cup", blue'), prompt("p2", "é, 杯")]

    write_prompts(tmp_path / "set.csv", written)

    assert load_prompts(tmp_path / "set.csv") == written


# The stages


@pytest.fixture
def project(tmp_path, monkeypatch, tiny_wan):
    """A folder with params.yaml, prompts and the policy base; returns how to run a stage."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STAGE_DEVICE", "cpu")
    Path("prompts.csv").write_text(CSV)
    generator = {"family": "wan", "path": str(tiny_wan), "revision": None, "dtype": "float32", "max_prompt_tokens": 12}
    sampling = {"steps": 1, "guidance": 1.0, "solver": "euler", "samples_per_prompt": 2, "batch_size": 4}
    params = {
        "generator": generator,
        "prompts": {"path": "prompts.csv"},
        "video": {"num_frames": 5, "height": 16, "width": 16, "fps": 8},
        "evaluate": {"generate": sampling | {"split": "all", "seed": 1}},
        "extend": {"slow": {"policy": "base", "prompts": "prompts.csv", "template": "{prompt} slowly"}},
    }
    Path("params.yaml").write_text(yaml.safe_dump(params))
    write_base(Path("runs/policies/base"))
    write_manifest(Path("runs/policies/base"), "policy")
    return tmp_path


def extend_base():
    options = ["--name", "slow", "--policy", "runs/policies/base", "--out", "runs/policies/slow"]
    return CliRunner().invoke(extend.main, options)


def evaluation_clips(policy):
    where = ["--out", f"runs/eval/{policy}/samples", "--metrics", "metrics.json"]
    options = ["--set", "eval", "--policy", f"runs/policies/{policy}", "--sampling", "evaluate.generate", *where]
    return CliRunner().invoke(generate.main, options)


def test_the_folder_is_the_policy_and_what_it_is_told(project):
    assert extend_base().exit_code == 0

    facts = read_manifest(Path("runs/policies/slow"), "policy", verify=True)["facts"]
    assert facts == {"extends": "base", "prompts": "prompts.csv", "template": "{prompt} slowly"}
    found = texts_for(Path("runs/policies/slow"), load_prompts(Path("prompts.csv")))
    assert found == {"p1": "the red ball rolls off the table slowly", "p2": "a hand lifts the blue cup slowly"}
    assert texts_for(Path("runs/policies/base"), load_prompts(Path("prompts.csv"))) is None
    assert Path("runs/policies/slow/policy.json").read_bytes() == Path("runs/policies/base/policy.json").read_bytes()


@pytest.mark.ci
def test_clips_are_made_from_the_text_and_judged_by_the_prompt(project, tiny_wan):
    extend_base()
    done = [evaluation_clips(policy) for policy in ("base", "slow")]

    assert [one.exit_code for one in done] == [0, 0], done[1].output
    base, slow = (ClipSet.open(Path(f"runs/eval/{policy}/samples"), verify=True) for policy in ("base", "slow"))
    assert [sample.prompt for sample in slow.samples] == [sample.prompt for sample in base.samples]
    assert slow.samples[0].prompt == "the red ball rolls off the table"
    assert slow.manifest["facts"]["texts"] == texts_for(Path("runs/policies/slow"), [])
    assert "texts" not in base.manifest["facts"]
    encode = load_wan(tiny_wan).encode_text
    assert torch.equal(slow.conditions(["p1"])["text"], encode(["the red ball rolls off the table slowly"])["text"])
    ids = [sample.sample_id for sample in base.samples]
    assert not torch.allclose(slow.latents(ids), base.latents(ids))
    check_paired({name: EvaluationSet(one.folder, tuple(one.samples), {}) for name, one in
                  {"base": base, "slow": slow}.items()})  # fmt: skip


@pytest.mark.ci
def test_clips_have_the_flow_shift_of_the_policy_and_another_guidance_is_warned_of(project, caplog):
    """Base, as one that was trained online at shift 5 and guidance 2, in one step; its extension is the same policy."""
    done = [evaluation_clips("base")]
    trained = {"steps": 1, "inference_steps": 1, "guidance": 2.0, "solver": "euler", "negative_prompt": None}
    Path("runs/policies/base/policy.json").write_text(json.dumps({"sampling": {"shift": 5.0, **trained}}))
    write_manifest(Path("runs/policies/base"), "policy")
    Path("runs/eval/base").rename("runs/eval/before")
    caplog.clear()
    done += [extend_base(), evaluation_clips("base"), evaluation_clips("slow")]

    assert [one.exit_code for one in done] == [0, 0, 0, 0], done[-1].output
    sets = [ClipSet.open(Path(f"runs/eval/{policy}/samples")) for policy in ("before", "base", "slow")]
    assert [one.manifest["facts"]["shift"] for one in sets] == [3.0, 5.0, 5.0]
    warned = [one.message for one in caplog.records if one.levelname == "WARNING" and "in training" in one.message]
    assert warned == [
        f"evaluate.generate samples {policy} with guidance 1 (in training 2): what it learned may not show"
        for policy in ("base", "slow")
    ]


def test_texts_of_another_prompt_set_are_refused(project):
    extend_base()
    Path("prompts.csv").write_text(CSV + "p3,a cup drops,falling,test\n")

    done = evaluation_clips("slow")

    assert "runs/policies/slow/prompts.csv: no text for p3; run stage extend again" in done.output
    assert not Path("runs/eval/slow/samples").exists()


def test_a_policy_that_is_half_written_is_not_extended(project):
    shutil.rmtree("runs/policies/base")
    write_base(Path("runs/policies/base"))

    done = extend_base()

    assert done.exit_code == 1
    assert "runs/policies/base: no manifest.json" in done.output
    assert not Path("runs/policies/slow").exists()


# The language model


@pytest.fixture(autouse=True)
def ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("FEEDBACK_LEDGER", str(tmp_path / "ledger.sqlite"))
    monkeypatch.setattr("feedback.network.pace.FIRST_REST", 0.02)


@pytest.fixture
def server():
    with serving() as running:
        yield running


def answers(server, texts):
    """The server replies to a request with the text that stands beside a part of it."""
    server.behaviour.script = [
        {"of": of, "times": 99, "body": {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}}
        for of, text in texts.items()
    ]


def writer(server, **changes):
    given = {"model": "m", "base_url": f"{server.base}/v1", "key_variable": None, "instructions": INSTRUCTIONS}
    return Rewriter(**given | {"concurrency": 2} | changes)


def test_every_prompt_gets_its_own_rewrite_on_one_line(server):
    answers(server, {"a cup": "A blue cup\nstands\nthere. ", "a ball": "A ball rolls."})

    assert rewrite(PROMPTS, writer(server)) == [prompt("p1", "A blue cup stands there."), prompt("p2", "A ball rolls.")]
    (message,) = server.bodies[0]["messages"]
    assert (
        message["content"].startswith("Rewrite this prompt of a text-to-video model") and "{" not in message["content"]
    )


def test_nothing_is_asked_twice_unless_the_question_is_another(server):
    answers(server, {"a cup": "A cup.", "a ball": "A ball."})
    rewrite(PROMPTS, writer(server))
    rewrite([*PROMPTS, prompt("p3", "a cup")], writer(server))  # the third has the text of the first

    assert len(server.attempts) == 2
    rewrite(PROMPTS, writer(server, instructions="Longer: {prompt}"))
    rewrite(PROMPTS, writer(server, model="n"))
    assert len(server.attempts) == 6


def test_two_prompts_with_one_text_are_one_call(server):
    answers(server, {"a cup": "A cup."})

    rewritten = rewrite([prompt("p1", "a cup"), prompt("p2", "a cup")], writer(server))

    assert [one.prompt for one in rewritten] == ["A cup.", "A cup."]
    assert len(server.attempts) == 1


def test_a_server_that_falters_is_asked_again(server):
    answers(server, {"a cup": "A cup.", "a ball": "A ball."})
    server.behaviour.script[:0] = [{"status": 503, "body": "busy"}, {"body": '{"choices": [{"mess'}]

    assert [one.prompt for one in rewrite(PROMPTS, writer(server))] == ["A cup.", "A ball."]
    assert len(server.attempts) == 4


def test_a_refusal_is_told_and_the_other_replies_are_kept(server):
    answers(server, {"a ball": "A ball."})
    refusal = {"choices": [{"message": {"refusal": "No cups.", "content": None}, "finish_reason": "stop"}]}
    server.behaviour.script.append({"of": "a cup", "body": refusal})

    with pytest.raises(ValueError, match=r"1 of 2 prompts were not rewritten: p1 \(refused: No cups\.\)"):
        rewrite(PROMPTS, writer(server))
    assert rewrite(PROMPTS[1:], writer(server)) == [prompt("p2", "A ball.")]
    assert len(server.attempts) == 2


def test_a_wrong_key_ends_the_run_and_is_not_shown(server, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret-key")
    server.behaviour.script = [
        {"status": 401, "times": 99, "body": {"error": {"message": "wrong key $KEY", "code": "invalid_api_key"}}}
    ]

    with pytest.raises(LabelError, match="the key in SOME_KEY was rejected") as error:
        rewrite(PROMPTS, writer(server, key_variable="SOME_KEY"))
    assert "secret-key" not in str(error.value)


def test_a_missing_key_and_instructions_without_a_place_are_told_before_anything_is_sent(server, monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(LabelError, match="SOME_KEY is not set"):
        rewrite(PROMPTS, writer(server, key_variable="SOME_KEY"))
    with pytest.raises(ValueError, match="the instructions have no {prompt} in them"):
        writer(server, instructions="Make it longer.")
    assert server.attempts == []


def test_the_command_writes_a_prompt_set_that_extends_the_first(project, server):
    answers(server, {"red ball": "the red ball rolls", "blue cup": "the blue cup"})
    Path("prompts.csv").write_text(CSV.replace("split\n", "split,notes\n").replace("train\n", "train,mine\n"))
    options = ["--model", "m", "--base-url", f"{server.base}/v1", "--out", "longer.csv"]

    done = CliRunner().invoke(command.main, options)

    assert done.exit_code == 0, done.output
    assert [(one.prompt_id, one.prompt, one.category, one.split) for one in load_prompts(Path("longer.csv"))] == [
        ("p1", "the red ball rolls", "falling", "train"), ("p2", "the blue cup", "lifting", "test"),
    ]  # fmt: skip
    assert load_prompts(Path("longer.csv"))[0].others == (("notes", "mine"),)
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["extend"]["slow"] |= {"prompts": "longer.csv", "template": "{prompt}"}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert extend_base().exit_code == 0
    assert texts_for(Path("runs/policies/slow"), [])["p1"] == "the red ball rolls"
    assert json.loads(Path("runs/policies/slow/manifest.json").read_text())["facts"]["prompts"] == "longer.csv"
