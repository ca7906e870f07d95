"""Which parameters are trained, and how fast: parts of the backbone, LoRA, groups of the optimizer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from layershuffle.errors import UserError
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order


@dataclass(frozen=True)
class Trainable:
    """Which parameters are trained, and how fast.

    Attributes:
        only: Train only those parameters of the backbone in whose names one of these words appears, such as [head] or
            [norm, head]. Position modules are always trained.
        lora: The rank of the matrices that LoRA adds to each layer (arXiv 2106.09685); ``only: [lora, head]`` trains
            these and the head alone.
        layer_decay: The factor by which the learning rate falls with every layer from the head towards the images. In
            random orders a layer has no depth: then all layers share one rate, the geometric mean of these.
        decay_norms: Whether weight decay also holds for norms, biases and position embeddings.
    """

    only: list[str] | None = None
    lora: int | None = None
    layer_decay: float = 1.0
    decay_norms: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"trainable.layer_decay is a factor from above 0 to 1, not {self.layer_decay}")

    def prepare(self, model: OrderedViT) -> None:
        """Add LoRA's matrices to the model and freeze what isn't trained.

        Raises a UserError if a word appears in no name, or peft, which adds the matrices, is not installed.
        """
        # Some heads are frozen because the model doesn't use them, and they stay so.
        frozen = {parameter for parameter in model.vit.parameters() if not parameter.requires_grad}
        if self.lora is not None:
            add_lora(model, self.lora)
        named = dict(model.vit.named_parameters())
        self._check_words(named)
        for name, parameter in named.items():
            is_chosen = self.only is None or any(word in name for word in self.only)
            parameter.requires_grad_(is_chosen and parameter not in frozen)

    def _check_words(self, names: Iterable[str]) -> None:
        """Raise a UserError if one of the words of ``only`` is in none of the names, which is likely a typing error."""
        for word in self.only or ():
            if not any(word in name for name in names):
                raise UserError(f"there is no parameter to train with {word} in its name: they are {_parts_of(names)}")

    @property
    def needs_groups(self) -> bool:
        """Whether parameters differ in their learning rate or weight decay."""
        return self.layer_decay != 1 or not self.decay_norms

    def parameter_groups(self, model: OrderedViT, orders: Sequence[Order]) -> list[dict[str, Any]]:
        """The trainable parameters in groups for the optimizer, made by timm.

        A group's "lr_scale" is the factor of its learning rate. Where ``orders`` keep the layers in sequence, it falls
        by ``layer_decay`` with every layer from the head towards the images (arXiv 1801.06146). In other orders a layer
        has no depth: all layers have the same factor, the geometric mean of those in sequence. The embedding has the
        smallest factor in either case, and the head and what isn't part of the backbone have 1.

        Args:
            model: the model.
            orders: examples of those it is trained in.
        """
        # timm's scales are powers of layer_decay: the exponent is 0 for the head, 1 for the last of L layers, L for the
        # first one and L + 1 for the embedding. The geometric mean of the layers' has the mean of their exponents.
        scale_of_embedding = self.layer_decay ** (model.depth + 1)
        mean_scale_of_layers = self.layer_decay ** ((model.depth + 1) / 2)
        keep_sequence = all(in_sequence(order) for order in orders)

        # timm makes a group for each layer. Those that have come to the same scale and weight decay are one group here,
        # which the optimizer updates at once.
        groups: dict[tuple[float, bool], dict[str, Any]] = {}
        for timm_group in self._timm_groups(model):
            scale = timm_group.get("lr_scale", 1.0)
            has_decay = bool(timm_group["weight_decay"])
            is_layer = scale not in (scale_of_embedding, 1.0)
            if is_layer and not keep_sequence:
                scale = mean_scale_of_layers

            if (scale, has_decay) not in groups:
                groups[scale, has_decay] = {"params": [], "lr_scale": scale}
                # A group that names no weight decay gets the optimizer's.
                if not has_decay:
                    groups[scale, has_decay]["weight_decay"] = 0.0
            groups[scale, has_decay]["params"] += timm_group["params"]
        return list(groups.values())

    def _timm_groups(self, model: OrderedViT) -> list[dict[str, Any]]:
        """Groups of the backbone's parameters by layer and of the others, whose "weight_decay" is 1 or 0."""
        from timm.optim import param_groups_layer_decay, param_groups_weight_decay

        vit: Any = model.vit
        # timm wants a number for the weight decay; only whether it is 0 is used.
        options: dict[str, Any] = {"weight_decay": 1.0, "weight_decay_exclude_1d": not self.decay_norms}
        # timm tells norms and biases by their single dimension. Position embeddings have more, so the model names them.
        exempt = () if self.decay_norms else vit.no_weight_decay()
        of_backbone = param_groups_layer_decay(
            vit, no_weight_decay_list=exempt, layer_decay=self.layer_decay, **options
        )
        # The modules that encode or predict positions.
        others = nn.ModuleList(module for name, module in model.named_children() if name != "vit")
        return [*of_backbone, *param_groups_weight_decay(others, **options)]


def add_lora(model: OrderedViT, rank: int) -> None:
    """Add low-rank matrices (LoRA, arXiv 2106.09685), zero at first and with a scale of 1, to the layers' linear maps.

    Raises:
        UserError: if peft, which adds them, is not installed, or the rank is below 1.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("LoRA needs peft: pip install 'layershuffle[lora]'") from error
    if rank < 1:
        raise UserError(f"trainable.lora is the rank of the added matrices, at least 1, not {rank}")

    targets = []
    for name, module in model.vit.named_modules():
        if name.startswith("blocks.") and isinstance(module, nn.Linear):
            targets.append(name)
        # Some of timm's attention modules would use the weight of their linear map alone, and so leave out LoRA's
        # product. With this they call the map.
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = True

    # With this alpha the added product has the scale 1, so that its matrices alone say what to add.
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), model.vit)


def in_sequence(order: Order) -> bool:
    """Whether an order runs no layer before one that comes earlier in the model."""
    layers = [unit.layer for unit in order.units]
    return layers == sorted(layers)


def _parts_of(names: Iterable[str]) -> str:
    """The words that the names are made of, without the layers' numbers."""
    words: set[str] = set()
    for name in names:
        words.update(part for part in name.split(".") if not part.isdigit())
    return ", ".join(sorted(words))
