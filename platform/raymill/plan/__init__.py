"""Plan of a job before any resource is claimed: steps, FLOPs and memory, by arithmetic alone."""
