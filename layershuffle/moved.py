"""Keeps the import paths of version 0.1 working, which stand in saved configs and model cards."""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "layershuffle.loading": "layershuffle.checkpoints.loading",
    "layershuffle.metrics_file": "layershuffle.training.metrics_file",
    "layershuffle.callbacks": "layershuffle.training.callbacks",
    "layershuffle.last_checkpoint": "layershuffle.training.last_checkpoint",
    "layershuffle.instancewise": "layershuffle.training.instancewise",
    "layershuffle.vit": "layershuffle.models",
    "layershuffle.named_orders": "layershuffle.orders.named",
    "layershuffle.data.base": "layershuffle.data.module",
}


class _Moved(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module that is asked for in the place of the new, empty one."""
        sys.modules[module.__name__] = importlib.import_module(MOVED[module.__name__])


sys.meta_path.append(_Moved())
