# SPDX-License-Identifier: Apache-2.0
"""Prometheus's text format 0.0.4, of labels whose text is known.

``prometheus_client.generate_latest`` says the same; it quotes the labels of each sample anew.
"""

from collections.abc import Iterable
from typing import cast

from prometheus_client import Metric

from novadocker.exporter.labels import KnownLabels

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(metrics: Iterable[Metric]) -> bytes:
    """Return gauges and counters as text.

    :param metrics: the labels of their samples are all ``KnownLabels``
    """
    lines = []
    for metric in metrics:
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        lines.append(f"# HELP {name} {metric.documentation}\n# TYPE {name} {metric.type}\n")
        samples = cast("list[tuple[str, KnownLabels, float]]", metric.samples)
        lines += [f"{sample[0]}{sample[1].text} {sample[2]}\n" for sample in samples]
    return "".join(lines).encode()
