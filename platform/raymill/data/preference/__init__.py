"""Human preferences: read in their formats, checked, and stored as pairs of answers to one prompt."""
