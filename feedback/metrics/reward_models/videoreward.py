"""Kind `videoreward`: VideoReward of VideoAlign (Liu et al., *Improving Video Generation with Human Feedback*, 2025).

A Qwen2-VL-2B with LoRA, trained on people's choices between two clips by a Bradley-Terry loss with ties. Its measures
are VQ (visual quality), MQ (motion quality), TA (text alignment), each normalised by its mean and standard deviation
over the authors' data, and Overall, the sum of the three.

`path` is laid out as KwaiVGI/VideoReward, which the authors' code (github.com/KwaiVGI/VideoAlign) reads:

    model_config.json            data_config: fps, num_frames, max_frame_pixels, eval_dim, sample_type,
                                 prompt_template_type; model_config: model_name_or_path, output_dim, reward_token,
                                 use_special_tokens; peft_lora_config: lora_r, lora_alpha, use_rslora;
                                 inference_config: <dimension>_mean, <dimension>_std (without it, no normalisation)
    checkpoint-<step>/           the last step is taken
        model.pth                all weights with LoRA beside them, `rm_head.weight` the head; or
        adapter_model.safetensors, non_lora_state_dict.pth   LoRA, and what else was trained
        tokenizer/               with the tokens <|VQ_reward|>, <|MQ_reward|>, <|TA_reward|>; may be absent

Keys and steps are those of inference.py, train_reward.py, utils.py, trainer.py and vision_process.py there. The text is
in its prompt_template.py, which `text` names. Not here: reward_token `mean`, sample_type `multi_pts`.

A pickle is read without running code that may be in it, LoRA is merged into the weights in float32, and the result is
kept once as safetensors in `videoreward/` of the user's cache folder.

Deviations: LoRA merged (the authors add it at every step), the head and the normalisation in float32.
Tested with random weights in this layout, also against the authors' class in transformers 4.45.2. The published
checkpoint was never loaded here; its values of model_config.json are known from other people's readers of it alone.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from data.config import STRICT
from feedback.core.kinds import Kind, Needs
from feedback.core.source import Metric, Source
from feedback.core.weights import Dtype, FolderOrHubId
from feedback.metrics.metric import MetricOptions, existing_file

HUB_ID = "KwaiVGI/VideoReward"
TEXTS = "https://github.com/KwaiVGI/VideoAlign/blob/main/prompt_template.py"


def _with_config(path: str) -> str:
    if Path(path).is_dir() and not (Path(path) / "model_config.json").is_file():
        raise ValueError(f"{path} has no model_config.json; expected the layout of {HUB_ID}")
    return path


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options(MetricOptions):
    """Options of kind `videoreward`. Clips are scored one at a time; batch_size is how many are decoded ahead."""

    path: Annotated[FolderOrHubId, AfterValidator(_with_config)] = HUB_ID
    revision: str | None = None  # commit, tag or branch of a hub id; null for a local folder
    base: FolderOrHubId | None = None  # the Qwen2-VL that was trained; null: model_config.model_name_or_path
    text: Annotated[str, AfterValidator(existing_file)] | None = (
        None  # VideoAlign's prompt_template.py, or a text with {text_prompt}
    )
    score: Literal["Overall", "VQ", "MQ", "TA"] = "Overall"  # the measure that is the label's score
    dtype: Dtype = "bfloat16"  # the authors'
    cache: str | None = None  # folder of converted checkpoints; null: the user's cache folder

    def __post_init__(self) -> None:
        if self.text is None:
            raise ValueError(f"text is missing: download {TEXTS} and name the file")


def load(name: str, options: Options, device: str) -> Source:
    """The source of this block, with its weights on the device; converts the checkpoint on first use."""
    from feedback.metrics.reward_models.loading import as_source, load_videoreward  # transformers takes seconds

    return as_source(name, load_videoreward(name, options, device), options)


def measure(name: str, options: Options, device: str) -> Metric:
    """The measure `score` alone, as a metric."""
    from feedback.metrics.reward_models.loading import load_videoreward

    return load_videoreward(name, options, device)


def _needs(options: Options) -> Needs:
    return Needs(model=options.base) if options.base else Needs()


KIND = Kind(Options, load, needs_device=True, measure=measure, needs=_needs)
