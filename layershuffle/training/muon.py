"""The optimizer Muon for the matrices of the layers, with AdamW for all else."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from timm.optim.muon import get_lr_scale, zeropower_via_newtonschulz
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

COEFFICIENTS = [(3.4445, -4.7750, 2.0315)]
"""Those of the Newton-Schulz iteration, from https://kellerjordan.github.io/posts/muon/."""


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
        matrices = []
        for group in self.param_groups:
            for name, parameter in zip(group["param_names"], group["params"]):
                if "blocks." in name and parameter.ndim == 2 and parameter.grad is not None:
                    matrices.append((group, parameter, 3 if name.endswith("qkv.weight") else 1, parameter.grad))
                    parameter.grad = None  # so that AdamW leaves it as it is
        super().step()
        updates = [self._update(parameter, gradient).chunk(count) for _, parameter, count, gradient in matrices]
        made = iter(orthogonal([part for parts in updates for part in parts]))
        for (group, parameter, count, gradient), parts in zip(matrices, updates):
            parameter.grad = gradient
            update = torch.cat(list(islice(made, count)))
            if isinstance(parameter, DTensor):  # Every process has made all of it, and takes its own part.
                update = distribute_tensor(update, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * get_lr_scale(parts[0].shape, "match_rms_adamw"))
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """What is to be made orthogonal: Nesterov's momentum, whole even where the parameter is sharded."""
        state = self.state[parameter]
        if not state:  # AdamW expects a step in every state that it loads.
            state |= {"step": torch.zeros((), device=parameter.device), "momentum_buffer": torch.zeros_like(gradient)}
        state["step"] += 1
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - self.momentum)
        update = gradient.lerp(momentum, self.momentum)
        return update.full_tensor() if isinstance(update, DTensor) else update


def orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Matrices with the same singular vectors and with singular values near 1, by five Newton-Schulz iterations.

    Those of one shape, or of its transpose, are computed together, which takes a fraction of the time where they are
    small. GPUs compute in bfloat16.

    matrices: float, two dimensions each. Returns them in the same sequence and shapes.
    """
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT for matrix in matrices]
    alike: dict[torch.Size, list[int]] = defaultdict(list)
    for index, matrix in enumerate(wide):
        alike[matrix.shape].append(index)
    made: dict[int, Tensor] = {}
    for same in alike.values():
        stacked = torch.stack([wide[index] for index in same])
        dtype = torch.bfloat16 if stacked.is_cuda else torch.float32  # Many CPUs are slow with bfloat16.
        made |= zip(same, zeropower_via_newtonschulz(stacked, 5, COEFFICIENTS, dtype=dtype))
    return [
        made[index] if matrix.shape == wide[index].shape else made[index].mT for index, matrix in enumerate(matrices)
    ]
