"""Does a fine-tuning work that means something?"""

from pathlib import Path
from typing import Any

from layershuffle.api.evaluate import evaluate
from layershuffle.api.train import TrainedRun, train
from layershuffle.gpu_check.checks import Outcome, Setting, check, new_folder, require
from layershuffle.results import Results, summarise

RANDOM_ORDERS = 20
METHODS = ("baseline", "layershuffle")
LEAST_GAIN = 0.1
"""How much accuracy shuffling has to gain in random orders. It is more than chance explains, and less than is usual."""


@check(
    "fine-tuning",
    "real",
    "A ViT-B/16 that is refined with shuffled layers is better in random orders than one that is refined as usual from "
    "the same weights.",
    seconds=480,
)
def fine_tuning(setting: Setting) -> Outcome:
    """Refine a model with both methods, and evaluate both."""
    # Both methods begin with the same weights, as in the paper. Without a file of weights, they are trained here.
    weights = setting.pretrained
    if not weights:
        pretraining = refine(setting, "baseline", pretrained=None, epochs=8 if setting.is_gpu else 1)
        weights = str(pretraining.best)

    accuracies: dict[str, dict[str, float]] = {}
    for method in METHODS:
        run = refine(setting, method, weights, epochs=5)
        assert run.best, "a training that is validated has a best checkpoint"
        results = evaluate(
            run.best,
            protocols=["sequential", "arbitrary"],
            random_orders=RANDOM_ORDERS,
            accelerator=setting.trainer,
            precision="bf16-mixed" if setting.is_gpu else "32-true",
            compile=setting.is_gpu,
        )
        accuracies[method] = accuracy(results)

    texts = []
    for method, values in accuracies.items():
        in_sequence = f"{values['sequential']:.1%} sequential"
        in_random = f"{values['arbitrary']:.1%} in {RANDOM_ORDERS} random orders"
        texts.append(f"{method}: {in_sequence}, {in_random}")
    figure = "; ".join(texts)
    gained = accuracies["layershuffle"]["arbitrary"] - accuracies["baseline"]["arbitrary"]
    require(gained > LEAST_GAIN, f"shuffling helped by {gained:.1%}, not by more than {LEAST_GAIN:.0%}: {figure}")
    return Outcome(f"{results.data.name}: {figure}", details=accuracies)


def refine(setting: Setting, method: str, pretrained: str | None, epochs: int) -> TrainedRun:
    """Train ViT-B/16, or on a CPU a small model.

    Args:
        setting: the device.
        method: the name of the method's config.
        pretrained: the file with the weights to start from; None for random ones.
        epochs: the number of epochs.
    """
    is_gpu = setting.is_gpu
    # The sizes for a CPU are chosen so that a run takes seconds. Five epochs have 565 updates: after only a few
    # hundred, it is a matter of chance whether shuffling gains anything.
    options: dict[str, Any] = {
        "model.pretrained": pretrained or False,
        "data.test_images": 1000 if is_gpu else 200,
        "trainer.enable_progress_bar": False,
    }
    if not is_gpu:
        shape = {"img_size": 28, "patch_size": 7, "embed_dim": 48, "num_heads": 3, "depth": 4}
        options["model.timm_args"] = shape

    # Real pictures are a better test than the glyphs, but this command downloads nothing.
    if Path("data/FashionMNIST/raw/train-images-idx3-ubyte").is_file():
        data = "fashion_mnist"
        options["data.train_images"] = 20000 if is_gpu else 2000
    else:
        data = "glyphs"
        options["data.classes"] = 50 if is_gpu else 10
        options["data.images_per_class"] = 400 if is_gpu else 200
        options["data.test_images_per_class"] = 20

    # A small model takes larger steps than ViT-B/16, and weights that were pretrained on real images take the smallest.
    if not is_gpu:
        learning_rate = 2e-3
    elif setting.pretrained:
        learning_rate = 1e-4
    else:
        learning_rate = 3e-4
    return train(
        "vit_b16",
        data,
        method,
        optimizer="mini",
        trainer=setting.trainer,
        max_epochs=epochs,
        batch_size=128 if is_gpu else 16,
        learning_rate=learning_rate,
        folder=new_folder() / "run",
        options=options,
    )


def accuracy(results: Results) -> dict[str, float]:
    """Top-1, 0 to 1, in the original sequence ("sequential") and as the mean over fixed random orders ("arbitrary")."""
    in_sequence = [score.quality for score in results.scores if score.protocol == "sequential"]
    in_random = [score.quality for score in results.scores if score.protocol == "arbitrary" and score.order]
    require(len(in_random) == RANDOM_ORDERS, f"{len(in_random)} orders were evaluated, not {RANDOM_ORDERS}")
    return {"sequential": in_sequence[0], "arbitrary": summarise(in_random).mean}
