"""Counts how dense the code is, beside six projects that read well. It is a thermometer: nothing fails by it.

    python -m benchmarks.style                # this package, and the other projects' figures
    python -m benchmarks.style layershuffle/data

All figures but the mean length of a line are per 1,000 lines that aren't blank.
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

COUNTS = {
    "comprehension": "comprehensions",
    "nested": "nested ones",
    "conditional": "if-else expressions",
    "walrus": "walruses",
    "multiple": "a, b = x, y",
    "comment": "comments",
    "length": "characters a line",
}

# What this script printed for other projects, at the commits named behind them, in the sequence of COUNTS.
OTHERS = {
    "nanochat": (14.6, 0.2, 11.2, 0.0, 5.5, 193.7, 52.4),  # 92d63d4, nanochat/ and scripts/
    "lightly": (9.7, 0.2, 5.5, 0.1, 1.3, 111.2, 42.0),  # 8f5a75c4, src/lightly_train/
    "dinov3": (12.0, 0.6, 8.1, 0.1, 2.3, 85.1, 42.1),  # 6876159, dinov3/
    "big_vision": (8.1, 0.3, 5.1, 0.9, 1.9, 172.8, 45.8),  # 0127fb6, big_vision/ (without two files that do not parse)
    "timm": (5.6, 0.2, 13.0, 0.1, 1.3, 52.6, 42.7),  # aa4b5850, timm/
    "petals": (17.6, 1.0, 11.6, 0.0, 3.2, 49.3, 50.6),  # 22afba6, src/petals/
}

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def python_files(paths: list[Path]) -> Iterator[Path]:
    """The Python files among ``paths`` and below the folders among them."""
    for path in paths:
        if path.is_dir():
            yield from sorted(path.rglob("*.py"))
        else:
            yield path


def is_nested(comprehension: ast.AST) -> bool:
    """Whether a comprehension has several loops, or holds another comprehension."""
    if len(comprehension.generators) > 1:  # type: ignore[attr-defined]
        return True
    inner = (node for node in ast.walk(comprehension) if node is not comprehension)
    return any(isinstance(node, COMPREHENSIONS) for node in inner)


def is_multiple(node: ast.AST) -> bool:
    """Whether a statement assigns several expressions to several names: ``a, b = x, y``."""
    if not isinstance(node, ast.Assign):
        return False
    return isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)


def count_constructs(source: str) -> Counter[str]:
    """How often each construct of COUNTS stands in ``source``."""
    counts: Counter[str] = Counter()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, COMPREHENSIONS):
            counts["comprehension"] += 1
            counts["nested"] += is_nested(node)
        counts["conditional"] += isinstance(node, ast.IfExp)
        counts["walrus"] += isinstance(node, ast.NamedExpr)
        counts["multiple"] += is_multiple(node)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        counts["comment"] += token.type == tokenize.COMMENT
    return counts


def measure(paths: list[Path]) -> dict[str, float]:
    """The figures of COUNTS over all Python files of ``paths``."""
    totals: Counter[str] = Counter()
    lines = 0
    characters = 0
    for path in python_files(paths):
        source = path.read_text()
        totals += count_constructs(source)
        for line in source.splitlines():
            if line.strip():
                lines += 1
                characters += len(line)

    # The last column isn't a count.
    figures = {name: 1000 * totals[name] / lines for name in COUNTS if name != "length"}
    figures["length"] = characters / lines
    return figures


def main() -> None:
    """Print a row for each figure and a column for each project."""
    paths = [Path(word) for word in sys.argv[1:]] or [Path("layershuffle")]
    ours = measure(paths)

    table = Table("per 1,000 lines", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for project in ["this", *OTHERS]:
        table.add_column(project, justify="right")
    for index, (name, title) in enumerate(COUNTS.items()):
        theirs = [f"{figures[index]:.1f}" for figures in OTHERS.values()]
        table.add_row(title, f"{ours[name]:.1f}", *theirs)
    Console().print(table)


if __name__ == "__main__":
    main()
