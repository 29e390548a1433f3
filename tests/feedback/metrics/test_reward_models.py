"""Reward models of the published layouts with random weights: offline, with gradient, and what is refused."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.transforms import functional as images
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

from data.records import Sample
from data.store import ClipSet, ClipSetWriter, encode_clips
from feedback.core.kinds import make_source, read_block
from feedback.core.label import look_at
from feedback.differentiable.augment import Augmentation
from feedback.differentiable.metric import MetricJudge, load_metric
from feedback.metrics.reward_models.frames import fixed_count, frame_count, most_pixels
from feedback.metrics.reward_models.loading import last_checkpoint, merge_lora
from feedback.metrics.reward_models.texts import read_text
from tests.support.conditions import blank_conditions
from tests.support.refusals import assert_refused
from tests.support.reward_models import (
    NORMAL,
    SCORE_TEXT,
    TEXT,
    build_base,
    build_videoreward,
    build_videoscore,
    write_config,
)

PROMPT, RATE = "pushing red ball", 8.0
VIDEOSCORE = [
    "overall",
    "visual_quality",
    "temporal_consistency",
    "dynamic_degree",
    "text_to_video_alignment",
    "factual_consistency",
]


@pytest.fixture
def small_set(tmp_path) -> ClipSet:
    """Two clips of 9 frames of 32 x 48 at 8 frames a second."""
    writer = ClipSetWriter(tmp_path / "set")
    samples = [
        Sample(f"clip{n}", "p", PROMPT, "c", "train", "base", n, 9, RATE, 32, 48, f"videos/clip{n}.mp4")
        for n in range(2)
    ]
    frames = np.stack([clip_of(seed=n) for n in range(2)])
    writer.add_batch(0, samples, encode_clips(samples, frames), torch.zeros(2, 1, 1, 1, 1))
    writer.finish(blank_conditions(["p"]), {"set": "r1"})
    return ClipSet.open(tmp_path / "set")


class Built:
    """The folders of this file's models."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.base = folder, build_base(folder / "base")
        self.reward = build_videoreward(folder / "videoreward", self.base)
        build_videoscore(folder / "videoscore", self.base)
        (folder / "reward.txt").write_text(TEXT)
        (folder / "score.txt").write_text(SCORE_TEXT)

    def videoreward(self, **changes: object) -> dict:
        return {
            "kind": "videoreward",
            "path": str(self.folder / "videoreward"),
            "text": str(self.folder / "reward.txt"),
            "dtype": "float32",
            "cache": str(self.folder / "cache"),
        } | changes

    def videoscore(self, **changes: object) -> dict:
        return {
            "kind": "videoscore",
            "path": str(self.folder / "videoscore"),
            "text": str(self.folder / "score.txt"),
            "dtype": "float32",
        } | changes


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    return Built(tmp_path_factory.mktemp("reward_models"))


def clip_of(frames: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 32, 48, 3), np.uint8)


def hidden_states(model: nn.Module, folder: Path, clip: np.ndarray, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and last hidden states by the processor's and the model's own calls, positions 0, 1, 2 … on every axis.

    The frames are 32 x 48, too small for the least of 128 * 28 * 28 pixels: they become 280 x 392.
    """
    processor = AutoProcessor.from_pretrained(folder)
    message = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]
    said = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    whole = torch.from_numpy(clip).permute(0, 3, 1, 2)
    video = images.resize(whole, [280, 392], images.InterpolationMode.BICUBIC, antialias=True)
    inputs = processor(text=[said], videos=[video], do_sample_frames=False, return_tensors="pt")
    ids = inputs["input_ids"]
    with torch.no_grad():
        found = model(
            input_ids=ids,
            position_ids=torch.arange(ids.shape[1]).expand(3, 1, -1),
            pixel_values_videos=inputs["pixel_values_videos"],
            video_grid_thw=inputs["video_grid_thw"],
        )
    return ids[0], found.last_hidden_state[0]


def test_videoreward_reads_its_head_at_the_three_tokens_and_normalises(built):
    clip = clip_of()
    model = load_metric("m", built.videoreward(), "cpu")
    (converted,) = (one for one in (built.folder / "cache").iterdir() if not one.name.startswith("."))
    inner = built.reward.base_model.model  # with LoRA beside the weights, not merged
    text = TEXT.replace("{text_prompt}", PROMPT)
    ids, hidden = hidden_states(inner.model, converted, clip[[0, 3, 5, 8]], text)
    tokens = AutoProcessor.from_pretrained(converted).tokenizer.convert_tokens_to_ids(
        ["<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"]
    )
    raw = [(hidden[(ids == token).nonzero()[0, 0]] @ inner.rm_head.weight[0]).item() for token in tokens]
    by_name = zip(("VQ", "MQ", "TA"), raw, strict=True)
    wanted = {name: (one - NORMAL[f"{name}_mean"]) / NORMAL[f"{name}_std"] for name, one in by_name}
    found = dict(zip(model.measures, (one for (one,) in model.all_scores([clip], [PROMPT], [RATE])), strict=True))
    assert model.measures == ["Overall", "VQ", "MQ", "TA"]
    assert found == pytest.approx(wanted | {"Overall": sum(wanted.values())}, abs=1e-3)
    assert len(set(map(round, raw))) > 1 or max(raw) - min(raw) > 0.05  # the tokens differ


def test_a_head_of_three_rows_has_a_row_for_each_token(built, tmp_path):
    wrapped = build_videoreward(tmp_path / "three", built.base, outputs=3)
    block = built.videoreward(path=str(tmp_path / "three"))
    model = load_metric("m", block, "cpu")
    clip = clip_of()
    ((overall,),) = [model.score([clip], [PROMPT], [RATE])]
    head = wrapped.base_model.model.rm_head.weight
    assert head.shape[0] == 3 and math.isfinite(overall)
    one_row = load_metric("m", built.videoreward(), "cpu").score([clip], [PROMPT], [RATE])
    assert overall != pytest.approx(one_row[0])


def test_videoscore_reads_its_head_at_the_last_token(built):
    clip = clip_of()
    model = load_metric("m", built.videoscore(fps=4.0), "cpu")
    folder = built.folder / "videoscore"
    whole = Qwen2VLForConditionalGeneration.from_pretrained(built.base)
    text = SCORE_TEXT.replace("{text_prompt}", PROMPT)
    _, hidden = hidden_states(whole.model, folder, clip[[0, 3, 5, 8]], text)
    head = load_file(folder / "model.safetensors")
    raw = (head["score.weight"] @ hidden[-1] + head["score.bias"]).tolist()
    found = [one for (one,) in model.all_scores([clip], [PROMPT], [RATE])]
    assert model.measures == VIDEOSCORE
    assert found == pytest.approx([sum(raw) / 5, *raw], abs=1e-3)


def test_every_measure_has_a_verdict_and_the_chosen_one_is_the_score(built, small_set):
    source = make_source("rm", built.videoreward(score="MQ"), "cpu")
    (look, *_) = look_at(small_set, source, 2)
    assert [one.question for one in look.verdicts] == ["MQ", "VQ", "TA", "Overall"] == list(source.metrics)
    assert look.label.score == look.verdicts[0].score
    assert look.verdicts[0].frames == [0, 3, 5, 8]  # the verdict says which frames it saw
    total = sum(one.score for one in look.verdicts[:3])
    assert look.verdicts[3].score == pytest.approx(total, abs=1e-4)


def test_a_clip_of_one_frame_and_a_prompt_with_a_control_token_have_no_number(built):
    model = load_metric("m", built.videoreward(), "cpu")
    found = model.score([clip_of(1), clip_of(), clip_of()], [PROMPT, "red <|VQ_reward|>", PROMPT], [RATE] * 3)
    assert [math.isnan(one) for one in found] == [True, True, False]


def test_the_other_clips_of_a_batch_change_nothing(built):
    model = load_metric("m", built.videoscore(), "cpu")
    clips = [clip_of(seed=seed) for seed in range(3)]
    together = model.score(clips, [PROMPT] * 3, [RATE] * 3)
    assert together == [model.score([clip], [PROMPT], [RATE])[0] for clip in clips]


# With gradient


@pytest.fixture(params=["videoreward", "videoscore"])
def judged(request, built):
    return load_metric("m", getattr(built, request.param)(), "cpu")


def judge_of(metric) -> MetricJudge:
    return MetricJudge("m", metric, {"p1": PROMPT}, Augmentation(), RATE)


def test_the_loss_is_minus_the_score_of_the_same_8_bit_frames(judged):
    clip, judge = clip_of(), judge_of(judged)
    (score,) = judged.score([clip], [PROMPT], [RATE])
    indices = judge.frame_indices(len(clip), 0)
    frames = (torch.from_numpy(clip[indices]).float() / 255).requires_grad_()
    assert indices == judged.frame_indices(len(clip), RATE)
    assert judge(frames, "p1", 0).loss.tolist() == pytest.approx([-score], rel=1e-3, abs=1e-3)


def test_following_the_gradient_raises_the_score_through_the_processor(judged):
    judge = judge_of(judged)
    frames = torch.rand(4, 32, 48, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    first = judge(frames, "p1", 0).loss
    for _ in range(3):
        (gradient,) = torch.autograd.grad(judge(frames, "p1", 0).loss.sum(), frames)
        assert (gradient.abs().sum((1, 2, 3)) > 0).all()
        frames = (frames - 0.02 * gradient / gradient.abs().max()).detach().requires_grad_()
    assert judge(frames, "p1", 0).loss < first
    assert all(not weight.requires_grad for weight in judged._backbone.parameters())


# Frames


def test_frames_are_counted_as_the_authors_code_counts_them():
    """81 frames at 16 a second are 5.06 s: at 2 a second 10.1, so 10; 9 at 8 are 1.1 s: 2.25, so at least 4."""
    assert frame_count(81, 16, 2) == 10
    assert frame_count(9, 8, 2) == 4
    assert frame_count(9, 8, 8) == 8  # 9, and an even number of frames is shown
    assert frame_count(3, 8, 2) == 2  # no more than there are
    assert frame_count(1, 8, 2) == 0
    assert frame_count(100_000, 24, 24) == 768
    assert [fixed_count(count, 16) for count in (81, 9, 1)] == [16, 9, 0]


def test_more_frames_have_fewer_pixels_each():
    assert most_pixels(10) == 768 * 28 * 28
    assert most_pixels(100) == 24576 * 28 * 28 // 100 * 2
    assert most_pixels(768) == int(1.05 * 128 * 28 * 28)


# What is read, and what is refused


def test_a_lora_is_added_by_its_scale():
    """W = [[1, 0], [0, 1]], A = [[1, 2]], B = [[3], [4]]: BA = [[3, 6], [4, 8]], alpha / r = 2 / 1."""
    weights = {
        "language_model.q.base_layer.weight": torch.eye(2),
        "language_model.q.lora_A.default.weight": torch.tensor([[1.0, 2.0]]),
        "language_model.q.lora_B.default.weight": torch.tensor([[3.0], [4.0]]),
        "lm_head.weight": torch.zeros(1),
    }
    weights = {name.replace(".base_layer.", "."): one for name, one in weights.items()}
    merged = merge_lora(weights, {"lora_r": 1, "lora_alpha": 2})
    assert merged.keys() == {"language_model.q.weight"}
    assert merged["language_model.q.weight"].tolist() == [[7.0, 12.0], [8.0, 17.0]]
    four = merge_lora(weights, {"lora_r": 4, "lora_alpha": 2, "use_rslora": True})  # 2 / sqrt(4) = 1
    assert four["language_model.q.weight"].tolist() == [[4.0, 6.0], [4.0, 9.0]]


def test_the_adapter_layout_gives_the_numbers_of_the_whole_one(built, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(built.folder / "videoreward", folder)
    checkpoint = last_checkpoint(folder)
    whole = torch.load(checkpoint / "model.pth", weights_only=True)
    (checkpoint / "model.pth").unlink()
    adapter = {
        name.replace(".default.weight", ".weight"): one.contiguous() for name, one in whole.items() if "lora_" in name
    }
    others = {name: one for name, one in whole.items() if name.endswith("rm_head.weight") or "embed_tokens" in name}
    assert len(adapter) == len(get_peft_model_state_dict(built.reward))
    save_file(adapter, checkpoint / "adapter_model.safetensors")
    torch.save(others, checkpoint / "non_lora_state_dict.pth")
    clip = clip_of()
    one = load_metric("m", built.videoreward(path=str(folder)), "cpu").score([clip], [PROMPT], [RATE])
    two = load_metric("m", built.videoreward(), "cpu").score([clip], [PROMPT], [RATE])
    assert one == pytest.approx(two, abs=1e-4)


def test_the_last_step_is_taken(tmp_path):
    for step in ("9", "100", "best"):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_checkpoint(tmp_path).name == "checkpoint-100"


def test_a_text_is_a_constant_of_a_file_that_is_not_run_or_a_whole_file(tmp_path):
    code = tmp_path / "prompts.py"
    code.write_text("raise SystemExit\nTEXT = '''rate {text_prompt}'''\nOTHER = TEXT\nBARE = 'rate'\n")
    assert read_text(str(code), "TEXT") == "rate {text_prompt}"
    assert_refused(
        lambda name: read_text(str(code), name),
        [("MISSING", "assigns no text to MISSING"), ("OTHER", "assigns no text"), ("BARE", "has no {text_prompt}")],
    )
    code.write_text("TEXT = (")
    with pytest.raises(ValueError, match="cannot be read"):
        read_text(str(code), "TEXT")


def test_a_block_says_what_it_lacks(built, tmp_path):
    (tmp_path / "empty").mkdir()
    cases = [
        (built.videoreward(text=None), "text is missing: download https://github.com/KwaiVGI"),
        (built.videoscore(text=None), "text is missing: download https://github.com/TIGER-AI-Lab"),
        (built.videoreward(path=str(tmp_path / "empty")), "has no model_config.json"),
        (built.videoreward(text="no/such.py"), "no/such.py does not exist"),
    ]
    assert_refused(lambda block: read_block("m", block), cases)


def test_a_folder_of_another_layout_is_refused_by_file_and_key(built, tmp_path):
    def changed(**changes: dict | None) -> dict:
        folder = tmp_path / f"changed-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(built.folder / "videoreward", folder)
        write_config(folder, built.base, **changes)
        return built.videoreward(path=str(folder))

    def damaged(what: str) -> dict:
        folder = tmp_path / f"damaged-{what}"
        shutil.copytree(built.folder / "videoreward", folder)
        file = last_checkpoint(folder) / "model.pth"
        if what == "code":
            torch.save({"rm_head.weight": Path("/tmp")}, file)
        elif what == "head":
            torch.save({n: w for n, w in torch.load(file).items() if "rm_head" not in n}, file)
        elif what == "layer":
            torch.save({n: w for n, w in torch.load(file).items() if "layers.1" not in n}, file)
        else:
            shutil.rmtree(last_checkpoint(folder))
        return built.videoreward(path=str(folder))

    def scoring(what: str) -> dict:
        folder = tmp_path / f"score-{what}"
        shutil.copytree(built.folder / "videoscore", folder)
        if what == "pickle":
            (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        else:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"score_type": "special_token"}))
        return built.videoscore(path=str(folder))

    cases = [
        (changed(model_config={"use_special_tokens": False, "reward_token": "mean"}), "reward_token is 'mean'"),
        (changed(data_config={"sample_type": "multi_pts"}), "sample_type is 'multi_pts'"),
        (changed(data_config={"eval_dim": ["VQ", "XX"]}), "eval_dim has 'XX'"),
        (built.videoreward(score="fun"), "sources.m.score is 'fun', expected 'Overall', 'VQ', 'MQ' or 'TA'"),
        (built.videoscore(score="fun"), "sources.m.score is 'fun', expected 'overall', 'visual_quality'"),
        (
            changed(data_config={"eval_dim": ["VQ"]}, inference_config={"VQ_mean": 0.0}) | {"score": "TA"},
            "score is 'TA'; its measures are VQ, Overall",
        ),
        (changed(peft_lora_config=None), "lora_r"),
        (damaged("code"), "contains more than plain tensors, which is refused"),
        (damaged("head"), "no rm_head.weight"),
        (damaged("layer"), "language_model.layers.1.* is missing, expected"),
        (damaged("step"), "has no folder checkpoint-<step>"),
        (scoring("pickle"), r"has no \*.safetensors; a pickle is not read"),
        (scoring("tokens"), "score_type special_token"),
    ]
    assert_refused(lambda block: make_source("m", block, "cpu"), cases)


def test_without_normalisation_the_numbers_are_the_heads(built, tmp_path):
    folder = tmp_path / "raw"
    shutil.copytree(built.folder / "videoreward", folder)
    write_config(folder, built.base, inference_config=None)
    clip = clip_of()
    raw, normalised = (
        dict(zip(model.measures, (one for (one,) in model.all_scores([clip], [PROMPT], [RATE])), strict=True))
        for model in (
            load_metric("m", built.videoreward(path=str(folder)), "cpu"),
            load_metric("m", built.videoreward(), "cpu"),
        )
    )
    assert normalised["VQ"] == pytest.approx((raw["VQ"] - 1.0) / 2.0, abs=1e-4)


def test_a_base_on_the_hub_counts_by_the_commit_that_is_loaded(built, tmp_path, monkeypatch):
    keys = set()

    def stop(kind, key, convert, cache):
        assert convert.args[1:3] == ("me/base", commit)
        keys.add(key)
        raise ValueError("before the conversion")

    monkeypatch.setattr("feedback.metrics.reward_models.loading.converted", stop)
    for commit in ("a" * 40, "b" * 40):  # of main, which has moved
        monkeypatch.setattr(
            "feedback.metrics.reward_models.loading.snapshot_download", lambda *_, at=commit, **__: str(tmp_path / at)
        )
        with pytest.raises(ValueError, match="before the conversion"):
            make_source("m", built.videoreward() | {"base": "me/base"})
    assert len(keys) == 2
