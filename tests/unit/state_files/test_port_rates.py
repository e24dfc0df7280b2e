# SPDX-License-Identifier: Apache-2.0
"""The rates of ports that the driver writes for the exporter."""

from pathlib import Path

from novadocker.state_files import port_rates
from novadocker.state_files.port_rates import Port, PortRate

UUID = "11111111-2222-3333-4444-555555555555"


def read(state_path: Path) -> dict[str, Port]:
    path = Path(port_rates.path_of(str(state_path), UUID))
    return port_rates.parse(path.read_text() if path.exists() else None)


def test_what_is_told_is_read(tmp_path: Path) -> None:
    rate = PortRate(received=None, sent=1250)
    port_rates.tell(tmp_path, UUID, [("tap1", "eth0"), ("tap2", "eth1")], rate)
    assert read(tmp_path) == {"eth0": Port(rate, "tap1"), "eth1": Port(rate, "tap2")}
    port_rates.tell(tmp_path, UUID, [("tap2", "eth1")], PortRate(None, None))
    assert read(tmp_path) == {"eth1": Port(PortRate(None, None), "tap2")}
    port_rates.forget(tmp_path, UUID)
    port_rates.forget(tmp_path, UUID)
    assert read(tmp_path) == {}


def test_a_disk_that_takes_nothing_costs_the_rates_alone(tmp_path: Path) -> None:
    port_rates.tell(tmp_path / "absent", UUID, [("tap1", "eth0")], PortRate(1, 1))
    port_rates.forget(tmp_path / "absent", UUID)


def test_what_is_no_rate_is_nothing() -> None:
    assert port_rates.parse("eth0 1\nlo 1 1\neth1 -1 1\neth2 1 1 a/b\n\neth3 7 -\n") == {
        "eth3": Port(PortRate(7, None), "")
    }


def test_of_two_limits_the_lower_one_counts() -> None:
    assert port_rates.lower(PortRate(5, None), PortRate(7, 3)) == PortRate(5, 3)
    assert port_rates.lower(PortRate(9, 2), PortRate(7, None)) == PortRate(7, 2)
    assert port_rates.lower(PortRate(None, 2), PortRate(None, 3)) == PortRate(None, 2)
