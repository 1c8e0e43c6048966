"""Models: built from architecture presets or parents, and exported as Hugging Face folders."""
