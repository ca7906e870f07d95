"""Makes the optimizer of a training."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from layershuffle import private_apis
from layershuffle.errors import UserError

PAPER_ADAM: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-6}
"""The optimizer's arguments in arXiv 2407.04513, section 4."""


def make_optimizer(
    optimizer_of: Callable[[Any], Optimizer],
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    groups: list[dict[str, Any]] | None = None,
) -> Optimizer:
    """Make the optimizer, fused unless told otherwise. It gets the parameters with their names.

    Args:
        optimizer_of: makes the optimizer of parameters or of groups of them.
        named_parameters: the parameters of the module. Those that are frozen are left out.
        groups: the trainable parameters in groups, see ``Trainable.parameter_groups``; by default they are one group.

    Raises:
        UserError: if the optimizer refuses its arguments.
    """
    # Some optimizers, such as Muon, treat parameters by their names.
    trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    parameters: list[Any] = trained
    if groups is not None:
        parameters = _with_names(groups, trained)
    try:
        optimizer = optimizer_of(parameters)
    except ValueError as error:
        raise UserError(f"the optimizer can't be made: {error}; see --model.optimizer") from error
    _fuse(optimizer)
    private_apis.allow_clipping_of_scaled_gradients(optimizer)
    # timm only notes the factor of a group. The schedule multiplies the rate that it finds here.
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_scale", 1.0)
    return optimizer


def _with_names(groups: list[dict[str, Any]], named: list[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """The groups, each of whose parameters is a pair of its name and itself."""
    names = {parameter: name for name, parameter in named}
    named_groups = []
    for group in groups:
        pairs = [(names[parameter], parameter) for parameter in group["params"]]
        named_groups.append({**group, "params": pairs})
    return named_groups


def _fuse(optimizer: Optimizer) -> None:
    """Let the optimizer update all parameters in one kernel, if it can and nobody has decided otherwise."""
    # A kernel for each parameter would keep the host busy for longer than small layers keep a GPU.
    if not isinstance(optimizer, (torch.optim.Adam, torch.optim.SGD)):  # AdamW is an Adam
        return
    for group in optimizer.param_groups:
        if group["fused"] is None and not group["foreach"]:
            group["fused"] = True
