"""Vision transformers whose layers run in any order: fine-tune them, evaluate them, study them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from layershuffle.errors import UserError
from layershuffle.version import __version__

if TYPE_CHECKING:
    from layershuffle.api.analyse import analyse
    from layershuffle.api.depth import depth
    from layershuffle.api.embed import Embeddings, embed
    from layershuffle.api.evaluate import evaluate
    from layershuffle.api.export import ExportedModel, export
    from layershuffle.api.linear_probe import linear_probe
    from layershuffle.api.merge import MergedCheckpoint, merge
    from layershuffle.api.pack import PackedFolder, pack
    from layershuffle.api.predict import Prediction, Predictions, predict
    from layershuffle.api.prune import PrunedModel, prune, refine
    from layershuffle.api.push import PushedModel, push
    from layershuffle.api.quantized_export import Quantization
    from layershuffle.api.replay import BadImage, ReplayedStep, replay
    from layershuffle.api.report import write_report
    from layershuffle.api.search import search
    from layershuffle.api.show_data import show_data
    from layershuffle.api.similarity import similarity
    from layershuffle.api.simulate import simulate
    from layershuffle.api.study_options import StudyOptions
    from layershuffle.api.train import TrainedRun, train
    from layershuffle.checkpoints.authors import load_reference
    from layershuffle.checkpoints.likely_classes import LikelyClass, LikelyClasses
    from layershuffle.checkpoints.loaded_model import LoadedModel
    from layershuffle.checkpoints.loading import load
    from layershuffle.checkpoints.quantized import Agreement, Quantized
    from layershuffle.models import OrderedViT, Output, create_model
    from layershuffle.orders import Order
    from layershuffle.results import Results

_HOMES = {
    "Agreement": "checkpoints.quantized",
    "BadImage": "api.replay",
    "Embeddings": "api.embed",
    "ExportedModel": "api.export",
    "LikelyClass": "checkpoints.likely_classes",
    "LikelyClasses": "checkpoints.likely_classes",
    "LoadedModel": "checkpoints.loaded_model",
    "MergedCheckpoint": "api.merge",
    "Order": "orders",
    "OrderedViT": "models",
    "Output": "models",
    "PackedFolder": "api.pack",
    "Prediction": "api.predict",
    "Predictions": "api.predict",
    "PrunedModel": "api.prune",
    "PushedModel": "api.push",
    "Quantization": "api.quantized_export",
    "Quantized": "checkpoints.quantized",
    "ReplayedStep": "api.replay",
    "Results": "results",
    "StudyOptions": "api.study_options",
    "TrainedRun": "api.train",
    "analyse": "api.analyse",
    "create_model": "models",
    "depth": "api.depth",
    "embed": "api.embed",
    "evaluate": "api.evaluate",
    "export": "api.export",
    "linear_probe": "api.linear_probe",
    "load": "checkpoints.loading",
    "load_reference": "checkpoints.authors",
    "merge": "api.merge",
    "pack": "api.pack",
    "predict": "api.predict",
    "prune": "api.prune",
    "push": "api.push",
    "refine": "api.prune",
    "replay": "api.replay",
    "search": "api.search",
    "show_data": "api.show_data",
    "similarity": "api.similarity",
    "simulate": "api.simulate",
    "train": "api.train",
    "write_report": "api.report",
}
"""The modules of what the package offers, which are imported when it is first used."""

__all__ = [
    "Agreement",
    "BadImage",
    "Embeddings",
    "ExportedModel",
    "LikelyClass",
    "LikelyClasses",
    "LoadedModel",
    "MergedCheckpoint",
    "Order",
    "OrderedViT",
    "Output",
    "PackedFolder",
    "Prediction",
    "Predictions",
    "PrunedModel",
    "PushedModel",
    "Quantization",
    "Quantized",
    "ReplayedStep",
    "Results",
    "StudyOptions",
    "TrainedRun",
    "UserError",
    "analyse",
    "create_model",
    "depth",
    "embed",
    "evaluate",
    "export",
    "linear_probe",
    "load",
    "load_reference",
    "merge",
    "pack",
    "predict",
    "prune",
    "push",
    "refine",
    "replay",
    "search",
    "show_data",
    "similarity",
    "simulate",
    "train",
    "write_report",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import what takes time when it is first used, so that a command is soon ready for Ctrl-C, and for --help."""
    if name == "orders":
        return import_module("layershuffle.orders")
    if name in _HOMES:
        return getattr(import_module(f"layershuffle.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
