"""Raw text becomes packed rows of tokens on disk (prepare), and those rows become batches (order, stream)."""
