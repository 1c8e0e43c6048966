"""Every section of a job's configuration as frozen dataclasses."""
