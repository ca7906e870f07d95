"""What ``layershuffle.evaluate`` refuses."""

import pytest

from layershuffle.api.evaluate import evaluate
from layershuffle.errors import UserError


@pytest.mark.parametrize("random_orders", [0, -1])
def test_fewer_than_one_random_order(random_orders):
    with pytest.raises(UserError, match="random_orders"):
        evaluate("mini_glyphs", random_orders=random_orders)
