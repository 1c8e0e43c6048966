"""Engines that decode: prompts of tokens in, tokens out, many requests at the same time."""
