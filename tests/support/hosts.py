"""Parts of an online run as two hosts do them: torchrun starts this module, and each process has a ledger of its own.

    python -m torch.distributed.run --standalone --nproc-per-node=2 -m tests.support.hosts PART FOLDER SERVER

Each process writes what it found, or the error that it met, to FOLDER/PART-RANK.json.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import distributed

from cluster import devices
from data.prompts import Prompt
from tests.support.network import KEY, block_of

ROOT = Path(__file__).parents[2]
TEACHER = "feedback/questions/vlm-as-teacher.yaml"
RULES = [{"kind": "goal", "question": "does the red ball", "wanted": "No"}]
TEXTS = ("lifting red ball up", "pushing green cube from left to right", "lifting blue cone up")
PROMPTS = [Prompt(f"p{number}", text, "c", "train", None, None) for number, text in enumerate(TEXTS)]


def run_part(part: str, folder: Path, base: str, processes: int = 2) -> list[dict[str, Any]]:
    """What each process found: `result`, or `error` and `message`."""
    folder.mkdir(parents=True, exist_ok=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    keys = {"OPENAI_API_KEY": KEY, "SERVED_KEY": KEY, "FEEDBACK_VERDICTS": "off", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, "-m", "tests.support.hosts", part, str(folder), base],
        cwd=ROOT, env=os.environ | keys, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"{part}-{rank}.json").read_text()) for rank in range(processes)]


def ledger_of(folder: Path, rank: int) -> Path:
    """The ledger of a process, on its host's own disk."""
    return folder / f"host-{rank}" / "ledger.sqlite"


# The parts


class Odd(Exception):
    """An error that does not pickle."""

    def __init__(self, *, cause: str) -> None:
        super().__init__(cause)


def ask_the_first(folder: Path, base: str) -> list[Any]:
    """What the first process makes, for longer than messages may take, and what is raised of two errors of it."""
    devices.barrier()
    distributed.set_timeout(timedelta(seconds=1))

    def fail(error: Exception) -> None:
        raise error

    def take_long() -> list[int]:
        time.sleep(3)
        return [devices.rank(), os.getpid()]

    found: list[Any] = [devices.of_first(take_long)]
    for error in (ValueError("no writer is known"), Odd(cause="the provider is odd")):
        try:
            devices.of_first(partial(fail, error))
        except Exception as raised:
            found.append([type(raised).__name__, str(raised)])
    return found


def write_questions(folder: Path, base: str) -> dict[str, list[str]]:
    from feedback.questions import Writing
    from generators.core.size import VideoSize
    from pipeline.judges import written_asks

    by = Writing("writer", TEACHER, ("goal",), explanation=False, with_reference=False)
    asks = written_asks(PROMPTS, by, {"writer": block_of("gpt", base)}, "cpu", VideoSize(9, 32, 32, 8.0))
    return {prompt_id: [ask.text for ask in found] for prompt_id, found in asks.items()}


def train(folder: Path, base: str) -> list[dict[str, Any]]:
    """The log of a run on the tabletop, whose writer and held-out judge are paid; its judge knows few words."""
    from commands.online.one_prompt import base_policy
    from data.config import read_config
    from data.policies import read_log
    from generators.core.load import load_generator
    from generators.core.size import VideoSize
    from pipeline.configs import CheckConfig, GeneratorConfig
    from pipeline.online import Job, run
    from pipeline.recipes import load_recipe
    from tests.support.defaults import default_params

    params, sheet = default_params(), folder / "sheet.yaml"
    words = yaml.safe_load(Path(TEACHER).read_text()) | {"ask": "{question}", "one_word": "fall off the table"}
    devices.of_first(lambda: sheet.write_text(yaml.safe_dump(words)))
    engine = {"steps": 2, "gradient_steps": 1, "updates": 1, "batch_size": 2, "held_out_every": 1,
              "checkpoint_every": 1, "gradient_checkpointing": False, "precision": "fp32",
              "stop_below": None}  # fmt: skip
    changes = {
        "engine": engine, "judge": {"frames": 8}, "decoding": {"mode": "plain"}, "sampling": {"inference_steps": 2},
        "questions": {"writer": "writer", "rubric": str(sheet), "kinds": ["goal"]},
    }  # fmt: skip
    blocks = {"second": params["feedback"]["sources"]["second"]}
    blocks |= {name: block_of("gpt", base) for name in ("writer", "held-out")}
    size, model = read_config(VideoSize, params["video"], "video"), GeneratorConfig(**params["generator"])
    job = Job(
        recipe=load_recipe("vlm-as-teacher", changes), prompts=PROMPTS, asks=None, references=None, overlay=None,
        judge="second", held_out="held-out", sources=blocks,
        check=CheckConfig(prompts=3, samples_per_prompt=1, batch_size=1, seed=1), size=size,
    )  # fmt: skip
    device = torch.device("cpu")
    start = devices.of_first(lambda: base_policy(model, folder / "base"))
    load = partial(load_generator, **asdict(model), size=size, device=device)
    run(job, load, start, folder / "work", folder / "policy", device)
    devices.barrier()
    return read_log(folder / "policy")


def reward_clips(folder: Path, base: str) -> dict[str, float | None]:
    """The rewards of a rollout of four clips, two of each process, by a paid judge, by place."""
    import numpy as np

    from pipeline.asked import open_asked
    from pipeline.by_rewards import ClipRewards
    from rl.online.rewarded import RolledClip
    from tests.support.tiny import SIZE

    judge = open_asked("gpt", block_of("gpt", base), "cpu")
    rewards = ClipRewards(judge, "label", PROMPTS, {}, SIZE, "grpo", folder / "rollouts", "online/grpo")
    frames = np.random.default_rng(0).integers(0, 255, (4, 5, 16, 16, 3)).astype(np.uint8)
    own = devices.slice_of_rank(4, 1)[0]
    found = rewards(0, [RolledClip(place, PROMPTS[0].prompt_id, frames[place]) for place in own])
    return {str(place): reward for place, reward in sorted(found.items())}


PARTS: dict[str, Callable[[Path, str], Any]] = {
    part.__name__: part for part in (ask_the_first, write_questions, train, reward_clips)
}


def main(part: str, folder: Path, base: str) -> None:
    rank = int(os.environ["RANK"])
    os.environ["FEEDBACK_LEDGER"] = str(ledger_of(folder, rank))
    devices.join_group(torch.device("cpu"))
    try:
        found = {"result": PARTS[part](folder, base)}
    except Exception as error:
        found = {"error": type(error).__name__, "message": str(error)}
    (folder / f"{part}-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
