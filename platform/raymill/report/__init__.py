"""The report card of a run: one page that can be mailed."""
