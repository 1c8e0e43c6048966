"""Ray: connecting to it, starting workers, following a run from the driver."""
