"""The sections of params.yaml as frozen dataclasses, but for those that a library defines itself."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Gt, Lt, MinLen
from pydantic import Field
from pydantic.dataclasses import dataclass

from data.config import STRICT, ConfigError, Count, NotNegative, Positive, Probability
from evaluation.selection import BestOf, TopK
from pipeline.params import PARAMS, ParamsError, block, read_section
from rl.reward.config import RewardTraining

if TYPE_CHECKING:  # torch takes seconds to import
    from rl.objectives import Objective
    from rl.training.config import TrainConfig


@dataclass(frozen=True, config=STRICT)
class ComponentConfig:
    """An entry of `generator.components`: where a component lies."""

    path: str
    revision: str | None = None
    subfolder: str | None = None  # within the path; None: its top


@dataclass(frozen=True, config=STRICT)
class GeneratorConfig:
    """Section `generator`, which several stages read: the arguments of generators.core.load.load_generator."""

    family: str
    path: str
    revision: str | None
    dtype: Literal["float32", "bfloat16"]
    max_prompt_tokens: Count
    vae_tiling: bool = False
    attention: str | None = None
    embedded_guidance: Positive | None = None  # an input of a distilled denoiser; None: the family's
    components: dict[str, ComponentConfig] | None = None  # that lie elsewhere than in `path`, by name
    compile: bool = False

    @property
    def folders(self) -> list[Path]:
        """What its weights are read from; a hub id is no folder that exists."""
        return [Path(self.path), *(Path(one.path) for one in (self.components or {}).values())]


@dataclass(frozen=True, config=STRICT)
class PromptsConfig:
    """Section `prompts`."""

    path: str


@dataclass(frozen=True, config=STRICT)
class RoundEntry:
    """An entry of `rounds`: a clip set."""

    policy: str  # that samples it
    of: str | None = None  # the entry that it repeats for another seed (pipeline.replicates); written by vfrl seeds


@dataclass(frozen=True, config=STRICT)
class DenseEntry:
    """An entry of `dense`: a set of pairs, both clips of a pair sampled from one partly noised clip."""

    round: str  # whose clips are started from
    policy: str  # that samples the pairs
    noise: Annotated[float, Gt(0), Lt(1)]  # share of the solver's steps that is run
    pairs_per_prompt: Count
    window: Count  # frames that get a label of their own
    of: str | None = None  # as of a round


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PolicyEntry:
    """An entry of `policies`: what is trained on a round."""

    start: str  # a policy
    round: str  # or a pool; of objective dense_dpo a set of `dense`
    objective: str
    seed: int | None = None  # null: that of section `train`
    changes: dict[str, Any] = Field(default_factory=dict)  # over train.<objective> and train.common, by key
    of: str | None = None  # as of a round

    def __post_init__(self) -> None:
        if "seed" in self.changes:
            raise ValueError("changes has a seed; write `seed` beside `changes`")


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ComparedEntry(PolicyEntry):
    """An entry of `comparison.policies`: the same on another source's labels."""

    source: str


@dataclass(frozen=True, config=STRICT)
class LabelConfig:
    """Section `label`."""

    batch_size: Count  # clips read, judged and committed together
    votes: Count  # independent askings of every clip
    max_failed: Probability  # share of the clips that may lack a reply
    opponents: Count  # of a source that compares clips: other clips of its prompt that each meets
    min_audited_accuracy: Probability | None = None  # below it, in the source's audit, there is a warning


@dataclass(frozen=True, config=STRICT)
class HumanSet:
    """Section `audit.human`: clips that people have rated."""

    set: str  # folder of a clip set
    source: str  # of kind human


@dataclass(frozen=True, config=STRICT)
class AuditConfig:
    """Section `audit`."""

    sources: tuple[str, ...]  # dvc.yaml makes a stage of each
    set: str  # the package folder of a world (pipeline.audit.world_of), or the folder of the base policy's clips
    clips: Count
    votes: Count
    frames: Count | None
    human: HumanSet | None
    draws: Count
    seed: int


@dataclass(frozen=True, config=STRICT)
class BuildConfig:
    """Section `build`; params.yaml says what each key means."""

    reward: Literal["label", "p_accept", "score"]
    shaping: Literal["linear", "exponential", "group"]
    scale: Positive
    shift: NotNegative
    temperature: Positive
    pairs: Literal["all", "balanced", "margin", "quantile", "preferred"]
    pairs_per_prompt: Count
    min_margin: NotNegative
    seed: int
    quantile: float = Field(default=0.5, gt=0, le=0.5)


@dataclass(frozen=True, config=STRICT)
class SelectConfig:
    """Section `select`; `policies` is read by dvc.yaml, `generate` by stages.generate."""

    policies: tuple[str, ...]
    judges: tuple[str, ...]
    keep: str
    generate: dict[str, Any]

    def __post_init__(self) -> None:
        from evaluation.checkpoints import candidates_of

        candidates_of(self.keep, 1)


@dataclass(frozen=True, config=STRICT)
class ExtendConfig:
    """An entry of section `extend`; `policy` is read by dvc.yaml."""

    policy: str
    prompts: str  # CSV with a text for each prompt_id
    template: str  # around it
    of: str | None = None  # as of a round


@dataclass(frozen=True, config=STRICT)
class EvaluateConfig:
    """Section `evaluate`; `generate` is read by stages.generate."""

    policies: tuple[str, ...]
    judges: tuple[str, ...]
    top_k: TopK | None
    best_of: BestOf | None
    pass_at: tuple[Count, ...]  # the k of pass@k
    generate: dict[str, Any]
    draws: Count
    seed: int

    def __post_init__(self) -> None:
        ranked_by = {
            "top_k.by": self.top_k.by if self.top_k else None,
            "best_of.judge": self.best_of.judge if self.best_of else None,
        }
        for key, judge in ranked_by.items():
            if judge is not None and judge not in self.judges:
                raise ValueError(f"{key} is {judge!r}, expected one of evaluate.judges: {', '.join(self.judges)}")
        for name in self.best_of.of if self.best_of else ():
            if name not in self.policies:
                known = ", ".join(self.policies)
                raise ValueError(f"best_of.of: {name!r} is not in evaluate.policies, which has {known}")


@dataclass(frozen=True, config=STRICT)
class DriftConfig:
    """Section `effects.drift`."""

    clips: Count  # of the base, of each prompt
    times: Count  # of each clip, in the middle of so many equal parts of the noise process
    seed: int  # of the noise


@dataclass(frozen=True, config=STRICT)
class EffectsConfig:
    """Section `effects`."""

    drift: DriftConfig | None  # None: not measured


@dataclass(frozen=True, config=STRICT)
class PreferenceEntry:
    """An entry of `preferences`: two policies whose evaluation clips a source compares."""

    policy: str
    against: str
    source: str  # whose rubric has `compares: true`
    clips: Count | None = None  # of each prompt, those of the lowest seeds; null: all


@dataclass(frozen=True, config=STRICT)
class ReportConfig:
    """Section `report`."""

    samples_per_prompt: Count | None  # clips of each prompt and policy in the gallery; null: all


@dataclass(frozen=True, config=STRICT)
class OnlineEntry:
    """An entry of `online.policies`."""

    start: str  # a policy
    recipe: str  # a name in configs/recipes/
    judge: str  # a source that torch can differentiate, or a panel of such
    held_out: str  # a source of any kind that judges samples between updates
    split: str = "train"  # of the prompts
    references: str | None = None  # real clips: a name in pipeline.judges.REFERENCES or a dotted path; null: none
    overlay: str | None = None  # YAML of marks, drawn over what the judge sees
    changes: dict[str, Any] = Field(default_factory=dict)  # by the recipe's section and key, over its values
    seed: int | None = None  # null: the recipe's, with its changes
    of: str | None = None  # as of a round

    @property
    def all_changes(self) -> dict[str, Any]:
        """The changes, with the entry's own seed among them."""
        if self.seed is None:
            return self.changes
        return {**self.changes, "engine": {**(self.changes.get("engine") or {}), "seed": self.seed}}


@dataclass(frozen=True, config=STRICT)
class CheckConfig:
    """Section `online.check`: clips that the judges see between updates, the same prompts and noise each time."""

    prompts: Count | None  # at most so many of the train prompts, evenly spread over them; null: all
    samples_per_prompt: Count
    batch_size: Count  # clips per forward
    seed: int


@dataclass(frozen=True, config=STRICT)
class PromptConfig:
    """Section `online.prompt`: the defaults of `vfrl online`."""

    recipe: str
    judge: str
    held_out: str
    check: CheckConfig
    changes: dict[str, dict[str, Any]] = Field(default_factory=dict)  # over a recipe's values, by its name
    also: tuple[str, ...] = ()  # further sources that are asked about the clips before and after, and decide nothing

    def changes_of(self, recipe: str) -> dict[str, Any]:
        """The changes over that recipe's values."""
        return self.changes.get(recipe, {})


@dataclass(frozen=True, config=STRICT)
class RewardEntry:
    """An entry of `reward.models`."""

    round: str  # or a pool, whose pairs it is trained on
    changes: dict[str, Any] = Field(default_factory=dict)  # over reward.settings, by key


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RewardConfig(RewardTraining):
    """Section `reward.settings`."""

    path: str  # of the VLM, a local folder or a hub id
    revision: str | None
    rubric: str
    dtype: Literal["float32", "bfloat16", "float16"]
    pixels: Count | None
    lora_rank: Count
    lora_alpha: Positive
    lora_targets: Annotated[tuple[str, ...], MinLen(1)]
    gradient_checkpointing: bool


def reward_config(entry: RewardEntry, settings: dict[str, Any]) -> RewardConfig:
    """Section `reward.settings` with the changes of an entry. Raises ParamsError naming the key."""
    return read_section(settings | entry.changes, RewardConfig, "reward.settings")


NAME = re.compile(r"[a-z0-9_-]+")  # of a round, policy or source: it names folders


def build_config(source: str) -> BuildConfig:
    """Section `build` for labels of this source: its own keys under `build.sources` override the common ones."""
    given = block("build")
    common = {key: value for key, value in given.items() if key != "sources"}
    own = (given.get("sources") or {}).get(source) or {}
    return read_section(common | own, BuildConfig, f"build.sources.{source}" if own else "build")


def train_config(objective: "Objective", entry: str | None = None) -> "TrainConfig":
    """Section `train.<objective>` over `train.common`. Raises ParamsError naming section, key, value and known keys.

    entry: the dotted name of a policy's entry, whose own `changes` and `seed` come first.
    """
    from rl.training.config import configure

    common, own = block("train.common"), block(f"train.{objective.name}")
    changed = _changes_of(entry)
    for name, values in (("train.common", common), (f"train.{objective.name}", own)):
        if not isinstance(values, dict):
            raise ParamsError(f"{PARAMS}: {name} is {values!r}, expected a section ({{}} for none)")
    try:
        return configure(objective, common | own | changed)
    except ConfigError as error:  # it calls all keys the objective's own; most stand in train.common
        where = re.compile(rf"\btrain\.{objective.name}\.(\w+)")
        sections = dict.fromkeys(common, "train.common") | dict.fromkeys(own, f"train.{objective.name}")
        sections |= dict.fromkeys(changed, f"{entry}.changes")
        named = where.sub(lambda key: f"{sections[key[1]]}.{key[1]}" if key[1] in sections else key[0], str(error))
        raise ParamsError(f"{PARAMS}: {named}") from error


def _changes_of(entry: str | None) -> dict[str, Any]:
    """What the entry of a policy sets itself, by key."""
    found = block(entry) if entry else {}
    seed = found.get("seed")
    return (found.get("changes") or {}) | ({} if seed is None else {"seed": seed})
