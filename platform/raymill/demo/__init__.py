"""What `make demo` shows at its end: each stage before and after, questions, and one page."""
