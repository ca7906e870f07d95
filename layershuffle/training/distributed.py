"""Training one model in several processes: which orders they run, sharding, and gradients of layers that don't run."""

from collections.abc import Iterable

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from layershuffle.errors import UserError
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order, Unit
from layershuffle.training.objectives import Objective


def is_sharded(strategy: Strategy) -> bool:
    """Whether each process holds a part of every layer, so that all processes must run the same layers."""
    return not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy))


def is_replicated(strategy: Strategy) -> bool:
    """Whether DistributedDataParallel wraps the model and waits for all gradients; it wraps one process's as well."""
    return isinstance(strategy, DDPStrategy)


def samples_own_orders(
    strategy: Strategy, orders_per_process: bool | None, objective: Objective, first_orders: Iterable[Order]
) -> bool:
    """Whether each process samples its own orders.

    Args:
        strategy: the trainer's.
        orders_per_process: the user's choice; with None, they do wherever the strategy allows it.
        objective: what is minimised.
        first_orders: the orders of the first step, which stand for all that will run.

    Raises:
        UserError: if the strategy can't train with this objective or in such orders.
    """
    # Where every process holds the whole model, each order is possible. By default an update averages over many.
    if not is_sharded(strategy):
        return orders_per_process is not False

    name = type(strategy).__name__
    if orders_per_process:
        raise UserError(
            f"{name} spreads each layer over the processes, which would wait for each other for ever in different "
            "orders: leave out orders_per_process, or use the strategy ddp"
        )
    if not objective.allows_sharding:
        raise UserError(f"{type(objective).__name__} can't be trained with {name}: use the strategy ddp")
    if any(unit.half for unit in _units_of(first_orders)):
        raise UserError(f"{name} gathers whole layers, so orders of their halves need the strategy ddp")
    return False


def shard(model: OrderedViT, mesh: DeviceMesh) -> None:
    """Shard the parameters of each layer, and those outside the layers, over the processes of ``mesh``."""
    # Each call makes one unit of what isn't sharded yet, so that a layer is gathered just before it runs.
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def unused_parameters(model: OrderedViT, orders: Iterable[Order]) -> list[nn.Parameter]:
    """The trainable parameters that no order of ``orders`` uses."""
    run_units = _units_of(orders)
    run_layers = {unit.layer for unit in run_units}
    unused = model.backbone.unused_parameters(run_units)

    # The backbone knows nothing of the modules that each layer has for its position.
    unused_layers = [layer for layer in range(model.depth) if layer not in run_layers]
    for layer in unused_layers:
        if model.encoding:
            unused += model.encoding.projections[layer].parameters()
        if model.prediction:
            unused += model.prediction.heads[layer].parameters()

    if model.encoding:
        # Layers may share a table, which is used if one of them runs. A dict keeps each table once, in one sequence.
        used_tables = {model.encoding.table_of(layer) for layer in run_layers}
        tables_of_unused_layers = dict.fromkeys(model.encoding.table_of(layer) for layer in unused_layers)
        for table in tables_of_unused_layers:
            if table not in used_tables:
                unused += table.parameters()
    return [parameter for parameter in unused if parameter.requires_grad]


def with_all_parameters(loss: Tensor, model: OrderedViT, orders: Iterable[Order]) -> Tensor:
    """The loss, a scalar, of which the gradients of the parameters that no order uses are zero rather than missing.

    DistributedDataParallel waits for the gradients of all parameters.
    """
    # Adding 0 times a parameter doesn't change the loss, and gives the parameter a gradient of zero.
    for parameter in unused_parameters(model, orders):
        loss = loss + 0 * parameter.sum()
    return loss


def _units_of(orders: Iterable[Order]) -> set[Unit]:
    """The layers and halves of layers that any of the orders runs."""
    units: set[Unit] = set()
    for order in orders:
        units.update(order.units)
    return units
