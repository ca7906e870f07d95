"""What travels: the forms of tokens, and the state that comes of what a node returns."""

import numpy as np
import pytest
import torch

from layershuffle import Order
from layershuffle.models.combine import combine
from layershuffle.serving.wire import answer_of, newest_after, pack, unpack


@pytest.fixture
def tokens():
    """A state, [batch, tokens, dim], one token of which is large, and one zero."""
    values = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    values[:, 1] *= 100
    values[:, 2] = 0
    return values.numpy()


def test_each_form_has_the_bytes_and_the_errors_that_it_should(tokens):
    whole, half, quarter = (pack(tokens, wire) for wire in ("float32", "bf16", "int8"))
    values = 2 * 5 * 8
    assert [packed.nbytes for packed in (whole, half, quarter)] == [4 * values, 2 * values, values + 4 * 2 * 5]
    assert unpack(whole) is tokens
    assert np.array_equal(unpack(half), torch.tensor(tokens).bfloat16().float().numpy())
    largest = np.abs(tokens).max(axis=2, keepdims=True)
    assert np.all(np.abs(unpack(quarter) - tokens) <= largest / 127 / 2 * 1.0001)
    assert np.all(unpack(quarter)[:, 2] == 0)


def test_with_float32_the_newest_state_is_that_of_the_model(tokens):
    """Bit for bit, with a lag and without."""
    read, newest = tokens, tokens + np.float32(0.1)
    output = np.tanh(tokens)
    answer = answer_of(read, output, "float32")
    assert newest_after(answer, read, read, "float32") is output
    (step,) = Order("3<1").steps
    expected = combine(step, torch.tensor(newest), torch.tensor(read), [torch.tensor(output)])
    assert np.array_equal(newest_after(answer, read, newest, "float32"), expected.numpy())


@pytest.mark.parametrize("wire", ["bf16", "int8"])
def test_a_change_loses_less_than_a_state(tokens, wire):
    change = np.tanh(tokens) / 4
    answer = answer_of(tokens, tokens + change, wire)
    error = np.abs(newest_after(answer, tokens, tokens, wire) - (tokens + change)).max()
    assert error < np.abs(unpack(pack(tokens + change, wire)) - (tokens + change)).max() / 10
