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
    values = tokens.size
    scales = 2 * 5

    whole = pack(tokens, "float32")
    assert whole.nbytes == 4 * values
    assert unpack(whole) is tokens

    half = pack(tokens, "bf16")
    assert half.nbytes == 2 * values
    assert np.array_equal(unpack(half), torch.tensor(tokens).bfloat16().float().numpy())

    # A byte for each value, and a scale in float32 for each token.
    quarter = pack(tokens, "int8")
    assert quarter.nbytes == values + 4 * scales
    # Values are rounded to multiples of the scale, by half of it at most, and in float32.
    scale = np.abs(tokens).max(axis=2, keepdims=True) / 127
    assert np.all(np.abs(unpack(quarter) - tokens) <= scale / 2 * 1.0001)
    assert np.all(unpack(quarter)[:, 2] == 0)


def test_with_float32_the_newest_state_is_that_of_the_model(tokens):
    """Bit for bit, with a lag and without."""
    read = tokens
    output = np.tanh(tokens)
    answer = answer_of(read, output, "float32")
    assert newest_after(answer, read, read, "float32") is output

    # One result has come since the node read the state.
    newest = tokens + np.float32(0.1)
    (step,) = Order("3<1").steps
    expected = combine(step, torch.tensor(newest), torch.tensor(read), [torch.tensor(output)])
    assert np.array_equal(newest_after(answer, read, newest, "float32"), expected.numpy())


@pytest.mark.parametrize("wire", ["bf16", "int8"])
def test_a_change_loses_less_than_a_state(tokens, wire):
    change = np.tanh(tokens) / 4
    output = tokens + change

    # A node returns what it changes, and the coordinator adds that to its own state.
    answer = answer_of(tokens, output, wire)
    error_of_change = np.abs(newest_after(answer, tokens, tokens, wire) - output).max()

    error_of_state = np.abs(unpack(pack(output, wire)) - output).max()
    assert error_of_change < error_of_state / 10
