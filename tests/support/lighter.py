"""Decoders for `decoding.decoder`, small and with random weights."""

from pathlib import Path

import torch
from safetensors.torch import save_file


def save_vae(folder: Path, seed: int = 1, **changes) -> Path:
    """A VAE of the tabletop's class and latents, with half its width and other weights."""
    from diffusers import AutoencoderKLWan

    config = AutoencoderKLWan.load_config("models/tabletop/generator/vae")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKLWan.from_config({**config, "base_dim": 8, "decoder_base_dim": 8, **changes})
    vae.save_pretrained(folder)
    return folder


def save_taehv(path: Path, channels: int, patch: int = 1, widths=(16, 12, 8, 8), first_grows: int = 1) -> Path:
    """A file of TAEHV's decoder. first_grows: frames that the first level was trained to make of one."""
    from generators.decoders.taehv import layers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = {f"decoder.{name}": tensor for name, tensor in layers(channels, widths, patch).state_dict().items()}
        grow = weights["decoder.7.conv.weight"]
        weights["decoder.7.conv.weight"] = torch.cat([torch.randn_like(grow)] * (first_grows - 1) + [grow])
    save_file(weights, path)
    return path
