"""A local video VLM as a source, in this process: whatever AutoModelForImageTextToText loads that takes videos.

Tested with tiny models of the real classes, which tell a clip's time and size frames each in their own way:

    Qwen2.5-VL      time is in the positions                        `pixels` of each frame
    Qwen3-VL        each pair of frames begins with its seconds     `pixels` of each frame
    InternVL (-hf)  frames are numbered; no time                    one square size, so no `pixels`

The answer is read from the distribution of the first answer token, not from sampled text: one forward pass, no
parsing, and a probability. With yes and no the sets of first tokens of the two words in all their spellings,

    p_yes = mass(yes) / (mass(yes) + mass(no)),    mass(S) = sum of softmax(logits) over S.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from feedback.core.kinds import Kind, Needs
from feedback.core.rubric import load_rubric
from feedback.core.weights import is_local

if TYPE_CHECKING:
    from feedback.judges.vlm import Loaded, QwenSource

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Options:
    """A `qwen` block of params.yaml."""

    path: str  # a local folder, or a hub id such as Qwen/Qwen2.5-VL-7B-Instruct
    revision: str | None  # commit, tag or branch of a hub id; null for a local folder
    rubric: str  # YAML file
    batch_size: int  # clips per forward pass
    dtype: str  # float32 | bfloat16 | float16
    pixels: int | None = None  # of Qwen's: scale each frame to about this many; null: as the judge's own processor says
    min_answer_mass: float = 0.05  # probability that both answers together must hold; less is off-topic: null
    max_new_tokens: int = 0  # tokens of the judge's own words to keep as the reason; 0 is none, and much faster

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, known are {list(DTYPES)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, expected at least 1 clip")
        if self.pixels is not None and self.pixels < 1:
            raise ValueError(f"pixels is {self.pixels}, expected at least 1, or null")
        if is_local(self.path) and self.revision is not None:
            raise ValueError(f"revision is {self.revision!r}, but {self.path} is a local folder: null")
        if not is_local(self.path) and self.path.count("/") != 1:
            raise ValueError(f"path: {self.path} is neither a folder nor a hub id")


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
