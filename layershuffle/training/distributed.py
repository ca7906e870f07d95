"""Training one model in several processes: which orders they draw, sharding, and gradients of layers that don't run."""

from collections.abc import Iterable

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from layershuffle.errors import UserError
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order


def is_sharded(strategy: Strategy) -> bool:
    """Whether each process holds a part of every layer, so that all processes must run the same layers."""
    return not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy))


def orders_per_process(strategy: Strategy, wanted: bool | None, model: OrderedViT, orders: Iterable[Order]) -> bool:
    """Whether each process draws its own orders: as ``wanted``, by default wherever the strategy allows it.

    Raises a UserError if the strategy can't train the model in ``orders``, which are examples of those it will run.
    """
    if not is_sharded(strategy):
        return wanted is not False
    name = type(strategy).__name__
    if wanted:
        raise UserError(
            f"{name} spreads each layer over the processes, which would wait for each other for ever in different "
            "orders: leave out orders_per_process, or use the strategy ddp"
        )
    if model.choice:
        raise UserError(f"images that choose their orders can't be trained with {name}: use the strategy ddp")
    if any(unit.half for order in orders for step in order for unit in step):
        raise UserError(f"{name} gathers whole layers, so orders of their halves need the strategy ddp")
    return False


def shard(model: OrderedViT, mesh: DeviceMesh) -> None:
    """Shard the parameters of each layer, and those outside the layers, over the processes of ``mesh``."""
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def unused_parameters(model: OrderedViT, orders: Iterable[Order]) -> list[nn.Parameter]:
    """The trainable parameters that no order of ``orders`` uses."""
    run = {unit for order in orders for step in order for unit in step}
    unused = model.backbone.unused_parameters(run)
    for layer in set(range(model.depth)) - {unit.layer for unit in run}:
        if model.encoding:
            unused += model.encoding.projections[layer].parameters()
        if model.prediction:
            unused += model.prediction.heads[layer].parameters()
    if model.encoding:
        tables = dict.fromkeys(map(model.encoding.table_of, range(model.depth)))
        used = {model.encoding.table_of(unit.layer) for unit in run}
        unused += [weight for table in tables if table not in used for weight in table.parameters()]
    return [parameter for parameter in unused if parameter.requires_grad]
