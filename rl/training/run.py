"""The frame of a training run, which both loops share: begin or resume, apply a step, log, checkpoint, publish, report.

run = begin("dpo", generator, config, start, work, None, origin, inputs)
with run.loop(config.steps, "step") as progress:
    for step in range(run.done, config.steps):
        ...                                             # losses of the step, back-propagated
        line = run.apply({"loss": loss}, learning_rate)
        run.keep(line)
report = run.finish(out, clips_per_step)
"""

import contextlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from cluster import devices, provenance
from data.counts import Counts, collected_counts, uncounted
from data.manifest import MANIFEST, publish, sha256_of, write_manifest
from data.pace import measured
from data.policies import (
    CHECKPOINTS,
    FOLDER,
    OF_POLICY,
    PROGRESS,
    SAMPLED,
    append_log,
    is_whole,
    keep_until,
    name_of,
    preview_of,
    previews_in,
    read_log,
    sampled_with,
)
from generators.core.generator import Generator
from rl.training import state
from rl.training.config import PolicyConfig, as_written
from rl.training.generation import FILE, Generation, take
from rl.training.policies import Policy, make_optimizer, make_trainable
from rl.training.previews import Previews
from rl.training.tracking import Tracker

logger = logging.getLogger(__name__)


class NonFiniteLossError(ArithmeticError):
    """A loss or gradient that is not finite; neither that step nor a later one was applied."""


class TrainReport(NamedTuple):
    """What a run measured; steps, times and memory are this process's, since its last start.

    A step is an optimizer step: an update of an online run.
    """

    steps: int
    clips_per_step: int  # both of a pair, and those of weight 0
    seconds: float
    cpu_seconds: float  # of all threads: the cost, also on a machine with other load
    clips_per_second: float
    peak_memory_bytes: int
    parameters: int  # trainable
    kept: int  # the step whose weights are the policy; 0 is its start
    stopped: str | None  # why the run ended before its last step
    last: dict[str, Any]  # the last line of log.jsonl
    counts: Counts | None  # of all processes and starts, without steps that a kill lost; None: an old state has none


@dataclass
class TrainingRun:
    """A training run: its policy, optimizer and folders, and how far it is."""

    name: str  # of the objective
    config: PolicyConfig
    policy: Policy
    optimizer: torch.optim.Optimizer
    made_from: Mapping[str, Any]  # facts of policy.json
    made_with: Sequence[Mapping[str, Any]]  # a further one: see `_made_with`
    work: Path
    device: torch.device
    first: int  # steps that earlier starts of this run have done
    done: int  # steps so far
    last: dict[str, Any]  # the last line of log.jsonl
    counted: Counts | None  # what `first` steps took, in all processes; None where the state does not say
    tracker: Tracker | None = None
    previews: Previews | None = None
    generation: Generation | None = None  # None on processes that write nothing
    writes: bool = field(default_factory=lambda: devices.rank() == 0)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    counts: Counts = field(default_factory=Counts)  # what this process has done since
    progress: tqdm | None = None  # within `loop`
    failed: Tensor = field(init=False)  # (3,) number, loss and gradient norm of the first step that is not finite
    number: Tensor = field(init=False)  # () `done` on the device, where a number that changes would be compiled again

    def __post_init__(self) -> None:
        self.failed = torch.zeros(3, device=self.device)
        self.number = torch.full((), float(self.done), device=self.device)

    @property
    def folder(self) -> Path:
        """The folder in `work` that becomes the policy."""
        return self.work / FOLDER

    @contextlib.contextmanager
    def loop(self, steps: int, unit: str) -> Iterator[tqdm]:
        """The clocks, the counts, the progress bar and the order of sums that is set, around a loop over `steps` steps.

        The policy is drawn before the first step and after the last.
        """
        logger.info(
            "%s: %d %ss with batches of %d; %d are done; the work lies in %s",
            self.name, steps, unit, self.config.batch_size, self.first, self.work,
        )  # fmt: skip
        began, cpu_began = time.perf_counter(), time.process_time()
        with devices.deterministic(self.device, self.config.deterministic), collected_counts() as self.counts:
            if self.done == 0:
                self._draw()
            with tqdm(total=steps, initial=self.first, desc=self.name, unit=unit, disable=not self.writes) as progress:
                self.progress = progress
                yield progress
            if self.previews and self.done % self.previews.every != 0:
                self._draw()
        devices.synchronize(self.device)
        self.seconds, self.cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        measured("rows", (self.done - self.first) * self.config.batch_size, self.seconds)

    def gradients(self) -> list[Tensor]:
        """The parameters' gradients that are to be summed over processes, zeros where no row of this one had one."""
        for parameter in self.policy.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.policy.sharded:
            return []
        return [parameter.grad for parameter in self.policy.parameters.values() if parameter.grad is not None]

    def apply(self, facts: Mapping[str, Any], learning_rate: float) -> dict[str, Any]:
        """One optimizer step by the gradients, clipped; returns the step's line, which `keep` reads.

        facts: of the step, `loss` among them, the same on every process, as numbers or as tensors (); the gradients are
            summed over processes.
        A step whose loss or gradient norm is not finite is not applied, nor any after it. Raises NonFiniteLossError at
        once where reading is free; elsewhere `keep` does, so that no step waits for the device.
        """
        norm: Any = torch.nn.utils.clip_grad_norm_(list(self.policy.parameters.values()), self.config.max_grad_norm)
        norm = norm.full_tensor() if self.policy.sharded else norm
        self._note(facts["loss"], norm)
        if devices.reads_freely(self.device):
            self._check_finite()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self._step()
        self.optimizer.zero_grad()
        self.done += 1
        return {"step": self.done, **facts, "learning_rate": learning_rate, "gradient_norm": norm}

    def keep(self, line: Mapping[str, Any], log: bool = False) -> None:
        """Log the line, every log_every steps or where `log` is true, and checkpoint every checkpoint_every steps.

        Every process calls it. Raises NonFiniteLossError there for a step that was not applied, and writes nothing.
        """
        logs = log or self.done % self.config.log_every == 0
        checkpoints = self.done % self.config.checkpoint_every == 0
        if not (logs or checkpoints or devices.reads_freely(self.device)):
            return
        self._check_finite()
        self.last = _read(line)
        if self.previews and self.done and self.done % self.previews.every == 0:
            self._draw()
        if logs and self.writes:
            self._check_newest()
            append_log(self.folder, self.last)
            if self.tracker:
                self.tracker.send(self.last)
            self._report_progress()
        if checkpoints:
            self._checkpoint()

    def last_good(self) -> str:
        """In words, the checkpoint that a run leaves when it stops early."""
        kept = sorted((self.folder / CHECKPOINTS).glob("step-*"))
        return f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"

    def finish(
        self,
        out: Path,
        clips_per_step: int,
        kept: int | None = None,
        facts: Mapping[str, Any] | None = None,
        stopped: str | None = None,
        add: Callable[[Path], None] | None = None,
    ) -> TrainReport:
        """Publish the policy as `out` and report the run.

        kept: the step whose checkpoint becomes the policy; None: the last. facts: further ones of policy.json.
        stopped: why the run ended early. add: writes further files into the policy's folder, before its manifest.
        """
        kept = self.done if kept is None else kept
        self._check_newest()
        if kept == self.done:
            self.policy.save(self.folder)
        if self.writes:
            if kept != self.done:
                shutil.copytree(self.folder / CHECKPOINTS / name_of(kept), self.folder, dirs_exist_ok=True)
            describe(self.folder, {**self.made_from, "made_with": self.made_with, "step": kept, **(facts or {})})
            if add:
                add(self.folder)
            write_manifest(self.folder, "policy", objective=self.name, steps=kept)
            self._check_newest()
            publish(self.folder, out)
            if self.tracker:
                self.tracker.finish()
        devices.barrier()
        steps = self.done - self.first
        report = TrainReport(
            steps=steps,
            clips_per_step=clips_per_step,
            seconds=round(self.seconds, 3),
            cpu_seconds=round(self.cpu_seconds, 3),
            clips_per_second=round(clips_per_step * steps / self.seconds, 3),
            peak_memory_bytes=devices.peak_memory(self.device),
            parameters=sum(parameter.numel() for parameter in self.policy.parameters.values()),
            kept=kept,
            stopped=stopped,
            last=self.last,
            counts=self._counts_of_all(),
        )
        logger.info("%s: %s", self.name, report)
        return report

    def _counts_of_all(self) -> Counts | None:
        """What the steps so far took, in all processes and starts. Every process calls it."""
        of_ranks = devices.gather_over_ranks(self.counts)
        if self.counted is None:
            return None
        found = Counts(**asdict(self.counted))
        for one in of_ranks:
            found.add(one)
        return found

    def _note(self, loss: Any, norm: Tensor) -> None:
        """Keep the step in `failed` if it is the first whose loss or gradient norm is not finite."""
        loss = loss if isinstance(loss, Tensor) else torch.full((), loss, device=self.device)
        self.number = self.number + 1
        now = torch.stack([self.number, loss.float(), norm.float()])
        fine = torch.isfinite(now).all() | (self.failed[0] > 0)
        self.failed = torch.where(fine, self.failed, now)

    def _check_finite(self) -> None:
        """Raises NonFiniteLossError naming the step that was not applied. Waits for the device."""
        step, loss, norm = self.failed.tolist()
        if step:
            found = f"loss {loss}, gradient norm {norm}"
            raise NonFiniteLossError(f"step {int(step)}: {found}; step not applied, {self.last_good()}")

    def _step(self) -> None:
        """A step of the optimizer, unless this or an earlier one is not finite, which the device alone knows."""
        if devices.reads_freely(self.device):
            self.optimizer.step()
        elif self.optimizer.defaults["fused"]:
            self.optimizer.found_inf = (self.failed[0] > 0).float()  # type: ignore[attr-defined]  # as GradScaler does
            self.optimizer.step()
        else:  # the moments are changed, which then are never read
            before = [parameter.detach().clone() for parameter in self.policy.parameters.values()]
            self.optimizer.step()
            with torch.no_grad():
                for parameter, kept in zip(self.policy.parameters.values(), before, strict=True):
                    parameter.copy_(torch.where(self.failed[0] > 0, kept, parameter))

    def _draw(self) -> None:
        """Draw clips of the policy as it is now; every process samples some of them."""
        if self.previews is None:
            return
        path = preview_of(self.folder, self.done)
        self._check_newest()
        with uncounted():  # pictures shape no weight
            self.previews.draw(path if self.writes else None)
        if self.tracker and self.writes and path.is_file():
            self.tracker.send_picture(self.done, path)

    def _report_progress(self) -> None:
        """Write how far the run is, and its rate since its last start. Nothing is lost with this file: no fsync."""
        assert self.progress is not None  # within `loop`
        bar, now = self.progress.format_dict, self.done - self.first
        facts = {"unit": bar["unit"], "steps": bar["total"], "done": self.done, "now": now, "seconds": bar["elapsed"]}
        partial = self.work / f".{PROGRESS}"
        partial.write_text(json.dumps(facts) + "\n")
        self._check_newest()
        partial.replace(self.work / PROGRESS)

    def _check_newest(self) -> None:
        """Before each write. Raises SupersededError where a later start of the run has taken this one's place."""
        if self.generation:
            self.generation.check()

    def _checkpoint(self) -> None:
        """Write the policy as it is now, and then the state to resume from it; on every process."""
        self._check_newest()
        unfinished = self.folder / CHECKPOINTS / ".unfinished"
        self.policy.save(unfinished)
        if self.writes:
            describe(unfinished, {**self.made_from, "made_with": self.made_with, "step": self.done})
            self._check_newest()
            unfinished.rename(unfinished.with_name(name_of(self.done)))
        counts = self._counts_of_all()
        written = None if counts is None else asdict(counts)
        of_run = _identity(self.made_from), self.made_with, self._check_newest, written
        if self.policy.sharded:
            state.write_shards(self.work, self.done, self.policy.parameters, self.optimizer, *of_run)
        elif self.writes:
            state.write_state(self.work, self.done, self.policy.parameters, self.optimizer, *of_run)


def begin(
    name: str,
    generator: Generator,
    config: PolicyConfig,
    start: Path,
    work: Path,
    resume_from: Path | None,
    origin: Mapping[str, Any],
    inputs: Mapping[str, Any],
    tracker: Tracker | None = None,
    previews: Previews | None = None,
) -> TrainingRun:
    """A run of the objective `name` from the policy `start`, or the one that `work` holds as far as it came.

    Joins the other processes of a torchrun launch.
    resume_from: `work` of an earlier run, copied where `work` has no state. origin, inputs: plain JSON for
        policy.json, what the run is made from; nothing volatile. tracker: sent the log's lines, those of earlier starts
        too that it lacks. previews: of the policy; neither changes what is trained.
    Raises ResumeError naming the setting that a state differs in.
    """
    devices.join_group(generator.device)
    policy = make_trainable(generator, config, start)
    optimizer = make_optimizer(list(policy.parameters.values()), config)
    described = start / (MANIFEST if (start / MANIFEST).is_file() else "policy.json")
    kept = {key: value for key, value in sampled_with(start).items() if key in OF_POLICY and value is not None}
    made_from = {
        **({SAMPLED: kept} if kept else {}),  # the start's, unless the origin has its own
        **origin,
        "start": start.name,
        "start_sha256": sha256_of(described),
        "generator": _generator_of(start),
        "config": as_written(config),
        "objective": name,
        **inputs,
    }
    devices.barrier()  # which a process that is cut off from the others does not pass
    generation = take(work) if devices.rank() == 0 else None
    done = _resume(work, resume_from, policy, optimizer, made_from, config.checkpoint_every)
    devices.barrier()
    log = read_log(work / FOLDER)
    last = log[-1] if log else {}
    made_with = _made_with(work, done, generator.device)
    counted = state.steps_counted(work) if done else asdict(Counts())
    if tracker and devices.rank() == 0:
        tracker.start(work, as_written(config), log, previews_in(work / FOLDER))
    return TrainingRun(
        name, config, policy, optimizer, made_from, made_with, work, generator.device, done, done, last,
        None if counted is None else Counts(**counted), tracker, previews, generation,
    )  # fmt: skip


def _resume(
    work: Path,
    resume_from: Path | None,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    made_from: Mapping[str, Any],
    checkpoint_every: int,
) -> int:
    """Restore the state in `work`, if any, and tidy its policy folder up to it; returns the number of steps done."""
    if resume_from is not None and not state.is_there(resume_from):
        raise state.ResumeError(f"{resume_from}: no {state.STATE_FILE} to resume from")
    if devices.rank() == 0 and resume_from is not None and not state.is_there(work):
        shutil.copytree(resume_from, work, ignore=shutil.ignore_patterns(FILE), dirs_exist_ok=True)
    devices.barrier()
    done = 0
    if state.is_there(work):
        state.check_identity(work, _identity(made_from))
        # Killed while publishing, a run has lost part of its folder: only a fresh start has the same bytes again.
        if is_whole(work / FOLDER, state.steps_done(work), checkpoint_every):
            done = state.read_state(work, policy.parameters, optimizer)
            logger.info("resumed from %s after step %d", state.path_of(work), done)
    devices.barrier()
    if devices.rank() == 0:
        keep_until(work / FOLDER, done)
    return done


def _read(line: Mapping[str, Any]) -> dict[str, Any]:
    """The line with numbers in place of its tensors (), by one transfer; None for nan, a fact that is of no row."""
    on_device = {name: value for name, value in line.items() if isinstance(value, Tensor)}
    numbers = torch.stack(list(on_device.values())).tolist() if on_device else []
    known = (None if math.isnan(number) else number for number in numbers)
    return {**line, **dict(zip(on_device, known, strict=True))}


def _made_with(work: Path, done: int, device: torch.device) -> list[dict[str, Any]]:
    """What the run is made with: an entry for its start, and one for each resumption that found something else.

    An entry has from_step, the number of steps before it, and code, versions and device of `provenance.made_with`.
    Warns where versions or device differ: the policy may then differ from that of a run without the interruption.
    """
    now = provenance.made_with(device)
    if not done:
        return [{"from_step": 0, **now}]
    before = state.steps_made_with(work)
    differing = provenance.differences(before[-1], now)
    difference = provenance.in_words(before[-1], {part: facts for part, facts in differing.items() if part != "code"})
    if difference and devices.rank() == 0:
        logger.warning(
            "resumed after step %d, other than the steps before: %s; the policy may differ", done, difference
        )
    return [*before, {"from_step": done, **now}] if differing else before


def _generator_of(start: Path) -> dict[str, Any] | None:
    """family, path, revision and fingerprint of the generator that a policy is of; None where it does not say."""
    facts = json.loads((start / "policy.json").read_text(encoding="utf-8"))
    of_base = {key: facts[key] for key in ("family", "path", "revision", "fingerprint") if key in facts}
    return facts.get("generator") or of_base or None


def describe(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write policy.json: what the weights beside it are made from."""
    text = json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False, default=list)
    (folder / "policy.json").write_text(text + "\n", encoding="utf-8")


def _identity(made_from: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of policy.json, one level deep: a resumed run must share them."""
    flat = {key: value for key, value in made_from.items() if key != "config"}
    return flat | {f"config.{key}": value for key, value in made_from["config"].items()}
