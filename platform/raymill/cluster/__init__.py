"""Ray: connection, capacity, placement of actors, and workers that start by forking."""
