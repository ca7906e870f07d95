"""What several processes that train one model need: which of them draw orders of their own, and gradients for all."""

from collections.abc import Iterable

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from layershuffle.errors import UserError
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order


def is_sharded(strategy: Strategy) -> bool:
    """Whether processes hold parts of each layer and gather them as it runs, so that all must run the same ones."""
    return not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy))


def orders_per_process(strategy: Strategy, wanted: bool | None, model: OrderedViT, orders: Iterable[Order]) -> bool:
    """Whether each process draws orders of its own: unless something else is ``wanted``, where it can.

    Args:
        strategy: the trainer's.
        wanted: what the user asked for, if anything.
        model: the model.
        orders: orders like those it is trained in.

    Raises:
        UserError: (a ValueError) if processes that share each layer would wait for each other for ever.
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
    """Spread the parameters of each layer, and of what is around the layers, over the processes of ``mesh``."""
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def idle_parameters(model: OrderedViT, orders: Iterable[Order]) -> list[nn.Parameter]:
    """The trainable parameters that none of ``orders`` runs."""
    run = {unit for order in orders for step in order for unit in step}
    idle = model.backbone.unused_parameters(run)
    for layer in set(range(model.depth)) - {unit.layer for unit in run}:
        if model.encoding:
            idle += model.encoding.projections[layer].parameters()
        if model.prediction:
            idle += model.prediction.heads[layer].parameters()
    if model.encoding and not run:
        idle += model.encoding.table.parameters()
    return [parameter for parameter in idle if parameter.requires_grad]


def joined(loss: Tensor, idle: Iterable[nn.Parameter]) -> Tensor:
    """The same loss, of which ``idle`` have zero gradients instead of none, so that DDP need not look for them."""
    return sum((0 * parameter.sum() for parameter in idle), start=loss)
