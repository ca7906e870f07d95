"""Tables and plots from results files; needs no model."""
