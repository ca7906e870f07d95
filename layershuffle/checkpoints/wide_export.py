"""Exports a model in one order with the layers of each group merged, as a folder that runs with timm and one file."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from layershuffle.checkpoints.export import as_cut, check_new, write_for_timm
from layershuffle.checkpoints.exported import DESCRIPTION_FILE, WIDE_FILE, Description, write_description
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.model_card import ModelCard, scores_of
from layershuffle.errors import UserError
from layershuffle.files import write_whole
from layershuffle.models.widen import described, merged_steps, why_not_wide, widen
from layershuffle.orders.order import Order
from layershuffle.results import Results

USE = """The layers of each group are written as one wide layer: {merged}. `wide_vit.py` in this folder runs
the model. It needs torch, timm and safetensors.

```python
import sys

sys.path.append("FOLDER")
from wide_vit import load

model = load("FOLDER")
logits = model(images)
```
"""


def export_wide(
    loaded: LoadedModel,
    folder: Path,
    order: Order,
    *,
    results: Sequence[Results] = (),
    license: str | None = None,
) -> None:
    """Write a model that runs one order, what is known about it, the file that runs it, and a model card to ``folder``.

    Args:
        loaded: the model.
        folder: a new or empty folder.
        order: the order. Each of its groups becomes one step.
        results: evaluations of the model, for the card.
        license: of the weights, for the card, which otherwise says nothing about it.

    Raises:
        UserError: if the layers can't be merged like this, the folder is not empty, results are of another model, or
            the files can't be written.
    """
    check_new(folder)
    reason = why_not_wide(loaded.model, order)
    if reason:
        raise UserError(
            f"'{order}' is no sequence of whole layers, which timm runs, and can't be merged into one: {reason}; "
            "a program (--format torch-export, onnx or aoti) runs it as it is"
        )
    # The exported model runs one order, and its card tells of that one alone.
    scores = scores_of(loaded.info, results, order)
    loaded = replace(loaded, info=as_cut(loaded.info, order))
    config = {
        # timm answers that it doesn't know an architecture of this name.
        "architecture": f"timm can't run it, because its layers are merged; use {WIDE_FILE} in its folder",
        "wide": {"architecture": loaded.model.config["name"], "steps": described(merged_steps(order))},
    }
    write_for_timm(loaded, widen(loaded.model, order), folder, config, license)

    # Imported here, because it imports timm, which takes most of a second.
    from layershuffle.models import wide_vit

    # A copy of that file, so that the folder runs where this package isn't installed.
    write_whole(folder / WIDE_FILE, Path(wide_vit.__file__).read_text(encoding="utf-8"))
    write_description(folder / DESCRIPTION_FILE, Description(loaded.info, loaded.data))
    card = ModelCard(
        title=folder.name,
        library="timm",
        use=USE.format(merged=what_is_merged(order)),
        scores=scores,
        license=license,
        config_file="config.json",
    )
    write_whole(folder / "README.md", card.markdown(loaded))


def what_is_merged(order: Order) -> str:
    """What became of the layers, or halves of layers, that an order runs, such as "12 attentions as 4"."""
    parts = list(itertools.chain.from_iterable(merged_steps(order)))
    names = {"a": "attentions", "f": "feed-forward networks", "": "whole layers"}
    counts = []
    for half, name in names.items():
        merged = [part for part in parts if part.half == half]
        layers = sum(len(part.layers) for part in merged)
        if merged:
            counts.append(f"{layers} {name} as {len(merged)}")
    return ", ".join(counts)
