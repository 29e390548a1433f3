"""Claims about what stage `online` composes."""

from types import SimpleNamespace
from typing import Any

import torch

from cluster import devices
from data.store import PromptConditions
from generators.core.encoding import Encoded
from pipeline.online import HeldOutCheck


def test_over_shards_a_process_with_fewer_batches_samples_as_many_as_the_others(tmp_path, monkeypatch):
    """Two clips of each of three prompts, on two processes, in batches of two: 2 batches and 1."""
    prompts: Any = ["p0", "p1", "p2"]
    told = PromptConditions(
        {name: {"text": torch.zeros(6, 16)} for name in prompts}, {"text": torch.zeros(6, 16)}, None
    )
    nothing: Any = None
    sampled: list[int] = []
    generator: Any = SimpleNamespace(
        latent_shape=(4, 3, 4, 4),
        draw_noise=lambda seeds, shape: torch.zeros(len(seeds), *shape),
        sample=lambda conditions, unwanted, noise, *how: sampled.append(len(noise)),
    )
    sampling: Any = SimpleNamespace(samples_per_prompt=2, batch_size=2, steps=3, guidance=1.0, solver="unipc")
    monkeypatch.setattr(devices, "world_size", lambda: 2)
    monkeypatch.setattr(devices, "gather_over_ranks", lambda value: [["p0", "p2"], ["p1"]])
    for rank, idle in ((0, 0), (1, 1)):
        monkeypatch.setattr(devices, "rank", lambda rank=rank: rank)
        (tmp_path / f"rank-{rank}-of-2/step-000002").mkdir(parents=True)  # what a killed run left
        check = HeldOutCheck(generator, [], nothing, prompts, Encoded(told, {}, {}), sampling, tmp_path, shards=True)
        assert not (tmp_path / f"rank-{rank}-of-2").exists()
        check._keep_pace()
        assert sampled == [1] * idle
