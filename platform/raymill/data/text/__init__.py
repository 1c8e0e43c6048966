"""Preparation of raw text: sources and records, tokenizer, packed shards, contamination."""
