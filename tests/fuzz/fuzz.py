"""Fuzzes a reader with atheris, guided by coverage, until it breaks or the time is over.

pip install atheris; python tests/fuzz/fuzz.py orders|results|checkpoints|configs -max_total_time=60

A crash is anything but a UserError. What broke is kept as a test in tests/test_hostile.py.
"""

import io
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["layershuffle"]):
    from layershuffle.commands.parser import Parser
    from layershuffle.errors import UserError
    from layershuffle.models.weights import read_file
    from layershuffle.orders.order import Order
    from layershuffle.reproduction.experiments import Experiment
    from layershuffle.results.record import Results, Score

import contextlib

import torch

FOLDER = Path(tempfile.mkdtemp())


def orders(data: bytes) -> None:
    """Text that is an order parses back to the same one."""
    order = Order(data.decode(errors="replace"))
    assert Order(str(order)) == order


def results(data: bytes) -> None:
    """A results file."""
    path = FOLDER / "results.json"
    path.write_bytes(data)
    str(Results.load(path).label)


def checkpoints(data: bytes) -> None:
    """A checkpoint, or safetensors."""
    path = FOLDER / ("file.safetensors" if data[:1] == b"s" else "file.ckpt")
    path.write_bytes(data[1:])
    read_file(path)


def configs(data: bytes) -> None:
    """Two configs, one on top of the other."""
    parser = Parser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Experiment, "experiment")
    paths = [FOLDER / "one.yaml", FOLDER / "two.yaml"]
    for path, part in zip(paths, data.partition(b"\0")[::2]):
        path.write_bytes(part)
    parser.parse_args([f"--config={path}" for path in paths])


TARGETS = {target.__name__: target for target in (orders, results, checkpoints, configs)}


def seeds(name: str) -> dict[str, bytes]:
    """What to begin with: a whole file of each kind."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(2, 2)}}, buffer)
    path = FOLDER / "seed.json"
    Results({"name": "x"}, {"name": "y", "images": 1}, {}, {}, [Score("s", {}, "0", 1, 0.5, 1.0, 1.0, None)]).save(path)
    yaml = b"experiment:\n  seeds: &s [0]\n  setups: {a: {train: [model/vit_b16], methods: {b: []}, evaluations: {}}}\n"
    return {
        "orders": {"a": b"0 (1|2)*3 4a 4f"},
        "results": {"a": path.read_bytes()},
        "checkpoints": {"a": b"c" + buffer.getvalue(), "b": b"s\x02\0\0\0\0\0\0\0{}"},
        "configs": {"a": yaml + b"\0" + yaml},
    }[name]


def main() -> None:
    """Fuzz the reader that the command line names."""
    name, *options = sys.argv[1:]
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for seed, content in seeds(name).items():
        (corpus / seed).write_bytes(content)

    def one(data: bytes) -> None:
        with contextlib.suppress(UserError):
            TARGETS[name](data)

    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
