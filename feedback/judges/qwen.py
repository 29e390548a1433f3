"""A local video VLM as a source, in this process: whatever AutoModelForImageTextToText loads that takes videos.

Tested with tiny models of the real classes, which tell a clip's time and size frames each in their own way:

    Qwen2.5-VL      time is in the positions                        `pixels` of each frame
    Qwen3-VL        each pair of frames begins with its seconds     `pixels` of each frame
    InternVL (-hf)  frames are numbered; no time                    one square size, so no `pixels`

The answer is read from the distribution of the first answer token, not from sampled text: one forward pass, no
parsing, and a probability. With yes and no the sets of first tokens of the two words in all their spellings,

    p_yes = mass(yes) / (mass(yes) + mass(no)),    mass(S) = sum of softmax(logits) over S.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from data.config import STRICT, Count, Probability, WholeNotNegative
from feedback.core.kinds import Kind, Needs
from feedback.core.rubric import load_rubric
from feedback.core.weights import Dtype, FolderOrHubId, is_local

if TYPE_CHECKING:
    from feedback.judges.vlm import Loaded, QwenSource


@dataclass(frozen=True, config=STRICT)
class Options:
    """Options of kind `qwen`."""

    path: FolderOrHubId  # such as Qwen/Qwen2.5-VL-7B-Instruct
    revision: str | None  # commit, tag or branch of a hub id; null for a local folder
    rubric: str  # YAML file
    batch_size: Count  # clips per forward pass
    dtype: Dtype
    pixels: Count | None = None  # of Qwen's: scale each frame to about this many; null: as its processor says
    min_answer_mass: Probability = 0.05  # probability that both answers together must hold; less is off-topic: null
    max_new_tokens: WholeNotNegative = 0  # of the judge's own words to keep as the reason; 0 is none, and much faster

    def __post_init__(self) -> None:
        if is_local(self.path) and self.revision is not None:
            raise ValueError(f"revision is {self.revision!r}, but {self.path} is a local folder: null")


def load(name: str, options: Options, device: str) -> "QwenSource":
    """The judge of this block, with its weights on the device.

    Raises ValueError naming the option where its processor takes no videos, or does not count in pixels.
    """
    from feedback.judges.vlm import load_model  # transformers takes seconds to import

    loaded = load_model(name, options.path, options.revision, options.dtype, options.pixels, device)
    return source_of(name, options, loaded)


def source_of(name: str, options: Options, loaded: "Loaded") -> "QwenSource":
    """The judge of this block, whose model is loaded."""
    from feedback.judges.vlm import QwenSource

    return QwenSource(
        name,
        load_rubric(Path(options.rubric)),
        options.path,
        loaded,
        options.batch_size,
        options.pixels,
        options.min_answer_mass,
        options.max_new_tokens,
    )


KIND = Kind(
    Options,
    load,
    needs_device=True,
    needs=lambda given: Needs(rubric=given.rubric, model=given.path, revision=given.revision),
)
