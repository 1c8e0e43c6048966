"""What a job will need, before anything is claimed: pure arithmetic, no I/O."""
