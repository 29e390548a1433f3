"""What a server of one's own is sent, how it is found out what it shows the model, and where the answer is read."""

import json
import logging
from typing import Any

import numpy as np
import pytest
import torch
from transformers.video_utils import VideoMetadata

from data.video import sample_frames
from feedback.core.answers import after_thoughts
from feedback.core.kinds import make_source
from feedback.core.label import requests_for
from feedback.core.source import UNREADABLE_ANSWER
from feedback.judges.vlm import sampled_fps
from feedback.network.pictures import frame_times, frames_of, frames_size, frames_url
from feedback.network.server_probe import missing_frames
from tests.support.network import CLIPS, block_of, judged, outcomes, source_at, stopped, word

LOG_HALF, LOG_TENTH = -0.6931472, -2.3025851


def token(text: str, **top: float) -> dict[str, Any]:
    """A token of a reply. top: the log probabilities of the most probable ones; without them the token is certain."""
    alternatives = [{"token": word, "logprob": value} for word, value in (top or {text: 0.0}).items()]
    return {"token": text, "logprob": 0.0, "top_logprobs": alternatives}


def completion(content: str | None, tokens: list[dict[str, Any]] | None, **message: str) -> dict[str, Any]:
    """A server's reply. message: further fields of the message, such as reasoning_content."""
    logprobs = None if tokens is None else {"content": tokens}
    choice = {"message": {"role": "assistant", "content": content} | message, "finish_reason": "stop"}
    return {"model": "m", "choices": [choice | {"logprobs": logprobs}]}


# What is sent


def test_by_default_the_frames_of_the_rubric_are_sent_as_one_video_with_their_times(server, clips):
    (row,) = judged(source_at(server, "served"), clips, 1).values()
    (body,) = server.bodies
    (video, text) = body["messages"][0]["content"]
    assert row.frames == [0, 1, 2, 3, 5, 6, 7, 8] and text["type"] == "text"
    assert np.array_equal(frames_of(video["video_url"]["url"]), clips.frames(clips.samples[0])[row.frames])
    assert frames_size(video["video_url"]["url"]) == (8, 32, 32)
    # 8 of 9 frames at 8 a second: 7 steps in a second, so 7 a second. In 56ths of a second they are at 0, 7, 14, ...
    assert body["media_io_kwargs"] == {
        "video": {
            "num_frames": -1, "fps": 56.0, "frames_indices": [0, 7, 14, 21, 35, 42, 49, 56], "total_num_frames": 64,
            "do_sample_frames": False,
        }
    }  # fmt: skip


def test_a_server_derives_the_rate_and_the_times_that_a_judge_in_this_process_is_given():
    for count, wanted, fps in ((9, 8, 8.0), (9, 9, 8.0), (9, 4, 8.0), (81, 8, 16.0), (33, 2, 15.0), (49, 7, 23.976)):
        indices = sample_frames(count, wanted)
        told = frame_times(indices, fps)
        names = ("fps", "frames_indices", "total_num_frames")
        derived = VideoMetadata(**{name: told[name] for name in names})
        assert torch.tensor(derived.sampled_fps) == torch.tensor(sampled_fps(indices, fps)), (count, wanted)
        assert np.allclose(np.array(derived.frames_indices) / derived.fps, np.array(indices) / fps), (count, wanted)
        assert told["total_num_frames"] >= len(indices) and all(type(i) is int for i in told["frames_indices"])
    assert frame_times([0, 4, 8], 8.0)["frames_indices"] == [0, 1, 2]
    assert frame_times([4], 8.0) | {"num_frames": 0} == {
        "num_frames": 0, "fps": 8.0, "frames_indices": [4], "total_num_frames": 1, "do_sample_frames": False,
    }  # fmt: skip


def test_verdicts_list_no_frames_where_the_server_chooses_them(server, clips):
    assert judged(source_at(server, "served", clip="video"), clips, 1)["clip0"].frames == []
    assert judged(source_at(server, "served", clip="frames"), clips, 1)["clip0"].frames == [0, 1, 2, 3, 5, 6, 7, 8]
    video, pictures = server.bodies
    assert video["messages"][0]["content"][0]["video_url"]["url"].startswith("data:video/mp4;base64,")
    assert [part["type"] for part in pictures["messages"][0]["content"]] == ["image_url"] * 8 + ["text"]
    assert not server.probes and "media_io_kwargs" not in video | pictures


# What the server shows the model


def test_a_server_is_probed_once_before_the_first_clip_and_not_where_all_is_answered(server, clips, ledger):
    rows = judged(source_at(server, "served"), clips)
    assert len(server.probes) == 4 and len(server.attempts) == CLIPS and outcomes(ledger) == ["answered"] * CLIPS
    assert judged(source_at(server, "served"), clips) == rows
    assert len(server.probes) == 4
    sizes = [frames_size(body["messages"][0]["content"][0]["video_url"]["url"]) for body in server.probes]
    assert sizes == [(2, 32, 32), (4, 32, 32), (8, 32, 32), (2, 32, 32)]


WRONG_SERVERS = (
    (
        {"most_frames": 4},
        "shows the model 4 of 8 frames: 850, 900 and 900 prompt tokens for 2, 4 and 8 frames of 32x32",
    ),
    ({"most_frames": 2}, "no more of four frames than of two: 850, 850 and 850"),
    ({"reads_times": False}, "ignores the times of the frames"),
    ({"trusts": False}, "does not take a video of frames: HTTP 400: Per-request media_io_kwargs are disabled"),
)


def test_a_server_that_shows_other_frames_is_an_error_that_says_how_to_start_it(server, clips):
    for wrong, words in WRONG_SERVERS:
        for name, value in ({"most_frames": None, "reads_times": True, "trusts": True} | wrong).items():
            setattr(server.behaviour, name, value)
        message = stopped(source_at(server, "served", model="my models/m"), clips)
        assert words in message, message
        assert "vllm serve 'my models/m' --trust-request-mm-kwargs --limit-mm-per-prompt '{\"video\": 2}'" in message
        assert "clip: frames" in message
        assert not server.attempts, wrong


def test_a_server_that_only_scales_long_videos_down_is_right(server, clips):
    server.behaviour.pixels = 4 * 32 * 32
    assert judged(source_at(server, "served"), clips, 1)["clip0"].answer is not None
    assert len(server.probes) > 4


def test_a_server_that_counts_no_tokens_is_a_warning(server, clips, caplog):
    server.behaviour.usage = False
    with caplog.at_level(logging.WARNING):
        assert judged(source_at(server, "served"), clips, 1)["clip0"].answer is not None
    assert "does not say how many tokens a prompt has" in caplog.text


def test_tokens_of_all_frames_are_accepted_by_pairs_and_one_by_one():
    for counts, tokens, right in (
        ((2, 4, 8), (84, 100, 132), True),
        ((2, 4, 9), (84, 100, 148), True),  # the last of nine repeated
        ((2, 4, 9), (84, 100, 140), True),  # nine counted one by one
        ((2, 4, 41), (600, 1000, 8425), True),  # times of more digits take a token more
        ((2, 4, 8), (84, 100, 116), False),
        ((2, 4, 8), (84, 100, 164), False),
    ):
        assert (missing_frames(counts, list(tokens), "32x32") is None) == right, (counts, tokens)


def test_a_fault_while_a_server_is_probed_is_tried_again(clips, server):
    server.behaviour.probe_faults = 2
    rows = judged(source_at(server, "served", concurrency=1), clips, 2)
    assert all(row.answer is not None for row in rows.values()) and len(server.probes) == 6


def test_check_with_is_an_option_of_exact_frames_alone():
    with pytest.raises(ValueError, match="check_with is .*, but clip is frames"):
        make_source("j", block_of("served", "http://127.0.0.1:9", check_with="a/b", clip="frames"))


# Where the answer is


YES = {"Acc": LOG_HALF, "Rej": LOG_TENTH}  # 0.5 / (0.5 + 0.1)
BEGINS = [token("Acc", **YES), token("ept"), token("<|im_end|>")]
MISLEADING = [token("<think>"), token("Reject", Reject=-0.1), token("?"), token("</think>")]
PLACES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("plain", completion("Accept", BEGINS)),
    ("a newline first", completion("\n\nAccept", [token("\n\n", Rej=-0.1), *BEGINS])),
    ("a quote first", completion('"Accept"', [token('"', Rej=-0.1), *BEGINS[:2], token('"')])),
    ("thoughts", completion("<think>Reject?</think>\n\nAccept", [*MISLEADING, token("\n\n"), *BEGINS])),
    ("thoughts that the template began", completion("Reject?</think>Accept", [*MISLEADING[1:], *BEGINS])),
    ("words whose tokens hold no spaces", completion(" Accept because it moves",
     [*BEGINS[:2], token("because"), token("▁it"), token("moves")])),
    ("thoughts apart", completion("Accept", BEGINS, reasoning_content="Reject?")),
    ("thoughts apart, with tokens", completion("Accept", [*MISLEADING, *BEGINS], reasoning_content="Reject?")),
    ("an answer in marks", completion("<think>Reject?</think><answer>Accept</answer>",
     [*MISLEADING, token("<answer>"), *BEGINS[:2], token("</answer>")])),
    ("an object after thoughts", completion('<think>Reject?</think>{"answer": "Accept"}',
     [*MISLEADING, token('{"answer": "'), *BEGINS[:2], token('"}')])),
)  # fmt: skip
WORDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("no log probabilities", completion("Accept", None)),
    ("thoughts without log probabilities", completion("<think>Reject?</think>Accept", None)),
    ("tokens that are not the text", completion("Accept", [token("Ġ"), token("Qcc", Rej=-0.1)])),
    ("no alternatives", completion("Accept", [token("Accept") | {"top_logprobs": []}])),
    ("a malformed alternative", completion("Accept", [token("Accept") | {"top_logprobs": [None]}])),
)


def text_of(body: dict[str, Any]) -> str:
    """What a reply says."""
    return str(body["choices"][0]["message"]["content"])


def test_p_yes_is_read_where_the_answer_begins_and_from_the_words_where_that_cannot_be_told(server, clips):
    for name, body in PLACES + WORDS:
        server.behaviour.script = [{"body": body}]
        (row,) = judged(source_at(server, "served", model=name), clips, 1).values()
        assert word(row) == "Accept" and row.error is None, (name, row)
        assert row.p_yes == (None if (name, body) in WORDS else pytest.approx(0.5 / 0.6)), name
        assert row.reason == ("because it moves" if "because" in text_of(body) else None), (name, row)


def test_thoughts_without_an_end_are_no_answer_and_say_what_to_raise(server, clips):
    for number, body in enumerate(
        (completion("<think>Accept or Reject", BEGINS), completion(None, BEGINS, reasoning_content="Accept"))
    ):
        body["choices"][0]["finish_reason"] = "length"
        server.behaviour.script = [{"body": body}]
        (row,) = judged(source_at(server, "served", model=str(number)), clips, 1).values()
        assert row.answer is None and row.error.startswith(UNREADABLE_ANSWER), body
        assert "thoughts without an answer" in row.error and "max_tokens" in row.error, row.error


def test_a_reply_without_thoughts_is_left_as_it_is():
    for text in ("Accept", "I think so", '{"answer": "Accept"}', "Accept. <think>"):
        assert after_thoughts(text) == text


def test_answers_without_log_probabilities_among_others_with_them_are_counted(server, clips, caplog):
    server.behaviour.script = [{"of": f"scene {n}.", "body": completion("Reject", None)} for n in range(6, CLIPS)]
    source = source_at(server, "served")
    with caplog.at_level(logging.WARNING):
        rows = judged(source, clips)
    assert [row.p_yes is None for row in map(rows.__getitem__, (f"clip{n}" for n in range(CLIPS)))] == (
        [False] * 6 + [True] * 6
    )
    assert all(row.answer is not None for row in rows.values())
    assert source.status()["by words"] == 6
    assert "6 of 12 answers came without log probabilities" in caplog.text


def test_a_server_that_never_sends_log_probabilities_is_no_warning(server, clips, caplog):
    server.behaviour.refuses = ("logprobs",)
    source = source_at(server, "served")
    with caplog.at_level(logging.WARNING):
        rows = judged(source, clips, 3)
    assert {row.p_yes for row in rows.values()} == {None} and "by words" not in source.status()
    assert "without log probabilities" not in caplog.text


def test_the_request_of_a_vote_names_its_times_too(clips):
    source = make_source("j", block_of("served", "http://127.0.0.1:9"))
    bodies = [call.plan.body for call in source.calls_about(requests_for(clips, 1)[0].sample, 3, "")]
    assert [body["seed"] for body in bodies] == [0, 1, 2]
    assert len({json.dumps(body["media_io_kwargs"]) for body in bodies}) == 1


def test_frames_survive_the_url_that_they_are_sent_in():
    frames = np.random.default_rng(0).integers(0, 255, (3, 4, 6, 3)).astype(np.uint8)
    assert np.array_equal(frames_of(frames_url(frames, [2, 0], "png")), frames[[2, 0]])


def test_a_reply_without_either_word_is_no_answer_at_any_least_probability(server, clips):
    server.behaviour.script = [{"body": completion("Hmm", [token("Hmm")])}]
    (row,) = judged(source_at(server, "served", min_answer_mass=0.0), clips, 1).values()
    assert row.answer is None and "all answers have a probability of 0" in row.error
