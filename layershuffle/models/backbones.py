"""The families of timm models that can run any order. This is the only module that knows how they are built.

To support another family, subclass ``Backbone`` and enter the class in ``FAMILIES``, as in docs/guides/extend.md.
timm is imported when a model is made: that takes most of a second, for which a command's --help should not wait.
"""

from collections.abc import Callable, Set
from contextlib import nullcontext
from pkgutil import resolve_name
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from layershuffle.errors import UserError
from layershuffle.models.layers import LAYER_ROWS
from layershuffle.orders.order import Unit
from layershuffle.private_apis import embed_patches

Head = Literal["average", "class"]


class State(NamedTuple):
    """What one layer hands to the next.

    Attributes:
        tokens: [batch, tokens, dim].
        context: what else the layers read and don't change, such as rotary position embeddings, or None. Its first
            dimension is the batch, or 1 if all images share it.
    """

    tokens: Tensor
    context: Tensor | None = None

    def of(self, images: Tensor) -> "State":
        """The state of some of the images, by their indices in the batch, int64 [images]."""
        if self.context is None or len(self.context) == 1:
            return State(self.tokens[images], self.context)
        return State(self.tokens[images], self.context[images])


Run = Callable[[Any, Tensor, Tensor | None], Tensor]
"""Runs a block, or half of it: (block, tokens, context) -> tokens."""


class Backbone:
    """What the package needs to know about a family of timm models. Subclasses override what differs in theirs.

    Args:
        vit: the timm model. Its layers are the modules of ``vit.blocks``.
        head: which of two classifiers a distilled model uses, see ``create_model``.

    Attributes:
        halves_of: the attention half "a" and the feed-forward half "f" of a layer, by the name of the block's class.
            They are functions, not methods, so that all layers share one compiled graph. Other blocks don't split.
        parts: the modules and parameters of a block that belong to each half.
        ignores_second_head: whether the model has a second classifier, of a distilled DeiT, that isn't used.
    """

    halves_of: ClassVar[dict[str, dict[str, Run]]] = {}
    parts: ClassVar = {"a": ("norm1", "attn", "ls1", "gamma_1"), "f": ("norm2", "mlp", "ls2", "gamma_2")}
    ignores_second_head = False

    def __init__(self, vit: nn.Module, head: Head = "average") -> None:
        self.vit: Any = vit
        self.layers: nn.ModuleList = vit.blocks  # type: ignore[assignment]
        if not len(self.layers):
            raise UserError("a model with these arguments has no layers")
        self.block_name = type(self.layers[0]).__name__
        self.halves = self.halves_of.get(self.block_name, {})

    def embed(self, images: Tensor) -> State:
        """Everything before the layers, for images [batch, channels, height, width]."""
        raise NotImplementedError

    def run(self, block: Any, tokens: Tensor, context: Tensor | None) -> Tensor:
        """Run a whole block. tokens: [batch, tokens, dim], returned in the same shape."""
        return block(tokens)

    def context_of(self, layer: int, context: Tensor | None) -> Tensor | None:
        """The part of ``State.context`` that this layer reads."""
        return context

    def classify(self, tokens: Tensor) -> Tensor:
        """Everything after the layers. Returns logits [batch, classes]."""
        # With "token" the head reads the prefix tokens alone, so the others need not be normalised.
        if self.vit.global_pool == "token":
            tokens = tokens[:, : self.vit.num_prefix_tokens]
        return self.vit.forward_head(self.vit.norm(tokens))

    def features(self, tokens: Tensor) -> Tensor:
        """What the classifier reads of the tokens after the last layer: [batch, dim]."""
        return self.vit.forward_head(self.vit.norm(tokens), pre_logits=True)

    @property
    def summary(self) -> str:
        """What ``summarise`` returns: the "class token", or the "mean of the patch tokens"."""
        return "class token" if self.vit.global_pool == "token" else "mean of the patch tokens"

    def summarise(self, tokens: Tensor) -> Tensor:
        """What stands for the whole image among ``tokens`` [..., tokens, dim]: returns [..., dim].

        It is the class token where the head reads that, and otherwise the mean of the patch tokens, which average
        pooling reads.
        """
        if self.vit.global_pool == "token":
            return tokens[..., 0, :]
        return tokens[..., self.vit.num_prefix_tokens :, :].mean(dim=-2)

    @property
    def dim(self) -> int:
        """The width of the tokens."""
        return self.vit.embed_dim

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images, in pixels."""
        # The first convolution reads the image. In hybrid models it isn't the projection to patches, but belongs to a
        # convolutional network that comes before it.
        first = next(module for module in self.vit.patch_embed.modules() if isinstance(module, nn.Conv2d))
        return first.in_channels, *self.vit.patch_embed.img_size

    @property
    def patch_grid(self) -> tuple[int, int]:
        """How many rows and columns of patches an image has."""
        rows, columns = self.vit.patch_embed.grid_size
        return rows, columns

    @property
    def unseen_pixels(self) -> tuple[int, int]:
        """How many rows of pixels at the bottom and columns at the right of an image belong to no patch."""
        embedding = self.vit.patch_embed
        # In hybrid models a convolutional network reads the image, and the patches are cut from what it returns.
        if not isinstance(embedding.proj, nn.Conv2d) or embedding.proj.in_channels != self.image_shape[0]:
            return 0, 0
        height, width = embedding.img_size
        patch_height, patch_width = embedding.patch_size
        return height % patch_height, width % patch_width

    def unused_parameters(self, units: Set[Unit]) -> list[nn.Parameter]:
        """The parameters of the layers that none of ``units`` runs."""
        unused = []
        for layer, block in enumerate(self.layers):
            for name, parameter in block.named_parameters():
                # A whole layer uses all of its parameters. One that belongs to neither half isn't used by a half.
                is_used = Unit(layer) in units or Unit(layer, self._half_of(name)) in units
                if not is_used:
                    unused.append(parameter)

        # A parameter outside the blocks that has a part for the attention of each layer is used by any attention.
        is_without_attention = all(unit.half == "f" for unit in units)
        if is_without_attention:
            unused += [parameter for name, parameter in self.vit.named_parameters() if name in LAYER_ROWS]
        return unused

    def _half_of(self, name: str) -> str:
        """The half of a block that a parameter of this name belongs to, or "" if it belongs to neither."""
        part = name.split(".")[0]
        for half, parts in self.parts.items():
            if part in parts:
                return half
        return ""


def _vit_attention(block: Any, tokens: Tensor, context: Tensor | None) -> Tensor:
    return tokens + block.drop_path1(block.ls1(block.attn(block.norm1(tokens))))


def _vit_feed_forward(block: Any, tokens: Tensor, context: Tensor | None) -> Tensor:
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))


class ViT(Backbone):
    """timm's VisionTransformer: ViT, DeiT, CLIP, SigLIP, DINOv2 and others."""

    halves_of: ClassVar = {"Block": {"a": _vit_attention, "f": _vit_feed_forward}}

    def __init__(self, vit: nn.Module, head: Head = "average") -> None:
        super().__init__(vit, head)
        self.ignores_second_head = head == "class" and hasattr(vit, "head_dist")
        # DDP would wait for gradients of the head that isn't used, which never come.
        if self.ignores_second_head:
            self.vit.head_dist.requires_grad_(False)

    def embed(self, images: Tensor) -> State:
        vit = self.vit
        tokens = embed_patches(vit, vit.patch_embed(images))
        return State(vit.norm_pre(vit.patch_drop(tokens)))

    def classify(self, tokens: Tensor) -> Tensor:
        if not self.ignores_second_head:
            return super().classify(tokens)
        from timm.models.vision_transformer import VisionTransformer

        # The distilled model's own method returns the mean of both heads. That of its base class uses the first alone.
        tokens = self.vit.norm(tokens[:, : self.vit.num_prefix_tokens])
        return VisionTransformer.forward_head(self.vit, tokens)

    def features(self, tokens: Tensor) -> Tensor:
        if not self.ignores_second_head:
            return super().features(tokens)
        from timm.models.vision_transformer import VisionTransformer

        return VisionTransformer.forward_head(self.vit, self.vit.norm(tokens), pre_logits=True)


def _eva_attention(block: Any, tokens: Tensor, rope: Tensor | None) -> Tensor:
    change = block.attn(block.norm1(tokens), rope=rope)
    if block.gamma_1 is not None:
        change = block.gamma_1 * change
    return tokens + block.drop_path1(change)


def _eva_feed_forward(block: Any, tokens: Tensor, rope: Tensor | None) -> Tensor:
    change = block.mlp(block.norm2(tokens))
    if block.gamma_2 is not None:
        change = block.gamma_2 * change
    return tokens + block.drop_path2(change)


def _eva_attention_post_norm(block: Any, tokens: Tensor, rope: Tensor | None) -> Tensor:
    return tokens + block.drop_path1(block.norm1(block.attn(tokens, rope=rope)))


def _eva_feed_forward_post_norm(block: Any, tokens: Tensor, rope: Tensor | None) -> Tensor:
    return tokens + block.drop_path2(block.norm2(block.mlp(tokens)))


class Eva(Backbone):
    """timm's Eva: EVA, EVA-02, DINOv3, Perception Encoder, ViTs with rotary position embeddings (RoPE) and others.

    The rotary embeddings are computed once per forward pass. "Mixed" ones (arXiv 2403.13298) are learned for each
    layer. They belong to the layer, as its weights do, and go with it to any position.
    """

    halves_of: ClassVar = {
        "EvaBlock": {"a": _eva_attention, "f": _eva_feed_forward},
        "EvaBlockPostNorm": {"a": _eva_attention_post_norm, "f": _eva_feed_forward_post_norm},
    }

    def embed(self, images: Tensor) -> State:
        patches = self.vit.patch_embed(images)
        # DINOv3's rotary embeddings are made anew for every batch, in training with random changes. timm makes them on
        # torch's default device, which is the CPU, and copying them to a GPU would make the host wait for it.
        with patches.device if patches.is_cuda else nullcontext():
            tokens, rope = embed_patches(self.vit, patches)
        return State(self.vit.norm_pre(tokens), self._batch_first(rope))

    def _batch_first(self, rope: Tensor | None) -> Tensor | None:
        """timm's rotary embeddings with a batch dimension in front, which is 1 where all images share them.

        Dropped patches differ between images, so that timm's embeddings then have a batch dimension of their own.
        """
        if rope is None:
            return None
        if self.vit.rope_mixed:
            # [depth, heads, patches, size], or with dropped patches [depth, batch, heads, patches, size].
            is_shared = rope.ndim == 4
            return rope[None] if is_shared else rope.transpose(0, 1)
        # [patches, size], or with dropped patches [batch, 1, patches, size].
        is_shared = rope.ndim == 2
        return rope[None, None] if is_shared else rope

    def run(self, block: Any, tokens: Tensor, rope: Tensor | None) -> Tensor:
        return block(tokens, rope=rope)

    def context_of(self, layer: int, rope: Tensor | None) -> Tensor | None:
        if rope is None or not self.vit.rope_mixed:
            return rope
        return rope[:, layer]


FAMILIES: dict[str, type[Backbone]] = {
    "timm.models.vision_transformer.VisionTransformer": ViT,
    "timm.models.eva.Eva": Eva,
}
"""The supported families, by the class of timm's model."""


def backbone_of(vit: nn.Module, head: Head = "average") -> Backbone:
    """The backbone of a timm model; raises UserError if its class is none of FAMILIES."""
    for path, family in FAMILIES.items():
        if isinstance(vit, resolve_name(path)):
            return family(vit, head)
    known = " and ".join(path.rpartition(".")[2] for path in FAMILIES)
    raise UserError(
        f"timm's {type(vit).__name__} can't run its layers in any order: the supported families are {known}"
    )
