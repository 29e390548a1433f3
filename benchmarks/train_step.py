"""What a DPO step costs, and what two other ways to write it would: `python -m benchmarks.train_step`.

    ours            rl.training.trainer.train itself: cached latents and conditions, one model, its adapters off as
    reference 8 forwards      the ideal: policy and reference over both clips of a pair are 4 forwards, the backward
    twice 2 second model    the same step over the same cached clips, with a frozen second model as reference
    plain           one model, but text and video are encoded in every step

The variants take turns, so that a noisy machine is noisy to all of them; each figure is a median over the rounds.
On a CPU that others use, `--clock cpu --threads 1` counts the time that this process had, not the time that it waited.
"""

import copy
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.random_wan import random_wan
from cluster import devices
from data.records import Pair, Sample
from data.store import ClipSet, ClipSetWriter, PromptConditions, encode_clips
from generators.core import lora
from generators.core.generator import as_dtype
from generators.core.size import VideoSize
from generators.families.wan import WanGenerator
from rl.objectives import dpo_loss, dpo_margin, get_objective, per_sample_error
from rl.training.config import TrainConfig, configure
from rl.training.policies import make_optimizer
from rl.training.trainer import train

BETA = 100.0
TOKENS = 32  # of a prompt
TEXT_DIM = 256


class Sizes(NamedTuple):
    """The model and the clips."""

    layers: int
    heads: int
    channels: int
    frames: int  # latent
    size: int  # latent height and width
    vae_dim: int
    text_layers: int


class Setting(NamedTuple):
    """What all variants share."""

    generator: WanGenerator
    clip_set: ClipSet
    pairs: list[Pair]
    config: TrainConfig
    base: Path
    clock: Callable[[], float]  # seconds


def make_generator(folder: Path, sizes: Sizes, dtype: torch.dtype, device: torch.device) -> WanGenerator:
    """A Wan of random weights of the real classes; its transformer is written to `folder` and loaded from there."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    width = sizes.heads * 64
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=sizes.heads, attention_head_dim=64, in_channels=sizes.channels,
        out_channels=sizes.channels, text_dim=TEXT_DIM, freq_dim=256, ffn_dim=4 * width, num_layers=sizes.layers,
    )  # fmt: skip
    transformer.save_pretrained(folder)  # loading alone leaves in float32 what Wan keeps in float32
    transformer = WanTransformer3DModel.from_pretrained(folder, torch_dtype=dtype)
    vae = AutoencoderKLWan(base_dim=sizes.vae_dim, z_dim=sizes.channels, num_res_blocks=1)
    text_config = UMT5Config(
        vocab_size=1000, d_model=TEXT_DIM, d_kv=64, d_ff=4 * TEXT_DIM, num_layers=sizes.text_layers, num_heads=4
    )
    text_encoder = UMT5EncoderModel(text_config).to(dtype)
    size = VideoSize(4 * (sizes.frames - 1) + 1, 8 * sizes.size, 8 * sizes.size, 8)
    return random_wan(transformer, vae, text_encoder, size, TOKENS, dtype, device)


def make_clips(folder: Path, sizes: Sizes, count: int) -> ClipSet:
    """A clip set of random latents; its videos are black, nothing here reads them."""
    writer = ClipSetWriter(folder)
    shape, pixels = (sizes.channels, sizes.frames, sizes.size, sizes.size), 8 * sizes.size
    num_frames = 4 * (sizes.frames - 1) + 1
    for index in range(count):
        samples = [
            Sample(i, "p", "a cup", "c", "train", "base", 1, num_frames, 8.0, pixels, pixels, f"videos/{i}.mp4")
            for i in (f"{index}-chosen", f"{index}-rejected")
        ]
        frames = np.zeros((2, num_frames, pixels, pixels, 3), np.uint8)
        writer.add_batch(index, samples, encode_clips(samples, frames), torch.randn(2, *shape))
    text, empty = torch.randn(TOKENS, TEXT_DIM), torch.zeros(TOKENS, TEXT_DIM)
    writer.finish(PromptConditions({"p": {"text": text}}, {"text": empty}), {})
    return ClipSet.open(folder)


def fresh(generator: WanGenerator) -> WanGenerator:
    """The generator with a transformer of its own, so that each round starts from the base."""
    own = copy.copy(generator)
    own.components = {**generator.components, "transformer": copy.deepcopy(generator.component("transformer"))}
    return own


def ours(setting: Setting, steps: int) -> float:
    """Seconds a step of rl.training.trainer.train, reading, logging and the optimizer included."""
    with tempfile.TemporaryDirectory() as home:
        report = train(
            fresh(setting.generator), [setting.clip_set], setting.pairs, get_objective("dpo"),
            setting.config, setting.base, Path(home, "work"), Path(home, "out"), {},
        )  # fmt: skip
    return (report.cpu_seconds if setting.clock is time.process_time else report.seconds) / steps


def eight_forwards(setting: Setting, steps: int) -> float:
    """Seconds of eight forwards of the batch's clips on one side, or four of the batch's pairs, without gradient."""
    generator, config = setting.generator, setting.config
    clean = setting.clip_set.latents(side_ids(setting.pairs[: config.batch_size]))
    t = torch.full((len(clean),), 0.5)
    conditions = setting.clip_set.conditions(["p"] * len(clean))

    def forwards() -> None:
        for _ in range(4):
            with torch.no_grad(), devices.autocast(generator.device, config.precision):
                generator.predict(clean, t, conditions)

    return seconds_each(forwards, steps, setting)


def second_model(setting: Setting, steps: int) -> float:
    """Seconds a step of a loop over cached clips whose reference is a whole frozen second model."""
    policy = with_lora(setting)
    reference = setting.generator
    optimizer = make_optimizer(lora.trainable_parameters(policy.component("transformer")), setting.config)
    batches = iter_batches(setting)

    def step() -> None:
        pairs = next(batches)
        clean = setting.clip_set.latents(side_ids(pairs))
        text = setting.clip_set.conditions([row.prompt_id for row in pairs])["text"]
        dpo_step(policy, reference.predict, clean, text, setting.config, optimizer)

    return seconds_each(step, steps, setting)


def plain(setting: Setting, steps: int) -> float:
    """Seconds a step of a loop that encodes the batch's prompts and clips each time, the frames given in memory."""
    policy = with_lora(setting)
    optimizer = make_optimizer(lora.trainable_parameters(policy.component("transformer")), setting.config)
    sample, count = setting.clip_set.samples[0], setting.config.batch_size
    frames = torch.randint(0, 256, (2 * count, sample.num_frames, sample.height, sample.width, 3)).to(torch.uint8)
    tokens = torch.randint(0, 1000, (count, TOKENS), device=policy.device)

    def reference(*inputs: Tensor) -> Tensor:
        with lora.reference(policy.component("transformer")):
            return policy.predict(*inputs)

    def step() -> None:
        with torch.no_grad():
            text = policy.component("text_encoder")(tokens, torch.ones_like(tokens)).last_hidden_state
            clean = torch.cat([policy.encode(clip[None]) for clip in frames])  # one clip at a time, as memory demands
        dpo_step(policy, reference, clean, text, setting.config, optimizer)

    return seconds_each(step, steps, setting)


def dpo_step(
    policy: WanGenerator,
    reference: Callable[..., Tensor],
    clean: Tensor,
    text: Tensor,
    config: TrainConfig,
    optimizer: torch.optim.Optimizer,
) -> None:
    """One optimizer step on a batch whose first half is chosen, both halves in one forward."""
    device = policy.device
    clean, count = clean.to(device), len(clean) // 2
    noise = torch.randn(count, *clean.shape[1:], device=device).repeat(2, 1, 1, 1, 1)
    t = torch.rand(count, device=device).repeat(2)
    noised, target = policy.process.noised(clean, noise, t), policy.process.target(clean, noise, t)
    inputs = noised, t, {"text": text.to(device).repeat(2, 1, 1)}
    with torch.no_grad(), devices.autocast(device, config.precision):
        reference_errors = per_sample_error(reference(*inputs), target).chunk(2)
    with devices.autocast(device, config.precision):
        prediction = policy.predict(*inputs)
    errors = per_sample_error(prediction, target).chunk(2)
    loss = dpo_loss(dpo_margin(*errors, *reference_errors), BETA).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(lora.trainable_parameters(policy.component("transformer")), config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    if not torch.isfinite(loss):
        raise ArithmeticError(f"loss {loss.item()}")


def with_lora(setting: Setting) -> WanGenerator:
    generator, config = fresh(setting.generator), setting.config
    transformer = generator.component("transformer")
    lora.attach(transformer, config.lora_rank, config.lora_alpha, generator.lora_targets, config.seed)
    return generator


def side_ids(pairs: list[Pair]) -> list[str]:
    return [row.chosen for row in pairs] + [row.rejected for row in pairs]


def iter_batches(setting: Setting):
    while True:
        for start in range(0, len(setting.pairs), setting.config.batch_size):
            yield setting.pairs[start : start + setting.config.batch_size]


def seconds_each(step: Callable[[], None], steps: int, setting: Setting) -> float:
    devices.synchronize(setting.generator.device)
    began = setting.clock()
    for _ in range(steps):
        step()
    devices.synchronize(setting.generator.device)
    return (setting.clock() - began) / steps


def parameter_bytes(*modules: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for module in modules for parameter in module.parameters())


VARIANTS = {"ours": ours, "8 forwards": eight_forwards, "second model": second_model, "plain": plain}


def held_parameters(setting: Setting) -> dict[str, int]:
    """Bytes of parameters that each variant has to hold for training."""
    base, generator = parameter_bytes(setting.generator.component("transformer")), setting.generator
    trained = parameter_bytes(with_lora(setting).component("transformer"))
    encoders = parameter_bytes(generator.component("vae"), generator.component("text_encoder"))
    return {"ours": trained, "second model": trained + base, "plain": trained + encoders}


@click.command()
@click.option("--layers", default=6, help="Transformer layers.")
@click.option("--heads", default=4, help="Attention heads, of 64 channels each.")
@click.option("--channels", default=16, help="Latent channels.")
@click.option("--frames", default=3, help="Latent frames.")
@click.option("--size", default=24, help="Latent height and width.")
@click.option("--vae-dim", default=32, help="Width of the VAE; Wan2.1's is 96.")
@click.option("--text-layers", default=4, help="Layers of the text encoder.")
@click.option("--pairs", default=2, help="Pairs of a step.")
@click.option("--rank", default=16, help="Of the LoRA.")
@click.option("--steps", default=3, help="Timed steps of a variant in a round.")
@click.option("--rounds", default=7, help="Rounds; the first is a warm-up.")
@click.option("--device", default="auto", help="auto, cpu, cuda or tpu.")
@click.option("--dtype", default="float32", help="float32 or bfloat16; bfloat16 also trains under autocast.")
@click.option("--threads", default=2, help="Of the CPU.")
@click.option("--clock", type=click.Choice(["wall", "cpu"]), default="wall", help="Time passed, or of this process.")
def main(
    pairs: int, rank: int, steps: int, rounds: int, device: str, dtype: str, threads: int, clock: str, **sizes: int
) -> None:
    """Time a DPO step against eight forwards, a second reference model, and a loop that encodes in every step."""
    torch.set_num_threads(threads)
    values: dict[str, Any] = {
        "full": False, "lora_rank": rank, "lora_alpha": rank, "lora_targets": None, "learning_rate": 1e-4,
        "warmup_steps": 0, "schedule": "constant", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0,
        "max_grad_norm": 1.0, "steps": steps, "batch_size": pairs, "gradient_accumulation": 1,
        "gradient_checkpointing": False, "precision": "bf16" if dtype == "bfloat16" else "fp32",
        "deterministic": True, "timesteps": {"name": "uniform"}, "caption_dropout": 0.0,
        "checkpoint_every": steps + 1, "log_every": steps, "seed": 1, "beta": BETA, "chosen_error_weight": 0.0,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        base.mkdir()
        (base / "policy.json").write_text("{}")
        clip_set = make_clips(Path(folder, "clips"), Sizes(**sizes), 4 * pairs)
        setting = Setting(
            generator=make_generator(Path(folder, "wan"), Sizes(**sizes), as_dtype(dtype), devices.pick_device(device)),
            clip_set=clip_set,
            pairs=[Pair("p", f"{i}-chosen", f"{i}-rejected", 1.0) for i in range(4 * pairs)],
            config=configure(get_objective("dpo"), values),
            base=base,
            clock=time.process_time if clock == "cpu" else time.perf_counter,
        )
        seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for number in range(rounds):
            for name, variant in VARIANTS.items():
                gc.collect()
                taken = variant(setting, steps)
                click.echo(f"round {number} of {rounds - 1}: {name} {taken:.3f} s", err=True)
                if number > 0:
                    seconds[name].append(taken)
        report(setting, seconds)


def report(setting: Setting, seconds: dict[str, list[float]]) -> None:
    median = {name: statistics.median(values) for name, values in seconds.items()}
    held = held_parameters(setting)
    shape = tuple(setting.clip_set.latents(["0-chosen"]).shape[1:])
    size = parameter_bytes(setting.generator.component("transformer")) / 2**20
    print(f"\nDPO step of {setting.config.batch_size} pairs, transformer of {size:.1f} MiB, latents {shape}")
    print(f"{setting.generator.device}, {setting.config.precision}, medians of {len(seconds['ours'])} rounds\n")
    print(f"{'variant':<14}{'s/step':>9}{'range':>18}{'ours is':>10}{'parameters':>14}{'ours needs':>12}")
    for name, values in seconds.items():
        spread = f"{min(values):.3f} - {max(values):.3f}"
        memory = f"{held[name] / 2**20:>10.1f} MiB{held['ours'] / held[name]:>11.2f}x" if name in held else ""
        print(f"{name:<14}{median[name]:>9.3f}{spread:>18}{median[name] / median['ours']:>9.2f}x{memory}")
    print(f"\nideal / actual: {median['8 forwards'] / median['ours']:.2f} (goal: at least 0.90)")


if __name__ == "__main__":
    main()
