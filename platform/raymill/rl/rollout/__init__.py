"""Sampling answers in RL: engines behind one protocol, the actors that hold them, and what they return."""
