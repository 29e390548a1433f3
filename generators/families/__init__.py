"""A module for each family of video models."""
