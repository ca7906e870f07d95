"""Where results come from: which model, on which data, with which settings, on which machine."""

from dataclasses import dataclass, field, replace
from typing import Any

from layershuffle import typed_json
from layershuffle.errors import UserError
from layershuffle.plurals import counted


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The model that was evaluated.

    Attributes:
        name: that of the checkpoint's file, of the folder, or timm's.
        source: the path of the checkpoint, or where else the weights are from.
        sha256: of the file with the weights, in hexadecimal.
        method: what the training is called, such as "layershuffle". This and the next six are None where they don't
            apply, as for a model that ``layershuffle train`` didn't make.
        sampler: that of the training's orders, as text.
        position_loss: how the losses of the layers' position predictions are put together.
        seed: of the training.
        version: of the package that trained it.
        merged: from which checkpoints its layers come, if ``layershuffle merge`` made it.
        compute: what its training cost: images, updates, layer executions, seconds.
        config: the arguments of ``create_model`` that make it again. "name" and "num_classes" are always there.
        thresholds: where images can have several labels, the probability from which on each class is named; None where
            each image has one label.
        cut: the order of the trained model's layers that is left, if only some are.
        classes: which of the model's classes were evaluated, in words, if not all.
        nulls: the keys that stand in the file without a value. Older versions left them out.
    """

    name: str
    source: str | None = None
    sha256: str | None = None
    method: str | None = None
    sampler: str | None = None
    position_loss: str | None = None
    seed: int | None = None
    version: str | None = None
    merged: dict[str, Any] | None = None
    compute: dict[str, Any] | None = None
    config: dict[str, Any]
    thresholds: list[float] | None = None
    cut: str | None = None
    classes: str | None = None
    nulls: frozenset[str] = field(default=frozenset(), compare=False, repr=False, metadata={"json": None})

    @property
    def backbone(self) -> str:
        """timm's name of the architecture."""
        return str(self.config["name"])

    @property
    def num_classes(self) -> int:
        """How many classes the model has."""
        return int(self.config["num_classes"])

    @classmethod
    def from_json(cls, content: Any) -> "ModelInfo":
        """Read what a results file has under "model"; raises UserError if it can't be that."""
        model = typed_json.read(cls, content, "model")
        typed_json.read(str, model.config.get("name"), "model.config.name")
        classes = typed_json.read(int, model.config.get("num_classes"), "model.config.num_classes")
        if classes < 1:
            raise UserError(f"model.config.num_classes is {classes}, and should be 1 or more")
        if model.thresholds is not None:
            are_probabilities = all(0 <= threshold <= 1 for threshold in model.thresholds)
            if len(model.thresholds) != classes or not are_probabilities:
                raise UserError("model.thresholds is not a probability for each class")
        # Writing the file again gives the same text: keys with null stay, those that were left out stay out.
        nulls = frozenset(key for key, value in content.items() if value is None)
        return replace(model, nulls=nulls)

    def to_json(self) -> dict[str, Any]:
        """What a results file has under "model"."""
        return dict(typed_json.write(self, self.nulls))


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """The images that were used.

    Attributes:
        name: what tables call the data set.
        data_class: the name or import path of its class.
        args: the class's arguments.
        split: which of its images were used: "test" or "val".
        images: how many images were used.
        classes: the names of its classes, if they have names.
    """

    name: str
    data_class: str | None = field(default=None, metadata={"json": "class"})
    args: dict[str, Any] | None = None
    split: str | None = None
    images: int
    classes: list[str] | None = None

    @classmethod
    def from_json(cls, content: Any) -> "DataInfo":
        """Read what a results file has under "data"; raises UserError if it can't be that."""
        data = typed_json.read(cls, content, "data")
        if data.images < 0:
            raise UserError(f"data.images is {data.images}, and should be 0 or more")
        return data

    def to_json(self) -> dict[str, Any]:
        """What a results file has under "data"."""
        return dict(typed_json.write(self))


@dataclass(frozen=True, kw_only=True)
class NeighbourVote:
    """The vote of training images that classified in place of the model's own classifier.

    Attributes:
        neighbours: how many images voted, those with the most similar features.
        images: from how many training images. The arguments of the data set say which ones.
        temperature: by which the similarities were divided, to weigh the votes.
    """

    neighbours: int
    images: int
    temperature: float

    def __str__(self) -> str:
        return counted(self.neighbours, "nearest neighbour")


@dataclass(frozen=True, kw_only=True)
class EvaluationInfo:
    """What was done with the model, and with which settings.

    Attributes:
        protocols: the families of orders that were scored; None if it is a study, which answers another question.
        random_orders: how many random orders stand for a random choice.
        order: the model's base order, in studies that need it.
        seed: decides everything random.
        batch_size: images per batch.
        classifier: the vote of training images that classified; None if the model's own classifier did.
        options: all other settings, those of the protocols or of the study, by name.
    """

    protocols: list[str] | None = None
    random_orders: int | None = field(default=None, metadata={"json": "draws"})
    order: str | None = None
    seed: int | None = None
    batch_size: int | None = None
    classifier: NeighbourVote | None = None
    options: dict[str, Any] = field(default_factory=dict, metadata={"json": None})

    @property
    def is_study(self) -> bool:
        """Whether it isn't a comparison of orders on all test images, but answers a question of its own."""
        return self.protocols is None

    @classmethod
    def from_json(cls, content: Any) -> "EvaluationInfo":
        """Read what a results file has under "evaluation"; raises UserError if it can't be that."""
        everything = typed_json.read(dict[str, Any], content, "evaluation")
        # In the file the options stand beside the fields: a key that isn't the name of a field is an option.
        known = typed_json.json_fields(cls)
        named = {}
        options = {}
        for key, value in everything.items():
            if key in known:
                named[key] = value
            else:
                options[key] = value
        info = replace(typed_json.read(cls, named, "evaluation"), options=options)
        vote = info.classifier
        if vote and (vote.neighbours < 1 or vote.images < vote.neighbours or vote.temperature <= 0):
            raise UserError("evaluation.classifier is no vote of one image or more")
        return info

    def to_json(self) -> dict[str, Any]:
        """What a results file has under "evaluation": one object of all settings."""
        named = dict(typed_json.write(self))
        # In files these two come first, then the options, then the other fields: a key stays where it stood first.
        first = {key: value for key, value in named.items() if key in ("protocols", "draws")}
        return {**first, **self.options, **named}


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where and when something was measured.

    Attributes:
        created: when, in ISO 8601.
        device: the device's name.
        processes: how many processes shared the images.
        precision: of the forward pass, such as "32-true".
        compiled: whether the layers were compiled.
        layershuffle: the version of this package; the next four are versions, too.
    """

    created: str | None = None
    device: str | None = None
    processes: int | None = None
    precision: str | None = None
    compiled: bool | None = None
    layershuffle: str | None = None
    torch: str | None = None
    timm: str | None = None
    lightning: str | None = None
    python: str | None = None

    @classmethod
    def from_json(cls, content: Any) -> "Environment":
        """Read what a results file has under "environment"; raises UserError if it can't be that."""
        return typed_json.read(cls, content, "environment")

    def to_json(self) -> dict[str, Any]:
        """What a results file has under "environment"."""
        return dict(typed_json.write(self))
