"""Prepared data: what training reads."""
