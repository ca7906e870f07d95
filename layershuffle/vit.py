"""A timm vision transformer that runs any execution order, with position encoding or position prediction.

timm is imported where it is used: it takes most of a second, which a command's --help needn't wait for.
"""

import inspect
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from layershuffle.checkpoints import read_backbone
from layershuffle.errors import UserError
from layershuffle.instancewise import OrderChoice, run_chosen
from layershuffle.named_orders import named
from layershuffle.orders import MAX_STEPS, Order, OrderLike, Step, Unit, sequential

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

Position = Literal["none", "encode", "predict"]
Head = Literal["average", "class"]


class Output(NamedTuple):
    """What a model returns.

    Attributes:
        logits: [batch, classes].
        position_logits: [steps, batch, positions] with position prediction, else None; entry p is what the
            layer that ran at position p said (the mean over the members of a parallel step).
    """

    logits: Tensor
    position_logits: Tensor | None = None


class PositionEncoding(nn.Module):
    """Tells a layer the position it holds (LayerShuffle-position, arXiv 2407.04513, section 3.2).

    One table of position vectors for the model, zero at first as in the authors' code, and one projection
    per layer: ``z + Dropout(GELU(Linear(LayerNorm(concat(z, e_p)))))`` for every token z. A layer's two halves, run
    apart, share its projection.
    """

    def __init__(self, depth: int, dim: int, positions: int, size: int = 32, dropout: float = 0.0) -> None:
        super().__init__()
        self.table = nn.Embedding(positions, size)
        nn.init.zeros_(self.table.weight)
        self.projections = nn.ModuleList(
            _Projection(nn.LayerNorm(dim + size), nn.Linear(dim + size, dim), nn.GELU(), nn.Dropout(dropout))
            for _ in range(depth)
        )

    def forward(self, tokens: Tensor, layer: int, position: int) -> Tensor:
        """tokens: [batch, tokens, dim], returned in the same shape with the position mixed in."""
        return self.projections[layer](tokens, self.table.weight[position])


class _Projection(nn.Sequential):
    """Takes the position as a vector, not as a number, which would be a constant of the compiled graph."""

    def forward(self, tokens: Tensor, vector: Tensor) -> Tensor:  # type: ignore[override]
        vectors = vector.to(tokens.dtype).expand(*tokens.shape[:-1], -1)
        return super().forward(torch.cat([tokens, vectors], dim=-1)) + tokens


class PositionPrediction(nn.Module):
    """Asks a layer which position it holds (LayerShuffle-predict, arXiv 2407.04513, section 3.3).

    One head per layer on the layer's output. The paper leaves the token axis open; like the authors' code
    this averages the tokens before the LayerNorm.
    """

    def __init__(self, depth: int, dim: int, positions: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_Head(nn.LayerNorm(dim), nn.Linear(dim, positions)) for _ in range(depth))

    def forward(self, tokens: Tensor, layer: int) -> Tensor:
        """tokens: [batch, tokens, dim], the layer's output. Returns [batch, positions]."""
        return self.heads[layer](tokens)


class _Head(nn.Sequential):
    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.mean(dim=1))


class OrderedViT(nn.Module):
    """A timm ``VisionTransformer`` whose layers run in the order that the call asks for.

    The timm model is the submodule ``vit``, unchanged: ``model.vit.state_dict()`` loads into plain timm and
    the other way round. ``forward`` is ``embed``, one ``run_step`` per step, ``classify``; whoever runs many
    orders calls those three and shares the steps that the orders have in common.

    Args:
        vit: the backbone.
        position: "none", "encode" (PositionEncoding) or "predict" (PositionPrediction).
        positions: how many positions can be told apart, by default as many as the own order has steps.
        head: how a distilled DeiT classifies: "average" of its two heads (timm, the DeiT paper), or the "class"
            token's head alone (the LayerShuffle authors' code). Other models have one head and ignore it.
        order: the model's own order, which it runs unless told otherwise: by default its layers in sequence.
        choices: orders from which each image takes one unless told otherwise (OrderChoice), if any.

    Raises:
        UserError: (a ValueError) if the model can't run the own order or one of the choices.
    """

    def __init__(
        self,
        vit: "VisionTransformer",
        position: Position = "none",
        positions: int | None = None,
        head: Head = "average",
        order: OrderLike | None = None,
        choices: Sequence[Order] | None = None,
    ) -> None:
        super().__init__()
        self.vit = vit
        self.depth = len(vit.blocks)
        self.order = sequential(self.depth) if order is None else Order(order)
        self.positions = positions or len(self.order)
        self.head = head
        self.encoding = PositionEncoding(self.depth, vit.embed_dim, self.positions) if position == "encode" else None
        self.prediction = (
            PositionPrediction(self.depth, vit.embed_dim, self.positions) if position == "predict" else None
        )
        self.choice = None if choices is None else OrderChoice(choices, vit.embed_dim)
        if self.choice and self.prediction:
            raise UserError("images that choose their order can't predict positions: use position none or encode")
        self.halves = dict(HALVES)
        self.config: dict[str, Any] = {}
        for own in (self.order, *(choices or ())):
            self.check(own)
        if head == "class" and hasattr(vit, "head_dist"):
            vit.head_dist.requires_grad_(False)

    def forward(self, images: Tensor, order: OrderLike | None = None) -> Output:
        """Classify normalised ``images`` [batch, channels, height, width], running the layers in ``order``.

        Without ``order`` the model's own runs, or each image in the order it chooses where the model has choices.

        Raises:
            UserError: (a ValueError) if the order names a layer that the model lacks, or is longer than the
                positions that it can encode or predict.
        """
        if order is None and self.choice:
            return run_chosen(self, self.choice, images)
        return self.run(self.embed(images), self.order if order is None else self.check(order))

    def compile(self, **options: Any) -> None:
        """Compile the layers in place, each by itself: whatever order runs, it runs the same few graphs.

        Layers of one shape share a graph, so there is one for training and one for evaluation, and another pair for
        every further batch size and precision. Parameters and their names stay as they are. Compiled whole, as
        ``torch.compile(model)`` does, a model has a graph for every order.

        Args:
            options: of ``torch.compile``, such as ``backend``.

        Raises:
            UserError: (a ValueError) if there is no C++ compiler, which torch.compile needs.
        """
        compiler = os.environ.get("CXX", "g++")
        if "backend" not in options and not (shutil.which(compiler) or shutil.which("clang++")):
            raise UserError("compiling needs a C++ compiler: install g++, or leave the layers uncompiled")
        # Images that choose their orders run in groups of all sizes.
        options = {"dynamic": None if self.choice else False} | options
        # Layers that differ, as in the rate of their stochastic depth, have graphs of their own; torch gives up at 8.
        dynamo: Any = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, 8 * (1 + self.depth))
        # It would split each layer of ViT-B in two, for an overlap that DDP has between layers anyway.
        dynamo.optimize_ddp = False
        projections = self.encoding.projections if self.encoding else ()
        heads = self.prediction.heads if self.prediction else ()
        for module in (*self.vit.blocks, *projections, *heads):
            module.compile(**options)
        self.halves = {half: torch.compile(run, **options) for half, run in HALVES.items()}

    def run(self, tokens: Tensor, order: Order) -> Output:
        """From embedded tokens [batch, tokens, dim] to the output, in an order that was checked."""
        position_logits = []
        for position, step in enumerate(order):
            tokens, step_logits = self.run_step(tokens, step, position)
            position_logits.append(step_logits)
        return self.classify(tokens, position_logits)

    def check(self, order: OrderLike) -> Order:
        """The order, or the one that a name of named_orders.NAMED means, if this model can run it; else a UserError."""
        from timm.models.vision_transformer import Block

        order = (named(order, self.order) if isinstance(order, str) else Order(order)).check(self.depth)
        if (self.encoding or self.prediction) and len(order) > self.positions:
            raise UserError(
                f"the order has {len(order)} steps, but the model knows only {self.positions} positions: "
                f"create it with positions={len(order)}"
            )
        if not isinstance(self.vit.blocks[0], Block) and any(unit.half for step in order for unit in step):
            raise UserError(
                f"the layers of this model ({type(self.vit.blocks[0]).__name__}) don't split into sublayers"
            )
        return order

    def embed(self, images: Tensor) -> Tensor:
        """Everything before the layers: [batch, channels, height, width] to [batch, tokens, dim]."""
        vit: Any = self.vit
        tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
        return tokens.contiguous()  # without a class token they are not, for which compiled layers would differ

    def run_step(self, tokens: Tensor, step: Step, position: int) -> tuple[Tensor, Tensor | None]:
        """Run one step that holds ``position``: the new tokens and, with prediction, [batch, positions] logits."""
        outputs = [self._run_unit(tokens, unit, position) for unit in step]
        logits = [self.prediction(out, unit.layer) for out, unit in zip(outputs, step)] if self.prediction else []
        return _mean(outputs), _mean(logits) if logits else None

    def classify(self, tokens: Tensor, position_logits: list[Tensor | None]) -> Output:
        """Everything after the layers; ``position_logits`` are those of the steps run, in sequence."""
        from timm.models.vision_transformer import VisionTransformer

        if self.vit.global_pool == "token":  # the others would be normalised for nothing
            tokens = tokens[:, : self.vit.num_prefix_tokens]
        tokens = self.vit.norm(tokens)
        if self.head == "class":
            logits = VisionTransformer.forward_head(self.vit, tokens)
        else:
            logits = self.vit.forward_head(tokens)
        predicted = [step_logits for step_logits in position_logits if step_logits is not None]
        return Output(logits, torch.stack(predicted) if predicted else None)

    def _run_unit(self, tokens: Tensor, unit: Unit, position: int) -> Tensor:
        block: Any = self.vit.blocks[unit.layer]
        if self.encoding:
            tokens = self.encoding(tokens, unit.layer, position)
        return self.halves[unit.half](block, tokens) if unit.half else block(tokens)


def _attention(block: Any, tokens: Tensor) -> Tensor:
    return tokens + block.drop_path1(block.ls1(block.attn(block.norm1(tokens))))


def _feed_forward(block: Any, tokens: Tensor) -> Tensor:
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))


HALVES: dict[str, Callable[[Any, Tensor], Tensor]] = {"a": _attention, "f": _feed_forward}
"""A layer's sublayers, by Unit.half."""


def _mean(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors).mean(dim=0)


def create_model(
    name: str,
    num_classes: int,
    position: Position = "none",
    pretrained: bool | str = False,
    *,
    positions: int | None = None,
    head: Head = "average",
    order: str | None = None,
    choices: Sequence[str] | None = None,
    norm_eps: float | None = None,
    **timm_args: Any,
) -> OrderedViT:
    """Create a timm vision transformer that runs any execution order.

    Args:
        name: a timm model, such as ``vit_base_patch16_224.orig_in21k_ft_in1k``.
        num_classes: the classes to tell apart. A pretrained head of another size is replaced by a new one.
        position: what the layers make of their position: "none", "encode" or "predict".
        pretrained: False for random weights, True for timm's (fetched from the Hugging Face hub), or a path to
            weights of the same backbone: a timm state dict (.pth, .safetensors) or a checkpoint of train.py. With
            ``depth`` among timm_args, the first so many of their layers.
        positions: the positions that can be told apart, by default one per step of the own order; more for orders
            with repeats.
        order: the model's own order, which it runs unless told otherwise: an order's text or a name such as
            ``cycle(6)``, see named_orders.NAMED. By default its layers in sequence.
        choices: orders in the same form, from which each image takes one unless told otherwise (arXiv 2103.03457).
        head: "average" or "class", for distilled models; see OrderedViT.
        norm_eps: the epsilon of the backbone's layer norms, by default timm's (1e-6).
        timm_args: anything that ``timm.create_model`` takes, such as ``img_size`` or ``drop_path_rate``.

    Raises:
        UserError: (a ValueError) if timm has no such model, it isn't a plain vision transformer, or the weights
            can't be fetched, can't be read, or belong to another backbone.
    """
    import timm
    from timm.models.vision_transformer import VisionTransformer

    config = {"name": name, "num_classes": num_classes, "position": position, "positions": positions}
    config |= {"head": head, "norm_eps": norm_eps, **timm_args}
    config |= {"order": order} if order else {}
    config |= {"choices": list(choices)} if choices is not None else {}
    if not timm.is_model(name):  # timm itself would look further, in folders and on the hub
        raise _unknown(name)
    depth = timm_args.get("depth")
    if depth is not None and depth < 1:
        raise UserError(f"a model has one layer or more, not {depth}")
    try:
        if isinstance(pretrained, str):
            weights = _first_layers(read_backbone(pretrained), depth, pretrained)
            timm_args["pretrained_cfg_overlay"] = _as_pretrained(weights, name, num_classes)
        elif pretrained and depth:
            whole = {key: value for key, value in timm_args.items() if key != "depth"}
            weights = timm.create_model(name, pretrained=True, num_classes=num_classes, **whole).state_dict()
            weights = _first_layers(weights, depth, f"the pretrained {name}")
            timm_args["pretrained_cfg_overlay"] = _as_pretrained(weights, name, num_classes)
        vit: Any = timm.create_model(name, pretrained=bool(pretrained), num_classes=num_classes, **timm_args)
    except Exception as error:
        raise _explained(error, name, pretrained) from error
    vit.pretrained_cfg.pop("state_dict", None)  # else the model keeps a second copy of its first weights
    if not isinstance(vit, VisionTransformer):
        raise UserError(f"{name} is a {type(vit).__name__}, not one of timm's VisionTransformer models")
    if not len(vit.blocks):
        raise UserError(f"{name} with these arguments has no layers")
    if norm_eps is not None:
        for module in vit.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = norm_eps
    own = named(order or "sequential", sequential(len(vit.blocks)))
    several = None if choices is None else [named(text, own) for text in choices]
    model = OrderedViT(vit, position, positions, head, own, several)
    model.config = config
    return model


def create_fitting(weights: Mapping[str, Tensor], **config: Any) -> OrderedViT:
    """The model that ``config`` describes, with these weights; that they fit is found out before memory is taken.

    Args:
        weights: the whole state dict of an OrderedViT.
        config: arguments of ``create_model``, whose file may name any numbers.

    Raises:
        UserError: (a ValueError) as ``create_model``, and for arguments that would read other files or fetch some.
        RuntimeError: if the weights don't fit.
    """
    from timm.models.vision_transformer import VisionTransformer

    if strange := config.keys() - _DESCRIBED - inspect.signature(VisionTransformer).parameters.keys():
        raise UserError(f"the model it names has {sorted(map(str, strange))[0][:200]}, which describes no model")
    layers = {int(found[1]) for key in weights if (found := re.match(r"vit\.blocks\.([0-9]{1,4})\.", key))}
    depth, positions = config.get("depth"), config.get("positions")
    if depth is not None and depth != len(layers):
        raise RuntimeError(f"there are weights of {len(layers)} layers, not of {depth}")
    if positions is not None and not 0 < positions <= MAX_STEPS:
        raise RuntimeError(f"{positions} are no positions")
    with torch.device("meta"):  # shapes without values
        shapes = {name: value.shape for name, value in create_model(**config).state_dict().items()}
    if wrong := sorted(name for name in shapes.keys() | weights.keys() if shapes.get(name) != _shape(weights, name)):
        raise RuntimeError(f"{len(wrong)} of them differ in name or shape, such as {wrong[0][:200]}")
    model = create_model(**config)
    model.load_state_dict(weights)
    return model


_DESCRIBED = {"name", "num_classes", "position", "positions", "head", "norm_eps", "order", "choices"}
"""What describes a model, besides the arguments of timm's class."""


def _shape(weights: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return weights[name].shape if isinstance(weights.get(name), Tensor) else None


def _first_layers(weights: dict[str, Tensor], depth: int | None, source: str) -> dict[str, Tensor]:
    """What a model of ``depth`` layers takes of a deeper one's weights; all of them if no depth is asked for."""
    layers = {key: int(found[1]) for key in weights if (found := re.match(r"blocks\.([0-9]+)\.", key))}
    count = 1 + max(layers.values(), default=-1)
    if depth and count < depth:
        raise UserError(f"{source} has only {count} layers: a model of depth {depth} can't start from it")
    return {key: value for key, value in weights.items() if depth is None or layers.get(key, -1) < depth}


def _as_pretrained(weights: dict[str, Tensor], name: str, num_classes: int) -> dict[str, Any]:
    """What makes timm load these weights, all of them or none, with a new head where it has other classes.

    timm gives up its check that every weight fits once it replaces the head, so the new head is put in here.
    """
    import timm

    patches = weights.get("patch_embed.proj.weight")
    if patches is None or patches.ndim != 4:
        raise KeyError("patch_embed.proj.weight")
    dim, channels = patches.shape[:2]
    known = timm.get_pretrained_cfg(name)
    classifiers = (known and known.classifier) or "head"
    for head in (classifiers,) if isinstance(classifiers, str) else classifiers:
        if len(weights.get(f"{head}.weight", ())) != num_classes:
            weights[f"{head}.weight"] = nn.init.trunc_normal_(torch.empty(num_classes, dim), std=0.02)
            weights[f"{head}.bias"] = torch.zeros(num_classes)
    overlay = {"state_dict": weights, "custom_load": False, "num_classes": num_classes}
    return overlay | ({"input_size": (channels, *known.input_size[1:])} if known else {})


def _unknown(name: str) -> UserError:
    return UserError(f"timm has no model named {name}: timm.list_models('vit*') lists those it has")


def _explained(error: Exception, name: str, pretrained: bool | str) -> Exception:
    """The error of ``timm.create_model`` as a sentence for whoever can do something about it."""
    if isinstance(error, UserError):
        return error
    text = str(error).strip().splitlines()
    if "Invalid pretrained tag" in str(error):
        return _unknown(name)
    if isinstance(pretrained, str) and isinstance(error, (RuntimeError, KeyError)):
        return UserError(f"{pretrained} holds weights of another backbone than {name}: {text[-1].strip()}")
    network = type(error).__module__.partition(".")[0] in (
        "httpx",
        "httpcore",
        "huggingface_hub",
        "requests",
        "urllib3",
    )
    if network or isinstance(error, OSError):
        return UserError(
            f"the pretrained weights of {name} could not be fetched ({type(error).__name__}): without a network, "
            "download them elsewhere and give their path (train.py --model.pretrained, evaluate.py --pretrained)"
        )
    return UserError(f"{name} can't be created with these arguments: {text[-1] if text else type(error).__name__}")
