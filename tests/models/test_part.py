"""Copies of models without the layers that they will never run."""

import pytest
import torch

from layershuffle.models.part import copy_with_layers


@pytest.mark.parametrize("arguments", [{"position": "encode"}, {"position": "predict"}, {"choices": ["0 1", "2"]}])
def test_a_copy_runs_its_layers_and_has_no_others(small, images, arguments):
    model = small(**arguments)
    names_before = model.state_dict().keys()

    part = copy_with_layers(model, {1, 3})

    assert torch.equal(part(images, "3 1 3").logits, model(images, "3 1 3").logits)
    names = part.state_dict().keys()
    layers = {name.split(".")[2] for name in names if name.startswith("vit.blocks.")}
    assert layers == {"1", "3"}
    for name in names:
        assert not name.startswith(("prediction.", "choice.", "encoding.projections.0"))
    assert model.state_dict().keys() == names_before


def test_a_copy_of_nothing_but_layers(small, images):
    model = small(position="encode")
    part = copy_with_layers(model, {2}, only_layers=True)

    for name in part.state_dict():
        assert "patch_embed" not in name
        assert "head" not in name
        assert "blocks.0" not in name
    state = model.embed(images)
    step = model.check("2")[0]
    after, _ = part.run_step(state, step, position=1)
    expected, _ = model.run_step(state, step, position=1)
    assert torch.equal(after.tokens, expected.tokens)
