"""An online run on rewards: a source of any kind judges the clips of its rollouts, and those of its checks."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.policies import HEATMAPS, SAMPLED
from data.prompts import Prompt
from pipeline.asked import RunJudge, clip_request, first_frame_at, open_asked
from pipeline.judges import answers_about, in_unit, open_judges
from pipeline.online import (
    HeldOutCheck,
    Job,
    check_sampling,
    checked_prompts,
    inputs_of,
    is_of_trained_clip,
    keep_inputs,
    with_recipe_sampling,
)
from pipeline.params import ParamsError
from pipeline.recipes import as_written, sampled_as
from pipeline.trained_clip import TrainedClipCheck

if TYPE_CHECKING:  # torch takes seconds to import
    from collections.abc import Callable

    import numpy as np
    import torch

    from feedback.core.source import Request
    from generators.core.encoding import Encoded
    from generators.core.generator import Generator
    from generators.core.size import VideoSize
    from rl.online.config import RewardsConfig
    from rl.online.judging import WeightedJudge
    from rl.online.loop import Check
    from rl.online.rewarded import Rewards, RolledClip
    from rl.training.run import TrainReport
    from rl.training.tracking import Tracker

logger = logging.getLogger(__name__)

# Columns of a label, of which the first that any clip of a rollout has ranks them all.
RANKED_BY = ("score", "p_accept", "label")
SILENT = 3  # rollouts one after the other of which no clip could be judged, at which a run ends
NAMED = 3  # prompts that a message names
ROLLOUTS = "rollouts"  # folder of the clips that are being judged, in the resume state


def run_by_rewards(
    job: Job,
    load: "Callable[..., Generator]",
    start: Path,
    work: Path,
    out: Path,
    device: "torch.device",
    tracker: "Tracker | None" = None,
) -> "TrainReport":
    """Train a policy from `start` on the rewards of the job's judge, and publish it as `out`.

    A clip's reward is the judge's label of it, or the mean p of its answers where the job has questions of the user's,
    which a VLM in this process answers. The arguments are those of `pipeline.online.run`, which calls it. Clips whose
    answers a ledger or the file of verdicts keeps are not asked about again: a run that was killed samples the same
    clips again, byte by byte.
    """
    from generators.core.encoding import ENCODING, encode
    from generators.core.generator import SAMPLING
    from rl.online.config import GrpoConfig, RaftConfig, RewardsConfig
    from rl.online.policy_gradient import train_by_rewards
    from rl.online.raft import train_on_best

    recipe, config = job.recipe, job.recipe.engine
    # 1. The judge
    by = _rewarding(job, device, work)
    # 2. The generator, and the check of its samples between updates
    encoded = encode(load(parts=ENCODING), by.prompts, config.negative_prompt)
    generator = with_recipe_sampling(load(parts=SAMPLING, on_host=config.shard), recipe, start)
    check = _check(job, by, generator, encoded, work / "looks") if config.held_out_every else None
    # 3. The run
    named = {"judge": job.judge, "held_out": job.held_out, "judge_versions": by.versions}
    origin = {"recipe": as_written(recipe), SAMPLED: sampled_as(recipe, start), **named}
    rewards: Rewards
    if isinstance(by.judges, RunJudge):
        assert isinstance(config, RewardsConfig)
        rewards = ClipRewards(
            by.judges, config.reward, by.prompts, encoded.images, job.size, out.name, work / ROLLOUTS,
            _purpose(out.name, origin),
        )  # fmt: skip
    else:
        rewards = AnswerRewards(by.judges, device)
    given = (generator, inputs_of(encoded), job.judge, rewards)
    if isinstance(config, RaftConfig):
        return train_on_best(*given, config, start, work, out, origin, check, by.add, tracker=tracker)
    assert isinstance(config, GrpoConfig)
    return train_by_rewards(*given, config, start, work, out, origin, check, by.add, tracker=tracker)


class _Rewarding(NamedTuple):
    """Who gives the rewards of a run."""

    judges: "RunJudge | list[WeightedJudge]"  # a source, or the VLMs that answer questions of the user's
    prompts: list[Prompt]
    versions: dict[str, Any]  # of each one's model, by name
    add: "Callable[[Path], None] | None"  # writes the questions into the policy's folder


def _rewarding(job: Job, device: "torch.device", work: Path) -> _Rewarding:
    """Raises ParamsError as `check_judge`, and for an overlay or references, which a source does not see."""
    from rl.online.config import RewardsConfig

    if job.asks:
        opened = open_judges(job, str(device))
        add = partial(keep_inputs, opened.asks, opened.overlay, work / HEATMAPS)
        return _Rewarding(opened.judges.plain, opened.prompts, opened.judges.versions, add)
    assert isinstance(job.recipe.engine, RewardsConfig)
    check_unread(job.overlay, job.references)
    check_judge(job.judge, job.sources[job.judge], job.recipe.engine)
    judge = open_asked(job.judge, job.sources[job.judge], str(device))
    return _Rewarding(judge, list(job.prompts), {job.judge: judge.model_version()}, None)


def _check(job: Job, by: _Rewarding, generator: "Generator", encoded: "Encoded", looks: Path) -> "Check":
    """The check between updates, by the judge and the held-out one. looks: folder of the clips that it looks at."""
    recipe, judges = job.recipe, by.judges
    if isinstance(judges, RunJudge) and job.held_out == job.judge:
        held_out = judges
    else:
        held_out = open_asked(job.held_out, job.sources[job.held_out], str(generator.device))
    if is_of_trained_clip(job):
        return TrainedClipCheck(generator, judges, held_out, by.prompts[0], encoded, recipe, looks)
    chosen, sampling = checked_prompts(by.prompts, job.check), check_sampling(recipe, job.check)
    return HeldOutCheck(generator, judges, held_out, chosen, encoded, sampling, looks, recipe.engine.shard)


class AnswerRewards:
    """The rewards of the clips of a rollout by answers to questions of the user's: the trainer's `rewards_of`."""

    def __init__(self, judges: "Sequence[WeightedJudge]", device: "torch.device") -> None:
        self.judges, self.device = judges, device

    def __call__(self, rollout: int, clips: "Sequence[RolledClip]") -> dict[int, float | None]:
        """The mean p of the wanted answers about each clip of the rollout, by its place."""
        from cluster import devices

        own = {
            clip.place: answers_about(self.judges, in_unit(clip.frames).to(self.device), clip.prompt_id).score
            for clip in clips
        }
        return {place: score for of_rank in devices.gather_over_ranks(own) for place, score in of_rank.items()}


class ClipRewards:
    """The rewards of the clips of a rollout by a source: the trainer's `rewards_of`."""

    def __init__(
        self,
        judge: RunJudge,
        column: str | None,
        prompts: Sequence[Prompt],
        images: "Mapping[str, np.ndarray]",
        size: "VideoSize",
        policy: str,
        folder: Path,
        purpose: str,
    ) -> None:
        """column: of the label that is the reward: p_accept, label or score; None: as of RANKED_BY.

        images: first frames by prompt_id. folder: on a disk that all processes share, as resume state is. purpose: the
        same for all rollouts of a run, so that a source's budget_usd is that of the run.
        """
        self.judge, self.column, self.size, self.policy = judge, column, size, policy
        self.silent = 0  # rollouts without a judgement, one after the other
        self.folder, self.purpose = folder, purpose
        self.prompts = {prompt.prompt_id: prompt for prompt in prompts}
        self.first_frames = {
            name: first_frame_at(folder / "first" / f"{name}.png", image) for name, image in images.items()
        }

    def __call__(self, rollout: int, clips: "Sequence[RolledClip]") -> dict[int, float | None]:
        """The reward of each clip of the rollout by its place; None of a clip that the source could not judge.

        All are of one column. Raises ValueError where the source's labels have no such column, and where it could judge
        no clip of SILENT rollouts, with its reason; LabelError where a call failed for good: the run stops, and goes on
        from its last checkpoint when it is started again.
        """
        from cluster import devices
        from rl.rewards import reward_of

        requests = [self._request(rollout, clip) for clip in clips]
        own = {request.sample.sample_id: (request.place, request.sample.prompt_id) for request in requests}
        labels = self.judge.labels_of(requests)
        devices.barrier()  # the first process may still read them
        for request in requests:
            request.path.unlink()
        of_all = {name: where for of_rank in devices.gather_over_ranks(own) for name, where in of_rank.items()}
        judged = [
            column for column in RANKED_BY if any(reward_of(label, column) is not None for label in labels.values())
        ]
        column = self.column or next(iter(judged), RANKED_BY[0])
        rewards = {of_all[name][0]: reward_of(label, column) for name, label in sorted(labels.items())}
        first = labels[min(labels)]
        if judged and not any(reward is not None for reward in rewards.values()):
            raise ValueError(
                f"{first.source} gave none of {len(labels)} clips a {column}, which engine.reward names; "
                f"its labels have {', '.join(judged)}"
            )
        self.silent = 0 if judged else self.silent + 1
        if not judged:
            prompts = ", ".join(sorted({prompt for _, prompt in of_all.values()})[:NAMED])
            said = (
                f"{first.source} could judge none of the {len(labels)} clips of rollout {rollout + 1}, of prompt "
                f"{prompts}; of the first it says: {first.reason or 'nothing'}"
            )
            if self.silent == SILENT:
                raise ValueError(f"{said}. No clip of the last {SILENT} rollouts was judged")
            logger.warning("%s. Nothing is learned from it", said)
        return rewards

    def _request(self, rollout: int, clip: "RolledClip") -> "Request":
        """The clip as an mp4, and the request to judge it."""
        prompt, name = self.prompts[clip.prompt_id], f"rollout-{rollout:06d}-{clip.place:04d}"
        return clip_request(
            clip.frames, prompt, self.size, name, self.folder, self.purpose, policy=self.policy, seed=rollout,
            first=self.first_frames.get(clip.prompt_id), place=clip.place,
        )  # fmt: skip


def _purpose(policy: str, origin: Mapping[str, Any]) -> str:
    """What the ledger adds up a run's calls under: its policy, and all that the run is made from."""
    written = json.dumps(origin, sort_keys=True, default=str)
    return f"online/{policy}/{hashlib.sha256(written.encode()).hexdigest()[:16]}"


def check_judge(name: str, block: Mapping[str, Any], engine: "RewardsConfig") -> None:
    """Raises ParamsError where a source cannot give the rewards of a run. block: as `resolve` returns it."""
    reward = engine.reward
    from feedback.core.kinds import read_block

    read = read_block(name, block)
    if read.kind.people:
        raise ParamsError(f"judge: {name} is answered by people, who cannot rate each update's clips")
    if read.compares:
        raise ParamsError(f"judge: {name} compares clips, and a reward is of one clip")
    if not read.labels and reward not in ("score", None):
        raise ParamsError(f"judge: {name} measures clips and labels none, so engine.reward must be score, not {reward}")
    if not read.labels and engine.stop_right is not None:
        raise ParamsError(f"engine.stop_right is a probability, and {name}, a metric, has none; null")


def check_unread(overlay: object, references: object) -> None:
    """Raises ParamsError for what a source that gives rewards is not shown."""
    given = {"overlay": overlay, "references": references}
    if unread := [name for name, value in given.items() if value is not None]:
        raise ParamsError(f"{unread[0]}: a recipe by rewards does not read it, since its judge sees clips as they are")
