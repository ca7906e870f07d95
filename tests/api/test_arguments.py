"""What a command refuses by the types of its options, functions refuse too, in one line, before a model is loaded."""

import numpy as np
import pytest

import layershuffle
from layershuffle.api.arguments import check_at_least, check_choice, check_seed
from layershuffle.api.serve import classify, serve
from layershuffle.choices import ExportFormat
from layershuffle.errors import UserError
from layershuffle.options import LARGEST_SEED

STUDIES = ("analyse", "depth", "evaluate", "linear_probe", "prune", "search", "similarity")


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("seed", 10**20),
        ("seed", -1),
        ("precision", "fp8"),
        ("batch_size", 0),
        ("batch_size", "many"),
        ("split", "train"),
    ],
)
def test_what_every_study_refuses(name, argument, value):
    study = getattr(layershuffle, name)
    arguments = {"accelerator": "cpu", argument: value}
    if name == "prune":
        arguments["keep"] = 1  # which it always needs
    with pytest.raises(UserError, match=argument):
        study("nowhere.ckpt", **arguments)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: layershuffle.analyse("nowhere.ckpt", study="contribution"), "study"),
        (lambda: layershuffle.analyse("nowhere.ckpt", images=2), "images"),
        (lambda: layershuffle.depth("nowhere.ckpt", repeats=0), "repeats"),
        (lambda: layershuffle.search("nowhere.ckpt", strategy="greed"), "strategy"),
        (lambda: layershuffle.search("nowhere.ckpt", strategy="climb", rounds=-1), "rounds"),
        (lambda: layershuffle.prune("nowhere.ckpt", keep=1, beam=0), "beam"),
        (lambda: layershuffle.prune("nowhere.ckpt", keep=1, rounds=-1), "rounds"),
        (lambda: layershuffle.export("nowhere.ckpt", "new", format="tim"), "format"),
        (lambda: layershuffle.export("nowhere.ckpt", "new", format="onnx", normalise="insde"), "normalise"),
        (lambda: layershuffle.export("nowhere.ckpt", "new", format="onnx", target="tpu"), "target"),
        (lambda: layershuffle.predict("nowhere.ckpt", "fox.jpg", top=0), "top"),
        (lambda: layershuffle.predict("nowhere.ckpt", "fox.jpg", batch_size=0), "batch_size"),
        (lambda: layershuffle.predict("nowhere.ckpt", "fox.jpg", random_orders=0), "random_orders"),
        (lambda: layershuffle.predict("nowhere.ckpt", "fox.jpg", seed=10**20), "seed"),
        (lambda: layershuffle.merge(["a.ckpt", "b.ckpt"], seed=10**20), "seed"),
        (lambda: layershuffle.simulate([12], seeds=[10**20]), "seed"),
        (lambda: layershuffle.simulate([12], seeds=[]), "seed"),
        (lambda: layershuffle.simulate([]), "number of nodes"),
        (lambda: layershuffle.train("mini_glyphs", "glyphs", seed=10**20), "seed"),
        (lambda: serve("nowhere.ckpt", top=0), "top"),
        (lambda: classify("nowhere.ckpt", ["fox.jpg"], "answers.jsonl", top=0), "top"),
    ],
)
def test_what_single_functions_refuse(call, argument):
    with pytest.raises(UserError, match=argument):
        call()


def test_an_accelerator_that_nobody_knows():
    with pytest.raises(UserError, match="quantum"):
        layershuffle.predict("mini_glyphs", "examples/letters/R.png", accelerator="quantum")


def test_what_passes():
    check_choice("format", "onnx", ExportFormat)  # a Literal that holds another one
    check_at_least(1, top=np.int64(1))
    check_seed(LARGEST_SEED)
    for value in (LARGEST_SEED + 1, "1", 1.5, None):
        with pytest.raises(UserError, match="seed"):
            check_seed(value)
