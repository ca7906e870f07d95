"""What travels between the coordinator of a cluster and its nodes, in fewer bytes if that is asked for.

With float32 a node returns the tokens that it computes, so that nothing is rounded. With the other forms it returns
what it *changes* in the tokens that it was sent, and the coordinator adds that to its own state, which is float32: the
change is smaller than the state, and so are its rounding errors, which don't add up in the state.
"""

from typing import NamedTuple

import numpy as np
import torch

from layershuffle.choices import Wire

LARGEST = 127
"""The largest number that int8 has on both sides of zero."""


class Packed(NamedTuple):
    """Tokens, or changes of tokens, as they travel.

    Attributes:
        values: [batch, tokens, dim]: float32, or the bits of bfloat16 as int16, or int8.
        scales: with int8, the factors of the values, float32 [batch, tokens, 1].
    """

    values: np.ndarray
    scales: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """How many bytes travel."""
        if self.scales is None:
            return self.values.nbytes
        return self.values.nbytes + self.scales.nbytes


def pack(tokens: np.ndarray, wire: Wire) -> Packed:
    """Tokens [batch, tokens, dim] as they travel; float32 ones are not copied."""
    if wire == "float32":
        return Packed(tokens)
    # numpy has no bfloat16, so that its bits travel as whole numbers.
    if wire == "bf16":
        return Packed(torch.tensor(tokens).to(torch.bfloat16).view(torch.int16).numpy())

    # Each token has a scale of its own, because a few tokens are much larger than all others.
    scales = np.abs(tokens).max(axis=-1, keepdims=True) / np.float32(LARGEST)
    divisors = np.where(scales > 0, scales, 1)  # a token that doesn't change at all has the scale 0
    return Packed(np.rint(tokens / divisors).astype(np.int8), scales)


def unpack(packed: Packed) -> np.ndarray:
    """The tokens as float32 again. They may be read-only."""
    values = packed.values
    if packed.scales is not None:
        return values * packed.scales
    if values.dtype == np.int16:
        return torch.tensor(values).view(torch.bfloat16).to(torch.float32).numpy()
    return values


def answer_of(read: np.ndarray, output: np.ndarray, wire: Wire) -> Packed:
    """What a node returns that has made ``output`` of the tokens ``read``."""
    if wire == "float32":
        return pack(output, wire)
    return pack(output - read, wire)


def newest_after(answer: Packed, read: np.ndarray, newest: np.ndarray, wire: Wire) -> np.ndarray:
    """The newest state once a node has answered, which was sent the state ``read``.

    With float32 its bits are those of ``models.combine.combine``, which the model computes for the same order.
    """
    if wire != "float32":
        return newest + unpack(answer)
    output = answer.values
    # Nothing has come in between. Adding the difference to what it was taken from could round.
    if newest is read:
        return output
    return newest + (output - read)
