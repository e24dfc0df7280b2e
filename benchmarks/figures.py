# SPDX-License-Identifier: Apache-2.0
"""Medians, spreads and targets of samples, and their text; pure."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """The statistics of samples, in the samples' unit."""

    count: int
    minimum: float
    median: float
    p95: float
    maximum: float


@dataclass(frozen=True)
class Target:
    """A figure that must not exceed a limit."""

    name: str
    value: float
    limit: float

    @property
    def reached(self) -> bool:
        """Return True if the figure is within its limit."""
        return self.value <= self.limit


def summarize(samples: Iterable[float]) -> Summary:
    """Return the statistics of at least one sample; the 95th percentile is the nearest rank's."""
    ordered = sorted(samples)
    return Summary(
        count=len(ordered),
        minimum=ordered[0],
        median=statistics.median(ordered),
        p95=ordered[math.ceil(0.95 * len(ordered)) - 1],
        maximum=ordered[-1],
    )


def summaries(samples: Mapping[str, Iterable[float]]) -> dict[str, Summary]:
    """Return the statistics of each row's samples."""
    return {name: summarize(values) for name, values in samples.items()}


def median_parts(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each part; a part that a sample lacks counts as zero seconds."""
    names = dict.fromkeys(name for sample in parts for name in sample)
    return {name: statistics.median(sample.get(name, 0.0) for sample in parts) for name in names}


def table(title: str, unit: str, rows: Mapping[str, Summary], scale: float = 1.0) -> str:
    """Return summaries as text.

    :param scale: the factor from the samples' unit to ``unit``
    """
    lines = [
        f"{title} ({unit})",
        f"  {'':<44}{'n':>4}{'median':>10}{'p95':>10}{'min':>10}{'max':>10}",
    ]
    for name, row in rows.items():
        values = (row.median, row.p95, row.minimum, row.maximum)
        figures = "".join(f"{value * scale:>10.2f}" for value in values)
        lines.append(f"  {name:<44}{row.count:>4}{figures}")
    return "\n".join(lines)


def parts_table(parts: Mapping[str, Mapping[str, float]]) -> str:
    """Return the median parts of several rows, in ms, as text."""
    lines = ["Duration of each part (ms, medians)"]
    for name, values in parts.items():
        lines.append(f"  {name}")
        lines += [f"    {part:<42}{seconds * 1000:>14.1f}" for part, seconds in values.items()]
    return "\n".join(lines)


def verdict(targets: Iterable[Target]) -> str:
    """Return the targets as text."""
    return "\n".join(
        f"{'reached' if target.reached else 'MISSED ':<8} {target.name:<70}"
        f"{target.value:>8.2f}  (target: at most {target.limit:g})"
        for target in targets
    )
