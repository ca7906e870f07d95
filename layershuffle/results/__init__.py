"""What was found: the record of an evaluation, and the tables and pictures made from it."""

from layershuffle.results.record import Results, Score, Summary, summarise

__all__ = ["Results", "Score", "Summary", "summarise"]
