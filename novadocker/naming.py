# SPDX-License-Identifier: Apache-2.0
"""Names and labels of an instance's objects on a host, and the forms of the ids in them.

Imports nothing of Nova, because programs that run without Nova use it.
"""

import re
from collections.abc import Mapping

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""An instance's UUID."""

SHA256 = re.compile(r"[0-9a-f]{64}")
"""A SHA-256 in hex."""

DIGEST = re.compile(rf"sha256:{SHA256.pattern}")
"""A digest of an image or of a layer; with ``sha256:`` in front it is the engine's image id."""

CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
"""A random id of the engine, such as that of a container."""

TOKEN = re.compile(r"[0-9a-f]{32}")
"""A random name of a move or of a backup."""

LABEL_UUID = "org.openstack.nova.instance_uuid"
LABEL_NAME = "org.openstack.nova.instance_name"
LABEL_PROJECT = "org.openstack.nova.project_id"
LABEL_FLAVOR = "org.openstack.nova.flavor"
LABEL_HOST = "org.openstack.nova.host"
LABEL_RESCUE = "org.openstack.nova.rescue"
LABEL_OVERLAY = "org.openstack.nova.overlay"
LABEL_SCHEMA = "org.openstack.nova.schema"
SCHEMA = "1"

SERVER_FILTER = f"{LABEL_SCHEMA}={SCHEMA}"
"""The engine's filter of labels that selects the containers of the driver."""

ASIDE = "-rescued"
"""Suffix of the name of an instance's own container during a rescue."""

AWAY = "-away"
"""Suffix of a container's name while its instance is in another cell and may be reverted to it."""

IMAGES = "novadocker/"
"""Prefix of the names of all images of the driver; a Glance image id and a tag follow."""

MOVED_IMAGES = f"{IMAGES}moved"
"""Repository of images that came with a move from another host."""

ARRIVING = "arriving"
"""Tag of an image's lowest layer while the rest of the image is downloaded."""

HOST_DEVICE = re.compile(r"(?:tap|nic)[0-9a-f][0-9a-f-]{0,11}")
"""A port's device on the host: Neutron's name of it, or ``host_device``."""

GUEST_DEVICE = re.compile(r"eth[0-9]{1,3}")
"""A port's device in an instance."""

BRIDGE = re.compile(r"(brq|qbr)[0-9a-f][0-9a-f-]{0,11}")
"""A Linux bridge for ports: of Neutron or the driver for a network, or of os-vif for one port."""

# nova.network.model.NIC_NAME_LEN
_DEVICE_LENGTH = 14
# Prefixes of os-vif (vif_plug_ovs) for a port with a bridge between it and Open vSwitch: the
# bridge, its end of the link to the switch, the switch's end.
_BRIDGED_PREFIXES = ("qbr", "qvb", "qvo")
_SWITCH_END = re.compile(r"qvo([0-9a-f-]{1,11})")
_NAMESPACE = re.compile(rf"nova-({UUID.pattern})")
# Nova names architectures as the kernel does; Docker names these differently.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def host_device(port_id: str) -> str:
    """Return the name of a port's device on the host if Neutron names none."""
    return f"nic{port_id}"[:_DEVICE_LENGTH]


def bridged_devices(port_id: str) -> tuple[str, str, str]:
    """Return the names of os-vif's devices for a port with a bridge between it and Open vSwitch.

    :returns: the bridge, its end of the link to the switch, and the switch's end
    """
    bridge, end, switch_end = (f"{kind}{port_id}"[:_DEVICE_LENGTH] for kind in _BRIDGED_PREFIXES)
    return bridge, end, switch_end


def bridged_host_device(switch_end: str) -> str | None:
    """Return the host device of a port, given the switch's end of ``bridged_devices``.

    :returns: None for any other device
    """
    match = _SWITCH_END.fullmatch(switch_end)
    return f"tap{match[1]}" if match else None


def guest_device(number: int) -> str:
    """Return the name of an instance's device."""
    return f"eth{number}"


def container_name(instance_uuid: str) -> str:
    """Return the name of an instance's container.

    It is made from the UUID, because a tenant chooses the instance's name.
    """
    return f"nova-{instance_uuid}"


def namespace_name(instance_uuid: str) -> str:
    """Return the name of an instance's network namespace below /run/netns."""
    return f"nova-{instance_uuid}"


def instance_of_namespace(name: str) -> str | None:
    """Return the UUID in the name of a network namespace; None for any other name."""
    match = _NAMESPACE.fullmatch(name)
    return match[1] if match else None


def docker_architecture(machine: str) -> str:
    """Return Docker's name of an architecture, given the kernel's name of it."""
    return _ARCHITECTURES.get(machine, machine)


def image_name(image_id: str, tag: str) -> str:
    """Return the engine's name of a Glance image."""
    return f"{IMAGES}{image_id}:{tag}"


def split_image_name(name: str) -> tuple[str, str]:
    """Return the Glance image id and the tag of an image of the driver."""
    repository, _, tag = name.partition(":")
    return repository.removeprefix(IMAGES), tag


def owned(name: str, labels: Mapping[str, str]) -> bool:
    """Return True if a container belongs to an instance and has the instance's container name.

    The name is compared, too, because an image can put any label on any container.
    """
    return labels.get(LABEL_SCHEMA) == SCHEMA and name == container_name(labels.get(LABEL_UUID, ""))


def is_own(name: str, labels: Mapping[str, str]) -> bool:
    """Return True if a container is an instance's own and not the one that rescues it.

    The suffixes ``ASIDE`` and ``AWAY`` are allowed in its name.
    """
    name = name.removesuffix(ASIDE).removesuffix(AWAY)
    return owned(name, labels) and labels.get(LABEL_RESCUE) != "1"
