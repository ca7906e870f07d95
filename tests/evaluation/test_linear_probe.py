"""Classifiers of frozen features, against scikit-learn."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from layershuffle.evaluation.features import Features
from layershuffle.evaluation.linear_probe import Standardisation, balanced, logistic_regressions

CLASSES = 5


@pytest.fixture
def features():
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % CLASSES
    centres = torch.randn(CLASSES, 12, generator=rng)
    noise = torch.randn(300, 12, generator=rng)
    values = 3 * centres[labels] + 4 * noise + 7
    constant = torch.ones(300, 1)
    return Features(torch.cat([values, constant], dim=1), labels)


def test_the_linear_classifier_is_scikit_learns(features):
    standardised = Standardisation.of(features.features)(features.features)
    assert torch.isfinite(standardised).all()
    penalties = (1.0, 0.01, 1e-4)

    classifiers = logistic_regressions(Features(standardised, features.labels), CLASSES, penalties)

    for penalty, linear in zip(penalties, classifiers):
        # scikit-learn adds up the losses of the images and multiplies them by C, and ours is their mean.
        expected = LogisticRegression(C=1 / (penalty * 300), max_iter=5000, tol=1e-8)
        expected.fit(standardised.double().numpy(), features.labels.numpy())
        probabilities = torch.tensor(expected.predict_proba(standardised.double().numpy()))
        with torch.no_grad():
            assert torch.allclose(linear(standardised).softmax(dim=1).double(), probabilities, atol=2e-3)


def test_the_balanced_accuracy_is_scikit_learns():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 3])  # of class 2 there is no image
    predicted = torch.tensor([0, 0, 0, 1, 1, 2, 0])
    assert balanced(predicted, labels, 4) == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-6)


def test_a_classifier_of_standardised_features_becomes_one_of_the_features_themselves(features):
    standardise = Standardisation.of(features.features)
    standardised = Features(standardise(features.features), features.labels)
    (linear,) = logistic_regressions(standardised, CLASSES, [0.01])
    folded = standardise.folded_into(linear)
    assert folded.weight is not linear.weight
    with torch.no_grad():
        assert torch.allclose(folded(features.features), linear(standardised.features), atol=1e-5)
