import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from data.labels import read_labels, read_verdicts
from data.manifest import read_manifest
from data.records import Pair, Sample, Weighted, read_rows
from data.store import ClipSet, ClipSetWriter, encode_clips, read_clip
from feedback.core.kinds import make_source, read_block
from feedback.core.label import label_clip_set
from feedback.metrics.image_text import Pixels
from feedback.metrics.metric import Metric, MetricSource
from feedback.metrics.reduction import reduced
from stages.build import main
from tabletop.pretraining.judge_model import word_level_tokenizer
from tests.support.conditions import blank_conditions

WORDS = ("pushing", "lifting", "red", "blue", "ball")
EDGE = 32  # pixels per side of the tiny CLIP's input


class Mean:
    """The mean brightness of a clip in one colour channel; nan for the clips of one prompt."""

    model = "brightness"
    model_version = "1"

    def __init__(self, channel: int) -> None:
        self.channel, self.calls = channel, 0
        self.definition = f"Mean of channel {channel}."

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[str], fps: Sequence[float]) -> list[float]:
        self.calls += 1
        means = [float(clip[..., self.channel].mean()) for clip in clips]
        return [math.nan if prompt == "nothing" else mean for mean, prompt in zip(means, prompts, strict=True)]


@pytest.fixture
def clips(tmp_path) -> ClipSet:
    """Five clips of 5 frames of 40 x 48 with red 100, 110 ... and blue 0, 10 ...; the last has another prompt."""
    writer = ClipSetWriter(tmp_path / "set")
    samples = [
        Sample(f"clip{n}", "p", "pushing red ball" if n < 4 else "nothing", "c", "train", "base", n, 5, 8.0, 40, 48,
               f"videos/clip{n}.mp4")
        for n in range(5)
    ]  # fmt: skip
    frames = np.zeros((5, 5, 40, 48, 3), np.uint8)
    for n in range(5):
        frames[n] = 100 + 10 * n, 50, 10 * n
    writer.add_batch(0, samples, encode_clips(samples, frames), torch.zeros(5, 1, 1, 1, 1))
    writer.finish(blank_conditions(["p"]), {"set": "r1"})
    return ClipSet.open(tmp_path / "set")


def labelled(clips: ClipSet, tmp_path: Path, metrics: dict[str, Metric], **options):
    source = MetricSource("m", metrics, **{"batch_size": 2} | options)
    label_clip_set(clips, source, tmp_path / "work", tmp_path / "labels", batch_size=4)
    return read_labels(tmp_path / "labels"), read_verdicts(tmp_path / "labels")


def test_a_metric_gives_scores_and_no_labels(clips, tmp_path):
    red = Mean(0)
    labels, verdicts = labelled(clips, tmp_path, {"red": red})
    assert [label.score for label in labels] == [pytest.approx(100 + 10 * n, abs=1) for n in range(4)] + [None]
    assert [label.label for label in labels] == [None] * 5
    assert [(label.nulls, label.reason) for label in labels[:4]] == [(0, None)] * 4
    assert "red is not defined for this clip, or not finite: nan" in labels[4].reason
    assert verdicts[0].frames == [0, 1, 2, 3, 4] and verdicts[0].model_version == "1"
    assert red.calls == 3  # two clips at a time


def test_a_threshold_makes_labels(clips, tmp_path):
    labels, _ = labelled(clips, tmp_path, {"red": Mean(0)}, threshold=115.0)
    assert [label.label for label in labels] == [False, False, True, True, None]


def test_several_metrics_decode_each_clip_once_and_the_first_gives_the_label(clips, tmp_path, monkeypatch):
    import feedback.core.source

    read, decoded = feedback.core.source.read_clip, []
    monkeypatch.setattr(feedback.core.source, "read_clip", lambda *given: decoded.append(given) or read(*given))
    labels, verdicts = labelled(clips, tmp_path, {"red": Mean(0), "blue": Mean(2)})
    assert len(decoded) == 5
    assert [label.score for label in labels[:4]] == [pytest.approx(100 + 10 * n, abs=1) for n in range(4)]
    of_blue = [row.score for row in verdicts if row.question == "blue"]
    assert of_blue == [pytest.approx(10 * n, abs=1) for n in range(4)] + [None]


def test_an_unreadable_clip_gets_null_and_the_other_clips_keep_their_scores(clips, tmp_path):
    clips.video(clips.samples[1]).write_bytes(b"no mp4")
    labels, verdicts = labelled(clips, tmp_path, {"red": Mean(0)})
    assert [label.score for label in labels] == [pytest.approx(v, abs=1) if v else None for v in (100, 0, 120, 130, 0)]
    assert verdicts[1].error.startswith("unreadable clip")


def test_the_rubric_hash_covers_the_definition_and_the_threshold():
    hashes = {
        MetricSource("m", {"x": Mean(channel)}, 1, threshold).rubric.hash
        for channel in (0, 1)
        for threshold in (None, 0.5)
    }
    assert len(hashes) == 4


def test_sum_and_mean_over_frames_by_hand():
    assert reduced([0.5, 0.25, 1.0], "sum") == 1.75
    assert reduced([0.5, 0.25, 1.5], "mean") == 0.75


def build_of(tmp_path, monkeypatch, **own) -> None:
    """Stage build of the labels of source m, which has these settings of its own, into the folder datasets."""
    build = {
        "reward": "label", "shaping": "linear", "scale": 1.0, "shift": 0.0, "temperature": 1.0, "pairs": "balanced",
        "pairs_per_prompt": 8, "min_margin": 0.0, "seed": 1,
        "sources": {"m": {"reward": "score", "pairs": "quantile"} | own},
    }  # fmt: skip
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"build": build}))
    monkeypatch.chdir(tmp_path)
    options = ["--set", "set", "--labels", "labels", "--out", "datasets", "--metrics", "metrics.json"]
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 0, done.output


def test_build_makes_weights_and_pairs_from_scores_by_the_sources_block(clips, tmp_path, monkeypatch):
    labelled(clips, tmp_path, {"red": Mean(0)})
    build_of(tmp_path, monkeypatch, scale=0.1, shift=0.5)
    weighted = read_rows(tmp_path / "datasets" / "rwr" / "weighted.parquet", Weighted)
    assert [row.weight for row in weighted] == [pytest.approx(0.1 * (100 + 10 * n) + 0.5, abs=0.15) for n in range(4)]
    pairs = read_rows(tmp_path / "datasets" / "dpo" / "paired.parquet", Pair)
    # of the prompt's four clips with a score, each of the better half with each of the worse half
    assert {(row.chosen, row.rejected) for row in pairs} == {
        (better, worse) for better in ("clip2", "clip3") for worse in ("clip0", "clip1")
    }


def test_a_source_may_have_a_shaping_of_its_own_and_the_manifest_names_what_acted(clips, tmp_path, monkeypatch):
    """Scores of about 100, 110, 120 and 130 lie -3, -1, 1 and 3 over the root of 5 from their mean, in spreads."""
    labelled(clips, tmp_path, {"red": Mean(0)})
    build_of(tmp_path, monkeypatch, shaping="group", temperature=2.0)
    weights = [row.weight for row in read_rows(tmp_path / "datasets/rwr/weighted.parquet", Weighted)]
    powers = [math.exp(distance / math.sqrt(5) / 2.0) for distance in (-3, -1, 1, 3)]
    assert weights == pytest.approx([4 * power / sum(powers) for power in powers], rel=0.02)
    facts = {name: read_manifest(tmp_path / "datasets" / name, "dataset")["facts"] for name in ("rwr", "dpo")}
    assert facts["rwr"]["build"] == {"shaping": "group", "temperature": 2.0}
    assert facts["dpo"]["build"].keys().isdisjoint({"shaping", "scale", "shift", "temperature"})
    sizes = json.loads((tmp_path / "metrics.json").read_text())["weights"]["rwr"]
    assert sizes["above_0"] == 4 and 3 < sizes["effective"] == sizes["effective_per_prompt"] < 4

    build_of(tmp_path, monkeypatch, scale=0.1, shift=0.5)
    assert read_manifest(tmp_path / "datasets/rwr", "dataset")["facts"]["build"] == {"scale": 0.1, "shift": 0.5}


# clip


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory) -> Path:
    """A folder with a random CLIP of the real class, a tokenizer and an image processor."""
    return build_clip(tmp_path_factory.mktemp("clip"))


def build_clip(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = word_level_tokenizer(WORDS)
    tower = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}
    config = CLIPConfig(
        text_config=tower
        | {
            "vocab_size": len(tokenizer), "max_position_embeddings": 8, "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config=tower | {"image_size": EDGE, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    crop = {"height": EDGE, "width": EDGE}
    CLIPImageProcessor(size={"shortest_edge": EDGE}, crop_size=crop).save_pretrained(folder)
    return folder


def clip_block(folder: Path, **changes) -> dict:
    return {"kind": "clip", "path": str(folder), "batch_size": 3} | changes


def test_preprocessing_equals_the_processors(tiny_clip):
    processor = CLIPImageProcessor.from_pretrained(tiny_clip)
    for size in ((32, 32), (240, 320), (97, 41), (32, 33)):
        frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
        theirs = processor(list(frames), return_tensors="pt")["pixel_values"]
        assert torch.allclose(Pixels(processor)(frames), theirs, atol=1e-5), size


def test_the_clip_score_is_the_sum_of_the_frames_cosines(tiny_clip, clips, tmp_path):
    label_clip_set(clips, make_source("clip", clip_block(tiny_clip)), tmp_path / "w", tmp_path / "labels", 4)
    scores = [label.score for label in read_labels(tmp_path / "labels")]
    model, processor = CLIPModel.from_pretrained(tiny_clip).eval(), CLIPImageProcessor.from_pretrained(tiny_clip)
    tokenizer = word_level_tokenizer(WORDS)
    for sample, score in zip(clips.samples, scores, strict=True):
        pixels = processor(list(read_clip(clips.video(sample), sample)), return_tensors="pt")
        tokens = tokenizer([sample.prompt], padding="max_length", max_length=8, return_tensors="pt")
        with torch.no_grad():
            logits = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], **pixels)
        cosines = logits.logits_per_image[:, 0] / model.logit_scale.exp()
        assert score == pytest.approx(cosines.sum().item(), abs=1e-4)


def test_fewer_frames_and_the_mean_are_options(tiny_clip, clips, tmp_path):
    for name, changes in {"all": {"reduce": "mean"}, "three": {"frames": 3}, "many": {"frames": 99}, "sum": {}}.items():
        source = make_source("clip", clip_block(tiny_clip, **changes))
        label_clip_set(clips, source, tmp_path / f"w-{name}", tmp_path / name, 4)
    by = {name: [label.score for label in read_labels(tmp_path / name)] for name in ("all", "three", "many", "sum")}
    assert by["all"] == pytest.approx([score / 5 for score in by["sum"]], abs=1e-6)
    assert by["three"] == pytest.approx([3 * score / 5 for score in by["sum"]], abs=1e-4)  # all frames are equal
    assert by["many"] == by["sum"]


def test_scores_do_not_depend_on_the_batch(tiny_clip, clips, tmp_path):
    for size in (1, 5):
        source = make_source("clip", clip_block(tiny_clip, batch_size=size))
        label_clip_set(clips, source, tmp_path / f"w{size}", tmp_path / f"l{size}", 4)
    one, five = ([label.score for label in read_labels(tmp_path / f"l{size}")] for size in (1, 5))
    assert one == pytest.approx(five, abs=1e-5)


def test_wrong_options_are_named(tiny_clip):
    wrong = [
        ({"reduce": "max"}, "reduce is 'max', expected 'sum' or 'mean'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"frames": 0}, "frames is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"path": "nowhere"}, "path: nowhere is neither a folder nor a hub id"),
        ({"shaping": {}}, "shaping .* is unknown; known keys are .*processor"),
    ]
    for changes, problem in wrong:
        with pytest.raises(ValueError, match=f"feedback.sources.c.{problem}"):
            read_block("c", clip_block(tiny_clip, **changes))


def test_a_folder_without_a_clip_model_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"feedback.sources.c.path: no CLIP could be loaded from"):
        make_source("c", clip_block(tmp_path))


# pickscore


def test_pickscore_is_the_clip_score_times_the_temperature_with_a_separate_processor(tiny_clip, clips, tmp_path):
    bare = tmp_path / "bare"  # only weights, as in the published folder
    CLIPModel.from_pretrained(tiny_clip).save_pretrained(bare)
    blocks = {
        "clip": clip_block(tiny_clip),
        "pickscore": {"kind": "pickscore", "path": str(bare), "processor": str(tiny_clip)},
    }
    for name, block in blocks.items():
        label_clip_set(clips, make_source(name, block), tmp_path / f"w-{name}", tmp_path / name, 4)
    cosines, scores = ([label.score for label in read_labels(tmp_path / name)] for name in blocks)
    temperature = CLIPModel.from_pretrained(tiny_clip).logit_scale.exp().item()
    assert temperature > 10
    assert scores == pytest.approx([temperature * cosine for cosine in cosines], rel=1e-4)
