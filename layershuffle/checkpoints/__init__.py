"""Checkpoints of models: loading, exporting and merging them."""
