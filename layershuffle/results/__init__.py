"""What was found: the record of an evaluation, and the tables and pictures made from it."""

from layershuffle.results.record import Estimate, Results, Score, Summary, estimate, summarise

__all__ = ["Estimate", "Results", "Score", "Summary", "estimate", "summarise"]
