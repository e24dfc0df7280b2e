# SPDX-License-Identifier: Apache-2.0
"""OVN on this host: whether ovn-controller works, and the bandwidth limits that it sets.

OVN limits a port by a meter of a logical flow. ovn-controller lists its meters with the id of the
flow (``meter-table-list``), and the southbound database has the flow with the name of the port.
"""

import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from novadocker.linux import ovsdb
from novadocker.state_files.port_rates import PortRate

# encode_SET_METER in OVN's lib/actions.c, versions 22.03 to 26.03
_METER = re.compile(
    r"__string: uuid ([0-9a-f-]{36}) kbps (?:burst )?stats bands=type=drop rate=([0-9]{1,12})\b"
)
# _ovn_qos_rule_match in Neutron's neutron/plugins/ml2/drivers/ovn/mech_driver/ovsdb/extensions
_MATCH = re.compile(r'(inport|outport) == "([^"]{1,255})"')
_BYTE = 8
_KILOBIT = 1000
# One request asks for so many flows at most.
_MOST_ASKED = 500

SETTINGS = ovsdb.Select("Open_vSwitch", ("external_ids",))
"""The query of Open vSwitch's database whose rows ``remotes_of`` reads."""

_INTERFACES = ovsdb.Select("Interface", ("name", "external_ids"))


class Meters:
    """The limits of this host's ports. The southbound database is only asked for new flows.

    :param database: connection to Open vSwitch's database
    :param folder: directory of the sockets of OVN
    """

    def __init__(self, database: str, folder: Path) -> None:
        self._database, self._folder = database, folder
        # By id of the flow: its match. A flow never changes.
        self._matches: dict[str, str] = {}

    def read_rates(self) -> dict[str, PortRate]:
        """Return the limits of all limited ports, by the name of the port's host end.

        Empty on a host without OVN, and if the southbound database is reached by TLS only.

        :raises OSError: a database or ovn-controller does not answer
        :raises ValueError: an answer is malformed
        """
        settings, interfaces = ovsdb.select(self._database, SETTINGS, _INTERFACES)
        try:
            remotes = remotes_of(settings)
            devices = {
                ids["iface-id"]: row["name"]
                for row in interfaces
                if "iface-id" in (ids := dict(row["external_ids"][1]))
            }
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError("Open vSwitch's database sent a malformed answer") from error
        if not any(remote.startswith("tcp:") for remote in remotes):
            return {}
        listed = ovsdb.call(f"unix:{control(self._folder)}", "meter-table-list", [])
        rates = {flow: int(rate) for flow, rate in _METER.findall(str(listed))}
        self._learn(remotes, rates)
        return _limits(rates, self._matches, devices)

    def _learn(self, remotes: Iterable[str], flows: Iterable[str]) -> None:
        """Read the matches of new flows, and forget flows that no meter has any more."""
        self._matches = {flow: self._matches[flow] for flow in flows if flow in self._matches}
        unknown = [flow for flow in flows if flow not in self._matches][:_MOST_ASKED]
        if unknown:
            self._matches |= _read_matches(remotes, unknown)


def remotes_of(settings: list[ovsdb.Row]) -> list[str]:
    """Return the addresses of the southbound database; none on a host without OVN."""
    remote = str(dict(settings[0]["external_ids"][1]).get("ovn-remote", ""))
    return [address for address in remote.split(",") if address]


def control(folder: Path) -> Path:
    """Return the control socket of ovn-controller.

    :param folder: directory of the sockets of OVN
    :raises OSError: ovn-controller does not run
    :raises ValueError: its pid file is malformed
    """
    pid = int((folder / "ovn-controller.pid").read_text())
    return folder / f"ovn-controller.{pid}.ctl"


def ask_controller(folder: Path) -> None:
    """Check that ovn-controller answers and is connected to the southbound database.

    :param folder: directory of the sockets of OVN
    :raises OSError: it does not answer
    :raises ValueError: it is not connected
    """
    status = ovsdb.call(f"unix:{control(folder)}", "connection-status", [])
    if str(status).strip() != "connected":
        raise ValueError(f"ovn-controller is {str(status).strip()!r}, not connected")


def _read_matches(remotes: Iterable[str], flows: list[str]) -> dict[str, str]:
    """Return the matches of flows from the first server of the database that answers."""
    queries = [
        ovsdb.Select("Logical_Flow", ("match",), [["_uuid", "==", ["uuid", str(uuid.UUID(flow))]]])
        for flow in flows
    ]
    failure: OSError | None = None
    for remote in remotes:
        if remote.startswith("tcp:"):
            try:
                found = ovsdb.select(remote, *queries, database=ovsdb.SOUTHBOUND)
            except OSError as error:
                failure = error
            else:
                pairs = zip(flows, found, strict=True)
                return {flow: str(rows[0]["match"]) for flow, rows in pairs if rows}
    raise failure or ConnectionError("No address of OVN's southbound database is of TCP")


def _limits(
    rates: Mapping[str, int], matches: Mapping[str, str], devices: Mapping[str, str]
) -> dict[str, PortRate]:
    """Return the limits by host end. Pure.

    :param rates: kilobits per second by id of the flow
    :param matches: matches by id of the flow
    :param devices: host ends by name of the port
    """
    limits: dict[str, PortRate] = {}
    for flow, rate in rates.items():
        found = _MATCH.fullmatch(matches.get(flow, ""))
        device = devices.get(found[2]) if found else None
        if not found or device is None:
            continue
        known = limits.get(device, PortRate(None, None))
        limit = rate * _KILOBIT // _BYTE
        # "inport" is the port from which OVN gets a packet, so an instance sends it.
        limits[device] = (
            PortRate(known.received, limit) if found[1] == "inport" else PortRate(limit, known.sent)
        )
    return limits
