"""How many rows per second a cluster trains with: a model of a few rates, and its picture.

Runners play while the learners learn. In each round the driver hands out what has been played and
waits until the learners have written it and learned from it. With n runners, l learners and a
training intensity of i (rows trained per row sampled) a row therefore takes, in seconds,

    max(runner / n,  driver + (write + i * train(l)) / l + (ask + update) / rows)
    train(l) = train + exchange * log2(l)

where `exchange` is what averaging the gradients adds for every doubling of the learners, and `ask`
and `update` are what two calls to the learners take for all `rows` of a round: one that makes them
write, and one that makes them learn. Processes that share few cores take all their processor time
together.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from benchmarks.measure import RESULTS
from rllib_mfq.arena.plots import COLORS

FRAGMENT = 10 * 2 * 81  # rows of a runner's round: steps, groups, agents
ROW_BYTES = 13 * 13 * 5 * 4 + 2 * 21 * 4 + 20  # of battle: observation, two means, the rest


@dataclass(frozen=True)
class Cost:
    """Seconds of one core for a row of battle: played, handed out, written, trained once.

    Attributes:
        runner: a row played; 0 for runners that cost nothing.
        driver: a row handed out.
        write: a row written into a remote learner's memory.
        train: a row trained by one learner.
        exchange: added to `train` for every doubling of the learners.
        ask: a call to the learners, whatever it has them write.
        update: a call to the learners, whatever it has them train.
    """

    runner: float
    driver: float
    write: float
    train: float
    exchange: float
    ask: float
    update: float

    def rows_per_second(
        self, runners: int, learners: int, intensity: float, cores: float = math.inf
    ) -> float:
        """What the model says; `cores` are shared by all processes."""
        trained = intensity * (self.train + self.exchange * math.log2(learners))
        rows = runners * FRAGMENT  # of a round
        learn = self.driver + (self.write + trained) / learners
        learn += (self.ask + (self.update if intensity else 0.0)) / rows
        together = self.runner + self.driver + self.write + trained
        return 1 / max(self.runner / runners, learn, together / cores)

    def best(self, cores: int, intensity: float) -> tuple[int, int, float]:
        """Runners, learners and rows per second of the best use of a cluster's cores.

        One core is the driver's.
        """
        splits = [
            (n, cores - 1 - n, self.rows_per_second(n, cores - 1 - n, intensity))
            for n in range(1, cores - 1)
        ]
        return max(splits, key=lambda split: split[2])


def worst(points: Iterable[Mapping[str, float]]) -> float:
    """The factor by which the model is farthest from what was measured."""
    return float(2 ** max(abs(math.log2(p["model"] / p["measured"])) for p in points))


def picture(recorded: Mapping[str, Any]) -> None:
    """Draws `results/scaling.png`: what was measured against the model, and the predictions."""
    cost, points = Cost(**recorded["cost"]), recorded["points"]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    cases = sorted({(point["learners"], point["intensity"]) for point in points})
    for color, (learners, intensity) in zip(COLORS, cases, strict=False):
        mine = [p for p in points if (p["learners"], p["intensity"]) == (learners, intensity)]
        counts = [point["runners"] for point in mine]
        name = f"{learners} learner{'s' * (learners > 1)}, " + (
            f"{intensity:g} trained per row" if intensity else "not training"
        )
        left.plot(counts, [p["measured"] for p in mine], "o", color=color, label=name)
        left.plot(counts, [p["model"] for p in mine], "--", color=color)
    left.set(
        xscale="log",
        yscale="log",
        xlabel="env runners that cost nothing",
        ylabel="rows per second",
        title="measured (points), model (lines)",
    )
    left.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    left.minorticks_off()
    left.yaxis.set_major_formatter(EngFormatter())
    left.legend(fontsize=7, loc="center right")
    for color, intensity in zip(COLORS, (0.25, 0.5, 2.0), strict=False):
        cores = [4, 8, 16, 32, 64, 128, 256]
        reached = [cost.best(n, intensity)[2] for n in cores]
        right.plot(cores, reached, "o-", color=color, label=f"{intensity:g} trained per row")
    right.set(xscale="log", yscale="log", xlabel="cores", title="prediction, battle_v4 on CPUs")
    right.set_xticks([4, 16, 64, 256], ["4", "16", "64", "256"])
    right.minorticks_off()
    right.yaxis.set_major_formatter(EngFormatter())
    right.legend(fontsize=7)
    figure.savefig(RESULTS / "scaling.png", dpi=150)
