from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from data.first_frames import png_bytes
from data.manifest import sha256_of
from data.records import Sample, Verdict
from data.video import read_video, write_video
from feedback.core.kinds import make_source
from feedback.core.rubric import Question
from feedback.core.source import FirstFrame, Request
from feedback.core.weights import fingerprint, weights_version
from feedback.judges.vlm import answer_tokens, build_inputs, read_answers, sampled_fps
from tabletop.pretraining.judge_model import word_level_tokenizer
from tests.support.judges import FAMILIES, SIZE, build_judge

SAMPLED = [0, 1, 2, 3, 5, 6, 7, 8]
PROMPTS = ("pushing red ball", "lifting the red ball off the table", "ball off table", "red ball")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A judge of each family."""
    torch.set_num_threads(1)
    return {family: build(tmp_path_factory.mktemp("judge")) for family, build in FAMILIES.items()}


@pytest.fixture(scope="module")
def folder(folders) -> Path:
    return folders["qwen2.5"]


def block(folder: Path, **changes) -> dict:
    options = {"path": str(folder), "revision": None, "rubric": "tabletop/rubric.yaml"}
    return {"kind": "qwen", "batch_size": 4, "dtype": "float32", "min_answer_mass": 0.0, **options, **changes}


@pytest.fixture(scope="module")
def judges(folders):
    return {family: make_source("judge", block(folder)) for family, folder in folders.items()}


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def judge(judges, family):
    return judges[family]


@pytest.fixture
def qwen(judges):
    """The judge for tests of Qwen2.5-VL only."""
    return judges["qwen2.5"]


def clip(index: int = 0, num_frames: int = 9) -> np.ndarray:
    """Smooth frames, so that the codec changes them little."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    shades = [np.stack([x * 3, y * 3, 10 * f + 20 * index + (x + y) // 2], -1) for f in range(num_frames)]
    return np.stack(shades).clip(0, 255).astype(np.uint8)


@pytest.fixture
def ask(tmp_path):
    """Writes the mp4 of a clip and returns a request about it."""

    def request(index: int = 0, prompt: str | None = None, frames: np.ndarray | None = None) -> Request:
        frames = clip(index) if frames is None else frames
        prompt = PROMPTS[index % len(PROMPTS)] if prompt is None else prompt
        facts = ("c", "train", "base", index, len(frames), 8.0, *frames.shape[1:3], "v.mp4")
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.mp4"
        write_video(path, frames, 8.0)
        return Request(Sample(f"clip{index}", "p", prompt, *facts), path)

    return request


def verdicts_of(judge, *requests: Request) -> list[Verdict]:
    """The verdicts on one question, in the order of the requests."""
    answers = {verdict.sample_id: verdict for (verdict,) in judge.judge(iter(requests))}
    return [answers[request.sample.sample_id] for request in requests]


def inputs_of(judge, frames: np.ndarray, prompt: str = PROMPTS[0]):
    """The inputs for a clip of nine frames at 8 frames per second; the judge sees eight of them, at 7 per second."""
    text = judge.rubric.text(judge.rubric.questions[0], prompt)
    return build_inputs(judge.processor, [frames[SAMPLED]], [text], [7.0], None, [[7 / 8 * frame for frame in SAMPLED]])


def pairs_of_frames() -> list[str]:
    """Pairs at 0 and 1, 2 and 3, 5 and 6, 7 and 8 eighths of a second; their means: 0.0625, 0.3125, 0.6875, 0.9375."""
    seen = ["seconds>", "<|vision_start|>", *["<|video_pad|>"] * 16, "<|vision_end|>"]
    return [token for time in ("<0.1", "<0.3", "<0.7", "<0.9") for token in (time, *seen)]


def numbered_frames() -> list[str]:
    return [t for n in range(1, 9) for t in (f"Frame{n}:", "<img>", *["<IMG_CONTEXT>"] * 16, "</img>")]


# 8 frames with 64 / 8 patches per side, merged 2 by 2: 4 * 4 tokens each. Both Qwen models merge frames in pairs, too
VIDEOS = {
    "qwen2.5": ["<|vision_start|>", *["<|video_pad|>"] * 64, "<|vision_end|>"],
    "qwen3": pairs_of_frames(),
    "internvl": numbered_frames(),
}


def test_the_input_is_the_video_the_question_and_the_start_of_the_answer(judge, family):
    ids = inputs_of(judge, clip())["input_ids"][0]
    assert judge.processor.tokenizer.convert_ids_to_tokens(ids.tolist()) == [
        *("<|im_start|>", "user", *VIDEOS[family]),
        *("judge", "the", "video", "pushing", "red", "ball", "Accept", "or", "Reject", "<|im_end|>"),
        *("<|im_start|>", "assistant"),
    ]


MEANS = {"qwen2.5": OPENAI_CLIP_MEAN, "qwen3": IMAGENET_STANDARD_MEAN, "internvl": OPENAI_CLIP_MEAN}
DEVIATIONS = {"qwen2.5": OPENAI_CLIP_STD, "qwen3": IMAGENET_STANDARD_STD, "internvl": OPENAI_CLIP_STD}


def test_frames_of_the_judges_size_are_not_resampled(judge, family):
    seen = clip()[SAMPLED].transpose(0, 3, 1, 2) / 255  # (F, C, H, W)
    mean, std = (np.array(values[family]).reshape(1, 3, 1, 1) for values in (MEANS, DEVIATIONS))
    frames = (seen - mean) / std
    inputs = inputs_of(judge, clip())
    if family == "internvl":
        pixels = inputs["pixel_values"]
    else:
        pixels = inputs["pixel_values_videos"]
        # (F/2, 2, C, rows, m, p, columns, m, p) -> (F/2, rows, columns, m, m, C, 2, p, p), as DESIGN.md writes it
        patches = frames.reshape(4, 2, 3, 4, 2, 8, 4, 2, 8).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
        frames = patches.reshape(256, 384)
    assert np.abs(pixels.numpy() - frames).max() < 1e-5


@pytest.mark.parametrize("family", ["qwen2.5", "qwen3"])
def test_frames_of_another_size_are_scaled_to_the_judges_size(judge):
    large = np.zeros((8, 128, 128, 3), np.uint8)
    assert build_inputs(judge.processor, [large], ["ball"], [8.0])["video_grid_thw"].tolist() == [[4, 8, 8]]
    for num_frames in (4, 8):
        inputs = build_inputs(judge.processor, [large[:num_frames]], ["ball"], [8.0], 48 * 48)
        assert inputs["video_grid_thw"].tolist() == [[num_frames // 2, 6, 6]]


@pytest.mark.parametrize("family", ["internvl"])
def test_pixels_of_a_judge_with_a_fixed_size_are_an_error(folders, judge):
    large = np.zeros((2, 128, 128, 3), np.uint8)
    assert build_inputs(judge.processor, [large], ["ball"], [8.0])["pixel_values"].shape == (2, 3, SIZE, SIZE)
    problem = "feedback.sources.judge.pixels is 2304, but InternVLVideoProcessor has a fixed size; expected null"
    with pytest.raises(ValueError, match=problem):
        make_source("judge", block(folders["internvl"], pixels=48 * 48))


def test_p_yes_is_the_share_of_the_affirmative_word_in_the_mass_of_both_words(judge, ask):
    request = ask()
    with torch.no_grad():
        logits = judge.vlm(**inputs_of(judge, read_video(request.path))).logits[0, -1].double().numpy()
    mass = dict(zip(judge.processor.tokenizer.convert_ids_to_tokens(range(len(logits))), np.exp(logits), strict=True))
    yes, no = mass["Accept"] + mass["accept"], mass["Reject"]  # the vocabulary has two spellings of Accept
    (verdict,) = verdicts_of(judge, request)
    assert verdict.p_yes == pytest.approx(yes / (yes + no), abs=1e-5)
    assert verdict.answer == (yes > no)
    assert verdict.error is None


def test_positions_come_from_mm_token_type_ids(qwen):
    inputs = inputs_of(qwen, clip())
    assert (inputs["mm_token_type_ids"] == 2).sum() == 64
    with torch.no_grad():
        with_ids = qwen.vlm(**inputs).logits[0, -1]
        without = qwen.vlm(**{k: v for k, v in inputs.items() if k != "mm_token_type_ids"}).logits[0, -1]
    assert (with_ids - without).abs().max() > 1e-2


def test_a_clip_has_the_same_verdict_in_a_batch_and_by_itself(judge, ask):
    requests = [ask(index) for index in range(7)]  # two batches, prompts of several lengths
    requests[2] = ask(2, frames=clip(2, num_frames=5))  # fewer frames than in the rubric
    together = verdicts_of(judge, *requests)
    single = [verdict for one in requests for verdict in verdicts_of(judge, one)]
    assert [v.p_yes for v in together] == pytest.approx([v.p_yes for v in single], abs=1e-5)
    assert [replace(v, p_yes=None) for v in together] == [replace(v, p_yes=None) for v in single]
    assert len({round(v.p_yes, 3) for v in together}) > 1
    assert together[2].frames == [0, 1, 2, 3, 4]


def test_a_run_resumed_between_batches_repeats_the_last_digit(qwen, ask):
    requests = [ask(index) for index in range(10)]
    requests[1] = replace(requests[1], path=Path("absent.mp4"))
    assert verdicts_of(qwen, *requests)[4:] == verdicts_of(qwen, *requests[4:])


def test_the_judge_sees_only_the_eight_sampled_frames(judge, ask):
    (verdict,) = verdicts_of(judge, ask())
    assert verdict.frames == SAMPLED
    changed = {}
    for frame in (4, 5):
        frames = clip()
        frames[frame] = 255 - frames[frame]
        (changed[frame],) = verdicts_of(judge, ask(frames=frames))
    assert changed[4].p_yes == verdict.p_yes
    assert changed[5].p_yes != verdict.p_yes


def test_a_clip_of_one_frame_can_be_judged(judge, ask):
    (verdict,) = verdicts_of(judge, ask(frames=clip(num_frames=1)))
    assert (verdict.error, verdict.frames) == (None, [0])


def test_the_rate_of_sampled_frames_follows_from_their_times():
    assert sampled_fps([0, 1, 2, 3, 5, 6, 7, 8], 8.0) == 7.0  # 7 steps in a second
    assert sampled_fps([0], 8.0) == 8.0


def test_the_verdict_is_the_same_before_and_after_encoding(judge, ask):
    requests = [ask(index) for index in range(4)]
    after = verdicts_of(judge, *requests)
    inputs = [inputs_of(judge, clip(index), one.sample.prompt) for index, one in enumerate(requests)]
    with torch.no_grad():
        logits = torch.cat([judge.vlm(**one).logits[:, -1] for one in inputs])
    before = read_answers(logits, judge.answers["Accept", "Reject"])
    assert [v.answer for v in after] == [answer.p_yes > 0.5 for answer in before]
    assert [v.p_yes for v in after] == pytest.approx([answer.p_yes for answer in before], abs=0.02)


def test_questions_of_a_prompts_own_are_answered_as_each_would_be_alone(folder, ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("name: own\nframes: 8\nrule: all\ninstructions: ''\nquestions: own.csv\n")
    rows = ["red ball,one,ball off table,Accept,Reject", "red ball,two,lifting the ball,Reject,Accept"]
    rows += ["ball off table,one,pushing red ball,Accept,Reject"]
    Path("own.csv").write_text("\n".join(["prompt,name,question,wanted,other", *rows]))
    judge = make_source("judge", block(folder, rubric="own.yaml"))
    requests = [ask(0, "red ball"), ask(1, "ball off table"), ask(2, "red ball")]
    found = {(v.sample_id, v.question): v for rows in judge.judge(iter(requests)) for v in rows}
    assert list(found) == [("clip0", "one"), ("clip0", "two"), ("clip1", "one"), ("clip2", "one"), ("clip2", "two")]
    own = judge.rubric
    for one in requests:
        judge.rubric = own.of(one.sample.prompt)
        (alone,) = judge.judge(iter([one]))
        for row in alone:
            assert row.p_yes == pytest.approx(found[one.sample.sample_id, row.question].p_yes, abs=1e-4)
    Path("own.csv").write_text("prompt,name,question,wanted,other\nred ball,one,zebra,Accept,Reject\n")
    with pytest.raises(ValueError, match="does not know its words .*zebra"):
        make_source("judge", block(folder, rubric="own.yaml"))


def test_an_off_topic_reply_is_null_and_its_raw_text_is_kept(judge, folders, family, ask):
    (verdict,) = verdicts_of(make_source("judge", block(folders[family], min_answer_mass=0.999)), ask())
    assert (verdict.answer, verdict.p_yes) == (None, None)
    assert verdict.error.startswith("unreadable")
    assert verdict.raw in judge.processor.tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("family", "control"), [("qwen2.5", "<|video_pad|>"), ("qwen3", "<|vision_start|>"), ("internvl", "<video>")]
)
def test_an_unusable_prompt_gives_null_and_does_not_affect_its_batch(judge, control, ask):
    requests = [ask(0), ask(1, "pushing purple ball"), ask(2, f"red {control} ball")]
    usable, unknown, controlling = verdicts_of(judge, *requests)
    assert "['purple']" in unknown.error
    assert control in controlling.error
    assert unknown.answer is controlling.answer is None
    assert usable.p_yes == verdicts_of(judge, requests[0])[0].p_yes


def test_a_clip_that_cannot_be_decoded_gives_null_and_does_not_affect_its_batch(qwen, ask):
    requests = [ask(0), replace(ask(1), path=Path("absent.mp4"))]
    seen, unseen = verdicts_of(qwen, *requests)
    assert (unseen.answer, unseen.frames) == (None, [])
    assert unseen.error.startswith("unreadable clip: absent.mp4")
    assert seen == verdicts_of(qwen, requests[0])[0]


def test_a_longer_reply_changes_the_reason_and_not_the_answer(judge, folders, family, ask):
    requests = [ask(index) for index in range(3)]
    brief = verdicts_of(judge, *requests)
    wordy = verdicts_of(make_source("judge", block(folders[family], max_new_tokens=5)), *requests)
    assert [v.p_yes for v in wordy] == pytest.approx([v.p_yes for v in brief], abs=1e-5)
    assert [v.answer for v in wordy] == [v.answer for v in brief]
    assert all(v.reason is None for v in brief)
    assert all(v.raw.startswith(b.raw) for v, b in zip(wordy, brief, strict=True))
    assert max(len(v.raw.split()) for v in wordy) > 1


# The first frame

KNOWN = "judge the video off the ball"  # in the vocabulary


@pytest.fixture
def shown(tmp_path, folders, family):
    """A judge of each family whose rubric shows the first frame."""
    path = tmp_path / "shown.yaml"
    path.write_text(f"first_frame: {KNOWN}\n{Path('tabletop/rubric.yaml').read_text()}")
    return make_source("judge", block(folders[family], rubric=str(path)))


def started_from(request: Request, picture: np.ndarray) -> Request:
    path = request.path.with_suffix(f".{request.sample.sample_id}.png")
    path.write_bytes(png_bytes(picture))
    return replace(request, first_frame=FirstFrame(path, sha256_of(path)))


PICTURES = {
    "qwen2.5": ["<|vision_start|>", *["<|image_pad|>"] * 16, "<|vision_end|>"],
    "qwen3": ["<|vision_start|>", *["<|image_pad|>"] * 16, "<|vision_end|>"],
    "internvl": ["<img>", *["<IMG_CONTEXT>"] * 16, "</img>"],
}


def test_the_first_frame_stands_before_the_video_and_its_words_before_the_question(shown, family):
    text = shown.rubric.text(shown.rubric.questions[0], PROMPTS[0])
    times = [[7 / 8 * frame for frame in SAMPLED]]
    inputs = build_inputs(shown.processor, [clip()[SAMPLED]], [text], [7.0], None, times, [clip()[0]])

    assert shown.processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist()) == [
        *("<|im_start|>", "user", *PICTURES[family], *VIDEOS[family], *KNOWN.split()),
        *("judge", "the", "video", "pushing", "red", "ball", "Accept", "or", "Reject", "<|im_end|>"),
        *("<|im_start|>", "assistant"),
    ]


def test_a_judge_sees_the_first_frame_and_each_clip_of_a_batch_its_own(shown, ask):
    black, white = np.zeros((SIZE, SIZE, 3), np.uint8), np.full((SIZE, SIZE, 3), 255, np.uint8)
    requests = [started_from(ask(0), black), started_from(ask(0), white), started_from(ask(1), clip(1)[0])]
    requests = [replace(one, sample=replace(one.sample, sample_id=str(n))) for n, one in enumerate(requests)]
    alone = [verdicts_of(shown, request)[0].p_yes for request in requests]

    assert abs(alone[0] - alone[1]) > 1e-4
    assert [verdict.p_yes for verdict in verdicts_of(shown, *requests)] == pytest.approx(alone, abs=1e-5)


def test_the_first_frame_is_scaled_as_a_frame_is(shown, family):
    if family == "internvl":
        return  # whose frames have one size
    large = np.zeros((8, 128, 64, 3), np.uint8)
    inputs = build_inputs(shown.processor, [large], ["ball"], [8.0], 32 * 32, firsts=[large[0]])
    assert inputs["image_grid_thw"][0, 1:].tolist() == inputs["video_grid_thw"][0, 1:].tolist()


def test_a_first_frame_that_cannot_be_read_gives_null_and_does_not_affect_its_batch(shown, ask):
    requests = [started_from(ask(index), clip(index)[0]) for index in range(2)]
    requests[1].first_frame.path.write_bytes(b"no picture")
    seen, unseen = verdicts_of(shown, *requests)
    assert unseen.error.startswith("unreadable clip: ") and "not a readable PNG" in unseen.error
    assert seen == verdicts_of(shown, requests[0])[0]


def test_a_judge_that_takes_no_picture_refuses_a_rubric_that_shows_one(tmp_path):
    folder = build_judge(tmp_path / "judge")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|vision_start|><|image_pad|><|vision_end|>", ""))
    (tmp_path / "shown.yaml").write_text(f"first_frame: {KNOWN}\n{Path('tabletop/rubric.yaml').read_text()}")
    with pytest.raises(ValueError, match="shows the first frame, but .*judge takes no picture beside a video"):
        make_source("judge", block(folder, rubric=str(tmp_path / "shown.yaml")))


def question(affirmative: str, negative: str) -> Question:
    return Question("accept", "{prompt}", affirmative, negative, True, True)


def test_answers_that_the_judge_cannot_distinguish_are_an_error():
    tokenizer = word_level_tokenizer(["not", "true", "false"])
    with pytest.raises(ValueError, match="begin with the same token"):
        answer_tokens(tokenizer, question("not true", "not false"))
    with pytest.raises(ValueError, match="lacks the answer 'maybe'"):
        answer_tokens(tokenizer, question("true", "maybe"))


def test_a_rubric_outside_the_judges_vocabulary_is_an_error(folder):
    with pytest.raises(ValueError, match="does not know its words.*'review'"):
        make_source("judge", block(folder, rubric="feedback/rubrics/review.yaml"))


def test_the_version_of_a_local_judge_covers_all_files_that_determine_its_verdicts(tmp_path, qwen):
    folder = build_judge(tmp_path)
    assert fingerprint(folder) == qwen.model_version
    (folder / "README.md").write_text("not read by the judge")
    assert fingerprint(folder) == qwen.model_version
    with (folder / "chat_template.jinja").open("a") as template:
        template.write("so ")
    assert fingerprint(folder) != qwen.model_version


def test_a_wrong_option_is_named(folder):
    wrong = [
        ({"kind": "gwen"}, ".kind is 'gwen'; known are qwen, physics, .*dotted paths"),
        ({"temperature": 1.0}, ".temperature .* is unknown"),
        ({"batch_size": "4"}, ".batch_size is '4', expected"),
        ({"dtype": "float8"}, ".dtype is 'float8'"),
        ({"pixels": 0}, ".pixels is 0"),
        ({"revision": "main"}, ": revision is 'main', but .* is a local folder"),
        ({"path": "models/no/such"}, ".path: models/no/such is neither"),
    ]
    for changes, problem in wrong:
        with pytest.raises(ValueError, match=f"feedback.sources.judge{problem}"):
            make_source("judge", block(folder, **changes))


def test_a_missing_option_is_named(folder):
    short = {key: value for key, value in block(folder).items() if key != "rubric"}
    with pytest.raises(ValueError, match="feedback.sources.judge.rubric is missing"):
        make_source("judge", short)


def test_the_version_of_a_hub_model_is_the_loaded_commit_and_not_the_branch():
    loaded = type("Config", (), {"_commit_hash": "0123abc"})
    assert weights_version("nobody/judge", "main", loaded) == "0123abc"
    assert weights_version("nobody/judge", "v1", object()) == "v1"  # a config without a commit
