"""Steps of cleaning, each declared in `data.cleaning`; one class a step, registered by name."""
