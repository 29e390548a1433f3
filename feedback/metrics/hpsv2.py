"""HPSv2 (Wu et al. 2023), v2.1: a CLIP trained on people's preferences between several pictures for a prompt.

    score = sum over frames of cos(image embedding, text embedding)

without a temperature, as its authors compute it; `reduce: mean` does not depend on the length. `xswu/HPSv2` holds
`HPS_v2.1_compressed.pt`, an OpenCLIP ViT-H/14. The same hub id holds v2.0; scores of v2.1 and v2.0 cannot
be compared.

The model sees the whole frame: its longer side becomes 224 pixels and the rest is black. Deviation: the authors compute
scores under autocast in half precision; here `dtype` determines the precision, by default float32.
"""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from data.config import STRICT
from feedback.core.source import Metric
from feedback.core.weights import FolderOrHubId, hub_page
from feedback.metrics.clip import VIT_H14
from feedback.metrics.metric import FrameOptions, metric_kind, needs_model

HUB_ID, FILE = "xswu/HPSv2", "HPS_v2.1_compressed.pt"


def _model_or_file(path: str) -> str:
    if Path(path).suffix in (".pt", ".pth") and not Path(path).is_file():
        raise ValueError(f"{path} does not exist; download {hub_page(HUB_ID, 'main', FILE)} and put it there")
    if not Path(path).exists() and path.count("/") != 1:
        raise ValueError(f"{path} is neither a file, a folder nor a hub id")
    return path


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options(FrameOptions):
    """Options of kind `hpsv2`."""

    # A hub id, a checkpoint file, or a folder in transformers' layout
    path: Annotated[str, AfterValidator(_model_or_file)] = HUB_ID
    file: str = FILE  # name of the checkpoint in a hub id
    revision: str | None = None  # commit, tag or branch of a hub id; null for a local path
    processor: FolderOrHubId = VIT_H14  # model with CLIP's tokenizer
    cache: str | None = None  # folder of converted checkpoints; null: the user's cache folder


def measure(name: str, options: Options, device: str) -> Metric:
    """The metric of this block, with its weights on the device; converts the checkpoint on first use."""
    from feedback.metrics.hpsv2_model import load_hpsv2  # transformers takes seconds to import

    cache = Path(options.cache) if options.cache else None
    return load_hpsv2(
        name, options.path, options.file, options.revision or "main", options.processor, cache, options, device
    )


KIND = metric_kind("hpsv2", Options, measure, needs_device=True, needs=needs_model)
