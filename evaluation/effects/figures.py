"""What is averaged of every policy's effects, as arrays in one order of prompts and clips that all policies share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from evaluation.effects.pass_at import by_prompt, within
from evaluation.effects.rows import Effects
from evaluation.measures import Clips, Values, only
from evaluation.sets import EvaluationSet, accepted

BASE = "base"
EVERY = "all"  # clips, beside those that a judge accepts

Keys = tuple[str, ...]  # of a figure in the summary
Measures = dict[Keys, np.ndarray]  # (N,) of clips or (P,) of prompts, nan: not known


class Column(NamedTuple):
    """One figure of several training seeds of a policy, or of one, in one split."""

    keys: Keys  # the split last
    values: np.ndarray  # (S, M) of S seeds, by clip or by prompt
    base: np.ndarray  # (1, M)
    prompts: np.ndarray  # (M,)
    chosen: bool  # whether each policy counts other clips, so that prompts can be paired and clips cannot


@dataclass(frozen=True)
class Figures:
    """What is averaged of every policy.

    sets, measured: by policy, base among them, clips in one order. labelling: judges that accept and reject. wanted:
    the k of pass@k.
    """

    sets: Mapping[str, EvaluationSet]
    measured: Mapping[str, Effects]
    labelling: Sequence[str]
    wanted: Sequence[int]

    @cached_property
    def clips(self) -> Clips:
        return Clips(self.sets[BASE].samples)

    @cached_property
    def judged(self) -> dict[str, Values]:
        """By policy and judge (N,) 1 accepted, 0 rejected, nan unlabelled."""
        return {
            name: {judge: accepted(one.labels[judge]) for judge in self.labelling} for name, one in self.sets.items()
        }

    @cached_property
    def of_prompts(self) -> dict[str, Measures]:
        """By policy (P,) each: pass@k by judge, Vendi score and mean distance."""
        return {name: self._of_prompts(name) for name in self.sets}

    @cached_property
    def of_clips(self) -> dict[str, Measures]:
        """By policy (N,) each: motion of every clip, and of those that each judge accepts."""
        return {name: self._of_clips(name) for name in self.sets}

    def columns(self, policies: Sequence[str]) -> list[Column]:
        """Every figure of these policies, training seeds of one, in every split, but drift."""
        found = []
        for split, cell in self.clips.cells[None].items():
            prompts = cell[self._first]
            for key, base in self.of_prompts[BASE].items():
                values = np.stack([self.of_prompts[policy][key] for policy in policies])[:, prompts]
                places = np.arange(values.shape[1])
                found.append(Column((*key, split), values, base[None, prompts], places, chosen=False))
            for key, base in self.of_clips[BASE].items():
                values = np.stack([self.of_clips[policy][key] for policy in policies])[:, cell]
                chosen = EVERY not in key  # a judge accepts other clips of each policy
                found.append(Column((*key, split), values, base[None, cell], self.clips.prompts[cell], chosen))
        return found

    @cached_property
    def _first(self) -> np.ndarray:
        """(P,) int, the first clip of each prompt in the order of its number."""
        return np.unique(self.clips.prompts, return_index=True)[1]

    def _of_prompts(self, name: str) -> Measures:
        prompts = self.clips.prompts
        largest = int(np.bincount(prompts).max())
        found: Measures = {
            ("pass_at", judge, str(k)): by_prompt(values, prompts, k)
            for judge, values in self.judged[name].items()
            for k in within(tuple(self.wanted), largest)
        }
        by_id = {row.prompt_id: row for row in self.measured[name].spread}
        rows = [by_id[prompt_id] for prompt_id in self.clips.prompt_ids[self._first]]
        return found | {
            ("vendi",): _floats([row.vendi for row in rows]),
            ("distance",): _floats([row.distance for row in rows]),
        }

    def _of_clips(self, name: str) -> Measures:
        motion = _floats([row.motion for row in self.measured[name].motion])
        return {("motion", EVERY): motion} | {
            ("motion", judge): only(motion, values == 1) for judge, values in self.judged[name].items()
        }


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)
