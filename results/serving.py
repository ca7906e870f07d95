"""Makes the tables and the picture of several layers at a time in docs/findings/serving.md from results files.

    python results/serving.py results/serving --picture results/serving/widths.png

The folder has what ``python -m benchmarks.serving`` wrote: widths.json, answers.json and processes.json.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from layershuffle.results.figures import COLOURS
from layershuffle.results.tables import markdown

Records = list[dict[str, Any]]
"""The objects of a results file."""

WIDTHS = (1, 2, 3, 4, 6, 12)
COLUMNS = {
    "volunteers": ("volunteers", "float32"),
    "50 ms": ("50 ms", "float32"),
    "LAN": ("LAN", "float32"),
    "WAN": ("WAN", "float32"),
    "WAN, bf16": ("WAN", "bf16"),
    "WAN, int8": ("WAN", "int8"),
}
"""The networks of a table, and the form in which tokens travel there."""
TIMES = (0.3, 0.25, 0.2, 0.15)
"""The times by which requests are answered, in seconds."""
FAILURES = {"none": "all nodes there", "killed": "20% killed", "stopped": "20% stopped"}
"""What happens to the nodes."""


def chosen(records: Records, **values: Any) -> Records:
    """The records that have these values."""
    return [record for record in records if record.items() >= values.items()]


def latency(points: Records, index: int) -> float:
    """The mean over the seeds of the median (0), the 95th (1) or the 99th percentile (2), in seconds."""
    return fmean(point["latency"][index] for point in points)


def latency_table(points: Records, load: str) -> str:
    """The percentiles of each width in each network, and the median as a share of width 1's."""
    rows = []
    for width in WIDTHS:
        cells = []
        for network, wire in COLUMNS.values():
            of_network = chosen(points, network=network, wire=wire, load=load, answer_by=None)
            of_width = chosen(of_network, width=width)
            share = latency(of_width, 0) / latency(chosen(of_network, width=1), 0)
            percentiles = " / ".join(f"{latency(of_width, index):.3g}" for index in range(3))
            cells.append(f"{percentiles} ({share:.2f})")
        rows.append([str(width), *cells])
    return markdown(["width", *COLUMNS], rows)


def throughput_table(points: Records) -> str:
    """Requests a second at 80% load, as a share of width 1's, and the number at width 1."""
    rows = []
    for width in WIDTHS:
        cells = []
        for network, wire in COLUMNS.values():
            of_network = chosen(points, network=network, wire=wire, load="80%", answer_by=None)
            done = fmean(point["throughput"] for point in chosen(of_network, width=width))
            reference = fmean(point["throughput"] for point in chosen(of_network, width=1))
            cells.append(f"{done:.3g}/s" if width == 1 else f"{done / reference:.3f}")
        rows.append([str(width), *cells])
    return markdown(["width", *COLUMNS], rows)


def by_training(answers: Records) -> dict[str, Records]:
    """The records of each training, which names the folder of a seed's folder of a checkpoint."""
    records: defaultdict[str, Records] = defaultdict(list)
    for record in answers:
        records[Path(record["checkpoint"]).parts[-3]].append(record)
    return records


def answers_table(answers: Records) -> str:
    """Accuracy and layers missed by the time of the answer, while nothing, a kill or a stop happens to the nodes."""
    header = ["", "width 1", "width 4", *(f"by {time:g} s" for time in TIMES)]
    rows = []
    for failures, name in FAILURES.items():
        rows.append([f"layers missed, {name}", *_of_settings(answers, failures, "missed", 1)])
        for training, records in by_training(answers).items():
            rows.append([f"top-1, {training}, {name}", *_of_settings(records, failures, "top1", 100)])
    return markdown(header, rows)


def _of_settings(answers: Records, failures: str, value: str, factor: float) -> list[str]:
    settings = [{"width": 1, "answer_by": None}, {"width": 4, "answer_by": None}]
    settings += [{"width": 4, "answer_by": time} for time in TIMES]
    return [_mean(chosen(answers, failures=failures, **setting), value, factor) for setting in settings]


def _mean(records: Records, name: str, factor: float) -> str:
    return f"{factor * fmean(record[name] for record in records):.2f}" if records else ""


def processes_table(measured: Records) -> str:
    """What was measured on processes; shares are those of width 1 at the same load."""
    references: dict[str, float] = {}
    rows = []
    for point in measured:
        p50, p95, p99 = np.percentile(point["seconds"], [50, 95, 99])
        share = f"{p50 / references.setdefault(point['load'], p50):.2f}"
        answer_by = ""
        if point["answer_by"] is not None:
            answer_by = f"{point['answer_by']:g}"
            share = ""
        throughput = late = ""
        if point["throughput"]:
            throughput = f"{point['throughput']:.1f}"
            late = " / ".join(f"{1000 * point[name][1]:.0f}" for name in ("coordinator_late", "machine_late"))
        rows.append(
            [
                point["load"],
                str(point["width"]),
                answer_by,
                f"{p50:.3f} / {p95:.3f} / {p99:.3f}",
                share,
                f"{max(point['seconds']):.3f}",
                throughput,
                f"{fmean(point['missed']):.2f}",
                late,
            ]
        )
    header = [
        "load",
        "width",
        "answer by, s",
        "p50 / p95 / p99, s",
        "of width 1",
        "longest, s",
        "requests/s",
        "layers missed",
        "coordinator / machine late, ms",
    ]
    return markdown(header, rows)


def picture(points: Records, answers: Records, measured: Records, path: Path) -> None:
    """Plot latency against width, alone and at 80% load, and accuracy against the time of the answer."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    alone_axis, load_axis, accuracy_axis = figure.subplots(1, 3)
    for axis, load, title in ((alone_axis, "alone", "one request at a time"), (load_axis, "80%", "at 80% load")):
        for (name, (network, wire)), marker in zip(COLUMNS.items(), "osD^vP"):
            of_network = chosen(points, network=network, wire=wire, load=load, answer_by=None)
            shares = _shares([latency(chosen(of_network, width=width), 0) for width in WIDTHS])
            axis.plot(WIDTHS, shares, marker=marker, markersize=4, linewidth=1, label=name)
        medians = [np.median(chosen(measured, load=load, width=width)[0]["seconds"]) for width in WIDTHS]
        axis.plot(WIDTHS, _shares(medians), "k*--", linewidth=1, label="50 ms, real processes")
        axis.set(title=title, xlabel="width", xticks=WIDTHS, ylim=(0, 1.05))
        axis.grid(axis="y", alpha=0.3)
    alone_axis.set_ylabel("median latency, as a share of width 1")

    for (training, records), colour in zip(by_training(answers).items(), COLOURS):
        for failures, style in (("none", "o-"), ("stopped", "x--")):
            found = [chosen(records, failures=failures, answer_by=time) for time in TIMES]
            accuracies = [100 * fmean(record["top1"] for record in of_time) for of_time in found]
            label = f"{training}, {FAILURES[failures]}"
            accuracy_axis.plot(TIMES, accuracies, style, color=colour, markersize=4, linewidth=1, label=label)
    accuracy_axis.set(title="width 4 over 50 ms, at 80% load", xlabel="answer by, s", ylabel="top-1 accuracy, %")
    accuracy_axis.set(ylim=(0, 100), xticks=TIMES)
    accuracy_axis.grid(axis="y", alpha=0.3)
    accuracy_axis.legend(frameon=False, loc="lower right", fontsize="small")
    figure.legend(*alone_axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def _shares(latencies: list[Any]) -> list[float]:
    return [seconds / latencies[0] for seconds in latencies]


def main() -> None:
    """Print the tables, and plot the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--picture", type=Path, metavar="FILE")
    args = parser.parse_args()
    points, answers, processes = (
        json.loads((args.folder / f"{name}.json").read_text()) for name in ("widths", "answers", "processes")
    )
    measured = processes["measured"]
    for title, table in {
        "alone": latency_table(points, "alone"),
        "at 80% load": latency_table(points, "80%"),
        "throughput at 80% load": throughput_table(points),
        "answers": answers_table(answers),
        "processes": processes_table(measured),
    }.items():
        print(f"## {title}\n\n{table}\n")
    if args.picture:
        picture(points, answers, measured, args.picture)


if __name__ == "__main__":
    main()
