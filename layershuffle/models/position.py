"""The two ways in which layers use their position in the order: encoding it and predicting it."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from layershuffle.errors import UserError

Position = Literal["none", "encode", "predict"]
PositionTable = Literal["shared", "per_layer"]


class PositionEncoding(nn.Module):
    """Tells a layer the position it holds (LayerShuffle-position, arXiv 2407.04513, section 3.2).

    A table of position vectors, zero at first as in the authors' code, and one projection per layer:
    ``z + Dropout(GELU(Linear(LayerNorm(concat(z, e_p)))))`` for every token z. A layer's two halves, run apart, share
    its projection. The paper leaves open how the projections start: here as torch's linear layers do, with uniform
    weights and biases, and in the authors' code as those of Hugging Face's ViT, with normal weights and zero biases.

    Args:
        depth: the number of layers.
        dim: the width of the tokens.
        positions: the number of positions.
        size: the width of the position vectors; 32 in the authors' code.
        dropout: the probability of dropout; 0 in the authors' code, and the paper names none.
        table: whether there is one table for the model, as in the authors' code, or one "per_layer".

    Raises:
        UserError: if one of the last three is out of range.
    """

    def __init__(
        self,
        depth: int,
        dim: int,
        positions: int,
        size: int = 32,
        dropout: float = 0.0,
        table: PositionTable = "shared",
    ) -> None:
        super().__init__()
        if size < 1 or not 0 <= dropout < 1 or table not in get_args(PositionTable):
            raise UserError(
                "position encoding takes a position_dim of 1 or more, a position_dropout from 0 to below 1, and a "
                f"position_table that is shared or per_layer, not {size}, {dropout} and {table}"
            )
        # Only one of the two exists, so that a checkpoint has no weights that aren't used.
        if table == "shared":
            self.table = _zeros(positions, size)
        else:
            self.tables = nn.ModuleList(_zeros(positions, size) for _ in range(depth))

        # Weights in checkpoints are named by the index of their part: 0 is the norm, 1 the linear map.
        self.projections = nn.ModuleList()
        for _ in range(depth):
            norm = nn.LayerNorm(dim + size)
            linear = nn.Linear(dim + size, dim)
            self.projections.append(_Projection(norm, linear, nn.GELU(), nn.Dropout(dropout)))

    def forward(self, tokens: Tensor, layer: int, position: int) -> Tensor:
        """tokens: [batch, tokens, dim], returned in the same shape with the position mixed in."""
        return self.projections[layer](tokens, self.table_of(layer).weight[position])

    def table_of(self, layer: int) -> nn.Embedding:
        """The table of the vectors that tell a layer its position."""
        if hasattr(self, "tables"):
            return self.tables[layer]  # type: ignore[return-value]
        return self.table


def _zeros(positions: int, size: int) -> nn.Embedding:
    """A table that starts from zero."""
    table = nn.Embedding(positions, size)
    nn.init.zeros_(table.weight)
    return table


class _Projection(nn.Sequential):
    """Mixes a position into tokens.

    It takes the position as a vector, because a number would be compiled into the graph as a constant.
    """

    def forward(self, tokens: Tensor, vector: Tensor) -> Tensor:  # type: ignore[override]
        vectors = vector.to(tokens.dtype).expand(*tokens.shape[:-1], -1)
        return super().forward(torch.cat([tokens, vectors], dim=-1)) + tokens


class PositionPrediction(nn.Module):
    """Predicts the position of a layer from its output (LayerShuffle-predict, arXiv 2407.04513, section 3.3).

    One head per layer. The paper doesn't say how tokens are combined; as in the authors' code, they are averaged before
    the LayerNorm. The heads start like the projections of ``PositionEncoding``.

    Args:
        depth: the number of layers.
        dim: the width of the tokens.
        positions: the number of positions.
    """

    def __init__(self, depth: int, dim: int, positions: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_Head(nn.LayerNorm(dim), nn.Linear(dim, positions)) for _ in range(depth))

    def forward(self, tokens: Tensor, layer: int) -> Tensor:
        """tokens: [batch, tokens, dim], the layer's output. Returns [batch, positions]."""
        return self.heads[layer](tokens)


class _Head(nn.Sequential):
    """Predicts a position from the mean of the tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.mean(dim=1))
