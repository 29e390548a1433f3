"""Judges without a server: local VLMs, panels of several sources, people's ratings."""
