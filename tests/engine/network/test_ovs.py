# SPDX-License-Identifier: Apache-2.0
"""Bandwidth limits of a real Open vSwitch and a real kernel."""

import logging
import subprocess
import time

import pytest

from novadocker.linux import ovsdb
from novadocker.privsep.network import ovs_support
from novadocker.virt.docker.network import ovs as network_ovs
from tests.engine.switch import BRIDGE, Switch


def test_datapath_of_each_bridge(ovs: Switch) -> None:
    assert network_ovs.read_datapaths(ovs.connection) == {BRIDGE: "netdev"}


def test_switch_that_is_away_or_hangs(ovs: Switch, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConnectionRefusedError):
        network_ovs.read_datapaths("tcp:127.0.0.1:1")
    started = time.monotonic()
    with ovs.hanging(), pytest.raises(TimeoutError, match="no answer within 5 s"):
        network_ovs.read_datapaths(ovs.connection)
    assert time.monotonic() - started < 15
    with caplog.at_level(logging.WARNING):
        network_ovs.warn_of_ineffective_limits("tcp:127.0.0.1:1", BRIDGE)
    assert caplog.records == []


def test_port_is_deleted_when_the_call_returns(ovs: Switch) -> None:
    ovs.vsctl("add-port", BRIDGE, "gone", "--", "set", "Interface", "gone", "type=internal")
    assert ovsdb.has_port(ovs.connection, BRIDGE, "gone")
    assert not ovsdb.has_port(ovs.connection, "br-other", "gone")
    for _ in range(2):
        ovsdb.delete_port(ovs.connection, BRIDGE, "gone")
        assert not ovsdb.has_port(ovs.connection, BRIDGE, "gone")
        # The database has no row, and ovs-vswitchd no port.
        assert '"gone"' not in ovs.vsctl("--columns=name", "list", "Interface")
        assert "gone" not in ovs.appctl("dpif/show")


def test_deletion_stands_while_nobody_switches(
    ovs: Switch, caplog: pytest.LogCaptureFixture
) -> None:
    ovs.stop_switching()
    try:
        ovs.vsctl("--no-wait", "add-port", BRIDGE, "gone")
        with caplog.at_level(logging.WARNING):
            ovsdb.delete_port(ovs.connection, BRIDGE, "gone", seconds=0.5)
        assert ovs.ports() == []
    finally:
        ovs.start_switching()
    (record,) = caplog.records
    assert "Failed to wait until ovs-vswitchd deletes port gone" in record.getMessage()


def test_one_warning(ovs: Switch, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        network_ovs.warn_of_ineffective_limits(ovs.connection, BRIDGE)
    (record,) = caplog.records
    assert "br-int has a userspace datapath" in record.getMessage()


def test_what_the_kernel_lacks_is_what_iproute2_misses() -> None:
    """The test uses its own namespace, as the probe does."""
    tried = {
        "police": "tc qdisc add dev lo ingress && tc filter add dev lo parent ffff: protocol all "
        "basic police rate 10mbit burst 125k drop",
        "htb": "tc qdisc add dev lo root handle 1: htb default 1",
    }
    lacking = [
        means
        for means, script in tried.items()
        if subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True).returncode
    ]
    assert list(ovs_support.missing_means()) == lacking
