"""Diversity by latents ranks policies as the true spread of places, travel and sizes does.

The clips are the renderer's, and the truth is read off their pixels by tabletop.physics.find_blobs.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.effects.diversity import mean_distance, similarity, spread_of, vendi_score
from generators.core.load import load_generator
from generators.core.size import VideoSize
from tabletop.captions import Claim, parse
from tabletop.physics import find_blobs
from tabletop.render import render
from tabletop.scenes import Scene, make_scene

ROOT = Path(__file__).parents[2]
CAPTIONS = ("pushing green cube from left to right", "dropping blue ball onto the table", "lifting red ball up")
CLIPS = 12


def scenes(claim: Claim, distinct: int) -> list[Scene]:
    """CLIPS scenes, of which so many are distinct."""
    return [make_scene(claim, np.random.default_rng([7, place % distinct])) for place in range(CLIPS)]


def narrowed(found: list[Scene], size: float) -> list[Scene]:
    """The scenes with places and sizes of the claimed thing so much closer to their mean."""
    made = copy.deepcopy(found)
    for scene in made:
        scene.entities, scene.light = scene.entities[-1:], 1.0
    for name in ("x", "bottom", "width", "height"):
        mean = np.mean([getattr(scene.entities[0], name) for scene in made], 0)
        for scene in made:
            setattr(scene.entities[0], name, mean + size * (getattr(scene.entities[0], name) - mean))
    return made


def true_spread(clips: list[np.ndarray], claim: Claim) -> float:
    """Mean standard deviation over clips of the claimed thing's start, travel and size, in units of the world."""
    rows = []
    for frames in clips:
        track = [found[claim.things[0].color][0] for found in find_blobs(frames) if found[claim.things[0].color]]
        first, last = track[0], track[-1]
        rows.append([first.x, first.bottom, last.x - first.x, last.bottom - first.bottom, first.area**0.5])
    return float(np.std(rows, 0).mean())


@pytest.fixture(scope="module")
def measured() -> dict[str, list[tuple[float, float, float]]]:
    """By planted policy, for each caption: true spread, Vendi score, mean distance."""
    vae = load_generator(
        "wan", str(ROOT / "models/tabletop/generator"), VideoSize(9, 32, 32, 8.0), max_prompt_tokens=16, parts=("vae",)
    )
    found: dict[str, list[tuple[float, float, float]]] = {}
    for caption in CAPTIONS:
        claim = parse(caption)
        base = narrowed(scenes(claim, CLIPS), 1.0)
        policies = {"base": base} | {f"{n} scenes": narrowed(scenes(claim, n), 1.0) for n in (6, 2, 1)}
        policies |= {f"{size} as wide": narrowed(base, size) for size in (0.5, 0.2)}
        clips = {name: [render(scene) for scene in made] for name, made in policies.items()}
        clips["base, darker"] = [(frames * 0.85).astype(np.uint8) for frames in clips["base"]]
        features = {
            name: vae.encode(torch.from_numpy(np.stack(own))).float().flatten(1).double().numpy()
            for name, own in clips.items()
        }
        scale = spread_of(features["base"])
        for name, own in clips.items():
            similar = similarity(features[name], scale)
            row = true_spread(own, claim), vendi_score(similar), mean_distance(similar)
            found.setdefault(name, []).append(row)
    return found


def means(measured: dict, *names: str) -> list[tuple[float, ...]]:
    return [tuple(np.mean(measured[name], 0)) for name in names]


def test_fewer_scenes_and_narrower_scenes_rank_as_their_true_spread_does(measured):
    for names in (("1 scenes", "2 scenes", "6 scenes", "base"), ("0.2 as wide", "0.5 as wide", "base")):
        for which, values in zip(
            ("truth", "vendi", "distance"), zip(*means(measured, *names), strict=True), strict=True
        ):
            assert list(values) == sorted(values), (which, names, values)
    (_, one, _), (_, every, _) = means(measured, "1 scenes", "base")
    assert one == pytest.approx(1.0) and every > 3


def test_what_all_clips_share_is_no_loss_of_diversity(measured):
    (_, base, _), (_, darker, _), (_, narrow, _) = means(measured, "base", "base, darker", "0.5 as wide")

    assert darker > 0.85 * base > narrow
