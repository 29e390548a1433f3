"""Video reward models: a Qwen2-VL whose hidden states a linear layer turns into one number for each dimension."""
