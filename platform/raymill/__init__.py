"""Raymill turns text into an assistant: tokenize, pretrain, fine-tune, align, evaluate and serve, on Ray."""

__version__ = "0.1.0"
