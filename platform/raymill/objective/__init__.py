"""What differs between the jobs: an objective turns rows into a loss; the loop does everything else."""
