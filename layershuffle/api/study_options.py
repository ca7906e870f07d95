"""The options that all functions which study a model take, and all commands which do.

They stand apart from the studies, so that a command knows them without importing torch.
"""

from typing import Literal, TypedDict

from layershuffle.choices import Precision

BatchSize = int | Literal["auto"] | None
"""Images per batch; "auto" takes the most that fit the GPU's memory, None as many as the data set says."""


class StudyOptions(TypedDict, total=False):
    """How a study computes. Each option is a keyword argument, such as ``layershuffle.depth(model, seed=1)``.

    ``start_study`` has the default of an option that is left out.

    Attributes:
        seed: decides everything random; 0 by default.
        accelerator: Lightning's name of the device to run on; by default "auto", a GPU if there is one.
        precision: of the forward pass; "32-true" by default. "auto" measures which one is faster.
        compile: whether to compile the layers, which takes about a minute; by default they are not.
        batch_size: images per batch, by default as many as the data set says. "auto" takes the most that fit the GPU's
            memory.
    """

    seed: int
    accelerator: str
    precision: Precision
    compile: bool
    batch_size: BatchSize
