"""Offline training: its sections of params.yaml, batches, the training loop, checkpoints, policies."""
