"""The driver: supervises a run from its start to its exports."""
