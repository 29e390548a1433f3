from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor, CLIPModel, ViTConfig, ViTModel

from feedback.core.kinds import make_source, needs_device, read_block
from feedback.metrics.consistency import consistency, shorter_edge
from feedback.metrics.flow import Motion
from feedback.metrics.image_text import Pixels
from feedback.metrics.vbench import DynamicDegree, moves, stillness
from tests.feedback.metrics.test_metric import build_clip


def test_consistency_by_hand():
    """Vectors at 0, 60 and 150 degrees: cosines .5 and .5, then cos 90 = 0 and cos 150 < 0, which counts as 0."""
    angles = torch.deg2rad(torch.tensor([0.0, 60.0, 150.0]))
    embeddings = torch.stack([3 * angles.cos(), 3 * angles.sin()], -1)
    assert consistency(embeddings) == pytest.approx((0.5 + 0.0) / 2)
    assert consistency(torch.ones(4, 3)) == pytest.approx(1.0)
    assert np.isnan(consistency(torch.ones(1, 3)))


def test_stillness_by_hand():
    clip = np.zeros((3, 2, 2, 3), np.uint8)
    clip[1] = 51  # up by a fifth of 255, then down
    assert stillness(clip) == pytest.approx(0.8)
    assert stillness(clip[:1].repeat(4, axis=0)) == 1.0
    assert np.isnan(stillness(clip[:1]))


DYNAMIC = (
    ([7.0] * 4 + [0.0] * 11, 256, 8.0, 1.0),  # 16 frames: four pairs above 6 pixels
    ([7.0] * 3 + [0.0] * 12, 256, 8.0, 0.0),
    ([7.0] * 15, 512, 8.0, 0.0),  # 12 pixels at twice the side
    ([7.0] * 15, 256, 4.0, 0.0),  # 12 pixels at half the rate
    ([0.8] * 2 + [0.0] * 6, 32, 8.0, 1.0),  # 9 frames of 32 pixels: 0.75 pixels, two pairs
    ([0.0, 0.0], 32, 8.0, 0.0),
)


def test_dynamic_degree_by_hand():
    for of_pairs, side, fps, expected in DYNAMIC:
        assert moves(of_pairs, side, fps) == expected, (of_pairs, side, fps)


class Flows:
    """Replaces RAFT: the first pairs of a clip move by 10 pixels; the value of its first pixel is their number."""

    model, model_version, what, settings = "raft", "1", "flow", ""

    def flows(self, clip: np.ndarray):
        for pair in range(len(clip) - 1):
            yield np.full((4, 4, 2), [10.0 if pair < clip[0, 0, 0, 0] else 0.0, 0.0])


def test_dynamic_degree_thins_clips_to_eight_frames_a_second():
    clip = np.full((48, 256, 256, 3), 4, np.uint8)
    metric = DynamicDegree(Motion(Flows(), "sum"))
    # At 24 frames a second every third frame is kept: 16 frames, of which four pairs move.
    assert metric.score([clip, clip * 0], [""] * 2, [24.0] * 2) == [1.0, 0.0]
    assert np.isnan(metric.score([clip[:1]], [""], [24.0])[0])


def test_dynamic_degree_uses_the_rate_of_each_clip():
    """33 frames at 16 a second are thinned to 17, of which round(17 / 4) = 4 must move; at 8 a second round(33 / 4)."""
    clip = np.full((33, 256, 256, 3), 5, np.uint8)  # five pairs move, by 10 pixels
    metric = DynamicDegree(Motion(Flows(), "sum"))
    assert metric.score([clip, clip], ["", ""], [16.0, 8.0]) == [1.0, 0.0]


@pytest.fixture(scope="module")
def dino(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dino")
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=224, patch_size=32
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def frames(seed: int, count: int = 5, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_subject_consistency_uses_dino(dino):
    (metric,) = make_source("s", {"kind": "subject_consistency", "path": str(dino)}).metrics.values()
    clip = frames(0)
    model = ViTModel.from_pretrained(dino, add_pooling_layer=False).eval()
    with torch.no_grad():
        found = model(shorter_edge(clip), interpolate_pos_encoding=True).last_hidden_state[:, 0]
    assert shorter_edge(clip).shape == (5, 3, 224, 298)
    still = np.repeat(clip[:1], 3, axis=0)
    assert metric.score([clip, still, clip[:1]], [""] * 3)[:2] == pytest.approx([consistency(found), 1.0], abs=1e-5)


def test_background_consistency_uses_clip(tmp_path):
    (metric,) = make_source("b", {"kind": "background_consistency", "path": str(build_clip(tmp_path))}).metrics.values()
    clip = frames(1)
    moving, still = metric.score([clip, np.repeat(clip[:1], 3, axis=0)], ["", ""])
    assert still == pytest.approx(1.0, abs=1e-5) and 0 <= moving < 1.0


def test_weights_stored_in_half_precision_are_run_in_single():
    folder, clip = "models/tabletop/clip", frames(2)
    (metric,) = make_source("b", {"kind": "background_consistency", "path": folder}).metrics.values()
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        pixels = Pixels(CLIPImageProcessor.from_pretrained(folder))(clip)
        expected = consistency(model.get_image_features(pixel_values=pixels).pooler_output)
    assert metric.score([clip], [""]) == [pytest.approx(expected, abs=1e-6)]


def test_a_missing_model_is_an_error_that_names_the_block(tmp_path):
    for kind in ("subject_consistency", "background_consistency"):
        with pytest.raises(ValueError, match=r"feedback.sources.s.path: no model could be loaded from"):
            make_source("s", {"kind": kind, "path": str(tmp_path)})


def test_several_metrics_are_one_source(tmp_path):
    block = {
        "kind": "metrics",
        "of": {"still": {"kind": "temporal_flickering"}, "clip": {"kind": "clip", "path": str(build_clip(tmp_path))}},
    }
    source = make_source("all", block)
    assert [question.name for question in source.rubric.questions] == ["still", "clip"]
    assert [question.required for question in source.rubric.questions] == [True, False]
    assert needs_device("m", block) and not needs_device(
        "m", {"kind": "metrics", "of": {"a": {"kind": "optical_flow_dis"}}}
    )


def test_a_wrong_metric_is_named():
    wrong = [
        ({}, ": of is empty"),
        ({"a": "clip"}, ".of.a is 'clip', expected a"),
        ({"a": {"kind": "physics"}}, ": of.a.kind is 'physics', which is not a metric"),
        ({"a": {"kind": "optical_flow_dis", "preset": "x"}}, ".of.a.preset is 'x'"),
    ]
    for of, problem in wrong:
        with pytest.raises(ValueError, match=f"feedback.sources.m{problem}"):
            read_block("m", {"kind": "metrics", "of": of})
