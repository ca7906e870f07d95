"""The paper's comparison in miniature: train a small model in the usual way, refine copies of it, evaluate each."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import auto_cli
from rich.console import Console

from layershuffle.commands import Parser, main
from layershuffle.commands.evaluate import evaluate_command
from layershuffle.commands.train import train
from layershuffle.errors import UserError
from layershuffle.report import plots, tables
from layershuffle.results import Results, write_whole

CONFIGS = Path(__file__).parents[2] / "configs"
METHODS = ("baseline", "layershuffle", "layershuffle_position", "layershuffle_predict")


def quickstart(
    model: str = "mini_digits",
    data: str = "digits",
    methods: Sequence[str] = METHODS,
    epochs: int = 25,
    refine_epochs: int = 16,
    draws: int = 10,
    keep: Sequence[int] = (3, 6, 9),
    seed: int = 0,
    output: Path = Path("quickstart"),
    train_images: int | None = None,
    test_images: int | None = None,
) -> list[Results]:
    """Train one small model in the usual way, refine a copy of it by each method, and compare their accuracy.

    Everything it runs is printed as the command that does the same by hand.

    Args:
        model: a file in configs/model.
        data: a file in configs/data.
        methods: files in configs/method.
        epochs: of the ordinary training.
        refine_epochs: of each refinement.
        draws: how many random orders stand for arbitrary order, and for each random choice when pruning.
        keep: the numbers of layers to keep when pruning.
        seed: of everything random.
        output: the folder for checkpoints, results, table and plot; what an earlier run left there is replaced.
        train_images: use only so many training images, chosen at random.
        test_images: use only so many test images, chosen at random.
    """
    for kind, names in (("model", [model]), ("data", [data]), ("method", list(methods))):
        for name in names:
            if not (CONFIGS / kind / f"{name}.yaml").is_file():
                known = ", ".join(sorted(path.stem for path in (CONFIGS / kind).glob("*.yaml")))
                raise UserError(f"there is no configs/{kind}/{name}.yaml: choose from {known}")
    console = Console()
    limits = {"train_images": train_images, "test_images": test_images}
    images = [f"--data.{name}={count}" for name, count in limits.items() if count is not None]

    def fine_tune(name: str, method: str, *options: str) -> str:
        folder = output / name
        args = [f"--config={_config(*at)}" for at in (("model", model), ("data", data), ("method", method))]
        args += [f"--config={_config('trainer', 'cpu')}", f"--config={_config('optimizer', 'mini')}"]
        args += [f"--seed_everything={seed}", f"--trainer.logger.save_dir={output}", f"--trainer.logger.name={name}"]
        args += ["--trainer.logger.version=", f"--checkpoint.dirpath={folder}", *images, *options]
        if not console.is_terminal:
            args.append("--trainer.enable_progress_bar=false")
        console.print(f"$ python train.py {shlex.join(args)}", style="dim", soft_wrap=True, highlight=False)
        train(args)
        return str(folder / "best.ckpt")

    base = fine_tune("base", "baseline", f"--trainer.max_epochs={epochs}")
    several = []
    for method in methods:
        refined = [f"--model.pretrained={base}", f"--trainer.max_epochs={refine_epochs}"]
        checkpoint = fine_tune(method, method, *refined)
        args = [checkpoint, "--orders", str(draws), "--keep", *map(str, keep), f"--seed={seed}"]
        args.append(f"--output={output / method}.json")
        console.print(f"$ python evaluate.py {shlex.join(args)}", style="dim", soft_wrap=True, highlight=False)
        several.append(evaluate_command(args))
    header, rows = tables.comparison(several)
    title = f"{several[0].data['name']}: {several[0].data['images']} test images, {draws} draws of each random order"
    plots.overview(several, output / "overview.png", title)
    write_whole(output / "table.md", tables.markdown(header, rows))
    console.print(tables.terminal(header, rows, title))
    console.print(f"results: {output}/*.json\ntable: {output}/table.md\nplot: {output}/overview.png", highlight=False)
    return several


def _config(kind: str, name: str) -> Path:
    path = CONFIGS / kind / f"{name}.yaml"
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    main(lambda: auto_cli(quickstart, as_positional=False, parser_class=Parser))
