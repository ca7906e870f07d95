"""The model card, which is the README.md of an exported folder."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.errors import UserError
from layershuffle.orders.order import Order
from layershuffle.plurals import counted
from layershuffle.results import Measure, ModelInfo, Results, Score, tables
from layershuffle.results.markdown import code, plain
from layershuffle.results.measures import ByClassCounts
from layershuffle.results.score import Variant


@dataclass(frozen=True)
class ModelCard:
    """What a model card says besides what is known about the model.

    Attributes:
        title: the name of the folder.
        library: what the Hugging Face hub shows as the library that loads the model.
        use: how to load the model and run it, in Markdown.
        scores: what ``scores_of`` returned.
        license: of the weights; if None, the card says nothing about it.
        config_file: the file of the folder that says how images are resized.
        normalises: whether the model itself normalises its images.
    """

    title: str
    library: str
    use: str
    scores: str
    license: str | None
    config_file: str
    normalises: bool = False

    def markdown(self, loaded: LoadedModel) -> str:
        """The whole card of a model."""
        info = loaded.info
        config = info.config
        classes = counted(config["num_classes"], "class")
        # As YAML, so that a licence of any name is one value on one line.
        head: dict[str, Any] = {"library_name": self.library}
        if self.license:
            head["license"] = " ".join(self.license.split())
        head.update(pipeline_tag="image-classification", tags=["image-classification", "timm", "layershuffle"])
        # Names may come from strangers: ``plain`` and ``code`` keep them from becoming Markdown or HTML of the card.
        return f"""---
{yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=math.inf)}---
# {plain(self.title)}

{plain(config["name"])}, {classes}, fine-tuned by the method {plain(str(info.method))} with
[LayerShuffle](https://arxiv.org/abs/2407.04513):
order sampler {code(str(info.sampler))}, position `{config["position"]}`, seed {info.seed}.
{_origin(info)}{_training(loaded)}
## Use

{self.use}
FOLDER stands for the path of this folder, and `images` for a tensor [batch, channels, height, width].
Images: {self._images(loaded)}, resized and cropped as
{self.config_file} says.

## Accuracy

{self.scores}
"""

    def _images(self, loaded: LoadedModel) -> str:
        """The images that the model takes, such as "RGB, 224 x 224 pixels"."""
        image_format = loaded.model.image_format
        size = image_format.size
        channels = len(image_format.mean)
        colours = {1: "grey", 3: "RGB"}.get(channels, counted(channels, "channel"))
        # Whoever calls a program that normalises needs no mean and standard deviation.
        values = ""
        if not self.normalises:
            mean = ", ".join(f"{value:.4g}" for value in image_format.mean)
            std = ", ".join(f"{value:.4g}" for value in image_format.std)
            values = f" in 0..1, minus mean ({mean}), divided by standard deviation ({std})"
        return f"{colours}{values}, {size} x {size} pixels"


def _origin(info: ModelInfo) -> str:
    """From which checkpoints and layers the model's layers come, a line each."""
    text = ""
    if info.merged:
        sources = ", ".join(plain(source["sha256"][:12]) for source in info.merged["sources"])
        text += f"Merged: its layers come from the checkpoints {info.merged['layers']} of {sources}.\n"
    if info.cut:
        text += f"It runs the layers of the trained model in the order {plain(info.cut)}.\n"
    return text


def _training(loaded: LoadedModel) -> str:
    """The data that the model was trained on and the command that trained it, as far as they are known."""
    text = ""
    if loaded.data is not None:
        text += f"Data: {plain(loaded.data.name)}.\n"
    if loaded.command:
        # Indented by four spaces, lines are code in Markdown, whatever they hold.
        lines = [f"    {line.strip()}\n" for line in loaded.command.splitlines()]
        text += f"\nThis command trained it:\n\n{''.join(lines)}"
    return text


def scores_of(info: ModelInfo, evaluations: Sequence[Results], order: Order | None) -> str:
    """The scores of a model as Markdown.

    Args:
        info: the model.
        evaluations: results of the model.
        order: the order whose scores are wanted, or None for those of all orders.

    Raises:
        UserError: if an evaluation is of another checkpoint, of a model that was cut from it to other layers, or of
            another classifier.
    """
    for results in evaluations:
        _check_same_model(info, results)

    # Each evaluation has tables of its own, and the signs in all of them are explained once below.
    text = ""
    all_rows: tables.Rows = []
    for evaluation in evaluations:
        results = evaluation if order is None else _only(order, evaluation)
        for table_name, (header, rows) in tables.of(results).items():
            data = results.data
            about = [plain(data.name), f"{counted(data.images, 'image')} ({plain(str(data.split))})"]
            heading, shown = tables.excerpt(table_name, rows, results.quality)
            if table_name != "orders":
                about.append(heading)
            text += f"{', '.join(about)}:\n\n"
            text += f"{tables.markdown(header, shown)}\n"
            all_rows += rows
    if text:
        scores = itertools.chain.from_iterable(evaluation.scores for evaluation in evaluations)
        seeds = {info.name: 1}
        return text + tables.meaning(seeds, tables.ran_per_batch(scores), all_rows)
    if order is not None:
        return f"Not measured in the order {order}."
    return "Not measured."


def _check_same_model(info: ModelInfo, results: Results) -> None:
    """Raise a UserError if results are of another model than ``info`` describes, or of another classifier."""
    # Nothing but the weights and the layers that are left tells whether two models are the same.
    evaluated = results.model
    if (evaluated.sha256, evaluated.cut) != (info.sha256, info.cut):
        raise UserError(f"the results of {evaluated.source} are of another checkpoint than {info.source}")
    vote = results.evaluation.classifier
    if vote:
        raise UserError(
            f"the results of {evaluated.source} are of a vote of the {vote}, not of the model's own classifier: "
            "leave them out"
        )


def _only(order: Order, results: Results) -> Results:
    """The results with nothing but the first score of ``order``, which is shown as an order that the user gave."""
    variant: Variant = {"order": str(order)}
    for score in results.scores:
        # Texts of the same order can differ, such as (1|2) (1|2) and (1|2)*2, so orders are compared.
        if score.order and Order(score.order) == order:
            shown = replace(score, protocol="given", variant=variant)
            return replace(results, scores=[shown], measures=_class_counts_of(score, results, variant))
    return replace(results, scores=[], measures=())


def _class_counts_of(score: Score, results: Results, variant: Variant) -> tuple[Measure, ...]:
    """The counts by class of the order that has this score, as those of the order of ``variant``; empty without any."""
    by_class = results.measure(ByClassCounts)
    if by_class is None:
        return ()
    counts = by_class.of(tables.name_of((score.protocol, *score.variant.values())))
    # Counts over several orders say nothing of one of them.
    if counts is None or counts.samples != 1:
        return ()
    return (replace(by_class, orders=[replace(counts, protocol="given", variant=variant)]),)
