"""Kind `videoscore`: VideoScore on a Qwen2-VL (He et al., *VideoScore*, EMNLP 2024), a regression of people's ratings.

Its measures are visual_quality, temporal_consistency, dynamic_degree, text_to_video_alignment and factual_consistency,
each about 1 (bad) to 4 (as a real video), and overall, their mean, by which the authors compare clips on GenAI-Bench.

`path` is laid out as TIGER-Lab/VideoScore-Qwen2-VL, a folder of transformers' with

    config.json          Qwen2-VL's, with num_labels
    *.safetensors        `score.weight`, `score.bias`: the head, read at the last token of the message
    processor and tokenizer

as the class Qwen2VLForSequenceClassification of github.com/TIGER-AI-Lab/Mantis (mantis/models/qwen2_vl) writes it.
Frames (8 a second), message and head are those of examples/run_videoscore_qwen2_vl.py of
github.com/TIGER-AI-Lab/VideoScore, whose constant REGRESSION_QUERY_PROMPT is the text; `text` names that file.

Not here: VideoScore and VideoScore-v1.1, which are Idefics2s; VideoScore2, which writes its scores as words and is a
judge for a server; a config with `score_type: special_token`, whose text is not published.
Deviation: the head in float32. Tested with random weights in this layout. The published checkpoint was never loaded.
"""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from data.config import STRICT, Positive
from feedback.core.kinds import Kind
from feedback.core.source import Metric, Source
from feedback.core.weights import Dtype, FolderOrHubId
from feedback.metrics.metric import MetricOptions, existing_file, needs_model

HUB_ID = "TIGER-Lab/VideoScore-Qwen2-VL"
TEXTS = "https://github.com/TIGER-AI-Lab/VideoScore/blob/main/examples/run_videoscore_qwen2_vl.py"
Dimension = Literal[
    "visual_quality",
    "temporal_consistency",
    "dynamic_degree",
    "text_to_video_alignment",
    "factual_consistency",
]
DIMENSIONS: tuple[str, ...] = get_args(Dimension)  # in the order of the head


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options(MetricOptions):
    """Options of kind `videoscore`. Clips are scored one at a time; batch_size is how many are decoded ahead."""

    path: FolderOrHubId = HUB_ID
    revision: str | None = None  # commit, tag or branch of a hub id; null for a local folder
    text: Annotated[str, AfterValidator(existing_file)] | None = (
        None  # run_videoscore_qwen2_vl.py, or a text with {text_prompt}
    )
    score: Literal["overall", Dimension] = "overall"  # the measure that is the label's score
    fps: Positive = 8.0  # frames shown per second of a clip
    dtype: Dtype = "bfloat16"  # the authors'

    def __post_init__(self) -> None:
        if self.text is None:
            raise ValueError(f"text is missing: download {TEXTS} and name the file")


def load(name: str, options: Options, device: str) -> Source:
    """The source of this block, with its weights on the device."""
    from feedback.metrics.reward_models.loading import as_source, load_videoscore  # transformers takes seconds

    return as_source(name, load_videoscore(name, options, device), options)


def measure(name: str, options: Options, device: str) -> Metric:
    """The measure `score` alone, as a metric."""
    from feedback.metrics.reward_models.loading import load_videoscore

    return load_videoscore(name, options, device)


KIND = Kind(Options, load, needs_device=True, measure=measure, needs=needs_model)
