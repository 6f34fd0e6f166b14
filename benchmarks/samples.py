"""Samples of one quantity: how they are taken, and what may be said of them."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence

import attrs

__all__ = ["Case", "Summary", "interleave", "ratio_interval", "summarize"]

RESAMPLES = 2000


@attrs.frozen
class Case:
    """One contender's way of taking a sample.

    Attributes:
        sample: Takes one sample and returns it, in the benchmark's unit.
        per_round: Samples in a row in each round: a contender that is a hundred times slower than another would
            otherwise decide how few samples the other gets.
    """

    sample: Callable[[], float]
    per_round: int = 1


@attrs.frozen
class Summary:
    """What a list of samples says. ``mad`` is the median absolute deviation, in the samples' own unit."""

    count: int
    median: float
    p95: float
    minimum: float
    mad: float


def interleave(
    cases: Mapping[str, Case], *, rounds: int, warmup: int, seed: int = 1, tick: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Take samples of every case in turn, so that whatever disturbs the machine disturbs them alike.

    The order within a round is shuffled (from a fixed seed): what a contender leaves running behind it in the kernel
    then falls on every other equally often.
    """
    generator = random.Random(seed)
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(-warmup, rounds):
        order = list(cases)
        generator.shuffle(order)
        for name in order:
            for _ in range(cases[name].per_round):
                value = cases[name].sample()
                if turn >= 0:
                    taken[name].append(value)
        tick()
    return taken


def quantile(samples: Sequence[float], share: float) -> float:
    """The sample below which ``share`` of all lie (linear between neighbours)."""
    ordered = sorted(samples)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summarize(samples: Sequence[float]) -> Summary:
    """Count, median, 95th percentile, minimum and spread."""
    median = statistics.median(samples)
    return Summary(
        count=len(samples),
        median=median,
        p95=quantile(samples, 0.95),
        minimum=min(samples),
        mad=statistics.median(abs(sample - median) for sample in samples),
    )


def ratio_interval(over: Sequence[float], under: Sequence[float], seed: int = 1) -> tuple[float, float]:
    """The 95 % bootstrap interval of ``median(over) / median(under)``."""
    generator = random.Random(seed)
    ratios = [
        statistics.median(generator.choices(over, k=len(over)))
        / statistics.median(generator.choices(under, k=len(under)))
        for _ in range(RESAMPLES)
    ]
    return quantile(ratios, 0.025), quantile(ratios, 0.975)
