"""A local video VLM as a source, in this process: any model of AutoModelForImageTextToText that takes videos.

Tested with tiny models of the real classes. They differ in how they encode time and how they resize frames:

    Qwen2.5-VL      time is in the positions                        `pixels` of each frame
    Qwen3-VL        each pair of frames begins with its seconds     `pixels` of each frame
    InternVL (-hf)  frames are numbered; no time                    one square size, so no `pixels`

The answer is read from the distribution of the first answer token, not from sampled text: this takes one forward pass
and no parsing, and gives a probability. Let yes and no be the sets of first tokens of the two words in all spellings:

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
    pixels: Count | None = (
        None  # Qwen models only: scale each frame to about this number; null: the processor's default
    )
    min_answer_mass: Probability = (
        0.05  # least probability of both answers together; below it the reply is off-topic: null
    )
    max_new_tokens: WholeNotNegative = 0  # tokens of the judge's reply to keep as the reason; 0: no reason, much faster

    def __post_init__(self) -> None:
        if is_local(self.path) and self.revision is not None:
            raise ValueError(f"revision is {self.revision!r}, but {self.path} is a local folder: null")


def load(name: str, options: Options, device: str) -> "QwenSource":
    """The judge of this block, with its weights on the device.

    Raises ValueError that names the option if the processor takes no videos or has no size in pixels.
    """
    from feedback.judges.vlm import load_model  # transformers takes seconds to import

    loaded = load_model(name, options.path, options.revision, options.dtype, options.pixels, device)
    return source_of(name, options, loaded)


def source_of(name: str, options: Options, loaded: "Loaded") -> "QwenSource":
    """The judge of this block, from its loaded model."""
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
    compares=True,
    by_prompt=True,
    first_frame=True,
    needs=lambda given: Needs(rubric=given.rubric, model=given.path, revision=given.revision),
)
