"""Raw text to prepared data."""
