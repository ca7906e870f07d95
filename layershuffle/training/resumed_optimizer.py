"""The optimizer of a run that goes on from a checkpoint: its saved state must fit, and the command's options hold."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from layershuffle.checkpoints.plain_values import is_whole
from layershuffle.errors import UserError, shown

logger = logging.getLogger(__name__)

OPTIMIZER_KEY = "optimizer"
"""The key in a checkpoint of the name of the optimizer's class."""

OF_THE_STATE = ("amsgrad", "centered")
"""The options of torch's optimizers that decide what their state consists of."""


class ResumedOptimizer:
    """Watches over an optimizer while Lightning gives it the state of a checkpoint.

    torch keeps the options of an optimizer together with its state, so a run that goes on would silently take over
    those of the earlier command. The methods are called in this sequence, ``read`` only where there is a checkpoint.
    """

    def __init__(self) -> None:
        self._checkpoint: dict[str, Any] = {}
        self._options: list[dict[str, Any]] = []

    def read(self, checkpoint: Mapping[str, Any]) -> None:
        """Note what a checkpoint says of its optimizer. Most strategies make the optimizer only after that."""
        # The weights are left out, so that they don't stay in memory until the training begins.
        self._checkpoint = {}
        for key in (OPTIMIZER_KEY, "optimizer_states"):
            if key in checkpoint:
                self._checkpoint[key] = checkpoint[key]

    def check(self, optimizer: Optimizer) -> None:
        """Note the options of the command's optimizer; raise a UserError if the saved state can't be that of it."""
        self._options = options_of(optimizer)
        check_optimizer(self._checkpoint, optimizer)
        check_state(self._checkpoint, optimizer)

    def restore_options(self, optimizer: Optimizer, scheduler: LambdaLR) -> None:
        """Give the optimizer, which has taken over the saved state, the options of the command again.

        The schedule sets the rates of the coming step only when it is told to, see ``set_rates_again``.
        """
        # What is said of each option that has changed. Groups may differ in its values, of which the first pair stands
        # for all.
        changes: dict[str, str] = {}
        for group, options in zip(optimizer.param_groups, self._options):
            for name, value in options.items():
                # The schedule changes "lr"; torch keeps the highest learning rate as "initial_lr".
                key = "initial_lr" if name == "lr" else name
                saved_value = group.get(key)
                if _plain(saved_value) != _plain(value):
                    changes.setdefault(name, f"{name} {value} in place of {saved_value}")
                    group[key] = value
        # The scheduler has a copy of the rates, which it multiplies by the factor of each step.
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        if changes:
            logger.info("optimizer: goes on with %s", ", ".join(changes.values()))

        # The saved state is as large as that of the optimizer, which has a copy now.
        self._checkpoint = {}


def options_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The options of each group of parameters, before a schedule changes the learning rate."""
    options_of_groups = []
    for group in optimizer.param_groups:
        options = dict(group)
        del options["params"]
        options.pop("param_names", None)
        options_of_groups.append(options)
    return options_of_groups


def check_optimizer(checkpoint: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Raise a UserError if a checkpoint holds the state of another optimizer, or of one of other parameters."""
    states = checkpoint.get("optimizer_states")
    if not states:  # The run is new, or its checkpoint is of a run of 0 steps.
        return
    complaint = "the checkpoint to continue from has"
    advice = "use the same, or begin a new run with --model.pretrained"
    name = type(optimizer).__name__
    saved_name = checkpoint.get(OPTIMIZER_KEY, name)  # Earlier versions didn't write it.
    if saved_name != name:
        raise UserError(f"{complaint} the state of {saved_name}, which {name} can't go on with: {advice}")

    # torch gives the states to the parameters by their place in the groups.
    saved_groups = states[0]["param_groups"]
    saved_sizes = [len(group["params"]) for group in saved_groups]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if saved_sizes != sizes:
        raise UserError(f"{complaint} other groups of trained parameters (--model.trainable): {advice}")

    for saved, group in zip(saved_groups, optimizer.param_groups):
        # Some checkpoints don't name their optimizer. An option that this one lacks is the mark of another one.
        # Schedulers add "initial_lr", and torch "param_names" if the parameters have names.
        unknown = saved.keys() - group.keys() - {"initial_lr", "param_names"}
        # With another value of these, the state lacks what this optimizer reads, or has what it doesn't.
        saved_values = {option: saved[option] for option in OF_THE_STATE if option in saved}
        changed = [option for option, value in saved_values.items() if value != group.get(option)]
        if unknown or changed:
            options = ", ".join([*sorted(unknown), *changed])
            raise UserError(f"{complaint} the state of an optimizer with another {options} than {name}: {advice}")


def check_state(checkpoint: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Raise a UserError if the state in a checkpoint can't be that of the parameters of this optimizer.

    torch doesn't compare their shapes, and the fused kernels write as many values as a parameter has, wherever the
    state ends. Others raise an error of their own.

    Args:
        checkpoint: the content of the checkpoint, for which ``check_optimizer`` raised nothing.
        optimizer: an optimizer of whole parameters, with no state yet.
    """
    states = checkpoint.get("optimizer_states")
    if not states or "fused" not in optimizer.defaults:
        return
    saved_state = states[0]["state"]
    for saved, group in zip(states[0]["param_groups"], optimizer.param_groups):
        # A checkpoint numbers the parameters. A parameter that has never had a gradient has no state.
        for number, parameter in zip(saved["params"], group["params"]):
            of_parameter = saved_state.get(number, {})
            for name, value in of_parameter.items():
                if not _fits(name, value, parameter):
                    raise UserError(
                        "the checkpoint to continue from is damaged: the state of its optimizer doesn't fit the "
                        f"parameters ({shown(name)})"
                    )


def _fits(name: str, value: Any, parameter: Tensor) -> bool:
    """Whether an entry of the saved state, such as "exp_avg", can be that of a parameter."""
    if value is None:
        return True
    if name == "step":
        # Earlier versions of torch counted steps in Python's numbers.
        is_float = isinstance(value, Tensor) and value.numel() == 1 and value.dtype == torch.float32
        return is_float or is_whole(value)
    if not isinstance(value, Tensor) or value.shape != parameter.shape or not value.is_floating_point():
        return False
    # The kernels go through the memory of both in parallel, so there must be no gaps and the same layout.
    return value.is_contiguous() or value.stride() == parameter.stride()


def _plain(value: Any) -> Any:
    """A value as it is compared: configs hold lists where a default is a tuple."""
    return tuple(value) if isinstance(value, list) else value
