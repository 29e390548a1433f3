"""Sources that compare two clips of one prompt: which pairs, the answers, and what they come to."""
