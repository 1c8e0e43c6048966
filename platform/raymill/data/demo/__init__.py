"""The demonstration's data: exercises that can be worked out, beside the library's text and names."""
