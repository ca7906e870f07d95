"""What checkpoints and exported folders record of a data set: its class, its arguments, the names of its classes."""

import inspect
import json
from dataclasses import dataclass
from typing import Any, Self

from layershuffle.errors import UserError, shown


@dataclass(frozen=True)
class DataConfig:
    """A data set, so that it can be made again.

    Attributes:
        name: the name of the class, or its import path if it isn't one of this package.
        args: the arguments of its ``__init__``, which are plain values.
        classes: the names of the classes in the sequence of their labels, or None if they are unknown.
    """

    name: str
    args: dict[str, Any]
    classes: list[str] | None = None

    @classmethod
    def of(cls, data: object) -> Self:
        """The class and the arguments of a data set, without the names of its classes.

        Raises:
            UserError: if an argument isn't kept as an attribute of the same name, or isn't a plain value.
        """
        kind = type(data)
        try:
            args = {name: getattr(data, name) for name in argument_names(kind)}
            # This fails where a checkpoint would save an object that evaluation refuses to load.
            json.dumps(args)
        except (AttributeError, TypeError) as error:
            raise UserError(
                f"checkpoints can't record the arguments of {kind.__name__} ({error}): keep each as an attribute of "
                "the same name, and make it a number, a string, or a list or dictionary of these"
            ) from error
        # Our classes are found by their names, wherever they move within the package.
        is_ours = kind.__module__.startswith("layershuffle.")
        return cls(kind.__qualname__ if is_ours else import_path(kind), args)

    def to_dict(self) -> dict[str, Any]:
        """The plain values that checkpoints and exported folders hold."""
        return {"class": self.name, "args": self.args, "classes": self.classes}

    @classmethod
    def from_dict(cls, saved: Any) -> Self:
        """Read what ``to_dict`` returned; raises UserError if it has no class and arguments."""
        name = None
        args = None
        if isinstance(saved, dict):
            name = saved.get("class")
            args = saved.get("args")
        if not isinstance(name, str) or not isinstance(args, dict):
            raise UserError(f"its data can't be {shown(saved)}: that has no class with arguments")

        # The names only label predictions. A data set of the user's own may give them as something other than texts,
        # which is no reason to refuse its checkpoints.
        classes = saved.get("classes")
        are_names = isinstance(classes, list) and all(isinstance(label, str) for label in classes)
        return cls(name, dict(args), classes if are_names else None)


def unknown_data_set(error: Exception) -> UserError:
    """The error that a checkpoint's data set can't be made again, because of ``error``."""
    return UserError(
        f"the data set it was trained on is not known here ({type(error).__name__}: {str(error)[:200]}): say which "
        "to use with --data"
    )


def import_path(kind: type) -> str:
    """Where a class is found, such as ``stripes.Stripes``."""
    return f"{kind.__module__}.{kind.__qualname__}"


def argument_names(kind: type) -> list[str]:
    """The named arguments of a class, and of its parents as long as it passes ``**kwargs`` on to them."""
    arguments: list[str] = []
    # ImageData takes no **kwargs, so that the loop ends there at the latest.
    for parent in kind.__mro__:
        passes_on = False
        for parameter in inspect.signature(parent).parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                passes_on = True
            elif parameter.name not in arguments:
                arguments.append(parameter.name)
        if not passes_on:
            break
    return arguments
