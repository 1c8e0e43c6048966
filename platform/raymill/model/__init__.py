"""Architecture presets → Hugging Face models, and back to Hugging Face folders."""
