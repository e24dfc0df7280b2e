# SPDX-License-Identifier: Apache-2.0
"""Limits that OVN sets by meters; the cloud tests read a real ovn-controller."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from novadocker.exporter import ovn
from novadocker.linux import ovsdb
from novadocker.state_files.port_rates import PortRate

FLOWS = [f"{digit * 8}-0000-4000-8000-000000000000" for digit in "12345"]
SENT, RECEIVED, OTHER_HOST, FLOATING, GONE = FLOWS
LISTED = "\n".join(
    [
        f"__string: uuid {SENT} kbps burst stats bands=type=drop rate=8 burst_size=4: 1",
        f"__string: uuid {RECEIVED} kbps stats bands=type=drop rate=16: 2",
        f"__string: uuid {OTHER_HOST} kbps stats bands=type=drop rate=24: 3",
        f"__string: uuid {FLOATING} kbps stats bands=type=drop rate=32: 4",
        f"__string: uuid {GONE} kbps stats bands=type=drop rate=40: 5",
        "acl-log-meter: 6",
        "",
    ]
)
MATCHES = {
    SENT: 'inport == "port1"',
    RECEIVED: 'outport == "port1"',
    OTHER_HOST: 'outport == "port2"',
    FLOATING: 'inport == "port1" && ip4.src == 192.0.2.7 && is_chassis_resident("port1")',
}
INTERFACES = [
    {"name": "tap1", "external_ids": ["map", [["iface-id", "port1"]]]},
    {"name": "ovn-host2-0", "external_ids": ["map", []]},
]
RATES = {"tap1": PortRate(received=2000, sent=1000)}


class Databases:
    """The switch's database, the southbound database and ovn-controller."""

    def __init__(self, remote: str, listed: object = LISTED) -> None:
        self.ids = [["ovn-remote", remote]] if remote else []
        self.listed = listed
        self.asked: list[str] = []
        self.down: set[str] = set()

    def select(
        self, connection: str, *queries: ovsdb.Select, database: str = "Open_vSwitch"
    ) -> Sequence[Sequence[Mapping[str, Any]]]:
        if database == "Open_vSwitch":
            return [[{"external_ids": ["map", self.ids]}], INTERFACES]
        assert database == "OVN_Southbound"
        self.asked.append(connection)
        if connection in self.down:
            raise ConnectionRefusedError
        flows = [query.where[0][2][1] for query in queries]  # type: ignore[index]
        return [[{"match": MATCHES[flow]}] if flow in MATCHES else [] for flow in flows]

    def call(self, connection: str, method: str, parameters: Sequence[object]) -> object:
        assert (method, parameters) == ("meter-table-list", [])
        assert connection.endswith("/ovn-controller.7.ctl")
        return self.listed


@pytest.fixture
def meters(tmp_path: Path) -> ovn.Meters:
    (tmp_path / "ovn-controller.pid").write_text("7\n")
    return ovn.Meters("unix:/switch", tmp_path)


def use(monkeypatch: pytest.MonkeyPatch, databases: Databases) -> Databases:
    monkeypatch.setattr(ovsdb, "select", databases.select)
    monkeypatch.setattr(ovsdb, "call", databases.call)
    return databases


def test_limits_of_both_directions(meters: ovn.Meters, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports of other hosts, floating addresses and flows that are gone limit no port here."""
    use(monkeypatch, Databases("tcp:192.0.2.1:6642"))
    assert meters.read_rates() == RATES


def test_the_database_is_asked_for_new_flows_only(
    meters: ovn.Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    databases = use(monkeypatch, Databases("tcp:192.0.2.1:6642"))
    databases.listed = "\n".join(LISTED.splitlines()[:2])
    for _ in range(3):
        assert meters.read_rates() == RATES
    assert len(databases.asked) == 1
    databases.listed = ""
    assert meters.read_rates() == {}
    databases.listed = LISTED
    assert meters.read_rates() == RATES
    assert len(databases.asked) == 2


def test_the_next_server_of_a_cluster_is_asked(
    meters: ovn.Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    databases = use(monkeypatch, Databases("tcp:192.0.2.1:6642,tcp:192.0.2.2:6642"))
    databases.down = {"tcp:192.0.2.1:6642"}
    assert meters.read_rates() == RATES
    databases = use(monkeypatch, Databases("tcp:192.0.2.1:6642"))
    databases.down = {"tcp:192.0.2.1:6642"}
    databases.listed = LISTED.replace("1111", "6666")
    with pytest.raises(ConnectionRefusedError):
        meters.read_rates()


@pytest.mark.parametrize("remote", ["", "ssl:192.0.2.1:6642"])
def test_hosts_whose_limits_are_not_read(
    meters: ovn.Meters, monkeypatch: pytest.MonkeyPatch, remote: str
) -> None:
    databases = use(monkeypatch, Databases(remote))
    assert meters.read_rates() == {}
    assert databases.asked == []


@pytest.mark.parametrize("listed", [None, 7, "", "__string: uuid x kbps stats bands="])
def test_what_is_no_list_of_meters_has_no_limit(
    meters: ovn.Meters, monkeypatch: pytest.MonkeyPatch, listed: object
) -> None:
    use(monkeypatch, Databases("tcp:192.0.2.1:6642", listed))
    assert meters.read_rates() == {}


def test_a_malformed_answer_of_the_switch(
    meters: ovn.Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ovsdb, "select", lambda *_, **__: [[], []])
    with pytest.raises(ValueError, match="malformed"):
        meters.read_rates()


def test_an_ovn_controller_that_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ovn.ask_controller(tmp_path)
