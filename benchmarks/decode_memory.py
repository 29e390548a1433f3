"""Peak memory of decoding, a judge of four frames, and the backward pass to the latents.

    python -m benchmarks.decode_memory [--vae wan] [--size 4] [--frames 17,49,81] [--modes plain,windowed,exact]

The decoder of Wan2.1 or CogVideoX, or TAEHV's of Wan2.1's latents, of real depth and width, with random weights. The
judge is a stand-in, a few layers over the judged frames: a real one is the same addend to every row. Each figure comes
from a process of its own: on a GPU the peak of allocated memory, on a CPU the highest resident set (large blocks go
back to the system when they are freed), both minus what was held after a warm-up of three latent frames, weights
included.
"""

import json
import os
import subprocess
import sys
import time
from typing import NamedTuple

import click
import psutil
import torch
from torch import Tensor, nn

from cluster import devices
from data.video import sample_frames
from generators.core.decoding import Decoding, decode_frames
from generators.core.generator import Generator
from generators.decoders.decoder import FrameDecoder

JUDGED = 4  # frames of a clip that the judge gets
MMAP_THRESHOLD = 2**16  # bytes; glibc gives blocks above it back at once


class DecodeCost(NamedTuple):
    """Of one decode and its backward."""

    bytes: int
    seconds: float


class OnlyVae(Generator):
    """A generator that is nothing but a VAE, whose latents are not scaled."""

    def __init__(self, vae: nn.Module, device: torch.device) -> None:
        self.vae, self.device = vae.to(device).eval().requires_grad_(False), device

    def vae_latents(self, latents: Tensor) -> Tensor:
        return latents

    def component(self, name: str) -> nn.Module:
        return {"vae": self.vae}[name]


class OnlyTaehv(OnlyVae):
    """The same with TAEHV's decoder."""

    def frame_decoder(self) -> FrameDecoder:
        from generators.decoders.taehv import TaehvFrameDecoder

        return TaehvFrameDecoder(self.vae)


def make_generator(vae: str, width: int | None, device: torch.device) -> OnlyVae:
    """Of random weights. width: channels at the frames' size; None: those of the published weights."""
    from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan

    torch.manual_seed(0)
    if vae == "taehv":
        from generators.decoders.taehv import layers

        first = width or 256
        return OnlyTaehv(layers(16, (first, first // 2, first // 4, first // 4), patch=1), device)
    if vae == "wan":
        return OnlyVae(AutoencoderKLWan(base_dim=width or 96), device)
    width = width or 128
    return OnlyVae(
        AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(width, 2 * width, 2 * width, 4 * width),
            norm_num_groups=min(32, width),
        ),
        device,
    )


def make_judge(device: torch.device) -> nn.Module:
    """(N, H, W, 3) frames -> one number a frame."""
    torch.manual_seed(1)
    judge = nn.Sequential(nn.Conv2d(3, 64, 8, 8), nn.SiLU(), nn.Conv2d(64, 64, 1), nn.SiLU(), nn.Conv2d(64, 1, 1))
    return judge.to(device).requires_grad_(False)


def judged(generator: OnlyVae, judge: nn.Module, num_frames: int, size: int, decoding: Decoding) -> None:
    """One decode of the judge's frames and the backward to the latents of a random clip."""
    latents = torch.randn(1, 16, (num_frames - 1) // 4 + 1, size, size, requires_grad=True)
    frames = decode_frames(generator, latents, sample_frames(num_frames, JUDGED), decoding)
    judge(frames.permute(0, 3, 1, 2)).mean().backward()
    assert latents.grad is not None and latents.grad.isfinite().all()


def held(device: torch.device) -> int:
    """Bytes allocated on an accelerator, or resident on the CPU."""
    if device.type != "cpu":
        return torch.accelerator.memory_allocated(device)
    return psutil.Process().memory_info().rss


def measure(generator: OnlyVae, num_frames: int, size: int, decoding: Decoding) -> DecodeCost:
    device = generator.device
    judge = make_judge(device)
    judged(generator, judge, 9, size, decoding)  # what is set up once
    before, began = held(device), time.monotonic()
    judged(generator, judge, num_frames, size, decoding)
    devices.synchronize(device)
    return DecodeCost(devices.peak_memory(device) - before, time.monotonic() - began)


def measured_apart(mode: str, num_frames: int) -> DecodeCost:
    """The cost that a fresh process finds, called as this one was."""
    own = ["--modes", mode, "--frames", str(num_frames), "--one"]
    command = [sys.executable, "-m", "benchmarks.decode_memory", *sys.argv[1:], *own]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return DecodeCost(*json.loads(done.stdout.splitlines()[-1]))


@click.command(help=__doc__)
@click.option("--vae", type=click.Choice(["wan", "cogvideox", "taehv"]), default="wan")
@click.option("--frames", default="17,49,81", help="Of the clip, 4 k + 1; of CogVideoX 8 k + 1.")
@click.option("--modes", default="plain,windowed,exact")
@click.option("--size", default=4, help="Latent height and width; a latent pixel is 8 x 8 pixels.")
@click.option(
    "--width",
    type=int,
    default=None,
    help="Channels at the frames' size; Wan2.1 has 96, CogVideoX 128; of TAEHV at the latents' size, 256.",
)
@click.option("--window", default=4)
@click.option("--overlap", default=1)
@click.option("--tile", type=int, default=None)
@click.option("--tile-overlap", default=0)
@click.option("--offload", is_flag=True)
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--one", is_flag=True, hidden=True)
def main(
    vae: str, frames: str, modes: str, size: int, width: int | None, window: int, overlap: int, tile: int | None,
    tile_overlap: int, offload: bool, device: str, one: bool,
) -> None:  # fmt: skip
    lengths, wanted = [int(length) for length in frames.split(",")], modes.split(",")
    ways = {mode: Decoding(mode, window, overlap, tile, tile_overlap, offload, True) for mode in wanted}
    if one:
        torch.set_num_threads(1)
        generator = make_generator(vae, width, devices.pick_device(device))
        print(json.dumps(measure(generator, lengths[0], size, ways[wanted[0]])))
        return
    print(f"{JUDGED} frames judged, {8 * size} x {8 * size} pixels, {vae}, window {window} + {overlap}")
    print(f"{'':<10}" + "".join(f"{f'{length} frames':>22}" for length in lengths) + f"{'last / first':>14}")
    for mode in ways:
        costs = [measured_apart(mode, length) for length in lengths]
        cells = "".join(f"{f'{cost.bytes / 2**20:.0f} MiB {cost.seconds:.0f} s':>22}" for cost in costs)
        print(f"{mode:<10}{cells}{costs[-1].bytes / costs[0].bytes:>13.2f}x")


if __name__ == "__main__":
    main()
