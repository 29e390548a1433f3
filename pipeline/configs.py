"""The sections of params.yaml as frozen dataclasses, but for those that a library defines itself."""

from dataclasses import dataclass, field
from typing import Any

from evaluation.selection import BestOf, TopK
from pipeline.params import block, read_section


@dataclass(frozen=True)
class GeneratorConfig:
    """Section `generator`, which several stages read; the arguments of generators.load_generator."""

    family: str
    path: str
    revision: str | None
    dtype: str
    max_prompt_tokens: int


@dataclass(frozen=True)
class PromptsConfig:
    """Section `prompts`."""

    path: str


@dataclass(frozen=True)
class LabelConfig:
    """Section `label`."""

    batch_size: int  # clips read, judged and committed together
    votes: int  # independent askings of every clip
    max_failed: float  # part of the clips of which no reply need be had
    min_audited_accuracy: float | None = None  # below it, of the source's audit, there is a warning

    def __post_init__(self) -> None:
        for name in ("batch_size", "votes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("max_failed", "min_audited_accuracy"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, expected a part between 0 and 1")


@dataclass(frozen=True)
class AuditConfig:
    """Section `audit`."""

    sources: tuple[str, ...]  # dvc.yaml makes a stage of each
    set: str  # a world, by its name in pipeline.audit.WORLDS or a dotted path; or the folder of the base policy's clips
    clips: int
    votes: int
    frames: int | None
    human: dict | None  # set: folder of a clip set, source: of kind human
    draws: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("clips", "votes", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"frames is {self.frames}, expected at least 1, or null")
        if self.human is not None and self.human.keys() != {"set", "source"}:
            raise ValueError(f"human is {self.human}, expected null or {{set: folder of clips, source: of kind human}}")


@dataclass(frozen=True)
class SelectConfig:
    """Section `select`; `policies` is read by dvc.yaml, `generate` by stages.generate."""

    policies: tuple[str, ...]
    judges: tuple[str, ...]
    keep: str
    generate: dict[str, Any]

    def __post_init__(self) -> None:
        from evaluation.checkpoints import candidates_of

        candidates_of(self.keep, 1)


@dataclass(frozen=True)
class ExtendConfig:
    """An entry of section `extend`; `policy` is read by dvc.yaml."""

    policy: str
    prompts: str  # CSV with a text for each prompt_id
    template: str  # around it


@dataclass(frozen=True)
class EvaluateConfig:
    """Section `evaluate`; `generate` is read by stages.generate."""

    policies: tuple[str, ...]
    judges: tuple[str, ...]
    top_k: TopK | None
    best_of: BestOf | None
    generate: dict[str, Any]
    draws: int
    seed: int

    def __post_init__(self) -> None:
        asked = {
            "top_k.by": self.top_k.by if self.top_k else None,
            "best_of.judge": self.best_of.judge if self.best_of else None,
        }
        for key, judge in asked.items():
            if judge is not None and judge not in self.judges:
                raise ValueError(f"{key} is {judge!r}, expected one of evaluate.judges: {', '.join(self.judges)}")


@dataclass(frozen=True)
class ReportConfig:
    """Section `report`."""

    samples_per_prompt: int | None  # clips of each prompt and policy in the gallery; null for all

    def __post_init__(self) -> None:
        if self.samples_per_prompt is not None and self.samples_per_prompt < 1:
            raise ValueError(f"report.samples_per_prompt: {self.samples_per_prompt}, expected at least 1, or null")


@dataclass(frozen=True)
class OnlineEntry:
    """One of `online.policies`."""

    start: str  # a policy
    recipe: str  # a name in configs/recipes/
    judge: str  # a source that torch can differentiate, or a panel of such
    held_out: str  # a source of any kind, which looks on
    split: str = "train"  # of the prompts
    references: str | None = None  # of real clips: pipeline.online.REFERENCES or a dotted path; null: none
    overlay: str | None = None  # a YAML of marks that are laid over what the judge sees
    changes: dict = field(default_factory=dict)  # by the recipe's section and key, over its values


@dataclass(frozen=True)
class CheckConfig:
    """The clips that the judges look at between updates, the same prompts and noise each time."""

    prompts: int | None  # of those that are trained on, evenly spread over them, at most; null: all
    samples_per_prompt: int
    batch_size: int  # clips per forward
    seed: int


@dataclass(frozen=True)
class PromptConfig:
    """Section `online.prompt`: what the command line leaves open."""

    recipe: str
    judge: str
    held_out: str
    check: CheckConfig
    changes: dict = field(default_factory=dict)


@dataclass(frozen=True)
class BuildConfig:
    """Section `build`; params.yaml says what each key means."""

    reward: str
    scale: float
    shift: float
    pairs: str
    pairs_per_prompt: int
    min_margin: float
    seed: int
    quantile: float = 0.5

    def __post_init__(self) -> None:
        from rl.pairing import check_pairing
        from rl.rewards import check_reward, check_shaping

        check_reward(self.reward)
        check_shaping(self.scale, self.shift)
        check_pairing(self.pairs, self.pairs_per_prompt, self.min_margin, self.quantile)


def build_config(source: str) -> BuildConfig:
    """What section `build` says of labels of this source: its own keys under `build.sources` come first."""
    given = block("build")
    common = {key: value for key, value in given.items() if key != "sources"}
    own = (given.get("sources") or {}).get(source) or {}
    return read_section(common | own, BuildConfig, f"build.sources.{source}" if own else "build")
