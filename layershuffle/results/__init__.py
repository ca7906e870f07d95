"""What was found: the record of an evaluation, and the tables and pictures made from it."""

from layershuffle.results import measures
from layershuffle.results.estimates import Estimate, Summary, estimate, half_width, summarise, total
from layershuffle.results.provenance import DataInfo, Environment, EvaluationInfo, ModelInfo, NeighbourVote
from layershuffle.results.record import MEASURES, Measure, ReportSection, Results, register, scores_of
from layershuffle.results.score import Score

__all__ = [
    "MEASURES",
    "DataInfo",
    "Environment",
    "Estimate",
    "EvaluationInfo",
    "Measure",
    "ModelInfo",
    "NeighbourVote",
    "ReportSection",
    "Results",
    "Score",
    "Summary",
    "estimate",
    "half_width",
    "measures",
    "register",
    "scores_of",
    "summarise",
    "total",
]
