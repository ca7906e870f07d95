"""How well the features of a frozen model tell classes apart: nearest neighbours, and logistic regression."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from layershuffle.evaluation.by_class import balanced_accuracy
from layershuffle.models.model import OrderedViT

PENALTIES = tuple(10.0**power for power in range(1, -7, -1))
"""The weights of the L2 penalty to choose from, the strongest first."""
NEIGHBOURS = 20
TEMPERATURE = 0.07
"""The neighbours and the temperature of DINO (arXiv 2104.14294, appendix F.1)."""
MAX_ITERATIONS = 300
"""Iterations of L-BFGS for each penalty. Features are standardised, so that it converges earlier."""
CHUNK = 1024
"""So many images are compared with all training images at a time."""


@dataclass(frozen=True)
class Features:
    """The features of some images.

    Attributes:
        features: what the model's classifier reads, float32 [images, dim].
        labels: int64 [images], on the same device.
    """

    features: Tensor
    labels: Tensor


@torch.no_grad()  # not inference_mode, whose tensors no classifier could be trained on
def features_of(
    model: OrderedViT,
    preprocess: nn.Module,
    batches: DataLoader,
    fabric: Fabric,
    on_batch: Callable[[], None] = lambda: None,
) -> Features:
    """Compute what the classifier reads of each image once, in the model's base order.

    Args:
        model: see ``scoring.evaluate``, like all that aren't named here.
        preprocess: see there.
        batches: see there.
        fabric: see there.
        on_batch: called after each batch, for a progress bar.
    """
    model = model.to(fabric.device).eval()
    preprocess = preprocess.to(fabric.device)
    features = []
    labels = []
    for images, batch_labels in batches:
        with fabric.autocast():
            state = model.embed(preprocess(images.to(fabric.device)))
            for newer_state, _ in model.run_steps(state, model.order):
                state = newer_state  # Only the last one is read.
            # float32, because the classifier is trained on them for hundreds of iterations.
            features.append(model.backbone.features(state.tokens).float())
        labels.append(batch_labels.to(fabric.device))
        on_batch()
    return Features(torch.cat(features), torch.cat(labels))


@torch.inference_mode()
def nearest_neighbours(train: Features, features: Tensor, classes: int) -> Tensor:
    """The class that the nearest training images vote for, weighted by their similarity (arXiv 2104.14294).

    Args:
        train: the images that vote.
        features: of the images to classify, [images, dim].
        classes: how many there are.

    Returns:
        int64 [images].
    """
    # Features are compared by their direction, as the paper does. The product of unit vectors is their cosine.
    directions = F.normalize(train.features, dim=1)
    count = min(NEIGHBOURS, len(directions))
    predicted = []
    for chunk in features.split(CHUNK):
        nearest = (F.normalize(chunk, dim=1) @ directions.T).topk(count, dim=1)
        weights = (nearest.values / TEMPERATURE).exp()
        votes = torch.zeros(len(chunk), classes, device=chunk.device)
        votes.scatter_add_(1, train.labels[nearest.indices], weights)
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted)


@dataclass(frozen=True)
class Standardisation:
    """Brings each feature to mean 0 and standard deviation 1 on the training images.

    Attributes:
        mean: float32 [dim].
        std: float32 [dim], 1 for a feature that is constant.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Standardisation":
        """That of these features, [images, dim]."""
        # A constant feature tells nothing, and dividing by its 0 would give NaN.
        std = features.std(dim=0, correction=0)
        return cls(features.mean(dim=0), std.where(std > 0, 1.0))

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std


def logistic_regressions(train: Features, classes: int, penalties: Sequence[float] = PENALTIES) -> Iterator[nn.Linear]:
    """Fit a linear classifier with each of ``penalties``, by L-BFGS over all images at once.

    It minimises the mean cross-entropy plus half of the penalty times the squared norm of the weights, without the
    bias. That is scikit-learn's ``LogisticRegression`` with ``C = 1 / (penalty * images)``. Each fit starts from the
    one before it, and it is one module that is trained further and yielded again.

    Args:
        train: with standardised features.
        classes: how many there are.
        penalties: the weights of the L2 penalty, the strongest first.
    """
    linear = nn.Linear(train.features.shape[1], classes, device=train.features.device)
    # The problem is convex, so the start decides nothing but the time. Zeros need no seed.
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    for penalty in penalties:
        # A new one each time: the curvature that L-BFGS has gathered is that of another penalty.
        optimizer = torch.optim.LBFGS(
            linear.parameters(), max_iter=MAX_ITERATIONS, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
        )

        def loss(penalty: float = penalty, optimizer: torch.optim.Optimizer = optimizer) -> float:
            optimizer.zero_grad()
            cross_entropy = F.cross_entropy(linear(train.features), train.labels)
            total = cross_entropy + penalty / 2 * linear.weight.square().sum()
            total.backward()
            return total.item()

        optimizer.step(loss)
        yield linear


def balanced(predicted: Tensor, labels: Tensor, classes: int) -> float:
    """The mean of the accuracies of the classes that have images, 0 to 1; predicted and labels: int64 [images]."""
    matrix = (labels * classes + predicted).bincount(minlength=classes * classes).view(classes, classes)
    return balanced_accuracy(matrix)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """The share of the images, 0 to 1, whose predicted class is their label."""
    return float((predicted == labels).double().mean())
