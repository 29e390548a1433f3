"""HPSv2 (Wu et al. 2023), v2.1: a CLIP trained on which of several pictures people prefer for a prompt.

    score = sum over frames of cos(image embedding, text embedding)

without a temperature, as its authors compute it; `reduce: mean` does not depend on the length. `xswu/HPSv2` holds
`HPS_v2.1_compressed.pt`, an OpenCLIP ViT-H/14. Scores of v2.1 and of v2.0, which lies beside it, cannot be compared.

A frame is shown whole: its longer side becomes 224 pixels and the rest is black. The authors score under autocast, in
half precision; here `dtype` says, float32 by default.
"""

from dataclasses import dataclass
from pathlib import Path

from feedback.core.source import Metric
from feedback.metrics.clip import FrameOptions
from feedback.metrics.metric import metric_kind, needs_model

PAGE = "https://huggingface.co/{path}/resolve/{revision}/{file}"


@dataclass(frozen=True, kw_only=True)
class Options(FrameOptions):
    """A block of kind `hpsv2` in params.yaml."""

    path: str = "xswu/HPSv2"  # hub id, a checkpoint's file, or a folder in transformers' layout
    file: str = "HPS_v2.1_compressed.pt"  # the checkpoint among the files of a hub id
    revision: str | None = None  # commit, tag or branch of a hub id; null for what is local
    processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # folder or hub id of CLIP's tokenizer
    cache: str | None = None  # folder of converted checkpoints; null: the user's cache folder

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.path).suffix in (".pt", ".pth") and not Path(self.path).is_file():
            page = PAGE.format(path=Options.path, revision="main", file=Options.file)
            raise ValueError(f"path: {self.path} is not there; download {page} and put it there")
        if not Path(self.path).exists() and self.path.count("/") != 1:
            raise ValueError(f"path: {self.path} is neither a file, a folder nor a hub id")
        if not Path(self.processor).is_dir() and self.processor.count("/") != 1:
            raise ValueError(f"processor: {self.processor} is neither a folder nor a hub id")


def measure(name: str, options: Options, device: str) -> Metric:
    """The metric of this block, its weights on the device; the checkpoint is converted if it never was."""
    from feedback.metrics.hpsv2_model import load_hpsv2  # transformers takes seconds to import

    return load_hpsv2(name, options, device)


KIND = metric_kind("hpsv2", Options, measure, needs_device=True, needs=needs_model)
