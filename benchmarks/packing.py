"""What more questions about a clip cost a judge: `python -m benchmarks.packing`.

    one         forward and backward, to the pixels, of one question
    packed      the same of all questions, in one pass
    separate    a pass for each question

One clip of a Qwen2.5-VL with random weights, at real proportions: many video tokens, few of a question. The variants
take turns, so that a noisy machine is noisy to all of them; figures are medians over the rounds. On CUDA, where there
is one, the peak of its memory is printed too.
"""

import statistics
import time
from collections.abc import Callable

import click
import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2_5_VLForConditionalGeneration

from feedback.differentiable.packing import Packed, pack, packed_logits, prepare, recompute
from feedback.judges.vlm import positions_of
from tabletop.pretraining.judge_model import tiny_qwen_config, word_level_tokenizer

PATCH, MERGE = 14, 2  # Qwen2.5-VL's
TEMPLATE = 4  # tokens before the video
WORDS = 1000  # of the vocabulary


def make_model(hidden: int, layers: int, vision_hidden: int, vision_layers: int) -> PreTrainedModel:
    """A Qwen2.5-VL whose heads are 64 channels wide, with a vocabulary of numbers."""
    torch.manual_seed(0)
    config = tiny_qwen_config(
        word_level_tokenizer(map(str, range(WORDS))), PATCH, MERGE, vision_hidden, vision_layers, vision_hidden // 64,
        hidden, layers, hidden // 64,
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config).eval().requires_grad_(False)
    prepare(model)
    return model


def question_prompts(model: PreTrainedModel, grid: Tensor, tokens: int, count: int) -> list[dict[str, Tensor]]:
    """A processor's inputs for questions of `tokens` tokens each, no two of which begin alike."""
    video = int(grid.prod()) // MERGE**2
    pads = torch.full((video,), model.config.video_token_id)
    kinds = torch.cat([torch.zeros(TEMPLATE), torch.full((video,), 2), torch.zeros(tokens)]).long()
    inputs = []
    for index in range(count):
        words = torch.arange(tokens) + tokens * index
        ids = torch.cat([torch.arange(TEMPLATE), pads, 20 + words % (WORDS - 20)])
        inputs.append({"input_ids": ids[None], "mm_token_type_ids": kinds[None], "video_grid_thw": grid[None]})
    return inputs


def packed_of(model: PreTrainedModel, inputs: list[dict[str, Tensor]]) -> Packed:
    sequences = [one["input_ids"][0] for one in inputs]
    return pack(sequences, [positions_of(model, one) for one in inputs]).to(model.device)


def answer(model: PreTrainedModel, packed: Packed, pixels: Tensor, grid: Tensor) -> None:
    """Forward and backward of the questions' first answer tokens."""
    last = [torch.tensor([len(path) - 1]) for path in packed.paths]
    video = {"pixel_values_videos": pixels, "video_grid_thw": grid[None].to(pixels.device)}
    logits = packed_logits(model, packed, video, last)
    torch.autograd.grad(torch.cat(logits).log_softmax(-1)[:, 0].sum(), pixels)


def seconds(step: Callable[[], None], device: torch.device, clock: Callable[[], float]) -> float:
    synchronize(device)
    began = clock()
    step()
    synchronize(device)
    return clock() - began


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(step: Callable[[], None], device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:>12.2f} GiB"


@click.command(help=__doc__)
@click.option("--questions", default=8)
@click.option("--tokens", default=40, help="Of a question.")
@click.option("--frames", default=20, help="Frames of the clip, an even number.")
@click.option("--side", default=14, help="Video tokens a side, of each pair of frames; 14 is 392 x 392 pixels.")
@click.option("--hidden", default=512, help="Width of the language model.")
@click.option("--layers", default=8, help="Of the language model.")
@click.option("--vision-hidden", default=128, help="Width of the vision tower.")
@click.option("--vision-layers", default=2)
@click.option("--checkpointing", is_flag=True, help="Layers are computed again in the backward.")
@click.option("--dtype", default="float32", help="float32 or bfloat16.")
@click.option("--rounds", default=3, help="The first is a warm-up.")
@click.option("--clock", type=click.Choice(["wall", "cpu"]), default="wall", help="Time passed, or of this process.")
def main(
    questions: int, tokens: int, frames: int, side: int, hidden: int, layers: int, vision_hidden: int,
    vision_layers: int, checkpointing: bool, dtype: str, rounds: int, clock: str,
) -> None:  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make_model(hidden, layers, vision_hidden, vision_layers).to(device, getattr(torch, dtype))
    if checkpointing:
        recompute(model)
    grid = torch.tensor([frames // 2, side * MERGE, side * MERGE])
    pixels = torch.randn(int(grid.prod()), 3 * 2 * PATCH**2, device=device, requires_grad=True)
    inputs = question_prompts(model, grid, tokens, questions)
    alone, together = packed_of(model, inputs[:1]), packed_of(model, inputs)
    steps: dict[str, Callable[[], None]] = {
        "one": lambda: answer(model, alone, pixels, grid),
        "packed": lambda: answer(model, together, pixels, grid),
        "separate": lambda: [answer(model, packed_of(model, [one]), pixels, grid) for one in inputs] and None,
    }
    timer = time.process_time if clock == "cpu" else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name, step in steps.items():
            spent = seconds(step, device, timer)
            click.echo(f"round {number} of {rounds - 1}: {name} {spent:.2f} s", err=True)
            if number:
                taken[name].append(spent)
    median = {name: statistics.median(values) for name, values in taken.items()}
    video = int(grid.prod()) // MERGE**2
    print(f"{questions} questions of {tokens} tokens about {video} video tokens, {device}, {dtype}")
    print(f"language model {hidden} x {layers} layers, vision tower {vision_hidden} x {vision_layers}\n")
    for name, step in steps.items():
        spread = f"{min(taken[name]):.3f} - {max(taken[name]):.3f}"
        print(f"{name:<10}{median[name]:>9.3f} s{spread:>20}{median[name] / median['one']:>8.2f}x{peak(step, device)}")
    print(f"\npacked / one: {median['packed'] / median['one']:.2f} (goal: at most 1.30)")


if __name__ == "__main__":
    main()
