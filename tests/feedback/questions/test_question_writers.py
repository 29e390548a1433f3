"""Who writes a judge's questions: sheets, text models behind three kinds of API and in this process, the template."""

import base64
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from data.first_frames import png_bytes
from data.prompts import Prompt
from feedback.core.source import LabelError
from feedback.network.ledger import Ledger
from feedback.questions import Writing, write_questions
from feedback.questions.decomposition import alignment_asks, defect_asks, read_parts
from feedback.questions.sheet import load_sheet
from feedback.questions.teaching import read_rules
from feedback.questions.text_model import text_model
from feedback.questions.texts import TextRequest
from tabletop.captions import all_claims, caption, vocabulary
from tabletop.pretraining.judge_model import CHAT_TEMPLATE, word_level_tokenizer
from tests.support.faulty_provider import serving
from tests.support.judges import build_judge, text_config
from tests.support.network import FRAMES, PRICE
from tests.support.refusals import assert_refused

SHEET = "feedback/questions/diffusion-drf.yaml"
TEACHER = "feedback/questions/vlm-as-teacher.yaml"
DRF, TEACH = load_sheet(Path(SHEET)), load_sheet(Path(TEACHER))
NOTHING = dict.fromkeys(DRF.parts, [])
STATED = NOTHING | {"objects": ["two cats", "a ball"], "camera": ["it looks down"]}
RULES = [
    {"kind": "process", "question": "Does the ball touch a wall?", "wanted": "No"},
    {"kind": "goal", "question": "Is the ball at the exit?", "wanted": "yes"},
    {"kind": "process", "question": "Is there one ball?", "wanted": "Yes"},
]
BY = Writing("writer", SHEET, ("alignment", "physics", "quality"), explanation="short", with_reference=True)


def prompt(prompt_id: str, text: str, image: Path | None = None) -> Prompt:
    return Prompt(prompt_id, text, "c", "train", str(image) if image else None, None)


# Diffusion-DRF's sheet


def test_what_a_caption_does_not_state_is_not_asked_about():
    stated = read_parts(json.dumps(STATED), list(DRF.parts))
    asks = alignment_asks(DRF, stated, "gpt (m)", explanation="short")

    assert stated == {"objects": ["two cats", "a ball"], "camera": ["it looks down"]}
    assert [ask.name for ask in asks] == ["alignment_objects", "alignment_camera"]
    assert "about what is to be seen: two cats; a ball. Is it so in the video?" in asks[0].text
    assert asks[0].text.endswith("Begin with Yes or No. Then say in fewer than 50 words what to see decided it.")
    assert {(a.kind, a.wanted, a.other, a.with_reference, a.author) for a in asks} == {
        ("alignment", "Yes", "No", False, "gpt (m)")
    }


def test_a_reply_in_a_code_block_is_read():
    assert read_parts(f"```json\n{json.dumps(STATED)}\n```", list(DRF.parts))["camera"] == ["it looks down"]


def test_a_reply_of_another_form_is_an_error():
    cases = (
        ("Two cats and a ball.", "the reply is not JSON .*'Two cats and a ball.'"),
        (json.dumps(STATED)[:-1], "the reply is not JSON"),
        (f"Here it is: {json.dumps(STATED)}", "the reply is not JSON"),
        (json.dumps([STATED]), "the reply is not an object with the keys environment, objects"),
        (json.dumps({"objects": ["a cat"]}), "the reply is not an object with the keys"),
        (json.dumps(STATED | {"mood": []}), "the reply is not an object with the keys"),
        (json.dumps(STATED | {"motion": "they run"}), "motion in the reply is not a list of texts: 'they run'"),
        (json.dumps(STATED | {"motion": [" "]}), "motion in the reply is not a list of texts"),
        (json.dumps(STATED | {"motion": [{"cat": "runs"}]}), "motion in the reply is not a list of texts"),
        (json.dumps(NOTHING), "the reply finds no statement in the caption"),
    )
    assert_refused(lambda reply: read_parts(reply, list(DRF.parts)), cases)


def test_each_defect_is_a_question_of_its_own_where_no_is_wanted():
    physics = defect_asks(DRF, "physics", "a cup falls", with_reference=True, explanation="short")
    quality = defect_asks(DRF, "quality", "a cup falls", with_reference=True, explanation="short")

    # The five facets of Fig. 16; the eight of Fig. 17, both kinds of blur in one, and the three of compression.
    assert [ask.name.removeprefix("physics_") for ask in physics] == [
        "liquid", "deformation", "texture", "motion", "interpenetration",
    ]  # fmt: skip
    assert len(quality) == 8 and len({ask.text for ask in physics + quality}) == 13
    assert {(ask.wanted, ask.other, ask.with_reference, ask.author) for ask in physics + quality} == {
        ("No", "Yes", True, "diffusion-drf")
    }
    assert all("caption: a cup falls\n" in ask.text and "two videos" in ask.text for ask in physics + quality)


def test_a_question_ends_with_how_long_its_explanation_is_to_be():
    for explanation, ending in (
        ("short", "Begin with Yes or No. Then say in fewer than 50 words what to see decided it."),
        ("long", "and end with what decided it."),
        (None, "Reply with Yes or No and nothing else."),
    ):
        (stated,) = alignment_asks(DRF, {"objects": ["a ball"]}, "w", explanation)
        (defect, *_) = defect_asks(DRF, "quality", "a cup falls", True, explanation)
        assert stated.text.endswith(ending) and defect.text.endswith(ending), explanation
    assert "step by step, in 100 to 200 words" in alignment_asks(DRF, {"objects": ["a ball"]}, "w", "long")[0].text


def test_an_explanation_that_a_sheet_does_not_ask_for_is_refused_before_a_text_model_is_asked():
    by = replace(BY, rubric=TEACHER, kinds=("goal",), explanation="long")
    with pytest.raises(
        ValueError, match="explanation is long, but the question sheet vlm-as-teacher has no explain.long"
    ):
        write_questions([prompt("p1", "a cup falls")], by, {"writer": {"kind": "gpt"}}, "cpu")


def test_without_a_real_clip_nothing_is_said_of_a_second_video():
    (ask, *_) = defect_asks(DRF, "physics", "a cup falls", with_reference=False, explanation=None)

    assert not ask.with_reference and "second" not in ask.text and "a cup falls" in ask.text
    assert ask.text.endswith("Reply with Yes or No and nothing else.")


def test_braces_of_a_caption_are_no_places():
    odd = "a {defect} of {prompt}, {part}"
    (ask, *_) = defect_asks(DRF, "physics", odd, with_reference=True, explanation="short")
    (stated,) = alignment_asks(DRF, {"text": [odd, "{stated}"]}, "w", explanation="short")

    assert ask.text.count("a liquid moves") == 1 and f"caption: {odd}\n" in ask.text
    assert f"what is to be read: {odd}; {{stated}}. Is it so" in stated.text


def test_a_wrong_sheet_is_named_with_its_key(tmp_path):
    def load(path: str, change: dict) -> None:
        block = yaml.safe_load(Path(path).read_text()) | change
        sheet = tmp_path / "sheet.yaml"
        sheet.write_text(yaml.safe_dump({key: value for key, value in block.items() if value is not ...}))
        load_sheet(sheet)

    cases = (
        ((SHEET, {"method": "guess"}), "sheet.yaml: method is 'guess', known are decompose, teach"),
        ((SHEET, {"alone": None}), "sheet.yaml: sheet.alone is null"),
        ((SHEET, {"quality": ...}), "sheet.quality is missing; known keys are name, decompose"),
        ((SHEET, {"parts": {}}), "sheet.parts is {}"),
        ((SHEET, {"physics": {"liquid": ""}}), "sheet.physics.liquid is ''"),
        ((SHEET, {"decompose": "Take it apart."}), "sheet: decompose does not contain {prompt}"),
        ((SHEET, {"alignment": "Is {stated} so?"}), "sheet: alignment does not contain {part}"),
        ((SHEET, {"mood": "calm"}), "sheet.mood .* is unknown"),
        ((TEACHER, {"most": 0}), "sheet.most is 0, expected greater than or equal to 1"),
        ((TEACHER, {"ask": "Yes or No?"}), "sheet: ask does not contain {question}"),
    )
    assert_refused(lambda given: load(*given), cases)


def test_a_file_that_is_no_sheet_is_named(tmp_path):
    cases = (
        (Path("feedback/rubrics/match.yaml"), "match.yaml: method is None"),
        (tmp_path / "none.yaml", "none.yaml: not read: No such file"),
    )
    assert_refused(load_sheet, cases)


# VLM-as-Teacher's sheet


def test_rules_and_goals_are_numbered_in_their_order_with_their_wanted_answers():
    asks = read_rules(json.dumps(RULES), TEACH, "judge (m)", explanation=None)

    assert [(ask.name, ask.kind, ask.wanted, ask.other) for ask in asks] == [
        ("process_1", "process", "No", "Yes"), ("goal_1", "goal", "Yes", "No"), ("process_2", "process", "Yes", "No"),
    ]  # fmt: skip
    assert asks[0].text == (
        "Does the ball touch a wall? Judge by what the video shows alone. Reply with Yes or No and nothing else."
    )


def test_rules_of_another_form_are_an_error():
    cases = (
        ("Is the ball at the exit?", "the reply is not JSON"),
        (json.dumps(RULES[1]), "the reply is not a list of 1 to 8 questions"),
        ("[]", "the reply is not a list of 1 to 8 questions"),
        (json.dumps(RULES * 3), "the reply is not a list of 1 to 8 questions"),
        (json.dumps([*RULES, "and that is all"]), "does not have the keys kind, question, wanted"),
        (json.dumps([{"kind": "goal", "question": "Is it there?"}]), "does not have the keys"),
        (json.dumps([RULES[1] | {"wanted": True}]), "does not have the keys"),
        (json.dumps([RULES[1] | {"wanted": "maybe"}]), "is none of process, goal; Yes, No; a text"),
        (json.dumps([RULES[1] | {"kind": "end"}]), "is none of process, goal"),
        (json.dumps([RULES[1] | {"question": " "}]), "is none of process, goal"),
        (json.dumps(RULES[:1]), "no question in the reply is a goal"),
    )
    assert_refused(lambda reply: read_rules(reply, TEACH, "w", explanation="short"), cases)


# Over the network


@pytest.fixture(autouse=True)
def ledger(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "ledger.sqlite"
    monkeypatch.setenv("FEEDBACK_LEDGER", str(path))
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    monkeypatch.setenv("GEMINI_API_KEY", "a-key")
    monkeypatch.setattr("feedback.network.pace.FIRST_REST", 0.02)
    return path


@pytest.fixture
def server():
    with serving() as running:
        yield running


def sources(server, kind: str, **more) -> dict:
    base = server.base + ("" if kind == "gemini" else "/v1")
    facts = {"model": "m", "rubric": "feedback/rubrics/review.yaml", "timeout": 10.0, "concurrency": 2}
    return {"writer": {"kind": kind, "base_url": base} | facts | more}


def answers(server, kind: str, texts: dict[str, str]) -> None:
    """The server replies to a request with the text that stands beside a part of it."""
    server.behaviour.script = []
    for of, text in texts.items():
        body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1000, "completion_tokens": 500}}  # fmt: skip
        if kind == "gemini":
            body = {"candidates": [{"content": {"parts": [{"text": text}]}, "finishReason": "STOP"}],
                    "usageMetadata": {"promptTokenCount": 1000, "candidatesTokenCount": 500}}  # fmt: skip
        server.behaviour.script.append({"of": of, "times": 99, "body": body})


EVERY_API = pytest.mark.parametrize("kind", ["gpt", "served", "gemini"])
CATS, CUP = prompt("p1", "three dogs run"), prompt("p2", "a blue cup")


@EVERY_API
def test_any_api_takes_captions_apart_and_is_paid_once(server, ledger, kind):
    blocks = sources(server, kind, price=PRICE | FRAMES[kind], budget_usd=1.0)
    answers(server, kind, {"three dogs": json.dumps(STATED), "blue cup": json.dumps(NOTHING | {"color": ["blue"]})})

    written = write_questions([CATS, CUP], BY, blocks, "cpu")
    again = write_questions([CATS, CUP], BY, blocks, "cpu")

    assert again == written and not written.unwritten and len(server.attempts) == 2
    names = {prompt_id: [ask.name for ask in asks] for prompt_id, asks in written.asks.items()}
    assert names["p1"][:3] == ["alignment_objects", "alignment_camera", "physics_liquid"]
    assert names["p2"][0] == "alignment_color" and len(names["p2"]) == 1 + 5 + 8
    assert {ask.author for ask in written.asks["p1"]} == {"writer (m)", "diffusion-drf"}
    with Ledger(ledger) as open_ledger:  # 2 replies of 1000 tokens at $1 and 500 at $4 a million
        assert open_ledger.spent("questions writer (m)").dollars == pytest.approx(2 * 0.003)


def test_a_model_reads_the_instructions_with_the_caption_and_the_parameters_of_its_block(server):
    answers(server, "gpt", {"three dogs": json.dumps(STATED)})
    write_questions([CATS], BY, sources(server, "gpt", parameters={"reasoning_effort": "none"}), "cpu")

    (body,) = server.bodies
    assert body["messages"][0]["content"].endswith("The request: three dogs run\n")
    assert body["reasoning_effort"] == "none" and "response_format" not in body


def test_the_key_of_a_text_is_the_one_under_which_it_was_paid_for():
    # Pinned: with another key every stored text would be requested, and paid for, again.
    block = {"kind": "gpt", "model": "m", "rubric": "feedback/rubrics/review.yaml", "base_url": "http://h"}
    call = text_model("writer", block, "cpu")._call(TextRequest("hello"), "questions")
    assert call.key.startswith("5f19fc84b128f208")


@EVERY_API
def test_a_prompt_whose_reply_cannot_be_read_is_counted_and_logged(server, kind, caplog):
    answers(server, kind, {"three dogs": json.dumps(STATED), "blue cup": "I see a cup."})

    with caplog.at_level(logging.WARNING):
        written = write_questions([CATS, CUP], BY, sources(server, kind), "cpu")

    assert list(written.asks) == ["p1"] and list(written.unwritten) == ["p2"]
    assert "the reply is not JSON" in written.unwritten["p2"]
    assert "1 of 2 prompts have no question and are left out: p2: the reply is not JSON" in caplog.text


def test_no_readable_reply_at_all_is_an_error(server):
    answers(server, "gpt", {"": "Certainly!"})
    with pytest.raises(ValueError, match="none of 2 prompts has a question: p1: the reply is not JSON"):
        write_questions([CATS, CUP], BY, sources(server, "gpt"), "cpu")


def test_a_refusal_is_the_reason(server):
    answers(server, "gpt", {"three dogs": json.dumps(STATED)})
    refusal = {"choices": [{"message": {"refusal": "No cups.", "content": None}, "finish_reason": "stop"}]}
    server.behaviour.script.append({"of": "blue cup", "body": refusal})

    assert write_questions([CATS, CUP], BY, sources(server, "gpt"), "cpu").unwritten == {"p2": "refused: No cups."}


def test_a_budget_that_a_run_would_exceed_stops_it(server):
    answers(server, "gpt", {"": json.dumps(STATED)})
    with pytest.raises(LabelError, match="budget_usd"):
        write_questions([CATS, CUP], BY, sources(server, "gpt", price=PRICE | FRAMES["gpt"], budget_usd=0.0001), "cpu")
    assert server.attempts == []


@EVERY_API
def test_the_teacher_sees_the_picture_that_the_video_starts_from(server, tmp_path, kind):
    """As the generator is given it: of 8 x 4 pixels, the middle 4 x 4, whatever the form of the file."""
    from PIL import Image

    picture, by = tmp_path / "first.bmp", replace(BY, rubric=TEACHER, kinds=("process", "goal"))
    pixels = np.full((4, 8, 3), 255, np.uint8)
    pixels[:, 2:6] = (0, 0, 200)
    Image.fromarray(pixels).save(picture)
    answers(server, kind, {"maze": json.dumps(RULES)})
    task = prompt("p1", "leave the maze", picture)

    written = write_questions([task], by, sources(server, kind), "cpu", (4, 4))

    assert [ask.name for ask in written.asks["p1"]] == ["process_1", "goal_1", "process_2"]
    sent = json.dumps(server.bodies[0])
    assert base64.b64encode(png_bytes(pixels[:, 2:6])).decode() in sent and "image/png" in sent
    Image.fromarray(pixels[:, ::-1] // 2).save(picture)
    write_questions([task], by, sources(server, kind), "cpu", (4, 4))
    assert len(server.attempts) == 2  # another picture is another call


def test_a_picture_without_the_size_of_the_clips_is_an_error_before_anything_is_sent(server, tmp_path):
    by = replace(BY, rubric=TEACHER, kinds=("goal",))
    with pytest.raises(ValueError, match="size: None, but prompt p1 has an image"):
        write_questions([prompt("p1", "leave the maze", tmp_path / "x.png")], by, sources(server, "gpt"), "cpu")
    assert server.attempts == []


def test_only_the_kinds_asked_for_are_kept(server):
    answers(server, "gpt", {"three dogs": json.dumps(STATED), "maze": json.dumps(RULES)})

    for kinds, count in ((("alignment",), 2), (("alignment", "physics"), 7), (BY.kinds, 15)):  # Table 4
        written = write_questions([CATS], replace(BY, kinds=kinds), sources(server, "gpt"), "cpu")
        assert len(written.asks["p1"]) == count
    by = replace(BY, rubric=TEACHER, kinds=("goal",))
    (ask,) = write_questions([prompt("p1", "leave the maze")], by, sources(server, "gpt"), "cpu").asks["p1"]
    assert ask.name == "goal_1"


def test_a_wrong_setting_is_named_before_anything_is_sent(server):
    blocks = sources(server, "gpt") | {"check": {"kind": "physics"}}
    cases = (
        ({"writer": "oracle"}, "writer is 'oracle', known are .*'rubric', 'template', 'writer', 'check'"),
        ({"writer": "check"}, "feedback.sources.check.kind is 'physics', which writes no texts"),
        ({"rubric": None}, "writer is writer, but rubric, a YAML file, is null"),
        ({"writer": "rubric", "rubric": None}, "writer is rubric, but rubric, a YAML file, is null"),
        ({"kinds": ("alignment", "taste")}, "kinds is .*'taste'.*, expected some of .*'alignment', 'physics'"),
        ({"kinds": ("goal",)}, "kinds is .*'goal',.*, expected some of .*'alignment', 'physics', 'quality'"),
        ({"kinds": None}, "kinds is None, expected some of"),
        ({"rubric": TEACHER}, "expected some of .*'goal', 'process'"),
    )
    assert_refused(lambda change: write_questions([CATS], replace(BY, **change), blocks, "cpu"), cases)
    assert server.attempts == []


def test_a_rubric_asks_every_prompt_the_same():
    by = Writing("rubric", "feedback/rubrics/match.yaml", None, explanation=False, with_reference=False)
    written = write_questions([CATS, CUP], by, {}, "cpu")

    assert [ask.name for asks in written.asks.values() for ask in asks] == ["match", "match"]
    assert "a blue cup? Answer with one word, Yes or No." in written.asks["p2"][0].text


# In this process

REPLY = json.dumps(
    NOTHING | {"objects": ["ball"]}, separators=(",", ":")
)  # one word of a tokenizer that splits at spaces


def taught(model, tokenizer, prompt_text: str) -> None:
    """Train a model until REPLY is its reply to a prompt."""
    before = tokenizer(prompt_text, add_special_tokens=False)["input_ids"]
    reply = tokenizer(f"{REPLY} <|im_end|>", add_special_tokens=False)["input_ids"]
    ids, labels = torch.tensor([before + reply]), torch.tensor([[-100] * len(before) + reply])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(30):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def sheet_for(folder: Path) -> str:
    """Diffusion-DRF's sheet, with instructions that a tiny model reads."""
    block = yaml.safe_load(Path(SHEET).read_text()) | {"decompose": "take apart {prompt}"}
    (folder / "sheet.yaml").write_text(yaml.safe_dump(block))
    return str(folder / "sheet.yaml")


WORDS = ["take", "apart", "red", "ball", REPLY]


def build_llm(folder: Path) -> None:
    """A tiny Llama that was taught one reply, as a folder. A Qwen2 would be given its own tokenizer by transformers."""
    tokenizer = word_level_tokenizer(WORDS)
    tokenizer.chat_template = CHAT_TEMPLATE.replace(
        CHAT_TEMPLATE[CHAT_TEMPLATE.index("{% for part") : CHAT_TEMPLATE.index("<|im_end|>")], "{{ message.content }} "
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**text_config(tokenizer)))
    message = [{"role": "user", "content": "take apart red ball"}]
    taught(model, tokenizer, tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_vlm(folder: Path) -> None:
    """A tiny Qwen2.5-VL that was taught one reply, as a folder."""
    build_judge(folder, WORDS)
    model, tokenizer = AutoModelForImageTextToText.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    taught(model, tokenizer, "<|im_start|>user take apart red ball <|im_end|> <|im_start|>assistant")
    model.save_pretrained(folder)


@pytest.mark.parametrize("build", [build_llm, build_vlm])
def test_a_model_in_this_process_takes_captions_apart(tmp_path, build):
    build(tmp_path / "model")
    block = {"kind": "qwen", "path": str(tmp_path / "model"), "revision": None, "batch_size": 1, "dtype": "float32",
             "rubric": "tabletop/rubric.yaml"}  # fmt: skip
    by = replace(BY, rubric=sheet_for(tmp_path), kinds=("alignment",))

    written = write_questions([prompt("p1", "red ball"), prompt("p2", "blue ball")], by, {"writer": block}, "cpu")

    (ask,) = written.asks["p1"]
    assert (ask.name, ask.author) == ("alignment_objects", f"writer ({tmp_path / 'model'})")
    assert written.unwritten == {"p2": "the request holds words outside the model's vocabulary: blue"}


def test_a_model_in_this_process_is_shown_a_picture_if_it_takes_any(tmp_path):
    red = np.full((64, 64, 3), (255, 0, 0), np.uint8)
    for name, build in (("llm", build_llm), ("vlm", build_vlm)):
        build(tmp_path / name)
    block = {
        "kind": "qwen",
        "revision": None,
        "batch_size": 1,
        "dtype": "float32",
        "rubric": "tabletop/rubric.yaml",
    }
    message = TextRequest("take apart red ball", png_bytes(red))

    (blind,) = text_model("w", block | {"path": str(tmp_path / "llm")}, "cpu").replies([message], "questions")
    model = text_model("w", block | {"path": str(tmp_path / "vlm")}, "cpu")
    passes = []
    model.model.model.visual.register_forward_hook(lambda *_: passes.append(1))
    model.replies([message], "questions")

    assert blind.error == f"w ({tmp_path / 'llm'}) takes no pictures, and the request has one"
    assert passes == [1]


# The template


def test_the_template_asks_in_words_that_the_tabletops_judges_know():
    from tabletop import questions

    known = {*vocabulary(), *questions.question_words()}
    kinds = ("alignment", "physics", "quality", "process", "goal")
    prompts = [prompt(f"p{i}", caption(claim)) for i, claim in enumerate(all_claims())]
    written = write_questions(prompts, Writing("template", None, kinds, False, True), {}, "cpu")

    assert len(written.asks) == len(all_claims()) and not written.unwritten
    assert {word for asks in written.asks.values() for ask in asks for word in ask.text.split()} <= known


def test_the_template_wants_what_the_caption_says_and_no_defects():
    by = Writing("template", None, ("alignment", "physics", "quality"), explanation=False, with_reference=True)
    asks = write_questions([prompt("p1", "lifting red ball up")], by, {}, "cpu").asks["p1"]

    assert {(ask.kind, ask.wanted, ask.with_reference) for ask in asks} == {
        ("alignment", "Yes", False), ("physics", "No", True), ("quality", "No", True),
    }  # fmt: skip
    texts = {ask.name: ask.text for ask in asks}
    assert texts["alignment_object"] == "is there a red ball"
    assert texts["alignment_event"] == "does the red ball move up"
    assert texts["physics_jump"] == "does anything jump in the first video"
    alone = write_questions([prompt("p1", "lifting red ball up")], replace(by, with_reference=False), {}, "cpu")
    assert {ask.name: ask.text for ask in alone.asks["p1"]}["physics_jump"] == "does anything jump"


def test_the_template_writes_rules_and_goals_too():
    by = Writing("template", None, ("process", "goal"), explanation=False, with_reference=False)
    asks = write_questions([prompt("p1", "lifting red ball up")], by, {}, "cpu").asks["p1"]

    wanted = {ask.name: ask.wanted for ask in asks}
    assert wanted["process_jump"] == "No" and wanted["goal_event"] == "Yes"
    assert {ask.kind for ask in asks} == {"process", "goal"} and not any(ask.with_reference for ask in asks)


def test_a_caption_of_another_world_has_no_template():
    by = Writing("template", None, ("alignment",), explanation=False, with_reference=False)
    written = write_questions([prompt("p1", "lifting red ball up"), CUP], by, {}, "cpu")

    assert list(written.asks) == ["p1"]
    assert "'a blue cup' is no caption of the tabletop world" in written.unwritten["p2"]
