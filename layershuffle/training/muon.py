"""The optimizer Muon for the matrices of the layers, with AdamW for all else."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim.muon import get_lr_scale, zeropower_via_newtonschulz
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

COEFFICIENTS = [(3.4445, -4.7750, 2.0315)]
"""Those of the Newton-Schulz iteration, from https://kellerjordan.github.io/posts/muon/."""


@dataclass(frozen=True)
class _Matrix:
    """A parameter that Muon updates.

    Attributes:
        group: the optimizer's group that it is in.
        parameter: the parameter, of two dimensions.
        gradient: its gradient.
        parts: of how many matrices it consists, one above the other.
    """

    group: dict[str, Any]
    parameter: nn.Parameter
    gradient: Tensor
    parts: int


class Muon(torch.optim.AdamW):
    """AdamW, but the layers' matrices are updated with their momentum made orthogonal.

    The query, key and value of a layer, which timm keeps in one matrix, are three. The updates are scaled as in arXiv
    2502.16982, section 2.2, so that one learning rate and one weight decay serve for all parameters.

    Args:
        params: the parameters with their names, as ``named_parameters()`` gives them. Those with ``blocks.`` in their
            names and two dimensions are the layers' matrices.
        lr: the learning rate.
        momentum: the factor of the momentum, which is Nesterov's.
        kwargs: further arguments of AdamW.

    Raises:
        ValueError: if the parameters have no names.
    """

    def __init__(self, params: Any, lr: float = 1e-3, momentum: float = 0.95, **kwargs: Any) -> None:
        super().__init__(params, lr=lr, **kwargs)
        if "param_names" not in self.param_groups[0]:
            raise ValueError("Muon tells the layers' matrices by their names: give it model.named_parameters()")
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have gradients. Returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        # AdamW leaves parameters without gradients as they are, so it updates all but the matrices.
        matrices = self._matrices()
        for matrix in matrices:
            matrix.parameter.grad = None
        super().step()
        for matrix in matrices:
            matrix.parameter.grad = matrix.gradient

        self._update(matrices)
        return loss

    def _matrices(self) -> list[_Matrix]:
        """The layers' matrices that have gradients."""
        matrices = []
        for group in self.param_groups:
            for name, parameter in zip(group["param_names"], group["params"]):
                if "blocks." in name and parameter.ndim == 2 and parameter.grad is not None:
                    parts = 3 if name.endswith("qkv.weight") else 1
                    matrices.append(_Matrix(group, parameter, parameter.grad, parts))
        return matrices

    def _update(self, matrices: Sequence[_Matrix]) -> None:
        """Make all updates orthogonal at once, which is faster than one by one, and apply them."""
        # Query, key and value are three directions, though timm keeps them in one matrix.
        momenta: list[Tensor] = []
        for matrix in matrices:
            momenta += self._momentum(matrix).chunk(matrix.parts)
        directions = orthogonal(momenta)

        first = 0
        for matrix in matrices:
            parts = directions[first : first + matrix.parts]
            first += matrix.parts
            direction = torch.cat(parts)
            if isinstance(matrix.parameter, DTensor):
                # Every process has computed all of it, and takes its own part.
                parameter = matrix.parameter
                direction = distribute_tensor(
                    direction, parameter.device_mesh, parameter.placements, src_data_rank=None
                )

            # Decay apart from the gradient, as in AdamW, and an update that is as large as AdamW's.
            lr = matrix.group["lr"]
            matrix.parameter.mul_(1 - lr * matrix.group["weight_decay"])
            matrix.parameter.add_(direction, alpha=-lr * get_lr_scale(parts[0].shape, "match_rms_adamw"))

    def _momentum(self, matrix: _Matrix) -> Tensor:
        """Nesterov's momentum of a matrix, whole even where the parameter is sharded."""
        state = self.state[matrix.parameter]
        if not state:
            # AdamW expects a step in every state that it loads.
            state["step"] = torch.zeros((), device=matrix.parameter.device)
            state["momentum_buffer"] = torch.zeros_like(matrix.gradient)
        state["step"] += 1
        momentum = state["momentum_buffer"].lerp_(matrix.gradient, 1 - self.momentum)
        nesterov = matrix.gradient.lerp(momentum, self.momentum)
        return nesterov.full_tensor() if isinstance(nesterov, DTensor) else nesterov


def orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Matrices with the same singular vectors and with singular values near 1, by five Newton-Schulz iterations.

    Those of one shape, or of its transpose, are computed together, which takes a fraction of the time where they are
    small. GPUs compute in bfloat16.

    matrices: float, two dimensions each. Returns them in the same sequence and shapes.
    """
    # A matrix and its transpose have the same singular values, so tall ones can share a stack with wide ones.
    is_tall = [matrix.shape[0] > matrix.shape[1] for matrix in matrices]
    wide = [matrix.mT if tall else matrix for matrix, tall in zip(matrices, is_tall)]

    indices_of_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for index, matrix in enumerate(wide):
        indices_of_shape[matrix.shape].append(index)

    # The results by the index of their matrices, because the stacks are in another sequence.
    results: dict[int, Tensor] = {}
    for indices in indices_of_shape.values():
        stack = torch.stack([wide[index] for index in indices])
        # Many CPUs are slow with bfloat16.
        dtype = torch.bfloat16 if stack.is_cuda else torch.float32
        orthogonal_stack = zeropower_via_newtonschulz(stack, 5, COEFFICIENTS, dtype=dtype)
        results.update(zip(indices, orthogonal_stack))

    in_sequence = [results[index] for index in range(len(matrices))]
    return [result.mT if tall else result for result, tall in zip(in_sequence, is_tall)]
