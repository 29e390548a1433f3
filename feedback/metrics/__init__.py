"""Metrics as sources: a score a clip, and no question."""
