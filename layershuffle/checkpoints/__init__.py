"""What is kept of a model: loading, exporting and merging."""
