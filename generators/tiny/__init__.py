"""Tiny random models of the families' real classes: to try a family without a download, and to test it."""
