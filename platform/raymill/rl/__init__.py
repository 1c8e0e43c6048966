"""Reinforcement learning: sampling of rollouts, rewards, advantages and losses."""
