"""Reinforcement learning: sampling, rewards, advantages, losses."""
