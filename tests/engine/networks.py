# SPDX-License-Identifier: Apache-2.0
"""Ports as Nova describes them, and the kernel's state of them, read by iproute2."""

import json
import secrets
import subprocess
import uuid
from collections.abc import Sequence
from typing import Any

from nova import objects
from nova.network import model

from novadocker.privsep.network import namespace
from tests.engine import switch


def subnet(
    cidr: str,
    addresses: Sequence[str],
    gateway: str | None = None,
    routes: Sequence[tuple[str, str]] = (),
) -> model.Subnet:
    return model.Subnet(
        cidr=cidr,
        gateway=model.IP(address=gateway, type="gateway"),
        ips=[model.FixedIP(address=address) for address in addresses],
        routes=[
            model.Route(cidr=destination, gateway=model.IP(address=hop, type="gateway"))
            for destination, hop in routes
        ],
    )


def vif(*subnets: model.Subnet, mtu: int | None = 1450, **fields: Any) -> model.VIF:
    """Return a port of vif_type ovs."""
    port_id = str(uuid.uuid4())
    values: dict[str, Any] = {
        "id": port_id,
        "address": "fa:16:3e:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3)),
        "network": model.Network(
            id=str(uuid.uuid4()), bridge=switch.BRIDGE, subnets=list(subnets), mtu=mtu
        ),
        "type": model.VIF_TYPE_OVS,
        "details": {"datapath_type": switch.DATAPATH, "ovs_hybrid_plug": False},
        "devname": f"tap{port_id}"[: model.NIC_NAME_LEN],
        "ovs_interfaceid": port_id,
        "vnic_type": model.VNIC_TYPE_NORMAL,
    }
    return model.VIF(**{**values, **fields})


def simple_vif(address: str, **fields: Any) -> model.VIF:
    """Return a port with one address in 10.7.0.0/24, and its gateway."""
    return vif(subnet("10.7.0.0/24", [address], "10.7.0.1"), **fields)


def instance(instance_uuid: str) -> objects.Instance:
    return objects.Instance(id=1, uuid=instance_uuid, project_id="project", system_metadata={})


def run(instance_uuid: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in an instance's namespace."""
    return subprocess.run(
        ["nsenter", f"--net={namespace.namespace_path(instance_uuid)}", *command],
        capture_output=True,
        text=True,
    )


def ip(instance_uuid: str, *command: str) -> Any:
    """Return iproute2's output in an instance's namespace."""
    shown = run(instance_uuid, "ip", "-json", "-details", *command)
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout or "[]")


def pings(instance_uuid: str, address: str) -> bool:
    """Return True if an address answers; address resolution may use up the first packet."""
    return run(instance_uuid, "ping", "-c", "2", "-i", "0.2", "-w", "3", address).returncode == 0


def host_device(name: str) -> Any:
    """Return iproute2's output on a device of the host; None if it does not exist."""
    shown = subprocess.run(
        ["ip", "-json", "-details", "link", "show", name], capture_output=True, text=True
    )
    return json.loads(shown.stdout)[0] if shown.returncode == 0 else None
