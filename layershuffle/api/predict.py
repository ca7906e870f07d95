"""Classifies pictures: names the likeliest classes of each, in one order or in many."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from layershuffle.api.arguments import check_at_least, check_orders, check_seed
from layershuffle.api.pictures import Unreadable, orders_to_run, run_pictures
from layershuffle.api.study import ModelLike, as_loaded
from layershuffle.checkpoints.likely_classes import LikelyClass, likely_classes
from layershuffle.data.picture_files import find_pictures
from layershuffle.evaluation.device import make_fabric
from layershuffle.orders.order import Order, OrderLike
from layershuffle.results import ModelInfo


@dataclass(frozen=True)
class Prediction:
    """What a picture shows.

    Attributes:
        path: the path of its file.
        classes: the likeliest classes, the likeliest first; or where a picture can show several, or none, those whose
            probability reaches the threshold that training chose for them.
        orders: how many orders were run.
        disagreement: by how much the orders disagree, in nats, see ``LikelyClasses``.
        shows_several: whether a picture can show several classes.
    """

    path: str
    classes: tuple[LikelyClass, ...]
    orders: int = 1
    disagreement: float = 0.0
    shows_several: bool = False

    def __str__(self) -> str:
        """A line such as ``fox.jpg: 91.2% fox; 5.0% dog``, of several orders with their disagreement."""
        classes = []
        for likely in self.classes:
            text = f"{_percent(likely.probability)} {likely.name}"
            if self.orders > 1 and likely.first:
                first = "" if self.shows_several else "first "
                text += f" ({first}in {round(likely.first * self.orders)} of {self.orders} orders)"
            classes.append(text)
        line = f"{self.path}: {'; '.join(classes) or 'none of the classes'}"
        if self.orders > 1:
            line += f"; disagreement {self.disagreement:.3f}"
        return line


def _percent(probability: float) -> str:
    """The probability in percent. One that is tiny but not 0 doesn't read 0.0%."""
    return "<0.1%" if 0 < probability < 0.001 else f"{probability:.1%}"


@dataclass(frozen=True)
class Predictions:
    """What pictures show.

    Attributes:
        model: what is known about the model.
        orders: the orders that were run; empty if each picture chose its own.
        pictures: what each picture shows, in the sequence in which they were found.
        unreadable: the pictures that can't be read.
    """

    model: ModelInfo
    orders: list[Order]
    pictures: list[Prediction]
    unreadable: list[Unreadable]

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def __str__(self) -> str:
        """A line for each picture."""
        return "\n".join(map(str, self.pictures))


def predict(
    model: ModelLike,
    pictures: str | Path | Sequence[str | Path],
    *,
    top: int = 5,
    order: OrderLike | None = None,
    random_orders: int | None = None,
    seed: int = 0,
    accelerator: str = "auto",
    batch_size: int = 64,
) -> Predictions:
    """Name the likeliest classes of pictures, which are preprocessed as in the model's training.

    Args:
        model: its name, its checkpoint, or what ``layershuffle.load`` or ``layershuffle.train`` returned.
        pictures: picture files, and folders of which all pictures are classified.
        top: how many classes to name for each picture, if it shows one. Of a model that was trained with several labels
            for each picture, all classes are named that reach their thresholds.
        order: the order that the layers run in; by default the model's own.
        random_orders: in place of ``order``, how many random orders to run. The probabilities are their means.
        seed: decides the random orders, which are those of ``layershuffle.evaluate``.
        accelerator: Lightning's name of the device to run on.
        batch_size: how many pictures are classified together.

    Raises:
        UserError: if there is no such model or picture, or the model can't run the order.
    """
    check_seed(seed)
    check_at_least(1, top=top, batch_size=batch_size)
    check_orders(order, random_orders)
    if isinstance(pictures, (str, Path)):
        pictures = [pictures]
    # Before the model is loaded: a mistake in a path should be known at once.
    paths = find_pictures(pictures)
    loaded = as_loaded(model)
    loaded.check_takes_pictures()
    orders = orders_to_run(loaded, order, random_orders, seed)

    predictions: list[Prediction] = []
    unreadable: list[Unreadable] = []
    fabric = make_fabric(accelerator, "32-true", loaded.model)
    thresholds = loaded.info.thresholds
    for batch_paths, logits in run_pictures(paths, loaded, orders, unreadable, fabric, batch_size, "classifying"):
        # From [orders, batch, classes] to [orders, classes] for each picture.
        for path, picture_logits in zip(batch_paths, logits.unbind(dim=1)):
            found = likely_classes(picture_logits, loaded.classes, top, thresholds)
            prediction = Prediction(
                path,
                found.classes,
                orders=len(picture_logits),
                disagreement=found.disagreement,
                shows_several=thresholds is not None,
            )
            predictions.append(prediction)
    return Predictions(loaded.info, orders, predictions, unreadable)
