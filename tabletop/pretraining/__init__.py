"""Pre-training of the embedded default: tiny models of the real classes."""
