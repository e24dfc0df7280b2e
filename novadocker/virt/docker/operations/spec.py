# SPDX-License-Identifier: Apache-2.0
"""Instance + image -> what the container must look like; pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath

from nova import objects

from novadocker import exception, naming
from novadocker.virt.docker.guest import identity
from novadocker.virt.docker.model import ContainerSpec, EngineImage, Isolation, Limits, Mount

# systemd(1): halts by it as by "systemctl halt"
_SYSTEMD_POWER_OFF = "SIGRTMIN+3"
_INIT = ("/sbin/init", "/usr/sbin/init")


def container_spec(
    instance: objects.Instance,
    image_meta: objects.ImageMeta,
    image: EngineImage,
    limits: Limits,
    isolation: Isolation,
    *,
    runtime: str,
    console_log_max_mb: int,
    mounts: tuple[Mount, ...] = (),
    devices: tuple[Mount, ...] = (),
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
    systemd = _is_systemd([*words] or [*image.entrypoint, *image.command])
    return ContainerSpec(
        name=naming.container_name(instance.uuid),
        image_id=image.id,
        hostname=identity.kernel_hostname(instance.hostname or instance.uuid),
        labels={
            naming.LABEL_UUID: instance.uuid,
            naming.LABEL_NAME: instance.name,
            naming.LABEL_PROJECT: instance.project_id or "",
            naming.LABEL_FLAVOR: instance.flavor.name,
            naming.LABEL_HOST: instance.host or "",
            naming.LABEL_SCHEMA: naming.SCHEMA,
            naming.LABEL_RESCUE: "",
        },
        runtime=runtime,
        limits=limits,
        isolation=isolation,
        console_log_max_mb=console_log_max_mb,
        entrypoint=tuple(words[:1]),
        command=tuple(words[1:]),
        mounts=mounts,
        devices=devices,
        stop_signal=_SYSTEMD_POWER_OFF if systemd and not image.stop_signal else "",
        systemd=systemd,
    )


def _is_systemd(command: Sequence[str]) -> bool:
    """Tell whether a command is systemd's, or the name that it goes by as an init system."""
    return PurePosixPath(command[0]).name == "systemd" or command[0] in _INIT


def _command_line(image_meta: objects.ImageMeta) -> list[str]:
    text = image_meta.properties.get("os_command_line")
    try:
        return shlex.split(text) if text else []
    except ValueError as error:
        raise exception.InvalidImage(
            image_id=image_meta.id, reason=f"its property os_command_line is malformed: {error}"
        ) from error
