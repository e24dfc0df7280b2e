# SPDX-License-Identifier: Apache-2.0
"""Rendering of Prometheus's text format 0.0.4 from labels with cached text.

``prometheus_client.generate_latest`` returns the same text but quotes the labels of each sample at
each scrape.
"""

from collections.abc import Iterable
from typing import cast

from prometheus_client import Metric

from novadocker.exporter.labels import KnownLabels

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(metrics: Iterable[Metric]) -> bytes:
    """Return gauges and counters as text.

    :param metrics: metrics whose samples all have ``KnownLabels``
    """
    lines = []
    for metric in metrics:
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        lines.append(f"# HELP {name} {metric.documentation}\n# TYPE {name} {metric.type}\n")
        samples = cast("list[tuple[str, KnownLabels, float]]", metric.samples)
        lines += [f"{sample[0]}{sample[1].text} {sample[2]}\n" for sample in samples]
    return "".join(lines).encode()
