"""Removal of duplicate documents and paragraphs, exact and fuzzy."""
