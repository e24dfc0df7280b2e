# SPDX-License-Identifier: Apache-2.0
"""Instance + image -> what the container must look like; pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from nova import objects

from novadocker import exception
from novadocker.virt.docker.model import ContainerSpec, EngineImage, Limits

LABEL_UUID = "org.openstack.nova.instance_uuid"
LABEL_NAME = "org.openstack.nova.instance_name"
LABEL_PROJECT = "org.openstack.nova.project_id"
LABEL_FLAVOR = "org.openstack.nova.flavor"
LABEL_HOST = "org.openstack.nova.host"
LABEL_SCHEMA = "org.openstack.nova.schema"
SCHEMA = "1"

# the kernel refuses longer ones (HOST_NAME_MAX)
_MAX_HOSTNAME = 64


def container_name(instance_uuid: str) -> str:
    """Return the container's name; by uuid, so that no name a tenant chose matters."""
    return f"nova-{instance_uuid}"


def owned(name: str, labels: Mapping[str, str]) -> bool:
    """Tell whether a container is a server of ours.

    Labels alone do not decide: an image can bring any label into a foreign container.
    """
    return labels.get(LABEL_SCHEMA) == SCHEMA and name == container_name(labels.get(LABEL_UUID, ""))


def container_spec(
    instance: objects.Instance,
    image_meta: objects.ImageMeta,
    image: EngineImage,
    limits: Limits,
    *,
    runtime: str,
    console_log_max_mb: int,
) -> ContainerSpec:
    """Return the container of an instance.

    Every label is set here, so that labels of the image never stand in for ours. The command is
    the image's unless the image property ``os_command_line`` says otherwise.

    :raises InvalidImage: the image has no command, or the property can't be split into words
    """
    words = _command_line(image_meta)
    if not words and not image.entrypoint and not image.command:
        raise exception.InvalidImage(
            image_id=image_meta.id,
            reason="it has no command to run; build it with one or set the image property "
            "os_command_line",
        )
    return ContainerSpec(
        name=container_name(instance.uuid),
        image_id=image.id,
        hostname=(instance.hostname or instance.uuid)[:_MAX_HOSTNAME],
        labels={
            LABEL_UUID: instance.uuid,
            LABEL_NAME: instance.name,
            LABEL_PROJECT: instance.project_id or "",
            LABEL_FLAVOR: instance.flavor.name,
            LABEL_HOST: instance.host or "",
            LABEL_SCHEMA: SCHEMA,
        },
        runtime=runtime,
        limits=limits,
        console_log_max_mb=console_log_max_mb,
        entrypoint=tuple(words[:1]),
        command=tuple(words[1:]),
    )


def _command_line(image_meta: objects.ImageMeta) -> list[str]:
    text = image_meta.properties.get("os_command_line")
    try:
        return shlex.split(text) if text else []
    except ValueError as error:
        raise exception.InvalidImage(
            image_id=image_meta.id, reason=f"its property os_command_line is malformed: {error}"
        ) from error
