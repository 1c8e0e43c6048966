"""The end of `make demo`: figures of every stage before and after, example questions, and one HTML page."""
