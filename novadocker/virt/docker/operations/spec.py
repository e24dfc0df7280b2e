# SPDX-License-Identifier: Apache-2.0
"""The specification of an instance's container; pure functions."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath

from nova import objects

from novadocker import exception, naming
from novadocker.virt.docker.containers.lifecycle import SYSTEMD_POWER_OFF
from novadocker.virt.docker.guest import environment, identity
from novadocker.virt.docker.model import ContainerSpec, EngineImage, Isolation, Limits, Mount

_INIT = ("/sbin/init", "/usr/sbin/init")


_LARGEST_TEXT = 64 << 10
_MOST_VOLUMES = 100


def check_image_settings(image_id: str, image: EngineImage) -> None:
    """Refuse an image whose settings would hold up the engine and the runtime at each start.

    :raises InvalidImage: a setting is too large
    """
    for name, texts in (
        ("environment variables (ENV)", image.environment),
        ("labels (LABEL)", image.labels),
        ("a command (ENTRYPOINT, CMD)", (*image.entrypoint, *image.command)),
        ("a working directory (WORKDIR)", (image.working_folder,)),
        ("paths of volumes (VOLUME)", image.volumes),
    ):
        size = sum(len(text.encode()) for text in texts)
        if size > _LARGEST_TEXT:
            raise exception.InvalidImage(
                image_id=image_id,
                reason=f"the image has {name} of {size} bytes, more than {_LARGEST_TEXT}",
            )
    if len(image.volumes) > _MOST_VOLUMES:
        raise exception.InvalidImage(
            image_id=image_id,
            reason=f"the image has {len(image.volumes)} volumes (VOLUME), more than "
            f"{_MOST_VOLUMES}",
        )


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
    environment_from_metadata: bool = False,
) -> ContainerSpec:
    """Return the specification of an instance's container.

    Sets every label of the driver, so that no label of the image replaces one. The command is the
    image property ``os_command_line``, or the image's own command without that property.

    :raises InvalidImage: the image has no command, or the property cannot be split into arguments
    """
    arguments = _command_line(image_meta)
    if not arguments and not image.entrypoint and not image.command:
        raise exception.InvalidImage(
            image_id=image_meta.id,
            reason="the image has no command; build it with a command or set the image property "
            "os_command_line",
        )
    systemd = _is_systemd([*arguments] or [*image.entrypoint, *image.command])
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
        entrypoint=tuple(arguments[:1]),
        command=tuple(arguments[1:]),
        mounts=mounts,
        devices=devices,
        stop_signal=SYSTEMD_POWER_OFF if systemd and not image.stop_signal else "",
        environment=environment.variables(instance, from_metadata=environment_from_metadata),
        systemd=systemd,
    )


def _is_systemd(command: Sequence[str]) -> bool:
    """Return True if a command is systemd, or a path at which images install it as init."""
    return PurePosixPath(command[0]).name == "systemd" or command[0] in _INIT


def _command_line(image_meta: objects.ImageMeta) -> list[str]:
    text = image_meta.properties.get("os_command_line")
    try:
        return shlex.split(text) if text else []
    except ValueError as error:
        raise exception.InvalidImage(
            image_id=image_meta.id,
            reason=f"the image property os_command_line is malformed: {error}",
        ) from error
