"""Prepared data as training reads it: manifest, shards, order, stream and rows."""
