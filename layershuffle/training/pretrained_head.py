"""The head of pretrained weights for data whose classes may be others, or the same in another sequence."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layershuffle.checkpoints.exported import is_exported
from layershuffle.checkpoints.loading import trained_on
from layershuffle.checkpoints.training_data import class_names, match_classes
from layershuffle.errors import UserError
from layershuffle.models.model import OrderedViT

logger = logging.getLogger(__name__)


def match_head(model: OrderedViT, pretrained: bool | str, data_names: Sequence[str] | None, seed: int) -> None:
    """Bring the rows of a pretrained head into the sequence of the data's classes, or make a new head for others.

    A head of another size is new already. Where the names of the classes are unknown, the head stays as it is.

    Args:
        model: the model, which has the pretrained weights.
        pretrained: where they came from, see ``create_model``.
        data_names: the names of the data's classes; None if they are unknown.
        seed: decides the weights of a new head.
    """
    if not isinstance(pretrained, str) or data_names is None:
        return
    known_names = _names_of(pretrained, len(data_names))
    try:
        rows = match_classes(known_names, data_names, pretrained)
    except UserError as difference:
        logger.info("new head: %s", difference)
        _renew(model, seed)
        return
    if rows is not None:
        logger.info("%s has the classes of the data in another sequence: its head was brought into theirs", pretrained)
        _permute(model, rows)


def _names_of(pretrained: str, num_classes: int) -> list[str] | None:
    """The names of the classes that pretrained weights tell apart; None if their file doesn't say it."""
    # What stands beside the weights of an exported folder describes them.
    source: str | Path = pretrained
    folder = Path(pretrained).parent
    if Path(pretrained).is_file() and is_exported(folder):
        source = folder
    try:
        return class_names(trained_on(source), num_classes)
    except UserError:  # It is a file of another trainer.
        return None


def _heads(model: OrderedViT) -> list[nn.Linear]:
    """The classifiers: a distilled DeiT has two."""
    vit: Any = model.vit
    classifiers = vit.get_classifier()
    if isinstance(classifiers, nn.Module):
        classifiers = (classifiers,)
    return [classifier for classifier in classifiers if isinstance(classifier, nn.Linear)]


@torch.no_grad()
def _permute(model: OrderedViT, rows: Sequence[int]) -> None:
    """Put the rows of the heads, one for each class, into this sequence."""
    for head in _heads(model):
        for parameter in head.parameters():
            parameter.copy_(parameter[list(rows)].clone())


@torch.no_grad()
def _renew(model: OrderedViT, seed: int) -> None:
    """Initialise the heads as timm does."""
    # Of its own, so that all processes make the same head.
    generator = torch.Generator().manual_seed(seed)
    for head in _heads(model):
        nn.init.trunc_normal_(head.weight, std=0.02, generator=generator)
        # Some families start from small logits.
        head.weight *= getattr(model.vit, "head_init_scale", 1)
        nn.init.zeros_(head.bias)
