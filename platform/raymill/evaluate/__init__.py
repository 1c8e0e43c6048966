"""Yardsticks: what a held-out text costs in bits per byte by methods that everybody knows."""
