"""What every generator family shares: the interface, the denoising process, LoRA, rollouts, loading."""
