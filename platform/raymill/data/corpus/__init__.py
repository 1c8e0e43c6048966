"""Corpus: documents of many sources, cleaned and deduplicated, in stages that continue after a kill."""
