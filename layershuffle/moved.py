"""Keeps the import paths of version 0.1 working that stand in saved configs and model cards."""

import importlib
import sys
from types import ModuleType
from typing import Any

MOVED = {
    "layershuffle.data.decoding": "layershuffle.data.preprocessing",
    "layershuffle.data.packed": "layershuffle.data.folders",
    "layershuffle.loading": "layershuffle.checkpoints.loading",
    "layershuffle.metrics_file": "layershuffle.training.metrics_file",
}


class _Moved(ModuleType):
    """Imports the module from its new place when something of it is used, as both are slow to import."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(MOVED[self.__name__]), name)


sys.modules.update({name: _Moved(name) for name in MOVED})
