"""Which layers are kept, and how long what is left takes."""

from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure

from layershuffle.errors import UserError
from layershuffle.plurals import form
from layershuffle.results.figures.drawing import COLOURS, accuracy_panel, annotate, legend_below
from layershuffle.results.record import Measure, Results, register
from layershuffle.results.table import Table


@register
@dataclass(frozen=True)
class Pruning(Measure):
    """The search for the layers to keep.

    Attributes:
        images: how many images were searched on.
        milliseconds: the time per image by the number of layers that run; empty if no time was measured.
        chosen: the order that was chosen, as text.
    """

    name: ClassVar[str] = "prune"
    picture: ClassVar[str] = "prune"
    caption: ClassVar[str] = (
        "Accuracy of the best choice of each number of layers, against time if it was measured; the one that meets the "
        "budget is ringed."
    )
    protocols: ClassVar[tuple[str, ...]] = ("prune",)
    images: int
    milliseconds: dict[int, float]
    chosen: str

    def check(self, results: Results) -> None:
        """Raise a UserError if a number of layers that was scored has no time."""
        for score in results.of("prune"):
            kept = score.variant.get("kept")
            if self.milliseconds and kept not in self.milliseconds:
                raise UserError(f"prune has no time for {kept} {form(kept, 'layer')}")

    def figure(self, results: Results, title: str = "") -> Figure:
        """Accuracy against milliseconds, with the number of layers beside each point; without times against that."""
        xlabel = "layers kept"
        if self.milliseconds:
            xlabel = f"ms per image, batches of {results.evaluation.batch_size}"
        figure, axis = accuracy_panel(results, title, xlabel=xlabel)
        line = []
        for score in results.of("prune"):
            kept = score.variant["kept"]
            # Without times the number of layers itself is the x coordinate.
            point = (self.milliseconds.get(kept, kept), 100 * score.quality)
            # One score is of the chosen layers in another sequence, which ``prune`` searched for afterwards.
            if "sequence" in score.variant:
                axis.plot(*point, "D", color=COLOURS[2], markersize=5, label="the same in the sequence found")
            else:
                line.append(point)
                # Below the point: the sequence found, which is often a little better, would hide it above.
                annotate(axis, str(kept), *point, (0, -13))
            if score.order == self.chosen:
                axis.plot(*point, "o", color=COLOURS[1], markersize=11, fillstyle="none", label="chosen")
        axis.plot(*zip(*line), "o-", color=COLOURS[0], markersize=4, label="best layers, and their number")
        axis.set(xlim=(0, None))
        legend_below(figure)
        return figure

    def tables(self, results: Results) -> dict[str, Table]:
        """The best orders of each number of layers, with time and accuracy."""
        rows = []
        for score in results.of("prune"):
            kept = score.variant["kept"]
            row = [str(score.order), str(kept)]
            if self.milliseconds:
                row.append(f"{self.milliseconds[kept]:#.3g}")
            loss = "infinite" if score.loss is None else f"{score.loss:.4f}"
            rows.append([*row, f"{100 * score.quality:.2f}", loss])
        times = ["ms / image"] if self.milliseconds else []
        return {"prune": Table(["layers", "kept", *times, f"{results.quality} %", "loss"], rows)}
