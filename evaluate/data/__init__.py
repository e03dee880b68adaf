"""Data sets to score on: found, checked, opened, and read sample by sample."""
