"""Raw text becomes packed rows of tokens on disk (prepare); rows become batches (order, stream)."""
