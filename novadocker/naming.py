# SPDX-License-Identifier: Apache-2.0
"""What belongs to a server is called and labelled by this; kept free of Nova, for all programs."""

from collections.abc import Mapping

LABEL_UUID = "org.openstack.nova.instance_uuid"
LABEL_NAME = "org.openstack.nova.instance_name"
LABEL_PROJECT = "org.openstack.nova.project_id"
LABEL_FLAVOR = "org.openstack.nova.flavor"
LABEL_HOST = "org.openstack.nova.host"
LABEL_RESCUE = "org.openstack.nova.rescue"
LABEL_OVERLAY = "org.openstack.nova.overlay"
LABEL_SCHEMA = "org.openstack.nova.schema"
SCHEMA = "1"

ASIDE = "-rescued"
"""What the name of a server's own container ends with during a rescue."""

AWAY = "-away"
"""What a container's name ends with while its server is in another cell, and may come back."""

IMAGES = "novadocker/"
"""What the names of all images of ours begin with; a Glance id follows, and a tag."""


def container_name(instance_uuid: str) -> str:
    """Return the container's name; by uuid, so that no name a tenant chose matters."""
    return f"nova-{instance_uuid}"


def namespace_name(instance_uuid: str) -> str:
    """Return the name of the network namespace, as iproute2 knows it."""
    return f"nova-{instance_uuid}"


def owned(name: str, labels: Mapping[str, str]) -> bool:
    """Tell whether a container is a server of ours.

    Labels alone do not decide: an image can bring any label into a foreign container.
    """
    return labels.get(LABEL_SCHEMA) == SCHEMA and name == container_name(labels.get(LABEL_UUID, ""))


def is_own(name: str, labels: Mapping[str, str]) -> bool:
    """Tell whether a container is a server's own, also during a rescue or while it is away."""
    name = name.removesuffix(ASIDE).removesuffix(AWAY)
    return owned(name, labels) and labels.get(LABEL_RESCUE) != "1"
