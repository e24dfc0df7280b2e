# SPDX-License-Identifier: Apache-2.0
"""Limits in the switch's database; the engine tests read a real switch."""

import json
from pathlib import Path
from typing import Any

import pytest

from novadocker.exporter import switch_rates
from novadocker.state_files.port_rates import PortRate
from tests.unit.exporter.test_probes import answering

QOS, FOREIGN_QOS, QUEUE, OTHER_QUEUE = (f"{digit * 8}-0000" for digit in "1234")
INTERFACES = [
    {"name": "tap1", "ingress_policing_rate": 8},
    {"name": "tap2", "ingress_policing_rate": 0},
    {"name": "qvo3aaaa-b", "ingress_policing_rate": 16},
]
PORTS = [
    {"name": "tap1", "qos": ["uuid", QOS]},
    {"name": "tap2", "qos": ["set", []]},
    {"name": "qvo3aaaa-b", "qos": ["uuid", FOREIGN_QOS]},
]
# os-vif's QoS has the queue 0; the QoS for guaranteed bandwidth has other queues.
ALL_QOS = [
    {"_uuid": ["uuid", QOS], "queues": ["map", [[0, ["uuid", QUEUE]]]]},
    {"_uuid": ["uuid", FOREIGN_QOS], "queues": ["map", [[7, ["uuid", OTHER_QUEUE]]]]},
]
QUEUES = [
    {"_uuid": ["uuid", QUEUE], "other_config": ["map", [["max-rate", "80000"], ["burst", "8"]]]},
    {"_uuid": ["uuid", OTHER_QUEUE], "other_config": ["map", [["max-rate", "1"]]]},
]


def answer(*tables: object) -> bytes:
    result = [{"rows": rows} for rows in tables]
    return json.dumps({"id": 0, "error": None, "result": result}).encode()


def test_limits_of_both_directions(tmp_path: Path) -> None:
    with answering(tmp_path / "db.sock", answer(INTERFACES, PORTS, ALL_QOS, QUEUES)) as asked:
        assert switch_rates.read_rates(tmp_path) == {
            "tap1": PortRate(received=10_000, sent=1000),
            "tap3aaaa-b": PortRate(received=None, sent=2000),
        }
    # One transaction, so that all rows are from the same moment.
    assert json.loads(asked[0])["method"] == "transact"


@pytest.mark.parametrize(
    "tables",
    [
        (),
        (INTERFACES, PORTS, ALL_QOS),
        (INTERFACES, PORTS, ALL_QOS, [{"_uuid": "no"}]),
        (INTERFACES, [{"name": "tap1", "qos": 7}], ALL_QOS, QUEUES),
        (7, 7, 7, 7),
    ],
)
def test_another_answer_is_an_error(tmp_path: Path, tables: tuple[Any, ...]) -> None:
    with (
        answering(tmp_path / "db.sock", answer(*tables)),
        pytest.raises((OSError, ValueError), match="database sent a malformed answer"),
    ):
        switch_rates.read_rates(tmp_path)


def test_what_is_no_number_is_no_limit(tmp_path: Path) -> None:
    queues = [{**QUEUES[0], "other_config": ["map", [["max-rate", "much"]]]}]
    with answering(tmp_path / "db.sock", answer([], PORTS[:1], ALL_QOS[:1], queues)):
        assert switch_rates.read_rates(tmp_path) == {}
