"""Scores all the orders that protocols ask for in one pass over the data."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from layershuffle.evaluation.instancewise import InstanceWiseScores
from layershuffle.evaluation.metrics import OrderMetrics, OrderScore, OutputBuffer
from layershuffle.models.model import OrderedViT, Output
from layershuffle.orders.order import Order, seeded
from layershuffle.orders.protocols import SampleOrder, Scorable, Trial
from layershuffle.results import Score


@torch.inference_mode()
def evaluate(
    model: OrderedViT,
    preprocess: nn.Module,
    batches: DataLoader,
    trials: Sequence[Trial],
    fabric: Fabric,
    seed: int = 0,
    on_output: Callable[[Order, Output, Tensor], None] = lambda *_: None,
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

    Raises:
        UserError: before the first batch, if the model can't run one of the orders.
    """
    # Several trials may ask for the same thing, which then runs once.
    scorables = dict.fromkeys(trial.order for trial in trials)

    # The rows of ``metrics``: first the fixed orders, then the orders that are sampled for each batch. Fixed orders are
    # sorted as ``run_orders`` yields them, so that the next output of a fixed order always belongs to the next row.
    fixed = sorted((order for order in scorables if isinstance(order, Order)), key=lambda order: order.steps)
    samplers = [sampler for sampler in scorables if sampler is None or callable(sampler)]
    for order in fixed:
        model.check(order)

    model = model.to(fabric.device).eval()
    preprocess = preprocess.to(fabric.device)
    metrics = OrderMetrics(len(fixed) + len(samplers)).to(fabric.device)
    instancewise = InstanceWiseScores(model, scorables, fabric.device)  # has metrics of its own

    for number, (batch_images, batch_labels) in enumerate(batches):
        # The last batch can have fewer images than there are processes.
        if not len(batch_labels):
            continue
        images = preprocess(batch_images.to(fabric.device, non_blocking=True))
        labels = batch_labels.to(fabric.device, non_blocking=True)

        # One pass runs all orders of the batch; an order that is needed for several reasons runs once.
        sampled = [_sample(sampler, model.order, seed, number) for sampler in samplers]
        fixed_outputs = OutputBuffer(metrics, labels)
        with fabric.autocast():
            for order, output in run_orders(model, images, [*fixed, *sampled, *instancewise.orders]):
                # A sampled order counts here too if it happens to be a fixed one: both rows are due.
                if order in scorables:
                    fixed_outputs.add(output)
                for row, sampled_order in enumerate(sampled, start=len(fixed)):
                    if sampled_order == order:
                        metrics.update(row, [output], labels)
                instancewise.add(order, output)
                on_output(order, output, labels)
            fixed_outputs.flush()
            instancewise.end_batch(model, images, labels)

    # Here, if there are several processes, they add up what each of them has counted.
    order_scores: dict[Scorable, OrderScore] = dict(zip([*fixed, *samplers], metrics.compute()))
    order_scores.update(instancewise.scores())
    shares = instancewise.shares(fabric)

    scores = []
    for trial in trials:
        score = Score(
            protocol=trial.protocol,
            variant=trial.variant,
            order=str(trial.order) if isinstance(trial.order, Order) else None,
            chosen=shares.get(trial.order),
            **order_scores[trial.order]._asdict(),
        )
        scores.append(score)
    return scores


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
    for order, following in zip(ordered, [*ordered[1:], Order()]):
        shared = _shared_steps(order, following)

        # What is left in ``states`` are the steps that this order shares with the one before it: go on from there.
        state = states[-1]
        done = len(states) - 1
        positions = order.positions
        for index in range(done, len(order)):
            step = order[index]
            read = states[index - step.lag] if step.lag else state
            state, logits = model.run_step(state, step, positions[index], read)
            position_logits.append(logits)
            # Of the remaining orders, only those with the same beginning need this state again. A later step of this
            # order may read it, too.
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
        return base_order.shuffled(rng)  # None stands for a random permutation, see ``Scorable``.
    return sampler(rng)
