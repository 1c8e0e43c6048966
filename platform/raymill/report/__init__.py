"""Reports of runs: one HTML page per finished run, and audits of any run."""
