"""The options that several commands have: each is defined once, so that a word means the same everywhere.

``add_options(parser, "split", seed=3)`` adds ``--split`` with the default that stands here and ``--seed`` with another.
An option of one command alone is defined by that command.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt, restricted_number_type

from layershuffle.choices import Classifier, Precision, Split

TOKEN = "LAYERSHUFFLE_TOKEN"
"""The environment variable that may hold the token of the clients of ``layershuffle serve``."""

LARGEST_SEED = 2**32 - 1
"""The largest seed that numpy takes; torch and Python would take larger ones."""
Seed = restricted_number_type("Seed", int, [(">=", 0), ("<=", LARGEST_SEED)])
"""What seeds numpy, and so everything else, too."""


@dataclass(frozen=True)
class Option:
    """An option or a positional argument of several commands.

    Attributes:
        help: what it is for: whole phrases that can be understood without the option's name.
        type: the type of its value, or of each of its values.
        default: its value where neither the command line nor the command says otherwise.
        choices: the values that there are, if they can be counted.
        metavar: what stands for the value in the help, if not the option's name.
        several: whether it takes one or more values.
    """

    help: str
    type: Any = str
    default: Any = None
    choices: tuple[str, ...] | None = None
    metavar: str | None = None
    several: bool = False

    def arguments(self) -> dict[str, Any]:
        """The arguments of ``add_argument`` that hold for an option and for a positional argument."""
        arguments: dict[str, Any] = {"help": self.help}
        # A type and choices exclude each other in jsonargparse.
        if self.choices:
            arguments["choices"] = self.choices
        else:
            arguments["type"] = self.type
        if self.metavar:
            arguments["metavar"] = self.metavar
        if self.several:
            arguments["nargs"] = "+"
        return arguments


POSITIONALS = {
    "checkpoint": Option(
        "Model to use: a checkpoint, an exported folder, a folder with one of the LayerShuffle authors' checkpoints, "
        "the name of a timm model, the name of a published model such as mini_glyphs, or hf-hub:USER/NAME, which is "
        "downloaded.",
    ),
    "pictures": Option("Picture files, and folders of which all pictures are taken.", several=True),
}

OPTIONS = {
    # What to run.
    "pretrained": Option(
        "Weights of a timm model: a file, or 'random' (default: timm's, which are downloaded).", str | None
    ),
    "img_size": Option(
        "Pixels of the height and the width of the images of a timm model (default: those of its weights).",
        PositiveInt | None,
        metavar="N",
    ),
    "split": Option("Which images of the data set to use.", default="test", choices=get_args(Split)),
    "order": Option(
        "Order to run the layers in, such as '3 1 2' or 'sandwich(3)'; an order of one layer is '(3)' (default: the "
        "model's own).",
        metavar="ORDER",
        several=True,
    ),
    "random_orders": Option("How many random orders to sample.", PositiveInt | None, metavar="N"),
    "classifier": Option(
        "What classifies: the model's own classifier, or a vote of the training images with the nearest features, as "
        "in DINO, which needs no classifier.",
        default="own",
        choices=get_args(Classifier),
    ),
    "neighbours": Option("How many training images vote, if the nearest ones do.", PositiveInt, 20, metavar="N"),
    "depths": Option("Numbers of layers to keep (default: every one).", PositiveInt, metavar="N", several=True),
    "fraction": Option("Share of the images that the search uses; the others score its result.", float, 0.5),
    "rounds": Option("Largest number of exchanges of two layers in the search.", NonNegativeInt, 20, metavar="N"),
    "repeats": Option(
        "How often to measure the time of each number of layers; the shortest time counts.",
        PositiveInt,
        20,
        metavar="N",
    ),
    # What is random.
    "seed": Option("Seed of everything random.", Seed, 0, metavar="N"),
    "seeds": Option("Seeds of everything random, one run for each.", Seed, metavar="N", several=True),
    # Where and how fast to run.
    "accelerator": Option("Where to run.", default="auto", choices=("auto", "cpu", "gpu", "mps")),
    "precision": Option(
        "Precision of the computation; auto measures whether 32-true or bf16-mixed is faster for this model here.",
        default="32-true",
        choices=get_args(Precision),
    ),
    "compile": Option("Compile the layers: the first batches take a minute longer, all others less.", bool, False),
    "batch_size": Option(
        "Images per batch; auto takes the most that fit the GPU's memory (default: as the data set says).",
        PositiveInt | Literal["auto"] | None,
        metavar="N",
    ),
    "threads": Option("Threads of each process.", PositiveInt, 1, metavar="N"),
    "workers": Option("Processes that read images (default: one per core).", NonNegativeInt | None, metavar="N"),
    # Serving and simulating.
    "nodes": Option("How many nodes to start.", PositiveInt, 6, metavar="N"),
    "cluster_sizes": Option("Numbers of nodes to simulate.", PositiveInt, (12, 48, 240), metavar="N", several=True),
    "event_log": Option("File to append events, and the orders that ran, to.", Path | None, metavar="FILE"),
    "recorded_orders": Option(
        "Event log of layershuffle serve or layershuffle simulate whose orders to run.", str | None, metavar="FILE"
    ),
    "max_missed": Option("How many layers a request may skip, if requests skip layers.", NonNegativeInt, 3),
    "patience": Option("Seconds that a request waits before it skips layers, if requests skip layers.", float, 1.0),
    "step_deadline": Option("Seconds after which a node that hasn't answered is suspected.", float, 10.0),
    "request_deadline": Option("Seconds after which a request fails.", float, 60.0),
    "visit": Option("How many layers in a row a node may run for a request.", PositiveInt, 1, metavar="N"),
    "width": Option("How many nodes may work on a request at a time.", PositiveInt, 1, metavar="N"),
    "answer_by": Option(
        "Seconds after which a request is answered with the results that have arrived (default: it waits for all).",
        PositiveFloat | None,
        metavar="SECONDS",
    ),
    # What to write, and whether to go on.
    "top": Option("How many classes to name for a picture that shows one.", PositiveInt, 5, metavar="N"),
    "output": Option("File to write.", Path | None, metavar="FILE"),
    "folder": Option("Folder to write to.", Path | None, metavar="DIR"),
    "only": Option("Patterns of the names to include; all others are left out.", metavar="PATTERN", several=True),
    "resume": Option("Continue what the same command began, or begin it.", bool, False),
}
"""The options by name, without the dashes before it."""


def add_positionals(parser: ArgumentParser, *names: str) -> None:
    """Add the positional arguments ``names`` to a command's parser, in this sequence."""
    for name in names:
        parser.add_argument(name, **POSITIONALS[name].arguments())


def add_options(parser: ArgumentParser, *names: str, **defaults: Any) -> None:
    """Add options to a command's parser: those of ``names`` as they are, and those of ``defaults`` with a default."""
    for name in (*names, *defaults):
        option = OPTIONS[name]
        default = defaults.get(name, option.default)
        # Defaults stand here as tuples, which nobody can change, and jsonargparse expects lists for options of several
        # values.
        if isinstance(default, tuple):
            default = list(default)
        parser.add_argument(f"--{name}", default=default, **option.arguments())


def add_one_order(parser: ArgumentParser) -> None:
    """Add ``--order`` to the parser of a command that runs one order alone."""
    parser.add_argument("--order", default=None, **replace(OPTIONS["order"], several=False).arguments())
