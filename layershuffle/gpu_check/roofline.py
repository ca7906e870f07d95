"""How fast a GPU can be with a ViT in bf16: the FLOPs and bytes of every kernel, and the time that follows.

A kernel takes at least the time of its arithmetic, and at least the time in which its bytes pass to and from the GPU's
memory. The longer of both is its time in the roofline model (Williams et al. 2009, doi 10.1145/1498765.1498785).

The kernels are those that torch.compile makes of a layer for a Hopper GPU, flash attention, and what runs uncompiled
around the layers. Weights and the residual stream are float32, and all that enters a matrix product is bf16.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

PRODUCTS = "matrix products"
ATTENTION = "attention"
NORMS = "norms and residuals"
GELU = "GELU"
BIASES = "bias gradients"
STACK = "stacking of the gradients of q, k and v"
CASTS = "casts between float32 and bf16"
AROUND = "embedding, head and loss"
ADAM = "Adam"
KINDS = (PRODUCTS, ATTENTION, NORMS, GELU, BIASES, STACK, CASTS, AROUND, ADAM)

When = Literal["forward", "backward", "update"]


@dataclass(frozen=True)
class Shape:
    """A ViT and its batch; by default ViT-B/16 at 224 pixels with ten classes.

    Attributes:
        batch: the number of images.
        tokens: how many tokens an image has, with the class token.
        width: how many features a token has.
        hidden: how many hidden units a feed-forward network has.
        depth: the number of layers.
        patches: how many patches an image has.
        patch_values: how many values a patch has, over its pixels and channels.
        classes: the number of classes.
        stream_bytes: the bytes of a number of the residual stream; 4 for float32.
    """

    batch: int = 128
    tokens: int = 197
    width: int = 768
    hidden: int = 3072
    depth: int = 12
    patches: int = 196
    patch_values: int = 768
    classes: int = 10
    stream_bytes: int = 4

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the linear maps of a layer."""
        attention = [(self.width, 3 * self.width), (self.width, self.width)]
        return [*attention, (self.width, self.hidden), (self.hidden, self.width)]

    @property
    def parameters(self) -> int:
        """How many parameters the model has."""
        weights = sum(inputs * outputs + outputs for inputs, outputs in self.linears)
        layers = self.depth * (weights + 4 * self.width)
        # The patch embedding, the class token, the position embeddings, the last norm and the head.
        around = self.patch_values + 1 + 1 + self.tokens + 2 + self.classes
        return layers + around * self.width + self.classes


@dataclass(frozen=True)
class Kernel:
    """A kernel, or a few that do one thing.

    Attributes:
        kind: one of KINDS.
        when: in which part of a training step it runs.
        bytes: how much it reads and writes.
        flops: its arithmetic if it is a matrix product or an attention. That of other kernels takes no time beside
            their bytes, and counts as 0.
        launches: how many kernels these are.
        times: how often a step runs it.
    """

    kind: str
    when: When
    bytes: float
    flops: float = 0.0
    launches: int = 1
    times: int = 1


@dataclass(frozen=True)
class Gpu:
    """What a GPU can do at most: FLOP/s of matrix products in bf16, and bytes/s of its memory."""

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Case:
    """How close kernels come to what the GPU can do at most.

    Attributes:
        products: FLOP/s of the matrix products, as a share of the GPU's.
        attention: FLOP/s of the attention, likewise.
        memory: bytes/s of kernels that memory limits, as a share of the GPU's.
        gap: the seconds between one kernel and the next.
    """

    products: float
    attention: float
    memory: float
    gap: float


LIMIT = Case(products=1, attention=1, memory=1, gap=0)
LIKELY = Case(products=0.9, attention=0.2, memory=0.875, gap=1e-6)
CAUTIOUS = Case(products=0.8, attention=0.15, memory=0.83, gap=2e-6)


@dataclass(frozen=True)
class Estimate:
    """What follows for a training step or a forward pass.

    Attributes:
        seconds: how long it takes.
        images_per_second: the batch over that time.
        share: its FLOP/s as a share of the GPU's.
    """

    seconds: float
    images_per_second: float
    share: float


def estimate(kernels: Iterable[Kernel], batch: int, gpu: Gpu, case: Case) -> Estimate:
    """How fast kernels run one after the other.

    Args:
        kernels: those of a training step or of a forward pass, for a batch.
        batch: the number of images in it.
        gpu: where they run.
        case: how well they run.
    """
    took = 0.0
    flops = 0.0
    for kernel in kernels:
        took += seconds(kernel, gpu, case)
        flops += kernel.times * kernel.flops
    return Estimate(took, batch / took, flops / took / gpu.flops)


def seconds(kernel: Kernel, gpu: Gpu, case: Case) -> float:
    """How long a kernel takes, all its runs in a step together."""
    share = case.attention if kernel.kind == ATTENTION else case.products
    arithmetic = kernel.flops / (gpu.flops * share)
    memory = kernel.bytes / (gpu.bandwidth * case.memory)
    return kernel.times * (max(arithmetic, memory) + kernel.launches * case.gap)


def forward_kernels(shape: Shape) -> list[Kernel]:
    """The kernels of a forward pass."""
    return [kernel for kernel in step_kernels(shape) if kernel.when == "forward"]


def step_kernels(shape: Shape) -> list[Kernel]:
    """The kernels of a training step: forward, backward and update."""
    # Adam reads weights, gradients and two moments, and writes all but the gradients, in float32.
    adam = Kernel(ADAM, "update", bytes=7 * 4 * shape.parameters, launches=2)
    layers = [*_layer_forward(shape), *_layer_backward(shape)]
    return [*_around(shape), *layers, adam]


def _layer_forward(shape: Shape) -> list[Kernel]:
    """What a layer runs in the forward pass."""
    rows = shape.batch * shape.tokens
    # The bytes of all tokens: in the residual stream, in bf16, and with the hidden units in bf16.
    stream = shape.stream_bytes * rows * shape.width
    state = 2 * rows * shape.width
    hidden = 2 * rows * shape.hidden

    kernels = []
    for inputs, outputs in shape.linears:
        # The weight and the bias are cast from float32 to bf16.
        kernels.append(Kernel(CASTS, "forward", bytes=(4 + 2) * inputs * outputs, launches=2, times=shape.depth))
        kernels.append(_product("forward", rows, inputs, outputs, times=shape.depth))

    # Attention reads queries, keys and values, and multiplies twice.
    flops = 4 * shape.batch * shape.tokens**2 * shape.width
    kernels.append(Kernel(ATTENTION, "forward", bytes=4 * state, flops=flops, times=shape.depth))
    # The first norm, the residual with the second norm, and the other residual, which adds both changes.
    kernels.append(Kernel(NORMS, "forward", bytes=stream + state, times=shape.depth))
    kernels.append(Kernel(NORMS, "forward", bytes=stream + 2 * state, times=shape.depth))
    kernels.append(Kernel(NORMS, "forward", bytes=2 * stream + 2 * state, times=shape.depth))
    kernels.append(Kernel(GELU, "forward", bytes=2 * hidden, times=shape.depth))
    return kernels


def _layer_backward(shape: Shape) -> list[Kernel]:
    """What a layer runs in the backward pass."""
    rows = shape.batch * shape.tokens
    # See ``_layer_forward``.
    stream = shape.stream_bytes * rows * shape.width
    state = 2 * rows * shape.width
    hidden = 2 * rows * shape.hidden

    kernels = [Kernel(CASTS, "backward", bytes=stream + state, times=shape.depth)]
    for inputs, outputs in shape.linears:
        # The gradients of the inputs and of the weight. That of the weight is cast to float32.
        kernels.append(_product("backward", rows, outputs, inputs, times=shape.depth))
        kernels.append(_product("backward", outputs, rows, inputs, times=shape.depth))
        kernels.append(Kernel(CASTS, "backward", bytes=(4 + 2) * inputs * outputs, times=shape.depth))
        # The gradient of the bias is summed in two steps.
        kernels.append(Kernel(BIASES, "backward", bytes=2 * rows * outputs, launches=2, times=shape.depth))

    # Attention multiplies five times. Before it, a kernel reads two states; after it, one turns the sum of the queries'
    # gradients into bf16. This sum is float32. It is set to zero, read and written, and read again.
    flops = 10 * shape.batch * shape.tokens**2 * shape.width
    size = (2 + 5 + 3) * state + 4 * 2 * state
    kernels.append(Kernel(ATTENTION, "backward", bytes=size, flops=flops, launches=3, times=shape.depth))
    kernels.append(Kernel(STACK, "backward", bytes=6 * state, times=shape.depth))
    # The second norm, the first norm, and the sums over tokens for the parameters of both.
    kernels.append(Kernel(NORMS, "backward", bytes=3 * stream + 3 * state, times=shape.depth))
    kernels.append(Kernel(NORMS, "backward", bytes=3 * stream + state, times=shape.depth))
    kernels.append(Kernel(NORMS, "backward", bytes=stream + 3 * state, launches=5, times=shape.depth))
    kernels.append(Kernel(GELU, "backward", bytes=3 * hidden, times=shape.depth))
    return kernels


def _around(shape: Shape) -> list[Kernel]:
    """What runs around the layers. The last norm, the head and the loss read the class token alone."""
    rows = shape.batch * shape.patches
    values = rows * shape.patch_values
    stream = shape.stream_bytes * shape.batch * shape.tokens * shape.width
    state = 2 * rows * shape.width

    embedding = (rows, shape.patch_values, shape.width)
    head = (shape.batch, shape.width, shape.classes)
    return [
        Kernel(AROUND, "forward", bytes=(4 + 2) * values, launches=4),
        _product("forward", *embedding, kind=AROUND),
        # The class token comes before the others, and the position embeddings are added.
        Kernel(AROUND, "forward", bytes=3 * stream + state, launches=3),
        _product("forward", *head, kind=AROUND, launches=9),
        _product("backward", *head, kind=AROUND, launches=8),
        _product("backward", *head, kind=AROUND, launches=4),
        # The gradient of all tokens but one is zero. It is summed for the position embeddings in the end.
        Kernel(AROUND, "backward", bytes=3 * stream + 4 * state, launches=8),
        # The images need no gradient.
        _product("backward", *embedding, kind=AROUND, launches=3),
    ]


def _product(
    when: When, rows: int, inner: int, columns: int, times: int = 1, kind: str = PRODUCTS, launches: int = 1
) -> Kernel:
    """The product of two matrices [rows, inner] and [inner, columns] in bf16."""
    numbers = rows * inner + inner * columns + rows * columns
    return Kernel(kind, when, 2 * numbers, 2.0 * rows * inner * columns, launches, times)
