"""Finds the weights of a backbone in the files of any trainer, which wrap them in entries and in prefixes of names.

Such a file is, for example, that of timm's ``CheckpointSaver``: ``{"state_dict": ..., "state_dict_ema": ...}``. In it
torch.compile and DistributedDataParallel have put ``module._orig_mod.`` before each name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from layershuffle.models.other_names import to_timm

RAW_ENTRIES = ("state_dict", "model", "model_state_dict", "module", "net", "network", "backbone", "encoder", "weights")
"""What trainers call the entry with the weights that they trained, in the sequence in which they are looked for."""
AVERAGED_ENTRIES = ("teacher", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "model_avg", "swa")
"""The same of weights that were averaged during the training. The teacher of a self-supervised method is one."""
TRAINED_BY_A_TEACHER = ("student",)
"""The same of the model that a teacher trains, which is looked for last."""
LIGHTNINGS_RAW = "current_model_state"
"""Where Lightning's ``WeightAveraging`` keeps the raw weights, once the averaged ones are in ``state_dict``."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.", "teacher.", "student.", "vit.")
"""What trainers put before the names of all weights, any number of times."""
DEEPEST = 8
"""How many entries may wrap each other."""
MOST_NAMED = 3
"""How many of the weights that are left over a message names."""


@dataclass(frozen=True)
class BackboneWeights:
    """The weights of a backbone, and where they were.

    Attributes:
        weights: by timm's names.
        place: the entries of the file and the prefix of the names, such as ``state_dict_ema: module.``.
        is_averaged: whether they are known to have been averaged during the training.
        others: the other entries of the file that hold weights.
        left_over: the names of the weights that are no part of the backbone.
    """

    weights: dict[str, Tensor]
    place: str
    is_averaged: bool
    others: list[str]
    left_over: list[str]

    def __str__(self) -> str:
        """What was taken, as a message says it."""
        text = "averaged weights" if self.is_averaged else "trained weights"
        if self.place:
            text += f" ({self.place})"
        if self.others:
            text += f", not those of {', '.join(self.others)}"
        if self.left_over:
            text += f", without {some_of(self.left_over)}, which the backbone doesn't have"
        return text


def find_backbone(content: Mapping[str, Any]) -> BackboneWeights | None:
    """The weights of a backbone in what a file holds, or None if it holds no state dict.

    Raises RuntimeError if weights that belong together can't be joined.
    """
    path, others, entries = _unwrap(content)
    state_dict = {name: value for name, value in entries.items() if isinstance(name, str) and isinstance(value, Tensor)}
    # A file that is a state dict itself may hold other values beside it. What an entry wraps must be a state dict and
    # nothing else.
    if path and len(state_dict) < len(entries):
        return None

    # torch's AveragedModel counts in "n_averaged" what it has averaged. Lightning's WeightAveraging puts the averages
    # into the entry "state_dict", where the raw weights usually are.
    is_averaged = state_dict.pop("n_averaged", None) is not None
    if LIGHTNINGS_RAW in content:
        is_averaged = True
        others.insert(0, LIGHTNINGS_RAW)
    if not state_dict:
        return None

    # The names in the tables of ``other_names`` don't begin with a trainer's prefixes, so these are removed first.
    trainers_prefix = _common_prefix(state_dict)
    without_prefix = {name.removeprefix(trainers_prefix): value for name, value in state_dict.items()}
    renamed, left_over = to_timm(without_prefix)

    # A whole model, such as a detector, may hold the backbone under a further prefix, beside parts of its own.
    inner_prefix = _prefix_of(renamed)
    weights = {}
    for name, value in renamed.items():
        if name.startswith(inner_prefix):
            weights[name.removeprefix(inner_prefix)] = value
        else:
            left_over.append(name)

    # Where some trainers name an entry "teacher" or "ema", others have it as a prefix of the names.
    prefix = trainers_prefix + inner_prefix
    words = [*path, *prefix.split(".")]
    is_averaged = is_averaged or any(word in AVERAGED_ENTRIES for word in words)
    if prefix:
        path.append(prefix)
    return BackboneWeights(weights, ": ".join(path), is_averaged, others, left_over)


def _unwrap(content: Mapping[str, Any]) -> tuple[list[str], list[str], Mapping[str, Any]]:
    """Go down into the entries that wrap each other, such as "model" in "teacher".

    Returns:
        The names of the entries from the outermost to the innermost, those of the others that hold weights, and what
        the innermost entry holds.
    """
    path: list[str] = []
    others: list[str] = []
    entries = content
    for _ in range(DEEPEST):
        wrapped = _wrapped(entries)
        if not wrapped:
            break
        chosen, *rest = wrapped
        others += [name for name in rest if name not in others]
        path.append(chosen)
        entries = entries[chosen]
    return path, others, entries


def some_of(names: list[str]) -> str:
    """The first names, and how many there are."""
    text = ", ".join(name[:100] for name in names[:MOST_NAMED])
    if len(names) > MOST_NAMED:
        text += f" and {len(names) - MOST_NAMED} more"
    return text


def _wrapped(entries: Any) -> list[str]:
    """The entries that hold a state dict or wrap one further, in the sequence in which they are preferred.

    There are none if ``entries`` are a state dict themselves.
    """
    wrapped = []
    for name in (*RAW_ENTRIES, *AVERAGED_ENTRIES, *TRAINED_BY_A_TEACHER):
        value = entries.get(name)
        if isinstance(value, Mapping) and _holds_weights(value):
            wrapped.append(name)
    return wrapped


def _holds_weights(entries: Mapping[Any, Any]) -> bool:
    """Whether there is a tensor among the entries, or in one that wraps further ones."""
    waiting = [entries]
    # Entries can contain themselves, and a file of a few bytes would keep this loop running for ever.
    seen = set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        for value in part.values():
            if isinstance(value, Tensor):
                return True
            if isinstance(value, Mapping):
                waiting.append(value)
    return False


def _prefix_of(state_dict: Mapping[str, Tensor]) -> str:
    """What stands before the names of the backbone's weights. Of several backbones, a raw one is preferred."""
    # All supported backbones call their layers "blocks", so their prefix stands before "blocks.0.".
    prefixes = set()
    for name in state_dict:
        match = re.match(r"((?:\w+\.)*?)blocks\.\d+\.", name)
        if match:
            prefixes.add(match[1])
    if not prefixes:
        return _common_prefix(state_dict)

    # A hybrid model has blocks of convolutions further inside, which are no backbone of their own. Their prefix begins
    # with that of the model.
    outermost = []
    for prefix in prefixes:
        others = prefixes - {prefix}
        if not prefix.startswith(tuple(others)):
            outermost.append(prefix)
    return min(outermost, key=_rank_of_prefix)


def _rank_of_prefix(prefix: str) -> tuple[bool, bool, int, str]:
    """Sorts raw weights before averaged ones and those before a student's, then shorter prefixes before longer ones."""
    words = prefix.split(".")
    is_taught = any(word in TRAINED_BY_A_TEACHER for word in words)
    is_averaged = any(word in AVERAGED_ENTRIES for word in words)
    return is_taught, is_averaged, len(words), prefix


def _common_prefix(state_dict: Mapping[str, Tensor]) -> str:
    """The longest row of PREFIXES that stands before all names, of which there must be at least one."""
    common = ""
    while True:
        longer = ""
        for prefix in PREFIXES:
            if all(name.startswith(common + prefix) for name in state_dict):
                longer = common + prefix
                break
        if not longer:
            return common
        common = longer
