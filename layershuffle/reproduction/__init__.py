"""Experiments: the cells that make one up, how they are run, and the report of what they found."""
