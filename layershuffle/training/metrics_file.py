"""A CSV logger whose file a resumed run continues, without losing or repeating a row."""

import csv
import io
import math
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment

from layershuffle.files import write_whole


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger, which can continue the ``metrics.csv`` that is there.

    Args:
        save_dir: the folder of all runs.
        name: a folder between ``save_dir`` and the run's own, if any.
        from_step: keep the rows of the steps below this one; by default none.
    """

    def __init__(self, save_dir: str = "runs", name: str = "", from_step: int | None = None, **kwargs: Any) -> None:
        super().__init__(save_dir, name, **kwargs)
        self.from_step = from_step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The object that writes the file."""
        if self._experiment is None:
            self._fs.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _Writer(self.log_dir, self.from_step or 0)
        return self._experiment


class _Writer(ExperimentWriter):
    """Lightning's writer, which keeps earlier rows and never leaves half a file."""

    def __init__(self, log_dir: str, from_step: int) -> None:
        super().__init__(log_dir)
        if Path(self.metrics_file_path).is_file():
            self._rewrite_with_new_header([], from_step)

    def _check_log_dir_exists(self) -> None:
        """Do nothing: Lightning would delete the file here."""

    def _rewrite_with_new_header(self, fieldnames: list[str], end: float = math.inf) -> None:
        """Keep the rows of the steps before ``end``, under new columns or, by default, those that they have."""
        path = Path(self.metrics_file_path)
        # A kill may have cut the last row short, but then its step is run again.
        complete = path.read_bytes().rpartition(b"\n")[0]
        reader = csv.DictReader(io.StringIO(complete.decode(errors="replace"), newline=""))
        rows = [row for row in reader if (row.get("step") or "").isdecimal() and int(row["step"]) < end]
        if not rows:
            path.unlink()
            return
        self.metrics_keys = fieldnames or list(reader.fieldnames or ())
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=self.metrics_keys, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(path, text.getvalue())
