"""How well the features of a frozen model tell classes apart."""

from dataclasses import dataclass
from typing import ClassVar

from layershuffle.errors import UserError
from layershuffle.results.estimates import of_images
from layershuffle.results.levels import MOST_FREQUENT, is_skewed
from layershuffle.results.record import Measure, Results, register
from layershuffle.results.table import Table
from layershuffle.results.tables.wording import percent


@dataclass(frozen=True)
class ProbeScore:
    """The accuracy of a classifier of features, 0 to 1.

    Attributes:
        val: on the validation images.
        test: on the test images.
        balanced: the mean over classes of the accuracy on the test images; None in files of older versions.
    """

    val: float
    test: float
    balanced: float | None = None


@register
@dataclass(frozen=True)
class LinearProbe(Measure):
    """A linear classifier on frozen features, and a vote of the nearest neighbours as yardstick.

    Attributes:
        images: how many training, validation and test images there were.
        neighbours: how many training images vote.
        nearest: the accuracy of the vote.
        penalty: the weight of the L2 penalty, which validation images chose.
        linear: the accuracy of logistic regression with it.
        most_frequent: the share of the most frequent class among the test images; None in files of older versions.
    """

    name: ClassVar[str] = "linear_probe"
    images: list[int]
    neighbours: int
    nearest: ProbeScore
    penalty: float
    linear: ProbeScore
    most_frequent: float | None = None

    def levels(self, results: Results) -> dict[str, float]:
        """The accuracy of always naming the most frequent class, if it is known."""
        return {} if self.most_frequent is None else {MOST_FREQUENT: 100 * self.most_frequent}

    def check(self, results: Results) -> None:
        """Raise a UserError if an accuracy is no share, or there are other images than those of three parts."""
        if len(self.images) != 3 or min(self.images) < 1 or self.neighbours < 1:
            raise UserError("linear_probe has no number of training, validation and test images and of neighbours")
        shares = [self.most_frequent]
        for score in (self.nearest, self.linear):
            shares += [score.val, score.test, score.balanced]
        for share in shares:
            if share is not None and not 0 <= share <= 1:
                raise UserError(f"linear_probe has an accuracy that is no share: {share}")

    def tables(self, results: Results) -> dict[str, Table]:
        """The accuracies of both classifiers, and of skewed data those in which every class has the same weight."""
        classifiers = {
            f"{self.neighbours} nearest neighbours": self.nearest,
            f"logistic regression, L2 penalty {self.penalty:g}": self.linear,
        }
        rows = []
        train, val, test = self.images
        for classifier, score in classifiers.items():
            # Validation images chose the penalty, so that an interval for them would promise too much.
            on_test = percent(of_images(score.test, test))
            rows.append([classifier, f"{100 * score.val:.2f}", on_test])
        rows.append([f"images, besides {train} for training", str(val), str(test)])
        header = ["classifier", "validation", "test"]
        # Where classes are about equally frequent, the column would repeat the one before it.
        if is_skewed(self.most_frequent, results):
            header.append("balanced test")
            for row, score in zip(rows, classifiers.values()):
                row.append("n/a" if score.balanced is None else f"{100 * score.balanced:.2f}")
            rows[-1].append("")
        return {"linear probe": Table(header, rows)}
