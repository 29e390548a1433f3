"""Generators that are nothing but a VAE, of the real classes and with random weights."""

import torch

from generators.core.generator import Generator

WAN22 = {
    "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16,
    "decoder_base_dim": 8,
}  # fmt: skip


class OnlyVae(Generator):
    """A VAE alone. scale: of its latents. padding: latent frames in front that are not decoded."""

    def __init__(self, vae, scale: float, padding: int = 0) -> None:
        self.vae, self.scale, self.padding = vae.eval().requires_grad_(False), scale, padding
        self.device = torch.device("cpu")

    @property
    def channels(self) -> int:
        """Of its latents."""
        config = self.vae.config
        return config["z_dim"] if "z_dim" in config else config["latent_channels"]

    def component(self, name):
        return {"vae": self.vae}[name]

    def vae_latents(self, latents):
        return latents[:, :, self.padding :] / self.scale


def deep(**config) -> OnlyVae:
    """A Wan VAE of random weights, as deep as the real one and a few channels wide."""
    from diffusers import AutoencoderKLWan

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OnlyVae(AutoencoderKLWan(base_dim=4, **config), scale=0.5)


def cogvideox(padding: int = 0) -> OnlyVae:
    """A CogVideoX VAE of random weights with as many blocks as the real one, a few channels wide."""
    from diffusers import AutoencoderKLCogVideoX

    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        )  # fmt: skip
        return OnlyVae(vae, scale=0.7, padding=padding)
