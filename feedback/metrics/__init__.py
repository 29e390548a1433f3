"""Metrics as sources: one score per clip, without a question to a judge."""
