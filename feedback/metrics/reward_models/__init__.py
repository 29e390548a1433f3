"""Video reward models: a VLM whose hidden states a linear layer turns into numbers; published ones, and our own."""
