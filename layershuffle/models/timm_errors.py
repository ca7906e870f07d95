"""One-line errors for models that timm can't make, in place of the pages that timm and torch print."""

import re
from pathlib import Path

from layershuffle.errors import UserError, is_network_error, last_line
from layershuffle.models.state_dicts import some_of

SIZE_MISMATCH = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\(\[(.*?)\]\) from checkpoint, "
    r"the shape in current model is torch\.Size\(\[(.*?)\]\)"
)
"""How torch says that weights have another shape: the name, the shape in the file and that in the model."""


def unknown_model(name: str) -> UserError:
    """The error for a name that timm doesn't know, which may be the path of a file of weights."""
    text = f"timm has no model named {name}: timm.list_models('vit*') lists those it has"
    if Path(name).exists():
        text += f"; to start from the weights in {name}, name their model and give --model.pretrained {name}"
    return UserError(text)


def weights_not_fetched(name: str, error: Exception) -> UserError:
    """The error for pretrained weights that the hub didn't send, because of ``error``."""
    return UserError(
        f"the pretrained weights of {name} could not be fetched ({type(error).__name__}): without a network, download "
        "them elsewhere and give their path (--model.pretrained of layershuffle train, --pretrained of the other "
        "commands)"
    )


def explained(error: Exception, name: str, pretrained: bool | str) -> UserError:
    """The one-line error to raise in place of an error of ``timm.create_model``.

    Args:
        error: what was raised.
        name: the timm model.
        pretrained: where its weights should come from, see ``create_model``.
    """
    if isinstance(error, UserError):
        return error
    if "Invalid pretrained tag" in str(error):
        return unknown_model(name)
    # torch raises a RuntimeError if names or shapes differ. Our own code, which looks at a file first, raises a
    # KeyError if a weight is missing.
    if isinstance(pretrained, str) and isinstance(error, (RuntimeError, KeyError)):
        return UserError(f"{pretrained} holds weights of another backbone than {name}: {_difference(error)}")
    if is_network_error(error):
        return weights_not_fetched(name, error)
    return UserError(f"{name} can't be created with these arguments: {last_line(error)}")


def _difference(error: Exception) -> str:
    """How weights differ from those of a model, in a few words, by the error that was raised."""
    mismatches = SIZE_MISMATCH.findall(str(error))
    # If the width of the tokens differs, nearly all weights do. The most useful message names the width, which the norm
    # of a layer shows.
    for weight, in_file, in_model in mismatches:
        if weight.endswith(".norm1.weight"):
            return f"its tokens have {in_file} features, and those of the model {in_model}"

    # torch lists all names that are missing or unexpected. They can be hundreds, so only some are named.
    listed = re.search(r"(Missing|Unexpected) key\(s\) in state_dict: (.*)", str(error))
    if listed:
        names = re.findall(r'"([^"]*)"', listed[2])
        if listed[1] == "Missing":
            return f"it lacks {some_of(names)}"
        return f"it has {some_of(names)} besides"

    if mismatches:
        weight, in_file, in_model = mismatches[0]
        return f"its {weight} has the shape [{in_file}], and that of the model [{in_model}]"
    return last_line(error)[:300]
