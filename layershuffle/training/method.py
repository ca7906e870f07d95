"""What tables and figures call a method."""

from layershuffle.errors import UserError
from layershuffle.models.position import Position
from layershuffle.orders.sampler import OrderSampler

SUFFIXES: dict[Position, str] = {"none": "", "encode": "-position", "predict": "-predict"}
"""How the use of positions is named, as in arXiv 2407.04513."""


def method_name(
    sampler: OrderSampler, position: Position, order: str | None = None, objective: str | None = None
) -> str:
    """What the field calls this choice of orders and use of positions, such as ``layershuffle-predict``.

    Args:
        sampler: samples the orders of the training steps.
        position: how the model uses positions.
        order: the text of the model's order, if it was chosen; then the name ends with it: ``baseline on cycle(6)``.
        objective: the name of an objective that takes the place of the sampler's, such as ``instancewise``.

    Raises:
        UserError: if the sampler has no name.
    """
    sampler_name = getattr(sampler, "method", None)
    if not isinstance(sampler_name, str):
        raise UserError(f'the sampler {type(sampler).__name__} has no name: set method = "its-name" in its class')
    name = (objective or sampler_name) + SUFFIXES[position]
    if order:
        name += f" on {order}"
    return name
