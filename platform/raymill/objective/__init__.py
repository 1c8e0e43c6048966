"""Objectives of the jobs: each turns rows into losses, and the training loop does everything else."""
