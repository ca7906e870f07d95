"""The vote of the nearest training images, against scikit-learn, and in the place of a model's classifier."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from layershuffle.evaluation import neighbours as module
from layershuffle.evaluation.features import Features
from layershuffle.evaluation.neighbours import NEIGHBOURS, TEMPERATURE, UNIFORM, NearestNeighbours

CLASSES = 5


@pytest.fixture
def features():
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % CLASSES
    centres = torch.randn(CLASSES, 12, generator=rng)
    noise = torch.randn(300, 12, generator=rng)
    return Features(3 * centres[labels] + 4 * noise, labels)


@pytest.mark.parametrize("count", [NEIGHBOURS, 3])
def test_the_probabilities_are_scikit_learns(features, count, monkeypatch):
    monkeypatch.setattr(module, "MOST_SIMILARITIES", 200 * 7)  # 100 images in 15 parts
    train = Features(features.features[:200], features.labels[:200])

    def weights(distances):
        # For vectors of norm 1, the squared distance is 2 - 2 * similarity.
        similarities = 1 - distances**2 / 2
        return np.exp(similarities / TEMPERATURE)

    directions = F.normalize(features.features, dim=1).numpy()
    expected = KNeighborsClassifier(count, weights=weights)
    expected.fit(directions[:200], features.labels[:200].numpy())

    logits = NearestNeighbours(train, CLASSES, count)(features.features[200:])

    assert (logits.argmax(dim=1).numpy() == expected.predict(directions[200:])).all()
    shares = torch.tensor(expected.predict_proba(directions[200:]), dtype=torch.float32)
    probabilities = (1 - UNIFORM) * shares + UNIFORM / CLASSES
    assert torch.allclose(logits.softmax(dim=1), probabilities, atol=1e-4)
    # Some class has no vote, and its loss is finite.
    assert (shares == 0).any()
    assert logits.isfinite().all()


def test_of_few_images_all_vote_and_nan_stays_nan(features):
    few = Features(features.features[:3], features.labels[:3])
    vote = NearestNeighbours(few, CLASSES)
    assert vote.neighbours == 3
    logits = vote(torch.full((1, 12), torch.nan))
    assert logits.isnan().all()
    assert vote.state_dict() == {}


def test_half_precision_makes_no_coarser_votes(features):
    train = Features(features.features[:200], features.labels[:200])
    vote = NearestNeighbours(train, CLASSES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = vote(features.features[200:])
    assert torch.equal(logits, vote(features.features[200:]))


def test_a_module_takes_the_place_of_the_models_classifier(small, images):
    model = small()
    logits = model(images).logits
    state = model.embed(images)
    for position, step in enumerate(model.order):
        state, _ = model.run_step(state, step, position)
    features = model.backbone.features(state.tokens)

    model.classifier = torch.nn.Identity()

    assert torch.equal(model(images).logits, features)
    assert torch.equal(model.vit.head(features), logits)


@pytest.mark.parametrize("head", ["average", "class"])
def test_the_features_of_a_distilled_model_are_what_its_classifiers_read(small, images, head):
    model = small("deit_tiny_distilled_patch16_224", head=head)
    with torch.no_grad():
        model.vit.head_dist.load_state_dict(model.vit.head.state_dict())
    logits = model(images).logits

    # Both classifiers are alike, and the features are the mean of what they read.
    model.classifier = model.vit.head

    assert torch.allclose(model(images).logits, logits, atol=1e-5)
