"""What a study leaves: the table on the terminal, the results file, pictures, CSV files, and what W&B gets."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, WandbLogger
from rich.console import Console

from layershuffle.api.embed import Embeddings
from layershuffle.errors import UserError
from layershuffle.files import check_writable, write_whole
from layershuffle.results import Results, figures, summarise, tables
from layershuffle.training import run_loggers


def choose_file(output: Path | None, checkpoint: str, kind: str) -> Path:
    """The results file: ``output``, or else a new file beside the checkpoint that is named after ``kind``.

    Raises:
        UserError: before the work begins, if it can't be written.
    """
    path = output or _new_file(checkpoint, kind)
    # Pictures and CSV files get the same name with other endings.
    if path.suffix != ".json" or path.is_dir():
        raise UserError(f"--output {path} is not the name of a file that ends in .json")
    # Results may be replaced by newer ones. Any other file is kept, for the name is likely a mistake.
    if path.exists():
        try:
            Results.load(path)
        except UserError as error:
            raise UserError(f"{path} exists and is no results file: give another --output") from error
    check_writable(path)
    return path


def _new_file(checkpoint: str, kind: str) -> Path:
    """A file that isn't there yet: ``best.evaluation.json``, or ``best.evaluation-2.json`` and so on."""
    source = Path(checkpoint)
    # The names of timm's models may have colons. They have dots, too, which begin no suffix.
    stem = source.with_suffix("") if source.is_file() else Path(source.name.replace(":", "_"))
    path = Path(f"{stem}.{kind}.json")
    number = 1
    while path.exists():
        number += 1
        path = Path(f"{stem}.{kind}-{number}.json")
    return path


@rank_zero_only
def leave(results: Results, output: Path, logger: Logger | None = None) -> None:
    """Save results, print them, draw them, and send them to W&B. Of several processes, the first one does so.

    Args:
        results: what a study returned.
        output: the results file. Pictures and CSV files stand beside it.
        logger: a W&B logger, to which tables and pictures are sent.

    Raises:
        UserError: if the disk is full, after the tables are printed and the results are saved elsewhere if possible.
    """
    # Saving comes first, because the terminal may be closed. If it fails, the tables are printed all the same: they are
    # all that is left of the work of hours.
    not_saved = None
    try:
        results.save(output)
    except UserError as error:
        not_saved = error
    console = Console(markup=False)
    for part in tables.printed(results):
        console.print(part)
    if not_saved:
        path = save_elsewhere(results, output)
        left = f"the results are in {path}" if path else "the tables above are all that is left"
        raise UserError(f"{not_saved}; {left}") from not_saved

    # The paths are printed last, where they are seen.
    lines = [f"results: {output}"]
    pictures = figures.draw(results, output, tables.title(results))
    lines.extend(f"plot: {path}" for path in pictures.values())
    for measure in results.measures:
        for name, table in measure.files(results).items():
            path = output.with_suffix(f".{name}.csv")
            write_whole(path, tables.as_csv(*table))
            lines.append(f"table: {path}")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)

    # What is on the disk counts: if W&B can't be reached, that is a warning.
    if isinstance(logger, WandbLogger):
        run_loggers.begin(logger)
        run_loggers.forgiving(_send, logger)(logger, results, pictures)


def save_elsewhere(results: Results | Embeddings, output: Path) -> Path | None:
    """Save what the disk has no room for in the folder for temporary files; returns where, or None if it can't be."""
    # A new folder, in which nobody can have put a link.
    path = Path(tempfile.mkdtemp(prefix="layershuffle-")) / output.name
    try:
        results.save(path)
    except (UserError, OSError):
        return None
    return path


def _send(logger: WandbLogger, results: Results, pictures: Mapping[str, Path]) -> None:
    """Send tables, pictures, and the mean of each group of orders to a W&B run, and end the run."""
    for name, (header, rows) in tables.of(results).items():
        logger.log_table(f"evaluation/{name}", columns=header, data=rows)
    for name, path in pictures.items():
        logger.log_image(f"evaluation/{name}", [str(path)])
    for group, scores in results.groups().items():
        name = "/".join(map(str, group))
        calibration = fmean(score.ece for score in scores if score.ece is not None)
        logger.experiment.summary[f"evaluation/{name}"] = summarise(score.quality for score in scores).mean
        logger.experiment.summary[f"evaluation ECE/{name}"] = calibration
    logger.experiment.finish()
