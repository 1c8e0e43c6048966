"""Data of the demonstration: the library's text, questions about its names, and exercises with
computable answers."""
