"""A logger whose CSV file a resumed run continues, without losing or repeating a row."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from torch import Tensor

from layershuffle.files import append_whole, write_whole

METRICS_FILE = ExperimentWriter.NAME_METRICS_FILE
"""The name of the file in a run's folder: "metrics.csv"."""


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger, which can continue the ``metrics.csv`` that is there.

    Args:
        save_dir: the folder of all runs.
        name: a folder between ``save_dir`` and the run's, if any.
        version: the name or number of the run's folder, by default the next number.
        prefix: what the names of metrics begin with.
        flush_logs_every_n_steps: how often to write the rows.
        from_step: keep the rows of the steps below this one; by default none.
    """

    def __init__(
        self,
        save_dir: str = "runs",
        name: str = "",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
        from_step: int | None = None,
    ) -> None:
        super().__init__(save_dir, name, version, prefix, flush_logs_every_n_steps)
        self.from_step = from_step
        self._writer: MetricsWriter | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The object that writes the file. Only the first process has it."""
        if self._writer is None:
            self._writer = MetricsWriter(Path(self.log_dir), self.from_step or 0)
        return self._writer

    def finalize(self, status: str) -> None:
        """Write the last rows, if there was anything to log."""
        if self._writer is not None:
            self._writer.save()


class MetricsWriter:
    """Writes ``metrics.csv``: a column for each metric and a row for each step with metrics.

    It has the interface of Lightning's ExperimentWriter.

    Args:
        folder: the run's folder.
        from_step: keep the rows of the steps below this one that the file already has.

    Attributes:
        metrics: the rows that are not written yet.
    """

    def __init__(self, folder: Path, from_step: int) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        self.metrics: list[dict[str, Any]] = []
        self._folder = folder
        self._path = folder / METRICS_FILE
        self._columns: list[str] = []
        # Steps that were logged after the last checkpoint are run again, and would be there twice.
        if self._path.is_file():
            columns, rows = self._read(before=from_step)
            self._columns = columns if rows else []
            self._replace(rows)

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Add a row of numbers or tensors of one element."""
        row: dict[str, Any] = {"step": step}
        for name, value in metrics.items():
            row[name] = value.item() if isinstance(value, Tensor) else value
        self.metrics.append(row)

    def log_hparams(self, parameters: dict[str, Any]) -> None:
        """Do nothing: a run's options are in its config.yaml."""

    def save(self) -> None:
        """Write the rows that are not written yet; if that fails, raise UserError and leave the file as it was."""
        if not self.metrics:
            return
        columns = set(self._columns).union(*self.metrics)
        if len(columns) > len(self._columns):
            # Metrics that were not logged before need a new header.
            self._columns = sorted(columns)
            if self._path.is_file():
                self._replace(self._read(before=math.inf)[1])
        self._append()
        self.metrics = []

    def _read(self, before: float) -> tuple[list[str], list[dict[str, str]]]:
        """The columns of the file, and its rows of the steps before this one."""
        # A kill may have cut the last row short, but then its step is run again.
        complete = self._path.read_bytes().rpartition(b"\n")[0].decode(errors="replace")
        reader = csv.DictReader(io.StringIO(complete, newline=""))
        # Anything but a number in the place of the step is no row of ours.
        rows = []
        for row in reader:
            step = row.get("step") or ""
            if step.isdecimal() and int(step) < before:
                rows.append(row)
        return list(reader.fieldnames or ()), rows

    def _replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Make the file one of these rows. It is never there by half."""
        if not rows:
            self._path.unlink()
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=self._columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self._path, text.getvalue())

    def _append(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=self._columns)
        if not self._path.is_file():
            writer.writeheader()
        writer.writerows(self.metrics)
        append_whole(self._path, text.getvalue())
