"""A reward model trained on the pairs of a round: what stage `reward` composes from the libraries."""

import logging
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from feedback.core.rubric import Rubric, load_rubric
from feedback.core.weights import is_local
from rl.reward.config import RewardTraining

if TYPE_CHECKING:  # torch takes seconds to import
    import torch

    from data.records import Sample
    from data.store import ClipSet
    from feedback.judges.vlm import Loaded
    from feedback.metrics.reward_models.trained_model import TrainedReward
    from pipeline.configs import RewardConfig

logger = logging.getLogger(__name__)

FOLDER = "reward"  # within the resume state: what becomes the model's folder


class RewardJob(NamedTuple):
    """All that a reward model is trained from and by."""

    name: str  # in reward.models
    config: "RewardConfig"
    clips: Path  # the clip set of a round, or those of a pool
    rows: Path  # its pairs
    out: Path


def text_of(rubric: str) -> tuple[str, int | None]:
    """What a reward model is shown beside the clip, with {prompt} in it, and how many frames (None: all).

    Raises ValueError for a rubric that has not one question, that is about two clips or that shows the first frame.
    """
    found = load_rubric(Path(rubric))
    if not isinstance(found, Rubric) or len(found.questions) != 1 or found.compares or found.first_frame:
        raise ValueError(
            f"rubric: {rubric} is not what a reward model is shown; expected one question, the same for every prompt, "
            "about one clip, without its first frame"
        )
    return found.text(found.questions[0], "{prompt}"), found.frames


def check_backbone(path: str, revision: str | None) -> None:
    """Raises ValueError for a VLM that is neither a folder nor a hub id, and for a revision of a folder."""
    if not is_local(path) and path.count("/") != 1:
        raise ValueError(f"path: {path} is neither a folder nor a hub id")
    if is_local(path) and revision is not None:
        raise ValueError(f"revision is {revision!r}, but {path} is a local folder: null")


def train(job: RewardJob, work: Path, device: str) -> dict[str, Any]:
    """Train a reward model and publish it as `job.out`; returns the figures of the stage.

    work: resume state. device: as `cluster.devices.pick_device` takes it.
    Raises ValueError as `split_pairs` and `TrainedReward` do.
    """
    from cluster.devices import deterministic, pick_device
    from data.manifest import publish, write_manifest
    from data.pools import open_clip_sets, sampled_by
    from feedback.metrics.reward_models.trained_model import KIND
    from rl.objectives import get_objective
    from rl.reward.training import train_reward
    from rl.tables import read_table

    config, place, table = job.config, pick_device(device), read_table(job.rows, get_objective("dpo"))
    clip_sets = open_clip_sets(job.clips)
    known = {sample.sample_id: (clip_set, sample) for clip_set in clip_sets for sample in clip_set.samples}
    model = _untrained(job, next(iter(known.values()))[1], str(place))
    settings = RewardTraining(**{one.name: getattr(config, one.name) for one in fields(RewardTraining)})
    folder = work / FOLDER
    with deterministic(place, True):
        report = train_reward(
            table.rows, lambda clips: _scores(model, [known[clip] for clip in clips], place), model.parameters,
            settings, work, folder,
        )  # fmt: skip
    origin = {**table.facts, "rounds": sampled_by(clip_sets), "steps": config.steps}
    model.save(folder, origin)
    write_manifest(folder, KIND, rounds=origin["rounds"], steps=config.steps)
    publish(folder, job.out)
    parameters = sum(one.numel() for one in model.parameters.values())
    return {**report._asdict(), "parameters": parameters}


def _untrained(job: RewardJob, sample: "Sample", device: str) -> "TrainedReward":
    """The model before its first step. sample: a clip of the round, whose length and rate are those of all."""
    from feedback.differentiable.packing import recompute
    from feedback.metrics.reward_models.trained_model import RewardModelFacts, TrainedReward

    config, loaded = job.config, _load(job, device)
    text, frames = text_of(config.rubric)
    facts = RewardModelFacts(
        path=config.path,
        revision=config.revision,
        version=loaded.version,
        dtype=config.dtype,
        pixels=config.pixels,
        text=text,
        frames=min(frames or sample.num_frames, sample.num_frames),
        clip_frames=sample.num_frames,
        clip_fps=sample.fps,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_targets=config.lora_targets,
    )
    model = TrainedReward(loaded, facts, "untrained", config.seed)
    if config.gradient_checkpointing:
        recompute(model.vlm)
    return model


def _load(job: RewardJob, device: str) -> "Loaded":
    from feedback.judges.vlm import load_model

    config = job.config
    try:
        return load_model(job.name, config.path, config.revision, config.dtype, config.pixels, device)
    except ValueError as error:  # it names the block of a source
        key = f"feedback.sources.{job.name}."
        raise ValueError(str(error).replace(key, "reward.settings.")) from error


def _scores(model: "TrainedReward", clips: "list[tuple[ClipSet, Sample]]", device: "torch.device") -> "torch.Tensor":
    """The scores of clips, which are decoded now."""
    shown = [model.shown(clip_set.frames(sample)).to(device) for clip_set, sample in clips]
    return model.scores(shown, [sample.prompt for _, sample in clips])
