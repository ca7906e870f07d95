"""The features of a data set's images: what the model's classifier reads of each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from layershuffle.models.model import OrderedViT


@dataclass(frozen=True)
class Features:
    """The features of some images.

    Attributes:
        features: what the model's classifier reads, float32 [images, dim].
        labels: int64 [images], on the same device.
    """

    features: Tensor
    labels: Tensor


class _CollectedFeatures(Metric):
    """Collects the features of all batches. With several processes, ``compute`` gathers those of all processes."""

    full_state_update = False
    features: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("features", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, labels: Tensor) -> None:
        self.features.append(features)
        self.labels.append(labels)

    def compute(self) -> tuple[Tensor, Tensor]:
        return dim_zero_cat(self.features), dim_zero_cat(self.labels)


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
    collected = _CollectedFeatures().to(fabric.device)
    for images, labels in batches:
        # The last batch can have fewer images than there are processes.
        if not len(labels):
            continue
        with fabric.autocast():
            state = model.embed(preprocess(images.to(fabric.device)))
            # Only the state after the last step is used.
            for newer_state, _ in model.run_steps(state, model.order):
                state = newer_state
            # float32, because a classifier may be trained on them for hundreds of iterations.
            features = model.backbone.features(state.tokens).float()
        collected.update(features, labels.to(fabric.device))
        on_batch()
    all_features, all_labels = collected.compute()
    # Of a single image, torchmetrics returns the label as a scalar. flatten makes a vector of it again.
    return Features(all_features, all_labels.flatten())
