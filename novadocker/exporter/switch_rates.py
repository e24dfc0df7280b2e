# SPDX-License-Identifier: Apache-2.0
"""Reading Open vSwitch's bandwidth limits of ports, which Neutron's OVS agent sets for its QoS.

The policing of an interface limits the traffic that an instance sends, the first queue of its port
the traffic that it receives (ovs-vswitchd.conf.db(5)).
"""

from collections.abc import Mapping
from pathlib import Path

from novadocker import naming
from novadocker.exporter import probes
from novadocker.linux import ovsdb
from novadocker.state_files.port_rates import PortRate

_QUERIES = (
    ovsdb.Select("Interface", ("name", "ingress_policing_rate")),
    ovsdb.Select("Port", ("name", "qos")),
    ovsdb.Select("QoS", ("_uuid", "queues")),
    ovsdb.Select("Queue", ("_uuid", "other_config")),
)
_QUEUE = 0
_BYTE = 8
_KILOBIT = 1000


def read_rates(folder: Path) -> dict[str, PortRate]:
    """Return the limits of all limited ports, by the name of the port's host end.

    :param folder: directory of the sockets of Open vSwitch
    :raises OSError: Open vSwitch's database does not answer
    :raises ValueError: the answer is malformed
    """
    found = ovsdb.select(probes.database(folder), *_QUERIES)
    try:
        return _rates(*found)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"Open vSwitch's database sent a malformed answer: {found!r}") from error


def _rates(
    interfaces: list[ovsdb.Row],
    ports: list[ovsdb.Row],
    qos: list[ovsdb.Row],
    queues: list[ovsdb.Row],
) -> dict[str, PortRate]:
    shaped = {row["_uuid"][1]: _max_rate(dict(row["other_config"][1])) for row in queues}
    of_qos = {
        row["_uuid"][1]: shaped.get(queue[1])
        for row in qos
        for number, queue in row["queues"][1]
        if number == _QUEUE
    }
    received = {
        row["name"]: rate
        for row in ports
        if row["qos"][0] == "uuid" and (rate := of_qos.get(row["qos"][1]))
    }
    sent = {
        row["name"]: row["ingress_policing_rate"] * _KILOBIT // _BYTE
        for row in interfaces
        if row["ingress_policing_rate"]
    }
    return {
        naming.bridged_host_device(name) or name: PortRate(received.get(name), sent.get(name))
        for name in received.keys() | sent.keys()
    }


def _max_rate(other_config: Mapping[str, str]) -> int | None:
    text = other_config.get("max-rate", "")
    return int(text) // _BYTE if text.isascii() and text.isdigit() else None
