"""A loss that was tried once for docs/findings/width.md: the own order teaches a random one.

    cd results
    layershuffle train mini_glyphs glyphs layershuffle cpu muon --model.objective width_consistency.Consistency \\
        --model.optimizer.lr 8e-3 --model.schedule.warmup_steps 60 --trainer.max_epochs 2

Each image runs in two orders, so that two epochs have the layer executions of four. The counts that ``train`` prints
leave out the own order.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from layershuffle.models import OrderedViT
from layershuffle.orders import Order
from layershuffle.training.objectives import Classification, StepKey, StepLoss


class Consistency(Classification):
    """Cross-entropy in the own order and in a random one, and the divergence of the second from the first.

    Cf. LoopFormer (arXiv 2602.11451).
    """

    def loss(
        self, model: OrderedViT, images: Tensor, labels: Tensor, orders: Sequence[Order], key: StepKey
    ) -> StepLoss:
        """The loss of a batch, all of which runs in both orders; see ``Objective.loss``."""
        (random_order,) = orders
        own = model(images, model.order).logits
        logits = model(images, random_order).logits
        classification_loss = (self.cross_entropy(own, labels) + self.cross_entropy(logits, labels)) / 2
        # The own order learns from the labels alone.
        teacher = own.detach().log_softmax(dim=1)
        divergence = F.kl_div(logits.log_softmax(dim=1), teacher, reduction="batchmean", log_target=True)
        return StepLoss(classification_loss + divergence, logits, {"divergence": divergence})
