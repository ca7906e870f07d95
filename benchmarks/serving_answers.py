"""The answers of ``benchmarks.serving``: accuracy against ``answer_by``, while nodes are killed or stopped.

Requests run in the simulator, at 80% load over nodes with 50 ms of delay, and a model classifies test images in a
sample of the orders that ran.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from benchmarks.serving_widths import ANSWER_BY, ANY, FAILING, LOAD, NETWORKS, STEP_DEADLINES
from layershuffle.api.study import start_study
from layershuffle.files import write_whole
from layershuffle.orders.order import seeded
from layershuffle.orders.protocols import Trial
from layershuffle.results.tables import markdown
from layershuffle.serving.actions import Ended
from layershuffle.serving.policy import Policy
from layershuffle.serving.scenario import Scenario
from layershuffle.serving.simulator import simulate

ORDERS = 30
"""In how many of the orders that ran the images are classified."""
NETWORK = "50 ms"
NEAR = NETWORKS[NETWORK]
FAILURES = {"none": {}, "killed": {"kills": FAILING}, "stopped": {"stopped": FAILING}}
"""What happens to the nodes: a fifth of them is killed, one after the other, or stops when the measured time begins."""


@dataclass(frozen=True)
class Answers:
    """How good the answers are at one width and time.

    Attributes:
        checkpoint: the model.
        seed: of the simulation.
        failures: what happens to the nodes, a key of FAILURES.
        width: at how many nodes a request may be.
        answer_by: the time by which requests were answered, in seconds, or None.
        latency: the median, the 95th and the 99th percentile, in seconds.
        missed: the mean number of layers that a request missed.
        missed_in_sample: that of the orders that were scored.
        top1: the mean accuracy in these orders, from 0 to 1.
    """

    checkpoint: str
    seed: int
    failures: str
    width: int
    answer_by: float | None
    latency: tuple[float, float, float]
    missed: float
    missed_in_sample: float
    top1: float


def measure_answers(checkpoints: Sequence[str], images: int, output: Path) -> None:
    """Simulate requests and score models, the nth of them with seed n; writes what was found, and prints a table."""
    measured = []
    for seed, checkpoint in enumerate(checkpoints):
        # The load is a share of what these nodes do at most, which the simulator tells.
        full = simulate(replace(NEAR, window=2.0), ANY, seed).throughput
        loaded = replace(NEAR, rate=LOAD * full)
        four = replace(ANY, width=4, step_deadline=STEP_DEADLINES[NETWORK])
        settings = [("none", ANY)]
        for failures in FAILURES:
            settings += [(failures, replace(four, answer_by=time)) for time in (None, *ANSWER_BY[NETWORK])]

        samples = []
        for failures, policy in settings:
            samples.append(_Sample(replace(loaded, **FAILURES[failures]), policy, seed))
        accuracies = _accuracies(checkpoint, images, samples)
        for (failures, policy), sample, top1 in zip(settings, samples, accuracies):
            measured.append(
                Answers(
                    checkpoint,
                    seed,
                    failures,
                    policy.width,
                    policy.answer_by,
                    sample.latency,
                    sample.missed,
                    sample.missed_in_sample,
                    top1,
                )
            )
    write_whole(output, json.dumps([asdict(answers) for answers in measured], indent=1) + "\n")
    print(table(measured))


class _Sample:
    """A simulation, and a sample of the orders that ran.

    Attributes:
        orders: the orders.
        latency: as in ``Outcome``.
        missed: as in ``Outcome``.
        missed_in_sample: the mean number of layers that the orders miss.
    """

    def __init__(self, scenario: Scenario, policy: Policy, seed: int) -> None:
        ran: list[Ended] = []

        def on_ended(ended: Ended, time: float) -> None:
            # The first quarter warms up.
            if time >= scenario.duration / 4 and not ended.failed:
                ran.append(ended)

        outcome = simulate(scenario, policy, seed, on_ended)
        rng = seeded("answers", seed)
        sample = sorted(ran, key=lambda _: rng.random())[:ORDERS]
        self.orders = [ended.order for ended in sample]
        self.latency = outcome.latency
        self.missed = outcome.missed
        self.missed_in_sample = fmean(len(ended.missed) for ended in sample)


def _accuracies(checkpoint: str, images: int, samples: Sequence[_Sample]) -> list[float]:
    """The mean accuracy of a model in the orders of each sample, on so many of the test images."""
    study = start_study(
        checkpoint,
        None,
        split="test",
        seed=0,
        accelerator="cpu",
        precision="32-true",
        compile=False,
        batch_size=None,
    )
    base_order = study.model.order
    trials: list[Trial] = []
    for sample in samples:
        trials += [Trial("recorded", order.over(base_order)) for order in sample.orders]
    some, _ = study.data.parts("test", images / len(study.data.sets["test"]), 0)
    # All samples are scored in one pass, in which orders that begin alike share their first steps. The scores come in
    # the sequence of the trials.
    scores = iter(study.score(trials, some))
    return [fmean(next(scores).top1 for _ in sample.orders) for sample in samples]


def table(measured: Sequence[Answers]) -> str:
    """A Markdown table, means over the checkpoints."""
    by_setting: dict[tuple[str, int, float | None], list[Answers]] = {}
    for answers in measured:
        by_setting.setdefault((answers.failures, answers.width, answers.answer_by), []).append(answers)
    rows = []
    for (failures, width, answer_by), of_seeds in by_setting.items():
        percentiles = [f"{fmean(answers.latency[index] for answers in of_seeds):.3f}" for index in range(3)]
        rows.append(
            [
                failures,
                str(width),
                "" if answer_by is None else f"{answer_by:g}",
                *percentiles,
                f"{fmean(answers.missed for answers in of_seeds):.2f}",
                f"{fmean(answers.missed_in_sample for answers in of_seeds):.2f}",
                f"{100 * fmean(answers.top1 for answers in of_seeds):.2f}",
            ]
        )
    header = ["nodes", "width", "answer by, s", "p50, s", "p95, s", "p99, s", "missed", "in the sample", "top-1, %"]
    return markdown(header, rows)
