"""Sampling text from a model, during training and at the command line."""
