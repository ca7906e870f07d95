"""What several processes that train one model need: which of them draw orders of their own, and gradients for all."""

from collections.abc import Iterable

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from layershuffle.errors import UserError
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order, Unit


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
    for block in model.vit.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def idle_parameters(model: OrderedViT, orders: Iterable[Order]) -> list[nn.Parameter]:
    """The trainable parameters that none of ``orders`` runs."""
    run = {unit for order in orders for step in order for unit in step}
    idle: list[nn.Module] = []
    for layer, block in enumerate(model.vit.blocks):
        at: dict[str, nn.Module] = dict(block.named_children())
        halves = {half for half in ("a", "f") if {Unit(layer), Unit(layer, half)} & run}
        if not halves:
            heads = (model.encoding and model.encoding.projections, model.prediction and model.prediction.heads)
            idle += [block, *(of_all[layer] for of_all in heads if of_all)]
        elif "a" not in halves:
            idle += [at["norm1"], at["attn"], at["ls1"]]
        elif "f" not in halves:
            idle += [at["norm2"], at["mlp"], at["ls2"]]
    if model.encoding and not run:
        idle.append(model.encoding.table)
    return [parameter for module in idle for parameter in module.parameters() if parameter.requires_grad]


def joined(loss: Tensor, idle: Iterable[nn.Parameter]) -> Tensor:
    """The same loss, of which ``idle`` have zero gradients instead of none, so that DDP need not look for them."""
    return sum((0 * parameter.sum() for parameter in idle), start=loss)
