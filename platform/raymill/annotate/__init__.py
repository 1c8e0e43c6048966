"""Pages on which people rank a model's answers, or write and review answers of their own."""
