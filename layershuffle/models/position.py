"""The two ways in which layers use their position in the order: encoding it and predicting it."""

from typing import Literal

import torch
from torch import Tensor, nn

Position = Literal["none", "encode", "predict"]


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
    """Takes the position as a vector, because a number would be compiled into the graph as a constant."""

    def forward(self, tokens: Tensor, vector: Tensor) -> Tensor:  # type: ignore[override]
        vectors = vector.to(tokens.dtype).expand(*tokens.shape[:-1], -1)
        return super().forward(torch.cat([tokens, vectors], dim=-1)) + tokens


class PositionPrediction(nn.Module):
    """Asks a layer which position it holds (LayerShuffle-predict, arXiv 2407.04513, section 3.3).

    One head per layer, on the layer's output. The paper doesn't say how tokens are combined; as in the authors' code,
    they are averaged before the LayerNorm.
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
