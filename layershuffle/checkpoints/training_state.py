"""Whether a training can go on from what a checkpoint holds beside its weights and metadata: its types and bounds.

Lightning and torch take this state over as it is, so that a wrong value would end the run somewhere else, or never be
noticed.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from layershuffle.checkpoints.plain_values import are_plain, is_mapping, is_text, is_whole
from layershuffle.errors import UserError, shown

MOST_STEPS = 1 << 40
"""How many steps, batches or epochs a training may have done."""
VERSION_KEY = "pytorch-lightning_version"
SCHEDULE = {"base_lrs", "last_epoch", "lr_lambdas", "verbose"}
"""The public attributes of torch's ``LambdaLR``; it would take over any other attribute as well."""


def check_training_state(content: Mapping[str, Any], path: Any) -> None:
    """Raise a UserError if no training can go on from the content of a checkpoint.

    Args:
        content: what the checkpoint's file holds.
        path: of the checkpoint, for error messages.
    """
    needed = ("loops", "optimizer_states", "lr_schedulers", VERSION_KEY)
    if not all(content.get(name) is not None for name in needed):
        raise UserError(
            f"{path} holds no training that could go on: begin a new one from its weights with --model.pretrained "
            f"{path}"
        )
    for name, can_be in _CHECKS.items():
        if name in content and not can_be(content[name]):
            raise UserError(
                f"{path} is damaged: no training can go on with {name} {shown(content[name])}; --model.pretrained "
                f"{path} begins a new one from its weights"
            )
    # A checkpoint that was put together from two would go on with a wrong learning rate and the wrong images.
    try:
        agrees = content["global_step"] in _steps(content["loops"])
    except (KeyError, TypeError):
        agrees = False
    if not agrees:
        raise UserError(f"{path} is damaged: its loops have not counted {content.get('global_step')} steps")


def _is_count(value: Any) -> bool:
    return is_whole(value) and 0 <= value < MOST_STEPS


def _is_number_of_processes(value: Any) -> bool:
    return _is_count(value) and value > 0


def _is_version(value: Any) -> bool:
    """Whether it begins with a number, as a version does."""
    return is_text(value) and value.split(".")[0].isdecimal()


def _are_loops(value: Any) -> bool:
    """Whether it is the progress of Lightning's loops, whose numbers are counts."""
    return is_mapping(value) and all(_is_progress(name, part) for name, part in value.items())


def _is_progress(name: str, value: Any) -> bool:
    if name.endswith("state_dict") and isinstance(value, dict):
        # Data loaders may keep anything here.
        return _is_count(value.get("_batches_that_stepped", 0))
    if isinstance(value, dict):
        return _are_loops(value)
    return isinstance(value, bool) or _is_count(value)


def _steps(loops: Mapping[str, Any]) -> list[int]:
    """How many steps Lightning's loops have counted: by automatic optimization, and by manual optimization.

    A training uses one of the two, and the other one's count stays at 0.
    """
    loop = loops["fit_loop"]
    automatic = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    manual = loop["epoch_loop.manual_optimization.optim_step_progress"]
    return [progress["total"]["completed"] for progress in (automatic, manual)]


def _are_states(value: Any) -> bool:
    return is_mapping(value) and all(isinstance(state, dict) for state in value.values())


def _are_optimizers(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_optimizer, value))


def _is_optimizer(value: Any) -> bool:
    """Whether it is what ``torch.optim.Optimizer.state_dict`` returns."""
    if not is_mapping(value) or not isinstance(value.get("state"), dict):
        return False

    # Each group has its parameters and its options, such as the learning rate.
    groups = value.get("param_groups")
    if not isinstance(groups, list) or not all(map(is_mapping, groups)):
        return False
    if not all(isinstance(group.get("params"), list) and _are_options(group) for group in groups):
        return False

    # Parameters have numbers, or with sharded weights names. A state without a parameter would be of another model.
    keys: list[Any] = []
    for group in groups:
        keys += group["params"]
    if not all(_is_count(key) or is_text(key) for key in keys) or not value["state"].keys() <= set(keys):
        return False
    return all(map(is_mapping, value["state"].values()))


def _are_options(group: dict[str, Any]) -> bool:
    """Whether an optimizer's options for a group of parameters are plain values; a number can be a tensor."""
    others = {}
    for name, value in group.items():
        is_number = isinstance(value, Tensor) and value.numel() == 1
        if not is_number:
            others[name] = value
    return are_plain(others)


def _are_schedules(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_schedule, value))


def _is_schedule(value: Any) -> bool:
    """Whether it is what ``LambdaLR.state_dict`` returns."""
    if not is_mapping(value) or not isinstance(value.get("lr_lambdas"), list):
        return False
    if not _is_count(value.get("last_epoch")) or not _is_count(value.get("_step_count", 0)):
        return False
    return all(name in SCHEDULE or name.startswith("_") for name in value)


_CHECKS = {
    "epoch": _is_count,
    "global_step": _is_count,
    VERSION_KEY: _is_version,
    "loops": _are_loops,
    "callbacks": _are_states,
    "optimizer_states": _are_optimizers,
    "lr_schedulers": _are_schedules,
    "processes": _is_number_of_processes,
    "optimizer": is_text,
}
"""Whether a value can be that of a key."""
