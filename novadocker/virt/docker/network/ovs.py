# SPDX-License-Identifier: Apache-2.0
"""What Open vSwitch and the kernel below it make of Neutron's bandwidth limits.

Neutron's agent asks the switch for a limit and is told that all is well, whether the kernel has
the means or not.
"""

from collections.abc import Mapping, Sequence

from oslo_log import log as logging

from novadocker.linux import ovsdb
from novadocker.privsep.network import ovs_support

LOG = logging.getLogger(__name__)


def warn_of_ineffective_limits(connection: str, bridge: str) -> None:
    """Log one warning if Neutron's bandwidth limits have no effect on this host.

    A switch that is away is no reason not to start: ports are wired when it is back.
    """
    try:
        datapaths = read_datapaths(connection)
    except OSError as error:
        LOG.info("Open vSwitch is not asked for its bridges: %s", error)
        return
    if reason := ineffective_limits(datapaths, bridge, ovs_support.missing_means()):
        LOG.warning("Neutron's bandwidth limits have no effect on this host: %s", reason)


def read_datapaths(connection: str) -> dict[str, str]:
    """Return the datapath type of each bridge; the empty string is the kernel's.

    :param connection: of the switch's database, as ``tcp:127.0.0.1:6640``
    :raises OSError: the database does not answer within five seconds
    """
    (rows,) = ovsdb.select(connection, ovsdb.Select("Bridge", ("name", "datapath_type")))
    return {row["name"]: row["datapath_type"] for row in rows}


def ineffective_limits(datapaths: Mapping[str, str], bridge: str, missing: Sequence[str]) -> str:
    """Pure: say which of Neutron's bandwidth limits have no effect, and why; empty if all have.

    :param bridge: the integration bridge
    :param missing: what the kernel lacks, from ``policing.missing_means``
    """
    found = []
    if datapaths.get(bridge) == "netdev":
        found.append(
            f"what servers send is not limited: {bridge} has a userspace datapath, which reads "
            "packets before the kernel polices them"
        )
    elif "police" in missing:
        found.append(
            "what servers send is not limited: the kernel lacks cls_basic or act_police, "
            "and Open vSwitch does not say so"
        )
    if "htb" in missing:
        found.append("what servers receive is not limited: the kernel lacks sch_htb")
    return "; ".join(found)
