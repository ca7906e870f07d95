"""Numbers and images that cannot be are refused where they come in; without any node."""

import asyncio
import math

import pytest
import torch

from layershuffle import UserError
from layershuffle.checkpoints.likely_classes import likely_classes
from layershuffle.serving.cluster import Cluster
from layershuffle.serving.placement import MOST_NODES
from layershuffle.serving.policy import Policy
from layershuffle.serving.scenario import Scenario

WRONG = (-1, math.nan, math.inf, -math.inf, "1", [1], True, 10**5000)


@pytest.mark.parametrize("name", ["max_missed", "patience", "step_deadline", "request_deadline", "visit", "width"])
def test_policies(name):
    for wrong in WRONG:
        with pytest.raises(UserError, match=name):
            Policy(**{name: wrong})
    for name in ("step_deadline", "request_deadline", "visit", "answer_by"):
        with pytest.raises(UserError, match=name):
            Policy(**{name: 0})
    with pytest.raises(UserError, match="visit"):
        Policy(visit=1.5)


@pytest.mark.parametrize("name", [*vars(Scenario())])
def test_scenarios(name):
    for wrong in WRONG:
        with pytest.raises(UserError, match=name):
            Scenario(**{name: wrong})


def test_clusters(small):
    # Errors name the option of the command.
    options = {"window": "most_running", "threads": "threads", "start_seconds": "start_seconds"}
    for name, option in options.items():
        for wrong in (*WRONG, 0):
            with pytest.raises(UserError, match=option):
                Cluster(small(), 2, **{name: wrong})
    for nodes in (0, -1, MOST_NODES + 1):
        with pytest.raises(UserError, match="nodes"):
            Cluster(small(), nodes)


def test_images_that_no_node_gets(small):
    cluster = Cluster(small(), 2)
    good = torch.zeros(2, 1, 8, 8)
    for images in (
        None,
        good.tolist(),
        good.numpy(),
        good[0],
        good[:0],
        torch.zeros(2, 3, 8, 8),
        good.double(),
        good.half(),
        good.to(torch.uint8),
        torch.empty(2, 1, 8, 8, device="meta"),
        good.clone().fill_(math.nan),
        good.clone().fill_(-math.inf),
    ):
        with pytest.raises(UserError, match="the images"):
            asyncio.run(cluster.submit(images))


def test_logits_that_are_no_numbers_have_no_likeliest_class():
    with pytest.raises(UserError, match="NaN"):
        likely_classes(torch.tensor([[0.0, math.nan]]), ["a", "b"], 2)
