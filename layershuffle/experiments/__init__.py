"""Experiments: the cells that make one up, and how they are run."""
