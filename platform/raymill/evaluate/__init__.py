"""Scores of generated answers, parsing of the answers' numbers and LaTeX, and baselines to compare with."""
