"""Muon: which parameters it takes, how it splits them, and how it goes on. test_distributed runs it in processes."""

import copy

import pytest
import torch
from torch import nn

from layershuffle.models.create import create_model
from layershuffle.training.muon import Muon, orthogonal

TINY = {"img_size": 28, "patch_size": 7, "in_chans": 1, "embed_dim": 24, "num_heads": 2, "depth": 3}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model("vit_tiny_patch16_224", 5, **TINY)


def learn(model, optimizer, order=(0, 1, 2)):
    """One step on random images."""
    images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    optimizer.zero_grad()
    logits = model(images, list(order)).logits
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    optimizer.step()


@pytest.mark.parametrize("shape", [(8, 8), (8, 20), (20, 8)])
def test_singular_values_become_nearly_one_and_the_singular_vectors_stay(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    (found,) = orthogonal([matrix])
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    aligned = u.mT @ found @ v.mT
    assert found.shape == matrix.shape
    assert 0.6 < aligned.diagonal().min() < aligned.diagonal().max() < 1.3  # The iteration aims at 0.7 to 1.2.
    torch.testing.assert_close(aligned, aligned.diagonal().diag(), atol=1e-4, rtol=0)


def test_matrices_of_several_shapes_come_back_in_their_places():
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for shape in [(8, 20), (8, 8), (20, 8), (8, 20), (6, 4)]]
    for matrix, together in zip(matrices, orthogonal(matrices), strict=True):
        (alone,) = orthogonal([matrix])
        torch.testing.assert_close(together, alone)


def test_query_key_and_value_are_made_orthogonal_each_by_itself(model):
    before = copy.deepcopy(model)
    rate = 0.1
    learn(model, Muon(model.named_parameters(), lr=rate, weight_decay=0.0))

    change = before.vit.blocks[1].attn.qkv.weight - model.vit.blocks[1].attn.qkv.weight
    scale = 0.2 * 24**0.5  # with which an update of 24 x 24 values is as large as one of AdamW
    for part in change.chunk(3):
        values = torch.linalg.svdvals(part) / (rate * scale)
        # The gradient of so few tokens lacks some directions, so that only the largest values are near 1.
        assert 0.6 < values[0] < 1.3


def test_all_but_the_layers_matrices_learn_as_with_adamw(model):
    other = copy.deepcopy(model)
    learn(model, Muon(model.named_parameters(), lr=0.01, weight_decay=0.1))
    learn(other, torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.1))

    values = dict(model.named_parameters())
    same = {name for name, value in values.items() if torch.equal(value, other.get_parameter(name))}
    matrices = {name for name, value in values.items() if "blocks." in name and value.ndim == 2}
    assert len(matrices) == 4 * 3  # four matrices in each of three layers
    assert same == values.keys() - matrices


def test_layers_that_did_not_run_stay_as_they_are(model):
    optimizer = Muon(model.named_parameters())
    learn(model, optimizer)
    before = copy.deepcopy(model.vit.blocks)
    learn(model, optimizer, order=(2, 0))

    changed = []
    for old, new in zip(before, model.vit.blocks):
        unchanged = all(torch.equal(one, other) for one, other in zip(old.parameters(), new.parameters()))
        changed.append(not unchanged)
    assert changed == [True, False, True]


def test_a_saved_optimizer_goes_on_bit_for_bit(model):
    optimizer = Muon(model.named_parameters(), lr=0.01)
    learn(model, optimizer)
    resumed = copy.deepcopy(model)
    after = Muon(resumed.named_parameters(), lr=0.5)
    after.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    learn(model, optimizer)
    learn(resumed, after)
    for one, other in zip(model.parameters(), resumed.parameters()):
        assert torch.equal(one, other)


def test_parameters_without_names_are_refused(model):
    with pytest.raises(ValueError, match="named_parameters"):
        Muon(model.parameters())
