"""Sampling text from a model, in training and at the command line."""
