"""Decoding latents to frames with bounded memory, a module for each class of VAE."""
