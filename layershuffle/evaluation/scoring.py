"""Scores all the orders that protocols ask for in one pass over the data."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from layershuffle.evaluation.instancewise import InstanceWiseScores
from layershuffle.evaluation.label_metrics import LabelMetrics
from layershuffle.evaluation.metrics import OrderMetrics, OrderScore, OrderTotals, OutputBuffer
from layershuffle.models.model import OrderedViT, Output
from layershuffle.orders.order import Order, seeded
from layershuffle.orders.protocols import SampleOrder, Scorable, Trial
from layershuffle.results import Score


@torch.inference_mode()
def evaluate(
    model: OrderedViT,
    preprocess: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    trials: Sequence[Trial],
    fabric: Fabric,
    seed: int = 0,
    on_output: Callable[[Order, Output, Tensor], None] = lambda *_: None,
    thresholds: Sequence[float] | None = None,
) -> list[Score]:
    """Score every trial on all ``batches``, reading and moving each batch once.

    Args:
        model: any model; it is moved to the device of ``fabric`` and put in evaluation mode.
        preprocess: makes the model's input from the batch's uint8 images, on the device.
        batches: of (uint8 images [batch, channels, height, width], int64 labels [batch]). Each of several processes has
            a part of the images, and all return the scores of all images.
        trials: what to score, see ``orders.protocols.trials``.
        fabric: the device and the precision.
        seed: decides the orders that are new in every batch.
        on_output: called after each order of each batch, with the order, its output and the batch's labels. The orders
            come sorted by their steps, so that one comes after those that it begins with.
        thresholds: where images can have several labels, uint8 [batch, classes], the probability from which on each
            class is named.

    Raises:
        UserError: before the first batch, if the model can't run one of the orders.
    """
    scorer = _Scorer(model, [trial.order for trial in trials], fabric, seed, thresholds)
    preprocess = preprocess.to(fabric.device)
    for number, (batch_images, batch_labels) in enumerate(batches):
        # The last batch can have fewer images than there are processes, so that some of them have none.
        if not len(batch_labels):
            continue
        images = preprocess(batch_images.to(fabric.device, non_blocking=True))
        labels = batch_labels.to(fabric.device, non_blocking=True)
        scorer.score_batch(number, images, labels, on_output)

    score_of = scorer.scores()
    share_of = scorer.shares()
    scores = []
    for trial in trials:
        score = Score(
            protocol=trial.protocol,
            variant=trial.variant,
            order=str(trial.order) if isinstance(trial.order, Order) else None,
            chosen=share_of.get(trial.order),
            **score_of[trial.order]._asdict(),
        )
        scores.append(score)
    return scores


class _Scorer:
    """Runs each batch in all orders that are to be scored, and counts how its images did.

    What can be scored is of three kinds, which ``Scorable`` lists: a fixed order, a sampler that gives each batch
    another order, and an order that each image picks for itself.

    Args:
        model: the model, which is moved to the device of ``fabric`` and put in evaluation mode.
        scorables: what to score; what comes several times is scored once.
        fabric: the device and the precision.
        seed: decides the orders that are sampled for each batch.
        thresholds: see ``evaluate``.

    Raises:
        UserError: if the model can't run one of the orders.
    """

    def __init__(
        self,
        model: OrderedViT,
        scorables: Iterable[Scorable],
        fabric: Fabric,
        seed: int,
        thresholds: Sequence[float] | None,
    ) -> None:
        distinct = list(dict.fromkeys(scorables))
        # The fixed orders are sorted as ``run_orders`` yields them. So the next output of a fixed order always belongs
        # to the next row of ``metrics``. The dict serves as a set that keeps this sequence.
        fixed = [order for order in distinct if isinstance(order, Order)]
        fixed.sort(key=lambda order: order.steps)
        self.fixed = dict.fromkeys(fixed)
        # Among the samplers, None stands for the one that shuffles the base order, see ``_sample``.
        self.samplers = [sampler for sampler in distinct if sampler is None or callable(sampler)]
        for order in self.fixed:
            model.check(order)

        self.model = model.to(fabric.device).eval()
        self.fabric = fabric
        self.seed = seed
        # The rows of ``metrics``: first the fixed orders, then the samplers. What images pick has metrics of its own.
        rows = len(self.fixed) + len(self.samplers)
        metrics: OrderTotals = OrderMetrics(rows) if thresholds is None else LabelMetrics(rows, thresholds)
        self.metrics = metrics.to(fabric.device)
        self.instancewise = InstanceWiseScores(model, distinct, fabric.device)

    def score_batch(
        self, number: int, images: Tensor, labels: Tensor, on_output: Callable[[Order, Output, Tensor], None]
    ) -> None:
        """Run a batch in every order, and count its images.

        Args:
            number: the index of the batch, from 0; with the seed, it decides the sampled orders.
            images: the model's input, float32 [batch, channels, size, size], on its device.
            labels: int64 [batch], on the same device.
            on_output: see ``evaluate``.
        """
        sampled = [_sample(sampler, self.model.order, self.seed, number) for sampler in self.samplers]
        fixed_outputs = OutputBuffer(self.metrics, labels)
        with self.fabric.autocast():
            # An order that is needed for several reasons runs only once.
            orders = [*self.fixed, *sampled, *self.instancewise.orders]
            for order, output in run_orders(self.model, images, orders):
                # A sampled order that happens to be a fixed one counts in both rows.
                if order in self.fixed:
                    fixed_outputs.add(output)
                for row, sampled_order in enumerate(sampled, start=len(self.fixed)):
                    if sampled_order == order:
                        self.metrics.update(row, [output], labels)
                self.instancewise.add(order, output)
                on_output(order, output, labels)
            fixed_outputs.flush()
            self.instancewise.end_batch(self.model, images, labels)

    def scores(self) -> dict[Scorable, OrderScore]:
        """The scores by what was scored; several processes add up here what each of them has counted."""
        rows = [*self.fixed, *self.samplers]
        score_of: dict[Scorable, OrderScore] = dict(zip(rows, self.metrics.compute()))
        score_of.update(self.instancewise.scores())
        return score_of

    def shares(self) -> dict[Scorable, float]:
        """The share of images that chose each order, where images choose."""
        return self.instancewise.shares(self.fabric)


def run_orders(model: OrderedViT, images: Tensor, orders: Iterable[Order]) -> Iterator[tuple[Order, Output]]:
    """Run a batch in each of ``orders``; a beginning that orders share is computed once.

    In sorted sequence, orders with the same beginning are neighbours: they are a trie over their steps, walked depth
    first. In memory there is one activation for each step of the beginning that an order shares with its neighbours,
    and for each step of an order that reads older states.

    Yields:
        Each order once, sorted by steps, and its output, which equals ``model(images, order)``.
    """
    ordered = sorted(set(orders), key=lambda order: order.steps)
    states = [model.embed(images)]  # states[n] is the state after n steps
    position_logits: list[Tensor | None] = []  # of each step that has run
    # After the last order nothing is needed any more, as if an empty order followed.
    for order, following in zip(ordered, [*ordered[1:], Order()]):
        shared = _shared_steps(order, following)

        # ``states`` holds the states after the steps that this order shares with the one before it. Go on from the last
        # of them.
        state = states[-1]
        done = len(states) - 1
        positions = order.positions
        for index in range(done, len(order)):
            step = order[index]
            read = states[index - step.lag] if step.lag else state
            state, logits = model.run_step(state, step, positions[index], read)
            position_logits.append(logits)
            # A state is kept if the next order begins with the same steps, or if a later step of this order may read
            # it.
            if index < shared or order.longest_lag:
                states.append(state)
        yield order, model.classify(state, position_logits, positions)

        # Go back to where the next order branches off.
        del states[shared + 1 :]
        del position_logits[shared:]


def _shared_steps(one: Order, other: Order) -> int:
    """How many steps at their beginning both orders have in common."""
    for index, (step, other_step) in enumerate(zip(one, other)):
        if step != other_step:
            return index
    return min(len(one), len(other))


def _sample(sampler: SampleOrder | None, base_order: Order, seed: int, batch: int) -> Order:
    """The order of a batch: a function of the seed and the number of the batch."""
    rng = seeded(seed, "per batch", batch)
    if sampler is None:
        return base_order.shuffled(rng)
    return sampler(rng)
