"""Classifies pictures: prints the likeliest classes of each, and writes them to files."""

import json
import logging
from pathlib import Path

from jsonargparse import Namespace

import layershuffle
from layershuffle.commands.parser import Parser
from layershuffle.commands.picture_options import check_picture_options
from layershuffle.errors import UserError
from layershuffle.files import check_writable, write_whole
from layershuffle.options import add_one_order, add_options, add_positionals

logger = logging.getLogger(__name__)


def _parse(args: list[str] | None) -> Namespace:
    """Read the options; all that can be wrong with them is found here, before the model is loaded."""
    parser = Parser(
        prog="layershuffle predict",
        description="Name the likeliest classes of pictures. They are preprocessed as in the model's training.",
    )
    add_positionals(parser, "checkpoint", "pictures")
    add_options(parser, "top")
    add_one_order(parser)
    add_options(parser, "random_orders", "seed", "output", "pretrained", "img_size", "accelerator", batch_size=64)
    config = parser.parse_args(args)
    check_picture_options(config)
    if config.output and config.output.suffix not in (".csv", ".json"):
        raise UserError(f"--output {config.output} is not the name of a file that ends in .csv or .json")
    if config.output:
        check_writable(config.output)
    return config


def predict_command(args: list[str] | None = None) -> "layershuffle.Predictions":
    """Classify as ``args`` say, by default those of the process; prints a line for each picture."""
    config = _parse(args)
    predictions = layershuffle.predict(
        layershuffle.load(config.checkpoint, config.pretrained, img_size=config.img_size),
        config.pictures,
        top=config.top,
        order=config.order,
        random_orders=config.random_orders,
        seed=config.seed,
        accelerator=config.accelerator,
        batch_size=config.batch_size,
    )

    # Pictures that can't be read are told, and the others are classified all the same.
    for picture in predictions.unreadable:
        logger.warning("%s", picture)

    # The file comes first, because nobody may read what is printed. If it can't be written, the lines are what is left.
    not_written = None
    if config.output:
        try:
            _write(predictions, config.output)
        except UserError as error:
            not_written = error

    if not predictions.pictures:
        raise UserError("no picture could be read")
    print(predictions)
    if not_written:
        raise not_written
    return predictions


def _write(predictions: "layershuffle.Predictions", path: Path) -> None:
    """Write the predictions in the format that the name of the file ends in."""
    write_whole(path, as_json(predictions) if path.suffix == ".json" else as_csv(predictions))
    logger.info("predictions: %s", path)


def as_json(predictions: "layershuffle.Predictions") -> str:
    """The predictions as JSON, with the model, the orders, and the pictures that can't be read."""
    pictures = []
    for prediction in predictions:
        classes = []
        for likely in prediction.classes:
            probability, share = _rounded(likely)
            classes.append({"class": likely.name, "probability": probability, "share_of_orders": share})
        disagreement = round(prediction.disagreement, 6)
        pictures.append({"picture": prediction.path, "disagreement": disagreement, "classes": classes})
    unreadable = [{"picture": picture.path, "why": picture.reason} for picture in predictions.unreadable]
    content = {
        "model": predictions.model.to_json(),
        "orders": [str(order) for order in predictions.orders],
        "pictures": pictures,
        "unreadable": unreadable,
    }
    return json.dumps(content, indent=1) + "\n"


def as_csv(predictions: "layershuffle.Predictions") -> str:
    """The predictions as CSV, a row for each picture and class."""
    from layershuffle.results import tables

    rows = []
    for prediction in predictions:
        disagreement = str(round(prediction.disagreement, 6))
        # A picture that shows none of several classes has a row, too.
        if not prediction.classes:
            rows.append([prediction.path, "", "", "", "", disagreement])
        for rank, likely in enumerate(prediction.classes, 1):
            probability, share = _rounded(likely)
            rows.append([prediction.path, str(rank), likely.name, str(probability), str(share), disagreement])
    return tables.as_csv(["picture", "rank", "class", "probability", "share_of_orders", "disagreement"], rows)


def _rounded(likely: "layershuffle.LikelyClass") -> tuple[float, float]:
    """The probability of a class and the share of the orders in which it came first, as files have them."""
    return round(likely.probability, 6), round(likely.first, 6)
