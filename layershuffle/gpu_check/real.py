"""Does a fine-tuning work that means something?"""

import json
from pathlib import Path
from typing import Any

from layershuffle.gpu_check.checks import Found, Setting, check, new_folder, require
from layershuffle.results import Results, summarise

ORDERS = 20


def experiment(setting: Setting) -> dict[str, Any]:
    """What ``layershuffle experiment`` is to run: ViT-B/16 on Fashion-MNIST if it is there, otherwise on glyphs."""
    fashion = Path("data/FashionMNIST/raw/train-images-idx3-ubyte").is_file()
    data = ["data/fashion_mnist", "--data.train_images=20000"]
    if not fashion:
        data = ["data/glyphs", "--data.classes=50", "--data.images_per_class=400", "--data.test_images_per_class=20"]
    data += ["--data.batch_size=128", "--data.test_images=1000"]
    rate = "1e-4" if setting.pretrained else "3e-4"
    train = ["model/vit_b16", *data, "trainer/gpu", "optimizer/mini", f"--model.optimizer.lr={rate}"]
    epochs, base = (5, 8) if setting.cuda else (1, 1)
    if not setting.cuda:
        train[train.index("trainer/gpu")] = "trainer/cpu"
        small = "{img_size: 28, patch_size: 7, embed_dim: 48, num_heads: 3, depth: 4}"
        train += [f'--model.timm_args="{small}"', "--data.classes=10", "--data.images_per_class=200"]
        train += ["--data.test_images=100", "--model.optimizer.lr=5e-3", "--data.batch_size=16"]
    train.append(f"--model.pretrained={setting.pretrained or 'false'}")
    methods = {name: [f"method/{name}", f"--trainer.max_epochs={epochs}"] for name in ("baseline", "layershuffle")}
    precision = "--precision=bf16-mixed --compile" if setting.cuda else ""
    arguments = [f"--protocols sequential arbitrary --orders={ORDERS} {precision}"]
    setup = {"train": train, "methods": methods, "evaluations": {"results": {"arguments": arguments}}}
    if not setting.pretrained:
        setup["base"] = ["method/baseline", f"--trainer.max_epochs={base}"]
    return {"title": "A fine-tuning on this GPU", "seeds": [0], "setups": {"vit": setup}}


@check("real", seconds=480)
def fine_tuning(setting: Setting) -> Found:
    """A ViT-B/16 that is refined with shuffled layers is better in random orders than one that is refined as usual from
    the same weights; `layershuffle experiment` trains and evaluates them."""
    folder = new_folder()
    (folder / "gpu.yaml").write_text(json.dumps(experiment(setting)))
    output = folder / "experiment"
    setting.command(["experiment", f"--scale={folder / 'gpu.yaml'}", f"--output={output}", "--jobs=1"])
    found: dict[str, dict[str, float]] = {}
    for method in ("baseline", "layershuffle"):
        results = Results.load(output / "vit" / method / "seed0" / "results.json")
        fixed = [score.top1 for score in results.scores if score.protocol == "arbitrary" and score.order]
        require(len(fixed) == ORDERS, f"{method} was evaluated in {len(fixed)} orders, not in {ORDERS}")
        sequential = next(score.top1 for score in results.scores if score.protocol == "sequential")
        found[method] = {"sequential": sequential, "arbitrary": summarise(fixed).mean}
    figure = "; ".join(
        f"{method}: {scores['sequential']:.1%} sequential, {scores['arbitrary']:.1%} in {ORDERS} random orders"
        for method, scores in found.items()
    )
    require(found["layershuffle"]["arbitrary"] > found["baseline"]["arbitrary"], f"shuffling did not help: {figure}")
    return Found(f"{results.data.name}: {figure}", details=found)
