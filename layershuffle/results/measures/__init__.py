"""What can be measured beside scores: one file for each kind of measure."""

from layershuffle.results.measures.by_class import ByClassCounts
from layershuffle.results.measures.by_corruption import ByCorruptionCounts, Corruption, OrdersOnCorruptions
from layershuffle.results.measures.by_label import ByLabel, LabelScores
from layershuffle.results.measures.contributions import Contributions
from layershuffle.results.measures.cosine import Cosine
from layershuffle.results.measures.disagreement import Disagreement, EnsembleOfOrders
from layershuffle.results.measures.early_exit import EarlyExits, Exit
from layershuffle.results.measures.grouping import Grouping
from layershuffle.results.measures.linear_probe import LinearProbe, ProbeScore
from layershuffle.results.measures.order_counts import OrderCounts
from layershuffle.results.measures.prune import Pruning
from layershuffle.results.measures.representations import Representations
from layershuffle.results.measures.search import Search, SearchStep
from layershuffle.results.measures.seconds_per_image import SecondsPerImage

__all__ = [
    "ByClassCounts",
    "ByCorruptionCounts",
    "ByLabel",
    "Contributions",
    "Corruption",
    "Cosine",
    "Disagreement",
    "EarlyExits",
    "Exit",
    "Grouping",
    "LabelScores",
    "LinearProbe",
    "OrderCounts",
    "OrdersOnCorruptions",
    "EnsembleOfOrders",
    "ProbeScore",
    "Pruning",
    "Representations",
    "Search",
    "SearchStep",
    "SecondsPerImage",
]
