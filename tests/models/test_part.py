"""Copies of models without the layers that they will never run."""

import pytest
import torch

from layershuffle.models.part import copy_with_layers


@pytest.mark.parametrize("arguments", [{"position": "encode"}, {"position": "predict"}, {"choices": ["0 1", "2"]}])
def test_a_copy_runs_its_layers_and_has_no_others(small, images, arguments):
    model = small(**arguments)
    before = model.state_dict().keys()
    part = copy_with_layers(model, {1, 3})
    assert torch.equal(part(images, "3 1 3").logits, model(images, "3 1 3").logits)
    assert {name.split(".")[2] for name in part.state_dict() if ".blocks." in name} == {"1", "3"}
    assert not [
        name for name in part.state_dict() if name.startswith(("prediction.", "choice.", "encoding.projections.0"))
    ]
    assert model.state_dict().keys() == before


def test_a_copy_of_nothing_but_layers(small, images):
    model = small(position="encode")
    part = copy_with_layers(model, {2}, only_layers=True)
    assert not [name for name in part.state_dict() if "patch_embed" in name or "head" in name or "blocks.0" in name]
    state = model.embed(images)
    step = model.check("2")[0]
    assert torch.equal(part.run_step(state, step, 1)[0].tokens, model.run_step(state, step, 1)[0].tokens)
