"""What several orders say together, against formulas written out and scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from layershuffle.evaluation.disagreement import OrdersTogether
from layershuffle.evaluation.ensemble import Ensemble
from layershuffle.evaluation.selective import (
    accuracy_at,
    area_under_risk_coverage,
    error_auroc,
    selective_accuracy,
)
from layershuffle.models import Output
from layershuffle.orders.order import Order
from layershuffle.orders.protocols import Trial
from layershuffle.results.measures import EnsembleOfOrders

OWN = Order("0 1 2")
ONE = Order("1 0 2")
OTHER = Order("2 1 0")
FIXED = {"reading": "fixed"}
TRIALS = [
    Trial("sequential", OWN),
    Trial("arbitrary", None, {"reading": "per batch"}),
    Trial("arbitrary", ONE, FIXED),
    Trial("arbitrary", OTHER, FIXED),
    Trial("arbitrary", ONE, FIXED),
    Trial("pruned", ONE, {"kept": 3}),
    Trial("pruned", OTHER, {"kept": 3}),
    Trial("given", ONE, {"order": "1 0 2"}),
]


def ensemble_of(*members):
    """An ensemble of members with these probabilities [images, classes]."""
    ensemble = Ensemble()
    for probabilities in members:
        ensemble.add(torch.tensor(probabilities).log())
    return ensemble


def test_members_that_agree_have_no_mutual_information():
    probabilities = [[0.5, 0.5], [0.9, 0.1]]
    ensemble = ensemble_of(probabilities, probabilities)
    assert ensemble.mutual_information().tolist() == pytest.approx([0, 0], abs=1e-6)
    assert ensemble.agreement().tolist() == [1, 1]


def test_members_that_are_sure_of_different_classes_have_all_there_can_be():
    ensemble = ensemble_of([[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]])
    assert ensemble.probabilities[0].tolist() == pytest.approx([1 / 3] * 3)
    assert ensemble.mutual_information().item() == pytest.approx(math.log(3))
    assert ensemble.agreement().item() == pytest.approx(1 / 3)


def test_the_formula_written_out():
    ensemble = ensemble_of([[0.6, 0.4]], [[0.2, 0.8]], [[0.3, 0.7]])

    def entropy(p):
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    mean = (0.6 + 0.2 + 0.3) / 3
    expected = entropy(mean) - (entropy(0.6) + entropy(0.2) + entropy(0.3)) / 3
    assert ensemble.mutual_information().item() == pytest.approx(expected, abs=1e-6)
    assert ensemble.agreement().item() == pytest.approx(2 / 3)


def test_nobody_agrees_about_what_is_not_a_number():
    ensemble = ensemble_of([[0.6, 0.4]], [[math.nan, 0.8]])
    assert ensemble.agreement().item() == 0


@pytest.fixture
def answers():
    """Uncertainties with many ties, which are larger for most of the wrong answers, and which answers are right."""
    rng = torch.Generator().manual_seed(0)
    right = torch.rand(200, generator=rng) < 0.7
    noise = torch.rand(200, generator=rng)
    uncertainty = 0.4 * ~right + 0.6 * noise
    rounded = (10 * uncertainty).round() / 10
    return rounded, right


def test_the_area_is_scikit_learns(answers):
    uncertainty, right = answers
    assert 0.6 < error_auroc(uncertainty, right) < 1
    assert error_auroc(uncertainty, right) == pytest.approx(roc_auc_score(~right, uncertainty))
    assert error_auroc(torch.zeros(200), right) == 0.5
    assert error_auroc((~right).float(), right) == 1


@pytest.mark.parametrize("all_alike", [True, False])
def test_without_errors_or_with_nothing_else_there_is_no_area(all_alike):
    assert error_auroc(torch.tensor([0.1, 0.2]), torch.tensor([all_alike] * 2)) is None


def test_accuracy_of_the_most_certain_images():
    uncertainty = torch.tensor([0.4, 0.1, 0.2, 0.3])
    right = torch.tensor([False, True, False, True])

    # Of the one, two, three and four most certain images.
    accuracies = selective_accuracy(uncertainty, right)

    assert accuracies.tolist() == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])
    assert accuracy_at(0.75, accuracies) == pytest.approx(2 / 3)
    assert accuracy_at(0.7, accuracies) == pytest.approx(2 / 3)  # part of an image is answered, too
    assert accuracy_at(1, accuracies) == 0.5
    assert area_under_risk_coverage(accuracies) == pytest.approx(1 - (1 + 1 / 2 + 2 / 3 + 1 / 2) / 4)


def test_equally_uncertain_images_come_in_random_sequence(answers):
    uncertainty, right = answers
    counts = torch.arange(1, 201)

    # The mean over 300 sequences by uncertainty, in which ties are mixed.
    mean_accuracies = torch.zeros(200, dtype=torch.double)
    for seed in range(300):
        mixed = torch.randperm(200, generator=torch.Generator().manual_seed(seed))
        sequence = mixed[uncertainty[mixed].sort(stable=True).indices]
        accuracies = right[sequence].double().cumsum(dim=0) / counts
        mean_accuracies += accuracies / 300

    # Of fewer images, the means still vary too much.
    assert selective_accuracy(uncertainty, right)[20:].tolist() == pytest.approx(
        mean_accuracies[20:].tolist(), abs=0.03
    )

    share = right.double().mean().item()
    assert selective_accuracy(torch.zeros(200), right).tolist() == pytest.approx([share] * 200)


def groups_of(logits, labels, batch=30):
    """What is measured of the groups of TRIALS, given the logits of each order, in batches."""
    collector = OrdersTogether(TRIALS, torch.device("cpu"))
    for first in range(0, len(labels), batch):
        part = slice(first, first + batch)
        for order, order_logits in logits.items():
            collector.add(order, Output(order_logits[part]), labels[part])
    return collector.disagreement().groups


@pytest.fixture
def labels():
    return torch.arange(100) % 7


@pytest.fixture
def logits(labels):
    rng = torch.Generator().manual_seed(0)
    orders = (OWN, ONE, OTHER, Order("0"))
    return {order: torch.randn(100, 7, generator=rng) + torch.eye(7)[labels] for order in orders}


def test_an_order_that_is_sampled_twice_counts_twice(labels, logits):
    (group,) = groups_of(logits, labels)

    ensemble = Ensemble()
    for order in (ONE, OTHER, ONE):
        ensemble.add(logits[order])
    right = ensemble.probabilities.argmax(dim=-1) == labels
    confidence = ensemble.probabilities.amax(dim=-1)
    disagreement = ensemble.mutual_information()
    probabilities_of_labels = ensemble.probabilities[torch.arange(100), labels]
    surest = confidence.argsort(descending=True)[:80]  # the four fifths that are the most certain
    expected = EnsembleOfOrders(
        protocol="arbitrary",
        variant=FIXED,
        samples=3,
        top1=right.float().mean().item(),
        loss=-probabilities_of_labels.log().mean().item(),
        ece=group.ece,
        agreement=ensemble.agreement().mean().item(),
        disagreement=disagreement.mean().item(),
        auroc_of_probability=roc_auc_score(right, confidence),
        auroc_of_disagreement=roc_auc_score(~right, disagreement),
        accuracy_of_surest=right[surest].float().mean().item(),
    )
    for name, value in vars(expected).items():
        exact_or_close = pytest.approx(value, abs=1e-5) if isinstance(value, float) else value
        assert getattr(group, name) == exact_or_close, name
    assert 0 < group.ece < 1


def test_images_whose_logits_are_not_numbers_are_wrong_and_the_least_certain(labels, logits):
    # All others are right and certain.
    for order in (ONE, OTHER):
        logits[order] = 20 * torch.eye(7)[labels]
    logits[ONE][3] = math.nan

    (group,) = groups_of(logits, labels)

    assert group.top1 == pytest.approx(0.99)
    assert group.agreement == pytest.approx(0.99)
    # One of 100 images has the most disagreement that seven classes allow, and the others have none.
    assert group.disagreement == pytest.approx(math.log(7) / 100, abs=1e-4)
    assert group.auroc_of_probability == 1
    assert group.auroc_of_disagreement == 1
    assert group.accuracy_of_surest == 1
