"""How often a training step is compiled for a device that compiles each shape: `python -m benchmarks.compilations`.

Runs rl.training.trainer.train on a tiny Wan under torch_xla on the CPU, and prints the number of compilations after
each step. A TPU has the same limits: a shape or a constant that differs from step to step costs minutes there. After
the second step there must be none; what is logged or checkpointed is read from the device and compiles nothing. RWR has
rows of weight 0, which run like the others.

torch_xla needs its own torch, so an environment of its own, beside the repository:

    python3.11 -m venv /tmp/xlaenv
    /tmp/xlaenv/bin/pip install 'torch==2.9.*' 'torch_xla==2.9.*' diffusers transformers peft accelerate safetensors \\
        pydantic pyarrow av numpy pandas pillow scipy tqdm pyyaml ruamel.yaml platformdirs psutil click
    PJRT_DEVICE=CPU /tmp/xlaenv/bin/python -m benchmarks.compilations
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from cluster import devices, provenance
from data.records import Pair, Sample, Weighted
from data.store import ClipSet, ClipSetWriter, PromptConditions, encode_clips
from generators.core.generator import Generator
from generators.core.load import load_generator
from generators.core.size import VideoSize
from generators.tiny.variants import VARIANTS, write_tiny
from rl.objectives import get_objective
from rl.training.config import configure
from rl.training.run import TrainingRun
from rl.training.trainer import train

VARIANT = VARIANTS["wan2.1-t2v"]
CLIPS = 8
SETTINGS = {
    "full": False, "lora_rank": 4, "lora_alpha": 4, "lora_targets": None, "learning_rate": 0.01, "warmup_steps": 5,
    "schedule": "linear", "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0,
    "batch_size": 4, "gradient_accumulation": 2, "gradient_checkpointing": False, "precision": "fp32",
    "deterministic": False, "timesteps": {"name": "uniform"}, "caption_dropout": 0.25, "checkpoint_every": 10,
    "log_every": 2, "seed": 1,
}  # fmt: skip
OF = {"rwr": {}, "dpo": {"beta": 100.0, "chosen_error_weight": 0.0}}


@click.command()
@click.option("--steps", default=20, show_default=True)
def main(steps: int) -> None:
    os.environ.setdefault("PJRT_DEVICE", "CPU")
    import torch_xla
    from torch_xla.debug import metrics

    torch.set_num_threads(1)
    devices.peak_memory = lambda device: 0  # torch knows no accelerator `xla`, which torch_tpu's `tpu` is
    devices.synchronize = lambda device: torch_xla.sync(wait=True)
    provenance._accelerator_name = lambda device: None
    counts: list[int] = []

    def compiled() -> int:
        found = metrics.metric_data("CompileTime")
        return found[0] if found else 0

    keep = TrainingRun.keep

    def counted(run: TrainingRun, *args: Any, **kwargs: Any) -> None:
        torch_xla.sync(wait=True)  # until here the step was recorded; else each value that is read is a program
        keep(run, *args, **kwargs)
        counts.append(compiled())

    TrainingRun.keep = counted  # type: ignore[method-assign]
    late = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_tiny(VARIANT, home / "generator")
        for objective in OF:
            counts.clear()
            before = compiled()
            _train(objective, home, torch_xla.device(), steps)
            found = [count - before for count in counts]
            print(f"{objective}: compilations after each step: {' '.join(map(str, found))}", flush=True)
            late[objective] = found[-1] - found[1]
    print(f"after the second step: {late}")
    sys.exit(1 if any(late.values()) else 0)


def _train(objective: str, home: Path, device: torch.device, steps: int) -> None:
    size = VideoSize(VARIANT.num_frames, VARIANT.height, VARIANT.width, 8)
    generator = load_generator(
        VARIANT.family, str(home / "generator"), size, max_prompt_tokens=VARIANT.max_prompt_tokens,
        parts=("denoiser", "text"),
    )  # fmt: skip
    clip_set = _clip_set(home / f"clips-{objective}", generator)
    generator.device = device
    for denoiser in generator.denoisers.values():
        denoiser.to(device)
    base = home / f"base-{objective}"
    base.mkdir()
    (base / "policy.json").write_text("{}")
    wanted = get_objective(objective)
    config = configure(wanted, SETTINGS | OF[objective] | {"steps": steps})
    work, out = home / f"work-{objective}", home / f"out-{objective}"
    train(generator, [clip_set], _rows(objective, clip_set), wanted, config, base, work, out, {})


def _clip_set(folder: Path, generator: Generator) -> ClipSet:
    """Clips of random latents of one prompt."""
    writer, size = ClipSetWriter(folder), generator.size
    ids = [f"p-{clip}" for clip in range(CLIPS)]
    shape = size.num_frames, size.height, size.width
    samples = [
        Sample(i, "p", "a cup", "c", "train", "base", 1, shape[0], size.fps, *shape[1:], f"videos/{i}.mp4") for i in ids
    ]
    latents = torch.randn(CLIPS, *generator.latent_shape, generator=torch.Generator().manual_seed(0))
    writer.add_batch(0, samples, encode_clips(samples, np.zeros((CLIPS, *shape, 3), np.uint8)), latents)
    text, empty = ({key: value[0] for key, value in generator.encode_text([text]).items()} for text in ("a cup", ""))
    writer.finish(PromptConditions({"p": text}, empty, None), {})
    return ClipSet.open(folder)


def _rows(objective: str, clip_set: ClipSet) -> list[Any]:
    """Every other clip accepted; paired in their order."""
    ids = [sample.sample_id for sample in clip_set.samples]
    if objective == "dpo":
        return [Pair("p", chosen, rejected, 1.0) for chosen, rejected in zip(ids[::2], ids[1::2], strict=True)]
    return [Weighted(one, "p", 1.0 - place % 2, 1.0 - place % 2) for place, one in enumerate(ids)]


if __name__ == "__main__":
    main()
