"""Reinforcement learning: objectives, datasets and the two training loops (training/ on clips, online/ on judges)."""
