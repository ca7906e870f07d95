"""Early exit: each image stops as soon as the classifier is sure of it, so that easy images run fewer layers."""

import torch
from torch import Tensor

from layershuffle.evaluation.metrics import OrderMetrics
from layershuffle.models.model import Output
from layershuffle.orders.order import Order
from layershuffle.results.measures import EarlyExits, Exit

THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
"""The probabilities that have to be exceeded: 0 always is, and 1 never."""


class EarlyExit:
    """Scores an order whose images may stop after any step, from the logits after each step.

    Two rules are swept. By confidence, an image stops when the probability of the likeliest class exceeds a threshold
    (BranchyNet, arXiv 1709.01686, which compares the entropy instead). By patience, it stops when the predicted class
    has stayed the same for ``patience`` steps in a row (PABEE, arXiv 2006.04152). An image that meets no rule runs
    all steps.

    Args:
        order: with one step or more.
        device: where the logits are.
    """

    def __init__(self, order: Order, device: torch.device) -> None:
        self.order = order
        # An image that stops after n steps has run the first n steps of the order: each beginning has to be scored.
        self.beginnings = {order[:steps] for steps in range(1, len(order) + 1)}
        self.thresholds = torch.tensor(THRESHOLDS, device=device)
        self.patiences = torch.arange(len(order), device=device)
        rules = len(self.thresholds) + len(self.patiences)
        self.metrics = OrderMetrics(rules).to(device)
        self.steps_run = torch.zeros(rules, dtype=torch.long, device=device)
        self._logits: list[Tensor] = []

    def add(self, order: Order, output: Output, labels: Tensor) -> None:
        """Take one order's output for a batch; it counts if it is a beginning of ``self.order``.

        Of each batch every beginning has to come once, the shorter ones first. labels: int64 [batch].
        """
        if order in self.beginnings:
            # Thresholds up to 0.999 need more digits than a probability in bfloat16 has.
            self._logits.append(output.logits.float())

        # The whole order comes after all of its beginnings, so the batch is complete.
        if order == self.order:
            logits = torch.stack(self._logits)  # [steps, batch, classes]
            self._logits = []
            last_steps = self._last_steps(logits)  # [rules, batch]
            images = torch.arange(len(labels), device=labels.device)
            # Each rule is counted like an order: its logits are those after the step at which the image stopped.
            self.metrics.update(0, [Output(logits[steps, images]) for steps in last_steps], labels)
            self.steps_run += (last_steps + 1).sum(dim=1)

    def _last_steps(self, logits: Tensor) -> Tensor:
        """The index of the step after which each image stops by each rule, [rules, batch].

        logits: [steps, batch, classes].
        """
        confidence = logits.softmax(dim=-1).amax(dim=-1)  # [steps, batch]
        is_confident = confidence > self.thresholds.view(-1, 1, 1)  # [thresholds, steps, batch]

        # Count for how many steps in a row the predicted class has stayed the same. Where it changes, multiplying by
        # False sets the count back to 0.
        predicted = logits.argmax(dim=-1)
        unchanged = torch.zeros_like(predicted)  # [steps, batch]
        for step in range(1, len(predicted)):
            is_same = predicted[step] == predicted[step - 1]
            unchanged[step] = (unchanged[step - 1] + 1) * is_same
        is_patient = unchanged >= self.patiences.view(-1, 1, 1)

        stops = torch.cat([is_confident, is_patient])  # [rules, steps, batch]
        stops[:, -1] = True  # After the last step every image has to stop.
        # Of zeros and ones, argmax returns the index of the first one.
        return stops.int().argmax(dim=1)

    def compute(self) -> EarlyExits:
        """For each rule its threshold (or patience), the mean number of steps that an image ran, and its scores."""
        rules: list[tuple[str, float]] = [("confidence", threshold) for threshold in THRESHOLDS]
        rules += [("patience", steps) for steps in self.patiences.tolist()]
        exits = []
        # ``metrics`` has a score for each rule, as if the rule were an order.
        for (rule, threshold), steps, score in zip(rules, self.steps_run.tolist(), self.metrics.compute()):
            assert score.top1 is not None
            assert score.top5 is not None
            exits.append(Exit(rule, threshold, steps / score.images, score.top1, score.top5, score.loss))
        return EarlyExits(exits)
