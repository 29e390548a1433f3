"""What stages will take: clips, calls, dollars, hours and disk, by what was measured here or by a stated formula.

The time of a stage is start + units x seconds a unit, of its last run on this machine (pipeline/rates.py); that of all
stages has that of stage base besides. Where a stage never ran here:
- Training takes 3 forwards of the denoiser a row, forward and backward, each as long as one of sampling; 4 under
  gradient checkpointing. A row of dpo or dense_dpo has two clips; these two, kto and nft also take a forward of the
  reference for each.
  The start is sampling's.
- A source over the network takes calls x seconds a call / calls in flight, where the seconds are given.
- Otherwise the time is not known.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.manifest import MANIFEST
from data.prompts import Prompt
from generators.core.generator import Generator
from pipeline.forecast import estimates
from pipeline.params import block
from pipeline.rates import Command, Rate, unit_of
from pipeline.work import Work, work_of

FLOAT = 4  # bytes of a latent
LOSSLESS = 256  # pixels of a side up to which mp4 is lossless (data/video.py)
BYTES_PER_PIXEL = {True: 1.0, False: 0.1}  # of mp4, lossless or not, where no set of this size is there to look at


class Takes(NamedTuple):
    """What a stage takes, or several. None: not known."""

    clips: int = 0  # sampled
    answers: int = 0  # of judges in this process or people, about a clip, a shown pair or a window
    calls: int = 0  # to judges over the network, those that are answered already left out
    tokens: int = 0  # of these calls, in and out
    dollars: float | None = 0.0
    steps: int = 0  # of optimizers
    seconds: float | None = 0.0
    bytes: int = 0  # of what is written


class Planner:
    """Says what stages would take, under a params.yaml that is valid."""

    def __init__(
        self,
        params: Mapping[str, Any],
        prompts: Sequence[Prompt],
        generator: Generator | None,
        rates: Mapping[str, Rate],
        per_clip: float | None = None,
        per_call: float | None = None,
    ) -> None:
        """Of these params.

        rates: as measured. per_clip: seconds that sampling a clip of a round takes, in place of what was measured.
        per_call: seconds of a call to a source over the network, likewise.
        """
        self.params, self.prompts, self.per_call = params, prompts, per_call
        sampling = unit_of(Command("generate", {"sampling": "generate"}))
        self.rates = dict(rates)
        if per_clip is not None:
            self.rates[sampling.rate] = Rate("clips", per_clip / sampling.size, 0.0)
        self.forward = self.rates.get(sampling.rate)
        base = self.rates.get("base")
        self.base = base.seconds if base else 0.0  # seconds of dvc's start and stage base, once a run
        self.bytes_per_clip = _bytes_per_clip(params["video"], generator)

    def takes(self, command: Command, there: bool, written: int) -> Takes:
        """What a stage would take. there: whether the clips that it reads stay. written: bytes of its last run."""
        work = work_of(command, self.params, self.prompts)
        found = [one for asked in work.asked for one in estimates(asked, self.prompts, there)]
        calls = sum(cost.calls - cost.answered for _, cost in found)
        answers = 0 if found else sum(asked.amount * asked.votes for asked in work.asked)
        prices = [cost.dollars for _, cost in found]
        return Takes(
            clips=work.clips,
            answers=answers,
            calls=calls,
            tokens=sum(cost.input_tokens + cost.output_tokens for _, cost in found),
            dollars=added(prices),
            steps=work.steps,
            seconds=self._seconds(work, calls, [source.options.concurrency for source, _ in found]),
            bytes=work.clips * self.bytes_per_clip or written,
        )

    def _seconds(self, work: Work, calls: int, in_flight: Sequence[int]) -> float | None:
        rate, paid = self.rates.get(work.unit.rate), work.unit.name == "calls"
        if paid and (self.per_call is not None or not calls):
            return calls * (self.per_call or 0.0) / max(in_flight, default=1)
        if rate:
            return rate.start + rate.seconds * (calls if paid else work.amount * work.unit.size)
        if work.forwards and self.forward:
            return self.forward.start + work.forwards * work.amount * self.forward.seconds
        return None


def total(found: Iterable[Takes]) -> Takes:
    """All of them together; what is not known of one is left out of the seconds, and makes the dollars unknown."""
    listed = list(found)
    return Takes(
        clips=sum(one.clips for one in listed),
        answers=sum(one.answers for one in listed),
        calls=sum(one.calls for one in listed),
        tokens=sum(one.tokens for one in listed),
        dollars=added([one.dollars for one in listed]),
        steps=sum(one.steps for one in listed),
        seconds=sum(one.seconds or 0.0 for one in listed),
        bytes=sum(one.bytes for one in listed),
    )


def added(amounts: Sequence[float | None]) -> float | None:
    """The sum; None where one of them is not known."""
    return None if None in amounts else sum(one for one in amounts if one is not None)


def _bytes_per_clip(video: Mapping[str, Any], generator: Generator | None) -> int:
    """Of latents and mp4: as in the clip sets of this size that are there, or else by the numbers of their values."""
    size = [video["num_frames"], video["height"], video["width"]]
    for listed in sorted(Path("runs").glob(f"**/samples/{MANIFEST}")):
        facts = json.loads(listed.read_text(encoding="utf-8"))
        clips = sum(map(len, facts["facts"].get("shards", [])))  # a pool has none
        if facts["facts"].get("size") == size and facts["facts"].get("family") == block("generator.family") and clips:
            return round(sum(int(file["size"]) for file in facts["files"]) / clips)
    latents = FLOAT * math.prod(generator.latent_shape) if generator else 0
    lossless = max(video["height"], video["width"]) <= LOSSLESS
    return round(latents + BYTES_PER_PIXEL[lossless] * float(math.prod(size)))
