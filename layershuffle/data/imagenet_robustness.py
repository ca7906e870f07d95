"""ImageNet's robustness sets, with which models of its 1,000 classes are evaluated: A, R, V2, Sketch and C."""

import logging
import os
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.data import Dataset

from layershuffle import private_apis
from layershuffle.data.class_folders import ClassFolders, class_folders
from layershuffle.data.conditions import Conditions
from layershuffle.data.module import ImageData
from layershuffle.data.preprocessing import DecodedImages
from layershuffle.data.walking import PictureWalk
from layershuffle.errors import UserError
from layershuffle.plurals import counted, listed

logger = logging.getLogger(__name__)

Variant = Literal["A", "R", "V2", "Sketch", "C"]
VARIANTS = get_args(Variant)
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression", "speckle_noise",
    "gaussian_blur", "spatter", "saturate",
)  # fmt: skip
"""The corruptions of ImageNet-C. The last four are its authors' extra ones, which the mean corruption error ignores."""
SEVERITIES = (1, 2, 3, 4, 5)
GROUPS = (".", "noise", "blur", "weather", "digital", "extra")
"""The folders that may hold those of the corruptions: the root itself, or one for each archive of ImageNet-C."""


@cache
def imagenet_classes() -> dict[str, str]:
    """The WordNet ids of ImageNet-1k's classes in the sequence of their labels, and a description of each."""
    from timm.data import ImageNetInfo  # which takes most of a second

    info = ImageNetInfo("imagenet-1k")
    return dict(zip(info.label_names(), info.label_descriptions()))


def classes_of(variant: Variant) -> list[str]:
    """The WordNet ids of a set's classes, in the sequence of ImageNet's labels: A and R have 200, the others all."""
    if variant in ("A", "R"):
        return private_apis.classes_of_imagenet_set(variant.lower())
    return list(imagenet_classes())


class ImageNetRobustness(ImageData):
    """Test images for models of ImageNet's 1,000 classes: one of the sets A, R, V2, Sketch and C.

    ImageNet-A (arXiv 1907.07174) and ImageNet-R (arXiv 2006.16241) have 200 of the classes. The model picks among these
    200, and its other logits are left out, as in ``eval.py`` of github.com/hendrycks/natural-adv-examples and
    github.com/hendrycks/imagenet-r. ImageNetV2 (arXiv 1902.10811), ImageNet-Sketch (arXiv 1905.13549) and ImageNet-C
    (arXiv 1903.12261) have all classes.

    Args:
        root: the folder that holds the class folders, which are named by WordNet id, or those of V2 from 0 to 999; for
            C the folder that holds CORRUPTION/SEVERITY/CLASS, or noise/CORRUPTION/SEVERITY/CLASS and so on.
        variant: which of the sets it is.
        corruptions: those of C to evaluate on; by default all that are in the folder.
        severities: those of C to evaluate on, from 1 to 5.
        crop_pct: see ``ImageData``. Images of C are 224 pixels large, and by default not cropped, as in its authors'
            ``test.py`` (github.com/hendrycks/robustness).
        kwargs: further arguments of ``ImageData``.
    """

    def __init__(
        self,
        root: str,
        variant: Variant,
        corruptions: list[str] | None = None,
        severities: list[int] | None = None,
        crop_pct: float | None = None,
        **kwargs: Any,
    ) -> None:
        if variant not in VARIANTS:
            raise UserError(f"there is no ImageNet-{variant}: variant is one of {', '.join(VARIANTS)}")
        # The images of C have been cropped by its authors.
        if variant == "C" and crop_pct is None:
            crop_pct = 1.0
        super().__init__(crop_pct=crop_pct, **kwargs)

        if variant != "C" and (corruptions is not None or severities is not None):
            raise UserError(f"only ImageNet-C has corruptions and severities, not ImageNet-{variant}: leave them out")
        for name in corruptions or ():
            if name not in CORRUPTIONS:
                raise UserError(f"ImageNet-C has no corruption {name}: choose from {', '.join(CORRUPTIONS)}")
        for severity in severities or ():
            if severity not in SEVERITIES:
                raise UserError(f"ImageNet-C has the severities 1 to 5, and not {severity}")
        if corruptions == [] or severities == []:
            raise UserError("corruptions and severities name some each: leave them out for all")

        self.root = os.fspath(root)
        self.variant: Variant = variant
        self.corruptions = corruptions
        self.severities = severities
        self._conditions: Conditions | None = None

    @property
    def label(self) -> str:
        """The set with the corruptions and severities that were chosen, such as "ImageNet-C fog 3"."""
        words = [f"ImageNet-{self.variant}"]
        words += self.corruptions or []
        words += [str(severity) for severity in self.severities or []]
        return " ".join(words)

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """The number of classes that the set has."""
        return len(classes_of(self.variant))

    @property
    def class_names(self) -> list[str]:
        """The WordNet ids of the classes. Raises UserError if the folders are not those of the set."""
        return list(self._folders_of_classes)

    # --- The model ------------------------------------------------------------------------------------------

    @property
    def model_classes(self) -> int:
        """ImageNet's 1,000."""
        return len(imagenet_classes())

    def labels_in_model(self, classes: int, names: Sequence[str] | None) -> list[int]:
        """The label of each class in a model of ImageNet's 1,000; raises UserError if it has other classes."""
        if classes != self.model_classes:
            raise UserError(
                f"the model has {counted(classes, 'class')}, but {self.label} is for models of ImageNet's 1,000: give "
                "another model"
            )
        known = imagenet_classes()
        # A model that was trained on torchvision's ImageNet, or on the hub's, knows the classes by their descriptions.
        if names is None or list(names) == list(known.values()):
            names = list(known)
        label_of = {name: label for label, name in enumerate(names)}
        missing = [name for name in self.class_names if name not in label_of]
        if missing:
            raise UserError(
                f"the model was trained on other classes than ImageNet's: it has no {listed(missing)}, but {names[0]} "
                "and others: give another model"
            )
        return [label_of[name] for name in self.class_names]

    # --- The images -----------------------------------------------------------------------------------------

    def load(self, train: bool) -> Dataset:
        """The images. Raises UserError if training images are asked for, or a class has none."""
        if train:
            raise UserError(f"{self.label} has test images alone: evaluate models on it, with --split test")
        walk = PictureWalk()
        paths_of: dict[str, list[str]] = {}
        # The condition of each image, by its index among the subsets, in the sequence of the images.
        conditions: list[int] = []
        for wnid, folders in self._folders_of_classes.items():
            paths_of[wnid] = []
            for condition, folder in enumerate(folders):
                pictures = walk.pictures(folder)
                if not pictures:
                    raise UserError(f"{folder} has no images: {self._remedy} completely")
                paths_of[wnid] += pictures
                conditions += [condition] * len(pictures)
        if self.variant == "C":
            self._conditions = Conditions(list(self._subsets.values()), torch.tensor(conditions))
        images = ClassFolders(self.root, paths_of, self.picture_channels)
        return DecodedImages(images, self.image_size, self.unreadable, self.resizing, self.picture_channels)

    @property
    def conditions(self) -> Conditions | None:
        """Of ImageNet-C, the corruption and the severity of each image, once they are loaded."""
        return self._conditions

    @cached_property
    def _folders_of_classes(self) -> dict[str, list[str]]:
        """For each class, by its WordNet id and in the sequence of ImageNet's labels, its folder in each subset."""
        if not os.path.isdir(self.root):
            raise UserError(f"there is no folder {self.root}: {self._remedy}")
        class_folders_of_subsets = [self._class_folders(subset) for subset in self._subsets]
        folders_of_classes = {}
        for wnid in imagenet_classes():
            # A and R lack most of ImageNet's classes. All subsets have the same ones.
            if wnid in class_folders_of_subsets[0]:
                folders_of_classes[wnid] = [folder_of[wnid] for folder_of in class_folders_of_subsets]
        return folders_of_classes

    def _class_folders(self, subset: str) -> dict[str, str]:
        """The class folders in one folder, by WordNet id. Raises UserError if they are not those of the set."""
        names = class_folders(subset)
        if not names:
            raise UserError(f"{subset} has no class folders: {self._remedy}")

        # The name of each class's folder. ImageNetV2 names its folders by the labels.
        name_of: dict[str, str] = {}
        if self.variant == "V2":
            kind = "labels from 0 to 999"
            wnids = list(imagenet_classes())
            for name in names:
                if name.isdecimal() and int(name) < len(wnids):
                    name_of[wnids[int(name)]] = name
        else:
            kind = "WordNet ids of ImageNet's classes"
            name_of = {name: name for name in names if name in imagenet_classes()}
        unknown = sorted(set(names) - set(name_of.values()))
        if unknown:
            raise UserError(
                f"{subset} has {listed(unknown)}, but the folders of ImageNet-{self.variant} are {kind}: {self._remedy}"
            )

        # A and R have as many classes, but others, so that the number alone would not tell them apart.
        expected = classes_of(self.variant)
        foreign = sorted(set(name_of) - set(expected))
        if foreign:
            raise UserError(f"{subset} has {listed(foreign)}, which ImageNet-{self.variant} lacks: is it another set?")
        missing = sorted(set(expected) - set(name_of))
        if missing:
            raise UserError(f"{subset} lacks {listed(missing)} of ImageNet-{self.variant}: {self._remedy} completely")
        return {wnid: os.path.join(subset, name) for wnid, name in name_of.items()}

    @cached_property
    def _subsets(self) -> dict[str, tuple[str, int]]:
        """The folders that hold class folders, and for those of ImageNet-C their corruption and severity."""
        if self.variant != "C":
            return {self.root: ("", 0)}
        folders = self._corruption_folders()
        missing = [name for name in self.corruptions or () if name not in folders]
        if missing or not folders:
            raise UserError(f"{self.root} has no folder {listed(missing or CORRUPTIONS)}: {self._remedy}")
        # Who extracted only some of the archives should know that the scores are of these alone.
        if self.corruptions is None and len(folders) < len(CORRUPTIONS):
            rank_zero_only(logger.info)(
                "of the %d corruptions of ImageNet-C, %s has %s", len(CORRUPTIONS), self.root, ", ".join(folders)
            )
        subsets = {}
        for corruption in self.corruptions or folders:
            for severity in self.severities or SEVERITIES:
                subsets[os.path.join(folders[corruption], str(severity))] = (corruption, severity)
        return subsets

    def _corruption_folders(self) -> dict[str, str]:
        """The folder of each corruption that is there, in the sequence of ``CORRUPTIONS``."""
        folders: dict[str, str] = {}
        for corruption in CORRUPTIONS:
            for group in GROUPS:
                folder = Path(self.root) / group / corruption
                if folder.is_dir():
                    folders.setdefault(corruption, str(folder))
        return folders

    @property
    def _remedy(self) -> str:
        return f"name the folder into which ImageNet-{self.variant} was extracted"
