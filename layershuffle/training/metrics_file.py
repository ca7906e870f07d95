"""A CSV logger whose file a resumed run goes on with: no row is lost, none is there twice."""

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment

from layershuffle.files import write_whole


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger, which can go on with the ``metrics.csv`` that is there.

    Args:
        save_dir: the folder of all runs.
        name: a folder in between, if any.
        version: the run's own folder, by default version_0, version_1, ...
        prefix: what stands before every metric's name.
        flush_logs_every_n_steps: how many steps may be lost of those logged by hand; what the trainer logs is
            written at once.
        from_step: keep the rows of an earlier run's steps below this; None for a new file.
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

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """What writes the file."""
        if self.from_step is None:
            return super().experiment
        if self._experiment is None:
            self._experiment = _Continued(self.log_dir, self.from_step)
        return self._experiment


class _Continued(ExperimentWriter):
    def __init__(self, log_dir: str, from_step: int) -> None:
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        rows = []
        if path.is_file():
            # A kill can cut the last row; the step it belongs to is run again.
            whole = path.read_bytes().rpartition(b"\n")[0].decode(errors="replace")
            reader = csv.DictReader(io.StringIO(whole, newline=""))
            rows = [row for row in reader if (row.get("step") or "").isdecimal() and int(row["step"]) < from_step]
            self.metrics_keys = list(reader.fieldnames or ())
        if rows:
            self._write(rows)
        else:
            path.unlink(missing_ok=True)
            self.metrics_keys = []

    def _check_log_dir_exists(self) -> None:
        """Lightning's would remove the file."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with Path(self.metrics_file_path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self._write(rows)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=self.metrics_keys, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.metrics_file_path, text.getvalue())
