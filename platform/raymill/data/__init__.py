"""Prepare text and messages as packed rows of tokens, and stream the rows as batches."""
