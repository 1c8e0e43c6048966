"""Checkpoints that any world size and ZeRO stage can load, committed in two phases and verified
before use."""
