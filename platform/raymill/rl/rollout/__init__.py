"""Sampling of answers in RL: engines behind one protocol, pools of them, and records of their answers."""
