"""Prompts for reinforcement learning: read, checked, and stored with what judges their answers."""
